"""A server, a worker, PostgreSQL, Redis and Prometheus, as an operator would run them together, on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.certificates import Authority
from tests.clients.serving import model, without_settings
from tests.collector import Collector, collecting
from tests.harness import REPOSITORY
from tests.postgres import Postgres, binaries
from tests.servers import RedisServer, free_port

BIN = Path(sys.executable).parent
KEY, ADMIN_KEY = "a-key-for-the-callers", "a-key-for-the-operator"
SCRAPE_S = 1.0
START_S = 170.0  # of a server with a model, on a slow machine beside others
GROUPS = ("TRANSCRIBE", "LONG", "BATCH", "STREAM", "JOBS", "CONFIG")
Sample = tuple[Mapping[str, str], float]


class Program:
    """A process of the product with its log, which can be stopped and started again."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name, self._command, self._environment = name, command, dict(environment)
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        with self.log.open("ab") as log:
            environment = without_settings() | self._environment | more
            command = [str(BIN / "typeless"), *self._command]
            self._process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log)

    def until_logged(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """Wait until its output matches a pattern."""
        found: re.Match[str] | None = None

        def is_logged() -> bool:
            nonlocal found
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            found = re.search(pattern, self.log.read_text())
            return found is not None

        wait_until(is_logged, timeout_s, f"{self.name} logs {pattern}")
        assert found is not None
        return found

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class Prometheus:
    """Debian's prometheus, with rules, over a server's and a worker's metrics."""

    def __init__(self, directory: Path, targets: Mapping[str, int], rules: Mapping[str, Any]) -> None:
        """targets: port by job."""
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("no prometheus on this machine: apt-get install prometheus")
        self._directory, self._binary = directory, binary
        self.port = free_port()
        (directory / "rules.yml").write_text(yaml.safe_dump(dict(rules)))
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_S:.0f}s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, port in targets.items()
            ],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            self._binary,
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_ready, 60.0, "prometheus is ready")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def query(self, expression: str) -> list[Sample]:
        """The labels and the values of an expression, now."""
        found = self._get("/api/v1/query", query=expression)["data"]
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@dataclass
class Stack:
    """All of it, running. settings: the file of settings, which is empty."""

    directory: Path
    settings: Path
    postgres: Postgres
    redis: RedisServer
    server: Program
    worker: Program
    prometheus: Prometheus
    port: int
    authority: Authority
    collector: Collector
    metrics_ports: Mapping[str, int] = field(default_factory=dict)
    storage: str = ""

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """With which clients trust the server."""
        return grpc.ssl_channel_credentials(root_certificates=self.authority.ca.read_bytes())

    def issue(self, valid_h: float) -> None:
        """Give the server a new certificate, which it reads by itself."""
        self.authority.issue("server", valid_h=valid_h)

    def start_server(self) -> None:
        """Start the server again, and wait until it serves on the same port."""
        n_before = self.server.log.read_text().count("takes calls on")
        self.server.start(TYPELESS_PORT=str(self.port))
        wait_until(
            lambda: self.server.log.read_text().count("takes calls on") > n_before, START_S, "the server serves again"
        )

    def scrape(self, name: str) -> list[tuple[str, Mapping[str, str], float]]:
        """The samples of "server" or "worker" now: name, labels, value."""
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_ports[name]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def running(directory: Path, rules: Mapping[str, Any], **settings: str) -> Iterator[Stack]:
    """Start everything. settings: TYPELESS_* variables of server and worker. Skips where a program is missing."""
    bin_dir = binaries()
    if bin_dir is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    models = {name: model(name) for name in ("tiny.en", "base")}
    with contextlib.ExitStack() as stack:
        postgres = Postgres(bin_dir)
        stack.callback(postgres.remove)
        redis = RedisServer(directory)
        redis.start()
        stack.callback(redis.kill)
        collector = stack.enter_context(collecting())
        authority = Authority(directory)
        certificate, private_key = authority.issue("server", valid_h=30 * 24)
        metrics_ports = {"typeless-server": free_port(), "typeless-worker": free_port()}
        shared = {
            "TYPELESS_MODEL": "tiny.en",
            "TYPELESS_DATABASE_URL": postgres.url,
            "TYPELESS_STORAGE_URL": str(directory / "storage"),
            "TYPELESS_REDIS_URL": redis.url,
            "TYPELESS_LOG_FORMAT": "json",
            "TYPELESS_AUTH_ENABLED": "true",
            "TYPELESS_REQUIRE_AUTH": "true",
            "TYPELESS_API_KEYS": KEY,
            "TYPELESS_ADMIN_KEYS": ADMIN_KEY,
            "TYPELESS_PORT": "0",
            "TYPELESS_TLS_CERT_FILE": str(certificate),
            "TYPELESS_TLS_KEY_FILE": str(private_key),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.target,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OTEL_BSP_MAX_QUEUE_SIZE": "65536",
            **{f"TYPELESS_RATE_LIMIT_{group}": "6000/minute" for group in GROUPS},
        } | settings
        settings_file = directory / "typeless.toml"
        settings_file.touch()
        shared["TYPELESS_CONFIG"] = str(settings_file)
        programs = {}
        for name, command in (("server", ["serve"]), ("worker", ["worker"])):
            own = directory / name
            (own / "models").mkdir(parents=True)
            for model_name, path in models.items():
                (own / "models" / model_name).symlink_to(path)
            environment = shared | {
                "TYPELESS_DATA_DIR": str(own),
                "TYPELESS_METRICS_PORT": str(metrics_ports[f"typeless-{name}"]),
            }
            if name == "server":
                environment["TYPELESS_MAX_CONCURRENT_JOBS"] = "0"  # jobs are the worker's
            programs[name] = Program(name, command, environment, directory)
            stack.callback(programs[name].stop)
        programs["server"].start()
        port = int(programs["server"].until_logged(r"takes calls on 127\.0\.0\.1:(\d+)").group(1))
        programs["worker"].start()
        programs["worker"].until_logged("runs up to")
        prometheus = Prometheus(directory, metrics_ports, rules)
        prometheus.start()
        stack.callback(prometheus.stop)
        yield Stack(
            directory=directory,
            settings=settings_file,
            postgres=postgres,
            redis=redis,
            server=programs["server"],
            worker=programs["worker"],
            prometheus=prometheus,
            port=port,
            authority=authority,
            collector=collector,
            storage=str(Path(shared["TYPELESS_STORAGE_URL"]).parent),
            metrics_ports={name.removeprefix("typeless-"): port for name, port in metrics_ports.items()},
        )
