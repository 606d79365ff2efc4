"""ModelConfig: the shape of a decoder, and nothing of how it runs.

One frozen, hashable dataclass describes every supported family (Llama, SmolLM2, Mistral, Qwen2/3,
Gemma 2/3). Dimension letters used in all shapes of this project:

    L layers   D embed   F ffw   N query heads   K kv heads   H head dim   V vocabulary
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

LayerKind = Literal["global", "local"]
ROPE_KINDS = ("plain", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu_tanh")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base frequency and the way it is stretched to longer contexts.

    Attributes:
      base: theta of RoFormer (Su et al. 2021, eq. 15).
      kind: "plain"; "linear" (position interpolation, Chen et al. 2023); "llama3" (banded
        interpolation of Llama 3.1); "yarn" (Peng et al. 2023, section 3).
      factor: stretch of the context, all kinds but "plain".
      original_context: tokens of the unstretched context ("llama3" and "yarn").
      low_freq_factor, high_freq_factor: the band of "llama3".
      beta_fast, beta_slow: the ramp of "yarn", in rotations over the original context.
      attention_factor: what "yarn" multiplies cos and sin with; None means 0.1 ln(factor) + 1.
      truncate: whether "yarn" rounds the ends of its ramp to whole dimensions.
    """

    base: float = 10_000.0
    kind: str = "plain"
    factor: float = 1.0
    original_context: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _require(self.kind in ROPE_KINDS, f"rope kind: wanted one of {ROPE_KINDS}, got {self.kind!r}")
        _require(self.base > 0, f"rope base: wanted > 0, got {self.base}")
        _require(self.factor >= 1, f"rope factor: wanted >= 1, got {self.factor}")

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with (YaRN section 3.4); 1 for every other kind."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention and rotary positions.

    Attributes:
      name: a label for people; nothing depends on it.
      num_layers, embed_dim, ffw_dim, num_heads, num_kv_heads, head_dim, vocab_size: L D F N K H V.
      context_length: tokens that the model was trained to see at once.
      norm_eps: epsilon of every RMSNorm.
      activation: of the gated feed-forward: "silu" (SwiGLU) or "gelu_tanh" (GeGLU).
      tie_embeddings: the output head is the embedding table.
      qkv_bias: query, key and value projections have a bias (Qwen2).
      qk_norm: RMSNorm over head_dim on queries and keys before rotation (Qwen3, Gemma 3).
      post_norms: a second RMSNorm after attention and after the feed-forward (Gemma 2/3).
      embed_scale: what embedded tokens are multiplied with (Gemma: sqrt(D)).
      attn_scale: what scores are multiplied with; None means H ** -0.5.
      attn_softcap, final_softcap: cap * tanh(x / cap) on scores and on logits (Gemma 2).
      rope: of global layers, and of local layers unless local_rope is given (Gemma 3).
      window: tokens that a local layer sees, itself included; None where no layer is local.
      layer_pattern: kinds of layers, repeated to fill L; index 0 is the first layer.
    """

    name: str
    num_layers: int
    embed_dim: int
    ffw_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float = 1e-5
    activation: str = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embed_scale: float = 1.0
    attn_scale: float | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    rope: RopeConfig = RopeConfig()
    local_rope: RopeConfig | None = None
    window: int | None = None
    layer_pattern: tuple[LayerKind, ...] = ("global",)

    def __post_init__(self):
        sizes = ("num_layers", "embed_dim", "ffw_dim", "num_heads", "num_kv_heads", "head_dim",
                 "vocab_size", "context_length")  # fmt: skip
        for field in sizes:
            value = getattr(self, field)
            _require(isinstance(value, int) and value > 0, f"{field}: wanted an integer > 0, got {value!r}")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads: wanted a multiple of num_kv_heads ({self.num_kv_heads}), got {self.num_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head_dim: wanted an even number, got {self.head_dim}")
        known = self.activation in ACTIVATIONS
        _require(known, f"activation: wanted one of {ACTIVATIONS}, got {self.activation!r}")
        kinds = set(self.layer_pattern)
        _require(
            bool(kinds) and kinds <= {"global", "local"},
            f"layer_pattern: wanted 'global' and 'local', got {self.layer_pattern!r}",
        )
        _require(
            "local" not in kinds or (self.window is not None and self.window > 0),
            f"window: wanted an integer > 0 because layer_pattern has local layers, got {self.window!r}",
        )

    @property
    def score_scale(self) -> float:
        """What query-key products are multiplied with."""
        return self.head_dim**-0.5 if self.attn_scale is None else self.attn_scale

    def layer_kind(self, layer: int) -> LayerKind:
        """Kind of layer number `layer`, counted from 0."""
        return self.layer_pattern[layer % len(self.layer_pattern)]

    def layer_window(self, layer: int) -> int | None:
        """Tokens that this layer sees, itself included; None for all."""
        return self.window if self.layer_kind(layer) == "local" else None

    def layer_rope(self, layer: int) -> RopeConfig:
        """Rotation of this layer."""
        local = self.layer_kind(layer) == "local" and self.local_rope is not None
        return self.local_rope if local else self.rope

    @property
    def num_params(self) -> int:
        """Weights in the decoder, a tied head counted once."""
        attention = self.embed_dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        bias = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.qkv_bias else 0
        norms = self.embed_dim * (4 if self.post_norms else 2) + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + bias + norms + 3 * self.embed_dim * self.ffw_dim
        tables = self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + tables + self.embed_dim

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the fields that differ from their defaults, and all sizes."""
        out = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is not dataclasses.MISSING and value == field.default:
                continue
            out[field.name] = _non_default_fields(value) if isinstance(value, RopeConfig) else value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`. Raises ValueError naming unknown, missing or wrong fields."""
        data = dict(data)
        for key in ("rope", "local_rope"):
            if isinstance(data.get(key), Mapping):
                data[key] = _construct(RopeConfig, data[key], where=f"model config, {key}")
        if "layer_pattern" in data:
            data["layer_pattern"] = tuple(data["layer_pattern"])
        return _construct(cls, data, where="model config")

    @classmethod
    def from_json(cls, path: str | Path) -> "ModelConfig":
        """Read a file of configs/. Raises ValueError naming the file."""
        path = Path(path)
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:  # a JSONDecodeError is a ValueError
            raise ValueError(f"{path}: {error}") from error


def _non_default_fields(config: RopeConfig) -> dict[str, Any]:
    fields = dataclasses.fields(config)
    return {f.name: getattr(config, f.name) for f in fields if getattr(config, f.name) != f.default}


def _construct(cls, data: Mapping[str, Any], *, where: str):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    _require(not unknown, f"{where}: unknown fields {unknown}, wanted some of {sorted(fields)}")
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    missing = sorted(required - set(data))
    _require(not missing, f"{where}: missing fields {missing}")
    return cls(**data)
