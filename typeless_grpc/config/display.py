"""Settings as they are printed: without secrets."""

from __future__ import annotations

import re
from typing import Any

from pydantic import SecretStr

from typeless_grpc.config.settings import Settings

# A password may contain `/` and `@` that should have been escaped, so everything up to the last `@` is hidden.
_USER_OF_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?=[^/]*[:@]).*@", re.IGNORECASE | re.DOTALL)


def public(settings: Settings) -> dict[str, Any]:
    """Return each setting's value as JSON has it; None in place of secrets that are set."""
    hidden = {name for name in Settings.model_fields if is_secret(getattr(settings, name))}
    return {name: None if name in hidden else _shown(v) for name, v in settings.model_dump(mode="json").items()}


def is_secret(value: Any) -> bool:
    """Whether a setting's value must not be shown. An unset secret may be."""
    return (isinstance(value, SecretStr) and bool(value)) or (isinstance(value, tuple) and any(map(is_secret, value)))


def _shown(value: Any) -> Any:
    """Remove the user and the password of a URL (`s3://KEY:SECRET@HOST/PATH`), and make the value valid text.

    A path may contain bytes that are not UTF-8; they are written as `\\xe9`.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return _USER_OF_URL.sub(r"\1***@", text)
    return [_shown(one) for one in value] if isinstance(value, list) else value
