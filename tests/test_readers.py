"""Processes that read: the same pixels as without them, and an error for every way to die."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mambaadv2 import readers
from mambaadv2.errors import ImageError, WorkerError
from mambaadv2.image import read_image, read_mask, resize_image, write_png
from mambaadv2.readers import Readers, readers_for

PATIENCE = 60.0  # seconds, for a loaded machine; nothing waits that long


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    return path


@pytest.fixture
def one() -> Iterator[Readers]:
    with Readers(1) as pool:
        yield pool


def pids(pool: Readers) -> list[int]:
    return [process._popen.pid for process in pool._processes if process._popen is not None]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; what nobody has asked about yet (a zombie) has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + PATIENCE
    while not is_gone(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pixels_are_those_of_this_process(picture: Path, tmp_path: Path, count: int) -> None:
    write_png(tmp_path / "mask.png", np.eye(33, dtype=np.uint8))
    whole, small = read_image(picture), resize_image(read_image(picture), (32, 64))
    with Readers(count) as pool:
        futures = [pool.image(picture, size) for size in (None, (32, 64), (50, 70)) * 5]
        mask = pool.mask(tmp_path / "mask.png")
        for future, expected in zip(futures, (whole, small, whole) * 5, strict=True):
            assert future.result().dtype == np.uint8
            assert np.array_equal(future.result(), expected)
        assert mask.result().dtype == np.bool_
        assert np.array_equal(mask.result(), read_mask(tmp_path / "mask.png"))


def test_results_can_be_written_to(picture: Path, one: Readers) -> None:
    one.image(picture).result()[:] = 0


# A name is any bytes but "/" and the end mark.
names = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b"..")
)


@pytest.fixture(scope="module")
def shared_reader() -> Iterator[Readers]:
    with Readers(1) as pool:
        yield pool


@given(name=names)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_name_works(shared_reader: Readers, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    write_png(tmp_path / "plain.png", np.full((2, 3, 3), len(name), np.uint8))
    path.unlink(missing_ok=True)
    os.link(tmp_path / "plain.png", path)
    try:
        assert np.array_equal(shared_reader.image(path).result(), read_image(path))
        path.unlink()
        path.write_bytes(b"no image")
        with pytest.raises(ImageError) as here:
            read_image(path)
        with pytest.raises(ImageError) as there:
            shared_reader.image(path).result()
        assert str(there.value) == str(here.value)
    finally:
        path.unlink()


@pytest.mark.parametrize("count", [0, 1])
def test_an_unusable_file_is_an_error_and_the_next_one_is_read(
    picture: Path, tmp_path: Path, count: int
) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    with Readers(count) as pool:
        for path in ("b.png", "none.png"):
            for future in (pool.image(tmp_path / path), pool.mask(tmp_path / path)):
                with pytest.raises(ImageError, match=path):
                    future.result()
        assert pool.image(picture).result().shape == (50, 70, 3)
        assert len(pids(pool)) == count


def test_few_images_are_read_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readers_for(0) == readers_for(readers.WORTH_A_PROCESS - 1) == 0
    assert 1 <= readers_for(readers.WORTH_A_PROCESS) <= readers.MOST
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    assert readers_for(10**6) == readers.MOST


def test_one_image_after_the_other_needs_one_process(picture: Path) -> None:
    with Readers(4) as pool:
        assert pids(pool) == []
        for _ in range(6):
            pool.image(picture).result()
        assert len(pids(pool)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_reader_that_dies_at_work_names_the_image(
    picture: Path, one: Readers, number: signal.Signals
) -> None:
    one.image(picture).result()
    (pid,) = pids(one)
    os.kill(pid, signal.SIGSTOP)  # so that it surely dies with the request
    future = one.image(picture)
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(WorkerError, match=rf"a\.png: the process that read .*{number.name}") as e:
        future.result(PATIENCE)
    assert ("memory" in str(e.value)) == (number == signal.SIGKILL)
    assert not Path(f"/proc/{pid}").exists()
    # Another takes its place.
    assert one.image(picture).result(PATIENCE).shape == (50, 70, 3)
    assert pids(one) != [pid]


def test_the_death_of_one_leaves_the_others(picture: Path) -> None:
    with Readers(2) as pool:
        futures = [pool.image(picture) for _ in range(40)]
        for future in futures:
            future.result()
        first, *others = pids(pool)
        os.kill(first, signal.SIGKILL)
        wait_until_gone(first)
        outcomes = [pool.image(picture) for _ in range(40)]
        failed = [f for f in outcomes if isinstance(f.exception(PATIENCE), WorkerError)]
        assert len(failed) <= 1
        assert all(f.result().shape == (50, 70, 3) for f in outcomes if f not in failed)
        assert set(others) <= set(pids(pool))


def test_a_reader_that_cannot_start_is_an_error(
    picture: Path, one: Readers, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readers, "_START", "raise SystemExit('no library')")
    with pytest.raises(WorkerError, match=r"a\.png: .* ended with exit code 1; its own message"):
        one.image(picture).result(PATIENCE)
    assert capfd.readouterr().err == "no library\n"
    monkeypatch.setattr(sys, "executable", "/nothing")
    with pytest.raises(WorkerError, match=r"a\.png: no process could be started .*No such file"):
        one.image(picture).result(PATIENCE)


def test_memory_that_runs_out_in_a_reader_is_an_error(tmp_path: Path, one: Readers) -> None:
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "small.png")
    one.image(tmp_path / "small.png").result()
    (pid,) = pids(one)
    kilobytes = Path(f"/proc/{pid}/status").read_text().partition("VmSize:")[2].split()[0]
    limit = int(kilobytes) * 1024 + 50_000_000
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    with pytest.raises(ImageError, match=r"large\.png: does not fit into memory"):
        one.image(tmp_path / "large.png").result()
    assert one.image(tmp_path / "small.png").result().shape == (60, 60, 3)
    assert pids(one) == [pid]


def test_what_a_decoder_prints_is_no_answer(
    picture: Path, one: Readers, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    noisy = "import os, sys; from mambaadv2 import readers; read = readers._read\n"
    noisy += "readers._read = lambda *a: (print('hm', flush=True), os.write(1, b'so'), read(*a))[2]"
    monkeypatch.setattr(readers, "_START", f"{noisy}\nreaders.serve()")
    assert np.array_equal(one.image(picture).result(), read_image(picture))
    one.close()
    assert capfd.readouterr() == ("", "hm\nso")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_readers_leave_the_end_to_their_parent(
    picture: Path, one: Readers, number: signal.Signals
) -> None:
    one.image(picture).result()
    (pid,) = pids(one)
    assert os.getpgid(pid) != os.getpgid(0)  # where Ctrl-C in a terminal goes
    os.kill(pid, number)
    assert one.image(picture).result().shape == (50, 70, 3)
    assert pids(one) == [pid]


def test_nothing_is_left_after_the_end(picture: Path) -> None:
    with Readers(2) as pool:
        for future in [pool.image(picture) for _ in range(20)]:
            future.result()
        left = pids(pool)
        os.kill(left[0], signal.SIGSTOP)  # one that would never read the end of its pipe
        waiting = [pool.image(picture) for _ in range(20)]
    assert left
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert all(future.done() for future in waiting)
    forgotten = Readers(1)
    forgotten.image(picture).result()
    (pid,) = pids(forgotten)
    del forgotten
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


SCRIPT = """
from pathlib import Path
import sys, time
from mambaadv2.readers import Readers
print("begun")
pool = Readers(2)
for future in [pool.image(Path(sys.argv[1])) for _ in range(20)]:
    print(future.result().shape)
