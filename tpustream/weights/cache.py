"""The folder where fetched models are kept."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "TPUSTREAM_CACHE"


def cache_folder(chosen: Path | None = None) -> Path:
    """`chosen`, else the environment's TPUSTREAM_CACHE, else the user's cache folder; made if absent."""
    folder = chosen or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("tpustream")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
