"""The model shapes of configs/, by name: for random weights, compile checks and benchmarks.

The files are package data (`tpustream.configs`) in an installation and the folder configs/ beside the
package in a checkout.
"""

import difflib
from pathlib import Path

from tpustream.config.model import ModelConfig

_PACKAGE = Path(__file__).resolve().parents[1]


def preset_names() -> tuple[str, ...]:
    """Names that `preset` takes, sorted."""
    return tuple(sorted(path.stem for path in configs_folder().glob("*.json")))


def preset(name: str) -> ModelConfig:
    """The shape called `name`, upper or lower case. Raises ValueError listing the names."""
    names = preset_names()
    if name.lower() not in names:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"preset: wanted one of {list(names)}, got {name!r}{hint}")
    return ModelConfig.from_json(configs_folder() / f"{name.lower()}.json")


def configs_folder() -> Path:
    """configs/ of the installed package, or of the checkout. ValueError where there is neither."""
    installed, checkout = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    for folder in (installed, checkout):
        if any(folder.glob("*.json")):
            return folder
    raise ValueError(f"presets: wanted *.json files in {installed} or {checkout}, got none")
