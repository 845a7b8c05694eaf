"""What Prometheus and Grafana read: checked by promtool, and against the metrics of a real server and a real worker."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.clients.serving import model
from tests.dashboards import (
    Query,
    adapter_queries,
    alert_queries,
    alerts,
    dashboard,
    dashboard_queries,
    grouping,
    hurried_rules,
    metrics,
    selectors,
)
from tests.harness import AUDIO, REPOSITORY
from tests.packages.tools import output, run, tool
from tests.servers import free_port
from tests.service.test_tls import Authority
from tests.system.stack import Program
from typeless_grpc.client import Client, Tls

pytestmark = pytest.mark.packages
PROMETHEUS = REPOSITORY / "deploy/prometheus"
RUNBOOK = REPOSITORY / "docs/runbook.md"
UNIT_TESTS = Path(__file__).parent / "alerts.test.yml"
OF_PROMETHEUS = {"namespace", "job", "instance", "pod"}  # labels that no process has by itself
QUERIES = [*dashboard_queries(), *alert_queries(), *adapter_queries('namespace="a",pod=~"b"')]
EACH = pytest.mark.parametrize("query", QUERIES, ids=str)
Families = dict[str, Metric]


# ---- promtool -----------------------------------------------------------------------------------------------------


def test_promtool_accepts_the_configuration_and_the_rules():
    checked = output(tool("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(alerts())} rules found" in checked


def test_each_alert_fires_for_its_fault_and_clears_after_it():
    output(tool("promtool"), "test", "rules", UNIT_TESTS)
    tested = [
        one for group in yaml.safe_load(UNIT_TESTS.read_text("utf-8"))["tests"] for one in group["promql_expr_test"]
    ]
    fires, is_quiet = (
        {re.findall(r'alertname="(\w+)"', one["expr"])[0] for one in tested if bool(one["exp_samples"]) == is_firing}
        for is_firing in (True, False)
    )
    assert fires == is_quiet == {rule["alert"] for rule in alerts()}


def test_an_alert_that_never_fires_fails_its_unit_test(tmp_path: Path):
    rules = (
        (PROMETHEUS / "alerts.yml").read_text("utf-8").replace("typeless_database_up == 0", "typeless_database_up < 0")
    )
    (tmp_path / "alerts.yml").write_text(rules, "utf-8")
    tests = UNIT_TESTS.read_text("utf-8").replace("../../deploy/prometheus/alerts.yml", "alerts.yml")
    (tmp_path / "alerts.test.yml").write_text(tests, "utf-8")
    done = run(tool("promtool"), "test", "rules", tmp_path / "alerts.test.yml")
    assert done.returncode != 0
    assert "TypelessDatabaseUnavailable" in done.stdout + done.stderr


def test_hurried_rules_are_valid(tmp_path: Path):
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(hurried_rules(60)), "utf-8")
    assert f"{len(alerts())} rules found" in output(tool("promtool"), "check", "rules", tmp_path / "rules.yml")
    text = (tmp_path / "rules.yml").read_text("utf-8")
    assert "[5m]" not in text
    assert "typeless_engine_stalled_seconds > 5" in text


def test_the_queries_of_the_dashboard_are_promql(tmp_path: Path):
    groups = [{"name": "all", "rules": [{"record": "one", "expr": query.expression} for query in QUERIES]}]
    for i, rule in enumerate(groups[0]["rules"]):
        rule["record"] = f"query_{i}"  # type: ignore[index]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}), "utf-8")
    assert f"{len(QUERIES)} rules found" in output(tool("promtool"), "check", "rules", tmp_path / "rules.yml")


def test_the_autoscaler_sees_the_mean_wait_of_calls_and_zero_without_any(tmp_path: Path):
    (query,) = [one for one in adapter_queries('pod=~"a|b"') if one.where == "typeless_queue_wait_seconds_mean"]
    name = "typeless_queue_wait_seconds"
    series = {
        f'{name}_sum{{pod="a",lane="unary"}}': "0+30x10",
        f'{name}_count{{pod="a",lane="unary"}}': "0+60x10",
        f'{name}_sum{{pod="a",lane="jobs"}}': "0+6000x10",
        f'{name}_count{{pod="a",lane="jobs"}}': "0+60x10",
        f'{name}_sum{{pod="b",lane="unary"}}': "7x10",
        f'{name}_count{{pod="b",lane="unary"}}': "9x10",
    }
    expected = [{"labels": '{pod="a"}', "value": 0.5}, {"labels": '{pod="b"}', "value": 0}]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query.expression, "eval_time": "8m", "exp_samples": expected}],
    }
    (tmp_path / "rules.yml").write_text("groups: []", "utf-8")
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [test]}), "utf-8")
    output(tool("promtool"), "test", "rules", tmp_path / "test.yml")


# ---- alerts and the runbook ---------------------------------------------------------------------------------------


def test_each_alert_says_what_is_wrong_and_leads_to_its_section_of_the_runbook():
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text("utf-8"), re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "description", "runbook_url"}
        assert annotations["runbook_url"].endswith(f"/docs/runbook.md#{rule['alert'].lower()}")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert "for" in rule or "changes(" in rule["expr"]


# ---- the dashboard ------------------------------------------------------------------------------------------------


def test_panels_lie_in_rows_beside_each_other():
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        *("Overview", "Live", "Calls", "Jobs", "Engine", "Stores", "Processes")
    ]


def test_the_dashboard_asks_the_data_source_of_its_variable():
    found = dashboard()
    sources = {str(panel["datasource"]) for panel in found["panels"] if panel["type"] != "row"}
    sources |= {str(target["datasource"]) for panel in found["panels"] for target in panel.get("targets", ())}
    assert sources == {str({"type": "prometheus", "uid": "${datasource}"})}
    assert [one["name"] for one in found["templating"]["list"]] == ["datasource", "namespace", "instance"]


# ---- the metrics of real processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Families]]:
    """The metrics of a server with TLS after a call, and of a worker, by name."""
    directory: Path = tmp_path_factory.mktemp("metrics")
    ports = {name: free_port() for name in ("serve", "worker")}
    authority = Authority(directory)
    cert, key = authority.issue("server")
    settings = {
        "TYPELESS_TLS_CERT_FILE": str(cert),
        "TYPELESS_TLS_KEY_FILE": str(key),
        "TYPELESS_DATA_DIR": str(directory),
        "TYPELESS_MODEL_DIRS": f"tiny.en={model('tiny.en')}",
        "TYPELESS_MODEL": "tiny.en",
        "TYPELESS_PORT": "0",
    }
    programs = [
        Program(name, [name], settings | {"TYPELESS_METRICS_PORT": str(port)}, directory)
        for name, port in ports.items()
    ]
    try:
        for program, pattern in zip(programs, (r"takes calls on (\S+:\d+)", "(runs up to)"), strict=True):
            program.start()
            found = program.until_logged(pattern)[1]
            if program.name == "serve":
                with Client(found, tls=Tls(ca=authority.ca)) as client:
                    client.transcribe((AUDIO / "en_short.flac").read_bytes())
        yield {name: families(port) for name, port in ports.items()}
    finally:
        for program in programs:
            program.stop()


def families(port: int) -> Families:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {one.name: one for one in text_string_to_metric_families(answer.read().decode())}


def family(name: str, known: Families) -> Metric | None:
    """The family of a metric, by the rules for the names of its type."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    for suffix in ("", "_total", "_bucket", "_sum", "_count"):
        found = known.get(name.removesuffix(suffix))
        if found is not None and name.endswith(suffix) and suffix in suffixes[found.type]:
            return found
    return None


