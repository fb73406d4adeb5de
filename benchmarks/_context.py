"""What the numbers of a benchmark depend on: the images, the machine, the versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from mambaadv2.errors import DataError
from mambaadv2.runlog import environment

Device = Literal["auto", "cpu", "cuda"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA_VARIABLE = "MAMBAADV2_DATA"
DATA_HELP = f"MVTec AD layout; by default the folder that {DATA_VARIABLE} names"
BESIDE = ROOT.parent / "shared" / "data"
"""Taken without being named, so that one copy serves several checkouts."""

_PACKAGES = ("numpy", "pillow", "scipy", "timm")


def find_data(data: Path | None) -> Path:
    """The folder asked for, else the one MAMBAADV2_DATA names, else that beside the checkout.

    Raises `DataError` when none was asked for and there are no real images.
    """
    if data is not None:
        return data
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named) if named else BESIDE
    if not folder.is_dir():
        found = f"{folder} is no folder" if named else "it is not set"
        raise DataError(
            f"{DATA_VARIABLE}: expected a folder of real images in the MVTec AD layout, {found}; "
            "they are not ours to ship. Set it to one, or use --data FOLDER"
        )
    return folder


def describe(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """Date, command, commit, versions and hardware, for the head of a results file."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["scripts/bench", name, *arguments]),
        "commit": commit(),
        "hardware": {**environment(), "cores": len(os.sched_getaffinity(0))},
        "packages": {package: metadata.version(package) for package in _PACKAGES},
    }


def commit() -> str | None:
    """Hash of the checked-out commit, "-dirty" if a tracked file differs; None without git."""
    found = _git("rev-parse", "HEAD")
    if found is None:
        return None
    return found + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def hardware_slug(device: torch.device) -> str:
    """Name of the processor that computes, fit for a file name: "nvidia-h200"."""
    facts = environment()
    if device.type == "cuda":
        return _slug(torch.cuda.get_device_name(device))
    name = re.sub(r"\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b", " ", str(facts["processor"]).lower())
    return _slug(f"{name or platform.machine()} {facts['threads']} threads")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def integers(text: str) -> tuple[int, ...]:
    """Read "0,1,2"; for argparse."""
    return tuple(int(part) for part in text.split(","))


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (1e6 bytes)."""
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads as text too; the first row is its head.

    The first column is flush left, the others right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
