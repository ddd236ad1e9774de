"""Start a real server with a model, wait until it answers, end it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.install import llama_server, python_of
from servers.toy_weights import CONTEXT

MODEL = "m"  # what the servers call it
_PATIENCE = {"vllm": 240.0, "llama-server": 60.0, "llama-cpp-python": 90.0}  # seconds until one must answer

_QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
_VLLM_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Served:
    """A running server: its kind, its API's root, what it says its version is, seconds that it took to answer."""

    kind: str
    base_url: str
    version: str
    seconds: float


def command(kind: str, models: Mapping[str, str], port: int) -> list[str]:
    """How a server is started with the toy base. `models`: as `make_models` gives them."""
    at = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "vllm":
        start = [str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", models["base"]]
        start += ["--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", str(CONTEXT)]
        return [*start, "--enforce-eager", *at]
    if kind == "llama-server":
        start = [str(llama_server()), "-m", models["gguf"], "--alias", MODEL, "-c", str(CONTEXT), "-np", "1"]
        # Keys and values are kept in 16 bits unless told otherwise, which moves log probabilities by 5e-3 nats here.
        return [*start, "-t", "1", "--no-webui", "-ctk", "f32", "-ctv", "f32", "-fa", "off", *at]
    start = [str(python_of("llama")), "-m", "llama_cpp.server", "--model", models["gguf"], "--model_alias", MODEL]
    start += ["--logits_all", "true", "--type_k", "0", "--type_v", "0"]  # float32, as above
    return [*start, "--n_threads", "1", "--n_ctx", str(CONTEXT), *at]


@contextmanager
def running(kind: str, models: Mapping[str, str], log: Path) -> Iterator[Served]:
    """A server for as long as the block lasts; what it writes goes to `log`. RuntimeError if it does not start."""
    port = _free_port()
    begun = time.monotonic()
    with log.open("wb") as written:
        process = subprocess.Popen(
            command(kind, models, port),
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_QUIET, **(_VLLM_CPU if kind == "vllm" else _libraries())},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(f"{url}/v1/models"):
                if process.poll() is not None or time.monotonic() - begun > _PATIENCE[kind]:
                    last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"{kind} did not start within {time.monotonic() - begun:.0f} s:\n{last}")
                time.sleep(0.25)
            yield Served(kind, f"{url}/v1", _version(kind, url), time.monotonic() - begun)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _libraries() -> dict[str, str]:
    """llama.cpp's, which llama-cpp-python shares with llama-server."""
    program = llama_server()
    return {} if program is None else {"LLAMA_CPP_LIB_PATH": str(program.parent)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _get(url: str) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=5) as answer:
        return json.load(answer)


def _answers(url: str) -> bool:
    try:
        return bool(_get(url)["data"])
    except (OSError, ValueError, KeyError):
        return False


def _version(kind: str, url: str) -> str:
    if kind == "vllm":
        return str(_get(f"{url}/version")["version"])
    if kind == "llama-server":
        return str(_get(f"{url}/props")["build_info"])
    found = sorted(python_of("llama").parents[1].glob("[Ll]ib/**/site-packages/llama_cpp_python-*.dist-info"))
    return found[-1].name.split("-")[1] if found else "?"
