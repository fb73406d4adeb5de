"""A file is replaced as a whole or stays as it was; a folder belongs to one process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from mambaadv2.errors import RunBusyError
from mambaadv2.files import locked, remove_unfinished, write_atomically


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


def test_file_and_folder_reach_the_disk_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []

    def watched(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").resolve()
        seen.append((target.name, (tmp_path / "a.json").exists()))

    monkeypatch.setattr("mambaadv2.files.os.fsync", watched)
    write_atomically(tmp_path / "a.json", b"new")
    (first, named), (second, _) = seen
    assert first.startswith(".a.json.")
    assert not named  # the name came after the content
    assert second == tmp_path.name


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from mambaadv2 import files
files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys
from pathlib import Path
from mambaadv2.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_s_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunBusyError, match=rf"process {holder.pid} is writing"):
            locked(tmp_path).__enter__()
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_kept_from_a_second_call_in_the_same_process(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunBusyError, match="writing to this folder"):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass
