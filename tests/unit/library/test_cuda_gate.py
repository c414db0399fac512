"""While a CUDA graph is captured nothing else runs; a capture comes to its turn under load."""

from __future__ import annotations

import threading
import time

from crossrank.engines.cuda_gate import CaptureGate


def test_captures_are_alone_and_get_their_turn_among_endless_runs():
    gate, stop = CaptureGate(), threading.Event()
    running, most = [0], [0]
    lock = threading.Lock()
    faults: list[int] = []

    def run() -> None:
        while not stop.is_set():
            with gate.run():
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                time.sleep(0.001)
                with lock:
                    running[0] -= 1

    runners = [threading.Thread(target=run) for _ in range(4)]
    for runner in runners:
        runner.start()

    def capture() -> None:
        for _ in range(20):
            with gate.capture():
                seen = running[0]
                running[0] += 1
                time.sleep(0.001)
                running[0] -= 1
                if seen:
                    faults.append(seen)

    capturers = [threading.Thread(target=capture) for _ in range(2)]
    for capturer in capturers:
        capturer.start()
    for capturer in capturers:
        capturer.join(60)
        assert not capturer.is_alive(), "it waited in vain"
    while most[0] < 2:
        time.sleep(0.001)
    stop.set()
    for runner in runners:
        runner.join(60)
    assert not faults
    assert most[0] >= 2, "runs go on beside each other"


def test_a_failed_capture_lets_the_others_go_on():
    gate = CaptureGate()
    try:
        with gate.capture():
            raise RuntimeError("no memory")
    except RuntimeError:
        pass
    with gate.run(), gate.run():
        pass
