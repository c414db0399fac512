"""Order the waiting requests of one tier: small ones first, and a guaranteed share for every size.

Requests are classed by their tokens, each class four times as large as the one before. The smallest class that waits
goes first, so that a small request never waits for the backlog of large ones. Every other waiting class is owed an
eighth of the tokens that go to others, and takes its turn once a batch is owed: a class gets at least a ninth of the
engine, whatever load the others bring. Within a class requests are served in order of arrival.

Source: deficit round robin (https://doi.org/10.1145/217391.217453), here with priority for the smallest class.
"""

from __future__ import annotations

import time

from crossrank.scheduling.job import Job

# Requests of up to 256 tokens, 1,024, 4,096, 16,384, 65,536, and larger ones.
_SMALLEST_BITS = 8
SIZES = 6
_OWED = 1 / 8
# Part of the engine that a waiting class can count on: s = (1 - s) / 8.
LEAST_SHARE = _OWED / (1 + _OWED)
# Smaller requests that came so recently are expected to come again.
_RECENT_S = 3.0


def size_of(tokens: int) -> int:
    """Return the size class of a request, 0 for the smallest."""
    bits = max(tokens - 1, 0).bit_length()
    return min(max((bits - _SMALLEST_BITS + 1) // 2, 0), SIZES - 1)


class FairQueue:
    """Hold the jobs of one tier that have pairs in no batch yet.

    Attributes:
        waiting_pairs: Number of those pairs.
        waiting_tokens: Number of their tokens.
    """

    def __init__(self) -> None:
        self.waiting_pairs = 0
        self.waiting_tokens = 0
        # Jobs in order of arrival, by size.
        self._jobs: list[dict[Job, None]] = [{} for _ in range(SIZES)]
        self._tokens = [0] * SIZES
        self._owed = [0.0] * SIZES
        self._seen_s = [float("-inf")] * SIZES

    def __bool__(self) -> bool:
        return self.waiting_pairs > 0

    def add(self, job: Job) -> None:
        """Append a job."""
        tokens = sum(job.lengths)
        self.waiting_pairs += len(job.indices)
        self.waiting_tokens += tokens
        self._tokens[job.size] += tokens
        self._seen_s[job.size] = job.arrived_s
        self._jobs[job.size][job] = None

    def discard(self, job: Job) -> None:
        """Drop the pairs of a job that wait still."""
        if job in self._jobs[job.size]:
            self.take(job, 0, len(job.indices))

    def take(self, job: Job, start: int, stop: int) -> list[int]:
        """Remove pairs `start:stop` of those of a job that wait, and return their indices."""
        taken, tokens = job.indices[start:stop], sum(job.lengths[start:stop])
        del job.indices[start:stop], job.lengths[start:stop]
        self.waiting_pairs -= len(taken)
        self.waiting_tokens -= tokens
        self._tokens[job.size] -= tokens
        if not job.indices:
            del self._jobs[job.size][job]
        return taken

    def next_size(self, quantum_tokens: int) -> int:
        """Return the size class whose turn it is: one that is owed `quantum_tokens`, or the smallest that waits."""
        waiting = [size for size, jobs in enumerate(self._jobs) if jobs]
        most = max(waiting, key=self._owed.__getitem__)
        return most if self._owed[most] >= quantum_tokens else waiting[0]

    def jobs(self, size: int) -> list[Job]:
        """Return the jobs of a size class, first come first."""
        return list(self._jobs[size])

    def others(self, size: int) -> list[Job]:
        """Return the jobs of all other size classes, small ones first."""
        return [job for other, jobs in enumerate(self._jobs) if other != size for job in jobs]

    def delays_smaller(self, size: int) -> bool:
        """Tell whether smaller requests than those of a size class wait, or came within the last seconds."""
        since_s = time.monotonic() - _RECENT_S
        return any(seen_s > since_s for seen_s in self._seen_s[:size]) or any(self._jobs[:size])

    def count(self, size: int, tokens: int) -> None:
        """Note that a batch led by a size class took tokens: the other classes that wait are owed more."""
        for other, jobs in enumerate(self._jobs):
            if not jobs:
                self._owed[other] = 0.0
            elif other == size:
                self._owed[other] = max(self._owed[other] - tokens, 0.0)
            else:
                self._owed[other] += tokens * _OWED

    def tokens_ahead(self, size: int) -> float:
        """Return the tokens that go before a new request of a size class, what is owed to larger ones included."""
        larger = sum(map(bool, self._jobs[size + 1 :]))
        return sum(self._tokens[: size + 1]) / (1 - larger * LEAST_SHARE)
