from __future__ import annotations

from pathlib import Path

import pytest

from typeless_grpc.client.channels import key_to_send
from typeless_grpc.client.target import host_of, is_on_this_machine, proxy_variable, target_to_call


@pytest.mark.parametrize("text", ["key", "key\n", "key\r\n", "\t key \n\n"])
def test_white_space_around_a_key_is_not_sent(text: str, monkeypatch: pytest.MonkeyPatch):
    assert key_to_send(text) == "key"
    monkeypatch.setenv("TYPELESS_API_KEY", text)
    assert key_to_send(None) == "key"


@pytest.mark.parametrize(
    "text", ["se\ncret", "se\rcret", "secr\x00et", "secrét", "\ufeffsecret", "se\x7fcret", "se\tcret"]
)
def test_a_key_that_no_header_can_carry_is_an_error_that_does_not_show_it(text: str):
    with pytest.raises(ValueError, match="the API key contains a line end, or a character that is not ASCII") as caught:
        key_to_send(text)
    assert "ecr" not in str(caught.value)


def test_an_empty_key_is_not_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_API_KEY", "other")
    assert key_to_send("") == ""


@pytest.mark.parametrize(
    "content",
    [b"secret\n", b"secret", b"\r\n secret\r\n", b"\xef\xbb\xbfsecret\r\n"],
    ids=["line", "bare", "CRLF", "BOM"],
)
def test_the_environment_may_name_a_file_with_the_key(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("TYPELESS_API_KEY_FILE", str(tmp_path / "key"))
    assert key_to_send(None) == "secret"
    assert key_to_send("given") == "given"
    monkeypatch.setenv("TYPELESS_API_KEY", "")  # as a compose file sets what its own environment lacks
    assert key_to_send(None) == "secret"
    monkeypatch.setenv("TYPELESS_API_KEY", "another")
    with pytest.raises(ValueError, match="both set"):
        key_to_send(None)


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b" \n", "contains no key"), (b"\xff", "not UTF-8"), (bytes(100_000), "contains no key")],
    ids=["missing", "empty", "binary", "endless"],
)
def test_a_file_without_a_key_is_an_error_that_names_it(
    content: bytes | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("TYPELESS_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ValueError, match=why) as caught:
        key_to_send(None)
    assert str(tmp_path / "key") in str(caught.value)


def test_white_space_around_a_target_is_no_part_of_it():
    assert target_to_call(" localhost:50051\n") == "localhost:50051"


@pytest.mark.parametrize("target", ["", " \n", "a b:1", "a\nb:1", "höst:1", "http://localhost:50051", "HTTPS://a:1"])
def test_an_invalid_target_is_an_error_that_shows_the_right_form(target: str):
    with pytest.raises(ValueError, match="HOST:PORT"):
        target_to_call(target)


@pytest.mark.parametrize("target", ["localhost:65536", "[::1]:99999", "dns:///a.example:70000"])
def test_a_port_that_cannot_exist_is_an_error(target: str):
    with pytest.raises(ValueError, match="65535"):
        target_to_call(target)
    assert target_to_call(target.replace(target.split(":")[-1], "65535"))


HERE = """
localhost localhost:1 LocalHost.:1 app.localhost:1 127.0.0.1:1 127.1.2.3 0.0.0.0:1 [::1]:1 ::1 [::]:1
[::ffff:127.0.0.1]:1 ipv4:127.0.0.1:1 ipv6:[::1]:1 dns:localhost:1 dns:///localhost:1 dns://8.8.8.8/localhost:1
unix:/run/a unix:///run/a
"""
ELSEWHERE = """
a.example:1 localhost.example:1 127.example:1 10.0.0.1:1 [2001:db8::1]:1 dns:///a.example:1 ipv4:10.0.0.1:1
"""


@pytest.mark.parametrize("target", HERE.split())
def test_these_targets_are_on_this_machine(target: str):
    assert is_on_this_machine(target)


@pytest.mark.parametrize("target", ELSEWHERE.split())
def test_these_targets_are_on_another_machine(target: str):
    assert not is_on_this_machine(target)


def test_the_host_is_read_from_every_form_of_a_target():
    assert [host_of(target) for target in ("a.example:1", "[2001:db8::1]:1", "dns:///a:1")] == [
        "a.example",
        "2001:db8::1",
        "a",
    ]


REFUSED = "last error: UNKNOWN: ipv4:10.1.1.1:3128: HTTP proxy returned response code 403"


@pytest.mark.parametrize(
    ("variables", "details", "name"),
    [
        ({"http_proxy": "http://proxy:3128"}, REFUSED, "http_proxy"),
        ({"http_proxy": "http://proxy:3128", "https_proxy": "http://me:secret@proxy:3128/"}, REFUSED, "https_proxy"),
        ({"grpc_proxy": "http://missing:31"}, "errors resolving missing:31: [field:hostname]", "grpc_proxy"),
        ({"http_proxy": "http://proxy:312"}, REFUSED, ""),
        ({"http_proxy": "proxy:many"}, REFUSED, ""),
        ({"http_proxy": ""}, REFUSED, ""),
        ({}, REFUSED, ""),
    ],
)
def test_a_failure_at_a_proxy_is_recognized_by_its_address(
    variables: dict[str, str], details: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert proxy_variable(details) == name
