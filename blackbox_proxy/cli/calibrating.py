"""The command that learns weights: `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import AsJson, Concurrency, Limit, Missing, Normalise, SkipBad, TunerOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import Screen, say_json


class _Options(TunerOptions):
    """Those of the tuner whose weights are learned, in the place of any."""

    unwanted: ClassVar[tuple[str, ...]] = ("pairs.alpha", "equation.weights", "equation.steer")


@app.command()
@takes(_Options)
def calibrate(
    texts: Annotated[list[Path], typer.Argument(help="Development texts: one or several .jsonl files.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the weights are written.")],
    parts: _Options,
    other: Annotated[
        Path | None, typer.Option(help="Texts of another kind (.jsonl): do the weights carry over to them?")
    ] = None,
    learn_tail: Annotated[
        bool, typer.Option("--learn-tail/--no-learn-tail", help="Learn how hidden mass is spread, too.")
    ] = True,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write weights that are not better, or do not carry over, as well.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would ask and cost.")] = False,
    missing: Missing = "backoff",
    normalise: Normalise = "none",
    concurrency: Concurrency = 8,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    confidence: Annotated[float, typer.Option(help="Level of the intervals, and of what is beyond chance.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn a weight for each of base, expert and anti-expert from a few texts, in place of one alpha.

    log p = w_q log q + w_E log E - w_A log A + w_t where q is estimated; (1, alpha, alpha, 0) is plain proxy-tuning.
    Each row is a document, as for `eval`: {"prompt": "…", "text": "…"}, {"text": "…"}, {"prompt": "…", "answer": "…"},
    or multiple choice. About 50 texts are enough. The base is asked once for each place, through the cache, and what
    that takes is said first. Where it cannot score given text, it is asked along the text (see --max-calls).

    Of multiple choice, the probabilities of the options are fitted, as `choose` has them: in one request a question, or
    one for each option where options have several tokens, which takes a base that scores given text.

    Weights are compared with alpha 1 and the best alpha on documents that they were not fitted to, and only written
    where they are better beyond chance and do not lose on --other; the exit status is 1 else. `--weights` then uses
    them in other commands, with these models, shown their prompts in the same way, this k and this tail.

    Examples:

        blackbox-proxy calibrate dev.jsonl -o weights.json --base big --base-url http://localhost:8000/v1 \\
            --dialect vllm --expert ./small-tuned --antiexpert ./small

        blackbox-proxy generate "Once upon a time" --weights weights.json …the same options
    """
    quiet_transformers()
    from blackbox_proxy.answers.choices import Rule
    from blackbox_proxy.calibration.asking import Plan
    from blackbox_proxy.calibration.run import calibrate as learn
    from blackbox_proxy.learned import write_weights
    from blackbox_proxy.report import calibration as report

    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, not {confidence}", hint="Leave it out for 0.95.")
    _writable(output, [*texts, *([] if other is None else [other])])
    rule = Rule(missing=cast(Any, missing), normalise=cast(Any, normalise))
    priced = parts.prices
    note = Screen(stderr=True)

    def ready(plan: Plan) -> bool:
        note.print(report.plan_line(plan, priced), markup=False, highlight=False, soft_wrap=True)
        return not dry_run

    with parts.open() as tuner, report.watching(note) as watch:
        try:
            found = learn(
                tuner,
                texts,
                others=other,
                learn_tail=learn_tail,
                rule=rule,
                concurrency=concurrency,
                limit=limit,
                skip_bad=skip_bad,
                confidence=confidence,
                seed=seed,
                ready=ready,
                observe=watch.saw,
            )
        except KeyboardInterrupt:
            note.print("Stopped. What was asked is in the cache: the same command goes on from there.")
            raise typer.Exit(130) from None
    if found is None:
        return
    if as_json:
        say_json(report.record(found))
    else:
        report.show(Screen(), found)
    if found.worth_writing or anyway:
        write_weights(output, found.learned)
        note.print(f"Written to {output}.", markup=False, highlight=False, soft_wrap=True)
    else:
        note.print("Nothing is written (--anyway writes it).", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _writable(path: Path, inputs: list[Path]) -> None:
    """Raise InputError for a file that cannot be written, before anything is spent."""
    if any(path.exists() and file.exists() and path.samefile(file) for file in inputs):
        raise InputError(f"{path} is an input", hint="Write the weights to another file.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written", hint="Give a file in a folder that exists.")
