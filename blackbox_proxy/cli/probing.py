"""The command that finds out what an endpoint does: `probe`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, cast

import typer

from blackbox_proxy.cli.app import app
from blackbox_proxy.cli.options import AsJson
from blackbox_proxy.cli.sharing import Options, takes
from blackbox_proxy.screen.console import Screen, say, say_json

_CALLS = 40


class EndpointOptions(Options):
    """Where an endpoint is."""

    wanted: ClassVar[tuple[str, ...]] = ("base",)
    unwanted: ClassVar[tuple[str, ...]] = ("base.local", "base.api", "base.top_logprobs", "base.prompt")
    also: ClassVar[Mapping[str, str]] = {"base.model": "--model"}


@app.command()
@takes(EndpointOptions)
def probe(
    *,
    parts: EndpointOptions,
    api: Annotated[
        str | None, typer.Option(help="completions, chat, or auto: completions where they give log probabilities.")
    ] = None,
    max_calls: Annotated[int, typer.Option(help="Requests at most; what is left then stays open.")] = _CALLS,
    timeout: Annotated[float, typer.Option(help="Seconds without a byte after which a request has failed.")] = 60.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the findings in this file instead of the usual place.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out what an endpoint really does, with some twenty requests of a few tokens each.

    Prints its limits and faults, what of this library works there, and how to open it. The findings are kept, and used
    whenever that endpoint is opened without naming a dialect.

    Examples:

        blackbox-proxy probe --base-url http://localhost:8000/v1 --model big

        blackbox-proxy probe --model gpt-4o --api chat --json
    """
    from blackbox_proxy.dialects import findings as kept
    from blackbox_proxy.probing.run import Wanted
    from blackbox_proxy.probing.run import probe as ask
    from blackbox_proxy.probing.verdict import paste
    from blackbox_proxy.report import probe as report

    told = parts.settings.base
    asked_for = api or (told.api if "api" in told.model_fields_set else "auto")
    console = Screen()
    with Screen(stderr=True).status("asking …") as status:
        found = ask(
            parts.model,
            api=cast(Wanted, asked_for),
            base_url=told.url,
            api_key=parts.key(),
            dialect=told.dialect,
            tokenizer=parts.tokenizer,
            timeout=timeout,
            max_calls=max_calls,
            told=lambda name: status.update(f"asking about: {name} …"),
        )
    where = kept.save(found, output)
    if as_json:
        say_json(report.findings_record(found))
        return
    console.print(f"{found.model} at {found.url}, through its {found.api} API", style="bold", highlight=False)
    console.print(report.findings_table(found))
    console.print("What works there", style="bold")
    console.print(report.verdict_table(found))
    console.print(report.cost_line(found), style="dim", highlight=False)
    if where is not None:
        console.print(f"Kept in {where}.", style="dim", highlight=False, soft_wrap=True)
    console.print("\nTo open it:", style="bold")
    say(paste(found))
    if where is not None:
        other = f", probe={str(output)!r}" if output is not None else ""
        console.print(f"or without a dialect{other}: the findings are used.", style="dim", highlight=False)
