"""Where a text is cut into tokens by every tokenizer in use, whatever its vocabulary: before words.

No tokenizer in use makes one token of the end of a word and the beginning of the next one, and a whole word that is a
token is cut as that token. So much is known of a tokenizer that nobody knows. Inside a word, among digits, signs and
white space nothing is: "20", "23" may be written so and read as "202", "3".
"""

from __future__ import annotations

from itertools import pairwise

_APOSTROPHES = "'’"  # "n't" and "'s" begin where no word does
REACH = 2  # characters before a token that tell


def stands_alone(before: str, token: str) -> bool:
    """Whether a text that ends with `before` (its last `REACH` characters will do), with this token of an unknown
    tokenizer behind it, is cut as before and then into this token.

    A token does that is a whole word, number or row of signs with a space before it, and stands after no space; one
    that is a word on a new line; and signs that follow a word.
    """
    body = token.removeprefix(" ")
    if not body or not before:
        return False
    word = body.isalpha() and not any(b.isupper() and not a.isupper() for a, b in pairwise(body))
    last = before[-1]
    if last == "\n":
        return word and len(before) > 1 and not before[-2].isspace()
    if last.isspace():
        return False
    signs = not any(c.isalnum() or c.isspace() or c in _APOSTROPHES for c in body)
    if body == token:
        return signs and last.isalnum()
    return word or signs or (body.isascii() and body.isdecimal())
