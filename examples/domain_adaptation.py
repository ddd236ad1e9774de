"""Domain adaptation: a base that has read prose, brought to code by a small expert, in bits per byte.

    python examples/domain_adaptation.py

Nothing is downloaded: prose is what Python's standard library says of itself (help topics, docstrings, comments,
licence), code is its source. Four tiny models are trained once, a few minutes on two cores, and kept in the user's
cache folder: a base and a smaller pair with another tokenizer read the prose, with a little code as any prose has; the
expert goes on with code. The base reads the same code only to show the ceiling, "base tuned directly". All of them are
then measured on source files of packages that none has read.

The base is a black box that scores given text and shows its top 5 or all log probabilities. p must be normalised over
whatever could come, shown or not, or bits would be too few. With all log probabilities it is. With fewer, what the base
hides counts as one event, weighted as the pair weighs what it would put there (whole_vocabulary.py): an estimate of Z.
The example prints how far the two are apart; where both are there, believe the line "all".

With real models (folders or hub ids; the base in this process, or behind an API that scores given text):

    python examples/domain_adaptation.py --base meta-llama/Llama-2-13b-hf --expert codellama/CodeLlama-7b-Python-hf \\
        --antiexpert meta-llama/Llama-2-7b-hf --direct codellama/CodeLlama-13b-Python-hf --texts my-project/src/*.py
    python examples/domain_adaptation.py --base big-model --base-url http://localhost:8000/v1 --dialect vllm \\
        --tokenizer path/to/its/tokenizer --expert … --antiexpert … --texts my-project/src/*.py

Give them texts of your own: every model on the hub has read the standard library.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: busy machines make spinning threads slow
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track
from rich.table import Table

from blackbox_proxy import TransformersBase, TransformersPair, open_base
from blackbox_proxy.answers import scoring
from blackbox_proxy.cli.app import quiet_transformers
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.statistics import bootstrap_interval
from blackbox_proxy.maths.equation import Equation
from blackbox_proxy.models.loading import load_causal_lm
from blackbox_proxy.protocols import Base
from blackbox_proxy.text.reading import own_text
from blackbox_proxy.types import Prefix

FORMAT = 1  # raise it when the code below makes other models of the same plan
WINDOW = 256
END = "<|endoftext|>"
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "__pycache__"}
SPLITS = {  # how text is cut before byte pairs are merged: as GPT-2 does, but digit by digit, or words with their "_"
    "big": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "small": r" ?[\p{L}_]+| ?\p{N}+| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+",
}
NAMES = {"big": ("base", "direct"), "small": ("antiexpert", "expert")}


@dataclass(frozen=True)
class Size:
    """One Llama and what it reads: bytes of prose, then of code; `rates` are the learning rates of the two lessons."""

    vocabulary: int
    hidden: int
    layers: int
    prose: int
    code: int
    rates: tuple[float, float] = (3e-3, 2e-3)


@dataclass(frozen=True)
class Plan:
    """All that decides what the four models become, but for the text."""

    seed: int = 0
    quick: bool = False
    little: float = 0.01  # the share of code in prose
    big: Size = Size(1536, 96, 3, 1_000_000, 1_200_000)
    small: Size = Size(1280, 80, 2, 1_000_000, 1_200_000)


QUICK = Plan(quick=True, big=Size(512, 48, 1, 50_000, 50_000), small=Size(400, 32, 1, 50_000, 50_000))


# -- the texts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """`held_out`: (name, source) of modules that nothing else here is taken from."""

    prose: tuple[str, ...]
    code: tuple[str, ...]
    held_out: tuple[tuple[str, str], ...]


def standard_library(every: int = 1) -> Corpus:
    """This Python's own text and source; of the source every so many files. A package is either read or held out as a
    whole, by a hash of its name, and a held-out file with lines that were read elsewhere is left out.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    read: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    paths = [path for path in sorted(folder.rglob("*.py")) if not LEFT_OUT & set(path.relative_to(folder).parts)]
    for path in [path for path in paths if 1_000 <= path.stat().st_size <= 300_000][::every]:
        parts = path.relative_to(folder).parts
        text = source(path)
        if text is not None:
            package = parts[0].removesuffix(".py").lstrip("_")
            kept_out = hashlib.sha256(package.encode()).digest()[0] % 8 == 0
            (held_out if kept_out else read).append((path.relative_to(folder).as_posix(), text))
    known = set().union(*(long_lines(text) for _, text in read))
    new = [(name, text) for name, text in held_out if len(own := long_lines(text)) > 10 * len(own & known)]
    from pydoc_data.topics import topics

    licence = folder / "LICENSE.txt"
    prose = [*topics.values(), *([licence.read_text(encoding="utf-8")] if licence.is_file() else [])]
    prose = [without_examples(text) for text in prose]
    prose += [said for _, text in read if (said := said_in(text))]
    return Corpus(tuple(prose), tuple(text for _, text in read), tuple(new))


