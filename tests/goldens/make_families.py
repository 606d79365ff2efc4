"""Record tests/goldens/families/ with torch and transformers 5: python -m tests.goldens.make_families

Every family's weights come from families.draw_weights, so what is recorded is the config, the names
and shapes of the tensors, the input tokens and transformers' logits. A config in the style of
transformers 4 is recorded only after transformers has computed the same logits from it.
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.goldens.families import FAMILIES, FOLDER, checksum, draw_weights
from tests.goldens.family_configs import CONFIGS, legacy_config

LENGTHS = (41, 23)


def record_family(name: str) -> None:
    """Write NAME.json and NAME.npz. Raises ValueError where the recording contradicts itself."""
    config = _as_written(CONFIGS[name])
    model = _build(CONFIGS[name])
    tensors = {key: tuple(array.shape) for key, array in model.state_dict().items()}
    if config.get("tie_word_embeddings", model.config.tie_word_embeddings):
        tensors.pop("lm_head.weight")
    gemma = config["model_type"].startswith("gemma")
    weights = draw_weights(name, tensors, norms_around=0.0 if gemma else 1.0)
    generator = np.random.default_rng(len(name))
    tokens = [generator.integers(3, config["vocab_size"], length) for length in LENGTHS]
    logits = _logits(model, weights, tokens)

    legacy = legacy_config(name, config)
    if legacy is not None:
        again = _logits(_build(legacy), weights, tokens)
        if not all(np.array_equal(new, old) for new, old in zip(logits, again, strict=True)):
            raise ValueError(f"{name}: wanted the same logits from the config of transformers 4")

    record = {
        "config": config,
        "config_v4": legacy,
        "tensors": tensors,
        "tokens": [row.tolist() for row in tokens],
        "weights_crc32": checksum(weights),
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    arrays = {f"logits_{index}": array for index, array in enumerate(logits)}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    spread = np.concatenate(logits).std()
    print(f"{name:18s} tensors {len(tensors):3d}  logits std {spread:.2f}  v4 {legacy is not None}")


def _build(config: dict[str, Any]) -> torch.nn.Module:
    fields = dict(config)
    built = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return AutoModelForCausalLM.from_config(built, attn_implementation="eager").float().eval()


def _as_written(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json that save_pretrained would write."""
    model = _build(config)
    model.config.architectures = [type(model).__name__]
    return json.loads(model.config.to_json_string())


def _logits(
    model: torch.nn.Module, weights: dict[str, np.ndarray], tokens: list[np.ndarray]
) -> list[np.ndarray]:
    state = {key: torch.from_numpy(array) for key, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"wanted exactly the model's tensors, got missing {missing}, unexpected {unexpected}"
        )
    model.tie_weights()
    with torch.no_grad():
        return [model(torch.from_numpy(row)[None]).logits[0].float().numpy() for row in tokens]


if __name__ == "__main__":
    if set(CONFIGS) != set(FAMILIES):
        raise ValueError(f"family_configs.CONFIGS: wanted {FAMILIES}, got {tuple(CONFIGS)}")
    for family in FAMILIES:
        record_family(family)
