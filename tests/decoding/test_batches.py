"""Many prompts at once: one that fails takes nothing of the others with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import pytest

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair
from blackbox_proxy.base.wrapper import BaseAround
from blackbox_proxy.errors import BadRequest, BlackboxError, InputError
from blackbox_proxy.protocols import Ask
from blackbox_proxy.types import Draft, Generation

PROMPTS = ["The mayor of", "New York", "In Zürich", "He went to", "東京は", "20 of"]
OPTIONS = {"max_tokens": 5}


class Refusing(BaseAround):
    """A base that refuses some prompts after a few tokens."""

    refuses: frozenset[object] = frozenset()

    async def draft(self, ask: Ask) -> Draft:
        self._refuse(ask)
        return await self.base.draft(ask)

    async def stream(self, ask: Ask) -> AsyncGenerator[Draft, None]:
        self._refuse(ask)
        async for part in self.base.stream(ask):
            yield part

    def _refuse(self, ask: Ask) -> None:
        if ask.prefix.prompt in self.refuses and ask.prefix.tokens:
            raise BadRequest(f"no more of {ask.prefix.prompt}")


@pytest.fixture
def tuner(models: dict[str, str], pairs: Callable[[str], TransformersPair]) -> ProxyTuner:
    return ProxyTuner(Refusing(TransformersBase(models["base"], device="cpu")), pairs("same"), draft=2)


def refuse(tuner: ProxyTuner, *prompts: str) -> None:
    assert isinstance(tuner.base, Refusing)
    tuner.base.refuses = frozenset(prompts)


def texts(found: list[Generation] | list[Generation | BlackboxError]) -> list[str]:
    return [each.text if isinstance(each, Generation) else type(each).__name__ for each in found]


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_an_error_stands_in_its_place(tuner: ProxyTuner, concurrency: int) -> None:
    whole = texts(tuner.generate_batch(PROMPTS, **OPTIONS))
    refuse(tuner, PROMPTS[1], PROMPTS[4])
    prompts = [*PROMPTS, ""]  # and one that cannot be asked at all
    found = tuner.generate_batch(prompts, concurrency=concurrency, return_exceptions=True, **OPTIONS)
    expected = [*whole, "InputError"]
    expected[1] = expected[4] = "BadRequest"
    assert texts(found) == expected
    assert isinstance(found[1], BadRequest)
    assert len(found[1].steps) > 0


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_an_error_that_ends_a_batch_has_what_was_finished(tuner: ProxyTuner, concurrency: int) -> None:
    whole = texts(tuner.generate_batch(PROMPTS, **OPTIONS))
    refuse(tuner, PROMPTS[2], PROMPTS[3])
    with pytest.raises(BadRequest) as caught:
        tuner.generate_batch(PROMPTS, concurrency=concurrency, **OPTIONS)
    error = caught.value
    assert {place: found.text for place, found in error.finished.items()} == {i: whole[i] for i in error.finished}
    assert len(error.steps) > 0
    begun = {1: {0, 1, 2}, 8: {0, 1, 2, 3, 4, 5}}.get(concurrency)
    places = {*error.finished, *error.failed, 2 if "Zürich" in str(error) else 3}
    assert {0, 1} <= error.finished.keys()
    assert begun is None or places == begun  # nothing that was begun is lost, and nothing is begun after an error


def test_without_return_exceptions_a_bad_prompt_is_said_before_anything_is_asked(tuner: ProxyTuner) -> None:
    refuse(tuner, *PROMPTS)
    with pytest.raises(InputError, match="empty") as caught:
        tuner.generate_batch([*PROMPTS, ""], **OPTIONS)
    assert (caught.value.finished, caught.value.failed, caught.value.steps) == ({}, {}, ())


def test_a_tuner_with_something_changed_is_the_same_in_all_else(tuner: ProxyTuner) -> None:
    made = ProxyTuner(tuner.base, tuner.pairs, 0.5, tail="floor", tail_size=3, draft=2, steer="bias")
    made.noted = "by a subclass"  # type: ignore[attr-defined]
    base = Refusing(tuner.base)
    other = made.altered(base=base)
    assert vars(other).keys() == vars(made).keys()
    changed = {name for name in vars(made) if vars(other)[name] is not vars(made)[name]}
    assert (changed, other.base) == ({"base", "_pace"}, base)
    other = made.altered(equation=made.equation.with_alpha(2.0), drafting=tuner.drafting)
    assert (other.equation.alphas, other.equation.tail_size, other.steer) == ((2.0,), 3, "bias")


def test_a_batch_of_nothing_is_nothing(tuner: ProxyTuner) -> None:
    assert tuner.generate_batch([]) == tuner.generate_batch([], return_exceptions=True) == []
