"""The Helm chart, rendered with each set of values that the tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import REPOSITORY
from tests.packages.tools import output, run, tool

CHART = REPOSITORY / "deploy/helm/typeless"


VALUES: dict[str, Path | None] = {
    "default": None,
    **{path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))},
}


ALL = pytest.mark.parametrize("values", VALUES)
OLDEST = "1.30.0"  # kubeVersion of the chart
VERSIONS = (OLDEST, "1.34.0")
Objects = dict[tuple[str, str], dict[str, Any]]


def arguments(values: str, *more: str, kubernetes: str = OLDEST) -> list[str | Path]:
    file = VALUES[values]
    return ["--kube-version", kubernetes, *(["--values", file] if file else []), *more]


def rendered(values: str, *more: str, kubernetes: str = OLDEST) -> str:
    return output(tool("helm"), "template", "speech", CHART, *arguments(values, *more, kubernetes=kubernetes))


def objects(values: str, *more: str) -> Objects:
    """What the chart creates, by kind and name."""
    found = [one for one in yaml.safe_load_all(rendered(values, *more)) if one]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def pods(created: Objects) -> dict[str, dict[str, Any]]:
    """The specification of the pods, by component."""
    found = [one["spec"]["template"] for (kind, _), one in created.items() if kind == "Deployment"]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["spec"] for pod in found}


def settings_file(created: Objects) -> str:
    """The TOML file of the pods."""
    names = {pod["volumes"][0]["configMap"]["name"] for pod in pods(created).values()}
    (content,) = [str(created["ConfigMap", name]["data"]["typeless.toml"]) for name in names]
    return content


def refusal(*sets: str, values: str = "default") -> str:
    """The complaint of Helm about values that it refuses."""
    flags = [word for one in sets for word in ("--set-json", one)]
    done = run(tool("helm"), "template", "speech", CHART, *arguments(values, *flags))
    assert done.returncode != 0, f"{sets} were not refused"
    return done.stderr
