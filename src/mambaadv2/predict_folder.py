"""What `predict` writes: a line per image, its pictures, and what made them.

A line stands for work that is finished: it is written once its pictures are on the disk, so neither
a killed process nor a power cut leaves a line without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mambaadv2.calibrate import ColourScale, Region
from mambaadv2.errors import CheckpointError, ConfigError
from mambaadv2.files import sync_folder, write_atomically, writing_to
from mambaadv2.image import overlay, png_bytes, write_png
from mambaadv2.legend import Marks, legend
from mambaadv2.predictor import Prediction, RgbImage
from mambaadv2.summary import SUMMARY

OVERLAYS, MAPS = "overlays", "maps"  # folders of heat maps and of raw maps
LINES, SETTINGS, LEGEND = "predictions.jsonl", "predict.json", "scale.png"
SCHEMA_VERSION = 3  # 2: lines have a p_value; 3: threshold_kind, n_regions and regions
MOST_REGIONS = 20  # of a line
NAME_BYTES = 220  # of a picture's name; file systems take 255, and a number may follow


class PredictionFolder:
    """An output folder that this process has for itself, open for more lines.

    settings: what makes the lines what they are, by name; kept in `predict.json`. resume: go on
    after the lines that are there, which must be of equal settings; otherwise they are removed.

    each: called with every line, those that were there first, in order, once it is on the disk.

    earlier: the paths of the lines that were there, in order. finished, errors, defects: numbers
    of lines so far, of those with an error and of those with a defect, earlier ones included.

    Raises `ConfigError` for a folder that cannot be written to and for other settings, and
    `CheckpointError` for lines that are not this command's.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        *,
        raw: bool,
        resume: bool,
        each: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        self.folder, self.raw, self._each = folder, raw, each
        self.earlier: list[str] = []
        self.finished = self.errors = self.defects = 0
        self._names = _UniqueNames()
        self._waiting: list[dict[str, object]] = []
        self._pictures: list[Path] = []
        described = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **settings}))
        whole = self._read_finished(described) if resume else 0
        with writing_to(folder):
            for name in (OVERLAYS, MAPS) if raw else (OVERLAYS,):
                (folder / name).mkdir(parents=True, exist_ok=True)
            # Of lines that are to come nothing is known yet.
            (folder / SUMMARY).unlink(missing_ok=True)
            if not whole:
                # Never beside lines that others made.
                (folder / SETTINGS).unlink(missing_ok=True)
            self._lines = os.open(folder / LINES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._whole = whole
            os.ftruncate(self._lines, whole)
            os.fsync(self._lines)
            if not whole:
                text = json.dumps(described, indent=2) + "\n"
                write_atomically(folder / SETTINGS, text.encode())

    def draw_legend(self, scale: ColourScale, marks: Mapping[str, Marks]) -> None:
        """Write the picture of the colour scale. Raises `ConfigError` where that cannot be."""
        with writing_to(self.folder):
            write_atomically(self.folder / LEGEND, png_bytes(legend(scale, marks)))

    def add(
        self,
        path: Path,
        image: RgbImage,
        found: Prediction,
        places: Sequence[Region],
        ms: float,
        scale: ColourScale,
    ) -> None:
        """Draw and write one image's pictures; its line waits for `commit`.

        places: all of the image, highest first.
        """
        name = self._names.of(path)
        line = _line(path, found, places, ms) | {"overlay": f"{OVERLAYS}/{name}.png"}
        picture = overlay(image, found.map / found.threshold, scale.low, scale.high)
        write_png(self.folder / OVERLAYS / f"{name}.png", picture)
        self._pictures.append(self.folder / OVERLAYS / f"{name}.png")
        if self.raw:
            line["map"] = f"{MAPS}/{name}.npy"
            np.save(self.folder / MAPS / f"{name}.npy", found.map, allow_pickle=False)
            self._pictures.append(self.folder / MAPS / f"{name}.npy")
        self._waiting.append(line)

    def add_error(self, path: Path, error: Exception) -> None:
        """Note that an image gave no prediction."""
        self._waiting.append({"path": str(path), "error": str(error)})

    def commit(self) -> None:
        """Bring the pictures to the disk, then their lines. A failure leaves no part of a line."""
        if not self._waiting:
            return
        for path in self._pictures:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for folder in {path.parent for path in self._pictures}:
            sync_folder(folder)
        text = "".join(json.dumps(line) + "\n" for line in self._waiting).encode()
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(self._lines, rest) :]
            os.fsync(self._lines)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lines, self._whole)
            raise
        self._whole += len(text)
        for line in self._waiting:
            self._count(line)
        self._waiting, self._pictures = [], []

    def close(self) -> None:
        """Leave the folder; lines that wait are dropped."""
        os.close(self._lines)

    def _count(self, line: Mapping[str, Any]) -> None:
        self.finished += 1
        self.errors += "error" in line
        self.defects += line.get("defect", False)
        self._each(line)

    def _read_finished(self, described: Mapping[str, Any]) -> int:
        """Take note of the lines that are there; returns how many bytes of the file they are."""
        path, whole = self.folder / LINES, 0
        try:
            content = path.open("rb")
        except FileNotFoundError:
            return 0
        torn = 0
        with content:
            for number, text in enumerate(content, start=1):
                if torn:
                    raise CheckpointError(
                        f"{path}: line {torn} is none that predict wrote, and more lines follow; "
                        "cut the file before it, or begin anew without --resume"
                    )
                line = _parsed(text)
                if line is None:
                    torn = number
                    continue
                whole += len(text)
                self._count(line)
                self.earlier.append(line["path"])
                if "error" not in line:
                    self._names.take(Path(line["path"]), line["overlay"])
        if whole:
            _require_same(self.folder / SETTINGS, described)
        return whole


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A whole line, None for one that was torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    whole = text.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("path"), str)
    kinds: dict[str, type] = (
        {"error": str}
        if whole and "error" in line
        else {"overlay": str, "defect": bool, "class": str, "score": float}
    )
    whole = whole and ("error" in line or type(line.get("p_value", 0)) in (float, type(None)))
    return line if whole and all(type(line.get(k)) is t for k, t in kinds.items()) else None


