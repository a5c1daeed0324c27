"""docs/configuration.md lists every key of the configuration with its default, and no other."""

import json
import re
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from daemon.config.agents import Agent
from daemon.config.egress import EgressBudget, EgressConnect, EgressRoute
from daemon.config.models import Config, OwnershipGroup
from daemon.config.routes import RouteTable
from daemon.config.schedules import ScheduleTable
from daemon.config.user_commands import CommandTable

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROW: Final = re.compile(r"^\| `([^`]+)` \| (?:`([^`]*)`|(none|required)) \| (.+) \|$", re.MULTILINE)


def documented() -> dict[str, str]:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len({key for key, *_ in rows}) == len(rows)
    return {key: value or none for key, value, none, _ in rows}


def expected() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in Config.model_fields.items():
        if name in ("agents", "channels", "routes", "commands", "schedules", "ownership"):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= {f"{name}.{key}": default for key, default in _defaults(field.annotation).items()}
        else:
            found[name] = _shown(field.get_default(call_default_factory=True))
    below = {
        "ownership.host": OwnershipGroup,
        "ownership.cluster": OwnershipGroup,
        "routes": RouteTable,
        "commands.NAME": CommandTable,
        "agents.NAME": Agent,
        "schedules.NAME": ScheduleTable,
        "egress.routes.NAME": EgressRoute,
        "egress.connect.NAME": EgressConnect,
        "egress.budgets.AGENT": EgressBudget,
    }
    return found | {
        f"{table}.{key}": default for table, model in below.items() for key, default in _defaults(model).items()
    }


def _defaults(model: type[BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=True, validated_data={})
        found[name] = "required" if value is PydanticUndefined else _shown(value)
    return found


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(str(value) if isinstance(value, Path) else value)


def test_every_key_is_listed_with_its_default() -> None:
    assert documented() == expected()


def test_every_table_has_a_section() -> None:
    titles = re.findall(r"^## \[{1,2}([a-z_]+)(?:\.NAME)?\]{1,2}$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    tables = [name for name in Config.model_fields if name not in ("data_dir", "timezone", "role")]
    assert titles == tables
