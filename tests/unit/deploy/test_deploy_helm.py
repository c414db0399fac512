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

from crossrank.engines.triton.address import targets_from_url
from crossrank_export.triton.config import ACCELERATOR_CACHE
from crossrank_server.http.server import LAST_RESORT_S
from crossrank_server.settings import ServeSettings
from crossrank_server.telemetry.tracing import tracing_from_environment
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
if "name" not in asked:
    answer = dict(helm.lint(path, asked["values"], strict=True))
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
# Set from other values of the chart; probes of Kubernetes have no certificate, so callers are asked for none.
FIXED |= {"store", "limits_store", "allow_anonymous", "grpc_port", "tls_cert", "tls_key", "tls_client_ca"}
# A gateway of the chart has one model, which never sleeps.
FIXED |= {"pin", "idle_sleep_s", "memory_budget_mb"}
# One process a pod: the autoscaler adds pods.
FIXED |= {"workers"}
ANONYMOUS = {"gateway": {"allowAnonymous": True}}
MONITORED = {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
EVERYTHING = {
    "gateway": {
        "keys": {"existingSecret": "my-keys"},
        "tls": {"existingSecret": "my-tls"},
        "grpc": {"enabled": True},
        "tracing": {"otlpEndpoint": "http://collector:4318"},
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
    "serviceMonitor": {
        **MONITORED["serviceMonitor"],
        "tlsConfig": {"serverName": "reranker.example.org", "ca": {"secret": {"name": "my-tls", "key": "ca.crt"}}},
    },
}

CHOICES = {"anonymous": ANONYMOUS, "keys": EVERYTHING}


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


@pytest.fixture(scope="module", params=[ANONYMOUS, EVERYTHING], ids=["defaults", "everything"])
def manifests(request):
    return render(request.param)


def pod(manifest) -> Any:
    return manifest["spec"]["template"]["spec"]


def container(manifest) -> Any:
    return pod(manifest)["containers"][0]


def variables(manifest) -> dict[str, str]:
    """Return the variables that the manifest itself gives a value."""
    return {entry["name"]: entry["value"] for entry in container(manifest)["env"] if "value" in entry}


@pytest.mark.parametrize("values", [ANONYMOUS, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_finds_neither_errors_nor_warnings(values):
    report = ask_helm(values=values)
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
    manifests = render(ANONYMOUS, name)
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
    env = variables(render(EVERYTHING)["Deployment", "gateway"])
    given = {k.removeprefix("CROSSRANK_").lower(): v for k, v in env.items() if k.startswith("CROSSRANK_")}
    settings = ServeSettings(**given)
    expected = {**VALUES["gateway"]["settings"], **EVERYTHING["gateway"]["settings"]}
    expected |= {
        "grpc_port": 9000,
        "tls_cert": "/etc/crossrank/tls/tls.crt",
        "tls_key": "/etc/crossrank/tls/tls.key",
    }
    assert {name: getattr(settings, name) for name in given} == expected


def test_either_keys_or_anybody_is_served():
    gateways = {name: render(values)["Deployment", "gateway"] for name, values in CHOICES.items()}
    assert variables(gateways["anonymous"])["CROSSRANK_ALLOW_ANONYMOUS"] == "true"
    assert not any("valueFrom" in entry for entry in container(gateways["anonymous"])["env"])
    assert "CROSSRANK_ALLOW_ANONYMOUS" not in variables(gateways["keys"])
    secrets = {
        e["name"]: e["valueFrom"]["secretKeyRef"] for e in container(gateways["keys"])["env"] if "valueFrom" in e
    }
    assert secrets == {
        "CROSSRANK_STORE": {"name": "my-keys", "key": "CROSSRANK_STORE"},
        "CROSSRANK_LIMITS_STORE": {"name": "my-keys", "key": "CROSSRANK_LIMITS_STORE", "optional": True},
    }
    assert {name.removeprefix("CROSSRANK_").lower() for name in secrets} <= set(ServeSettings.model_fields)


def test_a_chart_without_the_choice_is_refused_with_both_remedies():
    with pytest.raises(ValuesRefusedError) as refused:
        render({})
    assert "allowAnonymous" in str(refused.value)
    assert "keys/existingSecret" in str(refused.value)


def test_certificates_are_mounted_where_they_are_read():
    gateway = render(EVERYTHING)["Deployment", "gateway"]
    env = variables(gateway)
    mount = next(m for m in container(gateway)["volumeMounts"] if m["name"] == "tls")
    volume = next(v for v in pod(gateway)["volumes"] if v["name"] == "tls")
    # The names of the type kubernetes.io/tls.
    assert env["CROSSRANK_TLS_CERT"] == f"{mount['mountPath']}/tls.crt"
    assert env["CROSSRANK_TLS_KEY"] == f"{mount['mountPath']}/tls.key"
    assert volume["secret"] == {"secretName": "my-tls", "defaultMode": 0o440}
    assert "tls" not in {v["name"] for v in pod(render(ANONYMOUS)["Deployment", "gateway"])["volumes"]}


def test_grpc_has_a_port_where_it_is_asked_for():
    manifests = render(EVERYTHING)
    port = int(variables(manifests["Deployment", "gateway"])["CROSSRANK_GRPC_PORT"])
    assert {"name": "grpc", "containerPort": port} in container(manifests["Deployment", "gateway"])["ports"]
    assert {"name": "grpc", "port": port, "targetPort": "grpc"} in manifests["Service", "gateway"]["spec"]["ports"]
    assert port in read_stages()["gateway"].ports()
    assert "CROSSRANK_GRPC_PORT" not in variables(render(ANONYMOUS)["Deployment", "gateway"])
    assert len(render(ANONYMOUS)["Service", "gateway"]["spec"]["ports"]) == 1


def test_spans_go_where_the_chart_says_or_nowhere(monkeypatch):
    assert not any(name.startswith("OTEL_") for name in variables(render(ANONYMOUS)["Deployment", "gateway"]))
    env = variables(render(EVERYTHING)["Deployment", "gateway"])
    traced = {name: value for name, value in env.items() if name.startswith("OTEL_")}
    assert list(traced.values()) == ["http://collector:4318"]
    for name, value in traced.items():
        monkeypatch.setenv(name, value)
    tracing = tracing_from_environment()
    assert tracing is not None, "the server knows no such variable"
    tracing.close()


def test_the_chart_takes_every_setting_of_the_server_that_makes_sense_in_it():
    properties = ServeSettings.model_json_schema()["properties"]
    known = SCHEMA["properties"]["gateway"]["properties"]["settings"]["properties"]
    expected = {}
    for name in set(properties) - FIXED:
        # Of a setting that may be None, the other type: in the chart it is left out instead.
        (value,) = [one for one in properties[name].get("anyOf", [properties[name]]) if one["type"] != "null"]
        expected[name] = {key: value[key] for key in ("type", "enum") if key in value}
    assert known == expected, "keep values.schema.json in step with ServeSettings, or add to FIXED what the chart sets"


@pytest.mark.parametrize(
    "values",
    [
        {"gateway": {"settings": {"max_docs": 5}}},
        {"gateway": {"settings": {"max_documents": "many"}}},
        {"gateway": {"settings": {"host": "127.0.0.1"}}},
        {"gateway": {"settings": {"allow_anonymous": True}}},
        {"gateway": {"autoscaling": {"minReplicas": 0}}},
        {"gateway": {"keys": {"existingSecret": "my-keys"}}},
        {"gateway": {"tracing": {"otlpEndpoint": "collector:4318"}}},
        {"gateway": {"tls": {"existingSecret": "my-tls"}}, **MONITORED},
        {"triton": {"gpu": 2}},
        {"triton": {"repositoryVolume": None}},
        {"replicas": 3},
    ],
    ids=str,
)
def test_values_that_would_do_nothing_or_harm_are_refused(values):
    with pytest.raises(ValuesRefusedError):
        render({**values, "gateway": {**ANONYMOUS["gateway"], **values.get("gateway", {})}})


def test_probes_ask_what_is_answered(manifests):
    gateway, triton = (container(manifests["Deployment", component]) for component in ("gateway", "triton"))
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert {gateway[probe]["httpGet"]["path"] for probe in probes} <= routes()
    assert [gateway[probe]["httpGet"]["path"] for probe in probes[1:]] == ["/health/live", "/health/ready"]
    assert [triton[probe]["httpGet"]["path"] for probe in probes[1:]] == ["/v2/health/live", "/v2/health/ready"]
    assert {part[probe]["httpGet"]["port"] for part in (gateway, triton) for probe in probes} == {"http"}
    assert gateway["ports"][0] == {"name": "http", "containerPort": ServeSettings.model_fields["port"].default}
    scheme = "HTTPS" if "CROSSRANK_TLS_CERT" in variables(manifests["Deployment", "gateway"]) else "HTTP"
    assert {gateway[probe]["httpGet"]["scheme"] for probe in probes} == {scheme}


def test_gateways_get_the_time_that_their_settings_ask_for(manifests):
    deployment = manifests["Deployment", "gateway"]
    settings = variables(deployment)
    probe = container(deployment)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > float(settings["CROSSRANK_TRITON_WAIT_S"])
    grace = int(settings.get("CROSSRANK_SHUTDOWN_GRACE_S", ServeSettings.model_fields["shutdown_grace_s"].default))
    delay = float(settings["CROSSRANK_SHUTDOWN_DELAY_S"])
    assert delay > 0, "requests still come until every node knows that the pod ends"
    assert pod(deployment)["terminationGracePeriodSeconds"] > delay + grace + LAST_RESORT_S
    assert "lifecycle" not in container(deployment), "the server's own delay takes preStop's place"


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
    triton = render({**ANONYMOUS, "triton": {"gpus": 2, "replicas": 3}})["Deployment", "triton"]
    assert container(triton)["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert triton["spec"]["replicas"] == 3
    assert triton["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_a_bundle_is_mounted_where_the_model_is_read():
    gateway = render(EVERYTHING)["Deployment", "gateway"]
    assert read_command(container(gateway)["args"]).params["models"] == ("/bundle",)
    assert {"name": "bundle", "mountPath": "/bundle", "readOnly": True} in container(gateway)["volumeMounts"]


@pytest.mark.parametrize("component", ["gateway", "triton"])
def test_service_monitors_scrape_the_ports_that_have_metrics(component):
    assert ("ServiceMonitor", component) not in render(ANONYMOUS)
    manifests = render(EVERYTHING)
    monitor, service = manifests["ServiceMonitor", component], manifests["Service", component]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == {"gateway": "http", "triton": "metrics"}[component]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert component == "triton" or endpoint["path"] in routes()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    own = {key: endpoint[key] for key in ("scheme", "tlsConfig", "authorization") if key in endpoint}
    of_gateways = {
        "scheme": "https",
        "tlsConfig": EVERYTHING["serviceMonitor"]["tlsConfig"],
        "authorization": {"credentials": {"name": "my-keys", "key": "METRICS_KEY"}},
    }
    assert own == {"gateway": of_gateways, "triton": {}}[component]


def test_gateways_that_need_no_key_are_scraped_without_one():
    (endpoint,) = render({**ANONYMOUS, **MONITORED})["ServiceMonitor", "gateway"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "http"
    assert not {"authorization", "tlsConfig"} & set(endpoint)


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
