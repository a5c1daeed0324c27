"""What the configuration means to the parts that do the work: limits and policies in their own units. Pure."""

from __future__ import annotations

from daemon.config import Config
from daemon.store.out_folder import OutLimits
from daemon.sweep.decide import Policy
from daemon.sweep.steps import Settings
from schema.connect import ReadLimits


def read_limits(config: Config) -> ReadLimits:
    """What one look into a container's file may cost."""
    return ReadLimits(
        max_file_bytes=config.limits.max_outbound_file_bytes,
        max_row_bytes=4 * config.limits.max_content_bytes + 64 * 1024,
        deadline_s=config.limits.read_deadline_s,
    )


def sweep_settings(config: Config) -> Settings:
    """The sweep's policy in milliseconds."""
    policy = Policy(
        ceiling=int(config.sweep.ceiling_s * 1000),
        claim_stuck=int(config.sweep.claim_stuck_s * 1000),
        max_declared=int(config.sweep.max_declared_s * 1000),
        max_tries=config.sweep.max_tries,
        backoff_base=int(config.sweep.backoff_base_s * 1000),
        idle_stop=int(config.runtime.idle_stop_s * 1000),
    )
    out = OutLimits(config.limits.max_out_folder_bytes, config.limits.max_out_folder_files)
    return Settings(policy, config.timezone, out)
