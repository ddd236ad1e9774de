"""Commands that answer HTTP: `host`."""

from __future__ import annotations

from typing import Annotated

import typer

from blackbox_proxy.cli.app import app, quiet_transformers


@app.command()
def host(
    model: Annotated[str, typer.Option(help="Folder or hub id of a causal language model.")],
    *,
    top_logprobs: Annotated[
        int | None, typer.Option(help="Most logprobs a client gets per token; -1: all. Default: 5, or the dialect's.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Behave as this kind of server, limits and faults included; see `dialects`.")
    ] = None,
    address: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Key that clients must send.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="How clients name the model.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="Jinja template, or its file, for chat.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    first_token: Annotated[float, typer.Option(help="Seconds until the first token, as if over a network.")] = 0.0,
    per_token: Annotated[float, typer.Option(help="Seconds for each further token.")] = 0.0,
) -> None:
    """Serve a local model as a black box: OpenAI's API with top-k logprobs, so that everything can be tried at home.

    Example:

        blackbox-proxy host --model ./big --top-logprobs 5 --port 8000
    """
    quiet_transformers()
    from blackbox_proxy.serve.emulation import emulation_of
    from blackbox_proxy.serve.host import run_host

    if top_logprobs is None:
        top_logprobs = 5 if dialect is None else emulation_of(dialect).most

    def announce(where: str, at: int) -> None:
        root = "/v1" if dialect is None else emulation_of(dialect).roots[0]
        like = "" if dialect is None else f", as {dialect}"
        name = served_model_name or model
        url = f"http://{where}:{at}{root.format(model=name)}"
        typer.echo(f"{name} at {url}, top {top_logprobs} logprobs{like}", err=True)

    run_host(
        model,
        host=address,
        port=port,
        top_logprobs=top_logprobs,
        api_key=api_key,
        served_model_name=served_model_name,
        chat_template=chat_template,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        first_token=first_token,
        per_token=per_token,
        dialect=dialect,
        announce=announce,
    )
