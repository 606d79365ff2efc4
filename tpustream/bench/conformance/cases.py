"""What a suite says of a server: cases, what is expected not to hold and why, and the table of both."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

SHOWN = 300  # characters of a reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One test of a suite; `outcome` is passed, failed or skipped, `reason` why where it did not pass."""

    suite: str
    name: str
    outcome: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A server to test (`url` without /v1), and the name of the model to ask for."""

    url: str
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A public suite.

    Attributes:
      run: from a server to the cases as the suite reports them, each still judged by the suite alone.
      names: model names that it asks for, found in its sources.
      not_applicable: name of a case, with its parameters or without -> why this server need not pass it.
      not_run: group of cases that would not say anything here -> why; they are never run.
      flags: of the server that it needs beside the names.
    """

    run: Callable[[Target], Iterator[Case]]
    names: Callable[[], set[str]] = set
    not_applicable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    not_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()


def judged(suite: Suite, target: Target) -> Iterator[Case]:
    """The cases of a suite, with those that do not apply skipped by name.

    A case that is listed as not applicable and passes has failed, as has a listed name that no case has:
    the table would otherwise outlive what it says.
    """
    unseen = set(suite.not_applicable)
    title = ""
    for case in suite.run(target):
        title = case.suite
        listed = next(
            (key for key in (case.name, unparametrized(case.name)) if key in suite.not_applicable), None
        )
        if listed is None:
            yield case
            continue
        unseen.discard(listed)
        reason = suite.not_applicable[listed]
        if case.outcome == "passed":
            yield dataclasses.replace(case, outcome="failed", reason=f"passes, but is listed: {reason}")
        else:
            yield dataclasses.replace(case, outcome="skipped", reason=reason)
    for name in sorted(unseen):
        reason = f"is listed, but there is no such case: {suite.not_applicable[name]}"
        yield Case(suite=title, name=name, outcome="failed", reason=reason)


def unparametrized(name: str) -> str:
    """The name of a pytest case without its parameters: "a::b[1-x]" gives "a::b"."""
    return name.partition("[")[0]


def counts(cases: Iterable[Case]) -> dict[str, dict[str, int]]:
    """Suite -> outcome -> how many."""
    out: dict[str, Counter] = {}
    for case in cases:
        out.setdefault(case.suite, Counter())[case.outcome] += 1
    return {suite: dict(found) for suite, found in out.items()}


def table(cases: list[Case], not_run: Mapping[str, Mapping[str, str]]) -> str:
    """Counts a suite, every case that did not pass with its reason, and what was not run (by suite)."""
    lines = [f"{'suite':<28}{'passed':>8}{'failed':>8}{'skipped':>8}"]
    for suite, found in counts(cases).items():
        row = "".join(f"{found.get(outcome, 0):>8}" for outcome in ("passed", "failed", "skipped"))
        lines.append(f"{suite:<28}{row}")
    lines += [f"{c.outcome}: {c.suite}: {c.name}: {c.reason[:SHOWN]}" for c in cases if c.outcome != "passed"]
    lines += [
        f"not run: {suite}: {group}: {reason}"
        for suite, groups in not_run.items()
        for group, reason in groups.items()
    ]
    return "\n".join(lines)
