"""Where a token lives in a slot's cache: the only file that turns positions into columns.

A slot of one layer is `[sinks | ring]`. Position p counts every token ever written to the slot:

    column(p) = p                                    p <  sinks
              = sinks + (p - sinks) mod ring         p >= sinks        ring = columns - sinks

    columns 8, sinks 2, after 11 tokens:   | 0  1 | 8  9 10  5  6  7 |
                                             sinks   ^ oldest is 5, next to go

Only the length is stored; index, validity and mask are derived here and nowhere else.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from tpustream.config import EngineConfig, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RingLayout:
    """Static layout of one layer's part of a slot.

    Attributes:
      columns: S, cached tokens, sinks included.
      sinks: columns at the front that are never overwritten.
    """

    columns: int
    sinks: int

    def __post_init__(self):
        if not 0 <= self.sinks < self.columns:
            raise ValueError(f"sinks: wanted 0 <= sinks < columns ({self.columns}), got {self.sinks}")

    @property
    def ring(self) -> int:
        """Columns that are overwritten in turn."""
        return self.columns - self.sinks

    def column(self, position: Int32[Array, "*b"]) -> Int32[Array, "*b"]:
        """The column that holds, or will hold, this position."""
        wrapped = self.sinks + (position - self.sinks) % self.ring
        return jnp.where(position < self.sinks, position, wrapped)

    def held_positions(self, length: Int32[Array, "*b"]) -> Int32[Array, "*b S"]:
        """The position that each column holds after `length` tokens; -1 where it holds none."""
        column = jnp.arange(self.columns, dtype=jnp.int32)
        newest = length[..., None] - 1
        age = (newest - column) % self.ring  # of a ring column, in tokens behind the newest
        in_ring = jnp.where(newest - age >= self.sinks, newest - age, -1)
        in_sinks = jnp.where(column <= newest, column, -1)
        return jnp.where(column < self.sinks, in_sinks, in_ring)

    def visible(self, length: Int32[Array, "*b"]) -> Bool[Array, "*b S"]:
        """Columns that the token at position `length` may see, before it is written.

        The column that it will overwrite is not among them: its token has left the window.
        """
        column = jnp.arange(self.columns, dtype=jnp.int32)
        leaving = column == self.column(length)[..., None]
        return (self.held_positions(length) >= 0) & ~leaving

    def sink_query_position(self, position: Int32[Array, "*b"]) -> Int32[Array, "*b"]:
        """Where the query stands when it looks at sinks: never farther than the cache is long.

        StreamingLLM (Xiao et al. 2023, section 3.2) gives positions inside the cache, not in the
        text. Ring columns keep their true distances, so only sinks need this.
        """
        return jnp.minimum(position, self.columns - 1)


def layer_layout(model: ModelConfig, engine: EngineConfig, layer: int) -> RingLayout:
    """Layout of layer number `layer`: a window that fits keeps a plain ring of its own length."""
    window = model.layer_window(layer)
    if window is not None and window <= engine.ring_length:
        return RingLayout(columns=window, sinks=0)
    return RingLayout(columns=engine.ring_length, sinks=engine.sinks)
