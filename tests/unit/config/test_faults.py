"""A wrong configuration is explained in the words of the file, and a number is never true or false."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from daemon.channels.webhook_settings import Hook, WebhookSettings
from daemon.config.faults import booleans_for_numbers
from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[runtime]\nmax_containers = true", "runtime.max_containers: must be a number (got true)"),
        ("[sweep]\ninterval_s = false", "sweep.interval_s: must be a number (got false)"),
        ("[agents.x]\nmax_containers = true", "agents.x.max_containers: must be a number (got true)"),
        ("[runtime]\nmax_containers = 2.5", "runtime.max_containers: must be a whole number (got 2.5)"),
        ("[runtime]\nmax_containers = 0", "runtime.max_containers: must be at least 1 (got 0)"),
        ("[runtime]\nmax_containers = 1001", "runtime.max_containers: must be at most 1000 (got 1001)"),
        ("[runtime]\nkind = 1", "runtime.kind: must be 'docker', 'podman' or 'process' (got 1)"),
        ("[agents.x]\ncommand = 'echo'", 'agents.x.command: must be a list, such as ["one", "two"] (got \'echo\')'),
        ("[agents.x]\ncommand = ['echo', 1]", "agents.x.command.1: must be text in quotes (got 1)"),
        ("[agents.x]\ncommand = []", "agents.x.command: provider 'command' needs a program"),
        ("[agents]\nx = 1", "agents.x: must be a table (got 1)"),
        ("[agents.x]\ntimeout_s = inf", "agents.x.timeout_s: must be a finite number (got inf)"),
        ("[sweep]\ninterval_s = 'soon'", "sweep.interval_s: must be a number (got 'soon')"),
    ],
)
def test_a_fault_is_told_in_the_words_of_the_file(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert fault in str(refused.value)
    assert "Input should" not in str(refused.value)


def keys_of(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, object]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_of(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}", inner


def table_with(key: str, value: object) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: table_with(rest, value) if rest else value}


@pytest.mark.parametrize("model", [Config, WebhookSettings, Hook])
def test_no_number_may_be_true_and_every_switch_may(model: type[BaseModel]) -> None:
    refused = {key for key, _ in keys_of(model) if list(booleans_for_numbers(model, table_with(key, True)))}
    kinds = {key: str(kind) for key, kind in keys_of(model)}
    numbers = {
        key for key, kind in kinds.items() if any(word in kind for word in ("int", "float")) and "Hint" not in kind
    }
    assert refused == {key for key in numbers if "bool" not in kinds[key]}
