"""The Helm chart: linted, rendered with several values, and checked against the schemas of Kubernetes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.helm.settings_schema import schema
from tests.dashboards import ALERTS, dashboard
from tests.packages.helm_chart import (
    ALL,
    CHART,
    OLDEST,
    VALUES,
    VERSIONS,
    arguments,
    objects,
    pods,
    refusal,
    rendered,
    settings_file,
)
from tests.packages.tools import output, run, tool
from typeless_grpc.config import Settings, load
from typeless_grpc.config.settings import SECRETS
from typeless_grpc.version import VERSION

pytestmark = pytest.mark.packages


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schemas of Kubernetes for kubeconform: without ids, which it would look up in the network."""
    directory: Path = tmp_path_factory.mktemp("schemas")
    packaged = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    for version in VERSIONS:
        (directory / f"v{version}").mkdir()
        for file in (packaged / f"v{version}-local-strict").glob("*.json"):
            content = json.loads(file.read_text("utf-8").replace('"/api/_definitions.json#', '"_definitions.json#'))
            content.pop("$id", None)
            (directory / f"v{version}" / file.name).write_text(json.dumps(content), "utf-8")
        for file in (Path(__file__).parent / "crds").glob("*.json"):
            shutil.copy(file, directory / f"v{version}")
    return directory


def conform(schemas: Path, manifests: str, version: str) -> subprocess.CompletedProcess[str]:
    where = f"{schemas}/{{{{.NormalizedKubernetesVersion}}}}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    flags = ("-strict", "-summary", "-kubernetes-version", version, "-schema-location", where, "-")
    return run(tool("kubeconform"), *flags, input=manifests)


# ---- what Helm and Kubernetes accept ------------------------------------------------------------------------------


@ALL
def test_the_chart_is_free_of_what_lint_finds(values: str):
    output(tool("helm"), "lint", "--strict", CHART, *arguments(values))


@ALL
@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_conform_to_the_schemas_of_kubernetes(values: str, version: str, schemas: Path):
    manifests = rendered(values, kubernetes=version)
    done = conform(schemas, manifests, version)
    assert done.returncode == 0, done.stdout + done.stderr
    n_objects = sum(1 for one in yaml.safe_load_all(manifests) if one)
    assert f"Valid: {n_objects}, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("readinessProbe:", "readyProbe:"), ("replicas: 1", "replicas: one"), ("mountPath: /tmp", "mount: /tmp")],
)
def test_a_wrong_field_does_not_conform(right: str, wrong: str, schemas: Path):
    assert conform(schemas, rendered("default").replace(right, wrong), OLDEST).returncode != 0


def test_every_template_is_rendered_by_some_values():
    sources = {
        path for values in VALUES for path in re.findall(r"^# Source: typeless/(.+)$", rendered(values), re.MULTILINE)
    }
    templates = {str(path.relative_to(CHART)) for path in (CHART / "templates").glob("*.yaml")}
    assert sources == templates


