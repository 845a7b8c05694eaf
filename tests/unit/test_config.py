from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from typeless_grpc.config import GROUPS, RENAMED, SECRETS, Settings, group_of, load, private, public
from typeless_grpc.errors import InvalidInput


def write(folder: Path, text: str) -> Path:
    path = folder / "typeless.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(**given: object) -> dict[str, str]:
    """What `load` finds wrong, by the name the user wrote."""
    with pytest.raises(InvalidInput) as caught:
        load(**given)  # type: ignore[arg-type]
    return {violation.field: violation.why for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("flag", "environment", "file", "value", "origin"),
    [
        (1, 2, 3, 1, "flag"),
        (None, 2, 3, 2, "environment"),
        (None, None, 3, 3, "file"),
        (None, None, None, 50051, "default"),
        (0, 2, None, 0, "flag"),
    ],
)
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    flag: int | None, environment: int | None, file: int | None, value: int, origin: str, monkeypatch, tmp_path: Path
):
    if environment is not None:
        monkeypatch.setenv("TYPELESS_PORT", str(environment))
    path = write(tmp_path, f"port = {file}" if file is not None else "")
    loaded = load({"port": flag}, file=path)
    assert (loaded.settings.port, loaded.origins["port"]) == (value, origin)


def test_the_defaults_are_a_server_for_this_machine_alone():
    settings = load().settings
    assert (settings.host, settings.port, settings.model, settings.device) == ("127.0.0.1", 50051, "base", "auto")
    assert settings.data_dir.is_absolute()


def test_the_file_may_be_named_by_the_environment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TYPELESS_CONFIG", str(write(tmp_path, 'model = "tiny.en"')))
    assert load().settings.model == "tiny.en"


def test_the_usual_file_is_read_where_it_lies(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "typeless").mkdir()
    write(tmp_path / "typeless", "beam_size = 5")
    assert load().settings.beam_size == 5


def test_a_file_that_is_named_must_exist(monkeypatch, tmp_path: Path):
    assert "no file" in problems(file=tmp_path / "missing.toml")["config"]
    monkeypatch.setenv("TYPELESS_CONFIG", str(tmp_path / "missing.toml"))
    assert "no file" in problems()["config"]


def test_a_file_that_is_not_toml_is_named_with_the_place(tmp_path: Path):
    assert "is not TOML" in problems(file=write(tmp_path, "port == 1"))["config"]


