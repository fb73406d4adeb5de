"""Processes that decode images: a decoder that crashes or runs out of memory ends one of them, not
the run.

Each is a fresh interpreter with numpy and Pillow alone, spoken to over pipes: a line of JSON asks,
a line of JSON and raw bytes answer. Nothing is forked and nothing of the caller is imported again,
so a script needs no `if __name__ == "__main__"`. A reader ends when its pipe closes, that is with
its parent, however that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from mambaadv2.errors import ImageError, WorkerError
from mambaadv2.image import read_image, read_mask, resize_image

Kind = Literal["image", "mask", "image size", "mask size"]
Size = tuple[int, int]

THREADS = 2  # where no process is started: decoding releases the interpreter's lock
PIPE = 1 << 20  # bytes; with the system's default a large image takes about a tenth longer
MOST = 8  # enough to feed one GPU with photographs; each takes about 30 MB
WORTH_A_PROCESS = 64
"""Images below which threads do it: a reader starts in 0.13 s, the time of a few images."""

# The parent's search path, so that the reader finds this package and numpy where the parent did.
_START = "import sys; sys.path[:] = sys.argv[1:]; from mambaadv2.readers import serve; serve()"


def readers_for(images: int) -> int:
    """How many processes to read that many images with; 0 where threads do it."""
    if images < WORTH_A_PROCESS or not sys.executable:
        return 0
    return min(MOST, len(os.sched_getaffinity(0)))


class Readers:
    """Reads images in `count` processes, or in threads of this process where `count` is 0.

    A process is started when there is first something for it to do, and again after it died. Close
    it, or use it in a `with` statement, to end them; they also end when it is forgotten.

    >>> with Readers(0) as readers:  # doctest: +SKIP
    ...     readers.image(Path("camera/0001.png"), (256, 256)).result().shape
    (256, 256, 3)
    """

    def __init__(self, count: int) -> None:
        self._processes = [_Process() for _ in range(count)]
        # The one used last comes first: a caller who asks for one image after the other needs one.
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self._pool = ThreadPoolExecutor(count or THREADS, thread_name_prefix="readers")
        self.close = weakref.finalize(self, _close, self._pool, self._processes)
        """Ends everything; what is still being read gives a `WorkerError` or is cancelled."""

    def image(self, path: Path, size: Size | None = None) -> Future[NDArray[np.uint8]]:
        """Read one image to (H, W, 3) uint8 RGB, resized to `size` = (height, width) if given.

        The result raises `ImageError` for a file that cannot be used, as `read_image` does, and
        `WorkerError` naming the image when its process died.
        """
        return self._submit("image", path, size)

    def mask(self, path: Path) -> Future[NDArray[np.bool_]]:
        """Read one mask to (H, W) bool; errors as in `image`."""
        return self._submit("mask", path, None)

    def size(self, path: Path, *, mask: bool = False) -> Future[NDArray[np.int64]]:
        """Decode one image or mask and give only its height and width; errors as in `image`."""
        return self._submit("mask size" if mask else "image size", path, None)

    def _submit(self, kind: Kind, path: Path, size: Size | None) -> Future[NDArray[Any]]:
        if not self._processes:
            return self._pool.submit(_read, kind, path, size)
        return self._pool.submit(_ask_idle, self._idle, kind, path, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read(kind: Kind, path: Path, size: Size | None) -> NDArray[Any]:
    if kind in ("mask", "mask size"):
        marked = read_mask(path)
        return marked if kind == "mask" else np.array(marked.shape)
    pixels = read_image(path)
    if kind == "image size":
        return np.array(pixels.shape[:2])
    return pixels if size is None else resize_image(pixels, size)


def _ask_idle(
    idle: queue.LifoQueue[_Process], kind: Kind, path: Path, size: Size | None
) -> NDArray[Any]:
    process = idle.get()  # never waits: there are as many threads as processes
    try:
        return process.ask(kind, path, size)
    finally:
        idle.put(process)


def _close(pool: ThreadPoolExecutor, processes: list[_Process]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    pool.shutdown(wait=True)
    for process in processes:
        process.reap()


class _Process:
    """The parent's side of one reader. One thread at a time asks; any thread may kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, kind: Kind, path: Path, size: Size | None) -> NDArray[Any]:
        """Have one file read and wait for it; errors as in `Readers.image`."""
        request = json.dumps({"kind": kind, "path": str(path), "size": size}) + "\n"
        popen = self._started(path)
        assert popen.stdin is not None
        assert isinstance(popen.stdout, io.BufferedReader)
        try:
            popen.stdin.write(request.encode("ascii"))
            popen.stdin.flush()
            line = popen.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            header = json.loads(line)
            if "error" not in header:
                samples = np.empty(header["shape"], np.dtype(header["dtype"]))
                wanted = samples.reshape(-1).view(np.uint8).data
                if popen.stdout.readinto(wanted) < samples.nbytes:
                    raise EOFError
                return samples
        except (EOFError, BrokenPipeError, ConnectionError):
            raise _died(path, self.reap()) from None
        if header["error"] == "memory":
            raise WorkerError(f"{path}: memory ran out while it was read; {_ADVICE_ON_MEMORY}")
        raise ImageError(header["message"])

    def _started(self, path: Path) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise WorkerError(f"{path}: not read, its readers were closed")
            if self._popen is None:
                single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                try:
                    self._popen = subprocess.Popen(
                        [sys.executable, "-P", "-c", _START, *sys.path],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        env=os.environ | single,
                        # A group of its own: Ctrl-C in a terminal is for the parent to decide on.
                        process_group=0,
                    )
                    assert self._popen.stdout is not None
                    with contextlib.suppress(OSError):  # larger than the system allows
                        fcntl.fcntl(self._popen.stdout, fcntl.F_SETPIPE_SZ, PIPE)
                except OSError as error:
                    raise WorkerError(
                        f"{path}: no process could be started to read it ({error.strerror}); "
                        "raise the limits on processes and open files, or close other programs"
                    ) from error
            return self._popen

    def kill(self) -> None:
        """End it at once, for good; a thread that waits for it gets a `WorkerError`."""
        with self._lock:
            self._closed = True
            if self._popen is not None:
                self._popen.kill()

    def reap(self) -> int:
        """Take note of its end, so that no zombie stays; returns the exit code, -N for signal N."""
        with self._lock:
            popen, self._popen = self._popen, None
        if popen is None:
            return 0
        for pipe in (popen.stdin, popen.stdout):
            assert pipe is not None
            # A request that could not be sent is still buffered.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            return popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            popen.kill()
            return popen.wait()


