"""The server, the bases on it and the vocabulary that these tests share."""

from wire import _running, asking, server, vocabulary

__all__ = ["_running", "asking", "server", "vocabulary"]
