from __future__ import annotations

from pathlib import Path

import pytest

from typeless_grpc.client_channel import host_of, is_on_this_machine, key_to_send, proxy_variable, target_to_call


@pytest.mark.parametrize("text", ["key", "key\n", "key\r\n", "\t key \n\n"])
def test_white_space_around_a_key_is_not_sent(text: str, monkeypatch: pytest.MonkeyPatch):
    assert key_to_send(text) == "key"
    monkeypatch.setenv("TYPELESS_API_KEY", text)
    assert key_to_send(None) == "key"


@pytest.mark.parametrize(
    "text", ["se\ncret", "se\rcret", "secr\x00et", "secrét", "\ufeffsecret", "se\x7fcret", "se\tcret"]
)
def test_a_key_that_no_header_can_carry_is_an_error_that_does_not_show_it(text: str):
    with pytest.raises(ValueError, match="the API key has a line end, or a character beyond ASCII") as caught:
        key_to_send(text)
    assert "ecr" not in str(caught.value)


def test_no_key_is_a_key_that_is_not_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_API_KEY", "other")
    assert key_to_send("") == ""


def test_the_environment_may_name_a_file_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "key").write_text("secret\n", "utf-8")
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
    [(None, "No such file"), (b" \n", "no key in"), (b"\xff", "not text"), (bytes(100_000), "no key in")],
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
def test_what_is_no_target_is_an_error_that_says_what_one_is(target: str):
    with pytest.raises(ValueError, match="HOST:PORT"):
        target_to_call(target)


HERE = """
localhost localhost:1 LocalHost.:1 app.localhost:1 127.0.0.1:1 127.1.2.3 0.0.0.0:1 [::1]:1 ::1 [::]:1
[::ffff:127.0.0.1]:1 ipv4:127.0.0.1:1 ipv6:[::1]:1 dns:localhost:1 dns:///localhost:1 dns://8.8.8.8/localhost:1
unix:/run/a unix:///run/a
"""
ELSEWHERE = """
a.example:1 localhost.example:1 127.example:1 10.0.0.1:1 [2001:db8::1]:1 dns:///a.example:1 ipv4:10.0.0.1:1
"""


@pytest.mark.parametrize("target", HERE.split())
def test_what_is_on_this_machine_needs_no_network(target: str):
    assert is_on_this_machine(target)


@pytest.mark.parametrize("target", ELSEWHERE.split())
def test_all_else_needs_one(target: str):
    assert not is_on_this_machine(target)


def test_the_host_of_a_target_is_what_no_proxy_takes():
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
        ({"grpc_proxy": "http://gone:31"}, "errors resolving gone:31: [field:hostname]", "grpc_proxy"),
        ({"http_proxy": "http://proxy:312"}, REFUSED, ""),
        ({"http_proxy": "proxy:many"}, REFUSED, ""),
        ({"http_proxy": ""}, REFUSED, ""),
        ({}, REFUSED, ""),
    ],
)
def test_a_failure_at_a_proxy_is_told_by_its_address(
    variables: dict[str, str], details: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert proxy_variable(details) == name
