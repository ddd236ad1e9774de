"""The same real base behind real servers, on this machine: is the text the same, and what does it take?

    python examples/real_models/served.py --llama-server PATH/llama-server --vllm-python PATH/bin/python

The base runs in this process, in vLLM (from its folder), and in llama-server, from the GGUF file of fetch.py and from
the same in float32 (written first; it takes the package gguf). It writes on from the beginnings of Python modules,
alone and steered by the small models (the expert of domain.py, tuned first where it is not there). Where two texts
part, it is said whether the servers' own log probabilities explain it: since the pair is the same, scores may differ by
what log q does, and by no more than an estimate may be off where that decides nothing. Then the times: each text alone,
and `run` and `eval` with several at a time. --server vllm=http://127.0.0.1:8000/v1 takes one that runs already. What
cannot be had is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from domain import code_expert, held_out
from domain_adaptation import standard_library
from parts import Chain, chain, keep, models_folder, parser, run, say
from starting import CannotBeHad, Way, checked, command, in_float32, started, there, way

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, evaluate, run_job
from blackbox_proxy import tuner as tuners
from blackbox_proxy.dialects.table import DIALECTS
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.types import Prefix, Step

HERE, FLOAT32 = "in this process", "llama-server, float32"
TABLES = (
    ("base", "text", "log q apart, median", "at most", "same texts", "partings explained", "by at most"),
    ("base", "calls per token", "in no draft", "tokens/s alone", "steered", "first token alone", "steered"),
    ("base", "run", "eval, lines to write", "eval, given text"),
)
SAME = 0.02  # nats below which two scores count as equal
Spot = tuple[str, dict[str, float], dict[str, float]]  # the token taken; score and log q of those shown


# -- one after the other ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A greedy text: what was taken and shown at each place; seconds until its first token, and for all of it; requests
    that it took, and tokens of it that stood in no draft.
    """

    spots: tuple[Spot, ...]
    first: float
    seconds: float
    calls: int
    disagreed: int


def named(number: int | None, spelled: bytes | None, end: bool) -> str:
    """A token, the same for every server: two ids may be spelled alike."""
    return "the end" if end else f"{(spelled or b'').decode('utf-8', 'replace')!r} ({number})"


def raw(base: Base, prompt: str, tokens: int) -> Text:
    """The base's own stream, log probabilities and all, with nobody behind it."""

    async def read() -> Text:
        begin, first, spots, calls = time.perf_counter(), 0.0, list[Spot](), 0
        async for part in base.stream(Ask(Prefix(prompt), tokens)):
            first, calls = first or time.perf_counter() - begin, calls + part.usage.api_calls
            for place in part.positions:
                names = [named(token.id, token.bytes, token.end) for token in (place.token, *place.tokens)]
                shown = dict(zip(names[:0:-1], place.logprobs.tolist()[::-1], strict=True))  # the likeliest of one name
                spots.append((names[0], shown, shown))
        return Text(tuple(spots), first, time.perf_counter() - begin, calls, 0)

    return tuners.run(read())


def steered(tuner: ProxyTuner, prompt: str, tokens: int) -> Text:
    """The proxy's text. Its scores are log q + alpha (log E - log A), but for what all tokens have in common."""
    begin, first, steps = time.perf_counter(), 0.0, list[Step]()
    for step in tuner.stream(prompt, max_tokens=tokens):
        first = first or time.perf_counter() - begin
        steps.append(step)
    seconds, spots = time.perf_counter() - begin, list[Spot]()
    for step in steps:
        seen = [one for one in step.candidates if not one.tail]
        names = [named(one.token.id, one.token.bytes, one.token.end) for one in seen]
        scores, shown = (
            dict(zip(names, values, strict=True)) for values in ([c.log_p for c in seen], [c.log_q for c in seen])
        )
        spots.append((named(step.token_id, step.token, step.end), scores, shown))
    calls = sum(step.usage.api_calls for step in steps)
    return Text(tuple(spots), first, seconds, calls, sum(not step.drafted for step in steps))


@dataclass(frozen=True)
class Parting:
    """Where two texts part: after so many tokens; the tokens here and there; by how many nats here the one here is
    better, and there the one there; by how many nats of that log q does not account for the change (None: a token was
    not shown on both sides).
    """

    after: int
    here: str
    there: str
    better_here: float | None
    better_there: float | None
    unexplained: float | None

    @property
    def explained(self) -> bool:
        """Whether log q turned it over: what it leaves is too little to. The pair's scores of a token that is far from
        the best are estimates.
        """
        if self.better_here is None or self.better_there is None or self.unexplained is None:
            return False
        return self.unexplained <= SAME + max(0.0, min(self.better_here, self.better_there))


