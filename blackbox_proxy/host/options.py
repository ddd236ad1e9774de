"""What a host can be told, each option declared once: `run_host`, `open_engine`, `HostProcess` and the command `host`
take these, by the names of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blackbox_proxy.door.limits import Limits, option
from blackbox_proxy.errors import InputError
from blackbox_proxy.serve.emulation import Emulation, emulation_of

_USUAL_LOGPROBS = 5


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The model that is served, and what is seen of it. Raises InputError."""

    model: str = field(metadata={"help": "Folder or hub id of a causal language model."})
    top_logprobs: int | None = option(
        "Most logprobs a client gets per token; -1: all. Default: 5, or the dialect's.", default=None
    )
    served_model_name: str | None = option("How clients name the model.", default=None)
    chat_template: str | None = option("Jinja template, or its file, for chat.", default=None)
    device: str = option("Where the model runs: auto, cpu, cuda …", default="auto")
    dtype: str = option("auto, float32, bfloat16 or float16.", default="auto")
    trust_remote_code: bool = option("Run the model's own code.", default=False)
    first_token: float = option("Seconds until the first token, as if over a network.", default=0.0)
    per_token: float = option("Seconds for each further token.", default=0.0)
    remember: bool = option("Write greedy texts once and give them again from memory.", default=False)

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
class HostOptions(Limits, EngineOptions):
    """The same, the server that shows the model, and what a client may take of it."""

    dialect: str | None = option(
        "Behave as this kind of server, limits and faults included; see `dialects`.", default=None
    )
    host: str = option("Address to listen on.", default="127.0.0.1")
    port: int = option("Port to listen on; 0 takes a free one.", default=8000)
    api_key: str | None = option("Key that clients must send.", default=None)

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        EngineOptions.__post_init__(self)

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
