"""No caller reaches what belongs to another: every field of every method that names something, for pairs of callers.

A stranger that names what another caller has gets the answer that it gets for what nobody has, byte for byte.
"""

from __future__ import annotations

import base64
import json
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from tests.harness import ServedJobs, pcm, serving_jobs
from tests.service.access import ADMIN, KEYS, USER, methods, unwritten
from tests.service.naming import NAMES, NAMING, PLAIN, Named, leaves
from tests.service.test_jobs import PENDING, submission
from tests.service.test_stream import config
from tests.service.test_uploads import chunk, finish, header
from typeless_grpc.engine.scripted import ScriptedEngine
from typeless_grpc.pb.v1 import admin_pb2, admin_pb2_grpc, jobs_pb2, uploads_pb2
from typeless_grpc.streaming.resume import new_session_id

OTHER = "the-key-of-another-user"
Metadata = tuple[tuple[str, str], ...]
CALLERS: Mapping[str, Metadata] = {
    "a user": (("x-api-key", USER),),
    "another user": (("x-api-key", OTHER),),
    "an admin": (("authorization", f"Bearer {ADMIN}"),),
    "nobody": (("x-forwarded-for", "192.0.2.1"),),
    "nobody, from elsewhere": (("x-forwarded-for", "192.0.2.2"),),
}
# Owner and stranger. An admin may use the jobs and uploads of all, and is a stranger to sessions only.
PAIRS = [
    ("a user", "another user"),
    ("a user", "nobody"),
    ("an admin", "a user"),
    ("an admin", "nobody"),
    ("nobody", "nobody, from elsewhere"),
    ("nobody", "a user"),
]


GOOGLE_RAW = {"encoding": 1, "sampleRateHertz": 16000}
# What a request needs besides, to get as far as the field in question.
BESIDES: Mapping[str, dict[str, Any]] = {
    "SubmitJob": {
        "audio": {"content": base64.b64encode(pcm()).decode(), "format": {"encoding": 1, "sampleRateHertz": 16000}}
    },
    "WaitOperation": {"timeout": "0.1s"},
    "/google.cloud.speech.v1.Speech/": {"config": GOOGLE_RAW},
    "/google.cloud.speech.v1p1beta1.Speech/": {"config": GOOGLE_RAW},
    "/google.cloud.speech.v2.Speech/": {
        "recognizer": "projects/p/locations/l/recognizers/_",
        "config": {"explicitDecodingConfig": GOOGLE_RAW},
    },
    "UpdateRateLimit": {"rateLimit": {"group": "jobs", "amount": "1", "periodSeconds": "1"}},
}


def test_every_field_of_every_request_is_classified():
    found = {name for described in methods().values() for _, name in leaves(described.input_type)}
    assert found == set(NAMING) | PLAIN
    assert not set(NAMING) & PLAIN


@dataclass(frozen=True)
class Belongings:
    """What a caller has, by what it is; and values of the same form that nobody has."""

    known: Mapping[Named, list[Any]]
    unknown: Mapping[Named, Any]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedJobs]:
    models = [service for service in unwritten() if service.NAME.endswith("ModelService")]
    keys = KEYS | {"api_keys": f"{USER},{OTHER}", "trusted_proxies": "127.0.0.1"}
    async with serving_jobs(ScriptedEngine(), tmp_path, more=models, max_concurrent_jobs=0, **keys) as running:
        yield running


async def belongings(served: ServedJobs, caller: str) -> Belongings:
    """Have the caller submit jobs, upload audio, and open a stream."""
    who = CALLERS[caller]
    named = f"the request of {caller}"
    jobs = [
        (await served.jobs.SubmitJob(submission(labels={"of": caller}, **fields), metadata=who)).job
        for fields in ({"request_id": named}, {}, {})
    ]
    await served.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=jobs[-1].job_id), metadata=who)
    uploads = [
        (await served.uploads.UploadAudio(iter(requests), metadata=who)).upload
        for requests in ([header()], [header(), chunk(pcm()), finish()])
    ]
    stream = served.transcription.StreamTranscribe(metadata=who)
    await stream.write(config())
    session = (await stream.read()).started.session_id
    stream.cancel()
    listed = jobs_pb2.ListJobsRequest(page_size=1)
    page = (await served.jobs.ListJobs(listed, metadata=who)).next_page_token
    as_admin = CALLERS["an admin"]
    keys = await admin(served).ListApiKeys(admin_pb2.ListApiKeysRequest(page_size=1), metadata=as_admin)
    usage = base64.urlsafe_b64encode(b"2026-01-01/key:one").decode()
    known: dict[Named, list[Any]] = {
        Named.JOB: [job.job_id for job in jobs],
        Named.UPLOAD: [upload.upload_id for upload in uploads],
        Named.SOURCE: [upload.uri for upload in uploads],
        Named.SESSION: [session],
        Named.REQUEST: [named],
        Named.LABELS: [{"of": caller}],
        Named.JOBS_PAGE: [page] if page else [],
        Named.KEY: [keys.api_keys[0].key_id],
        Named.KEYS_PAGE: [keys.next_page_token],
        Named.USAGE_PAGE: [usage],
    }
    nobodys = secrets.token_hex(16)
    unknown: dict[Named, Any] = {
        Named.JOB: nobodys,
        Named.UPLOAD: nobodys,
        Named.SOURCE: f"upload://{nobodys}",
        Named.SESSION: new_session_id(),
        Named.REQUEST: nobodys,
        Named.LABELS: {"of": nobodys},
        Named.JOBS_PAGE: another_token(page) if page else "",
        Named.KEY: nobodys[: len(keys.api_keys[0].key_id)],
        Named.KEYS_PAGE: "99",
        Named.USAGE_PAGE: base64.urlsafe_b64encode(b"2026-01-01/key:two").decode(),
    }
    return Belongings(known, unknown)


