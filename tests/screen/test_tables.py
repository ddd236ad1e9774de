"""Tables in narrow terminals: at 80 and at 60 columns every figure of a wide one is there, and whole."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from blackbox_proxy.screen.tables import Table

OnTerminal = Callable[..., tuple[int, str]]
NARROW = (80, 60)
SGR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def figures(text: str) -> Counter[str]:
    """How often each number stands there, without what a run took and without what a bar or a spinner drew before."""
    text = re.sub(r"\d+ rows in \d+\.\d s.*", "", SGR.sub("", text.rpartition("\x1b[?25h")[2]))
    return Counter(re.findall(r"\d+(?:\.\d+)?", text))


def drawn(table: RenderableType, columns: int) -> str:
    console = Console(file=io.StringIO(), width=columns, markup=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def check(wide: str, narrow: str) -> None:
    assert not figures(wide) - figures(narrow), narrow  # in lines, the heads come again and again
    assert SGR.sub("", narrow.rpartition("\x1b[?25h")[2]).count("…") <= wide.count("…")


@pytest.fixture
def pair(models: dict[str, str]) -> list[str]:
    return ["--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device", "cpu"]


@pytest.fixture
def api(hosted: Callable[[int], str], models: dict[str, str], pair: list[str]) -> list[str]:
    asked = ["--base", "big", "--base-url", hosted(5), "--dialect", "vllm", "--tokenizer", models["base"]]
    return [*asked, *pair, "--no-stream", "--no-local-drafts", "--no-cache"]


def everywhere(on_terminal: OnTerminal, *arguments: str) -> None:
    status, wide = on_terminal(*arguments, columns=250)
    assert status in (0, 1), wide
    assert len(figures(wide)) > 3, wide
    for columns in NARROW:
        check(wide, on_terminal(*arguments, columns=columns)[1])


def test_choose(on_terminal: OnTerminal, api: list[str]) -> None:
    names = ("-o", "a" * 50, "-o", "several words that say a great deal, all of them in one name", "-o", "b")
    everywhere(on_terminal, "choose", "Which?", *names, *api)


def test_score_and_fit(
    on_terminal: OnTerminal, api: list[str], pair: list[str], tmp_path: Path, models: dict[str, str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The mayor of New York is not the mayor of New Haven.", encoding="utf-8")
    everywhere(on_terminal, "score", str(text), "--local", "--base", models["base"], *pair)
    everywhere(on_terminal, "fit", "The mayor of", "New York", *api, "--tokens", "20")


def test_an_estimate(on_terminal: OnTerminal, api: list[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"The mayor {i}"}) + "\n" for i in range(30)), encoding="utf-8")
    asked = ("run", str(file), "-o", str(tmp_path / "out.jsonl"), "--dry-run", "--prices", "1.5e-6,1.5e-6,2e-6")
    everywhere(on_terminal, *asked, *api)


def test_an_evaluation(on_terminal: OnTerminal, api: list[str], tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"The mayor of {city}", "answer": "New York"} for city in ("York", "New", "Haven")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = (
        "--concurrency",
        "1",
        "--max-tokens",
        "4",
        "--draft",  # else what is drafted, and billed, follows from what requests took
        "2",
        "--alpha",
        "1",
        "--alpha",
        "0.5",
        "--prices",
        "1.5e-6,1.5e-6,2e-6",
    )
    everywhere(on_terminal, "eval", str(file), *api, *asked)


def test_a_report(on_terminal: OnTerminal, api: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    assert on_terminal("generate", "The mayor of", *api, "-n", "30", "--trace", str(trace))[0] == 0
    everywhere(on_terminal, "report", str(trace))


def test_a_probe_and_the_dialects(on_terminal: OnTerminal, hosted: Callable[[int], str]) -> None:
    from blackbox_proxy.probing.run import probe
    from blackbox_proxy.report.probe import findings_table, verdict_table

    found = probe("big", base_url=hosted(5), api="completions", api_key="none")
    for table in (findings_table(found), verdict_table(found)):
        for columns in NARROW:
            check(drawn(table, 250), drawn(table, columns))
    everywhere(on_terminal, "dialects")


def test_the_demo_and_the_benchmarks() -> None:
    from blackbox_proxy.bench.measure import Measured
    from blackbox_proxy.bench.run import table as bench
    from blackbox_proxy.demo.evaluate import Figures
    from blackbox_proxy.demo.run import SYSTEMS
    from blackbox_proxy.demo.run import table as demo
    from blackbox_proxy.host.network import Network
    from blackbox_proxy.prices import Prices

    rows = {
        key: Figures(title, {"changed": 0.816, "unchanged": i / 7, "free": 1.0}, 0.18, ())
        for i, (key, title) in enumerate(SYSTEMS.items())
    }
    ways = [
        Measured(name, ("a",), 123_456, 45_678, 12_345, 12_000, 100_000, 98_765_432, 1_234_567, 1234.5)
        for name in ("base alone", "one request per token", "drafts of 8, as the paper has it", "as it is")
    ]
    near = Table()
    for name in ("draft", "ratio", "near ms", "bare ms", "nodes", "forwards", "estimates", "sums", "weigh", "rest"):
        near.add_column(name, justify="right")
    near.add_row("32", "12.34", "1234.5", "1234.5", "12.34", "100 %", "100 %", "10 %", "10 %", "10 %")
    for table in (demo(rows, []), bench(ways, Network(0.3, 0.02), Prices()), near):
        for columns in (*NARROW, 30):
            check(drawn(table, 250), drawn(table, columns))


def made(name: str) -> Table:
    table = Table(title="A title", caption="and a caption")
    table.add_column("system")
    table.add_column("exact match (95 %)", justify="right")
    table.add_column("better than base (95 %)", justify="right")
    table.add_row(name, "0.816 (0.751–0.924)", "+0.123 (0.100–0.200)")
    return table


@pytest.mark.parametrize("name", ["proxy-tuned, alpha 1 with a long name", "x" * 70, "base", "東京" * 20])
@pytest.mark.parametrize("columns", [100, 80, 72, 60, 50, 40, 30])
def test_figures_are_whole_and_names_complete(name: str, columns: int) -> None:
    out = drawn(made(name), columns)
    assert "0.816 (0.751–0.924)" in out
    assert "+0.123 (0.100–0.200)" in out
    assert "…" not in out
    assert max(cell_len(line) for line in out.splitlines()) <= columns
    if len(name) < columns / 4 or columns == 30:
        assert name in out.replace("\n", "") or " " in name


def test_a_narrow_table_is_a_table_and_a_narrower_one_is_lines() -> None:
    assert "━" in drawn(made("proxy-tuned, alpha 1 with a long name"), 80)
    lines = drawn(made("proxy-tuned"), 50).splitlines()
    assert [line.rstrip() for line in lines] == [
        "A title",
        "proxy-tuned",
        "  exact match (95 %)  0.816 (0.751–0.924)",
        "  better than base (95 %)  +0.123 (0.100–0.200)",
        "and a caption",
    ]


def test_there_is_no_other_way_to_the_terminal() -> None:
    """Commands print through `screen`, and every table is one that fits."""
    import blackbox_proxy

    package = Path(blackbox_proxy.__file__).parent
    ways = re.compile(r"typer\.echo|click\.echo|\bConsole\(|rich\.table|secho|rich import print")
    programs = {"demo/training.py", "host/run.py"}  # processes of their own, which write JSON to a pipe
    for file in package.rglob("*.py"):
        if file.parent.name == "screen":
            continue
        text = file.read_text(encoding="utf-8")
        assert not ways.search(text), file
        prints = re.search(r"^\s+print\(", text.partition('"""\n')[2], re.M)
        assert not prints or str(file.relative_to(package)) in programs, file
