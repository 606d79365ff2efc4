"""What is measured, and what measures it. Knows no engine."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol


class PeerError(ValueError):
    """A peer that cannot be found, built or run, or whose answer cannot be read."""


class PeerMissing(PeerError):
    """A peer that this machine does not have, and nobody asked for by its place: it is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One piece of work, the same for every engine.

    Attributes:
      kind: "prefill" of one prompt, or "decode" of streams whose prompts are in the cache already.
      streams: that run together; 1 in prefill.
      prompt: tokens of each stream in the cache when the clock starts; 0 in prefill.
      tokens: of each stream that the clock covers.
    """

    kind: Literal["prefill", "decode"]
    streams: int
    prompt: int
    tokens: int

    @property
    def name(self) -> str:
        """What reports call it; targets go by it."""
        return f"prefill {self.tokens}" if self.kind == "prefill" else f"decode {self.streams}"


def plan(
    *, batches: Sequence[str], prompt: int, generate: int, prefill: int, ring_length: int, fused_steps: int
) -> list[Workload]:
    """The workloads that the flags of these names spell, prefill first: it needs what decode of one
    stream needs. Raises ValueError that names the flag.
    """
    longest = max(prompt + generate, prefill)
    if longest > ring_length:
        raise ValueError(f"ring_length: wanted >= {longest}, what a stream grows to, got {ring_length}")
    if generate % fused_steps:
        raise ValueError(f"generate: wanted a multiple of fused_steps ({fused_steps}), got {generate}")
    for text in batches:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"batches: wanted numbers >= 1 separated by commas, got {text!r}")
    first = [Workload(kind="prefill", streams=1, prompt=0, tokens=prefill)] if prefill else []
    decodes = (Workload(kind="decode", streams=int(n), prompt=prompt, tokens=generate) for n in batches)
    return [*first, *decodes]


class Peer(Protocol):
    """An engine to compare with. It works only inside `measure`, and is idle between."""

    name: str

    def measure(self, workload: Workload) -> float:
        """Tokens a second, of all streams together. Raises PeerError."""

    def describe(self) -> dict[str, object]:
        """What was measured, for the record."""

    def close(self) -> None:
        """End what was started."""
