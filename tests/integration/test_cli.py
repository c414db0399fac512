"""The command line as a person uses it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from crossrank.bundles.catalog import BUILTIN
from tests.server_process import running_server

PASSAGES = [
    "Berlin is well known for its museums.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
]
QUERY = "How many people live in Berlin?"


def crossrank(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crossrank_server", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_help_teaches_with_examples_and_version_is_that_of_the_distribution() -> None:
    helped = crossrank("--help")
    assert helped.returncode == 0
    for command in ("serve", "rerank", "models", "export"):
        assert f"  {command} " in helped.stdout
    assert "crossrank rerank --query" in helped.stdout
    assert crossrank("--version").stdout.strip().startswith("crossrank, version ")


@pytest.mark.parametrize("group", [[], ["keys"], ["bench"]], ids=["crossrank", "keys", "bench"])
def test_help_cuts_no_description_in_mid_sentence(group: list[str]) -> None:
    _, _, commands = crossrank(*group, "--help").stdout.partition("\nCommands:\n")
    assert commands
    assert "..." not in commands
    last_lines = re.findall(r"(.*)\n(?=  \S|$)", commands)
    assert all(line.endswith(".") for line in last_lines), commands


def test_serve_help_states_flag_variable_and_default_of_every_setting() -> None:
    text = " ".join(crossrank("serve", "--help").stdout.split())
    assert "CROSSRANK_MAX_BODY_BYTES; default 10000000" in text
    assert "CROSSRANK_PRECISION; default auto" in text


def test_rerank_ranks_the_lines_of_files(tmp_path: Path) -> None:
    path = tmp_path / "passages.txt"
    path.write_text("\n".join(PASSAGES) + "\n\n")
    result = crossrank("rerank", "--query", QUERY, str(path), "--top-n", "2")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert f"{path}:3" in lines[0]
    assert "population" in lines[0]


def test_rerank_reads_stdin_and_prints_json(tmp_path: Path) -> None:
    jsonl = tmp_path / "more.jsonl"
    jsonl.write_text('{"text": "Paris is the capital of France.", "id": 7}\n"a bare string"\n')
    result = crossrank("rerank", "-q", QUERY, "-", str(jsonl), "--json", "--raw-scores", stdin="\n".join(PASSAGES))
    answer = json.loads(result.stdout)
    assert answer["model"] == "crossrank-mini"
    assert len(answer["results"]) == 5
    best = answer["results"][0]
    assert (best["index"], best["source"], best["line"]) == (2, "-", 3)
    # The figure of the model's card; bf16 where the CPU has it.
    assert best["relevance_score"] == pytest.approx(-1.0118, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["rerank", "-q", " "], "a", "--query is empty"),
        (["rerank", "-q", "q"], "\n \n", "no documents"),
        (["rerank", "-q", "q", "--jsonl"], '"a"\n{"t": 1}', "-:2 is neither a string nor an object with a text"),
        (["rerank", "-q", "q", "--jsonl"], "nope", "-:1 is not JSON"),
        (["rerank", "-q", "q", "--jsonl"], '"a"\n"\\ud800"', "-:2 holds the lone surrogate \\ud800"),
        (["rerank", "-q", "a\udcff"], "a", "--query holds the lone surrogate \\udcff at character 1"),
        (["rerank", "-q", "q", "--model", "./no/such/dir"], "a", "no/such/dir"),
        (["serve", "--model", "./no/such/dir"], "", "no/such/dir"),
        (["serve", "--max-documents", "0"], "", "--max-documents (CROSSRANK_MAX_DOCUMENTS) is 0"),
        (
            ["serve", "--engine", "onnxruntime", "--precision", "bf16", "--port", "0"],
            "",
            "not bf16: use --precision auto, or --engine native or openvino",
        ),
        (
            ["serve", "--model", "builtin", "--model", "builtin", "--port", "0"],
            "",
            "two models are called crossrank-mini",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(arguments: list[str], stdin: str, message: str) -> None:
    result = crossrank(*arguments, stdin=stdin)
    assert result.returncode == 1
    assert result.stdout == ""
    (last,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in last
    assert "Traceback" not in result.stderr


def test_a_byte_order_mark_is_no_part_of_the_first_document(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf"first"\r\n{"text": "second"}')
    result = crossrank("rerank", "-q", "q", "--json", str(file))
    assert {row["document"]["text"] for row in json.loads(result.stdout)["results"]} == {"first", "second"}


def test_a_sigterm_before_uvicorn_listens_to_signals_is_not_lost() -> None:
    program = """if True:
        import os, signal, sys, uvicorn
        run = uvicorn.Server.run
        uvicorn.Server.run = lambda self, **options: (os.kill(os.getpid(), signal.SIGTERM), run(self, **options))
        sys.argv = ["crossrank", "serve", "--port", "0"]
        from crossrank_server.cli import main
        main()
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


def test_a_taken_port_is_said_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = crossrank("serve", "--port", str(port))
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("model", ["builtin", "mine=builtin"])
def test_serving_the_builtin_states_its_terms_in_one_line_of_the_log(model: str) -> None:
    with running_server("--model", model) as server:
        (line,) = [line for line in server.log.read_text().splitlines() if "non-commercial" in line]
    assert f"crossrank-mini is licensed for non-commercial use: {BUILTIN.terms}" in line


def test_a_bundle_directory_is_served_and_sigterm_ends_it_cleanly() -> None:
    bundle = Path(__file__).parents[2] / "server" / "crossrank" / "bundles" / "builtin"
    with running_server("--model", str(bundle)) as server:
        assert httpx.get(f"{server.base_url}/v1/models").json()["data"][0]["id"] == "crossrank-mini"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
