"""Files that appear whole or not at all, and locks that a killed holder releases."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; put the file in place of ``path`` when the block ends.

    The bytes reach the disk before the name does, so after a crash ``path`` is the old file or the
    new one. When the block raises, ``path`` is as it was and the temporary file is gone. A process
    that is killed leaves a ``*.part`` behind, which `sweep` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def sweep(folder: Path, pattern: str = "**/*") -> None:
    """Remove what killed writers left behind. Call it with the folder's lock held."""
    for part in folder.glob(pattern + ".part"):
        part.unlink(missing_ok=True)


def lock(path: Path) -> FileLock:
    """A lock between processes, as a context manager: the system frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journaled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