def compare(here: Text, there: Text) -> tuple[list[float], Parting | None]:
    """How far log q of the same tokens is apart as long as the texts are the same, and where they part, if they do."""
    apart: list[float] = []
    for after, ((a, s, q), (b, t, r)) in enumerate(zip(here.spots, there.spots, strict=False)):
        apart += [abs(q[token] - r[token]) for token in q.keys() & r.keys()]
        if a == b:
            continue
        better_here = s[a] - s[b] if a in s and b in s else None
        better_there = t[b] - t[a] if a in t and b in t else None
        left = None
        if better_here is not None and better_there is not None:
            left = abs(better_here + better_there - ((q[a] - r[a]) - (q[b] - r[b])))
        return apart, Parting(after, a, b, better_here, better_there, left)
    if (one := len(here.spots)) == (other := len(there.spots)):
        return apart, None
    return apart, Parting(min(one, other), f"{one} tokens", f"{other} tokens", None, None, None)


def agreement(name: str, what: str, here: Sequence[Text], there: Sequence[Text]) -> tuple[dict[str, Any], str]:
    """How like the texts are, for the JSON and as a row of the table; each parting is a line of progress."""
    pairs = [compare(*both) for both in zip(here, there, strict=True)]
    apart = [x for found, _ in pairs for x in found]
    partings = [parting for _, parting in pairs if parting]
    for parting in partings:
        say(f"{name}, {what}: {parting}")
    unlike = [max(p.better_here or 0.0, p.better_there or 0.0) for p in partings if p.unexplained is not None]
    median, most = (float(np.median(apart)), max(apart)) if apart else (0.0, 0.0)
    row = f"| {name} | {what} | {median:.3g} | {most:.3g} | {len(here) - len(partings)} of {len(here)} | "
    row += f"{sum(p.explained for p in partings)} of {len(partings)} | {f'{max(unlike):.3g}' if unlike else ''} |"
    return {"median": median, "most": most, "partings": [asdict(parting) for parting in partings]}, row


def times(name: str, alone: Sequence[Text], tuned: Sequence[Text]) -> tuple[dict[str, float], str]:
    """What texts took one after the other, for the JSON and as a row of the table."""
    of = [(sum(len(t.spots) for t in texts), sum(t.seconds for t in texts)) for texts in (alone, tuned)]
    count = of[1][0]
    found = {
        "calls_per_token": sum(t.calls for t in tuned) / count,
        "disagreed": sum(t.disagreed for t in tuned) / count,
        "raw_tokens_per_second": of[0][0] / of[0][1],
        "tokens_per_second": count / of[1][1],
        "raw_first": float(np.median([t.first for t in alone])),
        "first": float(np.median([t.first for t in tuned])),
    }
    calls, disagreed, *rest = found.values()
    cells = [f"{calls:.3f}", f"{disagreed:.1%}", *(f"{x:.1f}" for x in rest[:2]), *(f"{x:.2f} s" for x in rest[2:])]
    return found, f"| {name} | " + " | ".join(cells) + " |"


# -- many at a time ---------------------------------------------------------------------------------------------------


def bulk(
    tuner: ProxyTuner, name: str, modules: Sequence[tuple[str, str]], tokens: int, at_once: int
) -> tuple[dict[str, float | None], str]:
    """Seconds for each 1,000 tokens: of `run`; of `eval` of lines to be written (by the base and the proxy) and of
    given text (all four systems), the latter None where the base scores none.
    """
    vocabulary = tuner.base.vocabulary
    assert vocabulary is not None
    with tempfile.TemporaryDirectory() as folder:
        prompts, out = [prompt for prompt, _ in modules], Path(folder) / "out.jsonl"
        report = run_job(tuner, prompts, out, concurrency=at_once, max_tokens=tokens)
    if report.failed:
        raise BlackboxError(f"{report.failed} rows of run failed")
    found: dict[str, float | None] = {"run": 1000 * report.seconds / report.tokens, "lines": None, "given": None}
    lines = [{"prompt": prompt, "answer": text.splitlines()[0] or "-"} for prompt, text in modules]
    done = evaluate(tuner, lines, systems=["base", "tuned"], max_tokens=tokens, concurrency=at_once)
    written = sum(outcome.tokens for row in done.rows for outcome in row.outcomes.values())
    found["lines"] = 1000 * done.seconds / written
    if tuner.base.abilities.scores:
        rows = [{"prompt": prompt, "text": text} for prompt, text in modules]
        done = evaluate(tuner, rows, concurrency=at_once)
        found["given"] = 1000 * done.seconds / sum(map(len, vocabulary.encode([text.encode() for _, text in modules])))
    cells = ("" if x is None else f"{x:.0f} s" for x in found.values())
    return found, f"| {name} | {' | '.join(cells)} |"


# -- all of it --------------------------------------------------------------------------------------------------------


