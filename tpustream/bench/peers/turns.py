"""Taking turns: in every round each side does the same work once, one after the other, never together."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from tpustream.bench.peers.machine import busy_seconds
from tpustream.bench.peers.work import Workload

Measure = Callable[[Workload], float]
"""Does the work once; tokens a second."""

TARGETS = {
    ("llama.cpp", "decode 1"): 1.0,
    ("llama.cpp", "decode 8"): 2.0,
    ("llama.cpp", "decode 16"): 2.0,
    ("llama.cpp", "prefill 512"): 3.0,
}
"""(peer, workload) -> least ratio that this project wants."""

DISTURBING = 0.1
"""Cores of other programs, or ours in a peer's turn, from which a ratio says nothing: llama.cpp's threads
wait for each other by spinning, and lose a factor of fifty where a third thread wants one of two cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
    """All rounds of one workload.

    Attributes:
      workload: what was done.
      ours: our side -> tokens a second, one a round.
      peers: peer -> tokens a second, one a round.
      our_cores: cores that this process used while peers worked; it should sleep then.
      other_cores: cores that other programs used while ours worked; None where nobody tells.
    """

    workload: Workload
    ours: Mapping[str, Sequence[float]]
    peers: Mapping[str, Sequence[float]]
    our_cores: float
    other_cores: float | None

    @property
    def disturbed(self) -> bool:
        """Whether the sides did not have the machine to themselves."""
        return max(self.our_cores, self.other_cores or 0.0) > DISTURBING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of our sides beside one peer.

    Attributes:
      ours, peer: names.
      ours_rates, peer_rates: tokens a second, one a round.
      ratio: of the medians.
      lowest, highest: ratio within a round.
      target: least ratio wanted; None where there is none.
      disturbed: as in Turns.
    """

    workload: Workload
    ours: str
    peer: str
    ours_rates: Sequence[float]
    peer_rates: Sequence[float]
    ratio: float
    lowest: float
    highest: float
    target: float | None
    disturbed: bool

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none, or no telling."""
        return None if self.target is None or self.disturbed else self.ratio >= self.target


@dataclasses.dataclass
class _Cores:
    """Seconds of the clock, of this process, and of all processes, added up over some measurements."""

    wall: float = 0.0
    process: float = 0.0
    machine: float | None = 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        wall, process, machine = time.perf_counter(), time.process_time(), busy_seconds()
        yield
        self.wall += time.perf_counter() - wall
        self.process += time.process_time() - process
        self.machine = None if machine is None else self.machine + busy_seconds() - machine


def take_turns(
    workload: Workload, ours: Mapping[str, Measure], peers: Mapping[str, Measure], *, rounds: int
) -> Turns:
    """Ours first, then each peer, `rounds` times over."""
    our_rates = {name: [] for name in ours}
    peer_rates = {name: [] for name in peers}
    our_turns, peer_turns = _Cores(), _Cores()
    for _ in range(rounds):
        for sides, rates, cores in ((ours, our_rates, our_turns), (peers, peer_rates, peer_turns)):
            for name, measure in sides.items():
                with cores.watch():
                    rates[name].append(measure(workload))
    others = None
    if our_turns.machine is not None:
        others = max(0.0, our_turns.machine - our_turns.process) / our_turns.wall
    return Turns(
        workload=workload,
        ours=our_rates,
        peers=peer_rates,
        our_cores=peer_turns.process / peer_turns.wall,
        other_cores=others,
    )


def compare(turns: Turns) -> list[Comparison]:
    """Every peer with every side of ours."""
    out = []
    for peer, peer_rates in turns.peers.items():
        for ours, our_rates in turns.ours.items():
            ratios = [mine / theirs for mine, theirs in zip(our_rates, peer_rates, strict=True)]
            comparison = Comparison(
                workload=turns.workload,
                ours=ours,
                peer=peer,
                ours_rates=our_rates,
                peer_rates=peer_rates,
                ratio=statistics.median(our_rates) / statistics.median(peer_rates),
                lowest=min(ratios),
                highest=max(ratios),
                target=TARGETS.get((peer, turns.workload.name)),
                disturbed=turns.disturbed,
            )
            out.append(comparison)
    return out
