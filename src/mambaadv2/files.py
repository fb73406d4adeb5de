"""Files that are written whole or not at all, and folders that cannot be written to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mambaadv2.errors import ConfigError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, on disk before it gets its name; its folder must exist.

    Readers see the old content or the new one; a failure leaves the old one and nothing else.
    Raises `OSError` when the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the system says against writing to an output folder into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"out: cannot write to {folder} ({error.strerror}); choose another folder"
        ) from error
