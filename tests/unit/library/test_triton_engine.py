"""Splitting, retrying and balancing over Triton servers, which are scripted here; the real ones are in integration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from crossrank.engines.triton.address import Target
from crossrank.engines.triton.contract import Contract
from crossrank.engines.triton.endpoint import ConnectionLost, ModelChanged, _failure
from crossrank.engines.triton.engine import TritonEngine
from crossrank.engines.triton.pool import Pool
from crossrank.errors import BackendError, BackendTimeout, BackendUnavailable, EngineFailure, Overloaded
from crossrank.packed import PairBatch
from crossrank.scheduling.passthrough import Passthrough
from tests.unit.library.test_batcher import expected, pairs

CONTRACT = Contract("1", ("input_ids",), "logits", (32, 64, 128, 256, 512), 8, False, "fp32")


class ScriptedEndpoint:
    """Takes the place of a server; `script` decides what each inference meets."""

    def __init__(self, address: str, script: Callable[[int], Any] = lambda call: None) -> None:
        self.address = address
        self.contract: Contract | None = CONTRACT
        self.contract_after_loss: Contract | None = None
        self.reason = "scripted"
        self.stalled = False
        self.late_checks = 0
        self.tokens_under_way = 0
        self.last_sent_s = 0.0
        self.suspect = asyncio.Event()
        self.script = script
        self.shapes: list[tuple[int, int]] = []
        self.checks = self.cancelled = 0
        self.on_check: Callable[[], None] = lambda: None

    async def infer(self, batch: PairBatch, length: int, deadline_s: float) -> tuple[NDArray[np.float32], str]:
        assert self.contract is not None
        assert len(batch) <= self.contract.max_rows
        assert batch.lengths.max() <= length
        assert length in self.contract.buckets
        self.shapes.append((len(batch), length))
        outcome = self.script(len(self.shapes))
        self.tokens_under_way += len(batch) * length
        self.last_sent_s = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(outcome if isinstance(outcome, float) else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.tokens_under_way -= len(batch) * length
        if isinstance(outcome, Exception):
            if isinstance(outcome, ConnectionLost):
                self.contract = self.contract_after_loss
            raise outcome
        return expected(batch), outcome if isinstance(outcome, str) else self.contract.version

    async def check(self) -> None:
        self.checks += 1
        self.on_check()

    def abandon(self) -> None: ...

    async def close(self) -> None: ...


def engine_on(*endpoints: ScriptedEndpoint, timeout_s: float = 30) -> TritonEngine:
    return TritonEngine(Pool([], lambda _: None, endpoints), CONTRACT, timeout_s)  # type: ignore[arg-type,return-value]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within ten seconds")


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(3, 512), min_size=1, max_size=60), merges=st.booleans(), servers=st.integers(1, 3))
def test_every_pair_gets_its_own_logit_whatever_the_split(lengths: list[int], merges: bool, servers: int) -> None:
    async def run() -> None:
        endpoints = [ScriptedEndpoint(str(i)) for i in range(servers)]
        for endpoint in endpoints:
            endpoint.contract = replace(CONTRACT, merges_lengths=merges)
        engine = engine_on(*endpoints)
        batch = pairs(*lengths)
        np.testing.assert_array_equal(await engine.score(batch), expected(batch))
        assert sum(rows for endpoint in endpoints for rows, _ in endpoint.shapes) == len(lengths)
        await engine.close()

    asyncio.run(run())


async def test_work_goes_to_the_server_with_the_least_under_way_and_in_turn_among_equals() -> None:
    endpoints = [ScriptedEndpoint(str(i), lambda _: 0.01) for i in range(2)]
    engine = engine_on(*endpoints)
    await engine.score(pairs(*[100] * 64))
    assert [len(endpoint.shapes) for endpoint in endpoints] == [4, 4]
    for _ in range(6):
        await engine.score(pairs(10))
    assert [len(endpoint.shapes) for endpoint in endpoints] == [7, 7]
    await engine.close()


async def test_servers_behind_a_name_are_found_and_those_without_one_are_dropped_once_they_are_out() -> None:
    gone, leaving = ScriptedEndpoint("127.0.0.8:9"), ScriptedEndpoint("127.0.0.9:9")
    gone.contract = None
    made: list[ScriptedEndpoint] = []

    def make(address: str) -> Any:
        made.append(ScriptedEndpoint(address))
        return made[-1]

    pool = Pool([Target("localhost", 9), Target("127.0.0.7", 9)], make, [gone, leaving])  # type: ignore[list-item]
    pool.start()
    await until(lambda: len(pool.endpoints) == 3 and len(made) == 2)
    assert {endpoint.address for endpoint in pool.endpoints} == {"127.0.0.9:9", "127.0.0.1:9", "127.0.0.7:9"}
    await pool.close()


async def test_a_server_that_is_out_is_probed_until_it_is_back() -> None:
    endpoint = ScriptedEndpoint("a")
    endpoint.contract = None
    engine = engine_on(endpoint)

    def come_back() -> None:
        endpoint.contract = CONTRACT if endpoint.checks == 3 else None

    endpoint.on_check = come_back
    assert not engine.ready()
    await until(engine.ready)
    assert endpoint.checks == 3
    await engine.close()


async def test_a_lost_inference_is_sent_once_more_to_another_server() -> None:
    dying = ScriptedEndpoint("a", lambda _: ConnectionLost("reset"))
    well = ScriptedEndpoint("b")
    engine = engine_on(dying, well)
    batch = pairs(*[20] * 40)
    np.testing.assert_array_equal(await engine.score(batch), expected(batch))
    assert dying.shapes
    assert sum(rows for rows, _ in well.shapes) == 40
    await engine.close()


async def test_the_second_try_avoids_the_server_of_the_first_even_if_it_seems_well_again() -> None:
    flaky = ScriptedEndpoint("a", lambda _: ConnectionLost("reset"))
    flaky.contract_after_loss = CONTRACT
    busy = ScriptedEndpoint("b")
    busy.tokens_under_way = 10_000
    engine = engine_on(flaky, busy)
    await engine.score(pairs(20))
    assert (len(flaky.shapes), len(busy.shapes)) == (1, 1)
    await engine.close()


async def test_a_busy_server_gets_less() -> None:
    busy, idle = ScriptedEndpoint("a"), ScriptedEndpoint("b")
    busy.tokens_under_way = 10_000
    engine = engine_on(busy, idle)
    for _ in range(4):
        await engine.score(pairs(20))
    assert (len(busy.shapes), len(idle.shapes)) == (0, 4)
    await engine.close()


async def test_an_inference_lost_twice_is_unavailable_with_a_time_to_come_back() -> None:
    endpoints = [ScriptedEndpoint(name, lambda _: ConnectionLost("reset")) for name in "abc"]
    engine = engine_on(*endpoints)
    with pytest.raises(BackendUnavailable) as raised:
        await engine.score(pairs(20))
    assert raised.value.retry_after_s
    assert sorted(len(endpoint.shapes) for endpoint in endpoints) == [0, 1, 1]
    await engine.close()


async def test_without_any_usable_server_the_error_says_why() -> None:
    dead = ScriptedEndpoint("10.0.0.1:8001")
    dead.contract, dead.reason = None, "connection refused"
    engine = engine_on(dead)
    assert not engine.ready()
    with pytest.raises(BackendUnavailable, match=r"10\.0\.0\.1:8001: connection refused"):
        await engine.score(pairs(20))
    await engine.close()


async def test_a_refused_shape_is_split_anew_as_the_changed_model_wants_it() -> None:
    changed = ScriptedEndpoint("a", lambda call: ModelChanged("batch-size must be <= 4") if call == 1 else None)

    def learn() -> None:
        changed.contract = replace(CONTRACT, max_rows=4, buckets=(512,))

    changed.on_check = learn
    engine = engine_on(changed)
    batch = pairs(*[20] * 8)
    np.testing.assert_array_equal(await engine.score(batch), expected(batch))
    assert changed.shapes == [(8, 32), (4, 512), (4, 512)]
    await engine.close()


async def test_a_request_that_stays_refused_is_an_error_of_the_backend() -> None:
    endpoint = ScriptedEndpoint("a", lambda _: ModelChanged("unexpected shape"))
    engine = engine_on(endpoint)
    with pytest.raises(BackendError, match="unexpected shape"):
        await engine.score(pairs(20))
    assert len(endpoint.shapes) == 2
    await engine.close()


async def test_logits_of_two_versions_are_never_ranked_together() -> None:
    replaced = ScriptedEndpoint("a", lambda call: "1" if call == 1 else "2")
    engine = engine_on(replaced)
    batch = pairs(20, 100, 300)
    np.testing.assert_array_equal(await engine.score(batch), expected(batch))
    assert len(replaced.shapes) == 6

    flapping = engine_on(ScriptedEndpoint("a", lambda call: str(call % 2)))
    with pytest.raises(BackendUnavailable, match="being replaced"):
        await flapping.score(pairs(20, 100, 300))
    await engine.close()
    await flapping.close()


@pytest.mark.parametrize("failure", [Overloaded("full", retry_after_s=1), BackendTimeout("late"), BackendError("no")])
async def test_one_failed_part_fails_the_request_at_once_and_takes_the_others_back(failure: Exception) -> None:
    endpoint = ScriptedEndpoint("a", lambda call: failure if call == 1 else 30.0)
    engine = engine_on(endpoint, ScriptedEndpoint("b", lambda _: 30.0))
    with pytest.raises(type(failure)):
        await asyncio.wait_for(engine.score(pairs(*[100] * 40)), 10)
    await asyncio.sleep(0)
    assert endpoint.tokens_under_way == 0
    await engine.close()


async def test_a_cancelled_caller_takes_all_its_inferences_back() -> None:
    endpoint = ScriptedEndpoint("a", lambda _: 30.0)
    engine = engine_on(endpoint)
    passthrough = Passthrough(engine, 100)
    task = asyncio.create_task(passthrough.score(pairs(*[100] * 40)))
    await asyncio.sleep(0.01)
    assert endpoint.tokens_under_way == 40 * 128
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert (endpoint.tokens_under_way, endpoint.cancelled) == (0, 5)
    await engine.close()


async def test_pairs_under_way_are_limited_but_one_request_always_passes() -> None:
    engine = engine_on(ScriptedEndpoint("a", lambda _: 0.01))
    passthrough = Passthrough(engine, 10)
    large = asyncio.create_task(passthrough.score(pairs(*[10] * 20)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as raised:
        await passthrough.score(pairs(10))
    assert raised.value.retry_after_s
    assert len(await large) == 20
    assert len(await passthrough.score(pairs(10))) == 1
    await engine.close()


async def test_a_logit_that_is_no_number_is_not_passed_on() -> None:
    class Broken(ScriptedEndpoint):
        async def infer(self, batch: PairBatch, length: int, deadline_s: float) -> tuple[NDArray[np.float32], str]:
            return np.full(len(batch), np.nan, np.float32), "1"

    engine = engine_on(Broken("a"))
    with pytest.raises(EngineFailure, match="not a finite number"):
        await Passthrough(engine, 10).score(pairs(10))
    await engine.close()


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "Request timeout expired", BackendTimeout),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused", ConnectionLost),
        ("UNAVAILABLE", "Socket closed", ConnectionLost),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", BackendTimeout),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelChanged),
        ("INVALID_ARGUMENT", "inference request batch-size must be <= 64 for 'm'", ModelChanged),
        ("INTERNAL", "Stub process is not healthy", BackendError),
        ("CANCELLED", "", BackendError),
    ],
)
def test_each_failure_of_triton_has_its_meaning(status: str, message: str, kind: type[Exception]) -> None:
    error = InferenceServerException(message, status=f"StatusCode.{status}")
    assert type(_failure("10.0.0.1:8001", error)) is kind
