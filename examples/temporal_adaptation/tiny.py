"""The whole example in small, from RealTimeQA's files alone: no API, no key, no download, two cores.

    python tiny.py --data ../realtimeqa -o tiny-run

A tiny "big" model and a smaller one with another tokenizer learn to write from the older articles; the smaller one then
reads the news: the expert. The base is served over HTTP with its top 5 log probabilities, as an API would be. Each step
is a command that is printed before it runs, so that any of them can be repeated by itself; what is there already is not
made again.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackbox_proxy.text.reading import json_of, numbered_lines

HERE = Path(__file__).parent
WINDOW = 256
WEEKS = ("20230106", "20230113", "20230120", "20230127")
DATES = "--train-from 2023-01-06 --train-until 2023-01-20 --news-from 2022-07-01 --longest 5000"


@dataclass(frozen=True)
class Size:
    """A Llama: `vocabulary` pieces, and `digits` one by one or not."""

    vocabulary: int
    digits: bool
    hidden: int
    layers: int
    inner: int


BASE = Size(3072, True, 128, 3, 344)
PAIR = Size(2048, False, 96, 3, 256)
LEARN = ("--learning-rate=3e-3", "--block", str(WINDOW), "--batch-size=8", "--quiet")
TUNE = ("--learning-rate=1e-3", "--block", str(WINDOW), "--batch-size=8", "--quiet")


def blank(folder: Path, size: Size, texts: Iterable[str]) -> None:
    """An untrained model, and its tokenizer learned from the texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    digits = [pre_tokenizers.Digits(individual_digits=True)] if size.digits else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=size.inner,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def found(data: Path, folder: str, ending: str) -> list[Path]:
    """The weeks' files: data/qa/20230106.jsonl, or as they are published, data/2023/20230106_qa.jsonl."""
    files = [path for path in sorted(data.rglob("20*.jsonl*")) if path.suffix in (".jsonl", ".gz", ".xz")]
    chosen = [path for path in files if path.parent.name == folder or path.name.split(".")[0].endswith(ending)]
    return chosen or sys.exit(f"there are no files of RealTimeQA's {folder} in {data}")


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def said(words: Sequence[str]) -> None:
    print("\n$ " + shlex.join(["python", *words[1:]]), flush=True)


def run(words: Sequence[str]) -> None:
    said(words)
    if subprocess.run(words, check=False).returncode:
        sys.exit("that command failed")


def side_by_side(*lines: Sequence[Sequence[str]]) -> None:
    """Each line of commands one after the other, the lines at the same time, one thread each."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    waiting = [list(line) for line in lines]
    running: list[tuple[subprocess.Popen[str], list[Sequence[str]]]] = []
    try:
        while waiting or running:
            for line in [line for line in waiting if line]:
                said(line[0])
                pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
                running.append((subprocess.Popen(line.pop(0), env=environment, **pipes), line))
            waiting = []
            time.sleep(0.2)
            for entry in [entry for entry in running if entry[0].poll() is not None]:
                process, line = entry
                running.remove(entry)
                print(f"\n{process.communicate()[0].strip()}", flush=True)
                if process.returncode:
                    sys.exit("that command failed")
                waiting.append(line)
    finally:
        for process, _ in running:
            process.kill()
            process.wait()


def spent(start: float) -> str:
    """Seconds by the clock, and of processor time: the second figure does not depend on who else uses the machine."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return f"{time.monotonic() - start:.0f} s, {processor:.0f} s of processor time"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with RealTimeQA's qa/ and articles/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--max-steps", type=int, default=-1, help="train for so many steps only, to see that it runs")
    parser.add_argument("evaluate", nargs="*", help="options for evaluate.py, after --")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    out = given.output
    prepared = out / "prepared"
    if not (prepared / "summary.json").is_file():
        run(
            command(
                "prepare.py",
                "--questions",
                *found(given.data, "qa", "_qa"),
                "--articles",
                *[path for path in found(given.data, "articles", "_gcs") if path.name[:8] in WEEKS],
                *DATES.split(),
                *("-o", prepared),
            )
        )
    rows = [json_of(line) for _, line in numbered_lines(prepared / "background.jsonl")]
    texts = [row["text"] for row in rows]
    limit = ("--max-steps", given.max_steps) if given.max_steps > 0 else ()
    for name, size in (("base", BASE), ("pair", PAIR)):
        if not (out / f"{name}-blank" / "config.json").is_file():
            blank(out / f"{name}-blank", size, texts)

    def tuning(name: str, text: Path, model: str, *options: object) -> list[list[str]]:
        if (out / name / "training.json").is_file():
            return []
        return [command("tune_expert.py", text, "--model", out / model, "-o", out / name, *options, *limit)]

    side_by_side(
        tuning("base", prepared / "background.jsonl", "base-blank", *LEARN, "--epochs=1"),
        [
            *tuning("antiexpert", prepared / "background.jsonl", "pair-blank", *LEARN, "--epochs=1"),
            *tuning("expert", prepared / "train.jsonl", "antiexpert", *TUNE, "--epochs=1"),
        ],
    )
    print(f"\ntrained after {spent(start)}", flush=True)

    from blackbox_proxy.host.process import HostProcess

    with HostProcess(out / "base", top_logprobs=5, served_model_name="tiny-base", threads=1) as host:
        print(f"\n$ blackbox-proxy host --model {out / 'base'} --top-logprobs 5 --served-model-name tiny-base")
        run(
            command(
                "evaluate.py",
                prepared / "questions.jsonl",
                *("--texts", prepared / "held_out.jsonl", "--texts", prepared / "control.jsonl"),
                *("--base", "tiny-base", "--base-url", host.base_url, "--dialect", "host"),
                *("--tokenizer", out / "base", "--expert", out / "expert", "--cache-file", out / "cache.sqlite"),
                *("--longest", 600, "--json", out / "results.json", *given.evaluate),
            )
        )
    print(f"\nall of it: {spent(start)}")


if __name__ == "__main__":
    main()
