"""Which token means which option: " A", "A", "(A", "a" and "A." are all forms of the option "A".

The rule, in three steps of which the first that fits any option decides: the token without white space around it; then
without one opening bracket or quote before it and without closing brackets, quotes and punctuation after it; then
without regard to case. A token that fits two options in the deciding step counts for neither. Pure, no arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from blackbox_proxy.errors import InputError
from blackbox_proxy.text.vocabulary import Vocabulary, VocabularyTokens
from blackbox_proxy.types import Position, Token

_OPENING = "([{<\"'“‘«`"
_CLOSING = ")]}>\"'”’»`.,:;!?"
_SHORT = 5  # letters of one word that are taken to be one token where the base's spelling is unknown


def trimmed(text: str) -> str:
    """Without white space around it, one opening bracket or quote before it, and what closes after it."""
    bare = text.strip()
    if len(bare) > 1 and bare[0] in _OPENING:
        bare = bare[1:]
    return bare.rstrip(_CLOSING).strip()


_STEPS: tuple[Callable[[str], str], ...] = (str.strip, trimmed, lambda text: trimmed(text).casefold())


@dataclass(frozen=True)
class Forms:
    """The options of a question, and how their tokens are recognised.

    `loose`: by the rule above; else a token must be an option exactly as it stands. `first`: a token that is only the
    beginning of one option, and of no other, counts for it, too. Raises InputError where two options are the same.
    """

    options: tuple[str, ...]
    loose: bool = True
    first: bool = False

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise InputError("there must be at least two options", hint="Give all of the answers to choose from.")
        spelled = [option.strip() if self.loose else option for option in self.options]
        if not all(spelled):
            raise InputError("an option is empty", hint="Leave it out, or give its text.")
        twice = next((option for i, option in enumerate(spelled) if option in spelled[:i]), None)
        if twice is not None:
            raise InputError(f"the option {twice!r} is given twice", hint="Options must differ.")

    def option_of(self, text: str) -> int | None:
        """The option that a token of this text counts for; None where it is none or several."""
        if not self.loose:
            steps: tuple[Callable[[str], str], ...] = (str,)
        else:
            steps = _STEPS
        for step in steps:
            form = step(text)
            found = [i for i, option in enumerate(self.options) if form and step(option) == form]
            if found:
                return found[0] if len(found) == 1 else None
        if not self.first:
            return None
        for step in steps:
            form = step(text)
            found = [i for i, option in enumerate(self.options) if form and step(option).startswith(form)]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def spellings(self, option: int) -> list[str]:
        """The usual forms of an option, for a base whose vocabulary is unknown."""
        text = self.options[option]
        return [f" {text.strip()}", text.strip()] if self.loose else [text]

    def dressed_like(self, text: str, option: int, other: int) -> str | None:
        """The form of `other` that corresponds to the form `text` of `option`: " B)" for " A)"."""
        core, instead = self.options[option].strip(), self.options[other].strip()
        place = text.casefold().find(core.casefold())
        if place < 0 or len(text.casefold()) != len(text):
            return None
        written = text[place : place + len(core)]
        if written == core.lower() != core:
            instead = instead.lower()
        return text[:place] + instead + text[place + len(core) :]

    # -- known vocabularies ---------------------------------------------------------------------------------------

    def tokens(self, vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
        """Per option the ids of all its forms."""
        return _forms_in(self, vocabulary)

    def single(self, vocabulary: Vocabulary | None) -> bool:
        """Whether every option is one token: has a form in the vocabulary; where that is unknown, is a short word."""
        if vocabulary is not None:
            exact = self if not self.first else Forms(self.options, self.loose)
            return all(exact.tokens(vocabulary))
        return all(len(core) <= _SHORT and not any(c.isspace() for c in core) for core in map(trimmed, self.options))

    def check_first_tokens(self, vocabulary: Vocabulary | None) -> None:
        """Raise InputError where the first tokens of two options may be the same."""
        for i, option in enumerate(self.options):
            text = option.strip() if self.loose else option
            if vocabulary is None:
                firsts = [text.split()[0]]
            else:
                variants = [text, f" {text}"] if self.loose else [text]
                firsts = [cut.decode("utf-8", "replace") for cut in vocabulary.first([v.encode() for v in variants])]
            mistaken = next((first for first in firsts if self.option_of(first) != i and first.strip()), None)
            if mistaken is not None:
                raise InputError(
                    f"options of several tokens, and {mistaken!r}, the first of {option!r}, does not tell it apart",
                    hint="Letter the options (A, B, …) and ask for the letter, or use an API that scores given text.",
                )


@lru_cache(maxsize=64)
def _forms_in(forms: Forms, vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    longest = max(len(option.encode()) for option in forms.options) + 8  # white space, brackets, punctuation
    found: list[list[int]] = [[] for _ in forms.options]
    for index, spelling in enumerate(vocabulary.spelling):
        if not spelling or len(spelling) > longest:
            continue
        try:
            option = forms.option_of(spelling.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        if option is not None:
            found[option].append(index)
    return tuple(tuple(ids) for ids in found)


def text_of(token: Token) -> str | None:
    """A token's text for comparison with options; None where it is not whole text, or the end."""
    if token.end:
        return None
    if token.bytes is None:
        return token.text if token.text and "\ufffd" not in token.text else None
    try:
        return token.bytes.decode("utf-8") or None
    except UnicodeDecodeError:
        return None


