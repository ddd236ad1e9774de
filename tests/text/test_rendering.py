"""Prompts are texts that go on: no end token behind them, whatever the tokenizer was saved with for training."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from toys import train_tokenizer
from transformers import PreTrainedTokenizerFast

from blackbox_proxy.errors import InputError
from blackbox_proxy.host.prompts import Prompts
from blackbox_proxy.serve.engine import TextWanted
from blackbox_proxy.text.spelling import from_tokenizer
from blackbox_proxy.types import Rendering

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
ENDING = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)


def processor(single: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])


POST: dict[str, Any] = {
    "nothing": None,
    "an end": processor("$A </s>"),
    "both": processor("<s> $A </s>"),
    "two ends": processor("<s> $A </s> </s>"),
    "a beginning": processor("<s> $A"),
    "the beginning again": processor("<s> $A <s>"),
    "in a row": processors.Sequence([processors.ByteLevel(trim_offsets=False), processor("<s> $A </s>")]),
    "as BERT does": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    "as RoBERTa does": processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False),
}
PROMPTS: dict[str, tuple[Any, Rendering]] = {
    "raw": ("The mayor of", "raw"),
    "one letter": ("x", "raw"),
    "messages, raw": ([{"role": "user", "content": "Hi"}, {"role": "user", "content": "you"}], "raw"),
    "a function": ("Hi", lambda prompt: f"Q: {prompt} A:"),
    "a function that begins": ("Hi", lambda prompt: f"<s>{prompt}"),
    "a chat": ("Hi", "chat"),
    "nothing": ("", "raw"),
}


@pytest.mark.parametrize("kind", ["bytes", "digits", "pieces"])
@pytest.mark.parametrize("post", POST)
def test_no_prompt_ends_in_an_end_token(post: str, kind: str) -> None:
    tokenizer = train_tokenizer(kind, 400)
    plain = from_tokenizer(train_tokenizer(kind, 400))
    if POST[post] is not None:
        tokenizer.backend_tokenizer.post_processor = POST[post]
    tokenizer.chat_template = TEMPLATE
    vocabulary = from_tokenizer(tokenizer)
    for name, (prompt, rendering) in PROMPTS.items():
        ids = vocabulary.prompt_ids(prompt, rendering)
        assert not ids or ids[-1] not in vocabulary.end_ids, name
        if rendering != "chat":
            bare = plain.prompt_ids(prompt, rendering)
            begins = post not in ("nothing", "an end") and bare[:1] != (0,)
            assert ids == ((0, *bare) if begins else bare), name


@pytest.mark.parametrize("special", [None, True, False])
@pytest.mark.parametrize("post", POST)
def test_no_prompt_of_a_request_ends_in_an_end_token(post: str, special: bool | None) -> None:
    """`host` reads prompts with the tokenizer as it was saved, too."""
    tokenizer = train_tokenizer("bytes", 400)
    if POST[post] is not None:
        tokenizer.backend_tokenizer.post_processor = POST[post]
    prompts, bare = Prompts(tokenizer), tuple(tokenizer("The mayor of", add_special_tokens=False)["input_ids"])
    begins = special is not False and post not in ("nothing", "an end")
    assert prompts.ids(TextWanted("The mayor of", 1, add_special_tokens=special)) == ((0, *bare) if begins else bare)
    assert prompts.ids(TextWanted(({"role": "user", "content": "Hi"},), 1, add_special_tokens=special))[-1] not in (
        0,
        1,
    )


@pytest.mark.parametrize("post", ["an end", "nothing"])
def test_an_end_that_is_written_on_purpose_stays(post: str) -> None:
    tokenizer = train_tokenizer("bytes", 400)
    if POST[post] is not None:
        tokenizer.backend_tokenizer.post_processor = POST[post]
    tokenizer.chat_template = ENDING
    vocabulary = from_tokenizer(tokenizer)
    assert vocabulary.prompt_ids("Hi", "chat")[-1] == 1
    assert vocabulary.prompt_ids("Hi</s>")[-1] == 1
    assert vocabulary.prompt_ids("Hi</s>") == vocabulary.prompt_ids("Hi", lambda prompt: f"{prompt}</s>")


def test_messages_that_the_template_refuses_are_the_callers_mistake() -> None:
    tokenizer = train_tokenizer("bytes", 400)
    tokenizer.chat_template = STRICT
    vocabulary = from_tokenizer(tokenizer)
    assert vocabulary.prompt_ids([{"role": "user", "content": "Hi"}], "chat")
    with pytest.raises(InputError, match="System role not supported") as caught:
        vocabulary.prompt_ids([{"role": "system", "content": "Be brief."}], "chat")
    assert "function" in caught.value.hint


def test_a_padded_or_cut_tokenizer_is_neither_for_a_prompt() -> None:
    """Saved with truncation and padding on, as after training in batches."""
    tokenizer = train_tokenizer("bytes", 400)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    plain = from_tokenizer(train_tokenizer("bytes", 400))
    vocabulary = from_tokenizer(tokenizer)
    text = "The mayor of New York said on 12 March"
    assert vocabulary.prompt_ids(text) == plain.prompt_ids(text)
    assert vocabulary.encode([text.encode()]) == plain.encode([text.encode()])


HOSTILE = {
    "what the sandbox forbids": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "a change of what it is given": "{{ messages.append(1) }}",
    "too many": "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
    "nothing there": "{{ nothing.of.this }}",
    "no number": "{{ 1 // 0 }}",
    "no template": "{% for %}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_an_error_of_ours(template: str) -> None:
    tokenizer = train_tokenizer("bytes", 300)
    tokenizer.chat_template = template
    vocabulary = from_tokenizer(tokenizer)
    assert vocabulary.prompt_ids("Hi") == from_tokenizer(train_tokenizer("bytes", 300)).prompt_ids("Hi")
    with pytest.raises(InputError, match="the chat template refuses"):
        vocabulary.prompt_ids([{"role": "user", "content": "Hi"}], "chat")


def test_a_pattern_that_gives_up_is_an_error_of_ours() -> None:
    """A panic of the library is no Exception: without a name it would end whatever waits for it."""
    description = json.loads(train_tokenizer("bytes", 300).backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": "(a|a)*b|."}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    backend = Tokenizer.from_str(json.dumps(description))
    vocabulary = from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))
    text = "a" * 60
    for ask in (
        lambda: vocabulary.prompt_ids(text),
        lambda: vocabulary.encode([text.encode()]),
        lambda: vocabulary.encode([text.encode(), b"b"]),
        lambda: vocabulary.boundary(text.encode()),
    ):
        with pytest.raises(InputError, match="pattern fails"):
            ask()
