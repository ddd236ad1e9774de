"""What a process of its own runs: it lies where such a process finds it by its name."""

from __future__ import annotations

import os
import signal
import sys

from blackbox_proxy import cli


def in_process(arguments: list[str]) -> None:
    """`blackbox-proxy run …` as the whole of a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
    sys.argv = ["blackbox-proxy", "run", *arguments]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    cli.main()