def test_all_problems_come_at_once_under_the_names_the_user_wrote(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TYPELESS_BEAM_SIZE", "eleven")
    monkeypatch.setenv("TYPELESS_MODELL", "base")
    path = write(tmp_path, "drain_timeout_s = -1\nprot = 7\n")
    found = problems(flags={"port": 99_999}, file=path)
    assert set(found) == {
        "--port",
        "TYPELESS_BEAM_SIZE",
        "TYPELESS_MODELL",
        f"drain_timeout_s ({path})",
        f"prot ({path})",
    }
    assert "did you mean TYPELESS_MODEL?" in found["TYPELESS_MODELL"]
    assert "did you mean port?" in found[f"prot ({path})"]


@pytest.mark.parametrize("name", ["TYPELESS_", "TYPELESS_PORTS", "typeless_port", "TYPELESS_HOST_"])
def test_a_variable_that_names_no_setting_is_an_error(name: str, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert set(problems()) == {name}


@pytest.mark.parametrize("name", ["TYPELESS_SERVER", "TYPELESS_API_KEY", "TYPELESS_API_KEY_FILE"])
def test_variables_of_the_client_are_not_the_servers(name: str, monkeypatch):
    monkeypatch.setenv(name, "x")
    assert load().settings.model_dump() == Settings().model_dump()


def test_model_directories_can_be_named_on_one_line(monkeypatch):
    monkeypatch.setenv("TYPELESS_MODEL_DIRS", "calls=/models/calls, notes=~/notes")
    assert load().settings.model_dirs == {"calls": Path("/models/calls"), "notes": Path("~/notes").expanduser()}


@pytest.mark.parametrize("text", ["calls", "=x", "calls=", "calls=/a,,notes"])
def test_model_directories_that_make_no_sense_are_refused(text: str, monkeypatch):
    monkeypatch.setenv("TYPELESS_MODEL_DIRS", text)
    assert "NAME=DIRECTORY" in problems()["TYPELESS_MODEL_DIRS"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536),
        ("port", -1),
        ("model", ""),
        ("device", "tpu"),
        ("beam_size", 0),
        ("max_message_bytes", 1),
        ("max_audio_s", 0),
        ("max_concurrent_calls", 0),
        ("decode_threads", 0),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object):
    assert set(problems(flags={name: value})) == {"--" + name.replace("_", "-")}


# ---- groups and old names -----------------------------------------------------------------------------------------


def test_every_setting_is_in_one_group():
    grouped = [name for group in GROUPS.values() for name in group.model_fields]
    assert sorted(grouped) == sorted(Settings.model_fields)
    assert not set(GROUPS) & set(Settings.model_fields)


def test_a_file_may_have_a_table_for_each_group(tmp_path: Path):
    path = write(tmp_path, 'log_level = "debug"\n[server]\nport = 7000\n[engine.model_dirs]\ncalls = "/models/calls"\n')
    loaded = load(file=path)
    assert (loaded.settings.log_level, loaded.settings.port) == ("debug", 7000)
    assert loaded.settings.model_dirs == {"calls": Path("/models/calls")}
    assert (loaded.origins["port"], loaded.warnings) == ("file", [])


def test_problems_in_a_table_are_reported_with_its_name(tmp_path: Path):
    path = write(tmp_path, "port = 1\n[server]\nport = 2\nprot = 3\nbeam_size = 4\ndrain_timeout_s = -1\n")
    found = problems(file=path)
    assert found.pop(f"server.drain_timeout_s ({path})").startswith("Input should be")
    assert found == {
        f"server.port ({path})": f"port ({path}) already sets port",
        f"server.prot ({path})": "no setting has this name; did you mean port?",
        f"server.beam_size ({path})": "belongs to the table [engine]",
    }


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_old_name_works_with_a_warning(old: str, monkeypatch, tmp_path: Path):
    new = RENAMED[old]
    value = {"redis_fallback": "refuse", "stream_file_chunks": 7}[new]
    works = f"is an old name that still works; the setting is now called {new}."
    file = write(tmp_path, f"[{group_of(new)}]\n{old} = {value!r}\n")
    loaded = load(file=file)
    assert getattr(loaded.settings, new) == value
    assert loaded.warnings == [f"{group_of(new)}.{old} ({file}) {works}"]
    variable = f"TYPELESS_{old.upper()}"
    monkeypatch.setenv(variable, str(value))
    loaded = load()
    assert (getattr(loaded.settings, new), loaded.origins[new]) == (value, "environment")
    assert loaded.warnings == [f"{variable} {works}"]
    monkeypatch.setenv(f"TYPELESS_{new.upper()}", str(value))
    assert problems() == {variable: f"TYPELESS_{new.upper()} already sets {new}"}


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path):
    path = tmp_path / "typeless.toml"
    path.write_bytes(b'model = "\xff"')
    assert "is not TOML" in problems(file=path)["config"]


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_every_setting_says_what_it_means():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


# ---- keys and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"require_auth": True}, "require_auth"),
        ({"api_keys": "a"}, "api_keys"),
        ({"admin_keys": "a"}, "admin_keys"),
        ({"auth_enabled": True, "api_keys": "same", "admin_keys": "other,same"}, "admin_keys"),
        ({"jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks_url": "https://i"}, "jwt_issuer"),
        ({"auth_enabled": True, "jwt_issuer": "i", "jwt_jwks_url": "https://i"}, "jwt_audience"),
        ({"auth_enabled": True, "jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks_url": "file:///i"}, "jwt_jwks_url"),
        ({"tls_cert_file": "c"}, "tls_key_file"),
        ({"tls_key_file": "k"}, "tls_key_file"),
        ({"tls_client_ca_file": "a"}, "tls_client_ca_file"),
        ({"trusted_proxies": "10.0.0.0/8,proxy"}, "trusted_proxies"),
        ({"open_services": "health,everything"}, "open_services"),
        ({"rate_limit_jobs": "often"}, "rate_limit_jobs"),
        ({"database_url": "mysql://h/d"}, "database_url"),
        ({"redis_url": "http://h"}, "redis_url"),
        ({"redis_url": "localhost:6379"}, "redis_url"),
    ],
)
def test_settings_that_do_not_fit_together_are_errors(given: dict[str, object], field: str):
    found = problems(flags=given)
    assert {name.lstrip("-").replace("-", "_") for name in found} == {field}


