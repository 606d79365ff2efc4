"""What must be true after a soak, and the table and JSON that say whether it is."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One promise.

    Attributes:
      passed: None where this run could not see it.
    """

    name: str
    wanted: str
    got: str
    passed: bool | None


def at_most(name: str, got: float | None, most: float, unit: str = "") -> Check:
    """A number that must not be larger than `most`; None for one that could not be read."""
    shown = "not seen" if got is None else f"{got:g}{unit}"
    return Check(
        name=name, wanted=f"<= {most:g}{unit}", got=shown, passed=None if got is None else got <= most
    )


def none_of(name: str, found: Sequence[str] | None) -> Check:
    """A list of faults that must be empty; the first one is shown. None for faults that cannot be seen."""
    if found is None:
        return Check(name=name, wanted="0", got="not seen", passed=None)
    got = f"{len(found)}: {found[0]}" if found else "0"
    return Check(name=name, wanted="0", got=got, passed=not found)


def at_least(name: str, got: int, least: int) -> Check:
    """A count without which the run has shown nothing."""
    return Check(name=name, wanted=f">= {least}", got=str(got), passed=got >= least)


def memory_growth(early: int | None, late: int | None, most_mb: float) -> Check:
    """Resident memory after the first tenth of the requests, and at the end, both with nothing running."""
    name, wanted = "memory growth after the first tenth", f"<= {most_mb:g} MB"
    if early is None or late is None:
        return Check(name=name, wanted=wanted, got="not seen", passed=None)
    growth = (late - early) / 2**20
    got = f"{growth:+.1f} MB, from {early / 2**20:.1f} to {late / 2**20:.1f} MB"
    return Check(name=name, wanted=wanted, got=got, passed=growth <= most_mb)


def table(checks: Sequence[Check]) -> str:
    """One line a check."""
    words = {True: "ok", False: "FAILED", None: "not seen"}
    wide = max(len(check.name) for check in checks)
    lines = [
        f"{words[check.passed]:>8}  {check.name:<{wide}}  {check.got} (wanted {check.wanted})"
        for check in checks
    ]
    return "\n".join(lines)


def failed(checks: Sequence[Check]) -> bool:
    """Whether any promise was broken."""
    return any(check.passed is False for check in checks)
