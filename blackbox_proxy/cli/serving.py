"""Commands that answer HTTP: `host`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.serve.options import HostOptions


@app.command()
@takes(HostOptions)
def host(*, options: HostOptions) -> None:
    """Serve a local model as a black box: OpenAI's API with top-k logprobs, so that everything can be tried at home.

    Answers completions and chat, whole and streamed, under http://HOST:PORT/v1, or where the dialect has them.

    Example:

        blackbox-proxy host --model ./big --top-logprobs 5 --port 8000
    """
    quiet_transformers()
    from blackbox_proxy.serve.host import run_host

    def announce(address: str, port: int) -> None:
        like = "" if options.dialect is None else f", as {options.dialect}"
        url = f"http://{address}:{port}{options.path}"
        typer.echo(f"{options.name} at {url}, top {options.most} logprobs{like}", err=True)

    run_host(**asdict(options), announce=announce)
