"""Rows of a file become tasks, by their fields alone; what cannot be one is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blackbox_proxy.errors import InputError
from blackbox_proxy.evaluation.tasks import (
    is_exact_match,
    normalised,
    read_prompts,
    read_tasks,
    task_of,
)

LETTERS = ("A", "B", "C", "D")

GOOD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "question and choices": (
        {"question": "Who? ", "choices": ["x", "y"], "answer": 1},
        {
            "kind": "choice",
            "prompt": "Question: Who?\nA. x\nB. y\nAnswer:",
            "options": ("A", "B"),
            "choices": ("x", "y"),
            "right": (1,),
        },
    ),
    "letter": ({"question": "Q", "choices": ["x", "y"], "answer": "b"}, {"right": (1,)}),
    "text": ({"question": "Q", "choices": ["x", "y"], "answer": "y"}, {"right": (1,)}),
    "text before letter": ({"question": "Q", "choices": ["B", "A"], "answer": "B"}, {"right": (0,)}),
    "text before index": ({"question": "Q", "choices": ["1", "0"], "answer": "1"}, {"right": (0,)}),
    "index as text": ({"question": "Q", "choices": ["x", "y"], "answer": "1"}, {"right": (1,)}),
    "several right": ({"question": "Q", "choices": ["x", "y", "z"], "answer": [0, "C"]}, {"right": (0, 2)}),
    "RealTimeQA": (
        {
            "question_id": "20230414_0",
            "question_date": "2023/04/13",
            "question_sentence": "How many?",
            "choices": ["3", "4", "5", "2", ""],
            "answer": ["2"],
            "evidence": "…",
        },
        {"id": "20230414_0", "right": (2,), "choices": ("3", "4", "5", "2"), "options": LETTERS},
    ),
    "own prompt": (
        {"prompt": "It is", "choices": ["red", " blue"], "answer": 0},
        {"prompt": "It is", "options": (" red", " blue"), "right": (0,)},
    ),
    "prompt with a space": ({"prompt": "It is ", "choices": ["r", "b"], "answer": 0}, {"options": ("r", "b")}),
    "messages": (
        {"messages": [{"role": "user", "content": "Q"}], "choices": ["A", "B"], "answer": "A"},
        {"prompt": [{"role": "user", "content": "Q"}], "options": ("A", "B")},
    ),
    "answer": (
        {"id": 7, "prompt": "2+2=", "answer": 4, "max_tokens": 3, "stop": "."},
        {"kind": "question", "id": 7, "answers": ("4",), "max_tokens": 3, "stop": (".",)},
    ),
    "answers": ({"question": "Q?", "answers": ["x", "y"]}, {"prompt": "Question: Q?\nAnswer:", "answers": ("x", "y")}),
    "text alone": ({"text": "Once."}, {"kind": "text", "prompt": "", "text": "Once."}),
    "text after a prompt": ({"prompt": "a", "text": " b"}, {"kind": "text", "prompt": "a", "text": " b"}),
}


@pytest.mark.parametrize("case", GOOD)
def test_tasks_are_known_by_their_fields(case: str) -> None:
    record, wanted = GOOD[case]
    task = task_of(record)
    assert {name: getattr(task, name) for name in wanted} == wanted


BAD: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "not JSON"),
    "no object": ("[1]", "object"),
    "no task": ('{"prompt": "a"}', "no task"),
    "two kinds": ('{"text": "a", "choices": ["a", "b"], "answer": 0}', "different kinds"),
    "one choice": ('{"question": "Q", "choices": ["a"], "answer": 0}', "at least two"),
    "same choices": ('{"question": "Q", "choices": ["a", "a"], "answer": 0}', "different"),
    "no answer": ('{"question": "Q", "choices": ["a", "b"]}', 'no "answer"'),
    "wrong answer": ('{"question": "Q", "choices": ["a", "b"], "answer": 2}', "none of its 2 choices"),
    "wrong letter": ('{"question": "Q", "choices": ["a", "b"], "answer": "C"}', "none of its 2 choices"),
    "empty answer": ('{"prompt": "Q", "answer": " "}', "answer is empty"),
    "empty prompt": ('{"prompt": "", "answer": "a"}', "prompt"),
    "two prompts": ('{"prompt": "a", "question": "b", "answer": "a"}', "both"),
    "empty text": ('{"text": ""}', "text"),
    "half a character": ('{"text": "\\ud800"}', "UTF-8"),
    "max_tokens": ('{"prompt": "a", "answer": "a", "max_tokens": 0}', "max_tokens"),
    "message": ('{"messages": [{"role": "user"}], "answer": "a"}', "message"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named_with_their_line(case: str, tmp_path: Path) -> None:
    line, reason = BAD[case]
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_tasks(path)
    assert "tasks.jsonl line 3: " in str(caught.value)
    assert reason in str(caught.value)
    assert "--skip-bad" in caught.value.hint
    left = read_tasks(path, skip_bad=True)
    assert (len(left.rows), len(left.bad)) == (1, 1)


def test_sources_without_tasks(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    sources: list[Any] = [tmp_path / "empty.jsonl", tmp_path / "nowhere.jsonl", []]
    for source in sources:
        with pytest.raises(InputError) as caught:
            read_tasks(source)
        assert caught.value.hint
    both = read_tasks([{"text": "a"}, {"prompt": "b", "answer": "c"}])
    assert both.kinds == ("question", "text")
    (tmp_path / "prompts.txt").write_text("one\\ntwo\n\nthree\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["one\ntwo", "three"]
    rows: list[dict[str, Any]] = [{"prompt": "x"}, {"question": "Q", "choices": ["a", "b"], "answer": 0}]
    assert read_prompts(rows)[0] == "x"


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], True),
        ("  an  apple\n", ["Apple!"], True),
        ("theatre", ["atre"], False),
        ("U.S.A.", ["usa"], True),
        ("42", ["41", "42"], True),
        ("", ["a b"], False),
        ("A", ["a"], True),
        ("b", ["A"], False),
        ("", ["A"], False),
    ],
)
def test_answers_are_compared_as_squad_does(said: str, answers: list[str], right: bool) -> None:
    assert is_exact_match(said, answers) is right
    assert normalised("A man, a plan — the canal!") == "man plan — canal"