def another_token(token: str) -> str:
    """A page token of the same form, for a list that nobody requested."""
    create_s, job_id, _ = json.loads(base64.urlsafe_b64decode(token))
    return base64.urlsafe_b64encode(json.dumps([create_s, job_id, "0" * 16]).encode()).decode()


def admin(served: ServedJobs) -> admin_pb2_grpc.AdminServiceStub:
    return admin_pb2_grpc.AdminServiceStub(served.channel)


def request_naming(method: str, path: tuple[str, ...], value: Any) -> Message:
    """A request that is in order, and whose field at path has this value."""
    described = methods()[method]
    besides = BESIDES.get(described.name) or BESIDES.get(method.removesuffix(described.name), {})
    fields: dict[str, Any] = json.loads(json.dumps(besides))
    here, kind = fields, described.input_type
    for name in path[:-1]:
        field = kind.fields_by_name[name]
        inner: dict[str, Any] = here.get(name) or {}
        here[name] = [inner] if field.is_repeated else inner
        here, kind = inner, field.message_type
    here[path[-1]] = value
    if path[-1] == "uri":
        here.pop("content", None)
    return ParseDict(fields, GetMessageClass(described.input_type)())


async def answer(served: ServedJobs, who: Metadata, method: str, message: Message) -> tuple[Any, ...]:
    """How the call ends: its code, message and details; or its first response, without times."""
    described = methods()[method]
    call = stub(served, described, method)
    data = message.SerializeToString()

    async def requests() -> Any:
        yield data

    sent = call(requests() if described.client_streaming else data, metadata=who, timeout=10)
    try:
        if described.server_streaming:
            response = await anext(aiter(sent))
            sent.cancel()
        else:
            response = await sent
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        details = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
        return error.code(), error.details(), without_request_id(details)
    return grpc.StatusCode.OK, timeless(GetMessageClass(described.output_type).FromString(response))


def stub(served: ServedJobs, described: MethodDescriptor, method: str) -> Any:
    shape = ("stream" if described.client_streaming else "unary", "stream" if described.server_streaming else "unary")
    return getattr(served.channel, "_".join(shape))(method)


def without_request_id(status: status_pb2.Status) -> list[str]:
    return [str(detail) for detail in status.details if not detail.type_url.endswith("RequestInfo")]


def timeless(message: Message) -> str:
    """A response without what differs between any two calls: times, and the id of a new job."""
    for field, value in message.ListFields():
        inner = field.message_type
        is_time = inner is not None and inner.full_name.startswith("google.protobuf.")
        if is_time or field.name in ("job_id", "realtime_factor"):
            message.ClearField(field.name)
        elif inner is not None and not inner.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                timeless(one)
    return str(message)


def unnamed(found: tuple[Any, ...], value: Any) -> str:
    """An answer without the value that its request named."""
    texts = value.values() if isinstance(value, dict) else [value, str(value).removeprefix("upload://")]
    shown = repr(found)
    for text in map(str, texts):
        if len(text) > 2:  # a number of a page is in none of the answers, though its digits may be
            shown = shown.replace(text, "…").replace(text[:64], "…")
    return shown


async def is_answered_otherwise(
    served: ServedJobs, who: Metadata, method: str, path: tuple[str, ...], value: Any, nobodys: Any
) -> bool:
    """Whether a caller that names value gets another answer than for what nobody has."""
    found = await answer(served, who, method, request_naming(method, path, value))
    expected = await answer(served, who, method, request_naming(method, path, nobodys))
    return unnamed(found, value) != unnamed(expected, nobodys)


