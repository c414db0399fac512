"""Measure the tokens a second that an engine scores while it is kept busy."""

from __future__ import annotations

# Seconds over which the rate is averaged, and of busy time before it is known.
_HORIZON_S = 2.0
_KNOWN_AFTER_S = 0.1


class Throughput:
    """Average the rate over the last seconds in which the engine had all the work that it can do at a time."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0
        self._noted_s = 0.0
        self._busy = False

    def note(self, now_s: float, busy: bool, tokens: int = 0) -> None:
        """Note that a batch began or ended.

        Args:
            now_s: time.monotonic().
            busy: Whether the engine has all the work that it can do at a time, from now on.
            tokens: Those of the batch that ended.
        """
        if self._busy:
            self._busy_s += now_s - self._noted_s
            self._tokens += tokens
            if self._busy_s > _HORIZON_S:
                self._busy_s /= 2
                self._tokens /= 2
        self._noted_s, self._busy = now_s, busy

    @property
    def tokens_per_s(self) -> float:
        """The rate of a busy engine; 0 while it is not known."""
        return 0.0 if self._busy_s < _KNOWN_AFTER_S else self._tokens / self._busy_s

    def seconds(self, tokens: float) -> float:
        """Return the seconds that a busy engine needs for a number of tokens; 0 while its rate is not known."""
        rate = self.tokens_per_s
        return tokens / rate if rate else 0.0
