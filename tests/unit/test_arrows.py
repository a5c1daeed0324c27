"""Holds the arrows of the architecture: who may import what, and where state and files are opened.

    daemon -> schema <- container_runner

Each rule is a function from one parsed module to its violations. The same function runs over the tree and over
snippets that offend on purpose, so that a rule which has gone blind fails here.
"""

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from tests.support.source_trees import nodes_of, tree_of

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("schema", "daemon", "container_runner")
TOOLS: Final = frozenset({"demo", "bench", "tests"})

# Not decisions, but what every part is given: the clock, the time zones of this machine, the tree of errors.
NOT_DECISIONS: Final = frozenset({f"daemon/core/{name}.py" for name in ("clock", "zones", "errors")})
PURE_FILES: Final = frozenset(
    {
        *(str(path.relative_to(ROOT)) for path in (ROOT / "daemon" / "core").glob("*.py")),
        "daemon/runtimes/spec.py",
        *(f"daemon/inngest/{name}.py" for name in ("plan", "rows", "truth", "values")),
        "schema/states.py",
    }
    - NOT_DECISIONS
)
PURE_STDLIB: Final = frozenset(
    {
        "__future__",
        "collections",
        "dataclasses",
        "datetime",
        "enum",
        "fnmatch",
        "hashlib",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "re",
        "shlex",
        "types",
        "typing",
        "unicodedata",
    }
)
PURE_LIBRARIES: Final = ("cronsim",)  # computes dates from dates
PURE_PATHS: Final = frozenset({"pathlib.PurePath", "pathlib.PurePosixPath"})  # names of paths; they touch no disk
# The dataclasses that a spec is made of, and the pure files of a package that has others.
PURE_OURS: Final = (
    "daemon.core",
    "daemon.runtimes.protocol",
    *(f"daemon.inngest.{name}" for name in ("errors", "rows", "truth", "values")),
)
INSPECT_NEVER: Final = ("daemon.maintenance", "daemon.engine", "daemon.store.transitions")
PURE_NEVER_CALLS: Final = frozenset({"now", "utcnow", "today", "fromtimestamp", "utcfromtimestamp"})
IMPURE_BUILTINS: Final = frozenset({"open", "print", "input", "exec", "eval", "__import__"})

RUNNER_THIRD_PARTY: Final = frozenset({"anyio", "watchfiles", "structlog"})

