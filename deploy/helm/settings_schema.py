"""Prints the chart's values.schema.json with the settings as they are in typeless_grpc/config: `make golden`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from typeless_grpc.config.settings import GROUPS, SECRETS

SCHEMA = Path(__file__).parent / "typeless/values.schema.json"
# What the templates set themselves, from other values: the environment would override the file without a word.
OF_THE_CHART = SECRETS | {
    *("host", "port", "data_dir", "metrics_host", "metrics_port", "max_concurrent_jobs"),
    *("model", "model_dirs", "model_download", "tls_cert_file", "tls_key_file", "tls_client_ca_file"),
}
# For people, and different with each edit of a sentence.
LEFT_OUT = {"title", "description", "default", "format", "writeOnly"}


def schema() -> dict[str, Any]:
    """The file's content, with the properties of `settings` and the names of `secrets` replaced."""
    whole: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    whole["properties"]["settings"]["properties"] = {name: _table(name) for name in GROUPS}
    whole["properties"]["secrets"]["propertyNames"] = {"enum": sorted(SECRETS)}
    return whole


def _table(group: str) -> dict[str, Any]:
    properties = GROUPS[group].model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _short(one) for name, one in properties.items() if name not in OF_THE_CHART},
    }


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items() if name not in LEFT_OUT}
    return [_short(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
