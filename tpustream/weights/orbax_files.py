"""Our own checkpoints: an Orbax folder `params` with our parameter names, and tpustream.json beside it.

Each device reads its own shards; the whole model is never on one host.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tpustream.config import ModelConfig
from tpustream.core.errors import ModelError

CONFIG_FILE = "tpustream.json"
PARAMS_FOLDER = "params"


def save_orbax(folder: Path, config: ModelConfig, params: Mapping[str, jax.Array]) -> None:
    """Write `params` (our names) and `config` to `folder`, which must not hold a checkpoint yet.

    Raises ModelError where it does. The configuration is written last: a folder with one is whole.
    """
    folder = folder.absolute()
    if (folder / PARAMS_FOLDER).exists() or (folder / CONFIG_FILE).exists():
        raise ModelError(f"{folder}: wanted a folder without a checkpoint, got one that has it")
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / PARAMS_FOLDER, dict(params))
        checkpointer.wait_until_finished()
    (folder / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read_orbax_config(folder: Path) -> ModelConfig:
    """The configuration that `save_orbax` wrote. Raises ModelError naming the file."""
    try:
        return ModelConfig.from_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: wanted a model configuration, got: {error}") from error


def orbax_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every array of the checkpoint. Raises ModelError where it cannot be read."""
    path = folder.absolute() / PARAMS_FOLDER
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata
        return {name: tuple(array.shape) for name, array in dict(tree).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: wanted an Orbax checkpoint of named arrays, got: {error}") from error


def restore_orbax(folder: Path, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The arrays of the checkpoint, in the dtype and at the sharding of `targets`.

    Args:
      folder: what `save_orbax` wrote.
      targets: our name -> jax.ShapeDtypeStruct with a sharding, for every array of the checkpoint.

    Raises:
      ModelError: files are missing or broken.
    """
    path = folder.absolute() / PARAMS_FOLDER
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return dict(checkpointer.restore(path, dict(targets)))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: wanted a whole Orbax checkpoint, got: {error}") from error