def test_a_secret_is_in_no_error_and_in_nothing_that_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_API_KEYS", "a-secret, another-secret")
    assert "secret" not in str(problems())
    settings = Settings(
        auth_enabled=True, redis_url="redis://:a-secret@h/0", database_url="postgresql://u:a-secret@h/d"
    )
    assert [key.get_secret_value() for key in settings.api_keys] == ["a-secret", "another-secret"]
    assert "secret" not in f"{settings!r} {settings} {public(settings)}"
    assert public(settings)["api_keys"] is None
    assert public(Settings(api_keys=""))["api_keys"] == []


def test_a_path_that_is_no_text_can_be_shown():
    shown = public(Settings(data_dir=os.fsdecode(b"/srv/caf\xe9")))
    assert shown["data_dir"] == "/srv/caf\\xe9"


def test_a_server_for_one_command_is_open_to_it_alone():
    settings = Settings(auth_enabled=True, require_auth=True, tls_cert_file="c", tls_key_file="k", metrics_port=9)
    mine = private(settings)
    assert [mine.auth_enabled, mine.require_auth, mine.rate_limit_enabled] == [False] * 3
    assert (mine.tls_cert_file, mine.metrics_port) == (None, None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), (" 24h ", 86_400.0), ("7d", 604_800.0)]
)
def test_a_time_may_have_a_unit(text: str, seconds: float, monkeypatch):
    monkeypatch.setenv("TYPELESS_JOB_TTL", text)
    assert load().settings.job_ttl == seconds


def test_a_problem_between_two_settings_has_no_words_of_pydantic(monkeypatch):
    monkeypatch.setenv("TYPELESS_TLS_CERT_FILE", "cert.pem")
    with pytest.raises(InvalidInput) as caught:
        load()
    assert caught.value.reason == "CONFIG_INVALID"
    assert str(caught.value) == "tls_key_file: tls_cert_file and tls_key_file must be set together"


@pytest.mark.parametrize("text", ["", "soon", "5 weeks", "-1h", "1e9d"])
def test_a_time_that_makes_no_sense_is_refused(text: str, monkeypatch):
    monkeypatch.setenv("TYPELESS_JOB_TTL", text)
    with pytest.raises(InvalidInput) as caught:
        load()
    assert caught.value.violations[0].field == "TYPELESS_JOB_TTL"


def test_prefixes_can_be_named_on_one_line(monkeypatch):
    monkeypatch.setenv("TYPELESS_AUDIO_URI_PREFIXES", "file:///srv/audio/, https://media.example.com/")
    assert load().settings.audio_uri_prefixes == ["file:///srv/audio/", "https://media.example.com/"]


def test_the_databases_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("TYPELESS_DATABASE_URL", "postgresql://u:hunter2@db/x")
    settings = load().settings
    assert "hunter2" not in repr(settings) + str(settings.model_dump(mode="json"))
    assert settings.database_url.get_secret_value().endswith("hunter2@db/x")


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("storage_url", "s3://KEY:SECRET@store.example/calls", "s3://***@store.example/calls"),
        ("jwt_jwks_url", "https://me:pw@id.example/jwks", "https://***@id.example/jwks"),
        ("audio_uri_prefixes", "https://u:p@a.example/,file:///srv/", ["https://***@a.example/", "file:///srv/"]),
        ("storage_url", "sftp://u:p@ss@host/calls", "sftp://***@host/calls"),
        ("storage_url", "s3://K:SE/CRET@host/calls", "s3://***@host/calls"),
        ("storage_url", "s3://K:S@E/CRET@host", "s3://***@host"),
        ("storage_url", "simplecache::s3://K:S@host", "simplecache::s3://***@host"),
        ("storage_url", "s3://bucket/a@b", "s3://bucket/a@b"),
        ("storage_url", "s3://host:9000/calls", "s3://host:9000/calls"),
    ],
)
def test_of_a_url_the_user_is_not_shown(name: str, given: str, shown: object):
    jwt = {"auth_enabled": True, "jwt_issuer": "i", "jwt_audience": "a"} if name.startswith("jwt") else {}
    assert public(Settings(**jwt | {name: given}))[name] == shown


