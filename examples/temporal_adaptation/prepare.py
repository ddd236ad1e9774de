"""From RealTimeQA's questions and retrieved articles to training text, held-out text and questions. No network.

    python prepare.py --questions qa/*.jsonl --articles articles/*.jsonl.xz --train-until 2023-01-20 -o prepared

An article is dated by `publish_date`, a week by the eight digits that its question ids begin with. Written are

    train.jsonl       retrieved for weeks up to --train-until, published by then: what the expert is to read
    background.jsonl  the same, published before --news-from (with that option only): what models may know already
    control.jsonl     one in 10 of those, kept out of it: to tell newer text from merely more text
    held_out.jsonl    retrieved for later weeks, published after --train-until, nothing of it in the two above
    questions.jsonl   multiple choice; part "read": of the weeks that were read (the paper's setting), or "later"
    summary.json      how many of everything, and what was left out, and why

The same input gives the same files, byte for byte. Python's standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import lzma
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SHORTEST = 300  # characters of an article that is worth reading: error pages and galleries are shorter
SHINGLE = 8  # words in a row that two texts hardly share by chance
ONE_IN = 4  # shingles that are compared, chosen by their digest: the same ones in every text
CONTROL = 10  # one in so many background articles is the control
TEXTS = ("train", "background", "control", "held_out")
FAMILIAR = 8  # words from which on a paragraph that was read already is cut out of a held-out text
TRACKING = re.compile(r"utm_.*|fbclid|gclid|mc_.*|cid|ref|src|cmpid|icid|smid|ocid|ito|xid|output|amp", re.I)
NOISE = re.compile(  # lines that retrieval has taken from around the article
    r"(\d\. )?How relevant is this ad to you\?|.*Video (player was slow|content never|content loaded)|"
    r"Ad (froze|never loaded|Feedback|feedback)|(Content|Audio on ad) .*(loaded|loud)|Other issues|"
    r"(Get .* newsletter )?Sign up (here|for) .*|Advertisement|Story continues below|Read more:.*|"
    r"Hide caption|Show caption|(?:CNN|USA TODAY|Associated Press)",
    re.I,
)


class Article(NamedTuple):
    url: str
    week: str  # as 2023-01-20, of the earliest week that retrieved it
    published: str  # the same; "" where it is unknown
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """`answer` is the index of the right one among `choices`; `part` "read" or "later"."""

    id: str
    week: str
    date: str
    source: str
    question: str
    choices: tuple[str, ...]
    answer: int
    part: str = ""


# -- reading ----------------------------------------------------------------------------------------------------------


def opened(path: Path) -> IO[str]:
    """A text file, packed by xz or gzip or not at all."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def rows(paths: Sequence[Path]) -> Iterator[Any]:
    """The JSON of every line of the files, in the order of their names. SystemExit says which line is none."""
    for path in sorted(paths):
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise SystemExit(f"{path}, line {number}: this is no JSON ({error})") from error


def day(text: object) -> str:
    """2023/01/07/05:11, 2023-01-07 and 20230107_3 as 2023-01-07; "" for anything else."""
    found = re.match(r"(\d{4})[-/]?(\d\d)[-/]?(\d\d)(?!\d)", str(text or ""))
    return "-".join(found.groups()) if found else ""


# -- questions --------------------------------------------------------------------------------------------------------


def question_of(row: Any, choices: int = 4) -> Question | str:
    """A question of exactly the expected shape, else the reason why this is none."""
    if not isinstance(row, dict):
        return "no object"
    week, sentence, options = day(row.get("question_id")), row.get("question_sentence"), row.get("choices")
    if not week:
        return "no question_id with a date"
    if not isinstance(sentence, str) or not sentence.strip():
        return "no question_sentence"
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        return "choices are no list of strings"
    options = [" ".join(option.split()) for option in options]
    if len(options) != choices:
        return f"not {choices} choices"
    if not all(options) or len({option.casefold() for option in options}) < choices:
        return "an empty choice, or two alike"
    answer = row.get("answer")
    indices = [answer] if isinstance(answer, str) else answer  # some weeks were published with a bare index
    if not isinstance(indices, list) or len(indices) != 1:
        return "not exactly one answer"
    if str(indices[0]) not in {str(i) for i in range(choices)}:
        return "the answer is no index of a choice"
    return Question(
        str(row["question_id"]),
        week,
        day(row.get("question_date")),
        str(row.get("question_source", "")),
        " ".join(sentence.split()),
        tuple(options),
        int(indices[0]),
    )