@pytest.mark.parametrize(("owner", "stranger"), PAIRS, ids=[f"{a}, {b}" for a, b in PAIRS])
async def test_data_of_another_owner_is_not_found(served: ServedJobs, owner: str, stranger: str):
    has = await belongings(served, owner)
    who = CALLERS[stranger]
    for method, path, what in NAMES:
        for value in has.known[what]:
            assert not await is_answered_otherwise(served, who, method, path, value, has.unknown[what]), (
                method,
                path,
                value,
            )
    await assert_untouched(served, owner, has)


async def assert_untouched(served: ServedJobs, owner: str, has: Belongings) -> None:
    who = CALLERS[owner]
    for job_id in has.known[Named.JOB][:2]:
        found = await served.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id), metadata=who)
        assert (found.job.state, dict(found.job.labels)) == (PENDING, {"of": owner})
    for upload_id, is_complete in zip(has.known[Named.UPLOAD], (False, True), strict=True):
        kept = await served.uploads.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload_id), metadata=who)
        assert kept.upload.complete == is_complete
    again = served.transcription.StreamTranscribe(metadata=who)
    await again.write(config(format=None, resume_session_id=has.known[Named.SESSION][0]))
    assert (await again.read()).started.resumed
    again.cancel()


async def test_an_owner_reaches_all_that_it_has(served: ServedJobs):
    """So the comparison above compares something: each of these values is good for its owner."""
    has = await belongings(served, "a user")
    who = CALLERS["a user"]
    of_users = [row for row in NAMES if "AdminService" not in row[0]]
    differ = [
        (method, what)
        for method, path, what in sorted(of_users, key=lambda row: "Delete" in row[0])
        if [
            value
            for value in has.known[what]
            if await is_answered_otherwise(served, who, method, path, value, has.unknown[what])
        ]
    ]
    # The labels of a new job name nothing.
    assert {(method, what) for method, _, what in of_users} - set(differ) == {
        ("/typeless.v1.JobsService/SubmitJob", Named.LABELS)
    }


async def test_an_admin_reaches_jobs_and_uploads_of_all_but_not_their_sessions(served: ServedJobs):
    has = await belongings(served, "a user")
    who = CALLERS["an admin"]
    for method, path, what in NAMES:
        if what not in (Named.JOB, Named.UPLOAD, Named.SOURCE, Named.SESSION) or "Delete" in method:
            continue
        value = has.known[what][-1 if what in (Named.UPLOAD, Named.SOURCE) else 0]
        is_reached = await is_answered_otherwise(served, who, method, path, value, has.unknown[what])
        assert is_reached == (what is not Named.SESSION), method


async def test_the_same_request_id_of_two_callers_makes_two_jobs(served: ServedJobs):
    request = submission(request_id="one name")
    ids = [(await served.jobs.SubmitJob(request, metadata=CALLERS[who])).job.job_id for who in CALLERS]
    again = [(await served.jobs.SubmitJob(request, metadata=CALLERS[who])).job.job_id for who in CALLERS]
    assert len(set(ids)) == len(CALLERS)
    assert again == ids


@pytest.mark.parametrize("stranger", ["another user", "nobody"])
async def test_lists_and_counts_show_nothing_of_another(served: ServedJobs, stranger: str):
    who = CALLERS[stranger]

    async def seen() -> list[tuple[Any, ...]]:
        calls = [method for method in methods() if method.rpartition("/")[2].startswith(("List", "Get"))]
        return [await answer(served, who, method, GetMessageClass(methods()[method].input_type)()) for method in calls]

    before = await seen()
    await belongings(served, "a user")
    assert await seen() == before


async def test_a_stranger_learns_nothing_from_the_time_of_an_answer(served: ServedJobs):
    """Ids that exist and ids that do not take equally long, within the spread of the measurement."""
    has = await belongings(served, "a user")
    who = CALLERS["another user"]
    for method, path, what in NAMES:
        if what not in (Named.JOB, Named.UPLOAD, Named.SESSION):
            continue
        messages = [request_naming(method, path, one) for one in (has.known[what][0], has.unknown[what])]
        for _ in range(3):
            taken_s: list[list[float]] = [[], []]
            for i in range(40):
                for which in (i % 2, 1 - i % 2):
                    began_s = time.perf_counter()
                    await answer(served, who, method, messages[which])
                    taken_s[which].append(time.perf_counter() - began_s)
            known_s, unknown_s = map(statistics.median, taken_s)
            quartiles_s = statistics.quantiles(taken_s[1])
            if abs(known_s - unknown_s) < quartiles_s[2] - quartiles_s[0]:
                break
        else:
            pytest.fail(f"{method}: {known_s * 1e3:.2f} ms if it exists, {unknown_s * 1e3:.2f} ms if it does not")
