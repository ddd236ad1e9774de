"""Other people's programs, unmodified, in an environment of their own (its bin folder: BLACKBOX_PROXY_CLIENTS)."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateways import Gateway, Pairs, gateway

from blackbox_proxy import ProxyTuner, evaluate

pytestmark = pytest.mark.clients

QUESTION = "Where is the café?"

LANGCHAIN = """
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(model="tuned", base_url=URL, api_key="none", temperature=0, max_tokens=12)
whole = chat.invoke(QUESTION).content
assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole
found = chat.bind(logprobs=True, top_logprobs=3).invoke(QUESTION).response_metadata["logprobs"]["content"]
assert [len(token["top_logprobs"]) for token in found] == [3] * 12
print(ascii(whole))
"""
LITELLM = """
import litellm

asked = {"model": "openai/tuned", "api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": 12}
messages = [{"role": "user", "content": QUESTION}]
whole = litellm.completion(messages=messages, **asked).choices[0].message.content
stream = litellm.completion(messages=messages, stream=True, **asked)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
print(ascii(whole))
"""


@pytest.fixture
def programs() -> Path:
    folder = os.environ.get("BLACKBOX_PROXY_CLIENTS")
    if not folder:
        pytest.skip("set BLACKBOX_PROXY_CLIENTS to the bin folder of an environment with the programs")
    return Path(folder)


@pytest.fixture
def wanted(tuner: ProxyTuner) -> str:
    return tuner.generate(f"User: {QUESTION}\nAssistant:", max_tokens=12).text


def said(*command: str, at: Path | None = None, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    known |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none", **environment}
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=300, env=known, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


@pytest.mark.parametrize("script", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
def test_a_library_gets_the_tuned_text(running: Gateway, programs: Path, wanted: str, script: str) -> None:
    told = f"URL, QUESTION = {running.url + '/v1'!r}, {QUESTION!r}\n"
    assert said(str(programs / "python"), "-c", told + script).splitlines()[-1] == ascii(wanted)


def test_llm_gets_the_tuned_text(running: Gateway, programs: Path, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- model_id: tuned\n  model_name: tuned\n  api_base: "{running.url}/v1"\n'
    )
    command = ["-m", "tuned", "-o", "temperature", "0", "-o", "max_tokens", "12", "--no-log", "--no-stream", QUESTION]
    assert said(str(programs / "llm"), *command, LLM_USER_PATH=str(tmp_path)) == wanted.strip()


# -- lm-evaluation-harness: its figures are those of `eval` ----------------------------------------------------------

TEXTS = [
    {"prompt": "The mayor of New York", "text": " said that 20 people came."},
    {"prompt": "There they", "text": " were, in 2023, with the theory."},
    {"prompt": "A café", "text": " in the town"},
]
QUESTIONS = ("The mayor", "Where is the café?", "New York and", "20 people")
LIKELIHOOD = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: "{{text}}"
target_delimiter: ""
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""
GENERATION = """
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def harness(programs: Path, folder: Path, task: str, rows: list[dict[str, str]], *how: str) -> tuple[Any, list[Any]]:
    """What lm-evaluation-harness finds on these rows: the results of the task, and its samples in order."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(task.replace("FILE", str(folder / "rows.jsonl")))
    name = task.split()[1]
    command = ["run", "--tasks", name, "--include_path", str(folder), "--output_path", str(folder / "out")]
    said(
        *(str(programs / "lm-eval"), *command, "--log_samples", *how),
        HF_HOME=str(folder / "home"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
    )
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return json.loads(results.read_text())["results"][name], found


def test_the_harness_finds_the_likelihoods_of_eval(
    running: Gateway, programs: Path, models: dict[str, str], tuner: ProxyTuner, tmp_path: Path
) -> None:
    model = f"model=tuned,base_url={running.url}/v1/completions,tokenizer={models['base']},num_concurrent=4"
    figures, samples = harness(
        programs, tmp_path, LIKELIHOOD, TEXTS, "--model", "local-completions", "--model_args", model
    )
    ours = evaluate(tuner, TEXTS)
    log_p = [row.outcomes["tuned@1"].log_p[0] for row in ours.rows]
    assert [float(sample["resps"][0][0][0]) for sample in samples] == pytest.approx(log_p, abs=1e-3)
    assert figures["perplexity,none"] == pytest.approx(math.exp(-sum(log_p) / len(log_p)), rel=1e-3)


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_the_harness_finds_the_answers_of_eval(
    running: Gateway, programs: Path, models: dict[str, str], tuner: ProxyTuner, tmp_path: Path, chat: bool
) -> None:
    asked = [f"User: {question}\nAssistant:" if chat else question for question in QUESTIONS]
    right = [tuner.generate(prompt, max_tokens=8, stop=["\n"]).text for prompt in asked]
    answers = [right[0], "another", right[2], "another"]
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    route = "chat/completions" if chat else "completions"
    how = ["--model", f"local-{'chat-' if chat else ''}completions", *(["--apply_chat_template"] if chat else [])]
    model = f"model=tuned,base_url={running.url}/v1/{route},num_concurrent=4"
    model += ",eos_string=</s>" if chat else f",tokenizer={models['base']}"
    figures, samples = harness(programs, tmp_path, GENERATION, rows, *how, "--model_args", model)
    tasks = [{"prompt": prompt, "answer": a} for prompt, a in zip(asked, answers, strict=True)]
    ours = evaluate(tuner, tasks, max_tokens=8)
    assert [sample["resps"][0][0].strip() for sample in samples] == [row.outcomes["tuned@1"].said for row in ours.rows]
    line = ours.table("question").result("tuned@1")
    assert line is not None
    assert figures["exact_match,none"] == line.value == 0.5


# -- schemathesis: requests that fit the served description, and requests that do not ---------------------------------


def test_no_request_that_schemathesis_thinks_of_is_a_failure(
    programs: Path, models: dict[str, str], pairs: Pairs, hosted: Callable[[int], str], tmp_path: Path
) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with gateway(models, pairs, hosted(5), context=40) as running:  # what asks for no length gets no long text
        command = ["run", f"{running.url}/openapi.json", "--checks", checks, "--max-examples", "40", "--seed", "1"]
        command += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--continue-on-failure"]
        told = said(str(programs / "schemathesis"), *command, "--warnings", "off", at=tmp_path)
    assert "No issues found" in told
