"""The Helm chart, rendered by Helm's own library, and the KServe example: valid for Kubernetes and true to the code."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from crossrank_export.triton.config import ACCELERATOR_CACHE
from crossrank_server.engines.triton_address import targets_from_url
from crossrank_server.http.server import LAST_RESORT_S
from crossrank_server.settings import ServeSettings
from tests.deploy_files import DEPLOY, ROOT, load_yaml, option_default, read_command, read_stages, routes

if importlib.util.find_spec("helm_python") is None:
    pytest.skip("Helm's library is that of pip install helm-python-sdk", allow_module_level=True)
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="schemas: pip install kubernetes-validate")

# In a process of its own: Go's runtime crashed now and then in one with PyTorch and OpenVINO.
HELM = """
import json, pathlib, sys
import helm_python as helm

asked = json.load(sys.stdin)
path = pathlib.Path(asked["chart"])
if "values" not in asked:
    answer = dict(helm.lint(path, strict=True))
else:
    try:
        with helm.Chart.load(path) as chart:
            chart.validate_schema(asked["values"])
            answer = dict(chart.render(asked["values"], name=asked["name"], namespace="search"))
    except helm.HelmValuesError as error:
        answer = {"refused": str(error)}
json.dump(answer, sys.stdout, default=str)
"""
CHART = DEPLOY / "helm" / "crossrank"
VALUES = load_yaml(CHART / "values.yaml")
SCHEMA = load_yaml(CHART / "values.schema.json")
KUBERNETES = "1.37"
# Set by the chart itself, or decided by the model in Triton.
FIXED = {"host", "port", "engine", "triton_url", "cache_dir", "threads", "precision"}
# The chart opens no port for gRPC, and leaves TLS to what stands before its gateways.
FIXED |= {"grpc_port", "tls_cert", "tls_key", "tls_client_ca"}
EVERYTHING = {
    "gateway": {
        "model": "/bundle",
        "bundleVolume": {"persistentVolumeClaim": {"claimName": "bundle", "readOnly": True}},
        "settings": {
            "max_body_bytes": 10_000_000,
            "request_timeout_s": 2.5,
            "offline": True,
            "log_level": "debug",
            "shutdown_grace_s": 60,
            "shutdown_delay_s": 2.5,
        },
    },
    "triton": {"nodeSelector": {"gpu": "v100"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}


class ValuesRefusedError(Exception):
    """Helm found values that the chart's schema does not permit."""


