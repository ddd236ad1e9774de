"""A local causal LM as a black box: the engine over `TransformersBase`, and the server that shows it.

    run_host("path-or-hub-id", port=8000, top_logprobs=5)

speaks OpenAI's wire format to any client, shows as little as the real API does, and says no in the same words.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.serve.engine import Engine, Event, Placed, TextWanted
from blackbox_proxy.serve.limits import Limits
from blackbox_proxy.serve.network import Network, OverNetwork
from blackbox_proxy.serve.options import EngineOptions, HostOptions
from blackbox_proxy.serve.prompts import Prompts, read_template
from blackbox_proxy.serve.text import Feed, echoed_part, offsets
from blackbox_proxy.types import FinishReason, Prefix, Usage

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.base.showing import Showing

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

    @property
    def own_fields(self) -> Collection[str]:
        return ()

    @property
    def about(self) -> Mapping[str, Any]:
        return {}

    def check(self, wanted: TextWanted) -> None:
        self._base.check(self._prompts.ids(wanted), 1 if wanted.max_tokens is None else wanted.max_tokens)
        for what, ids in (("logit_bias", wanted.bias), ("logprob_token_ids", wanted.shown_ids)):
            if any(not 0 <= index < self._base.known for index in ids):
                raise InputError(f"{what} has token ids outside the vocabulary: they are 0 to {self._base.known - 1}")

    async def complete(self, wanted: TextWanted) -> AsyncGenerator[Event, None]:
        ids = await asyncio.to_thread(self._prompts.ids, wanted)
        prefix = Prefix(ids)
        room = self._base.room(prefix)
        n = wanted.max_tokens if wanted.max_tokens is not None else _NO_WINDOW if room is None else room
        echo = await self._echo(wanted, ids) if wanted.echo else Event()
        yield Event(echo.text, echo.entries, "length" if n == 0 else None, Usage(prompt_tokens=len(ids)), ids)
        if n == 0:
            return
        feed = Feed(wanted.stop, start=len(echo.text))
        stream = self._base.positions(
            prefix,
            n,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            showing=self._showing(wanted),
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

    def _showing(self, wanted: TextWanted) -> Showing:
        from blackbox_proxy.base.showing import Showing

        return Showing(
            min(wanted.top_logprobs or 0, self._base.top_logprobs),
            wanted.shown_ids,
            wanted.bias,
            wanted.penalty,
            wanted.after,
        )

    async def _echo(self, wanted: TextWanted, ids: tuple[int, ...]) -> Event:
        """The prompt, or its last tokens, as an event, scored where log probabilities are asked for."""
        vocabulary = self._base.vocabulary
        text, begins = echoed_part(wanted.prompt, ids, vocabulary, wanted.echo_last)
        entries: tuple[Placed, ...] = ()
        if wanted.top_logprobs is not None and wanted.echo_scored:
            positions = await self._base.echo(ids, top_logprobs=wanted.top_logprobs, last=wanted.echo_last)
            found = offsets(text, begins)
            entries = tuple(Placed(p, offset, generated=False) for p, offset in zip(positions, found, strict=True))
        return Event(text.decode("utf-8", "replace"), entries)


def open_engine(model: str | os.PathLike[str], **options: Any) -> Engine:
    """Load a model as an engine. options: the fields of `EngineOptions`. Raises ModelUnavailable, InputError."""
    return _engine(EngineOptions(model=os.fspath(model), **options))


def _engine(options: EngineOptions) -> Engine:
    network = Network(options.first_token, options.per_token)
    template = None if options.chat_template is None else read_template(options.chat_template)
    from blackbox_proxy.base.local import TransformersBase
    from blackbox_proxy.text.spelling import load_tokenizer

    most, trusted = options.most, options.trust_remote_code
    base = TransformersBase(
        options.model,
        top_logprobs=None if most < 0 else max(most, 1),
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=trusted,
    )
    prompts = Prompts(load_tokenizer(base.name, trust_remote_code=trusted), template, window=base.context)
    engine = HostEngine(base, prompts, name=options.name, top_logprobs=base.size if most < 0 else most)
    return engine if network == Network() else OverNetwork(engine, network)


def run_host(
    model: str | os.PathLike[str],
    *,
    middleware: Sequence[Middleware] = (),
    announce: Callable[[str, int], None] | None = None,
    **options: Any,
) -> None:
    """Serve a local model until interrupted.

    model: folder or hub id. options: the other fields of `HostOptions`. middleware: Starlette's, in front of
    everything. announce: called with host and port once requests are answered.
    Raises InputError (port taken, extra not installed), ModelUnavailable.
    """
    told = HostOptions(model=os.fspath(model), **options)
    emulation = told.emulation
    try:
        import uvicorn  # noqa: F401

        from blackbox_proxy.serve.routes import create_app
    except ImportError as error:
        raise InputError(
            f"serving needs the package {error.name}, which is not installed",
            hint="pip install 'blackbox-proxy[server]'",
        ) from error
    with bind(told.host, told.port) as listener:  # before the model is loaded: a taken port is said at once
        app = create_app(_engine(told), api_key=told.api_key, middleware=middleware, emulation=emulation, limits=told)
        server = make_server(app, lambda: announce(*listener.getsockname()[:2]) if announce else None, limits=told)
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


def make_server(
    app: ASGIApp,
    on_ready: Callable[[], None],
    limits: Limits | None = None,
    *,
    patience: float = 1.0,
    leaving: Callable[[], None] | None = None,
    left: Callable[[], Awaitable[None]] | None = None,
) -> Any:
    """A uvicorn server that calls back once it answers requests; run it with `run(sockets=[…])`.

    limits: those of connections are kept here, those of requests by the app. patience: seconds that requests get to end
    in, once it is told to stop. leaving, left: called in its event loop when it begins to stop, and when no request is
    left.
    """
    import uvicorn

    from blackbox_proxy.serve.connections import guarded_protocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if leaving is not None:
                leaving()
            await super().shutdown(sockets)
            if left is not None:
                await left()

    config = uvicorn.Config(
        app,
        http=guarded_protocol(limits or Limits()),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=math.ceil(patience),
    )
    return Server(config)


# -- the process of its own -----------------------------------------------------------------------------------------


def main() -> int:
    """`python -m blackbox_proxy.serve.host`, for `HostProcess`: it writes `HostOptions` as a line of JSON to standard
    input, where no list of processes shows the key, and reads the address from a line of JSON. The process ends when
    its standard input does.
    """
    options = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_at_eof, daemon=True).start()
    try:
        run_host(announce=_print_address, **options)
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
