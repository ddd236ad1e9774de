"""The house stands as docs/architecture.md says: every import goes down, none in a circle, and nothing is too long."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import blackbox_proxy

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "blackbox_proxy"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOORS, KNOWN = PAGE.partition("## Floors and rooms")[2].split("## What each may know")
TABLE = re.findall(r"^\| (\d+) \| (.*) \|$", FLOORS, re.M)
MOST_OF_A_MODULE, MOST_OF_A_ROOM, MOST_OF_A_TEST = 450, 3_000, 600  # lines

# What is being mended: empty when the house is done.
CIRCLES: set[str] = set()
LONG: set[str] = set()
LONG_TESTS: set[str] = set()


@cache
def modules() -> Mapping[str, Path]:
    """The modules by their names below the package ("" is the package itself)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Imports(ast.NodeVisitor):
    """What a module imports of this package, inside functions too; not what only type checkers see."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            self._add(f"{node.module}.{alias.name}")

    def _add(self, name: str) -> None:
        package, _, inner = name.partition(".")
        if package != "blackbox_proxy":
            return
        if "." not in inner:  # a public name stands for the module that it comes from
            inner = blackbox_proxy._HOMES.get(inner, "version" if inner == "__version__" else inner)
        while inner not in modules():
            inner = inner.rpartition(".")[0]
        self.found.add(inner)


@cache
def imports() -> Mapping[str, frozenset[str]]:
    found = {}
    for name, path in modules().items():
        visitor = Imports()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        found[name] = frozenset(visitor.found - {name})
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


@cache
def floors() -> Mapping[str, int]:
    return {name: int(floor) for floor, names in TABLE for name in re.findall(r"`(\w+)`", names)}


def test_the_page_names_every_room_once() -> None:
    named = Counter(name for _, names in TABLE for name in re.findall(r"`(\w+)`", names))
    assert named == Counter({room(name) for name in modules()} - {""})
    for name in floors():
        assert re.search(rf"^\|[^|]*`{name}`", KNOWN, re.M) or name in (
            "version",
            "background",
            "prices",
            "__main__",
        ), f"{name}: what it may know is not said"


def test_imports_of_other_rooms_go_down() -> None:
    up = [
        f"{name} -> {other}"
        for name, others in imports().items()
        for other in others
        if name and room(name) != room(other) and not (other and floors()[room(other)] < floors()[room(name)])
    ]
    assert up == []


def test_no_module_imports_itself_on_a_way_round() -> None:
    graph = {name: others - CIRCLES if name not in CIRCLES else set() for name, others in imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def too_long(folder: Path, most: int) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if lines(path) > most:
            yield str(path.relative_to(folder))


def test_modules_rooms_and_tests_are_no_longer_than_they_may_be() -> None:
    assert set(too_long(PACKAGE, MOST_OF_A_MODULE)) <= LONG
    assert set(too_long(ROOT / "tests", MOST_OF_A_TEST)) <= LONG_TESTS
    rooms: Counter[str] = Counter()
    for name, path in modules().items():
        rooms[room(name)] += lines(path)
    assert {name: count for name, count in rooms.items() if count > MOST_OF_A_ROOM} == {}


def test_the_imports_are_seen_where_they_are() -> None:
    """The rules are alive: lazy imports count, those for type checkers do not."""
    visitor = Imports()
    visitor.visit(
        ast.parse(
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from blackbox_proxy.cli import app\n"
            "def f():\n    from blackbox_proxy.api import naming\n    from blackbox_proxy import ProxyTuner\n"
        )
    )
    assert visitor.found == {"api.naming", "tuner"}
