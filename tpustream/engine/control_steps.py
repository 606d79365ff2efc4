"""The pure steps that change one slot between dispatches: idle, decoding again, sampled anew.

Each takes the epoch of the occupant that it is meant for, and changes nothing where another one, or one
that has ended, is in the slot. Compiled, donated and placed by compile.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from tpustream.engine.state import DecodeState, SlotSampling


def set_active(
    state: DecodeState, slot: Int32[Array, ""], epoch: Int32[Array, ""], active: Int32[Array, ""]
) -> DecodeState:
    """The state with the slot decoding (`active` is not 0) or idle.

    An idle slot keeps its cache, its newest token and what its stream may still get, so that it goes on
    as if nothing had been.
    """
    owned, alive = state.epoch[slot] == epoch, state.remaining[slot] > 0
    row = jnp.where(owned, (active != 0) & alive, state.active[slot])
    return dataclasses.replace(state, active=state.active.at[slot].set(row))


def retune(
    state: DecodeState,
    slot: Int32[Array, ""],
    epoch: Int32[Array, ""],
    remaining: Int32[Array, ""],
    sampling: SlotSampling,
) -> DecodeState:
    """The state with these parameters for the slot.

    Args:
      remaining: tokens that the stream may still get, at least 1.
      sampling: rows of SlotSampling, without the slot axis.
    """
    changes = (state.epoch[slot] == epoch) & (state.remaining[slot] > 0)

    def put(all: Array, row: Array) -> Array:
        return all.at[slot].set(jnp.where(changes, row, all[slot]))

    return dataclasses.replace(
        state,
        remaining=put(state.remaining, remaining),
        sampling=jax.tree.map(put, state.sampling, sampling),
    )
