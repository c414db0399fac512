"""The load generator counts what it was answered, over real HTTP, and says clearly what went wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from crossrank.errors import SetupError
from crossrank_perf.base.latency import latency_ms
from crossrank_perf.load.generator import run_load
from crossrank_perf.load.measure import summarize
from crossrank_perf.load.plan import LoadPlan, LoadResult, Tick
from crossrank_perf.load.senders import check_url
from tests.scripted_server import Reply, Request, ScriptedServer, answer

BODIES = [b'{"query": "a"}', b'{"query": "b"}', b'{"query": "c"}']


class Watch:
    """Notes what the generator tells its caller."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.windows: list[str] = []

    def run(self, url: str, plan: LoadPlan) -> LoadResult:
        return run_load(
            url,
            BODIES,
            plan,
            on_tick=self.ticks.append,
            on_start=lambda: self.windows.append("start"),
            on_end=lambda: self.windows.append("end"),
        )


class Counting(ScriptedServer):
    """Knows how many requests were under way at most."""

    under_way = most = 0

    def respond(self, request: Request) -> Reply:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            return super().respond(request)
        finally:
            with self._lock:
                self.under_way -= 1


class OneAtATime(ScriptedServer):
    """Holds everyone up while it answers one, as a stalled event loop does."""

    turn = threading.Lock()

    def respond(self, request: Request) -> Reply:
        with self.turn:
            return super().respond(request)


def run(server: ScriptedServer, plan: LoadPlan) -> LoadResult:
    return Watch().run(server.base_url, plan)


def test_a_number_of_requests_is_measured_exactly_after_the_warm_up() -> None:
    with ScriptedServer([answer(2)]) as server:
        watch = Watch()
        result = watch.run(server.base_url, LoadPlan(2, concurrency=3, warm_up_s=0.1, requests=50))
        assert len(result.latencies_s) == 50
        assert not result.errors
        assert len(server.requests) > 50  # the first one and the warm-up are not measured
        assert watch.windows == ["start", "end"]


def test_what_happens_in_the_warm_up_is_not_counted() -> None:
    with ScriptedServer([answer(1), *[Reply(503)] * 5, answer(1)]) as server:
        result = run(server, LoadPlan(1, concurrency=2, warm_up_s=1.0, requests=5))
    assert not result.errors
    assert len(result.latencies_s) == 5


def test_the_bodies_go_round_over_kept_connections() -> None:
    with ScriptedServer([answer(1)]) as server:
        run(server, LoadPlan(1, concurrency=2, warm_up_s=0, requests=30))
        assert {request.path for request in server.requests} == {"/v1/rerank"}
        assert {request.body for request in server.requests} == set(BODIES)
        assert len({request.client_port for request in server.requests}) <= 3


def test_the_concurrency_is_held_and_not_exceeded() -> None:
    with Counting([Reply(200, answer(1).body, delay_s=0.02)]) as server:
        run(server, LoadPlan(1, concurrency=5, warm_up_s=0, requests=100))
        assert server.most == 5


def test_errors_are_counted_by_status_and_keep_their_message() -> None:
    good, bad = answer(1), Reply(503, b'{"error": {"message": "no engine"}}')
    with ScriptedServer([good, good, bad, good, bad, good]) as server:
        result = run(server, LoadPlan(1, concurrency=1, warm_up_s=0, requests=10))
    assert result.errors == {"503": 2}
    assert len(result.latencies_s) == 8
    assert "no engine" in result.examples["503"]


def test_an_answer_that_lacks_results_is_an_error() -> None:
    with ScriptedServer([answer(2), answer(1), answer(2)]) as server:
        result = run(server, LoadPlan(2, concurrency=1, warm_up_s=0, requests=4))
    assert result.errors == {"incomplete answer": 1}
    assert result.examples["incomplete answer"] == "1 results for 2 documents"


def test_a_request_without_an_answer_in_time_is_an_error() -> None:
    with ScriptedServer([answer(1), Reply(200, answer(1).body, delay_s=30), answer(1)]) as server:
        result = run(server, LoadPlan(1, concurrency=1, warm_up_s=0, requests=3, timeout_s=0.2))
    assert result.errors == {"timeout": 1}


