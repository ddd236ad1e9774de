"""Tasks from JSON lines, checked before anything is spent. What a row is shows in its fields:

    multiple choice   {"question": "…", "choices": ["…", …], "answer": 2 or "C" or "the text of a choice"}
                      {"prompt": "…", "choices": […], "answer": …}       the prompt as it is, each choice after a space
                      {"question_sentence": "…", "choices": […], "answer": ["2"]}           RealTimeQA's own format
    question          {"prompt" or "question": "…", "answer": "…"} or "answers": ["…", "…"], any of which is right
    log likelihood    {"prompt": "…", "text": "…"}, as they stand; without a prompt the text's first token is one

A "question" is put into the prompts below; a "prompt" is sent as it is, and "messages" may stand for it. Rows may have
an "id", questions to be answered in text a "max_tokens" and "stop" of their own. Other fields are passed over. One file
may hold rows of several kinds.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from blackbox_proxy.errors import InputError
from blackbox_proxy.text.reading import json_of, numbered_lines, text_lines
from blackbox_proxy.types import Prompt

Kind = Literal["choice", "question", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Metric = Literal["accuracy", "exact_match", "bits_per_byte"]
METRICS: dict[Kind, Metric] = {"choice": "accuracy", "question": "exact_match", "text": "bits_per_byte"}
"""What each kind is measured by; of bits per byte less is better, of the others more."""

LETTERS = string.ascii_uppercase
Source = Path | str | Sequence[Path | str] | Sequence[Mapping[str, Any]]
"""One or several .jsonl files, or rows in a sequence."""

_SHAPE = (
    'A row is {"question", "choices", "answer"}, {"prompt", "answer"} or {"prompt", "text"}; '
    "see `blackbox-proxy eval --help`."
)
_SHOWN = 10  # bad rows that an error names
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Task:
    """One row. `place` is for people ("tasks.jsonl line 3"). Of the rest only what its kind needs is set.

    options: what the model may answer ("A", "B" … for a question of ours); choices: what they stand for; right: which
    of them are right. answers: texts any of which is right. text: what is scored; its length in bytes is `size`.
    max_tokens, stop: None where the row has none of its own.
    """

    index: int
    place: str
    id: str | int | None
    kind: Kind
    prompt: Prompt = field(repr=False)
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    text: str = field(default="", repr=False)
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tasks:
    """All rows that can be used, and in words those that cannot."""

    rows: tuple[Task, ...]
    bad: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds there are, in the order of `KINDS`."""
        return kinds_of(self.rows)


def kinds_of(tasks: Iterable[Task]) -> tuple[Kind, ...]:
    """The kinds of these tasks, in the order of `KINDS`."""
    found = {task.kind for task in tasks}
    return tuple(kind for kind in KINDS if kind in found)


def read_tasks(
    source: Source, *, skip_bad: bool = False, check: Callable[[Task], None] = lambda _: None, limit: int | None = None
) -> Tasks:
    """Every row of the source. `check` may refuse a task by raising InputError. limit: the first rows only.

    Raises InputError that names the lines that cannot be used, unless they are skipped; and where there are no others.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 row, not {limit}", hint="Leave it out for all.")
    rows: list[Task] = []
    bad: list[str] = []
    for index, (place, read) in enumerate(_records(source)):
        if limit is not None and len(rows) == limit:
            break
        try:
            task = task_of(read(), index, place)
            check(task)
            rows.append(task)
        except InputError as error:
            bad.append(f"{place}: {error}")
    check_bad(bad, skip_bad)
    if not rows:
        raise InputError("there are no tasks", hint=_SHAPE)
    return Tasks(tuple(rows), tuple(bad))


def check_bad(bad: Sequence[str], skip_bad: bool) -> None:
    """Raise InputError that names the first rows that cannot be used, unless they are skipped."""
    if bad and not skip_bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"{len(bad)} of the rows cannot be used: {'; '.join(bad[:_SHOWN])}{more}",
            hint=f"{_SHAPE} Or leave them out with --skip-bad. Nothing was sent.",
        )


def read_prompts(source: Source) -> list[Prompt]:
    """The prompts of a source, whether or not its rows are tasks; a .txt file has one a line ("\\n" is a line break).

    Raises InputError.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix != ".jsonl":
        found: list[Prompt] = [*text_lines(Path(source), "the prompts")]
    else:
        found = []
        for place, read in _records(source):
            try:
                record = read()
                if not isinstance(record, Mapping):
                    raise InputError("a row is an object", hint=_SHAPE)
                given = {str(name): value for name, value in record.items() if value is not None}
                found.append(task_of(given).prompt if "choices" in given else _prompt(given))
            except InputError as error:
                raise InputError(f"{place}: {error}", hint=error.hint) from error
    if not found:
        raise InputError(f"there are no prompts in {source}", hint="One a line.")
    return found


