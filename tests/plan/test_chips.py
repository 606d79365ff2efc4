"""The table of chips: what the package ships is complete, and a user's mistake is named."""

import json

import pytest

from tpustream.plan.chips import default_table, read_chip


@pytest.mark.parametrize("version", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_every_version_is_complete(version):
    """All rates are there, and matrix peak and clock belong together: a whole number of matrix units."""
    chip = read_chip(version, default_table())
    assert chip.hbm_bytes > 8 << 30 and chip.hbm_rate > chip.link_rate
    unit = 256 if version in ("v6e", "tpu7x") else 128
    units = chip.flops / (2 * unit * unit * chip.clock)
    assert units == pytest.approx(round(units), rel=0.01)


def test_two_devices_share_a_chip(tmp_path):
    """Rates, price and power are of a chip in the table, and of a device in the estimate."""
    table = tmp_path / "chips.json"
    entry = json.loads(default_table().read_text())["v5e"]
    table.write_text(json.dumps({"x": entry | {"devices_per_chip": 2, "dollars_per_chip_hour": None}}))
    chip = read_chip("x", table)
    assert chip.hbm_rate == entry["hbm_gb_per_second"] * 1e9 / 2
    assert chip.watts == entry["watts_per_chip"] / 2 and chip.dollars_per_hour is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "wanted a JSON table"),
        ('{"v4": {}}', r"wanted one of \['v4'\].*got 'v5e'"),
        ('{"v5e": {"clock_ghz": "fast"}}', "wanted numbers > 0.*'clock_ghz': 'fast'"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    """Not JSON, no such version, not a number."""
    table = tmp_path / "chips.json"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_chip("v5e", table)


def test_a_table_that_is_not_there(tmp_path):
    """The error names the file."""
    with pytest.raises(ValueError, match=r"nothing\.json"):
        read_chip("v5e", tmp_path / "nothing.json")
