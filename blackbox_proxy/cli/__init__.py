"""The command line: options in, library calls, text out. Heavy parts are imported by the command that needs them.

One module a group of commands; importing it adds them to the application, in the order in which help lists them.
"""

# ruff: noqa: F401, I001 (imported for what they add, in the order of the commands)
from blackbox_proxy.cli import decoding, chatting, choosing, evaluating, calibrating, tuning, serving, dialects
from blackbox_proxy.cli import probing, showing, reporting, caches, configuring
from blackbox_proxy.cli.app import app, main

__all__ = ["app", "main"]
