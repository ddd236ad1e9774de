"""A bulk run in the terminal: one line that lives while it runs, one that says how it ended, and an estimate before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blackbox_proxy.jobs.estimate import Estimate
from blackbox_proxy.jobs.run import JobReport
from blackbox_proxy.prices import Prices
from blackbox_proxy.screen.tables import Table


class Watch:
    """What the run tells goes to `saw`; `last` is the newest."""

    def __init__(self, progress: Progress, prices: Prices | None) -> None:
        self.last = JobReport()
        self._progress = progress
        self._prices = prices
        self._task = progress.add_task("checking the rows", total=None, figures="")

    def saw(self, report: JobReport) -> None:
        first, self.last = self.last.total is None, report
        begun = report.skipped if first else 0
        if first:  # a task of its own: rows that were there before say nothing of the time left
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("decoding", total=report.total, completed=begun, figures="")
        over = report.done + report.failed + report.skipped
        self._progress.update(self._task, completed=over, figures=figures(report, self._prices))


@contextmanager
def watching(console: Console, prices: Prices | None = None) -> Iterator[Watch]:
    """Show how far a run is, on a terminal; elsewhere nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Watch(progress, prices)


def figures(report: JobReport, prices: Prices | None) -> str:
    """Speed, calls, money and failures, as far as there are any."""
    found = []
    if report.tokens and report.seconds:
        found.append(f"{report.tokens / report.seconds:.1f} tokens/s")
        found.append(f"{report.usage.api_calls / report.tokens:.2f} calls/token")
    if prices is not None:
        found.append(f"cost {prices.cost(report.usage):.4g}")
    found.append(f"{report.failed} failed")
    return ", ".join(found)


def job_line(report: JobReport, prices: Prices | None = None) -> str:
    """How a run ended, in words."""
    parts = [f"{report.done} rows done", f"{report.failed} failed"]
    if report.skipped:
        earlier = f" ({report.failed_before} of them failures)" if report.failed_before else ""
        parts.append(f"{report.skipped} were there before{earlier}")
    if report.bad:
        parts.append(f"{report.bad} bad rows left out")
    usage = report.usage
    spent = (
        f"{usage.api_calls} API calls, {usage.prompt_tokens} prompt + {usage.completion_tokens} output tokens billed"
    )
    retries = f", {usage.retries} retries" if usage.retries else ""
    rates = f"{report.tokens} tokens in {report.seconds:.1f} s"
    money = f"; cost {prices.cost(usage):.4g}" if prices is not None else ""
    return f"{', '.join(parts)}; {rates}; {spent}{retries}{money}"


def estimate_table(estimate: Estimate, prices: Prices | None) -> Table:
    """The two extremes side by side."""
    table = Table(
        title=f"Bounds for {estimate.rows} rows, nothing was sent",
        caption=f"Prompt tokens counted by {estimate.counted_by}. Bounds, not a forecast: every text is taken to reach "
        "max_tokens; retries and discarded drafts come on top.",
        caption_justify="left",
    )
    table.add_column("")
    for name in ("one request per text", "one request per token"):
        table.add_column(name, justify="right")
    low, high = estimate.per_text, estimate.per_token
    table.add_row("requests", str(low.api_calls), str(high.api_calls))
    table.add_row("prompt tokens", str(low.prompt_tokens), str(high.prompt_tokens))
    table.add_row("output tokens", f"≤ {low.completion_tokens}", f"≤ {high.completion_tokens}")
    if prices is not None:
        table.add_row("cost", f"≤ {prices.cost(low):.6g}", f"≤ {prices.cost(high):.6g}")
    return table
