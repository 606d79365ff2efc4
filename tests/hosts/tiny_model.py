"""A tiny model with a byte's vocabulary, and the engine that tests run it in, on one host or several."""

import dataclasses
from pathlib import Path

from tests.tiny import TINY, tiny_files
from tpustream.config import EngineConfig

MODEL = dataclasses.replace(TINY, num_heads=8, num_kv_heads=4, vocab_size=257)
FILES = dataclasses.replace(tiny_files(MODEL), tokenizer=Path("byte"))
# One bucket, so that few steps have to compile; blocks of prompts go to the host at once.
ENGINE = EngineConfig(
    slots=2,
    ring_length=64,
    prefill_chunk=16,
    fused_steps=4,
    prefix_cache_mb=0,
    prefix_cache_host_mb=1,
    prompt_scores=False,
    weights="full",
    emitter="transfer",
)
FLAGS = tuple(
    f"--{field.name}={getattr(ENGINE, field.name)}"
    for field in dataclasses.fields(ENGINE)
    if getattr(ENGINE, field.name) != field.default
)
