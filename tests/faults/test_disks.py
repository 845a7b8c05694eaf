"""A disk that becomes read-only or stops answering loses nothing that was accepted, and stops no other calls."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.faults.conftest import PCM, Cluster, Node, check_whole, ended, submit, wait_until
from tests.faults.node import LIMIT_S, recording
from typeless_grpc.client import CallFailed, Client, Jobs, RetryPolicy
from typeless_grpc.stores.database import sqlite_url

pytestmark = pytest.mark.timeout(200)

MARGIN_S = 5.0  # for a busy machine


def command(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


class Disk:
    """An ext4 file system of 64 MB in a file."""

    def __init__(self, directory: Path) -> None:
        self.path, self._image = directory / "disk", directory / "image"
        self.path.mkdir()
        try:
            command("truncate", "-s", "64M", self._image)
            command("mkfs.ext4", "-q", self._image)
            command("mount", "-o", "loop,errors=remount-ro", self._image, self.path)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.geteuid() == 0:
                raise
            pytest.skip(f"only root can mount a disk: {error}")

    def fail(self) -> None:
        """Let the kernel find an error in it: it becomes read-only at once, under all open files."""
        device = os.stat(self.path).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test")

    def mend(self) -> None:
        """Mount it again in its place, as after fsck."""
        command("umount", "-l", self.path)
        command("mount", "-o", "loop,errors=remount-ro", self._image, self.path)

    def freeze(self) -> None:
        """Let each write wait until `thaw`."""
        command("fsfreeze", "-f", self.path)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "-u", self.path], capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.thaw()
    command("umount", "-l", made.path)


@pytest.fixture
def on_disk(disk: Disk, tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path, sqlite_url(disk.path / "jobs.db"))
    yield running
    disk.thaw()  # a process that waits for its disk cannot be killed
    running.stop()


def started(cluster: Cluster, disk: Disk) -> Node:
    return cluster.start(storage_url=str(disk.path / "files"))


def refusal(node: Node) -> tuple[str, float]:
    """Submit a job; return why it was refused, and after how many seconds."""
    began_s = time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel, pytest.raises(CallFailed) as caught:
        Jobs(channel, RetryPolicy(max_attempts=1)).submit(recording(99, 5), raw_format=PCM)
    return caught.value.reason, time.monotonic() - began_s


def check_transcribes(node: Node) -> None:
    began_s = time.monotonic()
    with Client(f"127.0.0.1:{node.port}") as client:
        assert client.transcribe(recording(5, 2), raw_format=PCM).transcript.segments[0].text == "5:0"
    assert time.monotonic() - began_s < MARGIN_S


def test_a_disk_that_stops_answering_holds_no_call_for_long(on_disk: Cluster, disk: Disk):
    node = started(on_disk, disk)
    ids = submit(node, range(1, 9))
    wait_until(lambda: on_disk.n_done() > 3)
    disk.freeze()
    with ThreadPoolExecutor(20) as pool:
        refused = [pool.submit(refusal, node) for _ in range(20)]
        check_transcribes(node)
        for one in refused:
            reason, waited_s = one.result()
            assert reason == "STORE_UNAVAILABLE"
            assert waited_s < LIMIT_S + MARGIN_S
    disk.thaw()
    began_s = time.monotonic()
    later = submit(node, range(11, 13))
    assert time.monotonic() - began_s < MARGIN_S
    for number, job in ended(node, ids | later).items():
        check_whole(job, number)


def test_a_disk_that_becomes_read_only_keeps_what_it_has(on_disk: Cluster, disk: Disk):
    node = started(on_disk, disk)
    done = submit(node, range(1, 3))
    before = ended(node, done)
    pending = submit(node, range(3, 9))
    disk.fail()
    reason, waited_s = refusal(node)
    assert reason == "STORE_UNAVAILABLE"
    assert waited_s < MARGIN_S
    check_transcribes(node)
    with Client(f"127.0.0.1:{node.port}") as client:
        assert client.jobs.get(done[1]).transcript == before[1].transcript
    # The first cause may be another, and causes that change are logged once a second at most.
    wait_until(lambda: refusal(node)[0] == "STORE_UNAVAILABLE" and "Read-only file system" in node.log.read_text())
    node.kill()
    disk.mend()
    successor = on_disk.start(successor_of=node, storage_url=str(disk.path / "files"))
    for number, job in ended(successor, done | pending).items():
        check_whole(job, number)