# -- one row ----------------------------------------------------------------------------------------------------------


def task_of(record: Any, index: int = 0, place: str = "row 1") -> Task:
    """The task that a row stands for. Raises InputError that says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise InputError(f"a row is an object, not {json.dumps(record)[:40]}", hint=_SHAPE)
    given = {str(name): value for name, value in record.items() if value is not None}
    name = given.get("id", given.get("question_id"))
    if isinstance(name, bool) or not isinstance(name, (str, int, type(None))):
        raise InputError(f'"id" is text or a whole number, not {json.dumps(name)[:40]}', hint=_SHAPE)
    kind = _kind(given)
    if kind == "choice":
        return _choice(given, index, place, name)
    if kind == "text":
        text = given["text"]
        if not isinstance(text, str) or not text:
            raise InputError('"text" must be text of at least one character', hint=_SHAPE)
        return Task(index, place, name, kind, _prompt(given, empty=True), text=_whole(text))
    return Task(
        index,
        place,
        name,
        kind,
        _prompt(given),
        answers=_answers(given),
        max_tokens=_max_tokens(given.get("max_tokens")),
        stop=_stop(given.get("stop")),
    )


def _kind(given: Mapping[str, Any]) -> Kind:
    found = [name for name in ("choices", "text") if name in given]
    if len(found) == 2:
        raise InputError('it has "choices" and "text", which are different kinds of task', hint=_SHAPE)
    if "choices" in given:
        return "choice"
    if "text" in given:
        return "text"
    if "answer" in given or "answers" in given:
        return "question"
    raise InputError('it has neither "choices", "answer" nor "text", so it is no task', hint=_SHAPE)


def _choice(given: Mapping[str, Any], index: int, place: str, name: str | int | None) -> Task:
    choices = given["choices"]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        raise InputError('"choices" must be a list of at least two', hint=_SHAPE)
    published = "question_sentence" in given
    texts = tuple(_whole(str(choice)) for choice in choices)
    while published and texts and not texts[-1]:
        texts = texts[:-1]  # some of the published questions end with choices that are empty
    if not all(texts) or len(set(texts)) < len(texts):
        raise InputError('"choices" must be different texts, none of them empty', hint=_SHAPE)
    if "answer" not in given:
        raise InputError('it has "choices" but no "answer"', hint=_SHAPE)
    right = tuple(dict.fromkeys(_place(answer, texts, published) for answer in _listed(given["answer"])))
    if not right:
        raise InputError('"answer" is empty', hint=_SHAPE)
    if not {"question", "question_sentence"} & given.keys():
        prompt = _prompt(given)
        joined = isinstance(prompt, str) and not prompt[-1:].isspace()
        options = tuple(f" {text}" if joined and not text[:1].isspace() else text for text in texts)
        return Task(index, place, name, "choice", prompt, options, texts, right)
    if len(texts) > len(LETTERS):
        raise InputError(f"more than {len(LETTERS)} choices have no letters", hint="Give a prompt of your own.")
    options = tuple(LETTERS[: len(texts)])
    question = _question(given)
    lettered = "\n".join(f"{letter}. {text}" for letter, text in zip(options, texts, strict=True))
    return Task(index, place, name, "choice", f"Question: {question}\n{lettered}\nAnswer:", options, texts, right=right)


def _place(answer: Any, choices: Sequence[str], published: bool) -> int:
    """Which choice an answer means: a number is an index from 0; text is a choice, or its letter, or its index.

    In RealTimeQA's format text is always an index, also where the choices are numbers.
    """
    index: int | None = None
    if isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    elif isinstance(answer, str):
        text = answer.strip()
        if not published and answer in choices:
            index = choices.index(answer)
        elif not published and len(text) == 1 and text.upper() in LETTERS:
            index = LETTERS.index(text.upper())
        elif text.isascii() and text.isdigit():
            index = int(text)
    if index is None or not 0 <= index < len(choices):
        raise InputError(f"its answer {answer!r} is none of its {len(choices)} choices", hint=_SHAPE)
    return index


def _prompt(given: Mapping[str, Any], empty: bool = False) -> Prompt:
    found = [name for name in ("prompt", "question", "question_sentence", "messages") if name in given]
    if len(found) > 1:
        raise InputError(f"it has both {found[0]!r} and {found[1]!r}", hint=_SHAPE)
    if not found and empty:
        return ""
    if not found:
        raise InputError('it has no "prompt"', hint=_SHAPE)
    if found[0] == "messages":
        return _messages(given["messages"])
    if found[0] != "prompt":
        return f"Question: {_question(given)}\nAnswer:"
    if not isinstance(given["prompt"], str) or not (given["prompt"] or empty):
        raise InputError('"prompt" must be text of at least one character', hint=_SHAPE)
    return _whole(given["prompt"])


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('"messages" must be a list of at least one message', hint=_SHAPE)
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError('every message needs "role" and "content", both text', hint=_SHAPE)
        _whole(message["content"])
    return [dict(message) for message in messages]


def _question(given: Mapping[str, Any]) -> str:
    if "prompt" in given or "messages" in given:
        raise InputError("it has both a question and a prompt", hint=_SHAPE)
    question = given.get("question", given.get("question_sentence"))
    if not isinstance(question, str) or not question.strip():
        raise InputError("its question must be text of at least one character", hint=_SHAPE)
    return _whole(question).strip()


def _answers(given: Mapping[str, Any]) -> tuple[str, ...]:
    if "answer" in given and "answers" in given:
        raise InputError('it has both "answer" and "answers"', hint=_SHAPE)
    found = _listed(given.get("answers", given.get("answer")))
    numbers = (str, int, float)
    if not found or not all(isinstance(answer, numbers) and not isinstance(answer, bool) for answer in found):
        raise InputError("its answer must be text, a number, or a list of them", hint=_SHAPE)
    answers = tuple(_whole(str(answer)) for answer in found)
    if not all(normalised(answer) for answer in answers):
        raise InputError("its answer is empty", hint=_SHAPE)
    return answers


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _max_tokens(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"max_tokens must be a whole number of at least 1, not {value!r}", hint="Leave it out.")
    return value


def _stop(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = tuple(_listed(value))
    if not all(isinstance(text, str) and text for text in found):
        raise InputError("stop must be text or a list of texts, none of them empty", hint="Leave it out.")
    return found


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"it is not whole UTF-8 text at character {error.start}", hint=_SHAPE) from error
    return text


# -- right or wrong ---------------------------------------------------------------------------------------------------


def normalised(answer: str) -> str:
    """As SQuAD's official evaluation does: lower case, no punctuation, no articles, single spaces.

    But an answer that is nothing else ("A", "+") is left as it is, in lower case.
    """
    lower = answer.lower()
    text = "".join(character for character in lower if character not in string.punctuation)
    return next(filter(None, (" ".join(form.split()) for form in (_ARTICLES.sub(" ", text), text, lower))), "")


def is_exact_match(said: str, answers: Sequence[str]) -> bool:
    """Whether what was said equals one of the answers once both are normalised."""
    return normalised(said) in {normalised(answer) for answer in answers}


# -- files ------------------------------------------------------------------------------------------------------------


def _records(source: Source) -> Iterator[tuple[str, Callable[[], Any]]]:
    if isinstance(source, (str, Path)):
        yield from _lines(Path(source))
        return
    for number, item in enumerate(source, 1):
        if isinstance(item, (str, Path)):
            yield from _lines(Path(item))
        else:
            yield f"row {number}", _given(item)


def _lines(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for number, line in numbered_lines(path, "the tasks"):
        yield f"{path.name} line {number}", partial(json_of, line)


def _given(record: Any) -> Callable[[], Any]:
    return lambda: record
