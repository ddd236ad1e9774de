"""weights.json: learned weights, what they were learned for, and how much better they were there.

    {"format": "blackbox-proxy weights", "version": 1, "package": "0.1.0",
     "weights": {"base": …, "experts": […], "antiexperts": […], "tail": …, "rest": …, "spread": {…}},
     "for": {"base": …, "pairs": […], "top_logprobs": …, "tail": "backoff", "tail_size": 32, "prompts": […]},
     "found": {…}}

Weights mean nothing for other models, another k or another treatment of the tail; and a model that is shown its prompts
in another way (as its chat template writes them, or as they are) is another model. What can be told apart is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blackbox_proxy.base.local import fingerprint
from blackbox_proxy.errors import InputError
from blackbox_proxy.maths.weights import Spread, Weights
from blackbox_proxy.protocols import Base, Pair
from blackbox_proxy.version import __version__

FORMAT = "blackbox-proxy weights"
VERSION = 1
_COMPARED = {
    "base": "base",
    "pairs": "pair",
    "top_logprobs": "k",
    "tail": "tail",
    "tail_size": "tail size",
    "prompts": "way to show prompts",
}
_WEIGHTS = {"base", "experts", "antiexperts", "tail", "rest", "spread"}


@dataclass(frozen=True, slots=True)
class Difference:
    """Something is not what weights were learned for. sure: not where only names tell it, and a digest that the file
    has could tell otherwise once a model is loaded: the same weights may lie in another folder.
    """

    text: str
    sure: bool


@dataclass(frozen=True, slots=True)
class Learned:
    """A file's weights. models: what they were learned for; found: what `calibrate` said of them."""

    weights: Weights
    models: Mapping[str, Any]
    found: Mapping[str, Any]

    def check(self, models: Mapping[str, Any], what: str = "the weights") -> None:
        """Raise InputError if these are other models, as far as that can be told."""
        for different in self.differences(models):
            raise InputError(
                f"{what} were learned for {different.text}",
                hint="Run `blackbox-proxy calibrate` with what you use now.",
            )

    def differences(self, models: Mapping[str, Any]) -> Iterator[Difference]:
        """In what these models, k, tail and prompts are others than those that the weights were learned for."""
        for name, said in _COMPARED.items():
            one, other = self.models.get(name), models.get(name)
            if one is not None and other is not None and not _alike(one, other):
                yield Difference(f"another {said}: {_said(one)}, not {_said(other)}", not _only_named(one, other))


def models_of(base: Base, pairs: Sequence[Pair], tail: str, tail_size: int = 32) -> dict[str, Any]:
    """What weights are learned for: names, and of models that run here digests of the weights themselves."""
    identity = base.identity or {}
    shown = "chat" if identity.get("api") == "chat" else identity.get("rendering")
    return {
        "base": {"name": base.name, "digest": identity.get("weights")},
        "pairs": [_pair(pair) for pair in pairs],
        "top_logprobs": identity.get("top_logprobs"),
        **tail_of(tail, tail_size),
        "prompts": prompts_of(shown, [getattr(pair, "renderings", ()) for pair in pairs]),
    }


def tail_of(tail: str, tail_size: int) -> dict[str, Any]:
    """What is said of the tail. tail_size: which tokens are candidates, so that the rest is the rest; nothing where no
    tail is.
    """
    return {"tail": tail, "tail_size": None if tail == "truncate" else tail_size}


def prompts_of(base: object, pairs: Sequence[Sequence[object]]) -> list[str | None]:
    """How the base, and each model of each pair, is shown a prompt: raw or chat; None where that cannot be told, as of
    a function.
    """
    return [shown if isinstance(shown, str) else None for shown in (base, *(each for pair in pairs for each in pair))]


def _pair(pair: Pair) -> dict[str, Any]:
    models = getattr(pair, "models", None)
    digests = None if models is None else [fingerprint(lm.model) for lm, _ in models]
    named = repr(pair) if " at 0x" not in repr(pair) else type(pair).__name__
    return {"name": named, "digest": None if digests is None else "-".join(digest[:16] for digest in digests)}


def _alike(one: Any, other: Any) -> bool:
    if one is None or other is None:  # it cannot be told
        return True
    if isinstance(one, list):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping):  # the same weights may lie in another folder
        if one.get("digest") and other.get("digest"):
            return bool(one["digest"] == other["digest"])
        return bool(one.get("name") == other.get("name"))
    return bool(one == other)


def _only_named(one: Any, other: Any) -> bool:
    """Whether some model that differs by its name has a digest on one side only."""
    if isinstance(one, list):
        return len(one) == len(other) and all(
            _alike(a, b) or _only_named(a, b) for a, b in zip(one, other, strict=True)
        )
    return isinstance(one, Mapping) and bool(one.get("digest")) != bool(other.get("digest"))


def _said(models: Any) -> str:
    if isinstance(models, list):
        return " and ".join(_said(each) for each in models)
    if models is None:
        return "unknown"
    if isinstance(models, Mapping):
        return f"{models.get('name')}" + (f" ({models['digest'][:8]})" if models.get("digest") else "")
    return str(models)


def write_weights(path: Path | str, learned: Learned) -> None:
    """Raises InputError where the file cannot be written."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "weights": asdict(learned.weights),
        "for": dict(learned.models),
        "found": dict(learned.found),
    }
    try:
        Path(path).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", hint="Name another file.") from error


def read_learned(path: Path | str) -> Learned:
    """What a file says. Raises InputError for one that `calibrate` did not write, or a later version did."""
    try:
        record = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"the weights cannot be read from {path}: {error}", hint="Name another file.") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}", hint="Name a file that `calibrate` wrote.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path} holds no weights", hint="Name a file that `calibrate` wrote.")
    if record.get("version") != VERSION:
        raise InputError(
            f"{path} has weights of version {record.get('version')}, this reads {VERSION}",
            hint="Update blackbox-proxy.",
        )
    try:
        given = record["weights"]
        if set(given) != _WEIGHTS:
            raise ValueError(f"weights are {', '.join(sorted(_WEIGHTS))}")
        weights = Weights(
            float(given["base"]),
            tuple(float(each) for each in given["experts"]),
            tuple(None if each is None else float(each) for each in given["antiexperts"]),
            float(given["tail"]),
            float(given["rest"]),
            Spread(**given["spread"]),
        )
        return Learned(weights, record["for"], record.get("found") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", hint="Run `blackbox-proxy calibrate` again.") from error


def read_weights(
    path: Path | str, base: Base, pair: Pair | Sequence[Pair], *, tail: str = "backoff", tail_size: int = 32
) -> Weights:
    """The weights of a file, for these models. Raises InputError where they were learned for others."""
    learned = read_learned(path)
    pairs = tuple(pair) if isinstance(pair, Sequence) else (pair,)
    learned.check(models_of(base, pairs, tail, tail_size), f"the weights of {path}")
    return learned.weights
