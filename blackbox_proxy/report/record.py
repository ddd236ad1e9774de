"""A `Generation` as plain data for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from blackbox_proxy.types import Candidate, Generation, Step


def generation_record(generation: Generation, candidates: int = 5) -> dict[str, Any]:
    """Text, finish reason (with the server's own, see `Step`), usage, tail policy and every step with its likeliest
    `candidates`; log values in nats.

    `changed_share`: the share of steps whose most likely token under p is not the base's.
    """
    steps = [step_record(step, candidates) for step in generation.steps]
    changed = [step.changed for step in generation.steps]
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "reason": generation.reason,
        "usage": asdict(generation.usage),
        "tail": generation.tail,
        "changed_share": sum(changed) / len(changed) if changed else 0.0,
        "steps": steps,
    }


def step_record(step: Step, candidates: int = 5) -> dict[str, Any]:
    """One step; a token that is not whole UTF-8 is given by its bytes as well."""
    return {
        **_spelling(step.token),
        "id": step.token_id,
        "end": step.end,
        "drafted": step.drafted,
        "local": step.local,
        "changed": step.changed,
        "covered_mass": step.covered_mass,
        "candidates": [candidate_record(candidate) for candidate in step.candidates[:candidates]],
    }


def candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {
        **_spelling(candidate.token.bytes or b"", candidate.token.text),
        "id": candidate.token.id,
        "end": candidate.token.end,
        "log_q": _number(candidate.log_q),
        "log_expert": _number(candidate.log_expert),
        "log_antiexpert": _number(candidate.log_antiexpert),
        "log_p": _number(candidate.log_p),
        "tail": candidate.tail,
        "how": candidate.how,
    }


def _spelling(token: bytes, text: str = "") -> dict[str, Any]:
    try:
        return {"token": token.decode("utf-8") or text}
    except UnicodeDecodeError:
        return {"token": text or token.decode("utf-8", "replace"), "bytes": list(token)}


def _number(value: float) -> float | None:
    """JSON has no infinities: what could not be scored is null."""
    return value if math.isfinite(value) else None
