"""How an evaluation came about: command, hashes, environments, the run's own records."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mambaadv2.checkpoint import CALIBRATION, LABELLED, ModelCard, read_card
from mambaadv2.data.record import Record
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluation_file import Filed, evaluation_text, read_evaluation
from mambaadv2.files import EVALUATION, file_sha256, read_json_object, write_atomically
from mambaadv2.metrics import Resampling
from mambaadv2.predict import ImageModel, Predictor
from mambaadv2.protocols import EXACT, Protocol
from mambaadv2.report import Facts
from mambaadv2.results import LEVEL, Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an evaluation was asked for; arguments as in `mambaadv2.evaluate`."""

    folder: Path | None
    """The run's, None for a model in memory."""
    data: Path
    classes: Sequence[str] | None
    json_path: Path | None
    report: Path | None
    on_error: Literal["stop", "skip"]
    device: str
    title: str | None
    command: str | None
    time: datetime
    layout: str | None = None
    protocol: Protocol = EXACT
    resampling: Resampling | None = Resampling()  # noqa: RUF009 - a frozen value
    against: Filed | None = None

    @property
    def writes(self) -> bool:
        """Whether a file of every image was asked for."""
        return self.json_path is not None or self.report is not None

    @property
    def needs_digest(self) -> bool:
        """Whether the hash of the test files will be said or compared."""
        return self.writes or self.folder is not None

    def named(self) -> str:
        """The report's title: the one asked for, else the run's name."""
        if self.title is not None or self.folder is None:
            return self.title or "Evaluation of a model in memory"
        return f"Evaluation of {self.folder.resolve().name}"

    def typed(self) -> str:
        """The command asked for, else the one that repeats the call, where flags can say it."""
        if self.command is not None:
            return self.command
        odd = self.resampling != Resampling()
        if self.folder is None or self.classes is not None or odd:
            run = "model" if self.folder is None else repr(str(self.folder))
            chosen = "" if self.classes is None else f", classes={list(self.classes)!r}"
            chosen += "" if self.layout is None else f", layout={self.layout!r}"
            chosen += "" if self.protocol == EXACT else f", protocol={self.protocol.name!r}"
            chosen += f", resampling={self.resampling!r}" if odd else ""
            return (
                f"mambaadv2.evaluate({run}, {str(self.data)!r}{chosen}, "
                f"on_error={self.on_error!r}, device={self.device!r})"
            )
        words = ["mambaadv2", "evaluate", str(self.folder), str(self.data)]
        other = None if self.against is None else self.against.path
        files = {"--json": self.json_path, "--report": self.report, "--against": other}
        for flag, path in files.items():
            words += [] if path is None else [flag, str(path)]
        words += [] if self.layout is None else ["--layout", self.layout]
        words += [] if self.protocol == EXACT else ["--protocol", self.protocol.name]
        words += [] if self.on_error == "stop" else ["--on-error", self.on_error]
        words += [] if self.device == "auto" else ["--device", self.device]
        return shlex.join(words)


def data_sha256(records: Sequence[Record]) -> str:
    """SHA-256 over class, defect type, file name and content of all images and masks, in order.

    Where the data set lies does not count. Raises `DataError` naming a file that cannot be read.
    """
    total = hashlib.sha256()
    for record in records:
        names = (record.class_name, record.defect_type, record.path.name)
        masks = "mask" * len(record.masks)
        total.update(os.fsencode("\0".join((*names, masks))) + b"\0")
        for path in (record.path, *record.masks):
            total.update(file_sha256(path))
    return total.hexdigest()


def read_against(
    against: Path | str | None, report: Path | str | None, protocol: str
) -> Filed | None:
    """The evaluation to compare with, before any work; arguments as in `mambaadv2.evaluate`.

    Raises `ConfigError` without a report and for another protocol, `DataError` for no such file.
    """
    if against is None:
        return None
    if report is None:
        raise ConfigError(
            "against: expected a report to show the comparison in; name one with report (--report)"
        )
    filed = read_evaluation(against)
    if filed.replaced:
        raise DataError(
            f"against: {filed.path}: thresholds of its run were replaced since, so its verdicts "
            "hold no more; evaluate that run again"
        )
    theirs = filed.evaluation.protocol.name
    if theirs != protocol:
        raise ConfigError(
            f"against: expected an evaluation by protocol {protocol}, {filed.path} is by {theirs}; "
            "numbers of different rules cannot be compared"
        )
    return filed


def require_same_images(call: Call, records: Sequence[Record], digest: str) -> None:
    """Raise `ConfigError` unless the evaluation to compare with is of these images.

    digest: from `data_sha256`. Their names count too, since images are drawn again by them.
    """
    if call.against is None:
        return
    path, advice = call.against.path, "evaluate both runs on the same data set and folder"
    if call.against.data_sha256 != digest:
        raise ConfigError(
            f"against: expected an evaluation of the same test files, {path} has SHA-256 "
            f"{call.against.data_sha256[:12]}... and these have {digest[:12]}...; {advice}"
        )
    classes = call.against.evaluation.classes.values()
    theirs = {image.name for result in classes for image in result.images}
    ours = {image_name(record, call.data) for record in records}
    if theirs != ours:
        raise ConfigError(
            f"against: expected the same file names, {min(theirs ^ ours)} is only in one of {path} "
            f"and this data set; {advice}"
        )


def image_name(record: Record, data: Path) -> str:
    """What `ImageResult.name` is: the file, relative to the data set where it lies inside."""
    root = data if data.is_dir() else data.parent
    inside = record.path.is_relative_to(root)
    return (record.path.relative_to(root) if inside else record.path).as_posix()


