"""Bodies as the APIs answer them, and a vocabulary small enough to read."""

from __future__ import annotations

from typing import Any

from blackbox_proxy.text.prompts import as_text
from blackbox_proxy.text.vocabulary import Vocabulary
from blackbox_proxy.types import Rendering

WORDS = [b" the", b" cat", b"Hi", b"\xf0\x9f", " é".encode()]
END, TURN = 256 + len(WORDS), 257 + len(WORDS)


def make_vocabulary(bos: bool = False) -> Vocabulary:
    """Ids 0-255 are the bytes, then WORDS, then <|endoftext|> (the end) and <|im_start|>; `bos` puts 0x01 in front."""
    spelling = [bytes([byte]) for byte in range(256)] + WORDS

    def encode(text: str) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            best = max((i for i, s in enumerate(spelling) if rest.startswith(s)), key=lambda i: len(spelling[i]))
            ids.append(best)
            rest = rest[len(spelling[best]) :]
        return ids

    def render(prompt: Any, rendering: Rendering) -> list[int]:
        if rendering == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return [i for m in messages for i in (TURN, *encode(f"{m['role']}\n{m['content']}"))] + [TURN]
        return [*([1] if bos else []), *encode(as_text(prompt, rendering, None))]

    return Vocabulary(
        [*spelling, b"", b""],
        special={END: "<|endoftext|>", TURN: "<|im_start|>"},
        end_ids=[END],
        encode=lambda texts: [encode(text) for text in texts],
        pretokens=lambda text: [0] if text else [],
        render=render,
    )


def legacy(*rows: tuple[str, float | None, dict[str, Any]], text: str = "", finish: str | None = "length") -> Any:
    """A completion in the legacy shape; a row is (sampled token, its log probability, candidates)."""
    logprobs = {
        "tokens": [token for token, _, _ in rows],
        "token_logprobs": [logprob for _, logprob, _ in rows],
        "top_logprobs": [top for _, _, top in rows],
        "text_offset": list(range(len(rows))),
    }
    return {
        "choices": [{"text": text, "finish_reason": finish, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(rows), "total_tokens": 3 + len(rows)},
    }


def entry(token: str, logprob: float | None, spelled: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": spelled, **more}


def chat(*content: dict[str, Any], text: str | None = "", finish: str | None = "length") -> Any:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish, "logprobs": {"content": list(content)}}]}
