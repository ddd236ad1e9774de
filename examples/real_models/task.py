"""A task on real models: word problems, answered by a base that completes text, steered by a small tuned model.

    python examples/real_models/task.py

Problems are generated here, of several kinds. The anti-expert is the instructed small model, the expert the same tuned
on some kinds; weights are learned on other kinds, and exact match is measured on kinds that neither has seen. Every
system gets the same prompt, with the same three solved problems of the kinds that were learned (few-shot), and nothing
else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from parts import Part, Rows, chain, compare, expert, parser, run

from blackbox_proxy.tuning.train import Recipe

SHOTS = 3
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Kate", "Leo")
THINGS = ("apples", "books", "pencils", "stamps", "marbles", "cards", "shells", "buttons", "candles", "tickets")
Kind = Callable[[random.Random], tuple[str, int]]


def given_more(r: random.Random) -> tuple[str, int]:
    a, b, (one, other), thing = r.randint(3, 40), r.randint(3, 40), r.sample(NAMES, 2), r.choice(THINGS)
    return f"{one} has {a} {thing}. {other} gives {one} {b} more. How many {thing} does {one} have now?", a + b


def lost_some(r: random.Random) -> tuple[str, int]:
    a, name, thing = r.randint(10, 60), r.choice(NAMES), r.choice(THINGS)
    b = r.randint(2, a - 2)
    return f"{name} had {a} {thing} and lost {b} of them. How many {thing} are left?", a - b


def boxes(r: random.Random) -> tuple[str, int]:
    a, b, name, thing = r.randint(2, 10), r.randint(2, 10), r.choice(NAMES), r.choice(THINGS)
    return f"{name} buys {a} boxes. Each box holds {b} {thing}. How many {thing} are that?", a * b


def shared(r: random.Random) -> tuple[str, int]:
    a, b, name, thing = r.randint(2, 8), r.randint(2, 10), r.choice(NAMES), r.choice(THINGS)
    return f"{name} shares {a * b} {thing} equally among {a} friends. How many {thing} does each friend get?", b


def together(r: random.Random) -> tuple[str, int]:
    a, b, (one, other), thing = r.randint(3, 40), r.randint(3, 40), r.sample(NAMES, 2), r.choice(THINGS)
    return f"{one} has {a} {thing} and {other} has {b}. How many {thing} do they have together?", a + b


def bus(r: random.Random) -> tuple[str, int]:
    a, b = r.randint(10, 50), r.randint(2, 9)
    return (
        f"{a} people sit in a bus. At the next stop {b} of them get off. How many people are still in the bus?",
        a - b,
    )


def rows_of_seats(r: random.Random) -> tuple[str, int]:
    a, b = r.randint(2, 10), r.randint(2, 10)
    return f"A hall has {a} rows of seats with {b} seats in each row. How many seats does the hall have?", a * b


def farm(r: random.Random) -> tuple[str, int]:
    a, b = r.randint(5, 40), r.randint(5, 40)
    return f"On a farm there are {a} sheep and {b} cows. How many animals are there in all?", a + b


def taller(r: random.Random) -> tuple[str, int]:
    a, (one, other) = r.randint(12, 60), r.sample(NAMES, 2)
    b = r.randint(2, a - 4)
    return f"{one} is {a} years old. {other} is {b} years younger. How old is {other}?", a - b


def walk(r: random.Random) -> tuple[str, int]:
    a, b, name = r.randint(2, 9), r.randint(2, 9), r.choice(NAMES)
    return f"{name} walks {a} miles every day. How many miles does {name} walk in {b} days?", a * b


LEARNED: Sequence[Kind] = (given_more, lost_some, boxes, shared, together)
DEVELOP: Sequence[Kind] = (bus, rows_of_seats)
TEST: Sequence[Kind] = (farm, taller, walk)


def problems(kinds: Sequence[Kind], count: int, seed: str) -> Rows:
    """So many different problems, the kinds by turns, each after solved ones of the kinds that are learned: one that is
    to be learned from itself after up to 3 at random, others after the same 3.
    """
    rng, found = random.Random(seed), dict[str, dict[str, str]]()
    same = solved(random.Random("solved"), SHOTS)
    while len(found) < count:
        question, answer = kinds[len(found) % len(kinds)](rng)
        before = solved(rng, rng.randint(0, SHOTS)) if kinds is LEARNED else same
        found.setdefault(question, {"prompt": f"{before}Question: {question}\nAnswer:", "answer": str(answer)})
    return list(found.values())


def solved(rng: random.Random, count: int) -> str:
    """Problems of different kinds with their answers, as text."""
    asked = [kind(rng) for kind in rng.sample(LEARNED, count)]
    return "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in asked)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=int, default=160, help="that the expert learns from")
    options.add_argument("--test", type=int, default=120, help="problems that are asked")
    options.add_argument("--develop", type=int, default=16, help="problems that weights are learned from")
    options.add_argument("--shown", type=int, nargs="+", default=[5], help="candidates; 0: all")
    options.add_argument("--alpha", type=float, nargs="+", default=[1.0])
    given = options.parse_args()
    ours = chain(given, "task")
    recipe = Recipe(steps=max(1, given.problems // 4), batch=4, rate=1e-3, seed=ours.seed)
    tuned = expert(ours, "task", problems(LEARNED, given.problems, f"learn {ours.seed}"), recipe)
    develop = problems(DEVELOP, given.develop, f"develop {ours.seed}")
    test = problems(TEST, given.test, f"test {ours.seed}")
    compare(ours, tuned, [Part("Word problems", develop, test, given.shown, max_tokens=6)], given.alpha)


if __name__ == "__main__":
    run(main)