def questions_of(found: Iterable[Any], choices: int, why: Counter[str]) -> list[Question]:
    """All that can be asked, the earliest of several alike, in the order of their weeks."""
    good: list[Question] = []
    for row in found:
        question = question_of(row, choices)
        if isinstance(question, str):
            why[question] += 1
        else:
            good.append(question)
    kept: list[Question] = []
    ids, seen = set[str](), set[tuple[str, tuple[str, ...]]]()
    for question in sorted(good, key=lambda q: (q.week, q.id, q.question)):
        alike = (plain(question.question), tuple(sorted(plain(choice) for choice in question.choices)))
        if alike in seen:
            why["asked before"] += 1
        elif question.id in ids:
            why["another question has its id"] += 1
        else:
            kept.append(question)
        ids.add(question.id)
        seen.add(alike)
    return kept


# -- articles ---------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Words only, in lower case: what two spellings of the same text share."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def same_url(url: str) -> str:
    """One spelling for all URLs of a page: no scheme, www, m or amp, tracking, fragment, index page or final slash."""
    parts = urlsplit(url.strip() if "//" in url else f"//{url.strip()}")
    host = re.sub(r"^(www\d?|m|mobile|amp|edition|eu|rss)\.", "", (parts.hostname or "").lower())
    path = re.sub(r"/(index\.\w+|amp|amp\.html)?/*$", "", re.sub(r"/{2,}", "/", unquote(parts.path)))
    query = sorted((k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.fullmatch(k))
    return host + path.removeprefix("/amp") + (f"?{urlencode(query)}" if query else "")


def clean(text: str, longest: int) -> str:
    """The article's paragraphs, one a line, without mark-up and what stood around it; at most `longest` characters."""
    text = html.unescape(re.sub(r"<(script|style)\b.*?</\1>|<[a-zA-Z/!][^>]{0,400}>", " ", text, flags=re.S | re.I))
    text = unicodedata.normalize("NFC", text).replace("\r", "\n")
    text = re.sub(r"^\s*(?:[A-Z][\w., ]{0,40} )?\(?CNN\)?( Business)? [—–-]+\s+", "", text)
    paragraphs: list[str] = []
    length = 0
    for line in text.split("\n"):
        line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
        if not line or NOISE.fullmatch(line) or line.startswith("1. How relevant is this ad"):
            continue
        length += len(line) + 1
        if length > longest:
            break
        if not paragraphs or paragraphs[-1] != line:
            paragraphs.append(line)
    return "\n".join(paragraphs)


def shingles(text: str) -> set[int]:
    """Digests of one in `ONE_IN` of the text's runs of `SHINGLE` words."""
    words = plain(text).split()
    runs = (" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))
    digests = (int.from_bytes(blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs)
    return {digest for digest in digests if digest % ONE_IN == 0}


class Quiz:
    """Knows a page that is a quiz itself, or quotes one, by a question that stands in it word for word."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for sentence in map(plain, questions):
            words = sentence.split()
            if len(words) >= SHINGLE:  # shorter ones stand in articles by chance
                self._by_start.setdefault(" ".join(words[:SHINGLE]), []).append(sentence)

    def stands_in(self, text: str) -> bool:
        whole = plain(text)
        words = whole.split()
        starts = {" ".join(words[i : i + SHINGLE]) for i in range(len(words))} & self._by_start.keys()
        return any(sentence in whole for start in starts for sentence in self._by_start[start])


def overlap(found: set[int], known: set[int]) -> float:
    """The share of `found` that is `known`."""
    return len(found & known) / len(found) if found else 0.0


def articles_of(found: Iterable[Any], longest: int, why: Counter[str]) -> list[Article]:
    """Each page once, as it was retrieved first, by week and URL."""
    best: dict[str, Article] = {}
    for row in found:
        week = day(row.get("question_id")) if isinstance(row, dict) else ""
        results = row.get("search_result") if isinstance(row, dict) else None
        if not week or not isinstance(results, list):
            why["a retrieval without question_id or search_result"] += 1
            continue
        for result in results:
            if not isinstance(result, dict) or not isinstance(result.get("url"), str):
                why["an article without url"] += 1
                continue
            text = clean(str(result.get("text") or ""), longest)
            if len(text) < SHORTEST:
                why[f"shorter than {SHORTEST} characters when cleaned"] += 1
                continue
            published = day(result.get("publish_date"))
            article = Article(same_url(result["url"]), week, published, str(result.get("title") or ""), text)
            before = best.get(article.url)
            if before is not None:
                why["the same page again"] += 1
            if before is None or (article.week, article.text) < (before.week, before.text):
                best[article.url] = article
    return sorted(best.values())


def without_copies(articles: Sequence[Article], share: float, known: set[int], why: Counter[str]) -> list[Article]:
    """The articles of which less than `share` was there already: in `known`, or in an article before. Fills `known`."""
    kept = []
    for article in sorted(articles, key=lambda a: (a.week, a.published, a.url)):
        marks = shingles(article.text)
        if overlap(marks, known) >= share:
            why["nearly the same text as another"] += 1
            continue
        known |= marks
        kept.append(article)
    return kept


def without_familiar(articles: Sequence[Article], read: Sequence[Article], why: Counter[str]) -> list[Article]:
    """The held-out articles without the paragraphs that stand in training text word for word (teasers, credits)."""
    familiar = {plain(line) for article in read for line in article.text.split("\n")}
    kept = []
    for article in articles:
        lines = article.text.split("\n")
        new = [line for line in lines if len(line.split()) < FAMILIAR or plain(line) not in familiar]
        why["(paragraphs) cut out of what is held out: in training text word for word"] += len(lines) - len(new)
        text = "\n".join(new)
        if len(text) < SHORTEST:
            why["held out: too little left"] += 1
        else:
            kept.append(article._replace(text=text))
    return kept


# -- the split --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Dates as 2023-01-20. `overlap`: the share of a text's runs of words that makes it a copy of others."""

    train_until: str
    train_from: str = "0000-00-00"
    later_until: str = "9999-99-99"
    news_from: str = "0000-00-00"
    overlap: float = 0.2


@dataclass(frozen=True)
class Prepared:
    train: list[Article]
    background: list[Article]
    control: list[Article]
    held_out: list[Article]
    questions: list[Question]
    left_out: dict[str, dict[str, int]]


def prepare(
    asked: Iterable[Any], retrieved: Iterable[Any], split: Split, *, choices: int = 4, longest: int = 20_000
) -> Prepared:
    """Everything that this script does, between reading and writing."""
    why_questions, why = Counter[str](), Counter[str]()
    questions = []
    for question in questions_of(asked, choices, why_questions):
        if not split.train_from <= question.week <= split.later_until:
            why_questions["of another week"] += 1
        else:
            questions.append(replace(question, part="read" if question.week <= split.train_until else "later"))
    quiz = Quiz([q.question for q in questions])
    early: list[Article] = []
    late: list[Article] = []
    for article in articles_of(retrieved, longest, why):
        if not split.train_from <= article.week <= split.later_until:
            why["of another week"] += 1
        elif quiz.stands_in(article.text):
            why["holds one of the questions word for word"] += 1
        elif article.week <= split.train_until:
            if article.published > split.train_until:
                why["retrieved in time but published after --train-until"] += 1
            else:
                early.append(article)
        elif article.published <= split.train_until:
            why["retrieved later but published by --train-until, or undated"] += 1
        else:
            late.append(article)
    known = set[int]()
    early = without_copies(early, split.overlap, known, why)
    why_late = Counter[str]()
    late = without_copies(late, split.overlap, known, why_late)
    why.update({f"held out: {reason}": count for reason, count in why_late.items()})
    older = [a for a in early if a.published < split.news_from]
    control = [a for a in older if int(blake2b(a.url.encode()).hexdigest(), 16) % CONTROL == 0]
    apart = {a.url for a in control}
    read = [a for a in early if a.url not in apart]
    why_late.clear()
    control, late = (without_familiar(articles, read, why_late) for articles in (control, late))
    why.update({reason: count for reason, count in why_late.items() if count})
    return Prepared(
        [a for a in read if a.published >= split.news_from],
        [a for a in read if a.published < split.news_from],
        control,
        late,
        questions,
        {"questions": dict(sorted(why_questions.items())), "articles": dict(sorted(why.items()))},
    )


def written(folder: Path, name: str, records: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records]
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write(prepared: Prepared, split: Split, folder: Path) -> dict[str, Any]:
    """The files; the summary, too."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: getattr(prepared, name) for name in TEXTS}
    summary: dict[str, Any] = {"split": asdict(split)}
    for name, articles in texts.items():
        written(folder, f"{name}.jsonl", [article._asdict() for article in articles])
        dates = [article.published for article in articles if article.published]
        summary[name] = {
            "articles": len(articles),
            "bytes": sum(len(article.text.encode()) for article in articles),
            "published": [min(dates), max(dates)] if dates else None,
        }
    written(folder, "questions.jsonl", [asdict(question) for question in prepared.questions])
    summary["questions"] = dict(sorted(Counter(question.part for question in prepared.questions).items()))
    summary["left_out"] = prepared.left_out
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def report(summary: dict[str, Any]) -> str:
    lines = []
    for name in TEXTS:
        part = summary[name]
        dates = " to ".join(part["published"]) if part["published"] else "-"
        lines.append(f"{name:<12}{part['articles']:>6} articles {part['bytes']:>11,} bytes   published {dates}")
    asked = ", ".join(f"{count} {part}" for part, count in summary["questions"].items())
    lines.append(f"{'questions':<12}{sum(summary['questions'].values()):>6} ({asked or 'none'})")
    for kind, reasons in summary["left_out"].items():
        lines.append(f"left out, {kind}:")
        lines += [f"{count:>18} {reason}" for reason, count in reasons.items()] or [f"{'none':>18}"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", type=Path, required=True, help="JSONL as RealTimeQA publishes it")
    parser.add_argument("--articles", nargs="+", type=Path, required=True, help="the same; .xz and .gz as well")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--train-until", required=True, metavar="DATE", help="last week, and day, of training text")
    parser.add_argument("--train-from", default="0000-00-00", metavar="DATE", help="first week")
    parser.add_argument("--later-until", default="9999-99-99", metavar="DATE", help="last week that is held out")
    parser.add_argument(
        "--news-from", default="0000-00-00", metavar="DATE", help="what was published before is background, not news"
    )
    parser.add_argument("--choices", type=int, default=4, help="choices that a question must have")
    parser.add_argument("--longest", type=int, default=20_000, help="characters kept of an article")
    parser.add_argument("--overlap", type=float, default=0.2, help="share of known runs of words that makes a copy")
    given = parser.parse_args(arguments)
    dates = {name: getattr(given, name) for name in ("train_until", "train_from", "later_until", "news_from")}
    for name, value in dates.items():
        if day(value) != value:
            parser.error(f"--{name.replace('_', '-')} is a date as 2023-01-20, not {value!r}")
    for path in (*given.questions, *given.articles):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    split = Split(**dates, overlap=given.overlap)
    prepared = prepare(rows(given.questions), rows(given.articles), split, choices=given.choices, longest=given.longest)
    print(report(write(prepared, split, given.output)))
    if not prepared.train or not prepared.questions:
        sys.exit("nothing to train on, or nothing to ask: are the dates right?")


if __name__ == "__main__":
    main()
