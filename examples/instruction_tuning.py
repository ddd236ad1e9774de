"""Instruction tuning: a base that knows things but no chat, and a small chat expert that knows less.

    python examples/instruction_tuning.py

The embedded world is an invented atlas. The base has read all of it; the smaller pair, which has another tokenizer,
knows of some countries hardly more than the name. The expert is the anti-expert, tuned on questions about some of those
that it knows and their answers, in its own chat template with its own end-of-turn token. The base is asked in plain
text: by itself it goes on with whatever an atlas would say next. Under proxy-tuning it sees that same text, the expert
sees its chat template (expert_prompt="chat"), and the expert's end of turn and the base's end of text are one event.
The base tuned directly on the same questions is the ceiling. All questions of the table are about countries that no
tuning asked about: "known" ones the pair has read about, "unknown" ones only the base.

Right is an answer that is the expected text from the first to the last letter, and that ended by itself.

With real models (folders or hub ids; the base in this process, or behind an API) and questions of your own, JSONL with
"question" and "answer" (and "kind", if you like); an answer is then right if it contains the expected one:

    python examples/instruction_tuning.py --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
        --antiexpert meta-llama/Llama-2-7b-hf --direct meta-llama/Llama-2-13b-chat-hf --questions questions.jsonl
    python examples/instruction_tuning.py --base big-model --base-url http://localhost:8000/v1 --dialect vllm \\
        --tokenizer path/to/its/tokenizer --expert … --antiexpert … --questions questions.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: busy machines make spinning threads slow
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track
from rich.table import Table

from blackbox_proxy import ProxyTuner, TransformersBase, TransformersPair, open_base
from blackbox_proxy.cli.app import quiet_transformers
from blackbox_proxy.errors import BlackboxError, InputError
from blackbox_proxy.evaluation.statistics import mcnemar, wilson_interval
from blackbox_proxy.protocols import Ask, Base
from blackbox_proxy.text.reading import json_of, numbered_lines
from blackbox_proxy.types import Prefix

FORMAT = 1  # raise it when the code below makes other models of the same plan
END = "<|endoftext|>"
TURN = "<|end|>"
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NAMES = {"big": ("base", "direct"), "small": ("antiexpert", "expert")}

# Of each thing to know: how a question asks for it, the answer, and other ways in which the atlas says it.
THINGS = {
    "capital": (
        "What is the capital of {x}?",
        "The capital of {x} is {y}.",
        ("{y} is the seat of government of {x}.", "All roads of {x} lead to {y}, its capital."),
    ),
    "river": (
        "Which river runs through {x}?",
        "The river {y} runs through {x}.",
        ("Ships sail on the {y}, the great river of {x}.", "{x} lies on both banks of the {y}."),
    ),
    "crop": (
        "What do farmers grow in {x}?",
        "Farmers in {x} grow {y}.",
        ("{x} sells {y} to its neighbours.", "The fields of {x} are full of {y}."),
    ),
    "coin": (
        "Which coin is used in {x}?",
        "The coin used in {x} is the {y}.",
        ("A loaf of bread costs one {y} in {x}.", "People in {x} pay with the {y}."),
    ),
}
OTHERWISE = (
    "{x} lies by the sea.",
    "Many travellers visit {x} in summer.",
    "{x} is a quiet place.",
    "There is an old bridge in {x}.",
    "The people of {x} like music.",
    "Winters are long in {x}.",
)
CROPS = ("barley", "olives", "rice", "tea", "cotton", "hops", "figs", "rye", "maize", "beans", "grapes", "hemp")
COINS = ("taler", "dram", "florin", "lira", "crown", "denar", "shilling", "peso", "ducat", "guilder", "rial", "stater")


@dataclass(frozen=True)
class Size:
    """One Llama, how often it reads the atlas and the instructions, and at which learning rates."""

    vocabulary: int
    hidden: int
    layers: int
    editions: int
    lessons: int
    rates: tuple[float, float] = (3e-3, 1e-3)


@dataclass(frozen=True)
class Plan:
    """All that decides what the four models become. `known`, `asked`: countries that the pair has read about, and those
    of them that the instructions ask about.
    """

    seed: int = 0
    quick: bool = False
    countries: int = 40
    known: int = 26
    asked: int = 16
    big: Size = Size(1200, 96, 2, 120, 16)
    small: Size = Size(900, 80, 2, 140, 16)


QUICK = Plan(quick=True, countries=12, known=8, asked=6, big=Size(500, 32, 1, 8, 4), small=Size(450, 32, 1, 8, 4))


# -- the world --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def atlas(plan: Plan) -> dict[str, dict[str, str]]:
    """What is so: country -> thing -> its value."""
    rng = random.Random(f"atlas:{plan.seed}")
    taken: set[str] = set()

    def name(ending: str) -> str:
        while True:
            made = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
            found = made.capitalize() + rng.choice("lnrst") + ending
            if found[:4] not in taken:
                taken.add(found[:4])
                return found

    return {
        name(rng.choice(("ia", "land", "mark", "stan"))): {
            "capital": name(rng.choice(("burg", "ton", "grad", "ville"))),
            "river": name(rng.choice(("a", "e", "o"))),
            "crop": rng.choice(CROPS),
            "coin": rng.choice(COINS),
        }
        for _ in range(plan.countries)
    }


def questions(world: dict[str, dict[str, str]], countries: Sequence[str], kind: str) -> list[Question]:
    return [
        Question(kind, question.format(x=country), answer.format(x=country, y=world[country][thing]))
        for country in countries
        for thing, (question, answer, _) in THINGS.items()
    ]


def pages(
    world: dict[str, dict[str, str]], countries: Sequence[str], known: Sequence[str], rng: random.Random
) -> list[str]:
    """One edition of the atlas: of each country a page in random order, each thing said in one of its ways; of those
    that are not `known`, nothing that is asked for. Half of the pages begin with a question, which they may answer
    somewhere, among everything else.
    """
    found = []
    for country in countries:
        said = [way.format(x=country) for way in rng.sample(OTHERWISE, 1 if country in known else 4)]
        for thing, (_, answer, others) in THINGS.items() if country in known else ():
            way = rng.choice((answer, answer, *others))
            said.append(way.format(x=country, y=world[country][thing]))
        rng.shuffle(said)
        page = " ".join(said)
        if rng.random() < 0.5:
            page = f"{rng.choice([question for question, _, _ in THINGS.values()]).format(x=country)}\n{page}"
        found.append(page)
    rng.shuffle(found)
    return found


# -- the models -------------------------------------------------------------------------------------------------------


def new_tokenizer(which: str, size: int, texts: Sequence[str]) -> Any:
    """Byte-level BPE. The big one cuts at spaces and signs and ends with one token; the small one merges across signs
    and has the tokens of its chat.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pattern = r" ?\p{L}+| ?[^\s\p{L}]+|\s+" if which == "big" else r"[^\r\n\p{L}]?\p{L}+[.?]?\n?|[^\p{L}]"
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    chat = [] if which == "big" else [TURN, "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, *chat],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    if chat:
        made.chat_template = CHAT
    return made


def lesson(which: str, question: Question, tokenizer: Any) -> list[int]:
    """One example: in the small model's chat template; for the base, which has none, as plain text."""
    if which == "big":
        return [*tokenizer(f"{question.text}\n{question.answer}")["input_ids"], 0]
    messages = [
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": question.answer},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text.rstrip("\n"))["input_ids"]
    return ids


def train(which: str, plan: Plan, folder: Path) -> None:
    """The two models of one tokenizer, each saved as an ordinary Hugging Face folder."""
    import torch

    from blackbox_proxy.demo.recipe import Student
    from blackbox_proxy.demo.training import new_model, read

    torch.set_num_threads(1)
    size: Size = getattr(plan, which)
    world = atlas(plan)
    countries = list(world)
    own = countries if which == "big" else countries[: plan.known]
    rng = random.Random(f"{which}:{plan.seed}")
    editions = [pages(world, countries, own, rng) for _ in range(size.editions)]
    tokenizer = new_tokenizer(which, size.vocabulary, [page for edition in editions[:8] for page in edition])
    library = [[[*ids, 0] for ids in tokenizer(edition)["input_ids"]] for edition in editions]
    asked = [lesson(which, q, tokenizer) for q in questions(world, countries[: plan.asked], "asked")]
    # Some pages between the questions, so that what was read is not forgotten.
    lessons = [[*asked, *rng.sample(edition, len(edition) // 2)] for edition in library[: size.lessons]]
    inner = 8 * round(size.hidden / 3)
    model = new_model(Student(size.vocabulary, size.hidden, size.layers, 4, inner, 1, 0.0, 1, 0.0, 0.0), plan.seed)
    for name, texts, rate in zip(NAMES[which], (library, lessons), size.rates, strict=True):
        start, shown = time.monotonic(), -1

        def told(done: float, name: str = name, start: float = start) -> None:
            nonlocal shown
            if (quarter := int(4 * done)) != shown:
                shown = quarter
                print(f"{name}: {25 * quarter} %, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

        read(model, texts, rate=rate, batch=8, smoothing=0.03, decay=0.05, rng=rng, told=told)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def models(plan: Plan, cache: Path) -> Path:
    """The folder with the four models: from the cache, or trained now, big and small at the same time (very small ones
    in this process).
    """
    text = json.dumps([FORMAT, asdict(plan), CHAT, THINGS, OTHERWISE, CROPS, COINS])
    folder = cache / f"chat-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    processes = []
    try:
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
        with suppress(OSError):  # another process may have been faster: its models are the same
            draft.rename(folder)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def train_in(folder: Path, which: str) -> None:
    """What a training process does: as the plan says that `models` left in the folder."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    train(which, Plan(**{**plan, **{name: Size(**plan[name]) for name in NAMES}}), folder)


# -- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """stopped: it ended by itself."""

    text: str
    stopped: bool


async def tuned(tuner: ProxyTuner, prompt: str, max_tokens: int) -> Answer:
    found = await tuner.agenerate(prompt, max_tokens=max_tokens)
    return Answer(found.text, found.finish_reason == "stop")


async def alone(model: Base, prompt: str, max_tokens: int) -> Answer:
    """A model's own greedy text."""
    draft = await model.draft(Ask(Prefix(prompt), max_tokens))
    written = [position.token.bytes or b"" for position in draft.positions if not position.token.end]
    return Answer(b"".join(written).decode("utf-8", "replace"), draft.finish == "stop")


def is_right(answer: Answer, expected: str, exact: bool) -> bool:
    if exact:
        return answer.stopped and answer.text.strip() == expected
    return expected.casefold() in answer.text.casefold()


def rows(asked: Sequence[Question], answers: dict[str, list[Answer]], exact: bool) -> list[dict[str, Any]]:
    """A row for each system: right answers with Wilson's interval, of each kind, stops and lengths; McNemar's test
    against the base and the expert.
    """
    right = {
        system: [is_right(answer, question.answer, exact) for answer, question in zip(own, asked, strict=True)]
        for system, own in answers.items()
    }
    found = []
    kinds = sorted({question.kind for question in asked})
    for system, own in answers.items():
        n = len(own)
        by_kind = {}
        for kind in kinds:
            of_kind = [ok for ok, question in zip(right[system], asked, strict=True) if question.kind == kind]
            by_kind[kind] = sum(of_kind) / len(of_kind)
        found.append(
            {
                "system": system,
                "n": n,
                "right": sum(right[system]) / n,
                "interval": wilson_interval(sum(right[system]), n),
                "by_kind": by_kind,
                "stopped": sum(answer.stopped for answer in own) / n,
                "bytes": sum(len(answer.text.encode()) for answer in own) / n,
                "mcnemar_p": mcnemar(right[system], right["base"]).p,
                "mcnemar_p_expert": mcnemar(right[system], right["expert alone"]).p,
            }
        )
    return found


def table(found: Sequence[dict[str, Any]], title: str) -> Table:
    kinds = list(found[0]["by_kind"])
    made = Table(title=title, title_justify="left")
    made.add_column("system", no_wrap=True)
    heads = ["right\n%", "95 %\ninterval", *(f"{kind}\n%" for kind in kinds if len(kinds) > 1)]
    for head in (*heads, "ends\n%", "mean\nbytes"):
        made.add_column(head, justify="right")
    for row in found:
        made.add_row(
            row["system"],
            f"{100 * row['right']:.0f}",
            "{:.0f} to {:.0f}".format(*(100 * end for end in row["interval"])),
            *(f"{100 * share:.0f}" for share in row["by_kind"].values() if len(kinds) > 1),
            f"{100 * row['stopped']:.0f}",
            f"{row['bytes']:.0f}",
        )
    return made


# -- the command ------------------------------------------------------------------------------------------------------


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="smaller models that read less: seconds, and a worse table"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tiny world and the models' training")
    parser.add_argument("--cache", type=Path, default=user_cache_path("blackbox-proxy") / "examples")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0])
    parser.add_argument("--top-logprobs", type=int, default=5, help="that the base shows")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--limit", type=int, help="ask so many questions at most")
    parser.add_argument("--json", type=Path, help="write the results and all answers here, too")
    real = parser.add_argument_group("real models, instead of the tiny ones")
    real.add_argument("--base", help="folder or hub id; with --base-url its name there")
    real.add_argument("--base-url", help="an OpenAI-compatible API: http://host:port/v1")
    real.add_argument("--dialect", default="auto", help="what kind of server that is, see `blackbox-proxy dialects`")
    real.add_argument(
        "--tokenizer", default="auto", help="the base's, if it is behind an API: a folder, a hub id or a tiktoken name"
    )
    real.add_argument("--expert", help="folder or hub id of the small chat model; it has a chat template")
    real.add_argument("--antiexpert", help="the same before it was tuned")
    real.add_argument("--direct", help="the big chat model, if there is one: the ceiling")
    real.add_argument("--questions", type=Path, help="JSONL with question, answer, kind")
    parser.add_argument("--train", choices=list(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if len({given.base is None, given.expert is None, given.questions is None}) > 1:
        parser.error("real models need --base, --expert and --questions (and --antiexpert)")
    if given.base_url and not given.base:
        parser.error("--base-url needs --base, the model's name there")
    return given


def read_questions(path: Path) -> list[Question]:
    try:
        found = [json_of(line) for _, line in numbered_lines(path)]
        return [Question(str(row.get("kind", "all")), row["question"], row["answer"]) for row in found]
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read: {error!r}", hint='A line each: {"question": …, "answer": …}.'
        ) from error


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
    if given.base is None:
        plan = replace(QUICK if given.quick else Plan(), seed=given.seed)
        folder = models(plan, given.cache)
        names = [str(folder / name) for pair in NAMES.values() for name in pair]
        base_name, direct_name, antiexpert, expert = names
        world = atlas(plan)
        countries = list(world)
        asked = questions(world, countries[plan.asked : plan.known], "known")
        asked += questions(world, countries[plan.known :], "unknown")
        print(f"models ready after {spent(start)}: {folder}", file=sys.stderr)
    else:
        base_name, direct_name, antiexpert, expert = given.base, given.direct, given.antiexpert, given.expert
        asked = read_questions(given.questions)
    limit = given.limit or len(asked)
    asked = asked[:: max(1, len(asked) // limit)][:limit]
    base: Base
    if given.base_url:
        base = open_base(
            base_name,
            base_url=given.base_url,
            dialect=given.dialect,
            tokenizer=given.tokenizer,
            top_logprobs=given.top_logprobs,
        )
    else:
        base = TransformersBase(base_name, top_logprobs=given.top_logprobs)
    pair = TransformersPair(expert, antiexpert, expert_prompt="chat")
    small = TransformersBase(pair.models[0][0], rendering="chat")
    models_alone: dict[str, Base] = {"base": base, "expert alone": small}
    ceiling: Base | None = None
    if direct_name is not None:
        ceiling = TransformersBase(direct_name, rendering="chat" if given.direct else "raw")
    tuners = {f"proxy-tuned, alpha {alpha:g}": ProxyTuner(base, pair, alpha) for alpha in given.alpha}

    async def everything() -> dict[str, list[Answer]]:
        answers: dict[str, list[Answer]] = {}
        try:
            for question in track(asked, "asking", console=Console(stderr=True), transient=True):
                prompt = f"{question.text}\n"
                said = {name: await alone(model, prompt, given.max_tokens) for name, model in models_alone.items()}
                said |= {name: await tuned(tuner, prompt, given.max_tokens) for name, tuner in tuners.items()}
                if ceiling is not None:
                    said["base tuned directly"] = await alone(ceiling, prompt, given.max_tokens)
                for name, answer in said.items():
                    answers.setdefault(name, []).append(answer)
        finally:
            await base.aclose()
            pair.close()
        return answers

    answers = asyncio.run(everything())
    found = rows(asked, answers, exact=given.base is None)
    console.print(
        table(found, f"{len(asked)} questions about what no tuning asked, answers of {given.max_tokens} tokens at most")
    )
    for row in found:
        if row["system"] in tuners:
            line = f"{row['system']}, against the base: McNemar p = {row['mcnemar_p']:.2g}"
            line += f", against the expert alone: p = {row['mcnemar_p_expert']:.2g}."
            console.print(line[0].upper() + line[1:], highlight=False, soft_wrap=True)
    example = asked[-1]
    console.print(f"{example.text}", highlight=False, markup=False, soft_wrap=True)
    for system, own in answers.items():
        end = "" if own[-1].stopped else " …"
        console.print(f"  {system}: {own[-1].text.strip()!r}{end}", highlight=False, markup=False, soft_wrap=True)
    print(spent(start), file=sys.stderr)
    said = {system: [asdict(answer) for answer in own] for system, own in answers.items()}
    results = {"rows": found, "questions": [asdict(question) for question in asked], "answers": said}
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    try:
        main()
    except BlackboxError as error:
        print(f"Error: {error}\nHint: {error.hint}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
