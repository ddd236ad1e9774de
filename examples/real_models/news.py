"""Temporal adaptation on real models: a base that has missed this year's news, and a small one that has read some.

    python examples/real_models/news.py --data path/to/realtimeqa/2026

The data are RealTimeQA's weeks of January to April 2026 (`qa/` and `articles/` as that project publishes them; nothing
of them is kept here); both models were trained before 2025. The expert reads the beginnings of the articles that were
retrieved for the first weeks. Then are asked or measured

    questions    of those weeks (the setting of the paper's section 7): multiple choice, one token
    later news   the beginnings of articles from the weeks after, in bits per byte
    old news     articles from before June 2025, kept out of training: what reading any news brings

for base, expert and proxy; weights are learned on a third of each, and all is measured on the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parts import Part, Rows, chain, compare, expert, parser, run, say

from blackbox_proxy.errors import InputError
from blackbox_proxy.tuning.train import Recipe

DATA = "BLACKBOX_PROXY_TEST_DATA"
PREPARE = Path(__file__).parents[1] / "temporal_adaptation" / "prepare.py"
LETTERS = "ABCD"
PARTS = {"questions": "Questions of the weeks that were read", "later": "Later news", "old": "Old news"}


def data(given: Path | None) -> Path:
    """The folder with qa/ and articles/. Raises InputError."""
    found = given or Path(os.environ.get(DATA, "")) / "data" / "realtimeqa" / "2026"
    if not list((found / "qa").glob("*.jsonl")) or not list((found / "articles").glob("*.jsonl*")):
        raise InputError(
            f"there are no qa/ and articles/ of RealTimeQA in {found}", hint=f"Name the folder: --data, or ${DATA}."
        )
    return found


def prepared(folder: Path, out: Path, until: str) -> Path:
    """Split by date as examples/temporal_adaptation does it."""
    command = [sys.executable, str(PREPARE), "-o", str(out), "--train-until", until, "--news-from", "2025-06-01"]
    command += ["--questions", *map(str, sorted((folder / "qa").glob("*.jsonl")))]
    command += ["--articles", *map(str, sorted((folder / "articles").glob("*.jsonl*")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise InputError(f"the articles cannot be prepared: {last}", hint="Is this RealTimeQA's data?")
    say(done.stdout.split("left out")[0].rstrip())
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def beginnings(path: Path, length: int) -> list[dict[str, str]]:
    """The first so many characters of each article, in order of date."""
    rows = sorted(read(path), key=lambda row: (row["published"], row["url"]))
    return [{"id": row["url"], "text": row["text"][:length]} for row in rows]


def questions(path: Path) -> list[dict[str, Any]]:
    """Of the weeks that were read, lettered by `evaluate`."""
    names = ("id", "question", "choices", "answer")
    return [{name: row[name] for name in names} for row in read(path) if row["part"] == "read"]


def thirds(rows: Rows, limit: int | None = None) -> tuple[Rows, Rows]:
    """Every third row to learn weights, the others to measure; at most so many of these, and a third as many of those
    but no fewer than 8, spread evenly.
    """
    develop, test = list(rows[::3]), [row for i, row in enumerate(rows) if i % 3]
    if limit is not None and limit < len(test):
        test = [test[i * len(test) // limit] for i in range(limit)]
        fewer = min(len(develop), max(8, limit // 3))
        develop = [develop[i * len(develop) // fewer] for i in range(fewer)]
    return develop, test


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, help=f"RealTimeQA's 2026; by default ${DATA}/data/realtimeqa/2026")
    made.add_argument("--until", default="2026-03-13", help="last week, and day, that the expert reads about")
    made.add_argument("--articles", type=int, default=90, help="that the expert reads, the newest")
    made.add_argument("--read", type=int, default=800, help="characters it reads of each")
    made.add_argument("--length", type=int, default=200, help="characters measured of an article")
    made.add_argument("--questions", type=int, default=45, help="that are measured, at most")
    made.add_argument("--texts", type=int, default=30, help="articles measured of each kind, at most")
    made.add_argument("--shown", type=int, nargs="+", default=[20], help="candidates; 0: all")
    made.add_argument("--alpha", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    made.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    return made


def main() -> None:
    given = options().parse_args()
    folder = data(given.data)
    ours = chain(given, "news")
    split = prepared(folder, ours.cache / f"news-until-{given.until}", given.until)
    rows = [{"text": row["text"]} for row in beginnings(split / "train.jsonl", given.read)[-given.articles :]]
    recipe = Recipe(steps=max(1, len(rows) // 2), batch=2, rate=1e-3, seed=ours.seed)
    tuned = expert(ours, "news", rows, recipe)
    found = {
        "questions": thirds(questions(split / "questions.jsonl"), given.questions),
        "later": thirds(beginnings(split / "held_out.jsonl", given.length), given.texts),
        "old": thirds(beginnings(split / "control.jsonl", given.length), given.texts),
    }
    compare(ours, tuned, [Part(PARTS[name], *found[name], given.shown) for name in given.part], given.alpha)


if __name__ == "__main__":
    run(main)
