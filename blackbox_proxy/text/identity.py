"""What tells two spellings apart: the part of a base's identity that API bases and local ones have in common.

What a cache keeps under an identity must be what any base with that identity would show, so everything that decides
which ids a prompt becomes belongs to it. Tokenizers are code as well as tables; here they are asked how they cut, and
a template how it renders, a text in which their habits differ.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering

_PROBE = "Two  words\n\n \t12345 6.7, don't I’LL Zürich naïve 日本語 e\u0301 ﬁ 👩‍💻 <s></s> def f(x):\n    return x "


@lru_cache(maxsize=64)
def spelling_identity(vocabulary: Vocabulary, rendering: Rendering) -> str:
    """A digest of ids, bytes, special and end tokens, of how text is cut, and of how a prompt is rendered."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    habits = [
        sorted(vocabulary.special.items()),
        sorted(vocabulary.end_ids),
        vocabulary.encode([_PROBE.encode()]),
        _rendered(vocabulary, rendering),
        _rendered(vocabulary, "chat"),  # chat APIs are asked with it in mind
    ]
    digest.update(json.dumps(habits).encode())
    return digest.hexdigest()[:32]


def _rendered(vocabulary: Vocabulary, rendering: Rendering) -> list[int] | str:
    prompt = _PROBE if rendering == "raw" else [{"role": "user", "content": _PROBE}]
    try:
        return [int(index) for index in vocabulary.prompt_ids(prompt, rendering)]
    except BlackboxError as error:  # no template: that is an answer, too
        return str(error)