_ADVICE_ON_MEMORY = "close other programs, or use a smaller batch or smaller images"


def _died(path: Path, code: int) -> WorkerError:
    if code == -signal.SIGKILL:
        how = "was killed (signal 9, SIGKILL), mostly a sign that memory ran out"
        advice = _ADVICE_ON_MEMORY
    elif code < 0:
        names = {each.value: each.name for each in signal.Signals}
        how = f"was ended by signal {-code} ({names.get(-code, 'without a name')})"
        advice = "if it happens again, the file makes the decoder crash: convert or remove it"
    else:
        how = f"ended with exit code {code}"
        advice = "its own message, if it left one, stands above"
    return WorkerError(f"{path}: the process that read this image {how}; {advice}")


def serve() -> None:
    """Be a reader: answer requests on stdin until it closes.

    Signals that ask for an end are the parent's to decide on; its end closes stdin.
    """
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(each, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints must not end up among the answers
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            request = json.loads(line)
            header, samples = _answer(request["kind"], Path(request["path"]), request["size"])
            _write(answers, json.dumps(header).encode("ascii") + b"\n")
            if samples is not None:
                _write(answers, np.ascontiguousarray(samples).reshape(-1).view(np.uint8).data)


def _answer(
    kind: Kind, path: Path, size: list[int] | None
) -> tuple[dict[str, object], NDArray[Any] | None]:
    try:
        samples = _read(kind, path, None if size is None else (size[0], size[1]))
    except ImageError as error:
        return {"error": "image", "message": str(error)}, None
    except MemoryError:
        return {"error": "memory"}, None
    return {"shape": samples.shape, "dtype": samples.dtype.str}, samples


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
