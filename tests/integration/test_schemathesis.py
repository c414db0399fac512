"""Schemathesis against the real server: whatever it sends, no 5xx, no status and no answer that is not documented."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from tests.server_process import running_server

# Left out: `negative_data_rejection` and `positive_data_acceptance` call it a failure that numbers and booleans are
# read from strings, that unknown models are a 404, and that lists of different lengths are refused.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EXAMPLES = 15


def test_no_generated_request_breaks_the_server_or_its_document() -> None:
    with running_server("--threads", "1", "--max-documents", "50") as server:
        command = [
            str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
            "run",
            f"{server.base_url}/openapi.json",
            f"--checks={','.join(CHECKS)}",
            f"--max-examples={EXAMPLES}",
            "--phases=examples,coverage,fuzzing",
            "--seed=7",
            "--generation-database=none",
            # More would be threads, which CPython 3.11's parser, used by Hypothesis, does not always survive.
            "--workers=1",
            "--request-timeout=30",
            "--no-color",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    # It would also end well with nothing to test.
    assert "Operations: " in done.stdout
    assert " 0 selected" not in done.stdout