def _require_same(path: Path, described: Mapping[str, Any]) -> None:
    try:
        recorded = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}), so nothing says which model made the lines beside "
            "it; begin anew without --resume, or take another folder"
        ) from error
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(recorded).__name__}")
    differences = [
        f"  {name}: {_short(recorded.get(name))} there, {_short(described.get(name))} now"
        for name in dict.fromkeys((*recorded, *described))
        if recorded.get(name) != described.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{path}: the lines there were made otherwise:\n" + "\n".join(differences) + "\n"
            "go on as it was begun, begin anew without --resume, or take another folder"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(
    path: Path, prediction: Prediction, places: Sequence[Region], ms: float
) -> dict[str, object]:
    height, width = prediction.map.shape
    return {
        "path": str(path),
        "score": prediction.score,
        "p_value": prediction.p_value,
        "threshold": prediction.threshold,
        "threshold_kind": prediction.threshold_kind,
        "defect": prediction.defect,
        "class": prediction.class_name,
        "width": width,
        "height": height,
        "ms": round(ms, 3),
        "n_regions": len(places),
        "regions": [dataclasses.asdict(place) for place in places[:MOST_REGIONS]],
    }


class _UniqueNames:
    """Output names from the last three folders and the stem; equal ones get a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def of(self, path: Path) -> str:
        parts = [*path.parts[-4:-1], path.stem]
        base = "_".join(part for part in parts if part not in ("/", "..", "."))
        while len(os.fsencode(base)) > NAME_BYTES:
            base = base[1:]
        name = base
        while name in self._taken:  # a numbered name may itself be another file's
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self._taken.add(name)
        return name

    def take(self, path: Path, overlay_path: str) -> None:
        """Note the name of an earlier call; asked for in the same order it gives the same again."""
        if f"{OVERLAYS}/{self.of(path)}.png" != overlay_path:
            self._taken.add(Path(overlay_path).stem)


def still_to_do(
    paths: Sequence[str], earlier: Sequence[str], batch_size: int
) -> tuple[list[str], int]:
    """The paths without a line, and how many at their front have one all the same.

    Where the lines are those of the first paths, as after an interruption, it goes on at the start
    of a batch: a network's last digits depend on the batch's size, and so batches are what they
    would have been. Where files have come or gone since, only those without a line are taken.

    >>> still_to_do(["a", "b", "c", "d"], ["a", "b", "c"], 2)
    (['c', 'd'], 1)
    >>> still_to_do(["a", "aa", "b"], ["a", "b"], 2)
    (['aa'], 0)
    """
    done = len(earlier)
    if list(paths[:done]) == list(earlier):
        start = done - done % batch_size if done < len(paths) else done
        return list(paths[start:]), done - start
    lines = Counter(earlier)
    rest = []
    for path in paths:
        if lines[path] > 0:
            lines[path] -= 1
        else:
            rest.append(path)
    return rest, 0
