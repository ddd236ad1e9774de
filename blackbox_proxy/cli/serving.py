"""Commands that answer HTTP: `host`, `serve`; `key`, for the callers of `serve`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blackbox_proxy.cli.app import app, quiet_transformers
from blackbox_proxy.cli.options import ServeOptions
from blackbox_proxy.cli.sharing import takes
from blackbox_proxy.config.settings import ONLY_PAIR
from blackbox_proxy.errors import InputError
from blackbox_proxy.host.options import HostOptions
from blackbox_proxy.screen.console import say

if TYPE_CHECKING:
    from blackbox_proxy.gateway.engine import Model
    from blackbox_proxy.protocols import Base, Pair


@app.command()
@takes(HostOptions)
def host(*, options: HostOptions) -> None:
    """Serve a local model as a black box: OpenAI's API with top-k logprobs, so that everything can be tried at home.

    Answers completions and chat, whole and streamed, under http://HOST:PORT/v1, or where the dialect has them.

    Example:

        blackbox-proxy host --model ./big --top-logprobs 5 --port 8000
    """
    quiet_transformers()
    from blackbox_proxy.host.run import run_host

    def announce(address: str, port: int) -> None:
        like = "" if options.dialect is None else f", as {options.dialect}"
        url = f"http://{address}:{port}{options.path}"
        say(f"{options.name} at {url}, top {options.most} logprobs{like}", err=True)

    run_host(**asdict(options), announce=announce)


@app.command()
@takes(ServeOptions)
def serve(*, setup: ServeOptions) -> None:
    """Serve the tuned big model behind OpenAI's routes, for many users at a time.

    Offers /v1/completions, /v1/chat/completions and /v1/models, whole and streamed; /health, /ready, /metrics; and a
    page at / that shows two of the models side by side.
    Without [serve.models.NAME] tables in a file, each pair is offered under its name (one given by options as "tuned"),
    and the base under its own. Usage tells what the base's API billed. SIGTERM lets texts end first.

    Examples:

        blackbox-proxy serve --base big-model --base-url http://localhost:8000/v1 --dialect vllm \\
            --expert ./small-tuned --antiexpert ./small --port 9000

        blackbox-proxy serve --config proxy.toml --host 0.0.0.0 --keys keys.toml
    """
    quiet_transformers()
    from blackbox_proxy.door.limits import Limits
    from blackbox_proxy.gateway.prompts import Reader
    from blackbox_proxy.gateway.run import Operation, run_gateway
    from blackbox_proxy.host.prompts import DEFAULT_CHAT_TEMPLATE, read_template

    told, base_told = setup.settings.serve, setup.settings.base
    operation = Operation(
        host=told.host,
        port=told.port,
        keys=told.keys,
        active=told.active,
        waiting=told.waiting,
        drain_seconds=told.drain_seconds,
        page=told.page,
        limits=Limits(allow_host=told.allow_host, allow_origin=told.allow_origin),
    )
    template = told.chat_template
    if template is not None:
        template = DEFAULT_CHAT_TEMPLATE if template == "plain" else read_template(template)
    base, pairs = setup.open_base(), setup.open_pairs()
    api = "completions" if base_told.local else base_told.api
    models = served_models(setup, base, pairs)

    def announce(address: str, port: int) -> None:
        names = ", ".join(model.name for model in models)
        page = f"; a page to try them is at http://{address}:{port}/" if told.page else ""
        say(f"{names} at http://{address}:{port}/v1{page}", err=True)

    run_gateway(base, models, Reader(base.vocabulary, api, base_told.prompt, template), operation, announce=announce)


def served_models(setup: ServeOptions, base: Base, pairs: dict[str, Pair]) -> list[Model]:
    """What is offered. Raises InputError where that is nothing."""
    from blackbox_proxy.gateway.engine import Bounds, Model
    from blackbox_proxy.prices import Prices

    told, equation = setup.settings.serve, setup.settings.equation
    prices = setup.settings.budget.prices
    bounds = Bounds(told.alpha_range, tuple(told.tails), told.page)
    if equation.weights is not None and (told.models or len(pairs) > 1):
        raise InputError(
            "learned weights are served for one pair, and under one name",
            hint="Leave out [serve.models.…], and choose the pair with --pair.",
        )
    weights = setup.weights_for(base, list(pairs.values()))

    def model(name: str, names: list[str], alphas: list[float]) -> Model:
        return Model(
            name,
            tuple(pairs[each] for each in names),
            tuple(alphas),
            equation.tail,
            equation.tail_size,
            setup.drafting(),
            bounds,
            told.max_logprobs,
            weights if names else None,
            None if prices is None else Prices(*prices),
        )

    own = {name: pair.alpha for name, pair in setup.settings.pairs.items()}
    if not told.models:
        if equation.steer != "candidates":
            raise InputError("a server weighs candidates", hint="Leave out --steer.")
        tuned = [model("tuned" if name == ONLY_PAIR else name, [name], [own[name]]) for name in pairs]
        return [*tuned, model(setup.model, [], [])]
    found = []
    for name, each in told.models.items():
        names = list(pairs) if each.pairs is None else each.pairs
        alpha = [own[pair] for pair in names] if each.alpha is None else each.alpha
        found.append(model(name, names, alpha if isinstance(alpha, list) else [alpha] * len(names)))
    return found


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    keys: Annotated[Path, typer.Option("--keys", help="The file that its hash is added to.")] = Path("keys.toml"),
) -> None:
    """Make a key for a caller of `serve`. It is printed once; the file keeps its hash only."""
    from blackbox_proxy.gateway.keys import new_key

    say(new_key(name, keys))