def chosen_by(folder: Path | None) -> frozenset[str]:
    """SHA-256 of the images that a run's thresholds were chosen on after the training."""
    if folder is None:
        return frozenset()
    by_class = [read_json_object(folder / CALIBRATION)]
    by_class.append(read_json_object(folder / LABELLED).get("images", {}))
    return frozenset(
        str(row[1])
        for classes in by_class
        if isinstance(classes, dict)
        for rows in classes.values()
        if isinstance(rows, list)
        for row in rows
        if isinstance(row, list) and len(row) > 1
    )


def replaces(folder: Path, evaluation: Evaluation, digest: str) -> str | None:
    """What the evaluation in a run folder was of, in words, where it was of something else."""
    earlier = read_json_object(folder / EVALUATION)
    said = (earlier.get("protocol"), earlier.get("data_sha256"))
    if not earlier or said == (evaluation.protocol.name, digest):
        return None
    images = "these images" if said[1] == digest else "other images"
    return f"by protocol {said[0]}, of {images}"


def write_evaluation(folder: Path, evaluation: Evaluation, time: datetime, digest: str) -> None:
    """Write RUN/evaluation.json and refresh the model card, which shows its numbers.

    digest: from `data_sha256`. Raises `OSError` where the folder cannot be written to.
    """
    from mambaadv2 import __version__
    from mambaadv2.modelcard import write_model_card

    content = {
        "mambaadv2": __version__,
        "time_utc": time.isoformat(timespec="seconds"),
        "weights_sha256": read_card(folder)[1],
    }
    text = evaluation_text(evaluation, digest, content)
    write_atomically(folder / EVALUATION, text.encode())
    write_model_card(folder)


def facts(call: Call, model: ImageModel, evaluation: Evaluation, digest: str) -> Facts:
    """What the report says beside the numbers; digest: from `data_sha256`."""
    from mambaadv2.runlog import environment

    card = model.card if isinstance(model, Predictor) else None
    time = call.time.strftime("%Y-%m-%d %H:%M UTC")
    tables: dict[str, Mapping[str, object]] = {
        "Evaluation": {
            "protocol": evaluation.protocol.line(),
            "intervals": None
            if evaluation.resampling is None
            else f"{LEVEL:.0%}, BCa from {evaluation.resampling.replicates} resamplings of the "
            f"images, seed {evaluation.resampling.seed}",
            "data set": call.data,
            "SHA-256 of the test files": digest,
            "compared with": None if call.against is None else call.against.path,
            "time": time,
            "duration": f"{evaluation.seconds:.0f} s for {evaluation.images} images",
        },
        "Machine of the evaluation": environment(),
    }
    if card is not None:
        tables["Model"] = _of_model(card, call.folder)
        tables["Training"] = card.training
    if call.folder is not None:
        tables["Machine of the training"] = read_json_object(call.folder / "environment.json")
    return Facts(
        title=call.named(),
        command=call.typed(),
        time=time,
        tables={heading: _texts(rows) for heading, rows in tables.items() if rows},
        **({} if card is None else _calibrated(card, model, call.folder)),
        against="the other run" if call.against is None else _called(call.against.path),
        loss=[] if call.folder is None else _loss(call.folder / "metrics.jsonl"),
        colour_range=colour_range(model),
    )


def _called(path: Path) -> str:
    """A file's name, and that of the run where the file is its evaluation.json."""
    return path.resolve().parent.name if path.name == EVALUATION else path.name


def _calibrated(card: ModelCard, model: ImageModel, folder: Path | None) -> dict[str, Any]:
    """The fields of `Facts` that calibration fills."""
    assert isinstance(model, Predictor)
    return {
        "thresholds": card.thresholds,
        "held_out": {name: card.kept_scores(name) for name in card.classes},
        "held_out_images": card.calibration_images,
        "left_out": {name: _left_out(card, name, folder) for name in card.classes},
        "promises": {name: card.threshold_sentence(name) for name in card.classes},
        "colour_marks": {name: model.colour_marks(name) for name in card.classes},
    }


def _left_out(card: ModelCard, name: str, folder: Path | None) -> list[str]:
    """The files of the held-out images that look mislabelled, as far as the run names them."""
    trimmed = card.calibration_trimmed[name]
    if not trimmed or folder is None:
        return []
    try:
        if (folder / CALIBRATION).exists():
            files = [entry[0] for entry in read_json_object(folder / CALIBRATION)[name]]
        else:
            files = list(read_json_object(folder / "data.json")["held"][name])
        return [str(files[position]) for position in trimmed]
    except (KeyError, TypeError, IndexError):
        return []


def _of_model(card: ModelCard, folder: Path | None) -> dict[str, object]:
    return {
        "run folder": folder,
        "SHA-256 of the weights": read_card(folder)[1] if folder else None,
        "classes": ", ".join(card.classes),
        "encoder": card.encoder.name,
        "SHA-256 of the encoder's weights": card.encoder.sha256,
        "licence of the encoder": card.encoder.licence,
        "input, height x width": " x ".join(map(str, card.model.image_size)),
        "score": card.model.score,
    }


def colour_range(model: ImageModel) -> tuple[float, float]:
    """Where heat colours begin and end in multiples of the threshold: the model's own, or ours."""
    if isinstance(model, Predictor):
        return model.colour_scale.low, model.colour_scale.high
    return 0.5, 2.0


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Names with spaces for underscores, values as text; what is None is left out."""
    return {
        name.replace("_", " "): ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in values.items()
        if value is not None
    }


def _loss(path: Path) -> list[tuple[float, float]]:
    """(epoch, loss) of every line that says both."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    points = []
    for text in lines:
        try:
            line = json.loads(text)
            points.append((float(line["epoch"]), float(line["loss"])))
        except (ValueError, KeyError, TypeError):
            continue
    return points
