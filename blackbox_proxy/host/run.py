"""A local model, served: here, or in a process of its own for `HostProcess`.

    run_host("path-or-hub-id", port=8000, top_logprobs=5)

speaks OpenAI's wire format to any client, shows as little as the real API does, and says no in the same words.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from blackbox_proxy.door.running import bind, make_server, needing_server
from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.host.engine import engine_of
from blackbox_proxy.host.options import HostOptions

if TYPE_CHECKING:
    from starlette.middleware import Middleware


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
    with needing_server():
        import uvicorn  # noqa: F401

        from blackbox_proxy.serve.routes import create_app
    with bind(told.host, told.port) as listener:  # before the model is loaded: a taken port is said at once
        app = create_app(engine_of(told), api_key=told.api_key, middleware=middleware, emulation=emulation, limits=told)
        server = make_server(app, lambda: announce(*listener.getsockname()[:2]) if announce else None, limits=told)
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order and passes the signal on
            server.run(sockets=[listener])


# -- the process of its own -----------------------------------------------------------------------------------------


def main() -> int:
    """`python -m blackbox_proxy.host.run`, for `HostProcess`: it writes `HostOptions` as a line of JSON to standard
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
