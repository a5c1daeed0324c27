"""Holds the shape of the tree: who may import whom, no circles, and the tree that ARCHITECTURE.md shows.

Every import counts: at module level, inside a function, and under TYPE_CHECKING.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.source_trees import nodes_of, tree_of

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("schema", "daemon", "container_runner")

# Package -> the packages that it imports. Names without a prefix are the daemon's. Exact: an arrow that is gone leaves here.
ARROWS: Final[Mapping[str, str]] = {
    "schema": "",
    "container_runner": "container_runner.providers container_runner.shared schema",
    "container_runner.providers": "container_runner.shared schema",
    "container_runner.shared": "schema",
    "container_runner.tools": "container_runner.shared schema",
    "core": "schema",
    "http": "core schema",
    "systemd": "core schema",
    "config": "core schema",
    "logs": "config core schema",
    "store": "core schema",
    "telemetry": "core schema",
    "runtimes": "config core schema store",
    "channels": "config core http schema store",
    "egress": "config core http schema",
    "engine": "channels config core runtimes schema store systemd",
    "inspect": "config core deploy logs runtimes schema store systemd",
    "maintenance": "channels config core engine inspect runtimes schema store",
    "monitoring": "config core engine http schema store systemd telemetry",
    "api": "channels config core engine http inspect logs maintenance schema store",
    "workers": "core runtimes schema",
    "deploy": "config core runtimes schema workers",
    "app": "api channels config core deploy egress engine logs maintenance monitoring runtimes schema store systemd telemetry workers",
    "cli": "api app channels config core deploy engine inngest inspect logs maintenance runtimes schema store systemd telemetry workers",
    "inngest": "core maintenance schema",
}
# The engine knows protocols and what a container leaves behind, never a runtime or a channel.
ENGINE_MAY_KNOW: Final = frozenset(
    {
        "daemon.channels.protocol",
        *(f"daemon.runtimes.{name}" for name in ("protocol", "engine_identity", "members", "output_log", "spec")),
    }
)

Graph = Mapping[str, frozenset[str]]


def modules() -> dict[str, Path]:
    """Every module of the product, dotted, with its file."""
    found: dict[str, Path] = {}
    for top in OURS:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the product that a file imports, wherever in it."""
    for node in nodes_of(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name in known)
            case ast.ImportFrom(module=str(source), names=names, level=0):
                for alias in names:
                    inner = f"{source}.{alias.name}"
                    if inner in known:
                        yield inner
                    elif source in known:
                        yield source
            case ast.ImportFrom(level=level) if level > 0:
                pytest.fail("relative imports hide what is imported: write the module's whole name")
            case _:
                pass


@pytest.fixture(scope="module", name="files")
def file_graph() -> Graph:
    known = modules()
    return {name: frozenset(imported(tree_of(path), known)) - {name} for name, path in known.items()}


def package_of(module: str, known: Mapping[str, Path]) -> str:
    """The package that a module belongs to: the folder below `daemon`, or below `container_runner`."""
    parts = module.split(".")
    folder = parts if known[module].name == "__init__.py" else parts[:-1]
    return ".".join(folder[:2])


