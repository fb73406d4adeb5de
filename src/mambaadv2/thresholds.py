"""New thresholds for a run folder, and the end of what was said about the old ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaadv2.calibrate import colour_scale
from mambaadv2.checkpoint import CALIBRATION, LABELLED, ModelCard, write_card
from mambaadv2.errors import DataError
from mambaadv2.evaluation_file import REPLACED, laid_out
from mambaadv2.files import (
    EVALUATION,
    SUSPECTS,
    file_sha256,
    locked,
    read_json_object,
    remove_unfinished,
    write_atomically,
    writing_to,
)
from mambaadv2.modelcard import write_model_card
from mambaadv2.suspect_sheet import Suspect, write_suspects

COUNTED = frozenset({"n_flagged", "n_found"})  # of evaluation.json, at the thresholds of its day
HIGH_END = 0.99  # of a good image's map, where the colours of heat maps may begin


def unseen_hashes(folder: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of images that a run has not seen.

    Raises `DataError`, naming it, for one that the run learned from or held out, by content, and
    where its `data.json` cannot say so.
    """
    known = _known_hashes(folder)
    hashes = {path: file_sha256(path).hex() for path in paths}
    seen = [path for path in paths if hashes[path] in known]
    if seen:
        raise DataError(
            f"{seen[0]}: expected an image that the model has not seen, this one took part in its "
            f"training, as did {len(seen) - 1} others; take newer ones, or such as are kept apart"
        )
    return hashes


def high_end(values: NDArray[np.float32]) -> float:
    """Where nearly all of a good image's map (H, W) lies below."""
    return float(np.quantile(values, HIGH_END))


def colours_from(
    ends: Mapping[str, Sequence[float]], thresholds: Mapping[str, float]
) -> tuple[float, float]:
    """low and high of the colour scale from `high_end` of good images by class."""
    # Quantiles scale with the map, so that of each map this is all that the colour scale needs.
    scale = colour_scale(
        [
            np.array([end / thresholds[name]], dtype=np.float32)
            for name, values in ends.items()
            for end in values
        ]
    )
    return scale.low, scale.high


def replace_good(
    folder: Path,
    card: ModelCard,
    weights: str,
    files: Mapping[str, Sequence[Sequence[str]]],
    suspects: Sequence[Suspect],
) -> None:
    """Write a run folder's new description after a calibration with good images.

    files: by class name and hash of the images, in the order of the card's scores.
    """
    with writing_to(folder), locked(folder):
        _begin(folder)
        _write_json(folder / CALIBRATION, files)
        # Of thresholds and pictures that are no more.
        (folder / LABELLED).unlink(missing_ok=True)
        (folder / SUSPECTS).unlink(missing_ok=True)
        write_suspects(folder, suspects)
        write_card(folder, card, weights)
        write_model_card(folder)


def replace_labelled(folder: Path, card: ModelCard, weights: str, files: object) -> None:
    """The same after a calibration with known defects; files: what `labelled.json` is to say."""
    with writing_to(folder), locked(folder):
        _begin(folder)
        _write_json(folder / LABELLED, files)
        write_card(folder, card, weights)
        write_model_card(folder)


def _begin(folder: Path) -> None:
    remove_unfinished(folder)
    _remove_counts(folder / EVALUATION)


def _remove_counts(path: Path) -> None:
    """Take out of an evaluation what was counted at a threshold; the rest does not depend on it."""
    content = read_json_object(path)
    if content:
        text = laid_out({REPLACED: True, **_without_counts(content)}, allow_nan=True)
        write_atomically(path, text.encode())


def _without_counts(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _without_counts(v) for k, v in content.items() if k not in COUNTED}
    return [_without_counts(item) for item in content] if isinstance(content, list) else content


def _write_json(path: Path, content: object) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _known_hashes(folder: Path) -> set[str]:
    """SHA-256 of all images that the run learned from or held out, as far as it says."""
    data = read_json_object(folder / "data.json")
    if not data:
        raise DataError(
            f"{folder / 'data.json'}: expected the list of images that the run learned from, it is "
            "missing or damaged; without it nobody can tell which images the model has not seen"
        )
    parts = (data.get(part) for part in ("learn", "held"))
    return {
        digest
        for part in parts
        if isinstance(part, dict)
        for files in part.values()
        if isinstance(files, dict)
        for digest in files.values()
    }