def test_the_open_loop_blames_a_stall_on_every_request_that_was_due_in_it() -> None:
    stall_s, rate = 0.6, 100.0
    stall = Reply(200, answer(1).body, delay_s=stall_s)
    with OneAtATime([*[answer(1)] * 20, stall, answer(1)]) as server:
        result = run(server, LoadPlan(1, rate=rate, warm_up_s=0, requests=150))
    assert not result.errors
    # A closed loop would have seen a single slow request.
    delayed = [latency for latency in result.latencies_s if latency > stall_s / 3]
    assert len(delayed) >= rate * stall_s * 2 / 3 * 0.5
    assert max(result.latencies_s) >= stall_s
    assert len(result.lags_s) == len(result.latencies_s)


def test_the_open_loop_sends_at_its_rate_and_the_seed_decides_when() -> None:
    with ScriptedServer([answer(1)]) as server:
        plan = LoadPlan(1, rate=200.0, warm_up_s=0, duration_s=0.5)
        counts = [len(run(server, plan).latencies_s) for _ in range(2)]
        other = len(run(server, LoadPlan(1, rate=200.0, warm_up_s=0, duration_s=0.5, seed=5)).latencies_s)
    assert counts[0] == counts[1]
    assert counts[0] == pytest.approx(100, abs=40)  # Poisson: standard deviation 10
    assert other != counts[0]


def test_progress_is_told_while_it_runs() -> None:
    with ScriptedServer([answer(1)]) as server:
        watch = Watch()
        watch.run(server.base_url, LoadPlan(1, concurrency=1, warm_up_s=0.7, duration_s=1.2))
    assert {tick.measuring for tick in watch.ticks} == {False, True}
    assert max(tick.answered for tick in watch.ticks) > 0


def test_an_unreachable_server_is_one_clear_message(free_port: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SetupError, match=r"no usable answer from http://127.*check --url"):
        Watch().run(url, LoadPlan(1))


def test_a_refusal_of_the_first_request_is_one_clear_message() -> None:
    with (
        ScriptedServer([Reply(404, b'{"error": {"message": "no such route"}}')]) as server,
        pytest.raises(SetupError, match=r"answered 404 to the first request: .*no such route"),
    ):
        run(server, LoadPlan(1))


def test_something_that_is_not_http_is_one_clear_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SetupError, match=r"timeout: no answer within 0.2 s"):
            Watch().run(f"http://127.0.0.1:{port}", LoadPlan(1, timeout_s=0.2))


def test_a_server_that_goes_away_ends_the_run() -> None:
    with (
        ScriptedServer([answer(1), answer(1), Reply(200, b"", hang_up=True)]) as server,
        pytest.raises(SetupError, match=r"stopped answering: \d+ requests in a row failed"),
    ):
        run(server, LoadPlan(1, concurrency=8, warm_up_s=0, duration_s=60))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "localhost"])
def test_a_url_without_scheme_or_host_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match=r"http://127.0.0.1:8000"):
        check_url(url)


def test_a_url_loses_only_its_last_slash() -> None:
    assert check_url("https://host/prefix/") == "https://host/prefix"


def test_throughput_and_percentiles_follow_from_the_latencies() -> None:
    result = LoadResult(window_s=4.0, latencies_s=[i / 1000 for i in range(1, 101)])
    result.errors["429"] = 3
    facts = summarize(result, documents=50)
    assert facts["requests_per_s"] == 25.0
    assert facts["documents_per_s"] == 1250.0
    assert facts["errors"] == {"429": 3}
    assert facts["latency_ms"] == pytest.approx(
        {"mean": 50.5, "p50": 50.5, "p90": 90.1, "p99": 99.01, "p99_9": 99.901, "max": 100.0}
    )


def test_a_run_without_answers_has_no_percentiles() -> None:
    assert latency_ms([]) == {}
    assert summarize(LoadResult(), 10)["documents_per_s"] == 0.0
