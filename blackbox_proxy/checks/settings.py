"""What can be told of settings without asking anybody: names, folders, keys, tokenizers. Nothing is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blackbox_proxy.checks.finding import Finding, failed
from blackbox_proxy.config.tables import PairTable
from blackbox_proxy.errors import BlackboxError
from blackbox_proxy.opening import Setup
from blackbox_proxy.tuner import run

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tokenizer_config.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def check_settings(setup: Setup) -> Iterator[Finding]:
    """The base, each pair, learned weights, the budget."""
    yield from check_base(setup)
    if not setup.settings.pairs:
        yield Finding("fails", "pairs", "there is no pair", "Give --expert, or a table [pairs.NAME] in the file.")
    for name, pair in setup.settings.pairs.items():
        yield from check_pair(f"pair {name}", pair)
    yield from check_weights(setup)
    try:
        budget = setup.budget()
        limited = "nothing is limited" if budget is None else "what may be spent is limited"
        yield Finding("ok", "budget", limited)
    except BlackboxError as error:
        yield failed("budget", error)


def check_base(setup: Setup) -> Iterator[Finding]:
    """Where the base is, and whether it can be opened: its address, its key, its tokenizer."""
    told = setup.settings.base
    try:
        model = setup.model
        if told.local:
            yield folder("base", model)
            return
        base = setup.open_base(asking=False)
        try:
            yield Finding("ok", "base", f"{base.name}, through its {told.api} API, dialect {told.dialect}")
            if setup.tokenizer is None:
                yield unknown()
        finally:
            run(base.aclose())
    except BlackboxError as error:
        yield failed("base", error)


def unknown() -> Finding:
    """What it means that the base's tokenizer is not known."""
    hint = "With tokenizer under [base] (--tokenizer) tokens have ids, and more is exact."
    return Finding("warns", "tokenizer", "the base's tokenizer is not known", hint)


def check_pair(what: str, pair: PairTable) -> Iterator[Finding]:
    """Whether the folders of a pair hold models, or who serves it."""
    if pair.expert_url is not None:
        yield Finding("ok", what, f"{pair.expert} is served at {pair.expert_url}")
        return
    yield folder(f"{what}, expert", pair.expert)
    if pair.antiexpert is None:
        hint = "Give the model before tuning, antiexpert: without it the expert itself is added, not its tuning."
        yield Finding("warns", f"{what}, anti-expert", "there is none", hint)
    else:
        yield folder(f"{what}, anti-expert", pair.antiexpert)
        if pair.antiexpert == pair.expert:
            yield Finding("warns", what, "expert and anti-expert are one model: nothing will change", "Name two.")


def check_weights(setup: Setup) -> Iterator[Finding]:
    """Whether learned weights are for this base, pair, k, tail and way to show prompts, as far as names tell: no model
    is loaded.
    """
    from blackbox_proxy.learned import read_learned

    equation = setup.settings.equation
    if equation.weights is None:
        return
    try:
        learned = read_learned(equation.weights)
        models = _named(setup)
    except BlackboxError as error:
        yield failed("weights", error)
        return
    different = list(learned.differences(models))
    again = "Run `blackbox-proxy calibrate` with what you use now."
    for each in different:
        said = f"{equation.weights} was learned for {each.text}"
        if each.sure:
            yield Finding("fails", "weights", said, again)
        else:
            hint = "It may be the same model in another folder: that is looked at when it is loaded, as `doctor` does."
            yield Finding("warns", "weights", said, hint)
    if not different:
        yield Finding("ok", "weights", f"{equation.weights}, learned for models of these names, k, tail and prompts")


def _named(setup: Setup) -> dict[str, Any]:
    """What weights are for (see `learned.models_of`), before anything is loaded: names without digests."""
    from blackbox_proxy.learned import models_of, prompts_of, tail_of

    told, equation = setup.settings.base, setup.settings.equation
    found: dict[str, Any] = {
        "base": {"name": setup.model, "digest": None},
        "top_logprobs": told.top_logprobs,
        **tail_of(equation.tail, equation.tail_size),
    }
    shown: object = told.prompt
    if not told.local:
        base = setup.open_base(asking=False)
        found |= models_of(base, (), equation.tail, equation.tail_size)
        (shown,) = found["prompts"]
        run(base.aclose())
    pairs, renderings = [], []
    for pair in setup.settings.pairs.values():
        kind = "TransformersPair" if pair.expert_url is None else "ServedPair"
        names = ", ".join(each for each in (pair.expert, pair.antiexpert) if each is not None)
        pairs.append({"name": f"{kind}({names})", "digest": None})
        prompts = (pair.expert_prompt, pair.antiexpert_prompt)
        renderings.append(prompts[: 1 if pair.antiexpert is None else 2])
    return found | {"pairs": pairs, "prompts": prompts_of(shown, renderings)}


def folder(what: str, name: str) -> Finding:
    """Whether a folder holds a model; what is no folder may be a hub id."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "~", "/")) or path.exists():
            return Finding("fails", what, f"there is no folder {name}", "Give a model's folder, or a hub id.")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return Finding("ok", what, f"{name}, a hub id: no folder of that name lies here")
        hint = "Is it a folder elsewhere? Else it is fetched from the hub when it is first used."
        return Finding("warns", what, f"{name} is no folder here and is taken for a hub id", hint)
    if (path / "adapter_config.json").is_file():
        return Finding("ok", what, f"{name}, an adapter")
    missing = [
        part
        for part, there in (
            ("config.json", (path / "config.json").is_file()),
            ("a tokenizer", any((path / file).is_file() for file in _TOKENIZERS)),
            ("weights", any(next(path.glob(pattern), None) for pattern in _WEIGHTS)),
        )
        if not there
    ]
    if missing:
        hint = "A model's folder is what save_pretrained writes, the tokenizer's included."
        return Finding("fails", what, f"{name} holds no {', no '.join(missing)}", hint)
    return Finding("ok", what, f"{name}, a folder with a model")
