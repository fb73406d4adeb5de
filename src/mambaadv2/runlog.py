"""What a run tells while it runs: progress bar, metrics.jsonl, loss curve, config, environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from mambaadv2 import __version__
from mambaadv2.files import write_atomically
from mambaadv2.report import line_chart

_FRESH: Mapping[str, Any] = {
    "bytes": 0,
    "step": 0,
    "done": 0.0,
    "seconds": 0.0,
    "epoch": {},
    "epoch_number": 1,
    "epoch_images": 0,
    "epoch_seconds": 0.0,
    "curve": [],
}
"""`RunLog.facts` before the first step."""


class RunLog:
    """Writes a run folder's records; a context manager, so that the curve is drawn on errors too.

    settings: what config.json holds, see `settings_of`. resumed: `facts` of the log that this one
    goes on from; lines of metrics.jsonl that came after them are cut off.
    """

    def __init__(
        self,
        folder: Path,
        *,
        progress: bool,
        settings: Mapping[str, Any],
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.progress = folder, progress
        facts = _FRESH if resumed is None else resumed
        self.start: float = time.monotonic() - facts["seconds"]
        self._epoch: dict[str, list[float]] = {n: list(v) for n, v in facts["epoch"].items()}
        self._epoch_number, self._epoch_images = facts["epoch_number"], facts["epoch_images"]
        self._epoch_seconds: float = facts["epoch_seconds"]  # before this process
        self._epoch_start = self._last_step = time.monotonic()
        self._curve = [(float(x), float(y)) for x, y in facts["curve"]]
        _write_json(folder / "config.json", settings)
        _write_json(folder / "environment.json", environment())
        self._waiting = bytearray()  # lines that found no room
        self._lines = _lines_to_add_to(folder / "metrics.jsonl", facts["bytes"])
        self._step, self._done = int(facts["step"]), float(facts["done"])
        self._bar: tqdm[Any] | None = None
        self._board = _tensorboard(folder, after=self._step)

    @property
    def seconds(self) -> float:
        """Since the run began, time between its processes not counted."""
        return time.monotonic() - self.start

    def facts(self) -> dict[str, Any]:
        """Where the log stands, as JSON values; its lines are on the disk.

        Raises `OSError` when they cannot be written.
        """
        self._write_waiting()
        os.fsync(self._lines.fileno())
        return {
            "bytes": os.fstat(self._lines.fileno()).st_size,
            "step": self._step,
            "done": self._done,
            "seconds": self.seconds,
            "epoch": self._epoch,
            "epoch_number": self._epoch_number,
            "epoch_images": self._epoch_images,
            "epoch_seconds": self._seconds_of_epoch(),
            "curve": self._curve,
        }

    def _write_waiting(self) -> None:
        while self._waiting:
            written = self._lines.write(self._waiting)
            del self._waiting[:written]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        if self._bar is not None:
            self._bar.close()
        if kind is not None:
            self.say(f"stopped: no model was written to {self.folder}")
        self._lines.close()
        if self._board is not None:
            self._board.close()
        self.draw()

    def draw(self) -> None:
        """Draw the training curve as it stands; at the end before the model is written."""
        if self._curve:
            chart = line_chart(
                {"training loss": self._curve}, title="Training", x_label="epoch", y_label="loss"
            )
            with contextlib.suppress(OSError):
                write_atomically(self.folder / "loss.svg", chart.encode())

    def say(self, text: str) -> None:
        """One line for people."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def bar(self, total: int, label: str) -> Iterator[Callable[[int], object]]:
        """A progress bar over images; gives the function that advances it."""
        with tqdm(
            total=total, desc=label, unit="image", disable=None if self.progress else True
        ) as bar:
            yield bar.update

    def begin(self) -> None:
        """The first epoch starts now: what came before does not count as its time."""
        self._epoch_start = self._last_step = time.monotonic()

    def step(
        self,
        epoch: int,
        step: int,
        terms: Mapping[str, float],
        norm: float,
        rate: float,
        images: int,
        done: float,
    ) -> None:
        """Record a step; a line of metrics.jsonl follows when its epoch or the run ends.

        epoch and step count from 1.
        """
        if epoch != self._epoch_number:
            self._flush()
            self._epoch_number = epoch
        loss = sum(terms.values())
        for name, value in {
            **terms,
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "step": step,
        }.items():
            self._epoch.setdefault(name, []).append(value)
        self._epoch_images += images
        self._step, self._last_step = step, time.monotonic()
        self._show(loss, done)
        self._done = done
        if done >= 1.0:
            self._flush()

    def _show(self, loss: float, done: float) -> None:
        if self._bar is None:
            layout = "{desc}: {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}"
            self._bar = tqdm(
                total=1.0,
                initial=self._done,  # above 0 in a resumed run, whose ETA counts from there
                desc="train",
                bar_format=layout,
                disable=None if self.progress else True,
            )
        self._bar.update(done - self._bar.n)
        speed = self._epoch_images / max(1e-9, self._seconds_of_epoch())
        self._bar.set_postfix_str(
            f"epoch {self._epoch_number}, loss {loss:.3f}, {speed:.1f} images/s", refresh=False
        )

    def _seconds_of_epoch(self) -> float:
        return self._last_step - self._epoch_start + self._epoch_seconds

    def _flush(self) -> None:
        if not self._epoch:
            return
        now = self._last_step
        names = [n for n in self._epoch if n not in ("loss", "grad_norm", "lr", "step")]
        mean = {name: sum(values) / len(values) for name, values in self._epoch.items()}
        line = {
            "epoch": self._epoch_number,
            "step": int(self._epoch["step"][-1]),
            "loss": mean["loss"],
            "loss_terms": {name: mean[name] for name in names},
            "lr": self._epoch["lr"][-1],
            "grad_norm": mean["grad_norm"],
            "images_per_second": self._epoch_images / max(1e-9, self._seconds_of_epoch()),
            "seconds": now - self.start,
        }
        self._waiting += (json.dumps(line) + "\n").encode()
        # On a full disk lines wait in memory for the next time; training is worth more.
        with contextlib.suppress(OSError):
            self._write_waiting()
        self._curve.append((float(self._epoch_number), mean["loss"]))
        if self._board is not None:
            for name in ("loss", "lr", "grad_norm", "images_per_second"):
                self._board.add_scalar(name, line[name], line["step"])
        self._epoch, self._epoch_images = {}, 0
        self._epoch_start, self._epoch_seconds = now, 0.0


def environment() -> dict[str, object]:
    """Versions and hardware that a number depends on; no names of machines or people."""
    cuda = torch.cuda.is_available()
    return {
        "mambaadv2": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def settings_of(**parts: Any) -> dict[str, Any]:
    """Fields of dataclasses by the part's name, as JSON gives them back: config.json's content."""
    fields = {name: dataclasses.asdict(value) for name, value in parts.items()}
    settings: dict[str, Any] = json.loads(json.dumps(fields))
    return settings


def _lines_to_add_to(path: Path, length: int) -> FileIO:
    """Open a file of lines at its end, cut to whole lines within its first `length` bytes."""
    if path.is_file():
        kept = path.read_bytes()[:length]
        os.truncate(path, kept.rfind(b"\n") + 1)
    return path.open("ab", buffering=0)


def _tensorboard(folder: Path, after: int) -> Any:
    """A TensorBoard writer where the extra is installed, else None.

    It hides what an earlier process wrote about steps behind `after`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
