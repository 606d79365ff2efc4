"""What is known of one request after a run. Times are seconds since the run began."""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One request, as its client saw it.

    Attributes:
      index: its place in the dataset.
      input_len, output_len: tokens asked for.
      due: when it should have been sent.
      start: when it was; later than `due` where the concurrency is limited.
      first: when the first text came (of an answer without text: its end); None before that.
      text_times: when each chunk that carries text came.
      end: when the last chunk of the answer came, or when the request failed.
      prompt_tokens, completion_tokens: the server's usage; None when the request failed before it.
      finish_reason: the server's; None when the request failed before it.
      error: why it failed; None when it did not.
    """

    index: int
    input_len: int
    output_len: int
    due: float
    start: float
    first: float | None
    text_times: tuple[float, ...]
    end: float
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    error: str | None

    @property
    def ttft(self) -> float | None:
        """Time to first token: from sending to the first text."""
        return None if self.first is None else self.first - self.start

    @property
    def e2el(self) -> float:
        """End-to-end latency: from sending to the last chunk."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, (E2EL - TTFT) / (n - 1); None below two tokens."""
        if self.first is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.end - self.first) / (self.completion_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: the gaps between chunks with text."""
        return [after - before for before, after in itertools.pairwise(self.text_times)]

    def to_json(self) -> dict:
        """The record with its latencies in milliseconds, for a file."""
        fields = dataclasses.asdict(self)
        del fields["text_times"]
        latencies = {"ttft_ms": self.ttft, "tpot_ms": self.tpot, "e2el_ms": self.e2el}
        fields |= {name: None if value is None else 1e3 * value for name, value in latencies.items()}
        return fields | {"itl_ms": [1e3 * gap for gap in self.itl]}
