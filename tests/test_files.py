"""A file is replaced as a whole or stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from mambaadv2.files import write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError("no space left")

    path = tmp_path / "model.json"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("mambaadv2.files.os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
