"""Parameter specifications of a decoder, written out for the loaders' tests."""

from tpustream.config import ModelConfig
from tpustream.core.params import ParamSpec


def specs_of(c: ModelConfig) -> dict[str, ParamSpec]:
    """Every parameter of a decoder of this shape."""
    out = {"embed.table": _weight("vocab embed", c.vocab_size, c.embed_dim)}
    for layer in range(c.num_layers):
        for name, spec in _layer(c).items():
            out[f"layers.{layer}.{name}"] = spec
    out["final_norm.scale"] = _exact("embed", c.embed_dim)
    if not c.tie_embeddings:
        out["head.kernel"] = _weight("vocab embed", c.vocab_size, c.embed_dim)
    return out


def _layer(c: ModelConfig) -> dict[str, ParamSpec]:
    embed, ffw, heads, kv_heads, head_dim = c.embed_dim, c.ffw_dim, c.num_heads, c.num_kv_heads, c.head_dim
    out = {
        "attn_norm.scale": _exact("embed", embed),
        "attn.q": _weight("heads head_dim embed", heads, head_dim, embed),
        "attn.k": _weight("kv_heads head_dim embed", kv_heads, head_dim, embed),
        "attn.v": _weight("kv_heads head_dim embed", kv_heads, head_dim, embed),
        "attn.o": _weight("embed heads head_dim", embed, heads, head_dim),
        "mlp_norm.scale": _exact("embed", embed),
        "mlp.gate": _weight("ffw embed", ffw, embed),
        "mlp.up": _weight("ffw embed", ffw, embed),
        "mlp.down": _weight("embed ffw", embed, ffw),
    }
    if c.qkv_bias:
        out["attn.q_bias"] = _exact("heads head_dim", heads, head_dim)
        out["attn.k_bias"] = _exact("kv_heads head_dim", kv_heads, head_dim)
        out["attn.v_bias"] = _exact("kv_heads head_dim", kv_heads, head_dim)
    if c.qk_norm:
        out["attn.q_norm.scale"] = _exact("head_dim", head_dim)
        out["attn.k_norm.scale"] = _exact("head_dim", head_dim)
    if c.post_norms:
        out["post_attn_norm.scale"] = _exact("embed", embed)
        out["post_mlp_norm.scale"] = _exact("embed", embed)
    return out


def _weight(axes: str, *shape: int) -> ParamSpec:
    return ParamSpec(shape=shape, axes=tuple(axes.split()))


def _exact(axes: str, *shape: int) -> ParamSpec:
    return ParamSpec(shape=shape, axes=tuple(axes.split()), keep_float32=True)
