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
from pathlib import Path

import numpy as np

from blackbox_proxy import TransformersBase, TransformersPair
from blackbox_proxy.decoding.rows import Weigher, opened
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.types import Position


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
    weighed: dict[bool, list[tuple[object, dict[object, float]]]] = {False: [], True: []}
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
                        found = scored.under(0)
                        chosen = found.tokens[int(np.argmax(found.log_p))].key
                        masses = dict(zip((t.key for t in found.tokens), found.log_p.tolist(), strict=True))
                        weighed[exact].append((chosen, masses))
                if not exact:
                    nodes += getattr(sessions[0], "nodes", 0)
            seconds[exact] += time.perf_counter() - begin
        same, worst = compare(weighed)
        count = len(weighed[True])
        print(
            f"{number}/{len(texts)} texts, {count} positions: {same} the same choice ({same / count:.1%}), worst "
            f"{worst:.3f} nats of score; {nodes / 2 / count:.2f} nodes a position and model; estimated "
            f"{seconds[False]:.1f} s, exact {seconds[True]:.1f} s",
            flush=True,
        )


def compare(weighed: dict[bool, list[tuple[object, dict[object, float]]]]) -> tuple[int, float]:
    """Positions with the same choice, and by how much the worst other choice is below the best, exactly summed."""
    same, worst = 0, 0.0
    for (estimated, _), (exact, masses) in zip(weighed[False], weighed[True], strict=True):
        same += estimated == exact
        worst = max(worst, masses[exact] - masses.get(estimated, masses[exact]))
    return same, worst


if __name__ == "__main__":
    main()
