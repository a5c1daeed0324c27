"""Every code that `doctor` can print: daemon/cli/explained.toml explains it, and here is who tries that its repair ends it.

A new code without a row here fails.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Final

from tests.support.source_trees import tree_of

ROOT: Final = Path(__file__).resolve().parents[3]
RULES: Final = (
    "host_rules", "slot_rules", "session_file_rules", "session_container_rules", "session_message_rules", "run_rules", "route_rules",
)  # fmt: skip
WRECKS: Final = "tests/wrecks/test_wrecks.py"
REPAIRS: Final = "tests/wrecks/test_repairs.py"
MORE: Final = "tests/wrecks/test_more_repairs.py"
DOCTOR: Final = "tests/unit/inspect/test_doctor.py"
ROUTES: Final = "tests/wrecks/test_route_repairs.py"
EGRESS: Final = "tests/unit/cli/test_egress.py"
QUESTIONS: Final = "tests/integration/test_questions.py"
LIVES: Final = "tests/unit/inspect/test_session_lives.py"

# Who makes the situation for real and runs the printed command (the first two), or who checks the command that is printed.
TRIED: Final = {
    "STUCK_CLAIM": WRECKS,
    "GHOST_RUN": WRECKS,
    "LOST_ACK": WRECKS,
    "ORPHANED_CONTAINER": WRECKS,
    "HOT_JOURNAL": WRECKS,
    "DEAD_LETTERS": REPAIRS,
    "MESSAGE_RETRYING": REPAIRS,
    "QUESTION_OPEN": QUESTIONS,
    "SCHEDULE_FAILING": "tests/integration/test_schedules.py",
    "SCHEDULE_ZONE": "tests/integration/test_schedules.py",
    "RUNTIME_UNAVAILABLE": WRECKS,
    "DISK_FULL": WRECKS,
    "CLOCK_JUMP": WRECKS,
    "QUARANTINED": WRECKS,
    "IMAGE_UNUSABLE": WRECKS,
    "CONFIG_INVALID": "tests/unit/cli/test_broken_configuration.py",
    "DAEMON_DOWN": REPAIRS,
    "DAEMON_SILENT": REPAIRS,
    "DATA_UNREADABLE": REPAIRS,
    "FILES_UNREADABLE": REPAIRS,
    "UNREGISTERED": REPAIRS,
    "REGISTRY_GONE": DOCTOR,
    "REGISTRY_UNREADABLE": MORE,
    "SWEEP_STALLED": DOCTOR,
    "STORAGE_FAILING": MORE,
    "HOST_TROUBLE": MORE,
    "COPIED_FOLDER": MORE,
    "SCHEMA_TOO_NEW": MORE,
    "FILE_LOCKED": MORE,
    "SESSION_FAILING": MORE,
    "HOME_NEARLY_FULL": MORE,
    "OUT_NEARLY_FULL": MORE,
    "CHANNEL_FAILING": DOCTOR,
    "EGRESS_BUDGET": EGRESS,
    "BUDGET_USED_UP": "tests/integration/test_budgets.py",
    "EGRESS_SECRET": EGRESS,
    "SPAWN_FAILING": LIVES,
    "WORK_WAITING": DOCTOR,
    "UNCLAIMED": DOCTOR,
    "HELD_BACK": DOCTOR,
    "DELIVERY_STUCK": DOCTOR,
    "ANSWER_RETRYING": DOCTOR,
    "GHOST_CONTAINER": DOCTOR,
    "CONTAINER_RESTARTED": LIVES,
    "RESTART_POLICY": LIVES,
    "CONTAINER_PAUSED": LIVES,
    "CONTRADICTION": DOCTOR,
    "STALE_RUN": DOCTOR,
    "DEGRADED": MORE,
    "SLOT_STATE": "tests/integration/test_deploy.py",
    "SLOT_STUCK": "tests/integration/test_deploy.py",
    "STANDBY_ABSENT": "tests/integration/test_deploy.py",
    "RUNTIME_CHANGED": MORE,
    "ANSWERS_HELD_BACK": MORE,
    "ROUTE_BROKEN": ROUTES,
    "ROUTE_UNREACHABLE": ROUTES,
    "PAIRING_WITHOUT_AGENT": ROUTES,
    "WORK_WITHOUT_AGENT": ROUTES,
}


def codes() -> set[str]:
    """The codes that the rules make diagnoses with."""
    found: set[str] = set()
    for name in RULES:
        tree = tree_of(ROOT / f"daemon/core/{name}.py")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = {"Diagnosis": 0, "_of": 1, "finding": 1, "_about": 2}.get(node.func.id)
                if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                    found.add(str(ast.literal_eval(node.args[place])))
    return {*found, "DISK_FULL", "STORAGE_FAILING", "SCHEMA_TOO_NEW", "HOST_TROUBLE"}  # by name in the rules


def test_every_code_has_a_row_here_and_none_that_there_is_not() -> None:
    assert codes() == set(TRIED)


def test_each_row_names_a_test_that_speaks_of_the_code() -> None:
    for code, where in TRIED.items():
        assert f'"{code}"' in (ROOT / where).read_text(encoding="utf-8"), (code, where)


def test_each_code_is_explained_once() -> None:
    text = (ROOT / "daemon/cli/explained.toml").read_text(encoding="utf-8")
    told = [code for key in tomllib.loads(text)["Findings of `doctor`"] for code in key.split(", ")]
    assert sorted(told) == sorted(codes()), "each once"
