"""Domain adaptation on real models: a base brought to Python's own source by a small expert, in bits per byte.

    python examples/real_models/domain.py

The small model is tuned on sections of the standard library's modules; base, expert and proxy are measured on modules
of packages that it has not read (the split of examples/domain_adaptation.py, by a hash of the package's name), with 5,
20 and all candidates shown. Weights are learned on every third of the held-out packages, and measured, as all else, on
the others. Intervals are over modules. Both real models had read public source before: what is measured is what the
tuning adds to that.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the split of the standard library is that of the tiny example

from domain_adaptation import Corpus, sections, standard_library
from parts import Chain, Part, Rows, chain, compare, expert, parser, run, say

from blackbox_proxy.tuning.train import Recipe

LEARNED = 1200  # characters of a text that the expert learns from


def training_rows(corpus: Corpus, count: int, seed: int) -> Rows:
    """Sections of modules, in random order."""
    pool = [part for text in corpus.code for part in sections(text, LEARNED, 3)]
    return [{"text": part} for part in random.Random(seed).sample(pool, min(count, len(pool)))]


def held_out(corpus: Corpus, develop: int, test: int, length: int) -> tuple[Rows, Rows]:
    """A section each of modules that were not read: of every third package to learn weights, of the others to measure.
    `develop` and `test` modules at most, spread over the packages.
    """
    packages = sorted({package_of(name) for name, _ in corpus.held_out})
    found: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for name, text in corpus.held_out:
        if part := sections(text, length, 1):
            found[packages.index(package_of(name)) % 3 > 0].append({"id": name, "text": part[0]})
    return spread(found[0], develop), spread(found[1], test)


def package_of(name: str) -> str:
    return name.split("/")[0]


def spread(rows: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """`count` of the rows, evenly."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def code_expert(chain: Chain, corpus: Corpus, texts: int) -> str:
    """The small model tuned on so many sections of modules."""
    recipe = Recipe(steps=max(1, texts // 2), batch=2, rate=1e-3, seed=chain.seed)
    return expert(chain, "domain", training_rows(corpus, texts, chain.seed), recipe)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--texts", type=int, default=280, help="that the expert learns from")
    options.add_argument("--modules", type=int, default=16, help="that are measured")
    options.add_argument("--develop", type=int, default=10, help="modules that weights are learned from")
    options.add_argument("--length", type=int, default=200, help="characters measured of a module")
    options.add_argument("--shown", type=int, nargs="+", default=[5, 20], help="candidates; 0: all")
    options.add_argument("--alpha", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    given = options.parse_args()
    ours = chain(given, "domain")
    say("reading the standard library")
    corpus = standard_library()
    tuned = code_expert(ours, corpus, given.texts)
    develop, test = held_out(corpus, given.develop, given.modules, given.length)
    compare(ours, tuned, [Part("Python source", develop, test, given.shown)], given.alpha)


if __name__ == "__main__":
    run(main)
