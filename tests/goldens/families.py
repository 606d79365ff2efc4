"""Tiny models of every supported family, with the logits that transformers computes for them.

Weights are not stored: each tensor is drawn from a generator seeded by its family and name, so a
model folder is written in milliseconds without torch. Only uniform numbers, sums and products are
used, which are the same bits on every machine; a checksum beside each golden proves it.

The goldens are recorded by make_families.py. This module needs numpy and safetensors only and knows
nothing of the engine.
"""

import dataclasses
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "families"
FAMILIES: tuple[str, ...] = (
    "llama",
    "llama3_rope",
    "llama_linear",
    "llama_yarn",
    "llama_yarn_exact",
    "smollm2",
    "mistral_window",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gemma2",
    "gemma3_text",
)

_EMBED_GAIN = 2.5  # logits then have a standard deviation near 2.5
_SCORE_GAIN = 1.5  # of queries and of keys: attention then is far from uniform
_SPREAD = 0.3  # of norm weights and biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """What transformers computes for one family, in float32 with eager attention.

    Attributes:
      config: config.json as transformers 5 writes it.
      config_v4: the same model's config.json as transformers 4 wrote it; None where it is the same.
      tensors: name -> shape of every tensor of the checkpoint.
      tokens: the input sequences, each i64[T].
      logits: the output for each sequence, f32[T, V].
    """

    config: dict[str, Any]
    config_v4: dict[str, Any] | None
    tensors: dict[str, tuple[int, ...]]
    tokens: list[np.ndarray]
    logits: list[np.ndarray]


def golden(name: str) -> Golden:
    """Read the golden of a family in FAMILIES. Raises ValueError for another name."""
    record = _record(name)
    with np.load(FOLDER / f"{name}.npz") as arrays:
        logits = [arrays[f"logits_{index}"] for index in range(len(record["tokens"]))]
    return Golden(
        config=record["config"],
        config_v4=record["config_v4"],
        tensors={tensor: tuple(shape) for tensor, shape in record["tensors"].items()},
        tokens=[np.asarray(tokens, np.int64) for tokens in record["tokens"]],
        logits=logits,
    )


def weights(name: str) -> dict[str, np.ndarray]:
    """The tensors of a family, Hugging Face names -> f32 arrays as [out, in].

    Raises ValueError if they are not the ones that the golden was recorded with.
    """
    record = _record(name)
    drawn = draw_weights(name, record["tensors"], norms_around=_norms_around(record["config"]))
    if checksum(drawn) != record["weights_crc32"]:
        raise ValueError(f"{name}: wanted weights of crc32 {record['weights_crc32']}, got {checksum(drawn)}")
    return drawn


def write_model(name: str, folder: Path, *, shards: int = 1, config_v4: bool = False) -> None:
    """Write a checkpoint folder as transformers does: config.json and safetensors.

    Args:
      name: one of FAMILIES.
      folder: made if it is missing.
      shards: files that the tensors are spread over; above 1 with model.safetensors.index.json.
      config_v4: write the config.json of transformers 4.

    Raises:
      ValueError: an unknown family, a number of shards that cannot be, or no such config_v4.
    """
    record = _record(name)
    config = record["config_v4"] if config_v4 else record["config"]
    if config is None:
        raise ValueError(f"config_v4: wanted a family that has one, got {name!r}")
    tensors = weights(name)
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"shards: wanted 1..{len(tensors)}, got {shards}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    files = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    # Round robin: neighbours in a layer land in different files.
    weight_map = {tensor: files[index % shards] for index, tensor in enumerate(tensors)}
    for file in files:
        save_file({t: tensors[t] for t in tensors if weight_map[t] == file}, folder / file, metadata=metadata)
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def draw_weights(
    family: str, tensors: dict[str, tuple[int, ...]], *, norms_around: float
) -> dict[str, np.ndarray]:
    """Draw f32 tensors of the given shapes; a tensor depends on the family and its own name only."""
    drawn = {}
    for tensor, shape in tensors.items():
        generator = np.random.default_rng(zlib.crc32(f"{family}/{tensor}".encode()))
        # Uniform in [-1, 1) times sqrt(3) has standard deviation 1, and is exact on every machine.
        unit = (2.0 * generator.random(tuple(shape)) - 1.0) * math.sqrt(3.0)
        drawn[tensor] = _scaled(tensor, unit, norms_around).astype(np.float32)
    return drawn


def checksum(tensors: dict[str, np.ndarray]) -> int:
    """crc32 over the little-endian bytes of all tensors, in the order of their names."""
    crc = 0
    for tensor in sorted(tensors):
        crc = zlib.crc32(tensors[tensor].astype("<f4").tobytes(), crc)
    return crc


def _scaled(tensor: str, unit: np.ndarray, norms_around: float) -> np.ndarray:
    if unit.ndim == 1:
        centre = norms_around if "norm" in tensor else 0.0
        return centre + _SPREAD * unit
    gain = 1.0
    if "embed_tokens" in tensor or "lm_head" in tensor:
        gain = _EMBED_GAIN
    elif "q_proj" in tensor or "k_proj" in tensor:
        gain = _SCORE_GAIN
    return gain / math.sqrt(unit.shape[1]) * unit


def _norms_around(config: dict[str, Any]) -> float:
    # Gemma multiplies with 1 + weight.
    return 0.0 if config["model_type"].startswith("gemma") else 1.0


def _record(name: str) -> dict[str, Any]:
    if name not in FAMILIES:
        raise ValueError(f"family: wanted one of {FAMILIES}, got {name!r}")
    return json.loads((FOLDER / f"{name}.json").read_text())
