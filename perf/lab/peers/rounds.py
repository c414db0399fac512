"""Compare crossrank with its peers: the same weights and requests, taking turns in one run.

Taking turns cancels the noise of the machine: the ratio is taken within a round, and the median over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.latency import latency_ms
from crossrank_perf.base.report import Progress
from lab.peers.contestants import Contestant, Setting, Turn

# bf16 against fp32 stays within 0.05; different weights differ by whole units.
_MAX_LOGIT_DIFFERENCE = 0.25
_TUNING_SHARE = 0.5  # time for trying a setting, as a share of a turn
_WARM_UP_SHARE, _LEAST_WARM_UP_S = 0.25, 1.0  # time for its warm-up, as a share of that


@dataclass(frozen=True)
class Rounds:
    """Number and length of the rounds.

    Attributes:
        count: Rounds; each system runs once in each.
        turn_s: Seconds of each system in each round.
        compared_requests: Number of requests whose scores are compared beforehand.
    """

    count: int
    turn_s: float
    compared_requests: int = 5


@dataclass
class _Entrant:
    """A contestant and its figures so far."""

    contestant: Contestant
    facts: dict[str, Any] = field(default_factory=dict)
    setting: Setting = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def speeds(self) -> list[float]:
        return [turn.documents_per_s for turn in self.turns]


def compare(
    own: Sequence[Contestant],
    peers: Sequence[Contestant],
    rounds: Rounds,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run every system in turn and return the figures, ready for JSON.

    A peer that fails is left out and named under `failed`; the others go on.

    Args:
        own: Contestants of crossrank; all scores are compared with those of the first.
        peers: The other contestants.
        rounds: Number and length of the rounds.
        progress: Shows what runs.
        keep: Called with the figures after every round, so that an interrupted run is not lost.

    Raises:
        SetupError: crossrank failed, or all peers did.
    """
    comparison = _Comparison(own, peers, rounds, progress)
    try:
        comparison.prepare()
        for number in range(1, rounds.count + 1):
            comparison.run_round(number)
            figures = comparison.figures()
            keep(figures)
    finally:
        comparison.close()
    return figures


class _Comparison:
    def __init__(
        self, own: Sequence[Contestant], peers: Sequence[Contestant], rounds: Rounds, progress: Progress
    ) -> None:
        self._own = [_Entrant(each) for each in own]
        self._peers = [_Entrant(each) for each in peers]
        self._rounds = rounds
        self._progress = progress
        self._reference: list[list[float]] = []
        self._failed: dict[str, str] = {}

    def prepare(self) -> None:
        """Load every system, compare its scores, and choose its fastest setting."""
        for entrant in self._own:
            self._load(entrant)
        for entrant in list(self._peers):
            self._attempt(entrant, self._load)
        for entrant in self._own:
            self._tune(entrant)
        for entrant in list(self._peers):
            self._attempt(entrant, self._tune)

    def run_round(self, number: int) -> None:
        """Run every system once, beginning with another one each round, so that none always follows the same."""
        entrants = [*self._own, *self._peers]
        first = number % len(entrants)
        for entrant in (*entrants[first:], *entrants[:first]):
            self._progress.say(f"round {number} of {self._rounds.count}, {entrant.name}")
            if entrant in self._own:
                self._run(entrant)
            else:
                self._attempt(entrant, self._run)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the rounds so far."""
        systems = {entrant.name: _figures(entrant) for entrant in (*self._own, *self._peers)}
        for peer in self._peers:
            systems[peer.name]["crossrank_ratio"] = {
                own.name: _spread(a / b for a, b in zip(own.speeds, peer.speeds, strict=True)) for own in self._own
            }
        fastest = {}
        for peer in sorted(self._peers, key=lambda each: median(each.speeds)):
            fastest[peer.contestant.over] = peer.name
        return {
            "rounds": len(self._own[0].turns),
            "turn_s": self._rounds.turn_s,
            "fastest_peer": fastest,
            "systems": systems,
            "failed": self._failed,
        }

    def close(self) -> None:
        """End all processes."""
        for entrant in (*self._own, *self._peers):
            entrant.contestant.close()

    def _attempt(self, peer: _Entrant, step: Callable[[_Entrant], None]) -> None:
        """Do a step, and leave the peer out if it fails."""
        try:
            step(peer)
        except SetupError as error:
            self._failed[peer.name] = str(error)
            self._peers.remove(peer)
            peer.contestant.close()
            if not self._peers:
                raise SetupError("no peer is left: " + "; ".join(self._failed.values())) from None

    def _load(self, entrant: _Entrant) -> None:
        self._progress.say(f"loading {entrant.name}")
        entrant.facts = entrant.contestant.open()
        scores = [entrant.contestant.logits(request) for request in range(self._rounds.compared_requests)]
        self._reference = self._reference or scores
        worst = max(
            abs(theirs - ours)
            for request, reference in zip(scores, self._reference, strict=True)
            for theirs, ours in zip(request, reference, strict=True)
        )
        if worst > _MAX_LOGIT_DIFFERENCE:
            raise SetupError(
                f"scores of {self._own[0].name} and {entrant.name} differ by up to {worst:.3f}, more than "
                f"{_MAX_LOGIT_DIFFERENCE}: these are not the same weights; give the --checkpoint of the --model"
            )
        entrant.facts["max_logit_difference"] = round(worst, 6)

    def _tune(self, entrant: _Entrant) -> None:
        """Choose the fastest setting, after one short run of each to warm up."""
        contestant, seconds = entrant.contestant, self._rounds.turn_s * _TUNING_SHARE
        tried = []
        for setting in contestant.settings:
            self._progress.say(f"trying {entrant.name} {describe_setting(setting)}")
            contestant.run(max(seconds * _WARM_UP_SHARE, _LEAST_WARM_UP_S), setting)
            tried.append((contestant.run(seconds, setting).documents_per_s, setting))
        entrant.setting = max(tried, key=lambda each: each[0])[1]
        entrant.facts["setting"] = entrant.setting
        entrant.facts["tried"] = [{**setting, "documents_per_s": round(speed, 1)} for speed, setting in tried]

    def _run(self, entrant: _Entrant) -> None:
        entrant.turns.append(entrant.contestant.run(self._rounds.turn_s, entrant.setting))


def describe_setting(setting: Setting) -> str:
    """Return a setting as text, such as `batch size 32`; empty where a system has none."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items())


def _figures(entrant: _Entrant) -> dict[str, Any]:
    turns = entrant.turns
    cpu = [turn.cpu_s_per_1000_documents for turn in turns if turn.cpu_s_per_1000_documents is not None]
    memory = [turn.peak_rss_bytes for turn in turns if turn.peak_rss_bytes is not None]
    return {
        "over": entrant.contestant.over,
        **entrant.facts,
        "documents_per_s": _spread(entrant.speeds),
        "latency_ms": latency_ms([latency for turn in turns for latency in turn.latencies_s]),
        "cpu_s_per_1000_documents": round(median(cpu), 3) if cpu else None,
        "rss_mb": round(max(memory) / 1e6, 1) if memory else None,
    }


def _spread(values: Iterable[float]) -> dict[str, Any]:
    each = [round(value, 3) for value in values]
    return {"median": round(median(each), 3), "min": min(each), "max": max(each), "rounds": each}
