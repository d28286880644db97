"""A file is replaced whole or not at all, and a lock lasts as long as its holder."""

import errno
import multiprocessing
import os
import signal
from stat import S_ISDIR

import pytest

from parameter_ordering.paper.store.files import lock, replacing, sha256, sweep, write_text


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []

    def fsync(descriptor):
        synced.append(
            ("folder" if S_ISDIR(os.fstat(descriptor).st_mode) else "file", path.exists())
        )

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    assert synced == [("file", False), ("folder", True)]


def _write_and_raise(path, error):
    with replacing(path) as part:
        part.write_text("ne")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_write_changes_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        _write_and_raise(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_at_the_last_moment_changes_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _write_and_die(path):
    with replacing(path) as part:
        part.write_text("ne")
        os.kill(os.getpid(), signal.SIGKILL)


def _lock_and_die(path):
    lock(path).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def _in_another_process(work, path):
    process = multiprocessing.get_context("fork").Process(target=work, args=(path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_swept(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    _in_another_process(_write_and_die, path)
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_a_killed_holder_releases_its_lock(tmp_path):
    path = tmp_path / "lock"
    _in_another_process(_lock_and_die, path)
    with lock(path).acquire(timeout=5):
        pass


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with lock(path), pytest.raises(TimeoutError):
        lock(path).acquire(timeout=0)


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea")