MUTABLE_CALLS: Final = frozenset(
    {
        *("list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "ChainMap", "deque"),
        *("Queue", "SimpleQueue", "LifoQueue", "PriorityQueue", "WeakKeyDictionary", "WeakValueDictionary", "WeakSet"),
        *("Event", "Lock", "RLock", "Semaphore", "Condition", "CapacityLimiter", "TaskGroup", "local"),
    }
)
IMMUTABLE_TYPES: Final = frozenset(
    {
        "Mapping",
        "MappingProxyType",
        "Sequence",
        "Collection",
        "Container",
        "Iterable",
        "AbstractSet",
        "tuple",
        "frozenset",
    }
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, dotted in full: `from a.b import c` is `a.b.c` (which may be a module or a thing in it)."""

    name: str
    line: int
    for_types_only: bool = False  # directly under `if TYPE_CHECKING`: it never runs

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]

    def within(self, dotted: str) -> bool:
        return self.name == dotted or self.name.startswith(f"{dotted}.")


@dataclass(frozen=True, slots=True)
class Module:
    """One source file of ours, by its path from the root."""

    path: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def package(self) -> str:
        """The top package: schema, daemon or container_runner."""
        return PurePosixPath(self.path).parts[0]


def parse(path: str, source: str | ast.Module) -> Module:
    tree = ast.parse(source, filename=path) if isinstance(source, str) else source
    return Module(path=path, tree=tree, imports=tuple(_imports(PurePosixPath(path).parent.parts, tree)))


def imports_of(module: Module) -> tuple[Import, ...]:
    """Every import, wherever it stands: inside functions and under TYPE_CHECKING too, and import_module("...")."""
    return module.imports


def _imports(folder: Sequence[str], tree: ast.Module) -> Iterator[Import]:
    nodes = nodes_of(tree)
    unrun = {
        statement
        for node in nodes
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
        for statement in node.body
    }
    for node in nodes:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, node in unrun)
            case ast.ImportFrom():
                base = [*_anchor(folder, node.level), *(node.module.split(".") if node.module else [])]
                for alias in node.names:
                    name = ".".join(base if alias.name == "*" else [*base, alias.name])
                    yield Import(name, node.lineno, node in unrun)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if _last_name(func) in {
                "import_module",
                "__import__",
            }:
                yield Import(name, node.lineno)
            case _:
                pass


def _anchor(folder: Sequence[str], level: int) -> Sequence[str]:
    """The package that a relative import starts from; nothing for an absolute one."""
    if level == 0:
        return ()
    return folder[: len(folder) - level + 1]


def _last_name(node: ast.expr | None) -> str | None:
    """`x` of `x` and of `a.b.x`; the generic's own name of `x[int]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _last_name(value)
        case _:
            return None


def _third_party(imported: Import) -> bool:
    return imported.root not in sys.stdlib_module_names and imported.root not in OURS


# --- the rules -------------------------------------------------------------------------------------------------------

Rule = Callable[[Module], Iterator[str]]


def schema_stands_alone(module: Module) -> Iterator[str]:
    """schema imports nothing of ours but itself, and nothing of third parties."""
    if module.package != "schema":
        return
    for imported in imports_of(module):
        if imported.root in OURS and imported.root != "schema":
            yield f"{module.path}:{imported.line} schema imports {imported.name}"
        elif _third_party(imported):
            yield f"{module.path}:{imported.line} schema imports the third party {imported.name}"


def sides_do_not_meet(module: Module) -> Iterator[str]:
    """container_runner never imports daemon, nor daemon container_runner (its files may be read as resources)."""
    forbidden = {"daemon": "container_runner", "container_runner": "daemon"}.get(module.package)
    for imported in imports_of(module):
        if imported.root == forbidden:
            yield f"{module.path}:{imported.line} {module.package} imports {imported.name}"


def product_does_not_import_its_tools(module: Module) -> Iterator[str]:
    """What ships imports neither the demo nor the bench nor the tests."""
    for imported in imports_of(module):
        if imported.root in TOOLS:
            yield f"{module.path}:{imported.line} imports {imported.name}, which is not shipped"


def runner_stays_small(module: Module) -> Iterator[str]:
    """container_runner needs anyio, watchfiles and structlog, and no other third party."""
    if module.package != "container_runner":
        return
    for imported in imports_of(module):
        if _third_party(imported) and imported.root not in RUNNER_THIRD_PARTY:
            yield f"{module.path}:{imported.line} container_runner imports {imported.name}"


def daemon_declares_its_dependencies(module: Module) -> Iterator[str]:
    """daemon imports only what pyproject.toml names, not what happens to come along with it."""
    if module.package != "daemon":
        return
    declared = declared_imports() | {"opentelemetry"}  # an extra; the next rule says where
    for imported in imports_of(module):
        if _third_party(imported) and imported.root not in declared | TOOLS:
            yield f"{module.path}:{imported.line} daemon imports {imported.name}, which pyproject.toml does not declare"


def declared_imports() -> frozenset[str]:
    """The dependencies' import names: every one of ours is its distribution's name with underscores."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return frozenset(text.partition(">")[0].strip().replace("-", "_") for text in project["dependencies"])


def docker_has_one_caller(module: Module) -> Iterator[str]:
    """Only daemon/runtimes/docker.py (and docker_*.py beside it) imports the Docker client."""
    path = PurePosixPath(module.path)
    if path.parent == PurePosixPath("daemon/runtimes") and (path.stem == "docker" or path.stem.startswith("docker_")):
        return
    for imported in imports_of(module):
        if imported.root == "docker":
            yield f"{module.path}:{imported.line} imports {imported.name}; only daemon/runtimes/docker.py may"


def opentelemetry_has_one_caller(module: Module) -> Iterator[str]:
    """Only daemon/telemetry/tracing_otel.py imports OpenTelemetry, and nothing imports that but on demand: it is an extra."""
    if module.path == "daemon/telemetry/tracing_otel.py":
        return
    on_import = {id(node) for node in _module_level(module.tree.body)}
    for imported in imports_of(module):
        if imported.root == "opentelemetry":
            yield f"{module.path}:{imported.line} imports {imported.name}; only daemon/telemetry/tracing_otel.py may"
    for node in nodes_of(module.tree):
        match node:
            case ast.ImportFrom(module="daemon.telemetry.tracing_otel") if id(node) in on_import:
                yield f"{module.path}:{node.lineno} imports tracing_otel when it is imported itself"
            case _:
                pass


def sqlite_has_one_door(module: Module) -> Iterator[str]:
    """Only schema/connect.py opens a database: sqlite3.connect, sqlite3.Connection(...) and their aliases."""
    if module.path == "schema/connect.py":
        return
    aliases = {"sqlite3"}
    for node in nodes_of(module.tree):
        match node:
            case ast.Import(names=names):
                aliases |= {alias.asname for alias in names if alias.name.startswith("sqlite3") and alias.asname}
            case ast.ImportFrom(module=str(source), names=names) if source.partition(".")[0] == "sqlite3":
                aliases |= {alias.asname or alias.name for alias in names if alias.name == "dbapi2"}
                if any(alias.name in {"connect", "*"} for alias in names):
                    yield f"{module.path}:{node.lineno} imports sqlite3's connect"
            case _:
                pass
    for node in nodes_of(module.tree):
        match node:
            case ast.Attribute(value=value, attr="connect") if _last_name(value) in aliases | {"dbapi2"}:
                yield f"{module.path}:{node.lineno} uses sqlite3.connect"
            case ast.Call(func=ast.Attribute(value=value, attr="Connection")) if _last_name(value) in aliases:
                yield f"{module.path}:{node.lineno} makes a sqlite3.Connection"
            case _:
                pass


def pure_files_are_pure(module: Module) -> Iterator[str]:
    """Decisions import rows, errors and pure parts of the standard library: no clock, disk, chance or logging."""
    if module.path not in PURE_FILES:
        return
    for imported in imports_of(module):
        if imported.within("schema") and not imported.within("schema.connect"):
            continue
        if any(imported.within(ours) for ours in PURE_OURS) or imported.root in (*PURE_STDLIB, *PURE_LIBRARIES):
            continue
        if imported.name in PURE_PATHS or imported.for_types_only:
            continue
        yield f"{module.path}:{imported.line} is pure, and imports {imported.name}"
    for node in nodes_of(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in PURE_NEVER_CALLS:
                yield f"{module.path}:{node.lineno} is pure, and asks the clock or the zone: .{name}()"
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_BUILTINS:
                yield f"{module.path}:{node.lineno} is pure, and calls {name}()"
            case _:
                pass


def inngest_travels_light(module: Module) -> Iterator[str]:
    """daemon/inngest runs beside a database in a pod: the standard library, schema and the backup are all it has."""
    if not module.path.startswith("daemon/inngest/"):
        return
    ours = ("daemon.inngest", "daemon.maintenance.backup", "daemon.core.repair_errors", "schema")
    for imported in imports_of(module):
        if imported.root not in sys.stdlib_module_names and not any(imported.within(one) for one in ours):
            yield f"{module.path}:{imported.line} imports {imported.name}"


def inspect_only_reads(module: Module) -> Iterator[str]:
    """daemon/inspect imports nothing that changes what it looks at."""
    if not module.path.startswith("daemon/inspect/"):
        return
    for imported in imports_of(module):
        if any(imported.within(room) for room in INSPECT_NEVER) or imported.name.endswith((".open_owner", ".Writer")):
            yield f"{module.path}:{imported.line} inspect imports {imported.name}"


def nothing_mutable_at_module_level(module: Module) -> Iterator[str]:
    """State lives in objects that bus.py builds; a module holds constants.

    A display or a container made at module level is one only when it is annotated as something immutable
    (`LIMITS: Final[Mapping[str, int]] = {...}`), and no function rebinds a module's name.
    """
    for node in _module_level(module.tree.body):
        match node:
            case ast.Assign(targets=targets, value=value):
                exported = [_last_name(target) for target in targets] == ["__all__"]
                if not exported and _mutable(value):
                    yield f"{module.path}:{node.lineno} mutable at module level: {ast.unparse(node)[:80]}"
            case ast.AnnAssign(annotation=annotation, value=ast.expr() as value):
                if _mutable(value) and not _final_and_immutable(annotation):
                    yield f"{module.path}:{node.lineno} mutable at module level: {ast.unparse(node)[:80]}"
            case _:
                pass
    for node in nodes_of(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.path}:{node.lineno} rebinds the module's {', '.join(node.names)}"


def _module_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run on import, into `if`, `try`, `with` and loops, but not into functions and classes."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _module_level(getattr(node, field, ()))
        for handler in getattr(node, "handlers", ()):
            yield from _module_level(handler.body)


def _mutable(value: ast.expr) -> bool:
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Tuple(elts=elements):
            return any(_mutable(element) for element in elements)
        case ast.Call(func=func):
            return _last_name(func) in MUTABLE_CALLS
        case ast.NamedExpr(value=inner):
            return _mutable(inner)
        case ast.BinOp(left=left, right=right):
            return _mutable(left) or _mutable(right)
        case ast.IfExp(body=left, orelse=right):
            return _mutable(left) or _mutable(right)
        case _:
            return False


def _final_and_immutable(annotation: ast.expr) -> bool:
    match annotation:
        case ast.Subscript(value=outer, slice=inner) if _last_name(outer) == "Final":
            return _last_name(inner) in IMMUTABLE_TYPES
        case _:
            return False


RULES: Final[tuple[Rule, ...]] = (
    schema_stands_alone,
    sides_do_not_meet,
    product_does_not_import_its_tools,
    runner_stays_small,
    daemon_declares_its_dependencies,
    docker_has_one_caller,
    opentelemetry_has_one_caller,
    sqlite_has_one_door,
    pure_files_are_pure,
    inngest_travels_light,
    inspect_only_reads,
    nothing_mutable_at_module_level,
)


def _rule_name(rule: Rule) -> str:
    return rule.__name__


# --- the tree --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> tuple[Module, ...]:
    """Every source file of ours, parsed once for all the rules."""
    return tuple(
        parse(file.relative_to(ROOT).as_posix(), tree_of(file))
        for package in OURS
        for file in sorted((ROOT / package).rglob("*.py"))
    )


@pytest.mark.parametrize("rule", RULES, ids=_rule_name)
def test_the_tree_keeps(rule: Rule, tree: tuple[Module, ...]) -> None:
    violations = [violation for module in tree for violation in rule(module)]
    assert not violations, "\n".join([rule.__doc__ or "", *violations])


# --- the rules themselves --------------------------------------------------------------------------------------------

OFFENDERS: Final[tuple[tuple[Rule, str, str], ...]] = (
    (schema_stands_alone, "schema/rows.py", "import daemon.core.errors"),
    (schema_stands_alone, "schema/rows.py", "from container_runner import loop"),
    (schema_stands_alone, "schema/deep/rows.py", "def f():\n    import structlog"),
    (schema_stands_alone, "schema/rows.py", "from pydantic import BaseModel"),
    (sides_do_not_meet, "container_runner/loop.py", "import daemon"),
    (sides_do_not_meet, "container_runner/loop.py", "from daemon.core.clock import Clock"),
    (sides_do_not_meet, "container_runner/loop.py", "if TYPE_CHECKING:\n    from daemon.core.clock import Clock"),
    (sides_do_not_meet, "daemon/runtimes/process.py", "from container_runner.loop import run"),
    (sides_do_not_meet, "daemon/app/main.py", "import importlib\nimportlib.import_module('container_runner.loop')"),
    (sides_do_not_meet, "daemon/app/main.py", "__import__('container_runner')"),
    (product_does_not_import_its_tools, "daemon/app/main.py", "from tests.fakes import FakeRuntime"),
    (product_does_not_import_its_tools, "schema/rows.py", "import bench.floor"),
    (runner_stays_small, "container_runner/providers/sdk.py", "import httpx"),
    (runner_stays_small, "container_runner/__main__.py", "try:\n    import uvloop\nexcept ImportError:\n    pass"),
    (daemon_declares_its_dependencies, "daemon/cli/main.py", "import click"),
    (daemon_declares_its_dependencies, "daemon/store/inbound.py", "from requests.exceptions import Timeout"),
    (docker_has_one_caller, "daemon/engine/supervisor/supervisor.py", "import docker"),
    (docker_has_one_caller, "daemon/docker.py", "from docker.errors import NotFound"),
    (docker_has_one_caller, "daemon/runtimes/dockerish.py", "import docker.types"),
    (docker_has_one_caller, "container_runner/docker.py", "import docker"),
    (opentelemetry_has_one_caller, "daemon/app/main.py", "from opentelemetry.sdk.trace import TracerProvider"),
    (opentelemetry_has_one_caller, "daemon/telemetry/tracing.py", "def f():\n    import opentelemetry.sdk"),
    (opentelemetry_has_one_caller, "daemon/app/main.py", "from daemon.telemetry.tracing_otel import OtelTracer"),
    (sqlite_has_one_door, "daemon/store/inbound.py", "import sqlite3\nsqlite3.connect('x')"),
    (sqlite_has_one_door, "daemon/store/inbound.py", "import sqlite3 as s\ndb = s.connect('x')"),
    (sqlite_has_one_door, "daemon/store/inbound.py", "from sqlite3 import connect"),
    (sqlite_has_one_door, "daemon/store/inbound.py", "from sqlite3 import dbapi2 as d\nd.connect('x')"),
    (sqlite_has_one_door, "daemon/store/inbound.py", "import sqlite3\nopener = sqlite3.connect"),
    (sqlite_has_one_door, "container_runner/store.py", "import sqlite3\nsqlite3.Connection('x')"),
    (pure_files_are_pure, "daemon/core/lifecycle.py", "import time"),
    (pure_files_are_pure, "daemon/core/lifecycle.py", "from daemon.store import inbound"),
    (pure_files_are_pure, "daemon/core/lifecycle.py", "from daemon.engine import sweeper"),
    (pure_files_are_pure, "daemon/runtimes/spec.py", "from . import docker"),
    (pure_files_are_pure, "daemon/core/delivery_plan.py", "import random"),
    (pure_files_are_pure, "daemon/core/delivery_plan.py", "import structlog"),
    (pure_files_are_pure, "daemon/core/delivery_plan.py", "from datetime import UTC, datetime\ndatetime.now(UTC)"),
    (pure_files_are_pure, "daemon/runtimes/spec.py", "import os"),
    (pure_files_are_pure, "daemon/runtimes/spec.py", "from pathlib import Path"),
    (pure_files_are_pure, "daemon/runtimes/spec.py", "open('x')"),
    (pure_files_are_pure, "daemon/runtimes/spec.py", "if not TYPE_CHECKING:\n    from pathlib import Path"),
    (pure_files_are_pure, "schema/states.py", "from schema import connect"),
    (pure_files_are_pure, "schema/states.py", "from schema.connect import open_inbound"),
    (pure_files_are_pure, "schema/states.py", "import logging"),
    (inngest_travels_light, "daemon/inngest/sweep.py", "from daemon.core.clock import SystemClock"),
    (inngest_travels_light, "daemon/inngest/canary.py", "import httpx"),
    (pure_files_are_pure, "daemon/core/run_state.py", "from daemon.inspect import reading"),
    (inspect_only_reads, "daemon/inspect/doctor.py", "from daemon.engine.sweeper import Sweeper"),
    (inspect_only_reads, "daemon/inspect/reading.py", "from schema.connect import open_owner"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "cache = {}"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "SEEN: set[str] = set()"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "LIMITS: Final = {'a': 1}"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "LIMITS: Final[dict[str, int]] = {'a': 1}"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "LIMITS: Mapping[str, int] = {'a': 1}"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "NAMES = [n for n in 'ab']"),
    (nothing_mutable_at_module_level, "daemon/app/main.py", "PAIR = (1, [])"),
    (nothing_mutable_at_module_level, "schema/rows.py", "by_id = collections.defaultdict(list)"),
    (nothing_mutable_at_module_level, "schema/rows.py", "queue = asyncio.Queue[int]()"),
    (nothing_mutable_at_module_level, "container_runner/loop.py", "try:\n    pass\nexcept OSError:\n    x = []"),
    (nothing_mutable_at_module_level, "container_runner/loop.py", "if True:\n    lock = threading.Lock()"),
    (nothing_mutable_at_module_level, "container_runner/loop.py", "n = 0\ndef f():\n    global n\n    n = 1"),
)

INNOCENTS: Final[tuple[tuple[str, str], ...]] = (
    ("schema/rows.py", "from schema.states import Status\nfrom . import states\nimport sqlite3\nx: sqlite3.Connection"),
    ("schema/connect.py", "import sqlite3\nsqlite3.connect('x')"),
    ("container_runner/loop.py", "import anyio, structlog, watchfiles\nfrom schema import rows"),
    ("container_runner/loop.py", "from container_runner.providers import echo\nfrom . import store"),
    ("daemon/runtimes/docker.py", "import docker\nfrom docker.errors import NotFound"),
    ("daemon/runtimes/docker_events.py", "import docker"),
    ("daemon/telemetry/tracing_otel.py", "from opentelemetry.sdk.trace import TracerProvider"),
    ("daemon/telemetry/tracing.py", "def f():\n    from daemon.telemetry.tracing_otel import OtelTracer"),
    ("daemon/engine/supervisor/supervisor.py", "from daemon.runtimes import docker\nfrom . import docker_events"),
    ("daemon/runtimes/image_build.py", "import importlib.resources as r\nr.files('container_runner')"),
    (
        "daemon/inngest/sweep.py",
        "from daemon.maintenance.backup import back_up\nfrom schema.ids import new_id\nimport json",
    ),
    ("daemon/config/models.py", "import pydantic_settings, tomllib\nfrom pydantic import BaseModel"),
    ("daemon/api/client.py", "await socket.connect('x')"),
    (
        "daemon/core/lifecycle.py",
        "from schema.rows import Message\nfrom daemon.core.errors import ClawbusError\nimport enum",
    ),
    ("daemon/runtimes/spec.py", "from pathlib import PurePosixPath\nimport hashlib, json"),
    ("daemon/runtimes/spec.py", "from daemon.runtimes.protocol import Mount"),
    ("daemon/runtimes/spec.py", "if TYPE_CHECKING:\n    from pathlib import Path"),
    ("daemon/core/delivery_plan.py", "from collections.abc import Mapping\nfrom datetime import timedelta"),
    ("daemon/app/main.py", "__all__ = ['main']\nLIMITS: Final[Mapping[str, int]] = {'a': 1}"),
    ("daemon/app/main.py", "KINDS: Final = frozenset({'a'})\nPAIR = (1, 2)\ndef f():\n    x = []\n    return x"),
    ("daemon/app/main.py", "class A:\n    names: list[str] = []"),
)


@pytest.mark.parametrize(("rule", "path", "source"), OFFENDERS)
def test_a_rule_sees_its_offender(rule: Rule, path: str, source: str) -> None:
    assert list(rule(parse(path, source)))


@pytest.mark.parametrize(("path", "source"), INNOCENTS)
def test_no_rule_blames_the_innocent(path: str, source: str) -> None:
    assert [violation for rule in RULES for violation in rule(parse(path, source))] == []


def test_every_rule_has_an_offender() -> None:
    assert {rule for rule, _, _ in OFFENDERS} == set(RULES)


def test_a_violation_names_file_and_line() -> None:
    (violation,) = sides_do_not_meet(parse("daemon/app/main.py", "\n\nimport container_runner\n"))
    assert violation.startswith("daemon/app/main.py:3 ")
