"""Files that are written whole or not at all, and folders that are one process's own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambaadv2.errors import ConfigError, DataError, RunBusyError

EVALUATION, SUSPECTS = "evaluation.json", "suspects.png"
"""In a run folder: its last evaluation, and the good images that look mislabelled. Named here,
because what writes them and what reads them know nothing of each other."""

_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, on disk before it gets its name; its folder must exist.

    Readers see the old content or the new one, and so does who looks after a power cut; a failure
    leaves the old one and nothing else. Raises `OSError` when the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file's content, 32 bytes. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk: without it a power cut can undo a rename."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder when its process was killed.

    Only for a folder that this process has locked: another's unfinished file looks the same.
    """
    for path in folder.glob(".*.[0-9]*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; it must exist.

    The lock is the system's own on the folder itself: no file is left, and a killed process holds
    nothing. Raises `RunBusyError` when another process, or another call in this one, has it. On a
    file system without locks nothing is kept.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _lock_owner(os.fstat(handle))
            by = f"process {owner}" if owner else "another process"
            raise RunBusyError(
                f"{folder}: {by} is writing to this folder; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def _lock_owner(folder: os.stat_result) -> int | None:
    """The process that holds the lock, where the system tells."""
    device = f"{os.major(folder.st_dev):02x}:{os.minor(folder.st_dev):02x}:{folder.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for fields in map(str.split, lines):
        if fields[1] == "FLOCK" and device in fields:
            return int(fields[fields.index(device) - 1])
    return None


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the system says against writing to an output folder into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"out: cannot write to {folder} ({error.strerror}); choose another folder"
        ) from error
