"""Attention of one query over a list of columns, in float64, with the query's rotation for sinks.

Keys come unrotated and are rotated here at their absolute position. A stream whose ring has wrapped
sees its sinks from a query rotated at the distance they have inside the cache, never further away
than the cache is long (StreamingLLM, Xiao et al. 2023, section 3.2).
"""

import math
from collections.abc import Sequence

import numpy as np

from tests.reference.rope import rotate

Column = tuple[int, np.ndarray, np.ndarray]


def attend(
    query: np.ndarray,
    columns: Sequence[Column],
    *,
    position: int,
    frequencies: np.ndarray,
    scale: float,
    sinks: int = 0,
    ring: int | None = None,
    softcap: float | None = None,
    magnitude: float = 1.0,
) -> np.ndarray:
    """Softmax attention of the query at `position` over all the given columns.

    Args:
      query: unrotated, [N, H].
      columns: (position, unrotated key [K, H], value [K, H]) of each visible token, the query's own
        included.
      position: absolute position p of the query.
      frequencies: radians per position, [H/2].
      scale: what query-key products are multiplied with.
      sinks: n; columns at positions below it are sinks.
      ring: R, columns of the cache beside the sinks; None means that it never wraps.
      softcap: cap * tanh(score / cap) on scaled scores; None for none.
      magnitude: what cos and sin are multiplied with (YaRN).

    Returns:
      f64[N, H]. Query head h reads kv head h // (N / K).
    """
    heads = query.shape[0]
    group = heads // columns[0][1].shape[0]
    sink_position = position if ring is None else min(position, sinks + ring - 1)
    near, far = (rotate(query, seen_from * frequencies, magnitude) for seen_from in (position, sink_position))
    keys = [rotate(key, column * frequencies, magnitude) for column, key, _ in columns]
    out = np.zeros(query.shape)
    for head in range(heads):
        scores = []
        for (column, _, _), key in zip(columns, keys, strict=True):
            rotated_query = far[head] if column < sinks else near[head]
            score = float(rotated_query @ key[head // group]) * scale
            scores.append(score if softcap is None else softcap * math.tanh(score / softcap))
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        for weight, (_, _, value) in zip(weights, columns, strict=True):
            out[head] += weight * np.asarray(value[head // group], np.float64)
    return out
