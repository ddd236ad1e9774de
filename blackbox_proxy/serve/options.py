"""What a host can be told, each option declared once: `run_host`, `open_engine`, `HostProcess` and the command `host`
take these, by the names of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blackbox_proxy.errors import InputError
from blackbox_proxy.serve.emulation import Emulation, emulation_of

_USUAL_LOGPROBS = 5


def _option(help_line: str, **default: Any) -> Any:
    """A field with the line that `blackbox-proxy host --help` prints for it."""
    return field(metadata={"help": help_line}, **default)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The model that is served, and what is seen of it. Raises InputError."""

    model: str = field(metadata={"help": "Folder or hub id of a causal language model."})
    top_logprobs: int | None = _option(
        "Most logprobs a client gets per token; -1: all. Default: 5, or the dialect's.", default=None
    )
    served_model_name: str | None = _option("How clients name the model.", default=None)
    chat_template: str | None = _option("Jinja template, or its file, for chat.", default=None)
    device: str = _option("Where the model runs: auto, cpu, cuda …", default="auto")
    dtype: str = _option("auto, float32, bfloat16 or float16.", default="auto")
    trust_remote_code: bool = _option("Run the model's own code.", default=False)
    first_token: float = _option("Seconds until the first token, as if over a network.", default=0.0)
    per_token: float = _option("Seconds for each further token.", default=0.0)

    def __post_init__(self) -> None:
        if self.top_logprobs is not None and self.top_logprobs < -1:
            raise InputError("top_logprobs must be at least 0, or -1 for the whole vocabulary")

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model

    @property
    def most(self) -> int:
        """The most log probabilities per token that a client gets; -1 for the whole vocabulary."""
        return _USUAL_LOGPROBS if self.top_logprobs is None else self.top_logprobs


@dataclass(frozen=True, kw_only=True)
class HostOptions(EngineOptions):
    """The same, and the server that shows the model."""

    dialect: str | None = _option(
        "Behave as this kind of server, limits and faults included; see `dialects`.", default=None
    )
    host: str = _option("Address to listen on.", default="127.0.0.1")
    port: int = _option("Port to listen on; 0 takes a free one.", default=8000)
    api_key: str | None = _option("Key that clients must send.", default=None)

    @property
    def emulation(self) -> Emulation:
        """How the server behaves. Raises InputError for an unknown dialect."""
        return Emulation() if self.dialect is None else emulation_of(self.dialect)

    @property
    def most(self) -> int:
        if self.top_logprobs is None and self.dialect is not None:
            return self.emulation.most
        return super().most

    @property
    def path(self) -> str:
        """Where the routes lie below the address, as /v1."""
        return self.emulation.roots[0].format(model=self.name)