def labels_of(name: str) -> set[str]:
    """The labels of a metric, as docs/metrics.md has them."""
    text = (REPOSITORY / "docs/metrics.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|", text, re.MULTILINE))
    plain = name if name in rows else re.sub(r"_(bucket|sum|count)$", "", name)
    bucket = {"le"} if name.endswith("_bucket") else set()
    return set(re.findall(r"`(\w+)`", rows.get(plain, ""))) | bucket


@pytest.mark.model
@EACH
def test_every_metric_of_a_query_is_one_of_a_running_server_or_worker(query: Query, live: dict[str, Families]):
    names = metrics(query.expression) - {"up"}
    assert names or query.where in ("TypelessDown", "TypelessProcessDown") or "ALERTS" in query.expression
    for name in names:
        assert any(family(name, known) for known in live.values()), f"{name} does not exist"


@pytest.mark.model
@EACH
def test_every_label_of_a_query_is_one_of_its_metric(query: Query, live: dict[str, Families]):
    names = metrics(query.expression)
    for name, selected in selectors(query.expression):
        if name == "up" or name.startswith("process_"):
            continue
        assert set(selected) <= labels_of(name) | OF_PROMETHEUS, name
        found = family(name, live["serve"]) or family(name, live["worker"])
        assert found is not None
        for label, (operator, value) in selected.items():
            seen = {sample.labels[label] for sample in found.samples if label in sample.labels}
            if seen and operator in ("=", "=~") and label not in OF_PROMETHEUS | {"grpc_code"}:
                wanted = value if operator == "=~" else re.escape(value)
                assert any(re.fullmatch(wanted, one) for one in seen), f"{name} never has {label}={value}"
    known = {label for name in names for label in labels_of(name)} | OF_PROMETHEUS
    assert grouping(query.expression) <= known
