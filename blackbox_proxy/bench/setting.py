"""What every measurement over an emulated network has in common: the models, the texts, the network, the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD

from blackbox_proxy.base.openai import OpenAIBase
from blackbox_proxy.base.opening import open_base
from blackbox_proxy.host.network import Network
from blackbox_proxy.host.process import HostProcess
from blackbox_proxy.screen.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """base, expert, antiexpert: folders or hub ids. network: what is emulated between base and client, seconds.
    max_tokens: of each text. top_logprobs: what the base shows of each token.
    """

    base: str
    expert: str
    antiexpert: str
    prompts: Sequence[str]
    network: Network
    max_tokens: int = 64
    top_logprobs: int = 5

    def host(self, **options: Any) -> HostProcess:
        """The base in a process of its own, on one thread and behind the network; options: more of `HostOptions`."""
        return HostProcess(
            self.base,
            top_logprobs=self.top_logprobs,
            first_token=self.network.first_token,
            per_token=self.network.per_token,
            device="cpu",
            threads=1,
            **options,
        )

    def black_box(self, host: HostProcess) -> OpenAIBase:
        """The base as it is seen through this host."""
        return open_base(
            host.model,
            base_url=host.base_url,
            dialect="host",
            tokenizer=self.base,
            top_logprobs=self.top_logprobs,
        )

    def told(self, count: int) -> list[str]:
        """So many prompts, no two alike."""
        prompts = self.prompts
        return [f"{prompts[i % len(prompts)]}{' ' * (i // len(prompts))}" for i in range(count)]


def table_over(network: Network, *columns: str) -> Table:
    """An empty table of figures, with what was emulated as its title."""
    drawn = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=f"first token after {network.first_token * 1000:g} ms, each further one {network.per_token * 1000:g} ms",
    )
    for title in columns:
        drawn.add_column(title, justify="right")
    return drawn
