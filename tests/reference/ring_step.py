"""One decode step of one kv head of one slot, column by column, in float64. Knows nothing of blocks."""

import math

import numpy as np


def seen_columns(length: int, *, columns: int, sinks: int) -> list[int]:
    """Columns that the token at position `length` sees beside itself.

    Tokens are written one after the other into a list of columns; the one that the new token is about to
    replace is seen no more.
    """
    holder: dict[int, int] = {}
    for position in range(length + 1):
        turn = position if position < sinks else sinks + (position - sinks) % (columns - sinks)
        holder[turn] = position
    return [column for column, position in sorted(holder.items()) if position != length]


def new_column(length: int, *, columns: int, sinks: int) -> int:
    """Where the token at position `length` goes."""
    return length if length < sinks else sinks + (length - sinks) % (columns - sinks)


def attend(
    query: np.ndarray,
    sink_query: np.ndarray,
    new_key: np.ndarray,
    new_value: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    seen: list[int],
    *,
    sinks: int,
    scale: float,
    softcap: float | None,
) -> np.ndarray:
    """Softmax attention of one query head.

    Args:
      query, sink_query: [H], the latter for columns below `sinks`.
      new_key, new_value: [H], of the token itself.
      keys, values: [S, H].
      seen: columns that count.
    """
    pairs = [(sink_query if column < sinks else query, keys[column], values[column]) for column in seen]
    pairs.append((query, new_key, new_value))
    scores = [scale * math.fsum(float(a) * float(b) for a, b in zip(q, k, strict=True)) for q, k, _ in pairs]
    if softcap is not None:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    weights = [math.exp(score - max(scores)) for score in scores]
    total = np.zeros(len(new_value))
    for weight, (_, _, value) in zip(weights, pairs, strict=True):
        total += weight / math.fsum(weights) * np.asarray(value, np.float64)
    return total
