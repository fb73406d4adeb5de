"""How good a model is on labelled images; the only place where metrics are run.

By default by the protocol "exact": every anomaly map is compared with its mask in the image's own
size, and every metric is over all thresholds (`mambaadv2.metrics`), in one pass and constant
memory: scores are counted on a fine grid, and `ClassResult.grid_bound` says by how much that can
matter. Metrics are taken per class and then averaged over classes. `mambaadv2.protocols` has the
rules of other published tables, whose numbers are not comparable with these.

What a class cannot tell stays undefined: null in JSON, a dash in the table, never a number. It is
left out of the mean, and a note says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mambaadv2.data.record import Record
from mambaadv2.data.verify import read_masks, usable_records
from mambaadv2.errors import CheckpointError, ConfigError
from mambaadv2.evaluation_file import evaluation_text
from mambaadv2.files import file_sha256, write_atomically, writing_to
from mambaadv2.frames import Comparison
from mambaadv2.measure import ClassMeasure, class_metrics
from mambaadv2.metrics import Resampling
from mambaadv2.predict import ImageModel, Prediction, load, predict_paths
from mambaadv2.protocols import protocol_named
from mambaadv2.provenance import (
    Call,
    chosen_by,
    colour_range,
    data_sha256,
    facts,
    image_name,
    read_against,
    replaces,
    require_same_images,
    write_evaluation,
)
from mambaadv2.report import GalleryPicker, report_page, thumbnail_shares
from mambaadv2.results import METRICS, ClassResult, Evaluation, ImageResult

DEFAULT_RESAMPLING = Resampling()

__all__ = ["METRICS", "ClassResult", "Evaluation", "class_metrics", "evaluate"]


def evaluate(
    run: Path | str | ImageModel,
    data: Path | str,
    *,
    classes: Sequence[str] | None = None,
    protocol: str = "exact",
    resampling: Resampling | None = DEFAULT_RESAMPLING,
    json_path: Path | str | None = None,
    report: Path | str | None = None,
    against: Path | str | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    layout: str | None = None,
    device: str = "auto",
    title: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the test images of a data set.

    run: a run folder; or a model in memory, a `Predictor` or anything else with `classes` and
    `predict`. A run folder that can be written to also gets evaluation.json and a fresh model card.
    data: the data set's root, the folder of one class, or a manifest.
    classes: names to evaluate, all by default. Classes the model was not trained on are evaluated
    like the others and carry a note.
    protocol: "exact", "ader" or "dinomaly": the rules of `mambaadv2.protocols`.
    resampling: how the intervals of all numbers are drawn; None for none, which is faster.
    json_path, report: files for all numbers (`mambaadv2 compare` reads them) and for a page with
    charts and pictures, written at once when all is done; their folders are made where missing.
    against: a file of `json_path`, or a run folder, of the same images; the report compares both.
    on_error: "stop" lists all files that cannot be used and does nothing else; "skip" goes on
    without them and says how many and which.
    layout: of the data set, as in `list_records`; None recognises it.
    device: of a run folder: "auto" (a GPU where there is one), "cpu" or "cuda".
    title, command: what the report says instead of the run's name and this call.
    progress: show a bar on stderr when that is a terminal.

    Memory does not grow with the number of images, but for their names and scores.

    Before any prediction: `BadFilesError` with all files that cannot be used, `DataError` for a
    wrong data set, `CheckpointError` for a run that cannot be used, `ConfigError` if a file to
    write is a folder or the protocol does not fit the model. Then `CheckpointError` for maps that
    are not finite.

    >>> from mambaadv2 import evaluate  # doctest: +SKIP
    >>> result = evaluate("runs/parts", "parts", report="parts.html")  # doctest: +SKIP
    >>> print(result.table())  # doctest: +SKIP
    >>> result.mean["image_auroc"], result.classes["screw"].n_good  # doctest: +SKIP
    (0.93, 41)
    """
    call = Call(
        folder=Path(run) if isinstance(run, str | os.PathLike) else None,
        data=Path(data),
        classes=classes,
        protocol=protocol_named(protocol),
        resampling=resampling,
        json_path=_target("json_path", json_path),
        report=_target("report", report),
        on_error=on_error,
        device=device,
        title=title,
        command=command,
        time=datetime.now(UTC),
        layout=layout,
        against=read_against(against, report, protocol),
    )
    model = load(run, device=device) if isinstance(run, str | os.PathLike) else run
    return _evaluated(call, model, progress)


def _evaluated(call: Call, model: ImageModel, progress: bool) -> Evaluation:
    start = time.perf_counter()
    chosen = usable_records(
        call.data,
        split="test",
        classes=call.classes,
        on_error=call.on_error,
        layout=call.layout,
        progress=progress,
    )
    digest = data_sha256(chosen.records) if call.needs_digest else ""
    require_same_images(call, chosen.records, digest)
    results = _results(call, model, chosen.records, progress)
    evaluation = Evaluation(
        classes=_with_chosen_noted(call, results, chosen.records),
        seconds=time.perf_counter() - start,
        skipped=chosen.skipped,
        protocol=call.protocol,
        resampling=call.resampling,
    )
    _write(call, model, evaluation, digest, progress)
    return evaluation


