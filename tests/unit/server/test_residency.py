"""Models are loaded once for all who ask, kept while they are used, and asleep after that, within the budget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.errors import BackendUnavailable, ModelWarming, SetupError
from crossrank.request import RerankRequest
from crossrank.resolve import builtin_path
from crossrank_server.accounts.base import Charge, OpenAccounts
from crossrank_server.calls import Call
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.residency import Residency, estimated_memory_mb
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from crossrank_server.serving.slot import EngineFacts, ModelSlot
from tests.unit.library.test_batcher import ArithmeticEngine

BUNDLE = load_bundle(builtin_path())


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when it is told to."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class Home:
    """Models that load when they are let, counted while they take memory."""

    def __init__(self, *sizes_mb: float, pinned: int = 0, **limits: float) -> None:
        self.alive: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.failures: dict[str, Exception] = {}
        self.gate = threading.Semaphore(0)
        self.gated = False
        self.most_mb = 0.0
        self.slots: list[ModelSlot] = []
        self.slots = [self._slot(f"m{i}", size, i < pinned) for i, size in enumerate(sizes_mb)]
        self.residency = Residency(self.slots, **limits)
        self.loop = SteppedLoop()
        for slot in self.slots[:pinned]:
            slot.finish(slot.load())

    def _slot(self, name: str, memory_mb: float, pinned: bool) -> ModelSlot:
        bundle = Bundle(BUNDLE.path, BUNDLE.manifest.model_copy(update={"model_id": name}))
        return ModelSlot(bundle, lambda: Loaded(self, name), memory_mb=memory_mb, pinned=pinned)  # type: ignore[arg-type, return-value]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, None))

    def until(self, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < give_up_at, "it never happened"
            self.settle()
            time.sleep(0.0005)

    def settle(self) -> None:
        for _ in range(12):
            self.loop.run_until_complete(asyncio.sleep(0))

    def advance(self, seconds: float) -> None:
        self.loop.now_s += seconds
        self.settle()

    async def use(self, slot: ModelSlot, wait_s: float = 0.0) -> Loaded:
        async with self.residency.awake(slot, wait_s) as served:
            assert served is slot.served
            return served  # type: ignore[return-value]

    def statuses(self) -> list[str]:
        return [slot.status for slot in self.slots]

    def close(self) -> None:
        for _ in range(100):
            self.gate.release()
        self.run(self.residency.close())
        self.loop.close()
        assert not +self.alive


class Loaded:
    """Stands where a ServedModel stands: something loaded that can be closed."""

    def __init__(self, home: Home, name: str) -> None:
        self.engine = EngineFacts("fake", "fp32")
        self.id = name
        self.closed = False
        self._home = home
        home.alive[name] += 1
        home.loads[name] += 1
        home.most_mb = max(home.most_mb, sum(slot.memory_mb for slot in home.slots if home.alive[slot.id]))
        if home.gated:
            home.gate.acquire()
        if failure := home.failures.pop(name, None):
            home.alive[name] -= 1
            raise failure

    async def close(self) -> None:
        for _ in range(3):
            # A load that does not wait for this one's memory would begin now.
            await asyncio.sleep(0)
            time.sleep(0.001)  # noqa: ASYNC251 - for the other thread
        assert not self.closed
        self.closed = True
        self._home.alive[self.id] -= 1


@pytest.fixture
def make_home(request: pytest.FixtureRequest) -> Callable[..., Home]:
    def make(*sizes_mb: float, **options: Any) -> Home:
        home = Home(*sizes_mb, **options)
        request.addfinalizer(home.close)
        return home

    return make


def test_a_request_without_wait_is_told_when_to_come_back_and_the_model_is_there_then(make_home) -> None:
    home = make_home(10, 600, pinned=1)
    assert home.statuses() == ["ready", "asleep"]
    assert home.slots[1].engine.name is None
    with pytest.raises(ModelWarming, match="m1 was asleep and is being loaded: try again in 5 s") as raised:
        home.run(home.use(home.slots[1]))
    assert raised.value.retry_after_s == 5.0
    home.until(lambda: home.slots[1].status == "ready")
    assert home.run(home.use(home.slots[1])).id == "m1"
    assert home.slots[1].engine == EngineFacts("fake", "fp32")
    assert home.loads["m1"] == 1


def test_requests_that_wait_share_one_load_and_one_that_goes_away_does_not_end_it(make_home) -> None:
    home = make_home(10)
    home.gated = True
    waiting = [home.loop.create_task(home.use(home.slots[0], 30)) for _ in range(5)]
    home.settle()
    waiting[0].cancel()
    home.settle()
    assert waiting[0].cancelled()
    assert home.statuses() == ["warming"]
    with pytest.raises(ModelWarming):
        home.run(home.use(home.slots[0]))
    home.gate.release()
    served = home.run(asyncio.gather(*waiting[1:]))
    assert len({id(each) for each in served}) == 1
    assert home.loads == {"m0": 1}


def test_a_request_waits_no_longer_than_it_said(make_home) -> None:
    home = make_home(10)
    home.gated = True
    waiting = home.loop.create_task(home.use(home.slots[0], 30))
    home.settle()
    home.advance(29)
    assert not waiting.done()
    home.advance(2)
    with pytest.raises(ModelWarming):
        home.run(waiting)
    assert home.statuses() == ["warming"]


def test_a_failed_load_is_told_under_an_id_and_tried_again_by_the_next_request(
    make_home, caplog: pytest.LogCaptureFixture
) -> None:
    home = make_home(10)
    home.failures["m0"] = OSError("secret path")
    with caplog.at_level(logging.ERROR), pytest.raises(BackendUnavailable) as raised:
        home.run(home.use(home.slots[0], 30))
    assert raised.value.code == "model_load_failed"
    assert raised.value.retry_after_s
    assert "secret" not in raised.value.message
    error_id = raised.value.message.partition("error id ")[2][:12]
    assert f"error {error_id}: model m0" in caplog.text
    assert "secret path" in caplog.text
    assert home.run(home.use(home.slots[0], 30)).id == "m0"
    assert home.loads["m0"] == 2


def test_a_caller_that_does_not_wait_hears_of_the_failure_and_not_of_warming_for_ever(make_home) -> None:
    home = make_home(10)
    home.failures["m0"] = OSError("no")
    with pytest.raises(ModelWarming):
        home.run(home.use(home.slots[0]))
    home.until(lambda: home.slots[0].status == "asleep")
    with pytest.raises(BackendUnavailable, match="could not be loaded"):
        home.run(home.use(home.slots[0]))
    home.until(lambda: home.slots[0].status == "ready")
    home.run(home.use(home.slots[0]))


def test_an_idle_model_sleeps_but_not_a_pinned_one_nor_one_in_use(make_home) -> None:
    home = make_home(10, 10, 10, pinned=1, idle_sleep_s=60.0)
    for slot in home.slots:
        home.run(home.use(slot, 30))
    release = asyncio.Event()

    async def use_for_long() -> None:
        async with home.residency.awake(home.slots[2], 0):
            await release.wait()

    long = home.loop.create_task(use_for_long())
    home.settle()
    home.advance(40)
    home.run(home.use(home.slots[1]))
    home.advance(40)
    assert home.statuses() == ["ready", "ready", "ready"]
    home.advance(40)
    assert home.statuses() == ["ready", "asleep", "ready"]
    release.set()
    home.run(long)
    home.advance(59)
    assert home.statuses() == ["ready", "asleep", "ready"]
    home.advance(2)
    assert home.statuses() == ["ready", "asleep", "asleep"]
    home.advance(10_000)
    home.until(lambda: +home.alive == {"m0": 1})


def test_the_least_recently_used_model_gives_way(make_home) -> None:
    home = make_home(10, 20, 20, 20, pinned=1, memory_budget_mb=50.0)
    for i in (1, 2, 1, 3):
        home.run(home.use(home.slots[i], 30))
        home.advance(1)
    assert home.statuses() == ["ready", "ready", "asleep", "ready"]
    home.run(home.use(home.slots[0]))
    assert home.run(home.use(home.slots[2], 30)).id == "m2"
    assert home.statuses() == ["ready", "asleep", "ready", "ready"]


def test_a_model_in_use_gives_no_way_and_the_refusal_states_budget_and_sizes(make_home) -> None:
    home = make_home(10, 30, 30, pinned=1, memory_budget_mb=50.0)
    release = asyncio.Event()

    async def use_for_long() -> None:
        async with home.residency.awake(home.slots[1], 30):
            await release.wait()

    long = home.loop.create_task(use_for_long())
    home.until(lambda: home.slots[1].status == "ready")
    with pytest.raises(
        BackendUnavailable, match=r"m2 needs 30 MB, the budget of 50 MB .* m0 \(10 MB\), m1 \(30 MB\)"
    ) as raised:
        home.run(home.use(home.slots[2]))
    assert (raised.value.code, raised.value.retry_after_s) == ("memory_budget", 5.0)
    waiting = home.loop.create_task(home.use(home.slots[2], 30))
    home.settle()
    assert not waiting.done()
    release.set()
    home.run(long)
    assert home.run(waiting).id == "m2"
    assert home.statuses() == ["ready", "asleep", "ready"]


def test_two_callers_that_come_back_do_not_push_each_others_model_out_for_ever(make_home) -> None:
    home = make_home(30, 30, memory_budget_mb=50.0)
    with pytest.raises(ModelWarming):
        home.run(home.use(home.slots[0]))
    home.until(lambda: home.slots[0].status == "ready")
    with pytest.raises(BackendUnavailable, match="just loaded for a caller"):
        home.run(home.use(home.slots[1]))
    home.run(home.use(home.slots[0]))
    with pytest.raises(ModelWarming):
        home.run(home.use(home.slots[1]))
    home.until(lambda: home.slots[1].status == "ready")
    # A caller that never comes back does not keep it for ever.
    home.advance(11)
    with pytest.raises(ModelWarming):
        home.run(home.use(home.slots[0]))


def test_a_budget_in_which_a_model_could_never_be_loaded_is_refused_at_start() -> None:
    with pytest.raises(
        SetupError, match="--memory-budget-mb is 39, but the pinned models take about 10 MB and the largest"
    ):
        Home(10, 30, pinned=1, memory_budget_mb=39.0)


def test_the_estimate_grows_with_the_graph(builtin: Bundle) -> None:
    graph_mb = builtin.file("model.onnx").stat().st_size / 1e6
    assert estimated_memory_mb(builtin) == pytest.approx(35 + 3.5 * graph_mb)


class Ledger(OpenAccounts):
    """Keeps what was charged and what was not."""

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.free: list[str] = []

    @contextlib.asynccontextmanager
    async def admit(self, account: Any, *, model: str, documents: int, **_: Any) -> AsyncIterator[Charge]:
        try:
            yield Charge(documents)
        except BaseException as error:
            self.free.append(f"{model}: {type(error).__name__}")
            raise
        self.charged.append(model)


async def test_a_request_for_a_model_that_is_asleep_costs_nothing_until_it_is_answered(builtin: Bundle) -> None:
    ledger = Ledger()
    slot = ModelSlot(builtin, lambda: ServedModel(builtin, ArithmeticEngine(), 100))
    service = RerankService(ModelPool([slot]), max_documents=10, timeout_s=30, accounts=ledger)
    request = RerankRequest("q", ["a", "b"])
    unwilling, patient = Call(), Call(wait_s=30)
    with pytest.raises(ModelWarming):
        await service.rerank(request, unwilling)
    assert (ledger.charged, ledger.free) == ([], ["crossrank-mini: ModelWarming"])
    assert len((await service.rerank(request, patient)).order) == 2
    assert ledger.charged == ["crossrank-mini"]
    assert patient.response_headers == {"preference-applied": "wait=30"}
    assert unwilling.response_headers == {}
    await service.close()


async def test_the_time_limit_begins_when_the_model_is_awake(builtin: Bundle) -> None:
    def load() -> ServedModel:
        time.sleep(1.5)
        return ServedModel(builtin, ArithmeticEngine(), 100)

    service = RerankService(ModelPool([ModelSlot(builtin, load)]), max_documents=10, timeout_s=1.2)
    ranking = await service.rerank(RerankRequest("q", ["a"]), Call(wait_s=30))
    assert len(ranking.order) == 1
    await service.close()


class ResidencyMachine(RuleBasedStateMachine):
    """Any order of requests, ends, cancellations, loads that succeed or fail, and time."""

    SIZES = (10.0, 30.0, 50.0, 20.0)
    BUDGET = 70.0
    IDLE_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.home = Home(*self.SIZES, pinned=1, memory_budget_mb=self.BUDGET, idle_sleep_s=self.IDLE_S)
        self.home.gated = True
        self.requests: list[asyncio.Task[None]] = []
        self.holding: dict[asyncio.Task[Any] | None, tuple[Loaded, asyncio.Event]] = {}

    @rule(model=st.integers(0, 3), wait_s=st.sampled_from([0.0, 5.0, 1e6]))
    def ask(self, model: int, wait_s: float) -> None:
        async def request() -> None:
            async with self.home.residency.awake(self.home.slots[model], wait_s) as served:
                release = asyncio.Event()
                self.holding[asyncio.current_task()] = (served, release)  # type: ignore[assignment]
                try:
                    await release.wait()
                finally:
                    del self.holding[asyncio.current_task()]

        self.requests.append(self.home.loop.create_task(request()))
        self.home.settle()

    @precondition(lambda self: self.loading())
    @rule(fails=st.booleans())
    def finish_a_load(self, fails: bool) -> None:
        self.home.until(lambda: sum(self.home.alive.values()) > self.loaded())
        (name,) = [slot.id for slot in self.loading() if self.home.alive[slot.id]]
        if fails:
            self.home.failures[name] = OSError("no")
        self.home.gate.release()
        self.home.until(lambda: name not in [slot.id for slot in self.loading()])
        self.home.settle()

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def finish_a_request(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(list(self.holding.values())))[1].set()
        self.home.settle()

    @precondition(lambda self: any(not request.done() for request in self.requests))
    @rule(data=st.data())
    def cancel_a_request(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([request for request in self.requests if not request.done()])).cancel()
        self.home.settle()

    @rule(seconds=st.sampled_from([1.0, 11.0, 100.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.home.advance(seconds)
        if seconds > self.IDLE_S:
            self.home.settle()
            for slot in self.home.slots[1:]:
                assert slot.users or slot.status != "ready", "an idle model stays awake"

    def loading(self) -> list[ModelSlot]:
        return [slot for slot in self.home.slots if slot.status == "warming"]

    def loaded(self) -> int:
        return sum(slot.status == "ready" for slot in self.home.slots)

    @invariant()
    def each_model_is_in_memory_at_most_once_and_all_are_within_the_budget(self) -> None:
        assert all(count in (0, 1) for count in self.home.alive.values())
        assert self.home.most_mb <= self.BUDGET

    @invariant()
    def nothing_is_closed_while_it_is_used_and_the_pinned_one_never(self) -> None:
        assert not any(served.closed for served, _ in self.holding.values())
        assert self.home.slots[0].status == "ready"

    @invariant()
    def every_failure_is_one_that_callers_know(self) -> None:
        for request in self.requests:
            if request.done() and not request.cancelled() and request.exception():
                assert isinstance(request.exception(), BackendUnavailable)
        self.requests = [request for request in self.requests if not request.done()]

    def teardown(self) -> None:
        for request in self.requests:
            request.cancel()
        self.home.settle()
        self.home.close()


ResidencyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestResidencyMachine = ResidencyMachine.TestCase
