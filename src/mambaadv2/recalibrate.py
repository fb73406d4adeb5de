"""New thresholds for a trained model, from good images that it has never seen.

Whitening and thresholds of a training share their held-out images, so that nothing can be proved of
the thresholds without an assumption. Images that had no part in the training need none: they are
exchangeable with the next good image if they were taken as it will be, and the guarantee of
`calibrate.conformal` holds in full. An image counts for the class that the model takes it for, as
it will when it decides, so a class that is mistaken for another now and then is covered too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from mambaadv2.calibrate import (
    FALSE_ALARM_RATE,
    ClassCalibration,
    calibrate_classes,
    needed_images,
)
from mambaadv2.checkpoint import CALIBRATION, calibration_fields, read_card
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.files import read_json_object
from mambaadv2.predict import find_images, load, predict_paths
from mambaadv2.suspect_sheet import find_suspects
from mambaadv2.thresholds import colours_from, high_end, replace_good, unseen_hashes


def recalibrate(
    run: str | os.PathLike[str],
    inputs: Sequence[str],
    *,
    rate: float = FALSE_ALARM_RATE,
    confidence: float | None = None,
    trim: bool = True,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, ClassCalibration]:
    """Replace the thresholds and the colour scale of a run folder; weights stay. Returns the new.

    inputs: files, folders and patterns of good images alone, at least one that the model takes for
    each class; copies of an image count once. rate: wished share of good images flagged;
    confidence: None for on average, else the share of calibrations for which it is to hold; trim:
    leave out images that look mislabelled; all as in `calibrate_classes`. progress: a bar on stderr
    when that is a terminal.

    `calibration.json` keeps names and hashes of the images, in the order of their scores in
    `model.json`; `suspects.png` shows those that were left out, if any. What an earlier evaluation
    counted at the old thresholds is removed from `evaluation.json`: evaluate again.

    Raises `DataError` for images that the model was trained on or held out, by content, and for a
    class without image; `ConfigError` for a bad rate; nothing is changed then.

    >>> from mambaadv2 import recalibrate  # doctest: +SKIP
    >>> print(recalibrate("runs/parts", ["line4/good"])["screw"].sentence)  # doctest: +SKIP
    """
    needed_images(rate, confidence=confidence)  # refuses impossible ones before the work
    if rate >= 0.5:
        raise ConfigError(f"rate: expected a false-alarm rate below 0.5, got {rate}")
    folder = Path(run)
    card, weights = read_card(folder)
    paths = list(dict.fromkeys(find_images(inputs)))
    hashes = unseen_hashes(folder, paths)
    first: dict[str, Path] = {}
    for path, digest in hashes.items():
        first.setdefault(digest, path)
    paths = list(first.values())  # a copy says nothing new, and the guarantee would count it
    scores: dict[str, list[float]] = {name: [] for name in card.classes}
    files: dict[str, list[Path]] = {name: [] for name in card.classes}
    ends: dict[str, list[float]] = {name: [] for name in card.classes}
    predicted = predict_paths(load(folder, device=device), paths, batch_size=batch_size)
    bar = tqdm(
        predicted, total=len(paths), unit="image", desc="calibrate",
        disable=None if progress else True,
    )  # fmt: skip
    for path, _, found, _ in bar:
        scores[found.class_name].append(found.score)
        files[found.class_name].append(path)
        ends[found.class_name].append(high_end(found.map))
    without = [name for name, values in scores.items() if not values]
    if without:
        raise DataError(
            f"inputs: expected good images of every class of the model, none of the {len(paths)} "
            f"was taken for {', '.join(without)}; add some"
        )
    classes = calibrate_classes(scores, rate=rate, confidence=confidence, trim=trim)
    changed = dataclasses.replace(
        card,
        **calibration_fields(classes, scores),
        colour_scale=colours_from(ends, {name: c.threshold for name, c in classes.items()}),
    )
    named = {name: [[p.name, hashes[p]] for p in paths] for name, paths in files.items()}
    replace_good(folder, changed, weights, named, find_suspects(classes, scores, files))
    return classes


def calibration_words(
    run: str | os.PathLike[str], classes: Mapping[str, ClassCalibration]
) -> Iterator[str]:
    """What `recalibrate` did to a run, for people: a paragraph for each class, line by line."""
    files = read_json_object(Path(run) / CALIBRATION)
    for name, calibrated in classes.items():
        count = f"{calibrated.images} good image{'' if calibrated.images == 1 else 's'}"
        yield f"{name}: threshold {calibrated.threshold:.6g} from {count}"
        yield f"  {calibrated.sentence}"
        for i in calibrated.trimmed:
            yield f"  left out, looks mislabelled: {files[name][i][0]}"
