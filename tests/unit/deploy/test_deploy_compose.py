"""compose.yaml and the monitoring beside it: valid, and consistent with the images, the commands and one another."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from crossrank.engines.triton.address import targets_from_url
from crossrank_export.triton.config import ACCELERATOR_CACHE
from crossrank_server.http.server import LAST_RESORT_S
from crossrank_server.settings import ServeSettings
from crossrank_server.telemetry.tracing import tracing_from_environment
from tests.deploy_files import (
    DASHBOARDS,
    DEPLOY,
    DOCKERFILE,
    GPU_METRICS,
    load_yaml,
    metrics_in,
    option_default,
    read_command,
    read_stages,
)

COMPOSE = load_yaml(DEPLOY / "compose.yaml")
SERVICES = COMPOSE["services"]
GATEWAYS = ("gateway-a", "gateway-b")
MONITORING = DEPLOY / "monitoring"


def plain(value: str) -> str:
    """Put in the defaults of `${NAME:-default}`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def gateway_settings(name: str) -> ServeSettings:
    """Return what a gateway takes from the environment, of the image and of compose."""
    given = {**read_stages()["gateway"].environment(), **SERVICES[name]["environment"]}
    settings = {k.removeprefix("CROSSRANK_").lower(): plain(v) for k, v in given.items() if k.startswith("CROSSRANK_")}
    assert set(settings) <= set(ServeSettings.model_fields)
    return ServeSettings(**settings)


def test_compose_follows_the_published_schema():
    pytest.importorskip("check_jsonschema", reason="the schema is that of pip install check-jsonschema")
    import jsonschema

    text = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_from_stages_that_exist(name):
    build = SERVICES[name].get("build")
    if build is None:
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+", SERVICES[name]["image"]), "of others: one version, not latest"
        return
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
    stage = read_stages()[build["target"]]
    for argument, value in build.get("args", {}).items():
        assert f"ARG {argument}={plain(value)}\n" in DOCKERFILE.read_text(encoding="utf-8")
    published = {int(port.rpartition(":")[2]) for port in SERVICES[name]["ports"]}
    assert published <= stage.ports()


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_open_to_this_machine_alone(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_no_port_of_this_machine_is_taken_twice():
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_send_to_the_triton_beside_them(name):
    context = read_command([plain(word) for word in SERVICES[name]["command"]])
    assert context.command.name == "serve"
    assert context.params["engine"] == "triton"
    assert context.params["models"] == ("builtin",)
    (target,) = targets_from_url(context.params["triton_url"])
    assert target.host in SERVICES
    assert target.port == option_default("triton", "grpc_port")
    assert SERVICES[name]["depends_on"][target.host] == {"condition": "service_healthy"}
    assert read_stages()["triton"].values("HEALTHCHECK")


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_are_told_who_is_served(name):
    settings = gateway_settings(name)
    assert settings.store == "", "keys are off until a store is named"
    assert settings.allow_anonymous, "or serve refuses the image's 0.0.0.0"
    assert SERVICES[name]["environment"]["CROSSRANK_STORE"] == "${CROSSRANK_STORE:-}"


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_send_spans_where_compose_is_told_to_and_else_nowhere(name, monkeypatch):
    variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
    given = SERVICES[name]["environment"][variable]
    assert given == f"${{{variable}:-}}"
    monkeypatch.setenv(variable, plain(given))
    assert tracing_from_environment() is None


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_wait_for_the_store_only_where_it_is_started(name):
    assert SERVICES["postgres"]["profiles"] == ["keys"]
    assert SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy", "required": False}
    assert SERVICES["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert "ports" not in SERVICES["postgres"], "only gateways reach it"


@pytest.mark.parametrize("name", GATEWAYS)
def test_published_ports_are_those_of_http_and_grpc(name):
    inside = [int(port.rpartition(":")[2]) for port in SERVICES[name]["ports"]]
    assert inside == [gateway_settings(name).port, gateway_settings(name).grpc_port]


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_are_not_killed_while_they_finish_requests(name):
    settings = gateway_settings(name)
    stop_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert stop_s > settings.shutdown_delay_s + settings.shutdown_grace_s + LAST_RESORT_S


def test_triton_serves_what_is_mounted():
    mounts = dict(
        volume.rsplit(":", 2)[0:2] if volume.endswith(":ro") else volume.rsplit(":", 1)
        for volume in SERVICES["triton"]["volumes"]
    )
    assert mounts["triton-engines"] == ACCELERATOR_CACHE
    repository = next(place for source, place in mounts.items() if source.startswith("${REPOSITORY:?"))
    assert f"--model-repository={repository}" in json.loads(read_stages()["triton"].values("CMD")[0])


@pytest.mark.parametrize("name", SERVICES)
def test_volumes_are_declared_and_files_are_there(name):
    for volume in SERVICES[name].get("volumes", []):
        source = volume.partition(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).is_file()
        elif not source.startswith("${"):
            assert source in COMPOSE["volumes"]


def test_prometheus_scrapes_triton_and_every_gateway():
    jobs = {job["job_name"]: job for job in load_yaml(MONITORING / "prometheus.yaml")["scrape_configs"]}
    targets = {name: job["static_configs"][0]["targets"] for name, job in jobs.items()}
    port = read_stages()["gateway"].environment()["CROSSRANK_PORT"]
    assert targets == {
        "triton": [f"triton:{option_default('triton', 'metrics_port')}"],
        "gateway": [f"{name}:{port}" for name in GATEWAYS],
    }
    assert {"triton", *GATEWAYS} <= set(SERVICES)
    # Where keys are on, gateways give metrics to a key of the scope metrics.
    (config,) = SERVICES["prometheus"]["configs"]
    assert jobs["gateway"]["authorization"] == {"credentials_file": config["target"]}
    assert COMPOSE["configs"][config["source"]] == {"content": "${METRICS_KEY:-none}"}
    assert "authorization" not in jobs["triton"]
    selected = set(re.findall(r'job="(\w+)"', json.dumps(DASHBOARDS).replace('\\"', '"')))
    assert selected == {"gateway"}, "panels that pick a job by its name pick one that is there"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_finds_its_data_and_its_dashboards(name):
    (source,) = load_yaml(MONITORING / "grafana" / "datasource.yaml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = load_yaml(MONITORING / "grafana" / "dashboards.yaml")["providers"]
    assert any(
        volume.endswith(f"/{name}.json:{provider['options']['path']}/{name}.json:ro")
        for volume in SERVICES["grafana"]["volumes"]
    )
    assert {panel["datasource"]["uid"] for panel in DASHBOARDS[name]["panels"]} == {source["uid"]}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_side_by_side(name):
    panels = DASHBOARDS[name]["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_metrics_of_gpus_are_documented_ones():
    assert {name for name in metrics_in(DASHBOARDS["triton"]) if name.startswith("nv_gpu_")} == GPU_METRICS
