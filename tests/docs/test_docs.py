"""What README and docs promise exists: links, paths, commands and options, names, and the numbers of their examples."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from blackbox_proxy.cli import app
from blackbox_proxy.dialects import support

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPECTED = {
    "architecture",
    "bulk",
    "clients",
    "concepts",
    "config",
    "contributing",
    "cost",
    "evaluate",
    "evidence",
    "exactness",
    "scale",
    "servers",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_pages_are_there_and_the_readme_links_to_each() -> None:
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} == EXPECTED
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(EXPECTED) if f"(docs/{name}.md)" not in readme] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


@pages
def test_paths_and_modules_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in set(re.findall(r"(?<![\w/.-])(?:tests|blackbox_proxy|docs|examples)/[\w./-]*\w/?", text)):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    for name in set(re.findall(r"(?<![\w./-])blackbox_proxy(?:\.\w+)+", text)):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"


# -- commands ---------------------------------------------------------------------------------------------------------


@cache
def command(*names: str) -> Any:
    """The command of that name, whose help can be shown. Typer's own kind of click command."""
    found: Any = typer.main.get_command(app)
    for name in names:
        assert name in getattr(found, "commands", ()), f"there is no blackbox-proxy {' '.join(names)}"
        found = found.commands[name]
    assert CliRunner().invoke(app, [*names, "--help"]).exit_code == 0
    return found


def options(found: Any) -> set[str]:
    return {"--help", *(name for each in found.params for name in (*each.opts, *each.secondary_opts))}


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    shown = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", prose(page))
    for line in [*shown, *(text for text in inline if text.startswith("blackbox-proxy "))]:
        for part in re.split(r"&&|\|(?!\w)", line):
            words = shlex.split(part, comments=True)
            names = [Path(word).name for word in words[:1]]
            if names != ["blackbox-proxy"] or len(words) < 2 or words[1].startswith("-"):
                continue
            found, rest = command(words[1]), words[2:]
            if hasattr(found, "commands"):
                for name in rest[0].split("|"):
                    command(words[1], name)
                found, rest = command(words[1], rest[0].split("|")[0]), rest[1:]
            wrong = [word for word in rest if word.startswith("-") and word.split("=")[0] not in options(found)]
            assert wrong == [], f"{page.name}: {line}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page: Path) -> None:
    everything = set[str]()
    for name in command().commands:
        found = command(name)
        inner = [command(name, each) for each in found.commands] if hasattr(found, "commands") else [found]
        everything |= {option for each in inner for option in options(each)}
    for text in re.findall(r"`(--[a-z][a-z-]*)[^`\n]*`", prose(page)):
        assert text in everything, f"{page.name}: {text}"


# -- code -------------------------------------------------------------------------------------------------------------


@pages
def test_code_names_what_exists(page: Path) -> None:
    """Each block parses; what it imports is there, and is called with parameters that it has."""
    for block in blocks(page, "python"):
        tree, known = ast.parse(block), dict[str, Any]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blackbox_proxy"):
                module = importlib.import_module(node.module or "")
                known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                positional = [None] * sum(not isinstance(each, ast.Starred) for each in node.args)
                inspect.signature(known[node.func.id]).bind(*positional, **given)


def test_the_examples_of_the_concepts_print_what_stands_below_them() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    pairs = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.S | re.M)
    assert len(pairs) == text.count("```python") >= 3
    names: dict[str, Any] = {}
    for code, printed in pairs:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "concepts.md", "exec"), names)
        assert out.getvalue() == printed


def test_servers_shows_the_table_of_the_dialects() -> None:
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    begin, end = "<!-- dialects -->", "<!-- /dialects -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.partition(begin)[2].partition(end)[0].strip() == support.markdown()
