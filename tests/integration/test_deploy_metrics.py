"""Every metric of the Grafana dashboards that does not need a GPU is one that the real servers give."""

from __future__ import annotations

import json
import re
from urllib.request import Request, urlopen

import httpx
import pytest

from tests.deploy_files import DASHBOARDS, GPU_METRICS, metrics_in
from tests.server_process import running_server
from tests.triton_process import running_triton


@pytest.mark.triton
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
    shown = metrics_in(DASHBOARDS["triton"]) - GPU_METRICS
    assert len(shown) >= 8
    assert shown <= set(given)
    assert all('model="' in given[name] for name in shown)
    assert 'reason="' in given["nv_inference_request_failure"]


def test_the_dashboard_shows_what_gateways_count():
    with running_server() as server:
        for body in ({"query": "berlin", "documents": ["Berlin has museums.", "cats " * 600]}, {}):
            httpx.post(f"{server.base_url}/v1/rerank", json=body)
        text = httpx.get(f"{server.base_url}/metrics").text
    given: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{([^}]*)\})? ", text, re.MULTILINE):
        given.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    shown = metrics_in(DASHBOARDS["gateway"])
    assert len(shown) >= 15
    assert shown <= set(given)
    # What panels sum by are labels that are there.
    of_prometheus = {"instance", "job"}
    for panel in DASHBOARDS["gateway"]["panels"]:
        for target in panel["targets"]:
            names = metrics_in({"panels": [{"targets": [target]}]})
            labels = set.intersection(*(given[name] for name in names)) | of_prometheus
            used = {label.strip() for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(",")}
            used |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert used <= labels, target
    unseen = {name for name in given if name.startswith("crossrank_") and name.endswith("_total")} - shown
    assert unseen <= {"crossrank_truncated_queries_total"}, "what is counted is shown"
