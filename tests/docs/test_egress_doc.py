"""docs/egress.md: its tables are a configuration, and its table of services gives routes that one can be made of."""

import re
from pathlib import Path
from typing import Final

from daemon.config.loading import load_config

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "egress.md").read_text(encoding="utf-8")


def test_its_examples_are_one_configuration(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "clawbus.toml"
    path.write_text("\n".join([*blocks, "[agents.helper]"]))
    egress = load_config(path).egress
    assert set(egress.routes) == {"anthropic"}
    assert egress.connect
    assert egress.daily()["helper"].requests
    assert egress.environment("helper")["ANTHROPIC_BASE_URL"] == "{gate}/anthropic"


def test_its_services_can_be_routes(tmp_path: Path) -> None:
    rows = re.findall(
        r"^\| [^|]+ \| `(https?://[^`]+)` \| (?:`([a-z-]+)`)? *\| (?:`([A-Z_]+) = \"\{url\}\"`)?", PAGE, re.MULTILINE
    )
    assert len(rows) == 4
    path = tmp_path / "clawbus.toml"
    text = '[egress]\nprivate_targets = ["127.0.0.1:11434"]\n[agents.helper]\n'
    for number, (upstream, header, variable) in enumerate(rows):
        text += f'[egress.routes.r{number}]\nupstream = "{upstream}"\nagents = ["helper"]\n'
        text += f'header = "{header}"\nsecret_file = "/key"\n' if header else ""
        text += f'env = {{ {variable} = "{{url}}" }}\n' if variable else ""
    path.write_text(text)
    assert len(load_config(path).egress.routes) == 4
