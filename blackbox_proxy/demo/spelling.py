"""The two tokenizers of the demo, as unlike as two tokenizers of real models.

Big: byte-level BPE that takes digits one by one. Small: spaces written as "▁", digits merged like letters, bytes only
for characters that it never read. So years, prices and many names are cut at different places.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BIG_END = "<|endoftext|>"
SMALL_END = "</s>"


def big_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` pieces, each digit by itself; id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BIG_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=BIG_END)


def small_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """BPE of `size` pieces on words with "▁" for the space, byte fallback; id 0 ends a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"[\n.,:?]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_alone = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[SMALL_END, "<unk>", *bytes_alone], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer knows no other way to reserve the byte pieces than as special tokens; they are ordinary text.
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [a for a in description["added_tokens"] if a["content"] not in bytes_alone]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SMALL_END, unk_token="<unk>")
