"""A decoder that is fed one token at a time through list caches, in float64: what an endless stream is.

Joins the naive ring (ring.py), the naive attention (attention.py) and the blocks of decoder.py.
"""

from typing import Any

import numpy as np

from tests.reference import decoder
from tests.reference.attention import attend
from tests.reference.ring import ListCache
from tests.reference.rope import frequencies


class StreamingDecoder:
    """Llama-like families (no second norms), with a cache of `columns`, the first `sinks` kept.

    Args:
      weights: Hugging Face names -> arrays.
      config: the parsed config.json.
      columns: S of every layer without a window of its own.
      sinks: n of the same layers.
    """

    def __init__(self, weights: decoder.Weights, config: dict[str, Any], *, columns: int, sinks: int):
        self._weights, self._config = weights, config
        self._columns, self._sinks = columns, sinks
        layers = range(config["num_hidden_layers"])
        self._caches = [ListCache(columns, sinks, self._window(layer)) for layer in layers]
        self._position = 0

    def step(self, token: int) -> np.ndarray:
        """Write this token, and return the logits of the next, f64[V]."""
        weights, config = self._weights, self._config
        table = weights["model.embed_tokens.weight"].astype(np.float64)
        hidden = table[token][None]
        for layer, cache in enumerate(self._caches):
            part = f"model.layers.{layer}."
            normed = decoder._norm(hidden, weights[f"{part}input_layernorm.weight"], config)
            hidden = hidden + self._attention(layer, cache, normed[0])
            normed = decoder._norm(hidden, weights[f"{part}post_attention_layernorm.weight"], config)
            hidden = hidden + decoder._feed_forward(weights, config, layer, normed)
        self._position += 1
        hidden = decoder._norm(hidden, weights["model.norm.weight"], config)
        return hidden[0] @ weights.get("lm_head.weight", table).astype(np.float64).T

    def _attention(self, layer: int, cache: ListCache, x: np.ndarray) -> np.ndarray:
        config, part = self._config, f"model.layers.{layer}.self_attn."
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads

        def project(name: str, count: int) -> np.ndarray:
            out = self._weights[f"{part}{name}_proj.weight"].astype(np.float64) @ x
            return (out + self._weights.get(f"{part}{name}_proj.bias", 0.0)).reshape(count, head_dim)

        query, key, value = project("q", heads), project("k", kv_heads), project("v", kv_heads)
        if f"{part}q_norm.weight" in self._weights:
            query = decoder._norm(query, self._weights[f"{part}q_norm.weight"], config)
            key = decoder._norm(key, self._weights[f"{part}k_norm.weight"], config)
        cache.append(self._position, (key, value))
        per_position, magnitude = frequencies(decoder._rope(config, layer), head_dim)
        wraps = self._window(layer) is None
        out = attend(
            query,
            [(position, k, v) for position, (k, v) in cache.visible()],
            position=self._position,
            frequencies=per_position,
            scale=head_dim**-0.5,
            sinks=self._sinks if wraps else 0,
            ring=self._columns - self._sinks if wraps else None,
            magnitude=magnitude,
        )
        return self._weights[f"{part}o_proj.weight"].astype(np.float64) @ out.reshape(-1)

    def _window(self, layer: int) -> int | None:
        local = decoder._is_local(self._config, layer)
        return self._config["sliding_window"] if local else None
