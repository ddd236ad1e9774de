"""Other people's programs, unmodified, in an environment of their own (its bin folder: BLACKBOX_PROXY_CLIENTS)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from gateways import Gateway

from blackbox_proxy import ProxyTuner

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


def said(*command: str, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    known |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none", **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=known, check=False)
    assert done.returncode == 0, done.stderr
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
