"""Rotary position embedding in float64: frequencies of every supported scaling, and the rotation.

A rope is described by one entry of `rope_parameters` of a Hugging Face config.json.
"""

import math
from typing import Any

import numpy as np


def frequencies(rope: dict[str, Any], head_dim: int) -> tuple[np.ndarray, float]:
    """Radians per position, f64[H/2], and what cos and sin are multiplied with.

    Sources: RoFormer (Su et al. 2021, eq. 15); position interpolation (Chen et al. 2023); the banded
    interpolation published with Llama 3.1; YaRN (Peng et al. 2023, sections 3.2 to 3.4).
    """
    base = rope["rope_theta"]
    plain = float(base) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = rope["rope_type"]
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(rope, plain), 1.0
    if kind == "yarn":
        return _yarn(rope, plain, head_dim)
    raise ValueError(f"rope_type: wanted default, linear, llama3 or yarn, got {kind!r}")


def rotate(vectors: np.ndarray, angles: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
    """Rotate component i with component i + H/2.

    Args:
      vectors: [..., H].
      angles: radians, broadcastable to [..., H/2].
      magnitude: what cos and sin are multiplied with.
    """
    first, second = np.split(np.asarray(vectors, np.float64), 2, axis=-1)
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _llama3(rope: dict[str, Any], plain: np.ndarray) -> np.ndarray:
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    out = []
    for frequency in plain:
        rotations = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        if rotations > high:
            out.append(frequency)
        elif rotations < low:
            out.append(frequency / rope["factor"])
        else:
            smooth = (rotations - low) / (high - low)
            out.append((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
    return np.array(out)


def _yarn(rope: dict[str, Any], plain: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The pair of components that makes this many rotations over the original context."""
        turns = original / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope.get("beta_fast", 32.0)), dimension(rope.get("beta_slow", 1.0))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    magnitude = rope.get("attention_factor") or 0.1 * math.log(factor) + 1
    return plain / factor * ramp + plain * (1 - ramp), magnitude
