"""Commands about given text: `choose` one of a few answers, `score` a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.decoding import read_prompt
from blackbox_proxy.cli.options import AsJson, Missing, Normalise, TunerOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.errors import InputError
from blackbox_proxy.screen.console import Screen, say_json


@app.command()
@takes(TunerOptions)
def choose(
    prompt: Annotated[str | None, typer.Argument(help="The question; - or nothing reads standard input.")] = None,
    *,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the question from a file.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="An answer; give each of them.")] = None,
    parts: TunerOptions,
    missing: Missing = "backoff",
    forms: Annotated[
        bool, typer.Option("--forms/--exact", help='Count " A", "(A", "a" and "A." as "A", or only "A" itself.')
    ] = True,
    normalise: Normalise = "none",
    as_json: AsJson = False,
) -> None:
    """Choose one of a few answers, as the tuned big model would: one request, one token.

    Works through any API that shows log probabilities, chat included. Answers of several tokens are scored as they are
    written, where the API can do that: give them the space they begin with.

    Examples:

        blackbox-proxy choose "Who won? A) Ann B) Bob Answer:" -o A -o B --base gpt-4o --api chat \\
            --expert ./small-tuned --antiexpert ./small

        blackbox-proxy choose "The capital of France is" -o " Paris" -o " Buenos Aires" --normalise tokens \\
            --base big --base-url http://localhost:8000/v1 --dialect vllm --expert ./small-tuned --antiexpert ./small
    """
    text = read_prompt(prompt, file)
    quiet_transformers()
    from blackbox_proxy.answers import choices as answers
    from blackbox_proxy.report import choices

    with parts.open() as tuner:
        choice = tuner.choose(
            text,
            option or [],
            missing=cast(answers.Missing, missing),
            forms=forms,
            normalise=cast(answers.Normalise, normalise),
        )
    if as_json:
        say_json(choices.choice_record(choice))
        return
    console = Screen()
    console.print(choices.choice_table(choice))
    console.print(choices.choice_line(choice), style="dim", markup=False, highlight=False)


@app.command()
@takes(TunerOptions)
def score(
    text: Annotated[Path, typer.Argument(help="The text to score, a UTF-8 file; - reads standard input.")],
    *,
    prompt: Annotated[
        str | None, typer.Option(help="What the text follows; by default its own first token, which is not scored.")
    ] = None,
    parts: TunerOptions,
    tokens: Annotated[bool, typer.Option("--tokens", help="With --json: every token of the text, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """How probable a text is under the tuned big model, and under base, expert and anti-expert: bits per byte.

    Needs a base that scores given text: its weights here (--local), or an API that echoes its prompt with log
    probabilities, as vLLM's does. A text longer than a window is scored in overlapping parts.

    Examples:

        blackbox-proxy score article.txt --local --base ./big --expert ./small-tuned --antiexpert ./small

        blackbox-proxy score answer.txt --prompt "Q: Who won? A:" --base big --base-url http://localhost:8000/v1 \\
            --dialect vllm --expert ./small-tuned --antiexpert ./small --json
    """
    whole = read_prompt("-" if str(text) == "-" else None, None if str(text) == "-" else text)
    if not whole:
        raise InputError(f"{text} is empty", hint="Give at least one character to score.")
    quiet_transformers()
    from blackbox_proxy.answers.scoring import split_opening
    from blackbox_proxy.report import choices

    with parts.open() as tuner:
        opening, rest = (prompt, whole) if prompt else split_opening(whole, tuner.base.vocabulary)
        if not rest:
            raise InputError(f"{text} is a single token", hint="Give a longer text, or a --prompt before it.")
        scored = tuner.score(opening, rest)
        has_antiexpert = tuner.pairs[0].has_antiexpert
    if as_json:
        record = choices.score_record(scored, tokens=tokens) | {"prompt": opening}
        say_json(record)
        return
    console = Screen()
    console.print(choices.score_table(scored, has_antiexpert=has_antiexpert))
    if not prompt:
        console.print(f"Scored after its own beginning, {opening!r}.", style="dim", markup=False, highlight=False)
    console.print(choices.score_line(scored), style="dim", markup=False, highlight=False)
