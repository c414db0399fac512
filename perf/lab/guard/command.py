"""`make bench-guard`: the speed of this tree beside an earlier commit."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import check_installed, workload_facts
from lab.guard.compare import LEAST_ROUNDS

if TYPE_CHECKING:
    from crossrank_perf.base.report import Progress
    from lab.guard.compare import Load
    from lab.peers.rounds import Rounds

_SERVE = ["--model", "builtin", "--log-level", "warning"]
_PEER = "sentence-transformers-torch"
_CONCURRENCY = 4


@click.command()
@click.option(
    "--baseline", default="HEAD~1", show_default=True, metavar="REVISION", help="Commit to compare this tree with."
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    help="Ratio of documents/s below which there is a warning.  [default: 0.95 of a commit's, 3 times a peer's]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=LEAST_ROUNDS),
    default=11,
    show_default=True,
    help="Number of rounds; both run in each.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.2), default=0.6, show_default=True, help="Seconds for each in each round."
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The built-in model's weights for sentence-transformers.  [default: models/crossrank-mini under ../shared]",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure, with hardware and versions, to this file.",
)
def guard(baseline: str, json_path: Path | None, **options: Any) -> None:
    """Compare this tree's speed with an earlier commit's, in turn in one run, and print it as Markdown.

    The commit is unpacked and built aside, with the same dependencies; both serve the built-in model over HTTP. Where
    there is no such commit, this tree is compared with sentence-transformers in process, if `make peers` prepared it.
    A ratio below the limit is a warning, not a failure: the exit code stays 0.

    \b
    Examples:
      make bench-guard
      make bench-guard BASELINE=$(git merge-base HEAD origin/main) BENCH_ARGS="--json guard.json"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from crossrank_perf.base.workload import load_workload, single_documents
    from lab.guard.compare import Load
    from lab.guard.report import markdown_from_guard
    from lab.peers.rounds import Rounds

    check_installed()
    if json_path:
        check_writable(json_path)
    workload = load_workload(None, 100)
    loads = [Load(workload, _CONCURRENCY), Load(single_documents(workload), 1)]
    rounds = Rounds(options["rounds"], options["seconds"])
    report: dict[str, Any] = {
        "kind": "guard",
        **describe_run("python -m lab"),
        "workload": workload_facts(workload),
        "rounds": rounds.count,
        "not_compared": [],
        "baseline": None,
    }
    with Progress("guard") as progress:
        for against in (_beside_commit, _beside_peer):
            try:
                report |= against(loads, rounds, progress, baseline, options)
                break
            except _NoBaseline as reason:
                report["not_compared"].append(str(reason))
    click.echo(markdown_from_guard(report))
    if json_path:
        write_json(json_path, report)


class _NoBaseline(Exception):
    """There is nothing to compare with; the message says why."""


def _beside_commit(
    loads: list[Load], rounds: Rounds, progress: Progress, revision: str, options: dict[str, Any]
) -> dict[str, Any]:
    from crossrank_perf.base.server import served_models
    from lab.guard.baseline import ROOT, Tree, serving_tree, unpack_commit
    from lab.guard.compare import COMMIT_LIMIT, compare_loads, server_contestant

    limit = options["limit"] or COMMIT_LIMIT
    with ExitStack() as stack:
        progress.say(f"building {revision} aside")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossrank-guard-")))
        try:
            tree = unpack_commit(revision, directory)
            theirs = stack.enter_context(serving_tree(tree, _SERVE))
        except SetupError as error:
            raise _NoBaseline(f"{revision}: {error}") from None
        ours = stack.enter_context(serving_tree(Tree("this tree", ROOT), _SERVE))
        engines = [
            " ".join((each["engine"], each["precision"]))
            for url in (ours.url, theirs.url)
            for each in served_models(url)
        ]
        comparisons = compare_loads(
            loads,
            lambda load: (server_contestant("this tree", ours, load), server_contestant(tree.name, theirs, load)),
            rounds,
            limit,
            progress,
        )
    return {
        "engine": engines[0],
        "baseline": {"name": tree.name, "engine": engines[1]},
        "limit": limit,
        "comparisons": comparisons,
    }


def _beside_peer(
    loads: list[Load], rounds: Rounds, progress: Progress, revision: str, options: dict[str, Any]
) -> dict[str, Any]:
    from crossrank.engines.cpu import available_cores
    from crossrank_perf.base.workload import shared_folder
    from lab.guard.baseline import ROOT
    from lab.guard.compare import PEER_LIMIT, compare_loads
    from lab.peers.entrants import Lineup, own_contestants, peer_contestant
    from lab.peers.systems import PEERS

    limit = options["limit"] or PEER_LIMIT
    checkpoint = options["checkpoint"] or shared_folder() / "models" / "crossrank-mini"
    peer = PEERS[_PEER]
    if not peer.python(ROOT).is_file():
        raise _NoBaseline(f"{_PEER}: not installed here (make peers)")
    if not checkpoint.is_dir():
        raise _NoBaseline(f"{_PEER}: the weights are not at {checkpoint}; name them with --checkpoint")

    def lineup(load: Load) -> Lineup:
        return Lineup(
            checkpoint, Path(), ROOT, "builtin", {}, _SERVE, available_cores(), 512, [32, 100], load.concurrency
        )

    comparisons = compare_loads(
        loads,
        lambda load: (
            own_contestants(lineup(load), load.workload)[1],
            peer_contestant(peer, lineup(load), load.workload),
        ),
        rounds,
        limit,
        progress,
    )
    return {"engine": None, "baseline": {"name": _PEER, "engine": None}, "limit": limit, "comparisons": comparisons}
