"""The same greedy tokens on every mesh and through both emitters."""

import dataclasses
import functools

import jax
import pytest

from tests.tiny import TINY, generate, request, tiny_engine, tiny_files
from tpustream.config import EngineConfig

PROMPT = (5, 17, 99, 3, 42)
# 9 and 3 heads divide no mesh and are replicated; 8 divide all, 2 kv heads only some.
MODELS = {"odd": TINY, "even": dataclasses.replace(TINY, num_heads=8, num_kv_heads=2, tie_embeddings=False)}


@functools.cache
def _tokens(model: str, mesh: tuple[int, int], emitter: str, fused_steps: int) -> list[int]:
    config = EngineConfig(
        slots=2,
        ring_length=32,
        prefill_chunk=32,
        weights="full",
        mesh=mesh,
        emitter=emitter,
        fused_steps=fused_steps,
        itl_target_ms=0,
    )
    devices = jax.devices()[: mesh[0] * mesh[1]]
    engine = tiny_engine(config, files=tiny_files(MODELS[model]), devices=devices)
    tokens = generate(engine, request(PROMPT, max_tokens=40))
    engine.stop()
    return tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mesh", [(1, 2), (1, 4), (1, 8), (2, 1), (2, 4)])
def test_tokens_do_not_depend_on_the_mesh(model, mesh):
    """1, 2, 4 and 8 devices, slots over data and heads over model."""
    assert _tokens(model, mesh, "transfer", 1) == _tokens(model, (1, 1), "transfer", 1)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("fused_steps", [1, 5])
def test_tokens_do_not_depend_on_the_emitter(mesh, fused_steps):
    """Callback and transfer, one step a dispatch or five."""
    for emitter in ("callback", "transfer"):
        assert _tokens("odd", mesh, emitter, fused_steps) == _tokens("odd", (1, 1), "transfer", 1)
