"""Page tokens, through the stores that read them. No caller's token is good for another, or for other filters."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.contract.conftest import Stores
from tests.fuzz.inputs import Source
from typeless_grpc.errors import InvalidInput
from typeless_grpc.jobs.job import State
from typeless_grpc.jobs.store import JobQuery
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.files import Files

MAX_BYTES = 1024
OWNERS = ("ann", "bob", None)
N_JOBS = 3


@cache
def stores() -> Stores:
    directory = Path(tempfile.mkdtemp(prefix="typeless-fuzz-"))
    database = Database(sqlite_url(directory / "jobs.db"))
    database.create_tables()
    made = Stores.over(database, Files(str(directory / "files")))
    for owner in ("ann", "bob"):
        for _ in range(N_JOBS):
            made.submit(owner=owner, labels={"of": owner})
    return made


@cache
def tokens() -> dict[str, tuple[object, ...]]:
    """Real tokens, with the list that each is for."""
    found = {}
    for owner in OWNERS:
        for states in ((), (State.PENDING,)):
            query = JobQuery(owner, 1, "", list(states), {})
            found[stores().jobs.page(query).next_page_token] = (owner, states)
    return found


def seeds() -> Iterator[bytes]:
    for index in range(len(tokens())):
        for owner in range(len(OWNERS)):
            yield bytes([owner, index % 2, 0, index])
            yield bytes([owner, 1, 1]) + base64.urlsafe_b64decode(list(tokens())[index])
    yield bytes([0, 0, 2]) + b'[1e999, "\xff", {}]'


def one(data: bytes) -> None:
    source = Source(data)
    owner = source.chosen(OWNERS)
    states = source.chosen(((), (State.PENDING,)))
    kind = source.number(3)
    if kind == 0:
        token = source.chosen(list(tokens()))
        rest = source.rest
        if rest:  # changed at one place
            at = rest[0] % len(token)
            token = token[:at] + rest[1:3].decode("latin-1") + token[at + 1 :]
    elif kind == 1:
        token = base64.urlsafe_b64encode(source.rest).decode()
    else:
        token = source.rest.decode("utf-8", "replace")
    if not token:
        return
    try:
        page = stores().jobs.page(JobQuery(owner, 2, token, list(states), {}))
    except InvalidInput as error:
        assert error.reason == "PAGE_TOKEN_INVALID", error
        assert tokens().get(token) != (owner, states), "a token is refused to its owner"
        return
    assert owner is None or all(job.owner == owner for job in page.jobs), "jobs of another"
    known = tokens().get(token)
    assert known is None or known == (owner, states), f"the token of {known} is good for {(owner, states)}"