print(*[p._popen.pid for p in pool._processes if p._popen is not None], flush=True)
time.sleep(float(sys.argv[2]))
"""


def start_script(tmp_path: Path, picture: Path, seconds: float) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), str(picture), str(seconds)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )


def test_a_script_needs_no_guard_and_leaves_nothing(picture: Path, tmp_path: Path) -> None:
    # What lies in the working folder must not be imported in a library's place.
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")
    (tmp_path / "run").mkdir()
    process = start_script(tmp_path / "run", picture, 0)
    out, err = process.communicate(timeout=PATIENCE)
    *shapes, left = out.splitlines()
    assert (process.returncode, err) == (0, "")
    assert shapes == ["begun"] + ["(50, 70, 3)"] * 20
    for pid in left.split():
        wait_until_gone(int(pid))


def test_readers_end_when_their_parent_is_killed(picture: Path, tmp_path: Path) -> None:
    with start_script(tmp_path, picture, PATIENCE) as process:
        assert process.stdout is not None
        left = [process.stdout.readline() for _ in range(22)][-1].split()
        assert left
        assert not any(is_gone(int(pid)) for pid in left)
        process.kill()
        for pid in left:
            wait_until_gone(int(pid))


def test_a_reader_imports_little() -> None:
    code = "import sys, mambaadv2.readers; print(*{'torch', 'timm', 'scipy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
