"""What a run tells while it runs: progress bar, metrics.jsonl, loss curve, config, environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from mambaadv2 import __version__
from mambaadv2.report import line_chart


class RunLog:
    """Writes a run folder's records; a context manager, so that the curve is drawn on errors too.

    settings: objects (dataclasses) whose fields make config.json, by name.
    """

    def __init__(self, folder: Path, *, progress: bool, settings: Mapping[str, Any]) -> None:
        self.folder, self.progress = folder, progress
        self.start = time.monotonic()
        self._epoch: dict[str, list[float]] = {}
        self._epoch_number, self._epoch_images = 1, 0
        self._epoch_start = self._last_step = self.start
        self._curve: list[tuple[float, float]] = []
        config = {name: dataclasses.asdict(value) for name, value in settings.items()}
        _write_json(folder / "config.json", config)
        _write_json(folder / "environment.json", environment())
        self._lines = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self._bar: tqdm[Any] | None = None
        self._board = _tensorboard(folder)

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
        if self._curve:
            chart = line_chart(
                {"training loss": self._curve}, title="Training", x_label="epoch", y_label="loss"
            )
            (self.folder / "loss.svg").write_text(chart, encoding="utf-8")

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
        self._last_step = time.monotonic()
        self._show(loss, done)
        if done >= 1.0:
            self._flush()

    def _show(self, loss: float, done: float) -> None:
        if self._bar is None:
            layout = "{desc}: {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}"
            self._bar = tqdm(
                total=1.0, desc="train", bar_format=layout, disable=None if self.progress else True
            )
        self._bar.update(done - self._bar.n)
        seconds = self._last_step - self._epoch_start
        speed = self._epoch_images / max(1e-9, seconds)
        self._bar.set_postfix_str(
            f"epoch {self._epoch_number}, loss {loss:.3f}, {speed:.1f} images/s", refresh=False
        )

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
            "images_per_second": self._epoch_images / max(1e-9, now - self._epoch_start),
            "seconds": now - self.start,
        }
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self._curve.append((float(self._epoch_number), mean["loss"]))
        if self._board is not None:
            for name in ("loss", "lr", "grad_norm", "images_per_second"):
                self._board.add_scalar(name, line[name], line["step"])
        self._epoch, self._epoch_images, self._epoch_start = {}, 0, now


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


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer where the extra is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
