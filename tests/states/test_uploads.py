"""Uploads beside a few byte strings: parts, calls at the same time, sizes, checksums, expiry, jobs that need them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, multiple, precondition, rule

from tests.contract.conftest import Stores, done
from tests.states.databases import Folder
from tests.states.machines import CountedMachine, check, finds
from typeless_grpc.errors import InvalidInput, NotFound, RateLimited, WrongState
from typeless_grpc.jobs.job import Job
from typeless_grpc.jobs.store import Upload
from typeless_grpc.stores.jobs import STORING_S
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions

MAX_BYTES, MAX_OWNER_BYTES, MAX_UNFINISHED, TTL_S = 40, 100, 3, 1024.0
LIMITS = {
    "max_bytes": MAX_BYTES,
    "max_owner_bytes": MAX_OWNER_BYTES,
    "max_unfinished": MAX_UNFINISHED,
    "ttl_s": TTL_S,
}
N_EXAMPLES = 40
DATA = st.lists(st.binary(min_size=1, max_size=15), min_size=1, max_size=3)


@dataclass
class KnownUpload:
    """The reference. jobs: those that will read it. n_ended: other jobs that name it. is_swept: deleted for good."""

    data: bytes
    expire_s: float
    is_complete: bool = False
    n_parts: int = 0
    jobs: list[Job] = field(default_factory=list)
    n_ended: int = 0
    is_swept: bool = False


class Uploads(CountedMachine):
    """One owner's uploads. seen: what calls have read of an upload; each may go on from there later than another."""

    seen = Bundle("seen")

    def __init__(self, folder: Folder, stores: Stores) -> None:
        super().__init__()
        self.folder, self.stores, self.owner = folder, stores, folder.owner()
        self.known: dict[str, KnownUpload] = {}

    @property
    def now_s(self) -> float:
        return self.folder.database.clock.now_s()

    def is_there(self, known: KnownUpload) -> bool:
        return known.expire_s > self.now_s or bool(known.jobs)

    @initialize(target=seen, data=DATA)
    def begin(self, data: list[bytes]) -> object:
        sent = self.send(data)
        if isinstance(sent, Upload):
            self.submit_job(sent)
        return sent

    @rule(target=seen)
    def create(self) -> object:
        n_unfinished = sum(not one.is_complete and one.expire_s > self.now_s for one in self.known.values())
        try:
            upload = self.stores.uploads.create(self.owner, "a.wav")
        except RateLimited:
            assert n_unfinished >= MAX_UNFINISHED
            return multiple()
        assert n_unfinished < MAX_UNFINISHED
        self.known[upload.upload_id] = KnownUpload(b"", self.now_s + TTL_S)
        return upload

    @rule(target=seen, data=DATA)
    def send(self, data: list[bytes]) -> object:
        created = self.create()
        sent = self.append(created, data) if isinstance(created, Upload) else created
        if isinstance(sent, Upload):
            self.complete(sent)
        return sent

    @rule(data=DATA)
    def two_calls_append(self, data: list[bytes]) -> None:
        created = self.create()
        if isinstance(created, Upload):
            self.append(created, data)
            self.append(created, data)

    @rule(target=seen, before=seen)
    def look(self, before: Upload) -> object:
        known = self.known[before.upload_id]
        try:
            upload = self.stores.uploads.get(before.upload_id, self.owner)
        except NotFound:
            assert not self.is_there(known)
            return multiple()
        assert self.is_there(known)
        assert (upload.size_bytes, upload.is_complete) == (len(known.data), known.is_complete)
        with pytest.raises(NotFound):
            self.stores.uploads.get(before.upload_id, "another")
        return upload

    @rule(target=seen, before=seen, data=DATA)
    def append(self, before: Upload, data: list[bytes]) -> object:
        known, more = self.known[before.upload_id], b"".join(data)
        is_swept = known.is_swept
        n_held = sum(len(one.data) for one in self.known.values() if not one.is_swept)
        try:
            grown = self.stores.uploads.append(before, data)
        except InvalidInput:
            assert before.size_bytes + len(more) > MAX_BYTES
        except RateLimited:
            assert n_held + len(more) > MAX_OWNER_BYTES
        except WrongState:
            assert is_swept or known.is_complete or before.size_bytes != len(known.data)
        else:
            assert before.size_bytes + len(more) <= MAX_BYTES
            assert n_held + len(more) <= MAX_OWNER_BYTES
            assert not is_swept
            assert not known.is_complete
            assert before.size_bytes == len(known.data)
            known.data += more
            known.n_parts += 1
            assert grown.size_bytes == len(known.data)
            return grown
        return multiple()

    @rule(before=seen)
    def complete(self, before: Upload) -> None:
        known = self.known[before.upload_id]
        is_right = not (known.is_swept or known.is_complete or before.size_bytes != len(known.data))
        try:
            sha256 = self.stores.uploads.digest(before)  # of what is there, which may be more than this call has seen
            self.stores.uploads.complete(before, sha256)
        except (WrongState, NotFound):
            assert not is_right
        else:
            assert is_right
            known.is_complete, known.expire_s = True, self.now_s + TTL_S
            assert self.stores.uploads.sha256(before.upload_id, self.owner) == hashlib.sha256(known.data).digest()

    @rule(before=seen)
    def read(self, before: Upload) -> None:
        known = self.known[before.upload_id]
        try:
            with self.stores.uploads.open(before.upload_id, self.owner) as file:
                data = file.read()
        except WrongState:
            assert self.is_there(known)
            assert not known.is_complete
        except NotFound:
            assert not self.is_there(known)
        else:
            assert known.is_complete
            assert self.is_there(known)
            assert data == known.data

    @rule(before=seen)
    def submit_job(self, before: Upload) -> None:
        known = self.known[before.upload_id]
        is_fresh = known.expire_s > self.now_s
        values = {"owner": self.owner, "caller": self.owner, "uploads_of": self.owner, "content": None}
        try:
            job = self.stores.submit(uri=before.uri, **values)
        except NotFound:
            assert not is_fresh
        except WrongState:
            assert is_fresh
            assert not known.is_complete
        else:
            assert is_fresh
            assert known.is_complete
            known.jobs.append(job)
            known.expire_s = max(known.expire_s, self.now_s + STORING_S)

    @precondition(lambda self: any(one.jobs for one in self.known.values()))
    @rule(data=st.data(), is_deleted=st.booleans())
    def end_job(self, data: st.DataObject, is_deleted: bool) -> None:
        known = data.draw(st.sampled_from([one for one in self.known.values() if one.jobs]))
        job = known.jobs.pop()
        if not is_deleted:
            known.n_ended += 1
            done(self.stores, job)
            return
        self.stores.jobs.cancel(job.job_id, self.owner)
        self.stores.jobs.delete(job.job_id, self.owner)
        if not known.jobs and not known.n_ended:
            known.expire_s = 0.0  # nothing needs it any more

    @rule(seconds=st.sampled_from([1.0, TTL_S / 4, TTL_S + 1]))
    def wait(self, seconds: float) -> None:
        self.folder.database.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.stores.uploads.delete_expired()
        for upload_id, known in self.known.items():
            known.is_swept |= not self.is_there(known)
            n_files = len(self.stores.files.names(f"uploads/{upload_id}"))
            assert n_files == (0 if known.is_swept else known.n_parts)


