"""The compose files: what Compose makes of them, with the secrets that the file tells one to make."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from tests.harness import REPOSITORY
from tests.packages.tools import output, run, tool
from typeless_grpc.config import Settings, load

pytestmark = pytest.mark.packages
DOCKER = REPOSITORY / "deploy/docker"
BOTH = ("compose.yaml", "compose.gpu.yaml")
OURS = ("server", "worker")
SECRETS = "/run/secrets/"


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/docker with secrets, made as its first lines say."""
    copy: Path = tmp_path_factory.mktemp("checkout") / "deploy"
    shutil.copytree(REPOSITORY / "deploy", copy, ignore=shutil.ignore_patterns("secrets", ".env"))
    head = (copy / "docker/compose.yaml").read_text("utf-8").partition("\nname:")[0]
    commands = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ")]
    steps = [command for command in commands if not command.startswith("docker ")]
    assert len(steps) < len(commands)
    output("sh", "-euc", "\n".join(steps), cwd=copy / "docker")
    return copy / "docker"


def composed(directory: Path, *files: str, **environment: str) -> dict[str, Any]:
    """The project as `docker compose config` shows it: interpolated, merged and checked against the specification."""
    named = [word for file in files for word in ("--file", file)]
    known = {name: value for name, value in os.environ.items() if not name.startswith("TYPELESS_")}
    text = output(tool("docker-compose"), *named, "config", "--format", "json", cwd=directory, env=known | environment)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def project(deploy: Path) -> dict[str, Any]:
    return composed(deploy, "compose.yaml")


def test_the_project_has_all_parts(project: dict[str, Any]):
    assert set(project["services"]) == {*OURS, "postgres", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting_with_a_valid_value(
    service: str, project: dict[str, Any], deploy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    definition = project["services"][service]
    mounted = {one["target"]: deploy / "secrets" / one["source"] for one in definition["secrets"]}
    for name in [name for name in os.environ if name.startswith("TYPELESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    variables = {name: value for name, value in definition["environment"].items() if name.startswith("TYPELESS_")}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(mounted[value]) if value.startswith(SECRETS) else value)
    settings = load().settings
    password = (deploy / "secrets/postgres_password").read_text("ascii").strip()
    url = f"postgresql://typeless:{password}@postgres/typeless"
    assert settings.database_url.get_secret_value() == url
    assert settings.metrics_port == 9464
    assert (settings.max_concurrent_jobs > 0) == (service == "worker")
    assert (bool(settings.admin_keys) and settings.require_auth) == (service == "server")


def test_secrets_reach_no_environment(project: dict[str, Any], deploy: Path):
    shown = json.dumps(project)
    for file in (deploy / "secrets").iterdir():
        assert file.read_text("ascii").strip() not in shown
        assert file.stat().st_mode & stat.S_IROTH  # the container's user is none of the host's
    assert stat.S_IMODE((deploy / "secrets").stat().st_mode) == 0o700
    if (REPOSITORY / ".git").exists():
        for path in ("secrets/any", ".env"):
            assert run("git", "check-ignore", DOCKER / path, cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize("service", OURS)
def test_our_containers_may_little_and_have_time_to_stop(service: str, project: dict[str, Any]):
    definition = project["services"][service]
    assert definition["read_only"]
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert seconds(definition["stop_grace_period"]) >= Settings().drain_timeout_s + 10
    writable = {one["target"] for one in definition["volumes"] if not one.get("read_only")}
    image = (DOCKER / "Dockerfile").read_text("utf-8")
    assert writable == {re.findall(r"^VOLUME (.+)$", image, re.M)[0]}


def seconds(duration: str) -> float:
    """From "1m30s"."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)([hms])", duration))


def test_ports_are_published_on_this_machine_only(project: dict[str, Any]):
    ports = {
        (name, port["published"]): port["host_ip"]
        for name, definition in project["services"].items()
        for port in definition.get("ports", ())
    }
    assert set(ports) == {("server", "50051"), ("prometheus", "9090"), ("grafana", "3000")}
    assert set(ports.values()) == {"127.0.0.1"}


def test_files_that_are_mounted_exist(project: dict[str, Any]):
    bound = [
        Path(one["source"])
        for definition in project["services"].values()
        for one in definition.get("volumes", ())
        if one["type"] == "bind"
    ]
    assert {path.name for path in bound} == {"prometheus", "provisioning", "dashboards"}
    assert all(any(path.rglob("*.*")) for path in bound)


def test_prometheus_scrapes_the_services_on_their_metrics_port(project: dict[str, Any]):
    config = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    scraped = {
        one["job_name"]: (sd["names"], sd["port"])
        for one in config["scrape_configs"]
        for sd in one.get("dns_sd_configs", ())
    }
    ports = {name: int(project["services"][name]["environment"]["TYPELESS_METRICS_PORT"]) for name in OURS}
    assert scraped == {f"typeless-{name}": ([name], port) for name, port in ports.items()}
    source = yaml.safe_load((REPOSITORY / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text("utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_the_health_check_of_a_worker_reads_its_metrics(project: dict[str, Any]):
    check = project["services"]["worker"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "python3"]
    server, thread = start_http_server(0, "127.0.0.1", CollectorRegistry())
    code = check[3].replace("9464", str(server.server_port))
    assert code != check[3]
    try:
        assert run(sys.executable, "-c", code).returncode == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert run(sys.executable, "-c", code).returncode != 0


def test_with_a_gpu_the_image_has_its_libraries_and_the_containers_the_device(deploy: Path):
    project = composed(deploy, *BOTH, TYPELESS_VERSION="1.2.3", TYPELESS_MODEL="small")
    for service in OURS:
        definition = project["services"][service]
        assert definition["image"] == "typeless-grpc:1.2.3-cuda"
        assert definition["build"]["args"] == {"CUDA": "12", "MODEL": "small"}
        (device,) = definition["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert definition["command"] in (None, ["worker"])
    arguments = set(re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile").read_text("utf-8"), re.M))
    assert {"CUDA", "MODEL"} <= arguments


def test_a_misspelt_key_is_refused(deploy: Path, tmp_path: Path):
    text = (deploy / "compose.yaml").read_text("utf-8")
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text.replace("stop_grace_period:", "stop_grace:", 1), "utf-8")
    done = run(tool("docker-compose"), "--file", wrong, "config", "--quiet", cwd=tmp_path)
    assert done.returncode != 0
    assert "stop_grace" in done.stderr
