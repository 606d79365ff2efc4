"""What a way of holding weights or caches costs in quality: the decode step fed with fixed texts.

Every text is fed token by token, whatever the model would have said (teacher forcing), in a slot of its
own, through the step that serves: its products, its attention, its cache. Two ways are then compared in the
tokens that they find likeliest, and in perplexity.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from tpustream.engine import steps
from tpustream.engine.placer import Placer
from tpustream.engine.state import DecodeState, Weights, empty_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What the model says after every token of the texts but the last of each, text by text.

    Attributes:
      likeliest: the most likely next token.
      logprob: natural log of the probability of the token that follows.
    """

    likeliest: Int32[np.ndarray, "N"]
    logprob: Float[np.ndarray, "N"]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return float(np.exp(-self.logprob.mean()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One way beside a reference.

    Attributes:
      tokens: that were compared.
      agreement: share of them where both find the same token likeliest.
      perplexity: of this way.
      perplexity_change: perplexity over the reference's, minus 1; above 0 is worse.
    """

    tokens: int
    agreement: float
    perplexity: float
    perplexity_change: float


def score(placer: Placer, weights: Weights, texts: Sequence[Sequence[int]]) -> Scores:
    """Feed each text to a slot.

    Raises ValueError where the texts are not one a slot, or one has fewer than two tokens or more than
    fit in the ring.
    """
    engine = placer.engine
    if len(texts) != engine.slots:
        raise ValueError(f"texts: wanted one for each of {engine.slots} slots, got {len(texts)}")
    lengths = [len(ids) for ids in texts]
    if min(lengths) < 2 or max(lengths) > engine.ring_length:
        raise ValueError(f"texts: wanted 2 to {engine.ring_length} tokens each, got {lengths}")
    fed = np.zeros((max(lengths), len(texts)), np.int32)
    for slot, ids in enumerate(texts):
        fed[: len(ids), slot] = ids
    state, step = _busy(placer), jax.jit(functools.partial(_step, placer), donate_argnums=1)
    rows = []
    for token, following in itertools.pairwise(fed):
        state, row = step(weights, state, token, following)
        rows.append(row)
    likeliest, logprob = (np.stack(column, axis=1) for column in zip(*jax.device_get(rows), strict=True))
    inside = [slice(length - 1) for length in lengths]
    return Scores(
        likeliest=np.concatenate([row[part] for row, part in zip(likeliest, inside, strict=True)]),
        logprob=np.concatenate([row[part] for row, part in zip(logprob, inside, strict=True)]),
    )


def compare(reference: Scores, other: Scores) -> Difference:
    """`other` beside `reference`, of the same texts."""
    return Difference(
        tokens=len(reference.logprob),
        agreement=float((reference.likeliest == other.likeliest).mean()),
        perplexity=other.perplexity,
        perplexity_change=other.perplexity / reference.perplexity - 1,
    )


def _step(
    placer: Placer,
    weights: Weights,
    state: DecodeState,
    token: Int32[Array, "B"],
    following: Int32[Array, "B"],
) -> tuple[DecodeState, tuple[Int32[Array, "B"], Float[Array, "B"]]]:
    """`token` into every slot: the likeliest next one, and the log-probability of `following`."""
    state = dataclasses.replace(state, token=token)
    logits, cache = steps.next_logits(placer.model, placer.engine, weights, state, attention=placer.attention)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    logprob = jnp.take_along_axis(logprobs, following[:, None], axis=1)[:, 0]
    return dataclasses.replace(state, cache=cache), (logits.argmax(axis=-1).astype(jnp.int32), logprob)


def _busy(placer: Placer) -> DecodeState:
    """Every slot active, and empty."""

    def make() -> DecodeState:
        state = empty_state(placer.model, placer.engine, placer.dtype)
        return dataclasses.replace(state, active=jnp.ones_like(state.active))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, placer.state()))()