def source(path: Path) -> str | None:
    """What stands in a file; None for one that is no Python of today."""
    try:
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return None
    return text


def said_in(text: str) -> str:
    """The docstrings and whole-line comments of a source file, without examples."""
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    blocks = re.findall(r"(?:^[ \t]*#.*\n)+", text, re.MULTILINE)
    found += [re.sub(r"^[ \t]*#+ ?", "", block, flags=re.MULTILINE).strip() for block in blocks]
    return "\n\n".join(part for part in map(without_examples, found) if len(part) > 60)


def without_examples(text: str) -> str:
    """What a text says in prose: no prompts of the interpreter, and no indented lines, which are examples mostly."""
    return "\n".join(line for line in text.splitlines() if not line.startswith((" " * 3, "\t", ">>>", "..."))).strip()


def long_lines(text: str) -> set[str]:
    return {line for line in map(str.strip, text.splitlines()) if len(line) >= 30}


def sections(text: str, length: int, count: int) -> list[str]:
    """`count` pieces of about `length` characters, each from the beginning of a line, spread over the text."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    latest = max(0, len(text) - length)
    found: list[tuple[int, str]] = []
    for i in range(count):
        wanted = latest * (i + 1) // (count + 1)
        start = max(start for start in starts if start <= wanted)
        piece = text[start : start + length].rstrip()
        if len(piece) > length // 2 and not any(start < begun + length for begun, _ in found):
            found.append((start, piece))
    return [piece for _, piece in found]


# -- the models -------------------------------------------------------------------------------------------------------


def some(texts: Sequence[str], size: int, rng: random.Random) -> list[str]:
    """Texts in random order, over and over, until they hold `size` characters; the last is cut."""
    found: list[str] = []
    while size > 0:
        for text in rng.sample(texts, len(texts)):
            found.append(text[:size])
            size -= len(text)
            if size <= 0:
                break
    return found


def new_tokenizer(which: str, size: int, texts: Sequence[str]) -> Any:
    """Byte-level BPE; id 0 ends a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(SPLITS[which]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def blocks(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The texts one after the other, each with its end, cut into windows."""
    stream = [index for ids in tokenizer(list(texts))["input_ids"] for index in (*ids, 0)]
    return [stream[i : i + WINDOW] for i in range(0, len(stream) - WINDOW // 2, WINDOW)]


def train(which: str, plan: Plan, corpus: Corpus, folder: Path) -> None:
    """Both lessons of one tokenizer's two models, each saved as an ordinary Hugging Face folder."""
    import torch

    from blackbox_proxy.demo.recipe import Student
    from blackbox_proxy.demo.training import new_model, read

    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    size: Size = getattr(plan, which)
    rng = random.Random(plan.seed)  # the same for both: big and small read the same texts
    prose = some(corpus.prose, round(size.prose * (1 - plan.little)), rng)
    prose += some(corpus.code, round(size.prose * plan.little), rng)
    code = some(corpus.code, size.code, rng)
    tokenizer = new_tokenizer(which, size.vocabulary, [*prose, *code])  # the pieces exist before there is use for them
    inner = 8 * round(size.hidden / 3)
    model = new_model(Student(size.vocabulary, size.hidden, size.layers, 4, inner, 1, 0.0, 1, 0.0, 0.0), plan.seed)
    for name, texts, rate in zip(NAMES[which], (prose, code), size.rates, strict=True):
        start, shown = time.monotonic(), -1

        def told(done: float, name: str = name, start: float = start) -> None:
            nonlocal shown
            if (tenth := int(10 * done)) != shown:
                shown = tenth
                print(f"{name}: {10 * tenth} %, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

        options: dict[str, Any] = {"batch": 8, "smoothing": 0.0, "decay": 0.05, "rng": rng}
        read(model, [blocks(tokenizer, texts)], rate=rate, told=told, **options)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def models(plan: Plan, corpus: Corpus, cache: Path) -> Path:
    """The folder with the four models: from the cache, or trained now, big and small at the same time (very small ones
    in this process).
    """
    text = json.dumps([FORMAT, asdict(plan), SPLITS, WINDOW, corpus.prose, corpus.code])
    folder = cache / f"code-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    processes = []
    try:
        (draft / "corpus.json").write_text(json.dumps(asdict(corpus)), encoding="utf-8")
        (draft / "plan.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
        for which in NAMES:
            if plan.quick:
                train_in(draft, which)
                continue
            command = [sys.executable, __file__, "--train", which, "--models", str(draft)]
            environment = dict(os.environ, OMP_NUM_THREADS="1")
            processes.append(subprocess.Popen(command, env=environment))
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit("the models could not be trained")
        (draft / "corpus.json").unlink()
        with suppress(OSError):  # another process may have been faster: its models are the same
            draft.rename(folder)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def train_in(folder: Path, which: str) -> None:
    """What a training process does: read the corpus and the plan that `models` left in the folder."""
    corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    sizes = {name: Size(**plan[name]) for name in NAMES}
    train(which, Plan(**{**plan, **sizes}), Corpus(**corpus), folder)


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Bits of each system for each file, and what share of the base's probability was shown at a token."""

    bits: dict[str, list[float]] = field(default_factory=dict)
    bytes: list[int] = field(default_factory=list)
    covered: dict[str, float] = field(default_factory=dict)

    def row(self, system: str) -> dict[str, Any]:
        """Bits per byte and, where there is a ceiling, the share of the gap closed; each with a bootstrap interval
        over files.
        """
        bits, base, direct = (self.bits.get(name) for name in (system, "base", "direct"))
        assert bits is not None
        assert base is not None
        row: dict[str, Any] = {"system": system, "bits_per_byte": sum(bits) / sum(self.bytes)}
        values = [own / size for own, size in zip(bits, self.bytes, strict=True)]
        row["interval"] = bootstrap_interval(values, weights=self.bytes) if len(values) > 1 else None
        if direct is not None and system not in ("base", "direct"):
            gaps = [b - d for b, d in zip(base, direct, strict=True)]
            saved = [b - own for b, own in zip(base, bits, strict=True)]
            row["closed"] = sum(saved) / sum(gaps)
            # A share of sums is the mean of the files' shares, weighted with their gaps.
            if min(gaps) > 0 and len(gaps) > 1:
                shares = [s / gap for s, gap in zip(saved, gaps, strict=True)]
                row["closed_interval"] = bootstrap_interval(shares, weights=gaps)
        return row


def shown(k: int | None) -> str:
    return "all" if k is None else f"top {k}"


def tuned(alpha: float, k: int | None) -> str:
    return f"proxy-tuned, alpha {alpha:g}, {shown(k)}"


async def measure(
    bases: dict[int | None, Base],
    pair: TransformersPair,
    direct: TransformersBase | None,
    texts: Sequence[tuple[str, Sequence[str]]],
    alphas: Sequence[float],
) -> Measured:
    """Every system on the sections of every file. bases: the same base, showing so many log probabilities."""
    found = Measured()
    equations = [Equation((alpha,)) for alpha in alphas]
    tokens: dict[str, list[float]] = {}
    for _, parts in track(texts, "measuring", console=Console(stderr=True), transient=True):
        bits: dict[str, float] = {}
        size = 0

        def add(system: str, log: float, bits: dict[str, float] = bits) -> None:
            bits[system] = bits.get(system, 0.0) - log / math.log(2)

        for part in parts:
            vocabulary = next(iter(bases.values())).vocabulary
            opening, rest = scoring.split_opening(part, vocabulary)
            for i, (k, base) in enumerate(bases.items()):
                scores = await scoring.score(base, [pair], opening, rest, equations)
                if i == 0:
                    size += scores[0].bytes
                    add("base", scores[0].log_q)
                    add("expert", scores[0].log_expert)
                    add("antiexpert", scores[0].log_antiexpert)
                for alpha, score in zip(alphas, scores, strict=True):
                    add(tuned(alpha, k), score.log_p)
                tokens.setdefault(shown(k), []).extend(token.covered_mass for token in scores[0].tokens)
            if direct is not None:
                add("direct", await log_likelihood(direct, opening, rest))
        found.bytes.append(size)
        for system, value in bits.items():
            found.bits.setdefault(system, []).append(value)
    found.covered = {name: sum(masses) / len(masses) for name, masses in tokens.items()}
    return found


async def log_likelihood(model: TransformersBase, opening: str, rest: str) -> float:
    """log p of the rest by a model alone, nats."""
    tokens = [model.vocabulary.token_of(index) for index in model.vocabulary.encode([rest.encode()])[0]]
    positions, _ = await scoring.given_positions(model, Prefix(opening), tokens)
    return math.fsum(position.logprob or 0.0 for position in positions)


def estimated(found: Measured, alphas: Sequence[float]) -> list[str]:
    """How far the figures with an estimated Z are from those with all log probabilities. The text's own tokens have the
    same q in both, and nearly the same offset.
    """
    said = []
    for alpha in alphas:
        whole = found.bits.get(tuned(alpha, None))
        for k in found.covered:
            fewer = found.bits.get(f"proxy-tuned, alpha {alpha:g}, {k}")
            if whole is None or fewer is None or fewer is whole:
                continue
            off = (sum(whole) - sum(fewer)) / sum(found.bytes)
            said.append(
                f"At alpha {alpha:g}, {k}, Z is estimated: {abs(off):.3f} bits per byte "
                f"{'fewer' if off > 0 else 'more'} than over the whole vocabulary."
            )
    return said


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    names = {
        "expert": "expert alone",
        "antiexpert": "anti-expert alone",
        "direct": "base tuned directly",
    }
    made = Table(title=title, title_justify="left")
    made.add_column("system", no_wrap=True)
    for head in ("bits/\nbyte", "95 %\ninterval", "gap\nclosed", "95 %\ninterval"):
        made.add_column(head, justify="right")
    for row in rows:
        closed, over, interval = (row.get(key) for key in ("closed", "closed_interval", "interval"))
        made.add_row(
            names.get(row["system"], row["system"]),
            f"{row['bits_per_byte']:.3f}",
            "" if interval is None else "{:.3f} to {:.3f}".format(*interval),
            "" if closed is None else f"{100 * closed:.0f} %",
            "" if over is None else "{:.0f} to {:.0f}".format(*(100 * end for end in over)),
        )
    return made


# -- the command ------------------------------------------------------------------------------------------------------


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="smaller models that read less: seconds, and a worse table"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tiny models' training")
    parser.add_argument("--cache", type=Path, default=user_cache_path("blackbox-proxy") / "examples")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--top-logprobs", type=int, nargs="+", help="0: all of them; 0 5 by default, at an API 5")
    parser.add_argument("--files", type=int, default=24, help="measure so many files at most")
    parser.add_argument("--length", type=int, default=400, help="characters of a section")
    parser.add_argument("--sections", type=int, default=1, help="sections of a file")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    real = parser.add_argument_group("real models, instead of the tiny ones")
    real.add_argument("--base", help="folder or hub id; with --base-url its name there")
    real.add_argument("--base-url", help="an API that scores given text: http://host:port/v1")
    real.add_argument("--dialect", default="auto", help="what kind of server that is, see `blackbox-proxy dialects`")
    real.add_argument(
        "--tokenizer", default="auto", help="the base's, if it is behind an API: a folder, a hub id or a tiktoken name"
    )
    real.add_argument("--expert", help="folder or hub id of the small model that knows the domain")
    real.add_argument("--antiexpert", help="the same before it was tuned")
    real.add_argument("--direct", help="the base tuned directly, if there is one: the ceiling")
    real.add_argument("--texts", type=Path, nargs="+", help="files of the domain, instead of held-out source")
    parser.add_argument("--train", choices=list(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if (given.base is None) != (given.expert is None):
        parser.error("real models need --base and --expert, and an --antiexpert unless the expert is to be used alone")
    if given.base_url and not given.base:
        parser.error("--base-url needs --base, the model's name there")
    return given


def held_out(given: argparse.Namespace, corpus: Corpus | None) -> list[tuple[str, list[str]]]:
    """(name, sections) of the files to measure."""
    if given.texts:
        files = [(str(path), own_text(path)) for path in given.texts]
    else:
        files = list((corpus or standard_library()).held_out)
    cut = [(name, found) for name, text in files if (found := sections(text, given.length, given.sections))]
    if not cut:
        raise InputError("no file is long enough", hint="Give longer --texts, or a smaller --length.")
    limit = given.files or len(cut)
    step = max(1, len(cut) // limit)
    return cut[::step][:limit]


def spent(start: float) -> str:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return f"{time.monotonic() - start:.0f} s, {processor:.0f} s of processor time"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The table, on the terminal and as data."""
    given = options(arguments)
    quiet_transformers()
    if given.train:
        train_in(given.models, given.train)
        return {}
    start = time.monotonic()
    console = Console()
    corpus, direct = None, given.direct
    if given.base is None:
        corpus = standard_library(every=8 if given.quick else 1)
        plan = replace(QUICK if given.quick else Plan(), seed=given.seed)
        folder = models(plan, corpus, given.cache)
        base, direct, antiexpert, expert = (str(folder / name) for names in NAMES.values() for name in names)
        print(f"models ready after {spent(start)}: {folder}", file=sys.stderr)
    else:
        base, expert, antiexpert = given.base, given.expert, given.antiexpert
    texts = held_out(given, corpus)
    opened: dict[int | None, Base] = {}
    if given.base_url:
        api: dict[str, Any] = {"base_url": given.base_url, "dialect": given.dialect, "tokenizer": given.tokenizer}
        for k in given.top_logprobs or [5]:
            opened[k] = open_base(base, top_logprobs=k, **api)
    else:
        weights = load_causal_lm(base)
        for k in given.top_logprobs or [0, 5]:
            opened[k or None] = TransformersBase(weights, top_logprobs=k or None)
    pair = TransformersPair(expert, antiexpert)
    ceiling = None if direct is None else TransformersBase(direct)

    async def everything() -> Measured:
        try:
            return await measure(opened, pair, ceiling, texts, given.alpha)
        finally:
            for each in opened.values():
                await each.aclose()
            pair.close()

    found = asyncio.run(everything())
    rows = [found.row(system) for system in found.bits]
    size = sum(found.bytes)
    what = "files" if given.texts else "held-out source files"
    console.print(table(rows, f"{len(texts)} {what}, {size:,} bytes"))
    shares = ", ".join(f"{100 * share:.0f} % ({name})" for name, share in found.covered.items())
    console.print(f"Shown of the base's probability at a token, on average: {shares}.", highlight=False, soft_wrap=True)
    for row in rows:
        if row["system"] in [tuned(1.0, k) for k in opened] and "closed" in row:
            line = (
                f"{row['system']}, closes {100 * row['closed']:.0f} % of the gap between base and directly tuned base."
            )
            console.print(line[0].upper() + line[1:], highlight=False, soft_wrap=True)
    for line in estimated(found, given.alpha):
        console.print(line, highlight=False, soft_wrap=True)
    print(spent(start), file=sys.stderr)
    results = {"rows": rows, "bytes": size, "files": [name for name, _ in texts], "covered": found.covered}
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    try:
        main()
    except BlackboxError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
