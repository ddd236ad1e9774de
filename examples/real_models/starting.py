"""Real servers for served.py: started with the base, waited for, opened, ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from parts import say

from blackbox_proxy import open_base
from blackbox_proxy.protocols import Base

MODEL = "base"  # what the servers call it
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
VLLM_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
PATIENCE = 300.0  # seconds until a server that was started must answer


class CannotBeHad(Exception):
    """A server is not to be had, for the reason it says."""


def checked(program: str | None) -> str:
    """Raises CannotBeHad."""
    if program is None:
        raise CannotBeHad("neither a program nor an address was given")
    if not Path(program).is_file():
        raise CannotBeHad(f"there is no program {program}")
    return program


def there(path: Path) -> Path:
    """Raises CannotBeHad."""
    if not path.is_file():
        raise CannotBeHad(f"there is no GGUF file {path}")
    return path


def command(kind: str, program: str, model: str, window: int, at_once: int) -> list[str]:
    """How a server is started with a model, a folder or (llama-server) a GGUF file: one thread, and 32 bits for what it
    keeps of a text, as in this process.
    """
    at = ["--host", "127.0.0.1", "--port", str(free_port())]
    if kind == "vllm":
        start = [program, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *at, "--enforce-eager"]
        return [*start, "--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", str(window)]
    # Repacked, quantised weights are multiplied otherwise one token at a time than many: numbers then move by 0.1 nats.
    start = [program, "-m", model, "--alias", MODEL, *at, "-t", "1", "-tb", "1", "--no-webui", "--no-repack"]
    return [*start, "-c", str(window * at_once), "-np", str(at_once), "-ctk", "f32", "-ctv", "f32", "-fa", "off"]


@contextmanager
def started(name: str, arguments: Sequence[str], log: Path) -> Iterator[str]:
    """A server of this command for as long as the block lasts; its URL. Raises CannotBeHad."""
    url = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}/v1"
    begin, environment = time.monotonic(), {**os.environ, **QUIET, **VLLM_CPU}
    environment.pop("PYTHONPATH", None)  # this project is no part of the server
    with log.open("wb") as written:
        process = subprocess.Popen(arguments, stdout=written, stderr=subprocess.STDOUT, env=environment)
    try:
        while not listed(url):
            if process.poll() is not None or time.monotonic() - begin > PATIENCE:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise CannotBeHad(f"it did not start ({log}): {' '.join(last)}")
            time.sleep(0.25)
        say(f"{name} answers after {time.monotonic() - begin:.0f} s")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fetched(url: str) -> Any:
    """The JSON behind a URL of this machine; None where there is none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def listed(url: str) -> str | None:
    """The name of the first model that a server lists."""
    found = fetched(f"{url}/models")
    return str(found["data"][0]["id"]) if isinstance(found, dict) and found.get("data") else None


def version(kind: str, url: str) -> str:
    """What a server says that it is."""
    route, name = ("version", "version") if kind == "vllm" else ("props", "build_info")
    found = fetched(f"{url.removesuffix('/v1')}/{route}")
    return str(found.get(name, "?")) if isinstance(found, dict) else "?"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_float32(path: Path, out: Path, site: Path) -> Path:
    """The same GGUF file with all its numbers in 32 bits, made once. site: where the package gguf is, if not installed.
    Raises CannotBeHad.
    """
    if out.is_file():
        return out
    sys.path.append(str(site))
    try:
        gguf: Any = import_module("gguf")
    except ImportError as error:
        raise CannotBeHad("writing a GGUF file takes the package gguf: pip install gguf") from error
    say(f"writing {out}")
    read, part = gguf.GGUFReader(path), out.with_name(f"{out.name}.part")
    written = gguf.GGUFWriter(part, read.fields["general.architecture"].contents())
    for field in read.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            value = 0 if field.name == "general.file_type" else field.contents()  # 0: float32
            of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            written.add_key_value(field.name, value, field.types[0], sub_type=of)
    for tensor in read.tensors:
        written.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    for write in (written.write_header_to_file, written.write_kv_data_to_file, written.write_tensors_to_file):
        write()
    written.close()
    return part.replace(out)


# -- as a base ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A base that can be asked: what serves it, its version, and what was found of a tokenizer that is not named."""

    name: str
    base: Base
    version: str = ""
    auto: str = ""


def way(name: str, kind: str, url: str, folder: str, shown: int, window: int) -> Way:
    """The base behind a server. Raises CannotBeHad."""
    model = listed(url)
    if model is None:
        raise CannotBeHad(f"{url} lists no model")
    asked: dict[str, Any] = {"base_url": url, "dialect": kind, "top_logprobs": shown, "context": window}
    found = open_base(model, **asked).vocabulary
    base = open_base(model, **asked, timeout=600.0, tokenizer=folder)
    assert base.vocabulary is not None
    alike = found is not None and found.spelling == base.vocabulary.spelling
    return Way(name, base, version(kind, url), "not found" if found is None else "found" if alike else "found another")
