"""The quick reading of where a daemon is finds what the whole check finds, or leaves it to that."""

from pathlib import Path

import pytest

from daemon.config.loading import load_config
from daemon.config.place import place_of, quick_place
from daemon.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("CLAWBUS_CONFIG", "CLAWBUS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "given", "variable"),
    [
        (None, None, None),
        ("", None, None),
        ('data_dir = "data"', None, None),
        ('data_dir = "../there/data"', None, None),
        ('data_dir = "/srv/bus"', None, None),
        ('data_dir = "data"', "elsewhere", None),
        ('data_dir = "data"', None, "variable"),
        ('data_dir = "data"', "elsewhere", "variable"),
        ('[runtime]\nkind = "process"\n[control]\nsocket = "/run/bus.sock"', None, None),
        ('[control]\nsocket = "relative.sock"', "elsewhere", None),
    ],
)
def test_it_is_the_place_of_the_whole_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, given: str | None, variable: str | None
) -> None:
    path = folder / "etc" / "clawbus.toml" if text is not None else None
    if path is not None:
        path.parent.mkdir()
        path.write_text(text or "")
    if variable is not None:
        monkeypatch.setenv("CLAWBUS_DATA_DIR", variable)
    environ = {} if variable is None else {"CLAWBUS_DATA_DIR": variable}
    option = Path(given) if given is not None else None
    assert quick_place(path, option, environ) == place_of(load_config(path, data_dir=option))


@pytest.mark.parametrize(
    "text",
    [
        'data_dir = ""',
        "data_dir = 5",
        'data_dir = "/"',
        "runtime = 1",
        '[runtime]\nkind = "lxc"',
        "[control]\nsocket = 1",
    ],
)
def test_a_place_that_is_wrong_is_left_to_the_whole_check(folder: Path, text: str) -> None:
    path = folder / "clawbus.toml"
    path.write_text(text)
    assert quick_place(path, None, {}) is None
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("name", ["CLAWBUS_RUNTIME__KIND", "CLAWBUS_BOGUS", "clawbus_data_dir"])
def test_a_variable_that_may_be_a_key_is_left_to_the_whole_check(name: str) -> None:
    assert quick_place(None, None, {name: "process"}) is None


def test_what_kubernetes_sets_is_no_key() -> None:
    assert quick_place(None, None, {"CLAWBUS_SERVICE_HOST": "10.0.0.1"}) is not None


def test_a_file_that_is_not_toml_is_refused(folder: Path) -> None:
    (folder / "clawbus.toml").write_text("data_dir = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        quick_place(folder / "clawbus.toml", None, {})