SECRET_TEXTS = {
    "api_keys": "a-key,b-key",
    "admin_keys": "a-key\nb-key",
    "database_url": "postgresql://u:p@h/d",
    "engine_key": "a-key-of-more-than-20-characters",
    "redis_url": "redis://:p@h/0",
    "storage_url": "s3://KEY:p@h/calls",
    "jwt_jwks_url": "https://u:p@h/jwks.json",
    "audio_uri_prefixes": "https://u:p@h/calls/",
}


def test_every_secret_may_come_from_a_file():
    assert set(SECRET_TEXTS) == SECRETS
    kept = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert kept <= SECRETS
    assert {name for name in Settings.model_fields if name.endswith("_url")} <= SECRETS


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no end", "line end", "Windows"])
@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_in_a_file_is_as_one_in_a_variable(name: str, end: str, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TYPELESS_AUTH_ENABLED", "true")
    if name == "jwt_jwks_url":
        monkeypatch.setenv("TYPELESS_JWT_ISSUER", "i")
        monkeypatch.setenv("TYPELESS_JWT_AUDIENCE", "a")
    monkeypatch.setenv(f"TYPELESS_{name.upper()}", SECRET_TEXTS[name].replace("\n", ","))
    plain = load().settings
    monkeypatch.setenv(f"TYPELESS_{name.upper()}", "")  # as a compose file sets what its own environment lacks
    file = tmp_path / "secret"
    file.write_text(SECRET_TEXTS[name] + end, encoding="utf-8", newline="")
    monkeypatch.setenv(f"TYPELESS_{name.upper()}_FILE", str(file))
    loaded = load(file=write(tmp_path, f'{name} = "of the settings file"'))
    assert getattr(loaded.settings, name) == getattr(plain, name)
    assert loaded.origins[name] == "environment"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff-secret", "it is not UTF-8 text"),
        (b"-secret" * 200_000, "more than 1048576 bytes"),
    ],
    ids=["missing", "empty", "blank", "binary", "endless"],
)
def test_a_file_that_holds_no_secret_is_an_error_that_names_it(
    content: bytes | None, why: str, monkeypatch, tmp_path: Path
):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("TYPELESS_DATABASE_URL_FILE", str(file))
    found = problems()["TYPELESS_DATABASE_URL_FILE"]
    assert found.startswith(f"{file} cannot be used: ")
    assert why in found
    assert "secret" not in found


def test_a_secret_in_a_variable_and_in_a_file_is_an_error(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TYPELESS_REDIS_URL", "redis://h")
    monkeypatch.setenv("TYPELESS_REDIS_URL_FILE", str(tmp_path / "missing"))
    assert problems() == {"TYPELESS_REDIS_URL_FILE": "TYPELESS_REDIS_URL is set too; set only one of them"}


def test_an_invalid_secret_is_reported_under_its_file_without_its_value(monkeypatch, tmp_path: Path):
    file = tmp_path / "url"
    file.write_text("mysql://u:a-secret@h/d", "utf-8")
    monkeypatch.setenv("TYPELESS_DATABASE_URL_FILE", str(file))
    monkeypatch.setenv("TYPELESS_PORT", "many")
    found = problems()
    assert set(found) == {"TYPELESS_DATABASE_URL_FILE", "TYPELESS_PORT"}
    assert "secret" not in str(found)


@pytest.mark.parametrize("name", ["TYPELESS_PORT_FILE", "TYPELESS_MAX_API_KEYS_FILE", "TYPELESS_DATABASE_URLS_FILE"])
def test_a_setting_that_is_no_secret_is_not_read_from_a_file(name: str, monkeypatch):
    monkeypatch.setenv(name, "/run/secrets/x")
    assert set(problems()) == {name}
