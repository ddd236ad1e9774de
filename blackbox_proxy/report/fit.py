"""How well a pair fits a base, as a person looks at it: figures, what they mean, what texts like these will take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from blackbox_proxy.evaluation.fit import Fit
from blackbox_proxy.screen.tables import Table

_MARKS = {"good": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "red")}


def show(console: Console, fit: Fit) -> None:
    """Figures, verdicts, forecast."""
    console.print(figures(fit))
    for verdict in fit.verdicts:
        mark, style = _MARKS[verdict.level]
        hint = f" {verdict.hint}" if verdict.hint else ""
        console.print(f"{mark} {verdict.text}{hint}", style=style, markup=False, highlight=False, soft_wrap=True)
    console.print(forecast_line(fit), markup=False, highlight=False, soft_wrap=True)
    usage = fit.usage
    console.print(
        f"This took {usage.api_calls} API calls, {usage.prompt_tokens} prompt + "
        f"{usage.completion_tokens} output tokens.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def figures(fit: Fit) -> Table:
    """One line for each figure."""
    low, high = fit.disagreement_interval
    table = Table(
        title=f"{fit.tokens} tokens that the base wrote after {fit.texts} prompts, {fit.weight}",
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    table.add_column(justify="right")
    table.add_column()
    if fit.vocabulary_overlap is not None:
        table.add_row(_share(fit.vocabulary_overlap), "of the base's tokens are tokens of the pair, too")
    else:
        table.add_row("?", "of the base's tokens: its vocabulary is not known (--tokenizer)")
    table.add_row(_share(fit.candidates_overlap), "of the candidates that it showed")
    table.add_row(_share(fit.merging), "of the candidates begin with the same local token as another one there")
    table.add_row(_share(fit.merging_positions), "of the positions have such candidates")
    table.add_row(_share(fit.neutral), "of the candidates mean nothing to the pair")
    table.add_row(_share(fit.approximate), "of the candidates it could score in part only")
    table.add_row(
        _share(fit.covered_mass),
        f"of the base's probability shown by its {fit.top_k} candidates; less than 90 % at {_share(fit.low_covered)} "
        "of the positions",
    )
    table.add_row(_share(fit.expert_agreement), "of the positions: the expert would write what the base writes")
    table.add_row(
        _share(fit.disagreement), f"would be changed (between {_share(low)} and {_share(high)}: the disagreement rate)"
    )
    table.add_row(f"{fit.divergence:.2f}", "nats per token between the tuned model and the base")
    return table


def forecast_line(fit: Fit) -> str:
    """What texts like these are expected to take."""
    forecast = fit.forecast
    money = "" if forecast.cost is None else f", cost {forecast.cost:.4g}"
    return (
        f"Expected for {forecast.texts} texts of {forecast.length:.0f} tokens after prompts of "
        f"{forecast.prompt_tokens:.0f}: {forecast.usage.api_calls} calls ({forecast.calls_per_token:.2f} per token), "
        f"{forecast.usage.prompt_tokens} prompt + {forecast.usage.completion_tokens} output tokens{money}. It is "
        "reckoned along the base's own text: a tuned text may go another way."
    )


def record(fit: Fit) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    return {**asdict(fit), "fits": fit.fits}


def _share(value: float) -> str:
    percent = f"{100 * value:.1f}" if 0 < value < 0.1 else f"{100 * value:.0f}"
    return f"{percent} %"