def ask_helm(**asked: Any) -> dict[str, Any]:
    question = json.dumps({"chart": str(CHART), **asked})
    done = subprocess.run([sys.executable, "-c", HELM], input=question, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    if "refused" in answer:
        raise ValuesRefusedError(answer["refused"])
    return answer


def render(values: dict[str, Any], name: str = "r") -> dict[tuple[str, str], Any]:
    """Return the manifests by kind and component; Helm checks the values against their schema first."""
    texts = ask_helm(values=values, name=name)
    manifests = [m for path, text in texts.items() if path.endswith(".yaml") for m in yaml.safe_load_all(text) if m]
    return {(m["kind"], m["metadata"]["labels"]["app.kubernetes.io/component"]): m for m in manifests}


@pytest.fixture(scope="module", params=[{}, EVERYTHING], ids=["defaults", "everything"])
def manifests(request):
    return render(request.param)


def pod(manifest) -> Any:
    return manifest["spec"]["template"]["spec"]


def container(manifest) -> Any:
    return pod(manifest)["containers"][0]


def test_helm_lint_finds_neither_errors_nor_warnings():
    report = ask_helm()
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


def test_manifests_follow_the_schemas_of_kubernetes(manifests):
    kinds = {kind for kind, _ in manifests}
    assert kinds >= {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for (kind, _), manifest in manifests.items():
        if kind != "ServiceMonitor":  # not Kubernetes' own: looked at below
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_misspelled_field_would_not_pass(manifests):
    broken = copy.deepcopy(manifests["Deployment", "gateway"])
    container(broken)["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_selectors_find_the_pods_of_their_component(manifests, component):
    deployment = manifests["Deployment", component]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        manifests["Service", component]["spec"]["selector"],
        manifests["PodDisruptionBudget", component]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels
        assert selector["app.kubernetes.io/component"] == component
    ports = {port["name"] for port in container(deployment)["ports"]}
    assert {port["targetPort"] for port in manifests["Service", component]["spec"]["ports"]} <= ports


def test_the_autoscaler_moves_the_gateways_which_then_fix_no_number(manifests):
    deployment = manifests["Deployment", "gateway"]
    target = manifests["HorizontalPodAutoscaler", "gateway"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert "cpu" in container(deployment)["resources"]["requests"], "utilization is a share of it"


@pytest.mark.parametrize("name", ["r", "crossrank", "a-release-with-a-name-as-long-as-helm-permits-53-chars"[:53]])
def test_gateways_balance_over_the_pods_of_a_headless_service(name):
    manifests = render({}, name)
    context = read_command(container(manifests["Deployment", "gateway"])["args"])
    assert context.command.name == "serve"
    assert context.params["engine"] == "triton"
    (target,) = targets_from_url(context.params["triton_url"])
    service = manifests["Service", "triton"]
    assert target.host == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    # A headless name leads to the pods themselves, whose own port it must be.
    ports = {port["name"]: port["containerPort"] for port in container(manifests["Deployment", "triton"])["ports"]}
    assert target.port == ports["grpc"] == option_default("triton", "grpc_port")
    assert ports["metrics"] == option_default("triton", "metrics_port")
    assert set(ports.values()) == read_stages()["triton"].ports()
    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in manifests.values())


def test_variables_are_settings_with_the_values_given():
    env = container(render(EVERYTHING)["Deployment", "gateway"])["env"]
    given = {entry["name"].removeprefix("CROSSRANK_").lower(): entry["value"] for entry in env}
    settings = ServeSettings(**given)
    expected = {**VALUES["gateway"]["settings"], **EVERYTHING["gateway"]["settings"]}
    assert {name: getattr(settings, name) for name in given} == expected


def test_the_chart_takes_every_setting_of_the_server_that_makes_sense_in_it():
    properties = ServeSettings.model_json_schema()["properties"]
    known = SCHEMA["properties"]["gateway"]["properties"]["settings"]["properties"]
    expected = {
        name: {key: value[key] for key in ("type", "enum") if key in value}
        for name, value in properties.items()
        if name not in FIXED
    }
    assert known == expected, "keep values.schema.json in step with ServeSettings, or add to FIXED what the chart sets"


@pytest.mark.parametrize(
    "values",
    [
        {"gateway": {"settings": {"max_docs": 5}}},
        {"gateway": {"settings": {"max_documents": "many"}}},
        {"gateway": {"settings": {"host": "127.0.0.1"}}},
        {"gateway": {"autoscaling": {"minReplicas": 0}}},
        {"triton": {"gpu": 2}},
        {"triton": {"repositoryVolume": None}},
        {"replicas": 3},
    ],
    ids=str,
)
def test_values_that_would_do_nothing_or_harm_are_refused(values):
    with pytest.raises(ValuesRefusedError):
        render(values)


def test_probes_ask_what_is_answered(manifests):
    gateway, triton = (container(manifests["Deployment", component]) for component in ("gateway", "triton"))
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert {gateway[probe]["httpGet"]["path"] for probe in probes} <= routes()
    assert [gateway[probe]["httpGet"]["path"] for probe in probes[1:]] == ["/health/live", "/health/ready"]
    assert [triton[probe]["httpGet"]["path"] for probe in probes[1:]] == ["/v2/health/live", "/v2/health/ready"]
    assert {part[probe]["httpGet"]["port"] for part in (gateway, triton) for probe in probes} == {"http"}
    assert gateway["ports"] == [{"name": "http", "containerPort": ServeSettings.model_fields["port"].default}]


def test_gateways_get_the_time_that_their_settings_ask_for(manifests):
    deployment = manifests["Deployment", "gateway"]
    settings = {entry["name"]: entry["value"] for entry in container(deployment)["env"]}
    probe = container(deployment)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > float(settings["CROSSRANK_TRITON_WAIT_S"])
    grace = int(settings.get("CROSSRANK_SHUTDOWN_GRACE_S", ServeSettings.model_fields["shutdown_grace_s"].default))
    before = int(container(deployment)["lifecycle"]["preStop"]["exec"]["command"][1])
    delay = float(settings.get("CROSSRANK_SHUTDOWN_DELAY_S", ServeSettings.model_fields["shutdown_delay_s"].default))
    assert pod(deployment)["terminationGracePeriodSeconds"] >= before + delay + grace + LAST_RESORT_S


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_pods_run_as_the_user_of_their_image_without_privileges(manifests, component):
    security = pod(manifests["Deployment", component])["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == read_stages()[component].values("USER")[-1]
    assert security["runAsNonRoot"]
    assert not container(manifests["Deployment", component])["securityContext"]["allowPrivilegeEscalation"]


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_services_beside_put_no_variables_into_pods(manifests, component):
    # A service called crossrank would otherwise set CROSSRANK_PORT to tcp://...
    assert pod(manifests["Deployment", component])["enableServiceLinks"] is False


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_mounts_have_volumes_and_every_volume_is_mounted(manifests, component):
    spec = pod(manifests["Deployment", component])
    assert {v["name"] for v in spec["volumes"]} == {
        m["name"] for m in container(manifests["Deployment", component])["volumeMounts"]
    }


def test_what_is_written_in_a_pod_lies_in_a_volume(manifests):
    mounts = {
        c: {m["mountPath"] for m in container(manifests["Deployment", c])["volumeMounts"]}
        for c in ("gateway", "triton")
    }
    assert read_stages()["gateway"].environment()["CROSSRANK_CACHE_DIR"] in mounts["gateway"]
    assert {ACCELERATOR_CACHE, "/dev/shm"} <= mounts["triton"]
    repository = next(word for word in container(manifests["Deployment", "triton"])["args"] if "repository" in word)
    assert repository.partition("=")[2] in mounts["triton"]


def test_triton_has_its_gpus_and_makes_room_for_its_successor():
    triton = render({"triton": {"gpus": 2, "replicas": 3}})["Deployment", "triton"]
    assert container(triton)["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert triton["spec"]["replicas"] == 3
    assert triton["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_a_bundle_is_mounted_where_the_model_is_read():
    gateway = render(EVERYTHING)["Deployment", "gateway"]
    assert read_command(container(gateway)["args"]).params["models"] == ("/bundle",)
    assert {"name": "bundle", "mountPath": "/bundle", "readOnly": True} in container(gateway)["volumeMounts"]


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_service_monitors_scrape_the_ports_that_have_metrics(component):
    assert ("ServiceMonitor", component) not in render({})
    manifests = render(EVERYTHING)
    monitor, service = manifests["ServiceMonitor", component], manifests["Service", component]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == {"gateway": "http", "triton": "metrics"}[component]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert component == "triton" or endpoint["path"] in routes()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_the_chart_names_the_version_of_this_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{load_yaml(CHART / "Chart.yaml")["appVersion"]}"\n' in project


def test_the_kserve_example_is_a_valid_pod_and_its_address_leads_to_triton():
    path = DEPLOY / "kserve" / "inferenceservice.yaml"
    service = load_yaml(path)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    # What is not KServe's own in `model` are fields of the container.
    own = {"modelFormat", "runtime", "storageUri"}
    fields = {"name": "kserve-container", **{key: value for key, value in model.items() if key not in own}}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [fields]}}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    command = re.search(r"crossrank (serve .*)", path.read_text(encoding="utf-8"))
    assert command is not None
    (target,) = targets_from_url(read_command(command[1].split()).params["triton_url"])
    assert target.host == f"{service['metadata']['name']}-predictor"
    assert target.port in {port["containerPort"] for port in model["ports"]}