def ways(given: argparse.Namespace, ours: Chain) -> Iterator[Way]:
    """This process, then each server, which is ended before the next one begins."""
    yield Way(HERE, TransformersBase(ours.base, top_logprobs=given.shown, device="cpu"))
    models, wide = models_folder(given.models), ours.cache / "gemma-f32.gguf"
    narrow = given.gguf or models / "gemma.gguf"
    for name, kind, program, model in (
        ("llama-server", "llama-server", given.llama_server, lambda: there(narrow)),
        (FLOAT32, "llama-server", given.llama_server, lambda: in_float32(there(narrow), wide, models / "site")),
        ("vllm", "vllm", given.vllm_python, lambda: ours.base),
    ):
        with ExitStack() as until_next:
            try:
                start = command(kind, checked(program), str(model()), given.window, given.at_once)
                url = until_next.enter_context(started(name, start, ours.cache / f"{name}.log"))
                yield way(name, kind, url, ours.base, given.shown, given.window)
            except CannotBeHad as reason:
                say(f"Skipped: {name}: {reason}")
    for one in given.server:
        kind, _, url = one.partition("=")
        try:
            yield way(kind, kind, url, ours.base, given.shown, given.window)
        except CannotBeHad as reason:
            say(f"Skipped: {one}: {reason}")


def options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--expert", help="a tuned small model; by default that of domain.py")
    made.add_argument("--texts", type=int, default=280, help="that an expert which is not there yet learns from")
    made.add_argument("--llama-server", help="the program")
    made.add_argument("--vllm-python", help="the Python of an environment with vLLM")
    made.add_argument("--gguf", type=Path, help="for llama-server; by default what fetch.py wrote")
    made.add_argument("--server", action="append", default=[], metavar="DIALECT=URL", help="one that runs already")
    made.add_argument("--modules", type=int, default=6, help="that are begun")
    made.add_argument("--length", type=int, default=200, help="characters of a beginning, and of given text")
    made.add_argument("--tokens", type=int, default=24, help="to be written")
    made.add_argument("--shown", type=int, default=20, help="candidates")
    made.add_argument("--window", type=int, default=1024, help="of the servers, in tokens")
    made.add_argument("--at-once", type=int, default=2, help="rows of run and eval at a time")
    given = made.parse_args()
    for one in given.server:
        kind, _, url = one.partition("=")
        if kind not in DIALECTS or not url:
            raise InputError(f"--server {one} is no dialect and URL", hint="As vllm=http://127.0.0.1:8000/v1.")
    return given


def main() -> None:
    given = options()
    ours = chain(given, "served")
    say("reading the standard library")
    corpus = standard_library()
    expert = given.expert or code_expert(ours, corpus, given.texts)
    _, rows = held_out(corpus, 0, given.modules, 2 * given.length)
    modules = [(row["text"][: given.length], row["text"][given.length :]) for row in rows]
    pair = TransformersPair(expert, ours.small, device="cpu")
    measured: list[dict[str, Any]] = []
    tables: list[list[str]] = [[], [], []]
    here: list[list[Text]] = []
    for served in ways(given, ours):
        tuner, begin = ProxyTuner(served.base, pair), os.getloadavg()[0]
        tuner.generate(modules[0][0], max_tokens=4)  # connections, the alignment's caches, the first passes
        texts: list[list[Text]] = [[], []]
        for place, (prompt, _) in enumerate(modules):
            raw(served.base, prompt, 1)  # both meet a server that has read the prompt
            texts[0].append(raw(served.base, prompt, given.tokens))
            texts[1].append(steered(tuner, prompt, given.tokens))
            say(f"{served.name}: {place + 1} of {len(modules)} texts")
        here = here or texts
        found: dict[str, Any] = {"base": served.name, "version": served.version, "tokenizer": served.auto}
        for what, ours_here, theirs in zip(("alone", "steered"), here, texts, strict=True):
            if theirs is not ours_here:
                found[what], row = agreement(served.name, what, ours_here, theirs)
                tables[0].append(row)
        found["times"], row = times(served.name, *texts)
        tables[1].append(row)
        found["bulk"], row = bulk(tuner, served.name, modules, given.tokens, given.at_once)
        tables[2].append(row)
        measured.append(found | {"load": [begin, os.getloadavg()[0]]})
        keep(ours, expert, measured)
        tuners.run(served.base.aclose())
    pair.close()
    for found in measured[1:]:
        print(f'{found["base"]} {found["version"]}; tokenizer="auto": {found["tokenizer"]}')
    for heads, lines in zip(TABLES, tables, strict=True):
        if lines:
            print("\n" + "\n".join([f"| {' | '.join(heads)} |", f"| :-- {'| --: ' * (len(heads) - 1)}|", *lines]))


if __name__ == "__main__":
    run(main)
