"""The table of chips: what one device of a topology can do, and what it costs.

Read from a file that a user may edit.
"""

import dataclasses
import json
from pathlib import Path

from tpustream.config.presets import configs_folder

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as the compiler sees it: a chip, or one of its cores where it has two devices.

    Attributes:
      name: version, as topologies spell it.
      devices_per_chip: how many of these a chip has.
      hbm_bytes: what the compiler lets a program have.
      hbm_rate: bytes a second.
      clock: cycles a second of the compiler's estimates.
      flops: bfloat16 operations a second of the matrix units.
      link_rate: bytes a second of one link in one direction.
      dollars_per_hour, watts: None where the table has none.
    """

    name: str
    devices_per_chip: int
    hbm_bytes: int
    hbm_rate: float
    clock: float
    flops: float
    link_rate: float
    dollars_per_hour: float | None
    watts: float | None


def default_table() -> Path:
    """The table that comes with the package."""
    return configs_folder() / "chips" / "tpu.json"


def read_chip(version: str, table: Path) -> Chip:
    """The entry of one version. Raises ValueError that names the file for anything missing or wrong."""
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"chips: wanted a JSON table, got {table}: {error}") from None
    entries = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    if version not in entries:
        raise ValueError(f"chips: wanted one of {sorted(entries)} ({table}), got {version!r}")
    entry = entries[version]
    wanted = ("devices_per_chip", "usable_hbm_gib", "hbm_gb_per_second", "clock_ghz", "bf16_tflops",
              "link_gb_per_second")  # fmt: skip
    wrong = [name for name in wanted if not isinstance(entry.get(name), int | float) or entry[name] <= 0]
    if wrong:
        raise ValueError(
            f"{table}, {version}: wanted numbers > 0, got { ({n: entry.get(n) for n in wrong}) }"
        )
    devices = entry["devices_per_chip"]

    def share(name: str) -> float | None:
        return None if entry.get(name) is None else entry[name] / devices

    return Chip(
        name=version,
        devices_per_chip=devices,
        hbm_bytes=int(entry["usable_hbm_gib"] * GIB),
        hbm_rate=entry["hbm_gb_per_second"] * 1e9 / devices,
        clock=entry["clock_ghz"] * 1e9,
        flops=entry["bf16_tflops"] * 1e12 / devices,
        link_rate=entry["link_gb_per_second"] * 1e9,
        dollars_per_hour=share("dollars_per_chip_hour"),
        watts=share("watts_per_chip"),
    )
