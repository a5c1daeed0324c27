"""Which channels are built, and how a wrong table is refused: by the key's full name and without its value."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict

from daemon.channels import registry
from daemon.channels.local import LocalChannel
from daemon.channels.protocol import Capabilities, ChannelContext
from daemon.channels.registry import build_channels, find_types
from daemon.channels.webhook import WebhookChannel
from daemon.config.models import Config
from daemon.core.errors import ChannelError, ConfigError
from schema.errors import ClawbusError
from tests.support.channels import SetClock

SECRET = "never to be seen anywhere"


class NoiseSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    volume: int = 1


class NoiseChannel:
    Settings: ClassVar[type[BaseModel]] = NoiseSettings

    def __init__(self, context: ChannelContext) -> None:
        self.name = context.name
        self.context = context
        self.capabilities = Capabilities()

    async def run(self, accept: object, *, task_status: object) -> None: ...

    async def deliver(self, message: object) -> None: ...


class LaxChannel(NoiseChannel):
    class Settings(BaseModel): ...


class MuteChannel(NoiseChannel):
    deliver = None  # pyright: ignore[reportAssignmentType]


NOT_A_CHANNEL = 7


def build(tmp_path: Path, channels: dict[str, dict[str, Any]], **types: str) -> registry.Channels:
    known = {**find_types(), **{name: EntryPoint(name, value, registry.GROUP) for name, value in types.items()}}
    return build_channels(Config(data_dir=tmp_path, channels=channels), SetClock(), known)


def here(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.fixture
def types() -> dict[str, str]:
    return {
        name: here(cls) for name, cls in {"noise": "NoiseChannel", "lax": "LaxChannel", "mute": "MuteChannel"}.items()
    }


def test_what_is_installed_is_found() -> None:
    assert {name: point.load() for name, point in find_types().items()} == {
        "local": LocalChannel,
        "webhook": WebhookChannel,
    }


def test_the_name_of_messages_between_agents_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"channels\.agent"):
        build(tmp_path, {"agent": {"type": "webhook"}})


def test_local_is_always_there(tmp_path: Path) -> None:
    channels = build(tmp_path, {})
    assert list(channels) == ["local"]
    assert channels.local is channels["local"]
    assert list(tmp_path.iterdir()) == []


def test_a_channel_is_known_by_its_tables_name(tmp_path: Path, types: dict[str, str]) -> None:
    channels = build(tmp_path, {"noise": {}, "loud": {"type": "noise", "volume": 9}, "local": {}}, **types)
    assert set(channels) == {"local", "noise", "loud"}
    loud: Any = channels["loud"]
    assert (loud.name, loud.context.settings.volume, loud.context.data_dir) == ("loud", 9, tmp_path)


def test_one_can_be_switched_off(tmp_path: Path) -> None:
    assert list(build(tmp_path, {"webhook": {"enabled": False}})) == ["local"]


def test_what_is_switched_off_is_not_loaded(tmp_path: Path) -> None:
    assert list(build(tmp_path, {"broken": {"enabled": False, "x": 1}}, broken="no.such.module:X")) == ["local"]


def test_the_result_cannot_be_changed(tmp_path: Path) -> None:
    channels: Any = build(tmp_path, {})
    with pytest.raises(TypeError):
        channels["x"] = 1


WRONG: list[tuple[dict[str, dict[str, Any]], type[ClawbusError], str]] = [
    ({"telex": {}}, ChannelError, r"channels\.telex: unknown channel type 'telex' \(known: .*local.*webhook"),
    ({"x": {"type": "telex"}}, ChannelError, r"channels\.x\.type: unknown channel type 'telex'"),
    ({"x": {"type": 7}}, ConfigError, r"channels\.x\.type: "),
    ({"../x": {}}, ConfigError, r"channels\.\.\./x: "),
    ({"webhook": {"enabled": "perhaps"}}, ConfigError, r"channels\.webhook\.enabled: "),
    ({"local": {"enabled": False}}, ConfigError, r"channels\.local\.enabled: "),
    ({"local": {"size": 1}}, ConfigError, r"channels\.local\.size: unknown key"),
    ({"local": {"type": "webhook"}}, ConfigError, r"channels\.local\.type: "),
    ({"desk": {"type": "local"}}, ConfigError, r"channels\.desk\.type: "),
    (
        {"webhook": {"lisen": "127.0.0.1:1"}},
        ConfigError,
        r"channels\.webhook\.lisen: unknown key; did you mean 'listen'\?",
    ),
    ({"webhook": {"enable": True}}, ConfigError, r"channels\.webhook\.enable: unknown key; did you mean 'enabled'\?"),
    ({"webhook": {"listen": "0.0.0.0:1"}}, ConfigError, r"channels\.webhook\.listen: 0\.0\.0\.0 is neither"),
    ({"webhook": {"in_doubt": "guess"}}, ConfigError, r"channels\.webhook\.in_doubt: .*'resend' or 'hold'"),
    (
        {"webhook": {"hooks": {"h": {"agent": "a", "session": "s", "secrt": SECRET}}}},
        ConfigError,
        r"channels\.webhook\.hooks\.h\.secrt: unknown key; did you mean 'secret'\?",
    ),
    (
        {"webhook": {"hooks": {"h": {"agent": "a", "session": "s", "secret": [SECRET]}}}},
        ConfigError,
        r"channels\.webhook\.hooks\.h\.secret: ",
    ),
    (
        {"webhook": {"hooks": {"h": {"agent": "a/b", "secret": SECRET}}}},
        ConfigError,
        r"channels\.webhook\.hooks\.h\.agent: .*",
    ),
    (
        {"broken": {}},
        ChannelError,
        r"channels\.broken: channel type 'broken' of .* cannot be imported: ModuleNotFoundError",
    ),
    ({"lax": {}}, ChannelError, r"channels\.lax: .*mistyped key"),
    ({"mute": {}}, ChannelError, r"channels\.mute: 'mute' is not a channel"),
    ({"seven": {}}, ChannelError, r"channels\.seven: 'seven' is not a channel"),
]


@pytest.mark.parametrize(("tables", "kind", "text"), WRONG, ids=[text[:40] for _, _, text in WRONG])
def test_what_is_wrong_is_named(
    tmp_path: Path, types: dict[str, str], tables: dict[str, dict[str, Any]], kind: type[ClawbusError], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        build(tmp_path, tables, **types, broken="no.such.module:X", seven=here("NOT_A_CHANNEL"))
    assert caught.value.hint
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in f"{chain!s} {chain!r}"
        chain = None if chain.__suppress_context__ and chain.__cause__ is None else chain.__cause__ or chain.__context__


def test_a_config_shows_no_channel_secrets() -> None:
    config = Config(channels={"webhook": {"hooks": {"h": {"secret": SECRET}}}})
    assert SECRET not in repr(config)


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("local", value, registry.GROUP) for value in ("one:X", "two:X")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(ChannelError, match="two packages offer a channel type 'local': one:X and two:X"):
        find_types()


def test_a_channel_that_takes_longer_than_the_bus_waits_is_refused(tmp_path: Path) -> None:
    tables = {"webhook": {"total_timeout_s": 20.0}}
    for allowed in (20.0, 19.0):
        config = Config(data_dir=tmp_path, channels=tables, delivery={"send_timeout_s": allowed})  # pyright: ignore[reportArgumentType]
        if allowed < 20.0:
            with pytest.raises(ConfigError, match=r"channels\.webhook\.total_timeout_s: must be at most"):
                build_channels(config, SetClock())
        else:
            assert "webhook" in build_channels(config, SetClock())


@pytest.mark.parametrize(
    ("place", "fault"),
    [("gone", "no hook 'gone'"), ("gone:room", "no hook 'gone'"), ("mute", "no reply_url"), ("quiet:room", None)],
)
@pytest.mark.parametrize("table", ["agents.a.destinations.d", "schedules.s"])
def test_a_place_that_its_channel_cannot_have_is_found_at_start_up(
    tmp_path: Path, table: str, place: str, fault: str | None
) -> None:
    hooks = {
        "mute": {"agent": "a", "session": "s", "secret": "0123456789"},
        "quiet": {"agent": "a", "session": "s", "secret": "9876543210", "reply": "none"},
    }
    named = {"channel": "webhook", "place": place}
    agent = {"destinations": {"d": named}} if "destinations" in table else {}
    schedules = {"s": {"agent": "a", "text": "x", "every_s": 60, **named}} if "schedules" in table else {}
    config = Config.model_validate(
        {
            "data_dir": tmp_path,
            "agents": {"a": agent},
            "schedules": schedules,
            "channels": {"webhook": {"hooks": hooks}},
        }
    )
    if fault is None:
        build_channels(config, SetClock())
    else:
        with pytest.raises(ConfigError, match=f"{table}.place: .*{fault}"):
            build_channels(config, SetClock())
