"""Are estimates good enough? Each position of some texts, with the base's own candidates, scored by estimate (what
decoding does) and by the exact sums (`exact=True`): how often the choice is the same, and what each costs.

    python examples/real_models/agreement.py --base gemma-3-270m --expert smollm2-tuned --antiexpert smollm2 \
        --texts texts.txt --positions 50

The base runs here (any folder or hub id) and shows `--candidates` of them, as an API would. One text a paragraph.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blackbox_proxy import TransformersBase, TransformersPair
from blackbox_proxy.decoding.rows import Weigher, opened
from blackbox_proxy.decoding.weighed import Weighed
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.types import Position, Token


async def positions_of(base: TransformersBase, text: str, count: int) -> list[Position]:
    ids = list(base.prompt_ids(text))[: count + 1]
    return (await base.echo(ids))[1:]


def first_token(base: TransformersBase, text: str) -> str:
    """What of the text stands before the first position that is scored."""
    ids, written = iter(base.prompt_ids(text)), b""
    while not written:  # special tokens write nothing
        written = base.vocabulary.token_of(next(ids)).bytes or b""
    return written.decode("utf-8", "replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "expert", "antiexpert", "texts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--positions", type=int, default=50, help="of each text")
    parser.add_argument("--draft", type=int, default=16, help="positions scored at a time")
    parser.add_argument("--alpha", type=float, default=1.0)
    args = parser.parse_args()
    base = TransformersBase(args.base, top_logprobs=args.candidates, device="cpu")
    expert, antiexpert = (load_causal_lm(name, device="cpu") for name in (args.expert, args.antiexpert))
    texts = [text for text in Path(args.texts).read_text(encoding="utf-8").split("\n\n") if text.strip()]
    weighed: dict[bool, list[Weighed]] = {False: [], True: []}
    seconds = {False: 0.0, True: 0.0}
    nodes = 0
    for number, text in enumerate(texts, 1):
        positions = asyncio.run(positions_of(base, text, args.positions))
        prompt = first_token(base, text)
        for exact in (False, True):
            pair = TransformersPair(expert, antiexpert, exact=exact)
            weigher = Weigher([pair], (Equation((args.alpha,)),))
            begin = time.perf_counter()
            with opened([pair], prompt, base.vocabulary) as sessions:
                for start in range(0, len(positions), args.draft):
                    issued = [position.token for position in positions[:start]]
                    for scored in weigher.score(sessions, issued, positions[start : start + args.draft]):
                        weighed[exact].append(scored.under(0))
                if not exact:
                    nodes += getattr(sessions[0], "nodes", 0)
            seconds[exact] += time.perf_counter() - begin
        for j in range(-len(positions), 0):
            if chosen(weighed[False][j]).key != chosen(weighed[True][j]).key:
                show(positions[: len(positions) + j], weighed[False][j], weighed[True][j])
        same, worst = compare(weighed)
        count = len(weighed[True])
        print(
            f"{number}/{len(texts)} texts, {count} positions: {same} the same choice ({same / count:.1%}), worst "
            f"{worst:.3f} nats of score; {nodes / 2 / count:.2f} nodes a position and model; estimated "
            f"{seconds[False]:.1f} s, exact {seconds[True]:.1f} s",
            flush=True,
        )


def compare(weighed: dict[bool, list[Weighed]]) -> tuple[int, float]:
    """Positions with the same choice, and by how much the worst other choice is below the best, exactly summed."""
    same, worst = 0, 0.0
    for estimated, exact in zip(weighed[False], weighed[True], strict=True):
        same += chosen(estimated).key == chosen(exact).key
        worst = max(worst, lost(estimated, exact))
    return same, worst


def chosen(weighed: Weighed) -> Token:
    return weighed.tokens[int(np.argmax(weighed.log_p))]


def lost(estimated: Weighed, exact: Weighed) -> float:
    """Nats of score, exactly summed, of the best token over the one that is best by estimate."""
    index = exact.index_of(chosen(estimated))
    return 0.0 if index is None else float(np.max(exact.log_p) - exact.log_p[index])


def show(before: Sequence[Position], estimated: Weighed, exact: Weighed) -> None:
    """A place where the choices differ."""
    text = b"".join(position.token.bytes or b"" for position in before[-12:]).decode("utf-8", "replace")
    print(f"  after {text!r}: lost {lost(estimated, exact):.3f} nats")
    for name, found in (("estimated", estimated), ("exact", exact)):
        for i in np.argsort(-found.log_p)[:3]:
            one = found.scores[0]
            print(
                f"    {name:9} {found.tokens[int(i)].text!r}: log p {found.log_p[i]:.3f}, log q {found.log_q[i]:.3f}, "
                f"log E {one.log_expert[i]:.3f}, log A {one.log_antiexpert[i]:.3f}, {one.how[int(i)]}"
            )


if __name__ == "__main__":
    main()
