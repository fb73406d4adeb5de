"""New thresholds for a trained model, from good images that it has never seen.

Whitening and thresholds of a training share their held-out images, so that nothing can be proved of
the thresholds without an assumption. Images that had no part in the training need none: they are
exchangeable with the next good image if they were taken as it will be, and the guarantee of
`calibrate.conformal` holds in full. An image counts for the class that the model takes it for, as
it will when it decides, so a class that is mistaken for another now and then is covered too.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mambaadv2.calibrate import (
    FALSE_ALARM_RATE,
    ClassCalibration,
    calibrate_classes,
    colour_scale,
    needed_images,
)
from mambaadv2.checkpoint import calibration_fields, read_card, write_card
from mambaadv2.errors import DataError
from mambaadv2.files import (
    file_sha256,
    locked,
    read_json_object,
    remove_unfinished,
    write_atomically,
    writing_to,
)
from mambaadv2.modelcard import write_model_card
from mambaadv2.predict import find_images, load, predict_paths

CALIBRATION = "calibration.json"


def recalibrate(
    run: str | os.PathLike[str],
    inputs: Sequence[str],
    *,
    rate: float = FALSE_ALARM_RATE,
    confidence: float | None = None,
    trim: bool = True,
    device: str = "auto",
    batch_size: int = 8,
) -> dict[str, ClassCalibration]:
    """Replace the thresholds and the colour scale of a run folder; weights stay. Returns the new.

    inputs: files, folders and patterns of good images alone, at least one that the model takes for
    each class. rate: wished share of good images flagged; confidence: None for on average, else the
    share of calibrations for which it is to hold; trim: leave out images that look mislabelled; all
    as in `calibrate_classes`. `calibration.json` keeps names and hashes of the images, in the order
    of their scores in `model.json`. What an earlier evaluation counted at the old thresholds is not
    touched: evaluate again.

    Raises `DataError` for images that the model was trained on or held out, by content, and for a
    class without image; `ConfigError` for a bad rate; nothing is changed then.
    """
    needed_images(rate, confidence=confidence)  # refuses impossible ones before the work
    folder = Path(run)
    card, weights = read_card(folder)
    known = _known_hashes(folder)
    paths = list(dict.fromkeys(find_images(inputs)))
    hashes = {path: file_sha256(path).hex() for path in paths}
    seen = [path for path in paths if hashes[path] in known]
    if seen:
        raise DataError(
            f"{seen[0]}: expected good images that the model has not seen, this one took part in "
            f"its training, as did {len(seen) - 1} others; take newer ones, or evaluate images"
        )
    scores: dict[str, list[float]] = {name: [] for name in card.classes}
    files: dict[str, list[list[str]]] = {name: [] for name in card.classes}
    ends: dict[str, list[float]] = {name: [] for name in card.classes}
    predictor = load(folder, device=device)
    for path, _, found, _ in predict_paths(predictor, paths, batch_size=batch_size):
        scores[found.class_name].append(found.score)
        files[found.class_name].append([path.name, hashes[path]])
        ends[found.class_name].append(float(np.quantile(found.map, 0.99)))
    without = [name for name, values in scores.items() if not values]
    if without:
        raise DataError(
            f"inputs: expected good images of every class of the model, none of the {len(paths)} "
            f"was taken for {', '.join(without)}; add some"
        )
    classes = calibrate_classes(scores, rate=rate, confidence=confidence, trim=trim)
    # Quantiles scale with the map, so that of each map is all that the colour scale needs.
    relative = [
        np.array([end / classes[name].threshold], dtype=np.float32)
        for name, values in ends.items()
        for end in values
    ]
    colours = colour_scale(relative)
    changed = dataclasses.replace(
        card, **calibration_fields(classes, scores), colour_scale=(colours.low, colours.high)
    )
    with writing_to(folder), locked(folder):
        remove_unfinished(folder)
        write_atomically(folder / CALIBRATION, (json.dumps(files, indent=2) + "\n").encode())
        write_card(folder, changed, weights)
        write_model_card(folder)
    return classes


def _known_hashes(folder: Path) -> set[str]:
    """SHA-256 of all images that the run learned from or held out, as far as it says."""
    data = read_json_object(folder / "data.json")
    parts = (data.get(part) for part in ("learn", "held"))
    return {
        digest
        for part in parts
        if isinstance(part, dict)
        for files in part.values()
        if isinstance(files, dict)
        for digest in files.values()
    }
