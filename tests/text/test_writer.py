"""Text is released in whole characters, never past a stop string, and all of it in the end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blackbox_proxy.text.writer import Writer


def run(pieces: list[bytes], stop: list[str]) -> tuple[str, bool]:
    writer = Writer(stop)
    text = ""
    for piece in pieces:
        released, stopped = writer.write(piece)
        text += released
        if stopped:
            return text, True
    return text + writer.close(), False


def test_a_character_is_released_when_it_is_whole() -> None:
    writer = Writer()
    released = [writer.write(piece)[0] for piece in (b"a\xf0", b"\x9f\x91", b"\x8d", b"b")]
    assert released == ["a", "", "👍", "b"]


def test_stop_strings_are_found_across_tokens_and_not_shown() -> None:
    assert run([b"one tw", b"o th", b"ree four"], ["two three"]) == ("one ", True)
    assert run([b"one tw", b"elve"], ["two"]) == ("one twelve", False)
    assert run([b"aab"], ["ab", "a"]) == ("", True)


def test_bytes_of_no_character_are_left_out() -> None:
    assert run([b"a\xff", b"b\x80c", b"\xe2\x80"], []) == ("abc", False)


@given(
    st.text("abé ", max_size=20),
    st.lists(st.integers(0, 25), max_size=6),
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
)
def test_any_cut_of_the_bytes_gives_the_same_text(text: str, cuts: list[int], stop: list[str]) -> None:
    data = text.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found, stopped = run([data[a:b] for a, b in pairwise(places)], stop)
    first = min((place for place in (text.find(s) for s in stop) if place >= 0), default=None)
    # which of two overlapping stop strings is completed first depends on the cut only when both are in sight at once
    if first is None:
        assert (found, stopped) == (text, False)
    else:
        assert stopped
        assert text.startswith(found)
        assert any(text[len(found) :].startswith(s) for s in stop)
