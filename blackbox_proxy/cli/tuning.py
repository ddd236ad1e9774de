"""The command that trains an expert: `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import BaseOptions, Limit, SkipBad
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import Screen, say


class _Options(BaseOptions):
    """The base that is trained through, and where the small model runs."""

    wanted: ClassVar[tuple[str, ...]] = BaseOptions.wanted


@app.command()
@takes(_Options)
def tune(
    model: Annotated[str, typer.Argument(help="The small model: folder or hub id. It becomes the anti-expert.")],
    texts: Annotated[list[Path], typer.Argument(help="What it is to write: one or several .jsonl files.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the expert, a LoRA adapter.")],
    parts: _Options,
    through: Annotated[
        bool, typer.Option("--through", help="Train what base and expert say together (needs --base).")
    ] = False,
    alpha: Annotated[float, typer.Option(help="With --through: the weight that the pair will have.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 200,
    batch: Annotated[int, typer.Option(help="Texts for each step.")] = 4,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 5e-4,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the order and of the adapter.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would ask and cost.")] = False,
    limit: Limit = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train an expert from a small model: LoRA, on a few hundred texts.

    A row is {"text": "…"}, {"prompt": "…", "text": "…"} or {"prompt": "…", "answer": "…"}. Plainly, the small model
    learns to write the texts. With --through the base is asked about each text once (through the cache; what that
    takes is said first), and the expert learns what makes the *combination* right, at the base's places (Consistent
    Proxy Tuning, arXiv 2407.01155). A training that was stopped goes on when the same command is given again.

    Examples:

        blackbox-proxy tune ./small train.jsonl -o ./expert

        blackbox-proxy tune ./small train.jsonl -o ./expert --through --base big --base-url http://localhost:8000/v1 \\
            --dialect vllm --tokenizer path-or-hub-id
    """
    quiet_transformers()
    from blackbox_proxy.tuning.run import Asked
    from blackbox_proxy.tuning.run import tune as train
    from blackbox_proxy.tuning.train import Recipe, Stepped

    recipe = Recipe(steps, batch, rate, rank, through, alpha, seed)
    if not through and parts.settings.base.model is not None:
        raise InputError("a base is named, but not trained through", hint="Add --through, or leave --base out.")
    base = parts.open_base() if through else None
    here, note = parts.settings.compute, Screen(stderr=True)

    def ready(asked: Asked) -> bool:
        if through:
            usage = asked.usage
            cost = "" if parts.prices is None else f", {parts.prices.cost(usage):.4g} by --prices"
            told = f"At most {usage.api_calls} requests, about {usage.prompt_tokens} prompt tokens{cost}."
            note.print(f"{told} What the cache has is not asked again.", markup=False, highlight=False, soft_wrap=True)
        return not dry_run

    columns = (TextColumn("training"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(
        *columns, TextColumn("{task.fields[loss]}"), TimeRemainingColumn(compact=True), console=note, transient=True
    ) as bar:
        task = bar.add_task("", total=None, loss="")

        def saw(stepped: Stepped) -> None:
            bar.update(task, total=stepped.steps, completed=stepped.step, loss=f"loss {stepped.loss:.3f}")

        try:
            tuned = train(
                model,
                texts,
                output,
                recipe=recipe,
                base=base,
                device=here.device,
                dtype=here.dtype,
                overwrite=overwrite,
                limit=limit,
                skip_bad=skip_bad,
                ready=ready,
                observe=saw,
            )
        except KeyboardInterrupt:
            note.print("Stopped. The same command goes on from the last checkpoint.")
            raise typer.Exit(130) from None
    if tuned is not None:
        went_on = f", {tuned.resumed} of them by an earlier run" if tuned.resumed else ""
        where = f", {tuned.spots} places of the base ({tuned.left_out} left out)" if through else ""
        said = f"{output}: {tuned.examples} texts{where}, {steps} steps{went_on}; loss {tuned.loss:.3f}"
        say(said)
