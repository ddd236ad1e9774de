"""examples/temporal_adaptation: what is left out and why, resumed training, the table, and (slow) the whole of it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from toys import words
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "examples" / "temporal_adaptation"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"temporal_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare = script("prepare")


# -- data in RealTimeQA's shape ---------------------------------------------------------------------------------------


def question(number: str, **changes: Any) -> dict[str, Any]:
    made = {
        "question_id": number,
        "question_date": f"{number[:4]}/{number[4:6]}/{number[6:8]}",
        "question_source": "CNN",
        "question_url": "https://example.org/quiz",
        "question_sentence": f"Which of these things happened in the matter of number {number}?",
        "choices": [f"this {number}", "that", "both", "neither"],
        "answer": ["1"],
        "evidence": "",
    }
    return {**made, **changes}


def retrieved(week: str, *results: dict[str, Any]) -> dict[str, Any]:
    return {"question_id": f"{week}_0", "search_time": "2023/01/07/05:11", "search_result": list(results)}


def story(seed: int, count: int = 150) -> str:
    """News that shares no run of words with other seeds."""
    rng = random.Random(seed)
    made = [f"{rng.choice('bdfgklmnprstvz')}{rng.choice('aeiou')}{rng.randrange(10**6)}" for _ in range(count)]
    return "\n\n".join(" ".join(made[i : i + 30]) for i in range(0, count, 30))


def article(url: str, text: str, published: str) -> dict[str, Any]:
    return {"url": url, "title": "t", "text": text, "authors": [], "publish_date": published}


def run(asked: list[Any], found: list[Any], **split: Any) -> Any:
    return prepare.prepare(asked, found, prepare.Split("2023-01-13", **split))


NEWS = article("https://www.cnn.com/2023/01/10/a/index.html", story(1), "2023/01/10")


@pytest.mark.parametrize(
    "url",
    [
        "http://cnn.com/2023/01/10/a",
        "https://edition.cnn.com/2023/01/10/a/index.html?utm_source=x&utm_medium=y#top",
        "https://www.cnn.com/2023/01/10/a/?fbclid=123",
        "https://WWW.CNN.com//2023/01/10/a/",
        "https://amp.cnn.com/2023/01/10/a/amp",
    ],
)
def test_the_same_page_under_another_url_is_not_held_out(url: str) -> None:
    made = run([], [retrieved("20230113", NEWS), retrieved("20230120", article(url, story(2), "2023/01/18"))])
    assert [a.text.split()[0] for a in made.train] == [story(1).split()[0]]
    assert made.held_out == []
    assert made.left_out["articles"] == {"the same page again": 1}


@pytest.mark.parametrize(
    ("url", "same"), [("https://a.org/story?id=1", False), ("https://a.org/story?id=2&utm_campaign=z", True)]
)
def test_a_query_that_names_the_page_counts(url: str, same: bool) -> None:
    assert (prepare.same_url(url) == prepare.same_url("http://www.a.org/story/?id=2")) is same


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        (story(1), False),  # a syndicated copy
        ("By Somebody Else, Associated Press\n\n" + story(1).upper() + "\n\nThe end.", False),
        ("\n\n".join([*story(1).split("\n\n")[:3], *story(2).split("\n\n")[:2]]), False),  # an updated story
        (" ".join(word if i % 25 else "changed" for i, word in enumerate(story(1).split())), False),  # near-duplicate
        (story(2), True),
        (story(2) + "\n\n" + " ".join(story(1).split()[:12]), True),  # a quotation
    ],
)
def test_near_duplicates_of_what_was_read_are_not_held_out(text: str, stays: bool) -> None:
    later = article("https://other.org/b", text, "2023/01/18")
    made = run([], [retrieved("20230113", NEWS), retrieved("20230120", later)])
    assert len(made.train) == 1
    assert len(made.held_out) == stays


def test_paragraphs_that_were_read_word_for_word_are_cut_out_of_what_is_held_out() -> None:
    teaser = "Get our weekly letter about everything that matters to people who read letters"
    early = article("https://a.org/1", f"{story(1)}\n\n{teaser}", "2023/01/10")
    late = article("https://a.org/2", f"{story(2)}\n\n{teaser}", "2023/01/18")
    made = run([], [retrieved("20230113", early), retrieved("20230120", late)])
    assert teaser in made.train[0].text
    assert teaser not in made.held_out[0].text


def test_articles_go_where_week_and_date_say() -> None:
    cases = [  # url, week, published, where
        ("old", "20230106", "2022/01/01", "background"),
        ("news", "20230106", "2023/01/05", "train"),
        ("updated-later", "20230106", "2023/01/16", ""),
        ("undated", "20230106", "", "background"),
        ("old-found-later", "20230120", "2023/01/10", ""),
        ("undated-later", "20230120", "", ""),
        ("late", "20230120", "2023/01/19", "held_out"),
        ("too-early", "20221230", "2023/01/05", ""),
        ("too-late", "20230127", "2023/01/25", ""),
    ]
    found = [retrieved(w, article(f"https://a.org/{u}", story(i), p)) for i, (u, w, p, _) in enumerate(cases)]
    made = run([], found, news_from="2023-01-01", train_from="2023-01-06", later_until="2023-01-20")
    where = {a.url: part for part in prepare.TEXTS for a in getattr(made, part)}
    where = {url: "background" if part == "control" else part for url, part in where.items()}
    assert {f"a.org/{u}": part for u, _, _, part in cases if part} == where
    assert sum(made.left_out["articles"].values()) == len(cases) - len(where)


def test_a_page_that_is_the_quiz_is_nobodys_text() -> None:
    asked = question("20230106_0")
    quiz = article("https://a.org/quiz", f"{story(3)}\n{asked['question_sentence'].upper()}", "2023/01/10")
    made = run([asked], [retrieved("20230113", NEWS, quiz)])
    assert len(made.train) == 1
    assert made.left_out["articles"] == {"holds one of the questions word for word": 1}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"choices": ["a", "b"]}, "not 4 choices"),
        ({"choices": ["a", "b", "c", "d", "e"]}, "not 4 choices"),
        ({"choices": ["a", "b", "c", " "]}, "an empty choice, or two alike"),
        ({"choices": ["a", "b", "c", "A"]}, "an empty choice, or two alike"),
        ({"choices": "abcd"}, "choices are no list of strings"),
        ({"choices": [1, 2, 3, 4]}, "choices are no list of strings"),
        ({"answer": []}, "not exactly one answer"),
        ({"answer": ["1", "2"]}, "not exactly one answer"),
        ({"answer": ["4"]}, "the answer is no index of a choice"),
        ({"answer": ["that"]}, "the answer is no index of a choice"),
        ({"question_sentence": " "}, "no question_sentence"),
        ({"question_id": "seven"}, "no question_id with a date"),
        ({"answer": "2"}, ""),  # some weeks were published like this
    ],
)
def test_malformed_questions_are_dropped_with_their_reason(changes: dict[str, Any], why: str) -> None:
    made = run([question("20230106_0"), question("20230106_1", **changes)], [])
    assert len(made.questions) == (1 if why else 2)
    assert made.left_out["questions"] == ({why: 1} if why else {})


def test_questions_are_asked_once_and_told_apart_by_week() -> None:
    first, again = question("20230106_0"), question("20230106_0") | {"question_id": "20230120_5"}
    made = run([again, first, question("20230120_1")], [])
    assert [(q.id, q.part) for q in made.questions] == [("20230106_0", "read"), ("20230120_1", "later")]
    assert made.left_out["questions"] == {"asked before": 1}


def test_text_is_cleaned() -> None:
    dirty = (
        "CNN —\n\nIt&rsquo;s <b>true</b>.<script>x = 1;</script>\r\nIt’s  true.\nAd Feedback\n"
        "How relevant is this ad to you?\n\x07Two.\nThe last one is long."
    )
    assert prepare.clean(dirty, 1000) == "It’s true .\nIt’s true.\nTwo.\nThe last one is long."
    assert prepare.clean(dirty, 30) == "It’s true .\nIt’s true.\nTwo."


def written(folder: Path) -> list[str]:
    """Files as published, one of each packing; the arguments of prepare.py."""
    qa = [question(f"{week}_{i}") for week in ("20230106", "20230120") for i in range(4)]
    (folder / "qa.jsonl").write_text("\n".join(map(json.dumps, [*qa, question("20230106_9", choices=[])])))
    early = [article(f"https://a.org/{i}", story(i), "2023/01/10") for i in range(30)]
    with lzma.open(folder / "a.jsonl.xz", "wt") as packed:
        packed.write(json.dumps(retrieved("20230113", *early)))
    late = [article(f"https://a.org/{i}", story(i), "2023/01/18") for i in range(50, 53)]
    with gzip.open(folder / "b.jsonl.gz", "wt") as packed:
        packed.write(json.dumps(retrieved("20230120", *late)))
    files = ["--questions", folder / "qa.jsonl", "--articles", folder / "a.jsonl.xz", folder / "b.jsonl.gz"]
    return [*map(str, files), "--train-until", "2023-01-13"]


def test_prepare_writes_the_same_bytes_again_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path)
    for name in ("one", "two"):
        prepare.main([*arguments, "-o", str(tmp_path / name)])
    said = capsys.readouterr().out
    assert "30 articles" in said
    assert "1 not 4 choices" in said
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with pytest.raises(SystemExit):
        prepare.main([*arguments[:-1], "next week", "-o", str(tmp_path)])
    (tmp_path / "qa.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(SystemExit, match="line 2"):
        prepare.main([*arguments, "-o", str(tmp_path)])


# -- the expert -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("news") / "train.jsonl"
    rows = [{"text": words(i, 60), "published": f"2023-01-{i + 1:02d}"} for i in range(28)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tune() -> Iterator[Callable[..., dict[str, Any]]]:
    from transformers.utils import logging

    module = script("tune_expert")

    def run(*arguments: object) -> dict[str, Any]:
        steps = ("--batch-size=2", "--block=24", "--max-steps=6", "--save-every=2", "--learning-rate=1e-2", "--quiet")
        module.main([*map(str, arguments), *steps])
        facts: dict[str, Any] = json.loads(
            (Path(str(arguments[arguments.index("-o") + 1])) / "training.json").read_text()
        )
        return facts

    yield run
    logging.set_verbosity_warning()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own use of transformers
@pytest.mark.parametrize("lora", [("--gradient-checkpointing",), ("--lora=4",)], ids=["whole", "lora"])
def test_a_resumed_run_ends_with_the_same_weights(
    lora: tuple[str, ...], models: dict[str, str], news: Path, tune: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    start = (news, "--model", models["base"], *lora, "-o")
    facts = tune(*start, tmp_path / "whole", "--antiexpert", tmp_path / "before")
    with pytest.raises(SystemExit, match="stopped at step 3 of 6"):
        tune(*start, tmp_path / "parts", "--stop-at=3")
    with pytest.raises(SystemExit, match="--resume"):
        tune(*start, tmp_path / "parts")
    with pytest.raises(SystemExit, match="other settings"):
        tune(*start, tmp_path / "parts", "--resume", "--seed=1")
    again = tune(*start, tmp_path / "parts", "--resume")
    one, two, before = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts", "before"))
    assert one.keys() == two.keys() == before.keys() == load_file(Path(models["base"]) / "model.safetensors").keys()
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != before[name]).any() for name in one)
    assert facts["loss_after"] == again["loss_after"] != facts["loss_before"]
    assert facts["loss_after"]["nats_per_token"] < facts["loss_before"]["nats_per_token"]
    assert facts["texts"] == 27
    assert facts["published"] == ["2023-01-01", "2023-01-28"]
    assert not (tmp_path / "parts" / "checkpoints").exists()
    card = (tmp_path / "whole" / "README.md").read_text()
    assert f"base_model: {models['base']}" in card
    assert f"{facts['loss_after']['bits_per_byte']:.4f}" in card


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    prepare.main([*written(tmp_path), "-o", str(folder)])
    for name in ("held_out", "train"):
        rows = [{"text": words(seed, 20)} for seed in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def table(base: str, url: str, asked: Path, *options: object) -> tuple[str, dict[str, Any]]:
    evaluate = script("evaluate")
    out = asked / "out.json"
    arguments = (asked / "questions.jsonl", "--base", base, "--base-url", url, *options, "--json", out)
    done = CliRunner().invoke(evaluate.app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output, json.loads(out.read_text())


def test_all_systems_over_one_cache(
    models: dict[str, str], hosted: Callable[[int], str], asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    pair = ("--expert", models["digits-expert"], "--antiexpert", models["digits-antiexpert"], "--device=cpu")
    options = (*pair, "--dialect=host", "--tokenizer", models["base"], "--cache", "--cache-file", asked / "c.sqlite")
    texts = ("--texts", asked / "held_out.jsonl", "--texts", asked / "train.jsonl")
    said, found = table("big", hosted(5), asked, *options, *texts, "--alpha=0", "--alpha=1", "--alpha=40")
    rows = {row["system"]: row for row in found["questions"]}
    assert list(rows) == ["base", "expert alone", "anti-expert alone", *(f"proxy, alpha {a}" for a in (0, 1, 40))]
    assert all(row["n"] == 4 for row in rows.values())
    same = {**rows["proxy, alpha 0"], "system": "base"}
    assert same == rows["base"]
    assert found["usage"]["api_calls"] == 4
    assert found["dropped_before"] == {"not 4 choices": 1}
    assert "1 not 4 choices" in said
    for name in ("held_out", "train"):
        measured = {row["system"]: row for row in found["texts"][name]["rows"]}
        base, none = measured["base"], measured["proxy, alpha 0"]
        assert none["bits_per_byte"]["value"] == pytest.approx(base["bits_per_byte"]["value"], rel=0.2)
        one = measured["proxy, alpha 1"]
        difference = base["bits_per_byte"]["value"] - one["bits_per_byte"]["value"]
        assert one["fewer_than_base"]["value"] == pytest.approx(difference)
        assert one["fewer_than_base"]["interval"][0] <= difference <= one["fewer_than_base"]["interval"][1]
    saved = [found["texts"][name]["rows"][-2]["fewer_than_base"]["value"] for name in ("held_out", "train")]
    more = found["saved_more"]["proxy, alpha 1"]
    assert more["value"] == pytest.approx(saved[0] - saved[1])
    assert more["interval"][0] <= more["value"] <= more["interval"][1]
    _, again = table("big", hosted(5), asked, *options, "--alpha=1", "--alpha=3")
    assert again["usage"]["api_calls"] == 0
    assert again["usage"]["cached_positions"] == 4
    assert {row["system"]: row for row in again["questions"]}["proxy, alpha 1"] == rows["proxy, alpha 1"]


def test_an_api_that_scores_nothing_says_so_and_prices_are_counted(
    models: dict[str, str], hosted: Callable[[int], str], asked: Path
) -> None:
    pair = ("--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device=cpu")
    options = ("--no-cache", "--texts", asked / "held_out.jsonl", "--part=all", "--prices=1,1,1")
    said, found = table("big", hosted(5), asked, *pair, *options)
    assert found["questions"][0]["n"] == 8
    assert "does not score given text" in said
    usage = found["usage"]
    assert f"cost {usage['prompt_tokens'] + usage['completion_tokens']}" in said
    assert found["texts"] == {}


def test_a_chat_is_asked_for_one_token_and_the_pair_sees_plain_text(
    models: dict[str, str], hosted: Callable[[int], str], asked: Path
) -> None:
    from blackbox_proxy.door.running import serve_in_thread
    from blackbox_proxy.host.engine import open_engine
    from blackbox_proxy.serve.routes import create_app

    pair = ("--expert", models["same-expert"], "--antiexpert", models["same-antiexpert"], "--device=cpu", "--no-cache")
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    engine = open_engine(models["base"], served_model_name="big", chat_template=template, device="cpu")
    with serve_in_thread(create_app(engine)) as url:
        _, chat = table("big", f"{url}/v1", asked, *pair, "--api=chat", "--dialect=openai")
    _, plain = table("big", hosted(5), asked, *pair)
    assert chat["usage"]["api_calls"] == 4
    evaluate, (row, *_) = script("evaluate"), prepare.rows([asked / "questions.jsonl"])
    in_chat, raw = (evaluate.prompt_of(row, evaluate.TEMPLATE, chat) for chat in (True, False))
    assert in_chat[0]["content"].startswith(raw)
    assert evaluate.text_of(in_chat) == raw
    for place in (1, 2):  # expert and anti-expert alone
        assert chat["questions"][place]["accuracy"] == plain["questions"][place]["accuracy"]


def test_what_the_table_says_in_words() -> None:
    evaluate = script("evaluate")
    right = [i % 4 for i in range(80)]
    wrong: list[int | None] = [(i + 1) % 4 for i in right]
    chosen = {"base": right[:40] + wrong[40:], "expert": [*right], "antiexpert": [*wrong], "tuned": [None] * 80}
    rows = evaluate.question_rows(evaluate.Answers(right, chosen))
    assert [row["accuracy"] for row in rows] == [0.5, 1.0, 0.0, 0.0]
    assert rows[3]["abstained"] == 80
    assert (rows[1]["only_this_right"], rows[1]["only_base_right"]) == (40, 0)
    assert rows[1]["mcnemar_p"] == pytest.approx(2 / 2**40)
    assert rows[1]["t"] == pytest.approx(79**0.5)
    said = " ".join(evaluate.in_words(rows))
    assert "worse than the base" in said
    assert "expert alone does better" in said


# -- the whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tiny_setting_runs_on_the_real_sample(tmp_path: Path, realtimeqa: Path) -> None:
    """Also what its README claims: on later articles the tuned base needs fewer bits than the base."""
    command = [sys.executable, str(FOLDER / "tiny.py"), "--data", str(realtimeqa), "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    found = json.loads((tmp_path / "results.json").read_text())
    for row in found["texts"]["held_out"]["rows"]:
        if row["system"] in ("proxy, alpha 0.5", "proxy, alpha 1"):
            assert row["fewer_than_base"]["interval"][0] > 0
    assert re.search(r"all of it: \d+ s", done.stdout)
