"""Thresholds for a trained model from a validation split with known defects.

Good images alone say how many of them a threshold flags, and nothing of the defects that it misses.
Where some defects are known, a threshold can be chosen for what a miss costs; but not on the images
that the model is then measured on, or the measurement is worth nothing. So the split "validation"
is taken and no other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambaadv2.calibrate import LabelledScores, LabelledThreshold, require_aim, threshold_for_aim
from mambaadv2.checkpoint import ModelCard, read_card
from mambaadv2.data.index import list_records
from mambaadv2.data.record import Record, Split
from mambaadv2.data.verify import OnError, usable_records
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.files import file_sha256
from mambaadv2.predict import load, predict_paths
from mambaadv2.thresholds import colours_from, high_end, replace_labelled, unseen_hashes

SPLIT: Split = "validation"
_APART = (
    "a threshold chosen on test images makes their numbers worthless: set some good images and "
    "some defects apart, in a manifest (.csv, .jsonl, .parquet) whose column split says validation"
)


def recalibrate_labelled(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    aim: str,
    layout: str | None = None,
    on_error: OnError = "stop",
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, LabelledThreshold]:
    """Replace thresholds of a run folder by such as serve an aim on known defects; returns them.

    data: a data set, as in `list_records`, with good images and defects in its validation split;
    layout: its name, None recognises it. aim: "f1", "recall=0.95", "cost=20" or
    "cost=20,defects=0.002", as in `threshold_for_aim`. on_error: "stop" at files that cannot be
    used, listing all, or "skip" them. progress: messages on stderr.

    An image counts for the class that the model takes it for, as it will when the model decides. A
    class for which no good image or no defect is there, or too few for the aim, keeps its threshold
    and is not returned.
    P-values stay those of the held-out good images; the colour scale follows the thresholds.
    `labelled.json` keeps names, hashes, truth and scores of the images; counts of an earlier
    evaluation at the old thresholds are removed from `evaluation.json`.

    Raises `ConfigError` for an aim that is none or for which every class has too few defects;
    `DataError` for a data set without good images and defects in its validation split, for images
    that the model was trained on or held out and for such as are in the test split too, by content;
    `BadFilesError` for files that cannot be used. Nothing is changed then.
    """
    require_aim(aim)
    folder = Path(run)
    card, weights = read_card(folder)
    records = _validation_records(Path(data), card.classes, layout, on_error, progress)
    hashes = unseen_hashes(folder, [record.path for record in records])
    records = _without_copies(records, hashes)
    paths = [record.path for record in records]
    _require_not_tested(Path(data), layout, hashes)
    found = [
        _Seen(record=record, class_name=p.class_name, score=p.score, end=high_end(p.map))
        for record, (_, _, p, _) in zip(
            records,
            predict_paths(load(folder, device=device), paths, batch_size=batch_size),
            strict=True,
        )
    ]
    thresholds = _thresholds(card, found, aim, Path(data))
    listed = {
        name: [
            [s.record.path.name, hashes[s.record.path], s.record.defect, s.score]
            for s in found
            if s.class_name == name
        ]
        for name in thresholds
    }
    changed = _changed(card, thresholds, found)
    replace_labelled(folder, changed, weights, {"aim": aim, "images": listed})
    return thresholds


def labelled_words(
    run: str | os.PathLike[str], thresholds: Mapping[str, LabelledThreshold]
) -> Iterator[str]:
    """What `recalibrate_labelled` did to a run, for people: a paragraph a class, line by line."""
    card, _ = read_card(Path(run))
    for name in card.classes:
        if name in thresholds:
            yield f"{name}: threshold {thresholds[name].threshold:.6g}"
            yield f"  {thresholds[name].sentence}"
        else:
            yield f"{name}: threshold {card.thresholds[name]:.6g} kept, with too few defects or"
            yield f"  good images in the split {SPLIT}. {card.threshold_sentence(name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """An image and what the model says of it; end: as of `high_end`."""

    record: Record
    class_name: str
    score: float
    end: float


def _validation_records(
    data: Path, classes: Sequence[str], layout: str | None, on_error: OnError, progress: bool
) -> tuple[Record, ...]:
    """The usable images of the validation split, of classes that the model knows."""
    listing = list_records(data, split=SPLIT, layout=layout)
    defects = sum(record.defect for record in listing.records)
    good = len(listing.records) - defects
    if not (defects and good):
        others = sum(record.defect for record in _test_records(data, layout))
        raise DataError(
            f"{data}: expected good images and defects in the split {SPLIT}, found {good} and "
            f"{defects}, and {others} defects in the split test; {_APART}"
        )
    names = sorted({record.class_name for record in listing.records} & set(classes))
    if not names:
        raise DataError(
            f"{data}: expected classes of the model, {', '.join(classes)}; found "
            f"{', '.join(sorted(listing.classes))}"
        )
    return usable_records(
        data, split=SPLIT, classes=names, on_error=on_error, layout=layout, progress=progress
    ).records


def _without_copies(records: Sequence[Record], hashes: Mapping[Path, str]) -> tuple[Record, ...]:
    """One of each content: a copy says nothing new, and the guarantee would count it."""
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(hashes[record.path], record)
        if other.defect != record.defect:
            raise DataError(
                f"{record.path}: expected one label for one image, {other.path} is the same and "
                "is labelled otherwise; correct one of them"
            )
    return tuple(first.values())


def _test_records(data: Path, layout: str | None) -> tuple[Record, ...]:
    try:
        return list_records(data, split="test", layout=layout).records
    except DataError:
        return ()  # there is no such split


def _require_not_tested(data: Path, layout: str | None, hashes: Mapping[Path, str]) -> None:
    """Refuse images that the test split has too: a copy under another name is no other image."""
    tested = {
        file_sha256(record.path).hex(): record.path
        for record in _test_records(data, layout)
        if record.path.is_file()  # one that is missing is no concern here
    }
    for path, digest in hashes.items():
        if digest in tested:
            raise DataError(
                f"{path}: expected an image that is not in the split test, {tested[digest]} is the "
                f"same; {_APART}"
            )


def _thresholds(
    card: ModelCard, found: Sequence[_Seen], aim: str, data: Path
) -> dict[str, LabelledThreshold]:
    chosen: dict[str, LabelledThreshold] = {}
    short: ConfigError | None = None
    for name in card.classes:
        own = [seen for seen in found if seen.class_name == name]
        if len({seen.record.defect for seen in own}) < 2:
            continue
        labelled = LabelledScores(
            scores=np.array([seen.score for seen in own], dtype=np.float64),
            defects=np.array([seen.record.defect for seen in own]),
            split=SPLIT,
        )
        try:
            chosen[name] = threshold_for_aim(labelled, aim)
        except ConfigError as error:
            short = short or ConfigError(f"class {name}: {error}")
            continue
        if chosen[name].threshold <= 0:
            raise ConfigError(
                f"class {name}: the aim {aim} asks for flagging every image, since defects score "
                "as low as the best good images; choose another aim, or train better"
            )
    if not chosen and short is not None:
        raise short
    if not chosen:
        raise DataError(
            f"{data}: expected good images and defects in the split {SPLIT} that the model takes "
            f"for the same class, found such for none of {', '.join(card.classes)}"
        )
    return chosen


def _changed(
    card: ModelCard, chosen: Mapping[str, LabelledThreshold], found: Sequence[_Seen]
) -> ModelCard:
    """The description with these thresholds; held-out scores and other classes stay."""
    thresholds = {**card.thresholds, **{name: c.threshold for name, c in chosen.items()}}
    ends = {name: [s.end for s in found if s.class_name == name and not s.record.defect]
            for name in card.classes}  # fmt: skip
    told = {name: dataclasses.asdict(each) for name, each in chosen.items()}
    for fields in told.values():
        del fields["threshold"]
    return dataclasses.replace(
        card,
        thresholds=thresholds,
        calibration_kinds={**card.calibration_kinds, **dict.fromkeys(chosen, "labelled")},
        calibration_labelled={**card.calibration_labelled, **told},
        colour_scale=colours_from(ends, thresholds),
    )
