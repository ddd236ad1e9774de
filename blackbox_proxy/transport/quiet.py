"""What the HTTP libraries log, without what is secret: at DEBUG they print bodies, and what a server says."""

from __future__ import annotations

import logging

import httpx2
import openai

from blackbox_proxy.secrets import hidden

_LIBRARIES = (openai.__name__, httpx2.__name__, "httpcore2", "asyncio")


class _Quiet(logging.Filter):
    """Takes what is secret out of the records of one logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        clean = hidden(said)
        if clean != said:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_text is None:
            told = logging.Formatter().formatException(record.exc_info)
            if hidden(told) != told:
                record.exc_text, record.exc_info = hidden(told), None
        return True


_QUIET = _Quiet()


def quieten() -> None:
    """Have the libraries' loggers show no secrets, those that exist by now."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LIBRARIES:
            logger = logging.getLogger(name)
            if _QUIET not in logger.filters:
                logger.addFilter(_QUIET)