def test_the_chart_has_the_version_of_the_software(tmp_path: Path):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    output(tool("helm"), "package", CHART, "--destination", tmp_path)
    names = output("tar", "tzf", tmp_path / f"typeless-{VERSION}.tgz").split()
    assert "typeless/values.schema.json" in names
    assert not any("/ci/" in name for name in names)


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ('server.replica=2', "replica"),
        ('server.replicas="two"', "replicas"),
        ('worker.jobs=0', "jobs"),
        ('service.type="Cluster"', "type"),
        ('settings={"limit": {}}', "limit"),
        ('settings={"limits": {"max_audio": 10}}', "max_audio"),
        ('settings={"limits": {"max_audio_s": -1}}', "max_audio_s"),
        ('settings={"streams": {"max_streams": "many"}}', "max_streams"),
        ('settings={"server": {"port": 50052}}', "port"),
        ('settings={"engine": {"model": "small"}}', "model"),
        ('settings={"access": {"admin_keys": ["secret"]}}', "admin_keys"),
        ('secrets={"database": {"name": "a", "key": "b"}}', "database"),
        ('secrets={"database_url": {"name": "a"}}', "key"),
        ('gateway.enabled=true', "parentRefs"),
        ('ingress.enabled=true', "hosts"),
        ('tmpSize="8 GB"', "tmpSize"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_their_name(setting: str, complaint: str):
    shown = refusal(setting)
    assert "don't meet the specifications of the schema" in shown
    assert complaint in shown


@pytest.mark.parametrize(
    ("sets", "complaint"),
    [
        (["server.replicas=2"], "several pods need secrets.database_url"),
        (["worker.enabled=true"], "several pods need secrets.database_url"),
        (['secrets={"database_url": {"name": "a", "key": "b"}}'], "must outlive pods"),
        (['storage={"url": "s3://a", "existingClaim": "b"}'], "set one of storage.url"),
        (["tls.verifyClients=true"], "needs tls.existingSecret"),
        (['server.autoscaling={"enabled": true, "minReplicas": 9, "maxReplicas": 3}'], "several pods need"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(sets: list[str], complaint: str):
    assert complaint in refusal(*sets)


def test_autoscaling_needs_a_target_and_a_range():
    assert "needs a target" in refusal("server.autoscaling.cpuPercent=0", values="shared")
    assert "more than maxReplicas" in refusal("server.autoscaling.minReplicas=99", values="shared")


def test_the_schema_has_the_settings_of_this_version():
    assert json.loads((CHART / "values.schema.json").read_text("utf-8")) == schema(), "make golden"


# ---- pods ---------------------------------------------------------------------------------------------------------


@ALL
def test_every_variable_of_a_pod_is_a_setting_with_a_valid_value(
    values: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    created = objects(values)
    toml = settings_file(created)
    file = tmp_path / "typeless.toml"
    file.write_text(toml, "utf-8")
    secrets = {
        "database_url": "postgresql://typeless@db/typeless",
        "redis_url": "redis://redis:6379/0",
        "jwt_jwks_url": "https://issuer.example.com/jwks.json",
    }
    for name in SECRETS:
        (tmp_path / name).write_text(secrets.get(name, f"a-long-{name}-of-this-test"), "utf-8")
    for component, pod in pods(created).items():
        variables = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        with monkeypatch.context() as environment:
            for name in [name for name in os.environ if name.startswith("TYPELESS_")]:
                environment.delenv(name)
            for name, value in variables.items():
                environment.setenv(name, str(tmp_path / Path(value).name) if name.endswith("_FILE") else value)
            loaded = load(file=file)
        settings = loaded.settings
        assert not loaded.warnings
        assert variables["TYPELESS_CONFIG"] == "/etc/typeless/typeless.toml"
        assert settings.metrics_port == 9464
        assert (settings.max_concurrent_jobs == 0) == (component == "server" and "worker" in pods(created))
        if values == "full":
            assert (settings.max_batch, settings.drain_timeout_s, settings.job_ttl) == (16, 44.5, 604800)
            assert bool(settings.admin_keys) == (component == "server")
            assert set(settings.model_dirs) == {"calls", "notes"}


@ALL
def test_pods_may_little(values: str):
    for pod in pods(objects(values)).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001  # of the image
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all(one["projected"]["defaultMode"] == 0o440 for one in pod["volumes"] if one["name"] == "secrets")


@ALL
def test_a_server_has_time_to_drain(values: str):
    created = objects(values)
    pod = pods(created)["server"]
    toml = settings_file(created)
    (drain_s,) = re.findall(r"drain_timeout_s = ([\d.]+)", toml) or [Settings().drain_timeout_s]
    sleep_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s >= 5
    assert pod["terminationGracePeriodSeconds"] == sleep_s + math.ceil(float(drain_s)) + 15


def test_probes_ask_for_the_health_of_the_server_as_a_whole():
    (container,) = pods(objects("default"))["server"]["containers"]
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert [probe["grpc"] for probe in probes] == [{"port": 50051}] * 3
    startup = probes[0]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    # A stalled engine is NOT_SERVING after engine_stall_s; a restart must not come before a short stall has passed.
    assert probes[2]["periodSeconds"] * probes[2]["failureThreshold"] >= 60
    assert [port["containerPort"] for port in container["ports"]] == [50051, 9464]


def test_with_tls_probes_read_the_health_from_the_metrics():
    (container,) = pods(objects("full"))["server"]["containers"]
    program, flag, code = container["readinessProbe"]["exec"]["command"]
    assert (program, flag) == ("python3", "-c")
    assert 'typeless_serving{service=""} 1.0' in code
    assert run(sys.executable, "-c", code).returncode != 0  # nobody listens
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert Path(variables["TYPELESS_TLS_CERT_FILE"]).parent == Path(mounts["tls"])


def test_pods_write_to_volumes_only():
    created = objects("default")
    pod = pods(created)["server"]
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {"/var/lib/typeless", "/tmp"} <= set(mounts)
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "speech-typeless"
    assert ("PersistentVolumeClaim", "speech-typeless") in created
    assert created["Deployment", "speech-typeless"]["spec"]["strategy"] == {"type": "Recreate"}
    shared = objects("shared")
    assert not any(kind == "PersistentVolumeClaim" for kind, _ in shared)
    # With a database of their own on a shared directory, workers would take each other's locks for free ones.
    assert [one["emptyDir"] for one in pods(shared)["worker"]["volumes"] if one["name"] == "data"] == [{}]
    assert shared["Deployment", "speech-typeless"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_gpu_is_a_limit_of_the_container():
    pod = pods(objects("gpu"))["server"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert pod["runtimeClassName"] == "nvidia"
    assert {one["key"] for one in pod["tolerations"]} == {"dedicated", "nvidia.com/gpu"}


def test_selectors_find_the_pods_of_their_component_only():
    created = objects("full")
    labels = {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"][
            "metadata"
        ]["labels"]
        for (kind, _), one in created.items()
        if kind == "Deployment"
    }
    found = {
        (kind, name): {
            component
            for component, own in labels.items()
            if selector.items() <= own.items()
        }
        for (kind, name), one in created.items()
        if (selector := selector_of(one)) is not None
    }  # fmt: skip
    assert found == {
        ("Deployment", "speech"): {"server"},
        ("Deployment", "speech-worker"): {"worker"},
        ("Service", "speech"): {"server"},
        ("Service", "speech-headless"): {"server"},
        ("PodDisruptionBudget", "speech-server"): {"server"},
        ("PodDisruptionBudget", "speech-worker"): {"worker"},
        ("NetworkPolicy", "speech"): {"server", "worker"},
        ("PodMonitor", "speech-server"): {"server"},
        ("PodMonitor", "speech-worker"): {"worker"},
    }


def selector_of(one: dict[str, Any]) -> dict[str, str] | None:
    """The labels that an object selects pods by, None if it selects none."""
    selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
    return None if selector is None else selector.get("matchLabels", selector)


def test_routes_and_the_autoscaler_lead_to_the_server():
    created = objects("full")
    (backend,) = created["GRPCRoute", "speech"]["spec"]["rules"][0]["backendRefs"]
    service = created["Service", backend["name"]]
    assert service["spec"]["ports"][0]["port"] == backend["port"] == 443
    (path,) = created["Ingress", "speech"]["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "speech", "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert created["Service", "speech-headless"]["spec"]["clusterIP"] == "None"
    scaler = created["HorizontalPodAutoscaler", "speech"]["spec"]
    assert ("Deployment", scaler["scaleTargetRef"]["name"]) in created
    assert "replicas" not in created["Deployment", "speech"]["spec"]  # the autoscaler's


def test_the_autoscaler_uses_metrics_that_the_adapter_makes():
    wanted = {
        one["pods"]["metric"]["name"]
        for one in objects("full")["HorizontalPodAutoscaler", "speech"]["spec"]["metrics"]
        if one["type"] == "Pods"
    }
    adapter = yaml.safe_load((CHART / "files/prometheus-adapter.yaml").read_text("utf-8"))
    assert wanted == {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    (resource,) = objects("shared")["HorizontalPodAutoscaler", "speech-typeless"]["spec"]["metrics"]
    assert resource["type"] == "Resource"  # without the adapter


def test_the_network_policy_lets_through_what_is_used():
    policy = objects("full")["NetworkPolicy", "speech"]["spec"]
    callers, monitoring = policy["ingress"]
    assert callers["from"] == [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]
    assert monitoring["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [
        [53, 53],
        [6432],
        [6380],
        [8443],
        [4317],
    ]
    alone = objects("default")["NetworkPolicy", "speech-typeless"]["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in alone["egress"]] == [[53, 53], [443]]


def test_alerts_and_dashboard_are_those_of_deploy():
    created = objects("full")
    rules = yaml.safe_load(ALERTS.read_text("utf-8"))
    assert created["PrometheusRule", "speech"]["spec"] == rules
    assert "{{ $labels.job }}" in str(rules)  # Helm leaves Prometheus's templates alone
    boards = created["ConfigMap", "speech-dashboard"]
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(boards["data"]["typeless.json"]) == dashboard()
    jobs = {
        relabeling["replacement"]
        for (kind, _), one in created.items()
        if kind == "PodMonitor"
        for endpoint in one["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
    }
    assert jobs == {"typeless-server", "typeless-worker"}


@pytest.mark.parametrize(
    ("values", "shown", "hidden"),
    [
        ("default", ["rollout status deployment/speech-typeless", "Anyone who reaches"], ["persistence is off"]),
        ("shared", ["dns:///speech-typeless-headless.default:50051", "follows the CPU"], ["Anyone who reaches"]),
        ("full", ["port-forward service/speech 50051:443"], ["Anyone who reaches", "follows the CPU"]),
    ],
)
def test_the_notes_show_the_next_steps(values: str, shown: list[str], hidden: list[str], tmp_path: Path):
    # Only `helm install` prints notes, and it needs a cluster. So a copy of the chart has them as an object.
    copy = tmp_path / "typeless"
    shutil.copytree(CHART, copy)
    (copy / "templates/NOTES.txt").rename(copy / "NOTES.txt")
    (copy / "templates/notes.yaml").write_text('notes: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}', "utf-8")
    show = ("--show-only", "templates/notes.yaml")
    notes = yaml.safe_load(output(tool("helm"), "template", "speech", copy, *arguments(values, *show)))["notes"]
    assert all(one in notes for one in shown)
    assert not any(one in notes for one in hidden)
