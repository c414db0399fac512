"""Every metric of the Grafana dashboard that does not need a GPU is one that the real tritonserver gives."""

from __future__ import annotations

import json
import re
from urllib.request import Request, urlopen

import pytest

from tests.deploy_files import DASHBOARD, GPU_METRICS, metrics_in
from tests.triton_process import running_triton

pytestmark = pytest.mark.triton


def test_the_dashboard_shows_what_triton_counts():
    with running_triton("--instances", "1") as server:
        body = {
            "inputs": [
                {"name": "QUERY", "datatype": "BYTES", "shape": [1], "data": ["berlin"]},
                {
                    "name": "DOCUMENTS",
                    "datatype": "BYTES",
                    "shape": [2],
                    "data": ["Berlin has museums.", "Cats sleep."],
                },
            ]
        }
        url = f"{server.http_url}/v2/models/crossrank-mini_rerank/infer"
        with urlopen(Request(url, json.dumps(body).encode()), timeout=30) as answer:
            assert answer.status == 200
        with urlopen(server.metrics_url, timeout=30) as answer:
            text = answer.read().decode()
    given = dict(re.findall(r"^(nv_\w+)\{([^}]*)\}", text, re.MULTILINE))
    shown = metrics_in(DASHBOARD) - GPU_METRICS
    assert len(shown) >= 8
    assert shown <= set(given)
    assert all('model="' in given[name] for name in shown)
    assert 'reason="' in given["nv_inference_request_failure"]
