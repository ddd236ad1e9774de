"""A local causal LM as a black box: the engine over `TransformersBase`, and the server that shows it.

    run_host("path-or-hub-id", port=8000, top_logprobs=5)

speaks OpenAI's wire format to any client, shows as little as the real API does, and says no in the same words.
`python -m blackbox_proxy.serve.host` is the same for `process.HostProcess`: it announces the address it got as a line
of JSON, and ends with the process that started it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.serve.emulation import emulation_of
from blackbox_proxy.serve.engine import Ask, Engine, Entry, Event
from blackbox_proxy.serve.network import Network, OverNetwork
from blackbox_proxy.serve.prompts import Prompts, read_template
from blackbox_proxy.serve.text import Feed, offsets, places, written
from blackbox_proxy.types import FinishReason, Prefix, Usage

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.base.showing import Showing

KEY_VARIABLE = "BLACKBOX_PROXY_HOST_KEY"
_NO_WINDOW = 4096  # tokens written when neither the request nor the model sets a limit


class HostEngine:
    """The engine over a local model. name: what clients call it. top_logprobs: the most they may see."""

    def __init__(self, base: TransformersBase, prompts: Prompts, *, name: str, top_logprobs: int) -> None:
        self._base = base
        self._prompts = prompts
        self._name = name
        self._top_logprobs = min(top_logprobs, base.top_logprobs)

    @property
    def name(self) -> str:
        return self._name

    @property
    def top_logprobs(self) -> int:
        return self._top_logprobs

    @property
    def context(self) -> int | None:
        return self._base.context

    def check(self, ask: Ask) -> None:
        self._base.check(self._prompts.ids(ask), 1 if ask.max_tokens is None else ask.max_tokens)
        for what, ids in (("logit_bias", ask.bias), ("logprob_token_ids", ask.named)):
            if any(not 0 <= index < self._base.known for index in ids):
                raise InputError(f"{what} has token ids outside the vocabulary: they are 0 to {self._base.known - 1}")

    async def complete(self, ask: Ask) -> AsyncGenerator[Event, None]:
        ids = self._prompts.ids(ask)
        prefix = Prefix(ids)
        room = self._base.room(prefix)
        n = ask.max_tokens if ask.max_tokens is not None else _NO_WINDOW if room is None else room
        echo = await self._echo(ask, ids) if ask.echo else Event()
        yield Event(echo.text, echo.entries, "length" if n == 0 else None, Usage(prompt_tokens=len(ids)), ids)
        if n == 0:
            return
        feed = Feed(ask.stop, start=len(echo.text))
        stream = self._base.positions(
            prefix,
            n,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed,
            showing=self._showing(ask),
        )
        count = 0
        async with aclosing(stream) as positions:
            async for position in positions:
                count += 1
                text, entries, stopped = feed.push(position)
                stopped = stopped or position.token.end
                if not stopped and count < n:
                    yield Event(text, entries, usage=Usage(completion_tokens=1))
                    continue
                rest, waiting = feed.close()
                finish: FinishReason = "stop" if stopped else "length"
                yield Event(text + rest, entries + waiting, finish, Usage(completion_tokens=1))
                return

    def _showing(self, ask: Ask) -> Showing:
        from blackbox_proxy.base.showing import Showing

        return Showing(min(ask.top_logprobs or 0, self._base.top_logprobs), ask.named, ask.bias, ask.penalty, ask.after)

    async def _echo(self, ask: Ask, ids: tuple[int, ...]) -> Event:
        """The prompt, or its last tokens, as an event, scored where log probabilities are asked for."""
        vocabulary = self._base.vocabulary
        text = ask.prompt.encode("utf-8") if isinstance(ask.prompt, str) else written(ids, vocabulary)
        begins = places(text, ids, vocabulary)
        first = 0 if ask.echo_last is None else max(0, len(ids) - ask.echo_last)
        if first:
            cut = begins[first] if first < len(ids) else len(text)
            text, begins = text[cut:], [place - cut for place in begins[first:]]
        entries: tuple[Entry, ...] = ()
        if ask.top_logprobs is not None and ask.echo_scored:
            positions = await self._base.echo(ids, top_logprobs=ask.top_logprobs, last=ask.echo_last)
            found = offsets(text, begins)
            entries = tuple(Entry(p, offset, generated=False) for p, offset in zip(positions, found, strict=True))
        return Event(text.decode("utf-8", "replace"), entries)


def open_engine(
    model: str | os.PathLike[str],
    *,
    top_logprobs: int = 5,
    served_model_name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    first_token: float = 0.0,
    per_token: float = 0.0,
) -> Engine:
    """Load a model as an engine; arguments as for `run_host`. Raises ModelUnavailable, InputError."""
    network = Network(first_token, per_token)
    template = None if chat_template is None else read_template(chat_template)
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.text.spelling import load_tokenizer

    limit = None if top_logprobs < 0 else max(top_logprobs, 1)
    base = TransformersBase(model, top_logprobs=limit, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(base.name, trust_remote_code=trust_remote_code)
    engine = HostEngine(
        base,
        Prompts(tokenizer, template),
        name=served_model_name or os.fspath(model),
        top_logprobs=base.size if top_logprobs < 0 else top_logprobs,
    )
    return engine if network == Network() else OverNetwork(engine, network)


def run_host(
    model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    top_logprobs: int = 5,
    api_key: str | None = None,
    served_model_name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    first_token: float = 0.0,
    per_token: float = 0.0,
    dialect: str | None = None,
    middleware: Sequence[Middleware] = (),
    announce: Callable[[str, int], None] | None = None,
) -> None:
    """Serve a local model until interrupted.

    model: folder or hub id; clients name it so, or `served_model_name`. port 0 takes a free one. top_logprobs: the
    most log probabilities per token that a client gets; -1 for the whole vocabulary. api_key: what clients must send.
    chat_template: a Jinja template, or the path of one, in place of the tokenizer's own. first_token, per_token:
    seconds until the first token of a text and for each further one, as if over a network. dialect: the kind of server
    to behave as, with its limits and its faults; None for what this server does best. middleware: Starlette's, in
    front of everything. announce: called with host and port once requests are answered.
    Raises InputError (port taken, extra not installed), ModelUnavailable.
    """
    if top_logprobs < -1:
        raise InputError("top_logprobs must be at least 0, or -1 for the whole vocabulary")
    emulation = None if dialect is None else emulation_of(dialect)
    try:
        import uvicorn  # noqa: F401

        from blackbox_proxy.serve.routes import create_app
    except ImportError as error:
        raise InputError(
            f"serving needs the package {error.name}, which is not installed",
            hint="pip install 'blackbox-proxy[server]'",
        ) from error
    with bind(host, port) as listener:  # before the model is loaded: a taken port is said at once
        engine = open_engine(
            model,
            top_logprobs=top_logprobs,
            served_model_name=served_model_name,
            device=device,
            dtype=dtype,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            first_token=first_token,
            per_token=per_token,
        )
        app = create_app(engine, api_key=api_key, middleware=middleware, emulation=emulation)
        server = make_server(app, lambda: announce(*listener.getsockname()[:2]) if announce else None)
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order and passes the signal on
            server.run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: nobody connects before there is an answer. Raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # a port whose last connections are still closing is free
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="Another program may be using this port; 0 takes a free one.",
        ) from error


def make_server(app: ASGIApp, on_ready: Callable[[], None]) -> Any:
    """A uvicorn server that calls back once it answers requests; run it with `run(sockets=[…])`."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    return Server(config)


# -- the process of its own -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m blackbox_proxy.serve.host`; the key comes from the environment, where `ps` does not show it."""
    parser = argparse.ArgumentParser(prog="python -m blackbox_proxy.serve.host", description="A model as a black box.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--top-logprobs", type=int, default=5)
    parser.add_argument("--served-model-name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--chat-template")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--first-token", type=float, default=0.0)
    parser.add_argument("--per-token", type=float, default=0.0)
    parser.add_argument("--dialect")
    parser.add_argument("--announce", action="store_true", help="print the address as a line of JSON when ready")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = vars(parser.parse_args(arguments))
    if options.pop("until_eof"):
        threading.Thread(target=_exit_at_eof, daemon=True).start()
    announce = _print_address if options.pop("announce") else None
    from blackbox_proxy.errors import BlackboxError

    try:
        run_host(options.pop("model"), api_key=os.environ.get(KEY_VARIABLE), announce=announce, **options)
    except BlackboxError as error:
        print(f"{error}. {error.hint}", file=sys.stderr)
        return 1
    return 0


def _print_address(host: str, port: int) -> None:
    print(json.dumps({"host": host, "port": port}), flush=True)


def _exit_at_eof() -> None:
    """The parent holds the other end of standard input. However it dies, the system closes that."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