def package_graph(files: Graph) -> Graph:
    known = modules()
    found: dict[str, set[str]] = {}
    for name, targets in files.items():
        package = package_of(name, known)
        found.setdefault(package, set()).update(package_of(target, known) for target in targets)
    return {package: frozenset(targets - {package}) for package, targets in found.items()}


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components with more than one member, each sorted (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in graph.get(node, frozenset()):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_no_file_imports_in_a_circle(files: Graph) -> None:
    assert circles(files) == []


def test_no_package_imports_in_a_circle(files: Graph) -> None:
    assert circles(package_graph(files)) == []


def test_a_circle_is_seen() -> None:
    graph = {
        "a": frozenset({"b"}),
        "b": frozenset({"c"}),
        "c": frozenset({"b"}),
        "d": frozenset({"a", "e"}),
        "e": frozenset({"d"}),
    }
    assert sorted(circles(graph)) == [["b", "c"], ["d", "e"]]


def test_an_import_counts_wherever_it_stands() -> None:
    known = {"daemon.core.errors": ROOT, "daemon.core.clock": ROOT}
    source = (
        "def f():\n    from daemon.core import errors\nif TYPE_CHECKING:\n    from daemon.core.clock import Clock\n"
    )
    assert set(imported(ast.parse(source), known)) == set(known)


def test_the_arrows_are_the_ones_that_are_written_down(files: Graph) -> None:
    named = {
        name if name.startswith(OURS) else f"daemon.{name}": {
            target if target.startswith(OURS) else f"daemon.{target}" for target in targets.split()
        }
        for name, targets in ARROWS.items()
    }
    actual = {package: set(targets) for package, targets in package_graph(files).items() if package != "daemon"}
    assert {name: sorted(targets) for name, targets in actual.items()} == {
        name: sorted(targets) for name, targets in named.items()
    }


def test_the_engine_knows_protocols_and_no_implementation(files: Graph) -> None:
    wrong = [
        (name, target)
        for name, targets in files.items()
        if name.startswith("daemon.engine")
        for target in sorted(targets)
        if target.startswith(("daemon.channels", "daemon.runtimes")) and target not in ENGINE_MAY_KNOW
    ]
    assert wrong == []


def packages_on_disk() -> set[str]:
    """Every folder with code in it, from the root: `daemon/engine/supervisor/`."""
    return {f"{path.parent.relative_to(ROOT)}/" for top in OURS for path in (ROOT / top).rglob("*.py")}


def test_the_tree_in_the_architecture_is_the_tree_on_disk() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[: text.index("## Two files, two writers")]
    shown = set(re.findall(r"^\| `((?:schema|daemon|container_runner)/[a-z_/]*)`", table, re.MULTILINE))
    assert shown == packages_on_disk()


def test_a_file_that_a_page_or_a_comment_names_is_there() -> None:
    """`decide.py` in a header outlives the file's move, and sends a reader nowhere."""
    there = {path.name for path in ROOT.glob("*.py")} | {
        path.name
        for folder in (*OURS, "bench", "demo", "examples", "tests", "systemd")
        for path in (ROOT / folder).rglob("*.py")
    }
    examples = {"helper.py", "shout.py"}  # an operator's own
    pages = [ROOT / "ARCHITECTURE.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *modules().values()]
    lost = {
        (str(page.relative_to(ROOT)), name)
        for page in pages
        for name in re.findall(r"\b[a-z_]+\.py\b", page.read_text(encoding="utf-8"))
        if name not in there | examples
    }
    assert lost == set()


def test_every_package_says_what_it_is_for() -> None:
    silent = [
        folder for folder in sorted(packages_on_disk()) if not ast.get_docstring(tree_of(ROOT / folder / "__init__.py"))
    ]
    assert silent == []


MOST_ARGUMENTS: Final = 8


def too_many_arguments(name: str, tree: ast.Module) -> Iterator[str]:
    """Constructors with more than eight arguments. Records are exempt: `frozen` classes, and dataclasses without methods."""
    for node in nodes_of(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        functions = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        made = next((one.args for one in functions if one.name == "__init__"), None)
        if made is not None:
            count = len([*made.posonlyargs, *made.args, *made.kwonlyargs]) - 1
        else:
            mutable = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
            methods = [one for one in functions if not any("property" in ast.unparse(d) for d in one.decorator_list)]
            if not mutable or not methods:
                continue
            count = sum(isinstance(one, ast.AnnAssign) and one.value is None for one in node.body)
        if count > MOST_ARGUMENTS:
            yield f"{name}.{node.name} takes {count}"


def test_no_part_takes_more_than_eight_arguments() -> None:
    trees = {name: tree_of(path) for name, path in modules().items()}
    assert [found for name, tree in trees.items() for found in too_many_arguments(name, tree)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class A:\n def __init__(self, a, b, c, d, *, e, f, g, h): ...", []),
        ("class A:\n def __init__(self, a, b, c, d, *, e, f, g, h, i): ...", ["x.A takes 9"]),
        ("@dataclass(slots=True)\nclass A:\n" + "".join(f" f{n}: int\n" for n in range(9)) + " def run(self): ...", ["x.A takes 9"]),
        ("@dataclass(slots=True)\nclass A:\n" + "".join(f" f{n}: int\n" for n in range(9)), []),
        ("@frozen\nclass A:\n" + "".join(f" f{n}: int\n" for n in range(9)) + " def run(self): ...", []),
    ],
)  # fmt: skip
def test_a_constructor_with_too_many_arguments_is_found(source: str, expected: list[str]) -> None:
    assert list(too_many_arguments("x", ast.parse(source))) == expected


def test_values_are_made_frozen_in_one_way() -> None:
    """`schema.frozen`, which costs the start less than `dataclass(frozen=True)`."""
    classes = {
        name: [one for one in nodes_of(tree_of(path)) if isinstance(one, ast.ClassDef)]
        for name, path in modules().items()
    }
    made = {
        f"{name}.{one.name}": [ast.unparse(d) for d in one.decorator_list] for name, of in classes.items() for one in of
    }
    assert [name for name, decorators in made.items() if any("frozen=True" in one for one in decorators)] == []
    assert sum("frozen" in decorators for decorators in made.values()) > 100


def test_no_part_starts_work_in_another_part_s_task_group() -> None:
    """A task group is a part's own attribute, or a function's own variable; only the daemon's start passes its own on."""
    found: list[str] = []
    for name, path in modules().items():
        for node in nodes_of(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                types = [one.annotation for one in node.args.args if one.annotation is not None]
                found += [f"{name}.{node.name}" for one in types if "TaskGroup" in ast.unparse(one)]
    starts = ("daemon.app.main.", "daemon.app.startup.")
    assert [one for one in found if not one.startswith(starts)] == []
