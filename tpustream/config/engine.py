"""EngineConfig: how the engine is laid out on the machine. Defaults of the flags come from here."""

import dataclasses

DTYPES = ("auto", "float32", "bfloat16")
EMITTERS = ("auto", "callback", "transfer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Fixed at start: every shape follows from it, so nothing compiles later.

    Attributes:
      slots: B, streams that decode together.
      ring_length: columns of a slot's cache, sinks included. Also the longest prompt.
      sinks: first tokens of a stream that are never overwritten (StreamingLLM, Xiao et al. 2023).
      prefill_buckets: prompt lengths that prefill is compiled for; () means powers of four from 32
        up to ring_length.
      fused_steps: K, decode steps a dispatch.
      emitter: how tokens leave the device: "callback", "transfer" or "auto".
      dtype: of weights, activations and cache; "auto" is float32 on CPU, bfloat16 elsewhere.
      mesh: devices on the axes (data, model); 0 means all that are left.
      top_logprobs: largest number of alternatives that a request may ask for.
      stop_ids: largest number of stop tokens of a request, the model's own included.
      bias_ids: largest number of logit_bias entries of a request.
      max_waiting: requests that may wait beyond the slots; more are refused at once.
      max_waiting_tokens: prompt tokens of all requests that wait; more are refused at once, but one
        request may always wait alone.
    """

    slots: int = 4
    ring_length: int = 2048
    sinks: int = 4
    prefill_buckets: tuple[int, ...] = ()
    fused_steps: int = 1
    emitter: str = "auto"
    dtype: str = "auto"
    mesh: tuple[int, int] = (1, 0)
    top_logprobs: int = 20
    stop_ids: int = 16
    bias_ids: int = 320
    max_waiting: int = 128
    max_waiting_tokens: int = 65_536

    def __post_init__(self):
        for field in ("slots", "ring_length", "fused_steps", "top_logprobs", "stop_ids", "bias_ids"):
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"{field}: wanted >= 1, got {value}")
        for field in ("max_waiting", "max_waiting_tokens"):
            value = getattr(self, field)
            if value < 0:
                raise ValueError(f"{field}: wanted >= 0, got {value}")
        if not 0 <= self.sinks < self.ring_length:
            raise ValueError(f"sinks: wanted 0 <= sinks < ring_length ({self.ring_length}), got {self.sinks}")
        for bucket in self.prefill_buckets:
            if not 1 <= bucket <= self.ring_length:
                raise ValueError(f"prefill_buckets: wanted 1..ring_length ({self.ring_length}), got {bucket}")
        if self.emitter not in EMITTERS:
            raise ValueError(f"emitter: wanted one of {EMITTERS}, got {self.emitter!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: wanted one of {DTYPES}, got {self.dtype!r}")
        if len(self.mesh) != 2 or min(self.mesh) < 0:
            raise ValueError(f"mesh: wanted (data, model) with sizes >= 0, got {self.mesh}")

    @property
    def max_requests(self) -> int:
        """Requests that fit in at the same time, running and waiting."""
        return self.slots + self.max_waiting

    @property
    def buckets(self) -> tuple[int, ...]:
        """Prefill lengths in ascending order; the last one holds the longest prompt."""
        chosen = set(self.prefill_buckets)
        size = 32
        while not self.prefill_buckets and size < self.ring_length:
            chosen.add(size)
            size *= 4
        return tuple(sorted(chosen | {self.ring_length}))