def _results(
    call: Call, model: ImageModel, records: Sequence[Record], progress: bool
) -> dict[str, ClassResult]:
    """Class by class."""
    by_class: dict[str, list[Record]] = {}
    for record in records:
        by_class.setdefault(record.class_name, []).append(record)
    compared = Comparison(model, call.protocol)
    small = thumbnail_shares({name: len(members) for name, members in by_class.items()})
    results: dict[str, ClassResult] = {}
    # disable=None: shown on a terminal only.
    with tqdm(total=len(records), unit="image", disable=None if progress else True) as bar:
        for name, members in by_class.items():
            bar.set_description(name)
            results[name] = _class_result(call, model, compared, members, small[name], bar)
    return results


def _class_result(
    call: Call,
    model: ImageModel,
    compared: Comparison,
    records: Sequence[Record],
    thumbnails: int,
    bar: tqdm,
) -> ClassResult:
    defects = [record for record in records if record.defect]
    marked = bool(defects) and all(record.masks for record in defects)
    measure = ClassMeasure(call.protocol, call.resampling, pixels=marked)
    picker = None if call.report is None else GalleryPicker(colour_range(model), thumbnails)
    found = predict_paths(compared.decider, [record.path for record in records])
    for record, (path, rgb, prediction, _) in zip(records, found, strict=True):
        assert path == record.path, (path, record.path)
        mask = read_masks(record)
        image = _image_result(record, prediction, call.data)
        image = dataclasses.replace(
            image,
            pixels=rgb.shape[0] * rgb.shape[1],
            defect_pixels=None if mask is None else int(np.count_nonzero(mask)),
        )
        if marked or call.protocol.map_size is not None:
            values = _checked_map(compared.map(rgb, prediction), record)
            image = dataclasses.replace(image, ranked=compared.score(values, prediction))
            measure.add(image, values, None if mask is None else compared.mask(mask))
        else:
            measure.add(image)
        if call.writes:
            _require_threshold(prediction)
        if picker is not None:
            picker.add(image, rgb, prediction.map, mask)
        bar.update()
    result = measure.result()
    return dataclasses.replace(
        result,
        notes=(*_notes(model, records), *result.notes),
        gallery=None if picker is None else picker.gallery(),
    )


def _with_chosen_noted(
    call: Call, results: Mapping[str, ClassResult], records: Sequence[Record]
) -> dict[str, ClassResult]:
    """A note where test images have chosen the thresholds that they are counted at."""
    chosen = chosen_by(call.folder)
    if not chosen:
        return dict(results)
    counts: Counter[str] = Counter()
    for record in records:
        counts[record.class_name] += file_sha256(record.path).hex() in chosen
    return {
        name: dataclasses.replace(
            result,
            notes=(
                *result.notes,
                f"{counts[name]} of these images chose the thresholds (mambaadv2 calibrate): "
                "counts at the threshold and p-values are too good",
            ),
        )
        if counts[name]
        else result
        for name, result in results.items()
    }


def _checked_map(values: NDArray[np.float32], record: Record) -> NDArray[np.float32]:
    """The map as float32. Raises `CheckpointError`, naming the image, where it is not finite."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{record.path}: expected a finite anomaly map, the model gave NaN or infinity"
        )
    return values.astype(np.float32, copy=False)


def _image_result(record: Record, prediction: Prediction, data: Path) -> ImageResult:
    return ImageResult(
        name=image_name(record, data),
        kind=record.defect_type,
        defect=record.defect,
        score=float(prediction.score),
        threshold=float(prediction.threshold),
        flagged=bool(prediction.defect),
        found_class=prediction.class_name,
        p_value=prediction.p_value,
        sample=record.sample,
    )


def _notes(model: ImageModel, records: Sequence[Record]) -> list[str]:
    """What the records and the model alone tell about a class."""
    unmasked = {record.defect_type for record in records if record.defect and not record.masks}
    notes = []
    if unmasked:
        notes.append(f"no masks for {', '.join(sorted(unmasked))}: pixel metrics undefined")
    if records[0].class_name not in model.classes:
        notes.append("the model was not trained on this class")
    return notes


def _require_threshold(prediction: Prediction) -> None:
    if not 0 < prediction.threshold < math.inf:
        raise ConfigError(
            "report, json_path: expected a model with a threshold above 0 for every image, got "
            f"{prediction.threshold}; without one there is nothing to call a miss"
        )


def _write(
    call: Call,
    model: ImageModel,
    evaluation: Evaluation,
    digest: str,
    progress: bool,
) -> None:
    """Everything that was asked for, and what belongs into the run folder."""
    if call.json_path is not None:
        write_atomically(call.json_path, evaluation_text(evaluation, digest).encode())
    if call.report is not None:
        against = None if call.against is None else call.against.evaluation
        page = report_page(evaluation, facts(call, model, evaluation, digest), against)
        # The name of a file may be no text.
        write_atomically(call.report, page.encode(errors="backslashreplace"))
    if call.folder is not None:
        earlier = replaces(call.folder, evaluation, digest)
        if earlier is not None:
            _say(
                f"{call.folder}/evaluation.json: replaced, the earlier one was {earlier}", progress
            )
        try:
            write_evaluation(call.folder, evaluation, call.time, digest)
        except OSError as error:
            _say(f"{call.folder}: left as it is, it cannot be written to ({error})", progress)


def _target(name: str, path: Path | str | None) -> Path | None:
    """A file to write, checked before the long work and not after it."""
    if path is None:
        return None
    target = Path(path).resolve()  # a link stays one, what it leads to is written
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise ConfigError(f"{name}: expected a file to write, {target} is {kind}")
    with writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{name}: cannot write to {target.parent}; choose another folder")
    return target


def _say(text: str, progress: bool) -> None:
    if progress:
        tqdm.write(text, file=sys.stderr)
