"""Many texts in one forward pass, each with its own cache: what one model reads for all that wait, packed end to end.

The linear layers, nearly all of a small model's work, see one sequence of everybody's new tokens; attention is run text
by text over that text's own keys and values, under its own mask. So nothing is padded, trees and chains mix freely, and
a text costs the same alone or in company. The attention is put into transformers' table of attention functions under a
name of this package's own, and is used only while a pack is read.

    Segment (one text's new tokens)  ->  Reader.read: waits for the model, goes in one pass with the others  ->  logits
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

from blackbox_proxy.background import checkpoint

NAME = "blackbox_proxy_packed"
MOST_TOKENS = 2048  # of one pass: more would only make the others wait longer
_running = threading.local()


class KV:
    """Keys and values of one text, a tensor (heads, capacity, d) for each layer; `length` tokens of it count."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (heads, q, d) behind the first `length`; all (heads, length + q, d) of this layer."""
        end = self.length + keys.shape[1]
        both = self._layers.get(layer)
        if both is None or both[0].shape[1] < end:
            both = self._layers[layer] = (self._grown(both, 0, keys, end), self._grown(both, 1, values, end))
        both[0][:, self.length : end] = keys
        both[1][:, self.length : end] = values
        return both[0][:, :end], both[1][:, :end]

    def _grown(
        self, both: tuple[torch.Tensor, torch.Tensor] | None, which: int, like: torch.Tensor, needed: int
    ) -> torch.Tensor:
        larger = like.new_empty(like.shape[0], max(needed + 32, needed + needed // 4), like.shape[2])
        if both is not None:
            larger[:, : self.length] = both[which][:, : self.length]
        return larger

    def copy(self, length: int) -> KV:
        """The first `length` tokens, in memory of their own."""
        other = KV()
        other.length = length
        for layer, (keys, values) in list(self._layers.items()):
            other._layers[layer] = (keys[:, :length].clone(), values[:, :length].clone())
        return other


@dataclass(slots=True, eq=False)
class Segment:
    """What one text wants read: `ids` (q,) behind its cache, and the logits at the places `keep` among them.

    parents: None where the ids are a chain; else the node that each id follows; -1 is the end of the cache, -2 the
    token before that, and so on. Nodes of the tree see what is before them on their way, and stand where their depth
    puts them.
    """

    kv: KV
    ids: Sequence[int]
    keep: Sequence[int]
    parents: Sequence[int] | None = None
    places: list[int] = field(default_factory=list)
    _seen: torch.Tensor | None = None
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        past, q = self.kv.length, len(self.ids)
        if self.parents is None:
            self.places = list(range(past, past + q))
            return
        self.places = [0] * q
        seen = torch.cat([torch.zeros(q, past, dtype=torch.bool), torch.eye(q, dtype=torch.bool)], dim=1)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                self.places[i] = self.places[parent] + 1
                seen[i] |= seen[parent]
            else:
                self.places[i] = past + parent + 1
                seen[i, : self.places[i]] = True
        self._seen = seen

    def mask(self, window: int | None, groups: int, device: torch.device) -> torch.Tensor | None:
        """(groups * q, length + q): what each new token may see; None where that is everything."""
        if window not in self._masks:
            self._masks[window] = self._mask(window, groups, device)
        return self._masks[window]

    def _mask(self, window: int | None, groups: int, device: torch.device) -> torch.Tensor | None:
        past, q = self.kv.length, len(self.ids)
        within = window is None or max(self.places) < window
        if q == 1 and within and self.places[0] == past:
            return None
        allowed = torch.ones(q, past + q, dtype=torch.bool).tril(past) if self._seen is None else self._seen.clone()
        if not within and window is not None:
            at = torch.tensor(self.places)
            allowed &= at[:, None] - torch.cat([torch.arange(past), at])[None, :] < window
        return allowed.repeat(groups, 1).to(device)


class _Passed:
    """Stands where a model expects its cache: the attention below does the keeping."""

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """(1, Q, heads, d) of a pack: text by text, each over its own cache."""
    if any(others.get(name) is not None for name in ("s_aux", "position_bias")):
        raise NotImplementedError("this attention has a part that is not known here")
    heads, _, d = query.shape[1:]
    groups = heads // key.shape[1]
    out = query.new_empty(query.shape[2], heads, value.shape[-1])
    start = 0
    for segment in _running.pack:
        end = start + len(segment.ids)
        keys, values = segment.kv.put(module.layer_idx, key[0, :, start:end], value[0, :, start:end])
        # Heads that share keys stand in one row of queries: (heads / groups, groups * q, d).
        own = query[0, :, start:end].reshape(keys.shape[0], groups * (end - start), d)
        mask = segment.mask(sliding_window, groups, query.device)
        found = _attend(own, keys, values, mask, scaling, softcap)
        out[start:end] = found.reshape(heads, end - start, -1).transpose(0, 1)
        start = end
    return out[None], None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, scale=scaling
        )[0]
    scores = query @ keys.transpose(1, 2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ values


AttentionInterface.register(NAME, _attention)


@contextmanager
def _packing(config: Any, pack: Sequence[Segment]) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = NAME
    _running.pack = pack
    try:
        yield
    finally:
        config._attn_implementation = before
        del _running.pack


@dataclass(slots=True, eq=False)
class _Job:
    segment: Segment
    active: Callable[[], AbstractContextManager[object]]
    done: threading.Event = field(default_factory=threading.Event)
    logits: torch.Tensor | None = None
    error: BaseException | None = None
    leads: bool = False


class Reader:
    """One set of weights, and who waits to have something read by them.

    Nobody waits for company: who comes while the model is free reads at once, and all who come meanwhile are read
    together in the next pass, in the order in which they came. An error in a pass reaches everybody who was in it.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self.running = threading.Lock()  # held while the weights are in use, by whomever
        self._config = model.config.get_text_config(decoder=True)
        self.device = next(model.parameters()).device  # where what is read has to be
        self._mutex = threading.Lock()
        self._waiting: list[_Job] = []
        self._busy = False
        self.read_tokens = 0
        self.passes = 0

    def read(
        self, segment: Segment, active: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> torch.Tensor:
        """Logits (len(keep), V) in the model's own type. The segment's tokens then count in its cache.

        active: entered around the pass (an adapter switched on); segments with different ones never share a pass.
        """
        checkpoint()
        job = _Job(segment, active)
        with self._mutex:
            self._waiting.append(job)
            job.leads = not self._busy
            self._busy = True
        if not job.leads:
            job.done.wait()
        if job.leads and job.logits is None and job.error is None:
            self._lead(job)
        if job.error is not None:
            raise job.error
        assert job.logits is not None
        return job.logits

    def _lead(self, own: _Job) -> None:
        """Read packs until one's own is read, then hand over to whoever waits longest."""
        while own.logits is None and own.error is None:
            with self._mutex:
                pack = self._next_pack()
            try:
                self._run(pack)
            except BaseException as error:
                for job in pack:
                    job.error = error
                if not isinstance(error, Exception):
                    self._hand_over(pack, own)
                    raise
            for job in pack:
                if job is not own:
                    job.done.set()
        self._hand_over([], own)

    def _hand_over(self, pack: Sequence[_Job], own: _Job) -> None:
        for job in pack:
            if job is not own:
                job.done.set()
        with self._mutex:
            following = self._waiting[0] if self._waiting else None
            self._busy = following is not None
            if following is not None:
                following.leads = True
        if following is not None:
            following.done.set()

    def _next_pack(self) -> list[_Job]:
        first, size = self._waiting[0], 0
        pack: list[_Job] = []
        rest: list[_Job] = []
        for job in self._waiting:
            size += len(job.segment.ids)
            fits = job is first or (job.active == first.active and size <= MOST_TOKENS)
            (pack if fits else rest).append(job)
        self._waiting = rest
        return pack

    @torch.inference_mode()
    def _run(self, pack: Sequence[_Job]) -> None:
        segments = [job.segment for job in pack]
        model = self._model()
        assert model is not None, "whoever reads holds the weights"
        device = self.device
        ids = torch.tensor([[i for segment in segments for i in segment.ids]], device=device)
        places = torch.tensor([[place for segment in segments for place in segment.places]], device=device)
        keep, start = [], 0
        for segment in segments:
            keep += [start + place for place in segment.keep]
            start += len(segment.ids)
        with self.running, pack[0].active(), _packing(self._config, segments):
            logits = model(
                input_ids=ids,
                position_ids=places,
                past_key_values=_Passed(),
                use_cache=True,
                logits_to_keep=torch.tensor(keep, device=device),
            ).logits[0]
        self.read_tokens += start
        self.passes += 1
        first = 0
        for job in pack:
            size = len(job.segment.keep)
            job.segment.kv.length += len(job.segment.ids)
            job.logits = logits[first : first + size]
            first += size


_READERS: weakref.WeakKeyDictionary[Any, Reader] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def reader_of(model: Any) -> Reader:
    """The one reader of these weights: whoever runs them waits for it, so that nobody changes them under another."""
    with _making:
        found = _READERS.get(model)
        if found is None:
            found = _READERS[model] = Reader(model)
        return found