class TakesAnyOffset(SqlUploadStore):
    def append(self, upload: Upload, data: Sequence[bytes]) -> Upload:
        try:
            return super().append(self.get(upload.upload_id, None), data)
        except NotFound:
            return super().append(upload, data)


class LeavesRefusedParts(SqlUploadStore):
    def append(self, upload: Upload, data: Sequence[bytes]) -> Upload:
        try:
            return super().append(upload, data)
        except WrongState:
            self._files.write(f"uploads/{upload.upload_id}/left", data)
            raise


class ForgetsJobs(SqlUploadStore):
    def _needed(self) -> sa.ColumnElement[bool]:
        return sa.false()


def machine(folder: Folder, store: type[SqlUploadStore] = SqlUploadStore) -> Callable[[], Uploads]:
    stores = Stores.over(folder.database, folder.files, uploads=LIMITS)
    uploads = store(folder.database, folder.files, UploadOptions(**LIMITS))
    return lambda: Uploads(folder, replace(stores, uploads=uploads))


def test_uploads_are_what_was_sent(folder: Folder):
    check(machine(folder), N_EXAMPLES)


@pytest.mark.parametrize("fault", [TakesAnyOffset, LeavesRefusedParts, ForgetsJobs])
def test_a_planted_fault_of_uploads_is_found(folder: Folder, fault: type[SqlUploadStore]):
    finds(machine(folder, fault), N_EXAMPLES)