class ShownForms:
    """The forms of each option that the base shows, and those that it might have shown."""

    def __init__(self, vocabulary: Vocabulary | None, forms: Forms, position: Position | None) -> None:
        self.forms = forms
        self.position = position
        self.found: list[list[tuple[Token, float]]] = [[] for _ in forms.options]
        if vocabulary is None:
            self.known = [
                [Token(bytes=text.encode(), text=text) for text in forms.spellings(i)]
                for i in range(len(forms.options))
            ]
        else:
            self.known = [[vocabulary.token_of(index) for index in ids] for ids in forms.tokens(vocabulary)]
        if position is not None:
            self._find(position)
        self.missing = tuple(i for i, found in enumerate(self.found) if not found)

    def _find(self, position: Position) -> None:
        by_key = {token.key: i for i, tokens in enumerate(self.known) for token in tokens}
        if isinstance(position.tokens, VocabularyTokens):
            ids = [int(value) for kind, value in by_key if kind == "id" and isinstance(value, int)]
            places = [int(j) for j in np.flatnonzero(np.isin(position.tokens.ids, ids))]
        else:
            places = list(range(len(position.tokens)))
        for j in places:
            token = position.tokens[j]
            text = text_of(token)
            option = by_key.get(token.key)
            if option is None and text is not None:
                option = self.forms.option_of(text)
            if option is not None and math.isfinite(position.logprobs[j]):
                self.found[option].append((token, float(position.logprobs[j])))

    def all_forms(self, option: int) -> list[Token]:
        """Shown ones first; of several tokens with the same bytes, one."""
        distinct: dict[object, Token] = {}
        for token in (*(token for token, _ in self.found[option]), *self.known[option]):
            distinct.setdefault(token.key if token.bytes is None else token.bytes, token)
        return list(distinct.values())

    def ahead(self, learned: bool) -> Position:
        """What the pair is asked about: the forms that matter most, the candidates, the other forms.

        A vocabulary that is being learned must only see what the base has shown.
        """
        tokens = [] if self.position is None else list(self.position.tokens[:256])
        if not learned:
            forms = [self.all_forms(i) for i in range(len(self.found))]
            first = [form[0] for form in forms if form]
            tokens = list(
                {token.key: token for token in (*first, *tokens, *(t for form in forms for t in form))}.values()
            )
        return Position.ahead(tokens)
