"""A GGUF file's metadata becomes a ModelConfig, or a ModelError that names the entry at fault.

What llama.cpp keeps in code instead of metadata (Gemma's layer pattern, local frequency base, the score
scale of its 27B models) is repeated here: see src/llama-model.cpp, `load_hparams`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tpustream.config import ModelConfig, RopeConfig
from tpustream.config.hf import shortest_period
from tpustream.config.model import LayerKind
from tpustream.core.errors import ModelError
from tpustream.files.gguf_reader import QuickReader
from tpustream.weights.gguf import ROPE_FACTORS

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
_GEMMA_PATTERN = {"gemma2": 2, "gemma3": 6}  # every n-th layer is global
Tensors = Mapping[str, gguf.ReaderTensor]
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


class _Entries:
    """Metadata under the architecture's prefix."""

    def __init__(self, reader: QuickReader, path: Path):
        self.reader, self.path = reader, path
        self.architecture = reader.value("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"{path}: general.architecture: wanted one of {ARCHITECTURES}, got {self.architecture!r}"
            )

    def get(self, key: str, default: Any = None) -> Any:
        return self.reader.value(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self.path}: {self.architecture}.{key}: wanted a metadata entry, got none")
        if isinstance(value, list):
            raise ModelError(f"{self.path}: {self.architecture}.{key}: wanted one number, got one per layer")
        return value

    def refuse(self, key: str, value: Any, wanted: str) -> None:
        raise ModelError(f"{self.path}: {self.architecture}.{key}: wanted {wanted}, got {value}")


def read_gguf_config(path: Path, name: str) -> ModelConfig:
    """The decoder in the GGUF file `path`, called `name`. Raises ModelError."""
    reader = QuickReader(path)
    entries = _Entries(reader, path)
    try:
        return _config(entries, {tensor.name: tensor for tensor in reader.tensors}, name)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


def _config(entries: _Entries, tensors: Tensors, name: str) -> ModelConfig:
    architecture = entries.architecture
    if entries.reader.value("split.count", 1) > 1:
        raise ModelError(f"{entries.path}: split.count: wanted 1 (join the parts with llama-gguf-split)")
    if entries.get("expert_count", 0):
        entries.refuse("expert_count", entries.get("expert_count"), "0 (no mixtures of experts)")
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{entries.path}: token_embd.weight: wanted a tensor, got none")
    layers, embed = entries.need("block_count"), entries.need("embedding_length")
    heads = entries.need("attention.head_count")
    head_dim = entries.get("attention.key_length", embed // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if entries.get(key, head_dim) != head_dim:
            entries.refuse(key, entries.get(key), f"{head_dim}, the head dim")
    gemma = architecture.startswith("gemma")
    context = entries.need("context_length")
    window, kinds = _layers(entries, layers, context)
    divisor = embed // heads if layers == _LAYERS_OF_27B.get(architecture) else head_dim
    return ModelConfig(
        name=name,
        num_layers=layers,
        embed_dim=embed,
        ffw_dim=entries.need("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=entries.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        context_length=context,
        norm_eps=entries.need("attention.layer_norm_rms_epsilon"),
        activation="gelu_tanh" if gemma else "silu",
        tie_embeddings="output.weight" not in tensors,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "gemma3"),
        post_norms=gemma,
        embed_scale=math.sqrt(embed) if gemma else 1.0,
        attn_scale=None if divisor == head_dim else divisor**-0.5,
        attn_softcap=entries.get("attn_logit_softcapping", 50.0) if architecture == "gemma2" else None,
        final_softcap=entries.get("final_logit_softcapping", 30.0 if architecture == "gemma2" else None),
        rope=_rotation(entries, tensors, context, head_dim),
        local_rope=_local_rotation(entries),
        window=window,
        layer_pattern=shortest_period(kinds),
    )


def _layers(entries: _Entries, count: int, context: int) -> tuple[int | None, list[LayerKind]]:
    window = entries.get("attention.sliding_window")
    if entries.architecture not in _GEMMA_PATTERN:
        if window is not None and 0 < window < context:
            entries.refuse("attention.sliding_window", window, "none for this architecture")
        return None, ["global"] * count
    if window is None:
        entries.need("attention.sliding_window")
    pattern = entries.get("attention.sliding_window_pattern", _GEMMA_PATTERN[entries.architecture])
    if isinstance(pattern, list):
        return window, ["local" if local else "global" for local in pattern]
    return window, ["local" if (index + 1) % pattern else "global" for index in range(count)]


def _local_rotation(entries: _Entries) -> RopeConfig | None:
    if entries.architecture != "gemma3":
        return None
    return RopeConfig(base=entries.get("rope.freq_base_swa", 10_000.0))


def _rotation(entries: _Entries, tensors: Tensors, context: int, head_dim: int) -> RopeConfig:
    base = entries.get("rope.freq_base", 1_000_000.0 if entries.architecture == "gemma3" else 10_000.0)
    kind = entries.get("rope.scaling.type", "none")
    factor = entries.get("rope.scaling.factor", entries.get("rope.scale_linear", 1.0))
    if kind not in ("none", "linear", "yarn"):
        entries.refuse("rope.scaling.type", repr(kind), "one of ['none', 'linear', 'yarn']")
    if ROPE_FACTORS in tensors:
        if kind != "none":
            entries.refuse("rope.scaling.type", repr(kind), f"'none' beside the tensor {ROPE_FACTORS}")
        return _llama3(np.array(tensors[ROPE_FACTORS].data, np.float32), base, head_dim, entries.path)
    if factor in (0.0, 1.0) or (kind == "none" and entries.get("rope.scale_linear") is None):
        return RopeConfig(base=base)
    if kind != "yarn":
        return RopeConfig(base=base, kind="linear", factor=factor)
    attention = entries.get("rope.scaling.attn_factor")
    if entries.get("rope.scaling.yarn_log_multiplier"):
        multiplier = entries.get("rope.scaling.yarn_log_multiplier")
        entries.refuse("rope.scaling.yarn_log_multiplier", multiplier, "none (not supported)")
    return RopeConfig(
        base=base,
        kind="yarn",
        factor=factor,
        original_context=entries.get("rope.scaling.original_context_length", context),
        beta_fast=entries.get("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=entries.get("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=None if attention is None else attention * (0.1 * math.log(factor) + 1.0),
    )


def llama3_factors(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """What a "llama3" rotation divides each of the H / 2 frequencies by, float32.

    The tensor rope_freqs.weight that llama.cpp's converter writes (LlamaModel.generate_extra_tensors).
    """
    frequencies = rope.base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves = 2 * np.pi / frequencies
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = np.clip((rope.original_context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / rope.factor + smooth)).astype(np.float32)


def _llama3(factors: np.ndarray, base: float, head_dim: int, path: Path) -> RopeConfig:
    """The "llama3" rotation that a tensor of factors stands for: Meta published one band only."""
    if factors.shape == (head_dim // 2,) and np.all(factors == 1):
        return RopeConfig(base=base)
    candidate = RopeConfig(base=base, kind="llama3", factor=max(1.0, float(np.round(factors.max(), 3))))
    wanted = llama3_factors(candidate, head_dim)
    if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=1e-4):
        raise ModelError(
            f"{path}: {ROPE_FACTORS}: wanted the factors of Llama 3.1 (band 1 to 4 over 8192 tokens) for "
            f"head dim {head_dim}, got {factors.size} factors from {factors.min()} to {factors.max()}"
        )
    return candidate
