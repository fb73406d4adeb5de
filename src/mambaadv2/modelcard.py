"""MODEL_CARD.md: what a trained model is, what it rests on, and where it ends, for people.

Made from the run's own JSON files alone, so that it says what the model says. It names no machine,
no person and no path. What an older run does not tell is "not recorded", never guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mambaadv2.calibrate import (
    FALSE_ALARM_RATE,
    ClassCalibration,
    at_most,
    recorded_calibration,
    threshold_sentence,
)
from mambaadv2.errors import CheckpointError, ConfigError
from mambaadv2.evaluation_file import REPLACED
from mambaadv2.files import EVALUATION, SUSPECTS, read_json_object, write_atomically
from mambaadv2.markdown import escape, table

MODEL_CARD = "MODEL_CARD.md"

UNKNOWN = "not recorded"
_STRIDES = (32, 16, 8, 4)  # of the stages in `dims`; all but the first are compared
_METRICS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "pixel_aupro": "P-AUPRO",
    "mad": "mAD",
    "pixel_iou_max": "IoUmax",
}
_ENVIRONMENT = {
    "mambaadv2": "mambaadv2",
    "python": "Python",
    "torch": "torch",
    "system": "system",
    "processor": "processor",
    "cpu_capability": "vector instructions",
    "threads": "threads",
    "gpu": "GPU",
}


def write_model_card(folder: Path) -> None:
    """Write or replace `MODEL_CARD.md` of a run folder, in one step.

    Reads `model.json`, `data.json`, `environment.json` and, where the run was measured,
    `evaluation.json`; only the first must be there. Raises `CheckpointError` when that one cannot
    be read, and `OSError` when the folder cannot be written to.
    """
    model = read_json_object(folder / "model.json")
    if not model:
        raise CheckpointError(
            f"{folder / 'model.json'}: expected a JSON object, for the model card"
        )
    data, environment = (
        read_json_object(folder / "data.json"),
        read_json_object(folder / "environment.json"),
    )
    evaluation = read_json_object(folder / EVALUATION)
    sections = (
        _opening(model),
        _classes(model, data, (folder / SUSPECTS).is_file()),
        _measured(evaluation, model),
        _architecture(model),
        _limits(model),
        _making(model, data, environment),
        _use(),
        _hashes(folder, model),
    )
    lines = [line for section in sections for line in (*section, "")]
    write_atomically(folder / MODEL_CARD, "\n".join(lines).encode())


def _at(content: object, *names: str) -> Any:
    """A value deep in parsed JSON, None where the way does not go on."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def _known(value: object) -> str:
    return UNKNOWN if value is None else escape(value)


def _names(model: Mapping[str, Any]) -> list[str]:
    names = model.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def _number(value: Any, digits: str, times: float = 1) -> str:
    return f"{value * times:{digits}}" if _are_numbers(value) else UNKNOWN


def _are_numbers(*values: object) -> bool:
    return all(type(value) in (int, float) for value in values)


def _opening(model: Mapping[str, Any]) -> Iterator[str]:
    names = _names(model)
    shown = ", ".join(map(escape, names[:10])) + (", ..." if len(names) > 10 else "")
    classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
    yield f"# Model card: defects in {classes}"
    yield ""
    yield (
        f"A model that finds defects in images of {shown}, written by mambaadv2 "
        f"{_known(_at(model, 'training', 'version'))}. It has seen good images only and marks what "
        "differs from them."
    )
    yield ""
    yield (
        "**For**: pointing people to images and places that deserve a look, where images are taken "
        "as the training images were: same product, view, light and camera."
    )
    yield ""
    yield (
        "**Not for**: decisions that nobody checks and that can hurt people; classes that are not "
        "in the list below; naming the kind of a defect; images taken in another way than the "
        "training images, which may all be flagged, or none."
    )


def _classes(model: Mapping[str, Any], data: Mapping[str, Any], pictures: bool) -> Iterator[str]:
    yield "## Classes and thresholds"
    yield ""
    rows, promises = [], []
    for name in _names(model):
        held = _at(model, "calibration_images", name)
        scores = _at(model, "calibration_scores", name)
        threshold = _at(model, "thresholds", name)
        scored = isinstance(scores, list) and len(scores) > 0 and _are_numbers(*scores, threshold)
        over = str(sum(score > threshold for score in scores)) if scored else UNKNOWN
        promised, sentence = _promised(model, name)
        promises += [] if sentence is None else [f"- {escape(name)}: {sentence}"]
        rows.append(
            [
                escape(name),
                _known(_at(model, "training", "images", name)),
                _known(held),
                _number(threshold, ".6g"),
                over,
                UNKNOWN if sentence is None else _known(_at(model, "calibration_kinds", name)),
                UNKNOWN if sentence is None else _on_average(promised),
            ]
        )
    head = ["class", "images learned from", "held out", "threshold", "held out above it"]
    head += ["kind", "false alarms, on average at most"]
    yield from table(head, rows)
    yield ""
    yield (
        "A threshold is in raw score units of its class and, unless its kind says otherwise, comes "
        f"from the held-out good images alone. {_aim(model)}"
    )
    if promises:
        yield ""
        yield from promises
    if pictures:
        yield ""
        yield f"Good images that look mislabelled are shown, with score and p-value, in {SUSPECTS}."
    skipped = _at(data, "skipped")
    count = len(skipped) if isinstance(skipped, list) else _at(model, "training", "skipped")
    if count:
        yield ""
        yield f"Files left out because they could not be used: {escape(count)}, see data.json."


def _on_average(promised: ClassCalibration | None) -> str:
    return "no promise" if promised is None else at_most(promised.guaranteed)


def _aim(model: Mapping[str, Any]) -> str:
    rate = _at(model, "false_alarm_rate")
    wished = f"{100 * (rate if _are_numbers(rate) else FALSE_ALARM_RATE):g} %"
    return (
        f'It aims at flagging {wished} of good images. "conformal" is a threshold that keeps to it '
        "whatever the scores' distribution, on average over the choice of the held-out images; "
        '"assumed" is one from too few images for that, right if scores are roughly normal, and '
        'that is a wish and no guarantee; "labelled" is one chosen with known defects for an aim '
        'of its own; "earlier" is the wish of an older version.'
    )


def _promised(model: Mapping[str, Any], name: str) -> tuple[ClassCalibration | None, str | None]:
    """What a threshold promises, if it does, and the sentence on it; None where nothing is said."""
    try:
        promised, sentence = recorded_calibration(model, name), threshold_sentence(model, name)
        if _at(model, "calibration_kinds", name) == "labelled":
            sentence = escape(sentence)  # it has words of the file's own in it
        return promised, sentence
    except ConfigError:
        return None, None


def _measured(evaluation: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    yield "## Measured"
    yield ""
    classes, weights = evaluation.get("classes"), model.get("weights_sha256")
    others = evaluation.get("weights_sha256", weights) != weights
    if others or not isinstance(classes, dict):
        yield "Not measured yet. With labelled test images: `mambaadv2 evaluate RUN DATA`"
        if others:
            yield ""
            yield "The numbers in `evaluation.json` are another model's, by its hash."
        return
    rows = [
        [
            escape(name),
            *(_measured_value(numbers, metric) for metric in _METRICS),
            _known(_at(numbers, "n_good")),
            _known(_at(numbers, "n_defect")),
        ]
        for name, numbers in classes.items()
    ]
    mean = [_measured_value(evaluation.get("mean"), metric) for metric in _METRICS]
    rows.append(["**mean**", *mean, *(_sum(classes, count) for count in ("n_good", "n_defect"))])
    yield from table(["class", *_METRICS.values(), "good", "defect"], rows)
    yield ""
    rules = evaluation.get("rules")
    rules = rules if isinstance(rules, dict) else {}
    said = "; ".join(f"{escape(name)} {escape(rule)}" for name, rule in rules.items()) or UNKNOWN
    yield (
        f"In percent, protocol {_known(evaluation.get('protocol'))} of mambaadv2 ({said}), "
        "averaged over classes; in brackets 95 % intervals over images. A dash is a value that "
        "these images do not define. Measured: "
        f"{_time(evaluation.get('time_utc'))}, on images with the fingerprint (SHA-256 over their "
        f"names and content) {_known(evaluation.get('data_sha256'))}."
    )
    if evaluation.get(REPLACED):
        yield ""
        yield (
            "Evaluated at earlier thresholds: they were replaced since. The numbers above hold for "
            "all thresholds; what was counted at the earlier ones is removed. To count at the new "
            "ones: `mambaadv2 evaluate RUN DATA`"
        )
    notes = evaluation.get("notes")
    if isinstance(notes, dict) and notes:
        yield ""
        for name, texts in notes.items():
            for text in texts if isinstance(texts, list) else [texts]:
                yield f"- {escape(name)}: {escape(text)}"
    skipped = evaluation.get("skipped")
    if isinstance(skipped, list) and skipped:
        yield ""
        yield f"Test files that could not be used and were left out: {len(skipped)}."


def _time(value: object) -> str:
    known = isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d", value)
    return f"{known[0].replace('T', ' ')} UTC" if known else _known(value)


def _measured_value(numbers: object, metric: str) -> str:
    """In percent, with its interval where there is one."""
    value, ends = _percent(_at(numbers, metric)), _at(numbers, "intervals", metric)
    if isinstance(ends, list) and len(ends) == 2 and _are_numbers(*ends):
        return f"{value} ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"
    return value


def _percent(value: Any) -> str:
    return "–" if value is None else _number(value, ".1f", 100)


def _sum(classes: Mapping[str, Any], name: str) -> str:
    counts = [_at(numbers, name) for numbers in classes.values()]
    return str(sum(counts)) if all(type(count) is int for count in counts) else UNKNOWN


def _architecture(model: Mapping[str, Any]) -> Iterator[str]:
    config, encoder = _at(model, "model"), _at(model, "encoder")
    yield "## Architecture"
    yield ""
    yield (
        "MambaADv2: a frozen pre-trained encoder and a decoder of state-space blocks that rebuilds "
        "its features; what the decoder cannot rebuild is the anomaly."
    )
    yield ""
    rows = [
        ["encoder", _known(_at(encoder, "name"))],
        ["its licence, as its publisher states it", _known(_at(encoder, "licence"))],
        ["where its weights came from", _known(_at(encoder, "source"))],
        ["their file", _known(_at(encoder, "file"))],
        ["SHA-256 of that file", _known(_at(encoder, "sha256"))],
        ["input, height x width in pixels", _size(_at(config, "image_size"))],
        ["channels of the decoder's stages", _listed(_at(config, "dims"))],
        ["scan directions of the stages", _listed(_at(config, "directions"))],
        ["score", _known(_at(config, "score"))],
    ]
    yield from table(["", ""], rows)
    yield ""
    yield "Every field is in `model.json`. The encoder's weights are in `model.safetensors` too."


def _size(value: Any) -> str:
    return f"{value[0]} x {value[1]}" if _whole_pair(value) else UNKNOWN


def _whole_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)


def _listed(value: object) -> str:
    return ", ".join(escape(item) for item in value) if isinstance(value, list) else UNKNOWN


def _limits(model: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    size, dims = _at(model, "model", "image_size"), _at(model, "model", "dims")
    if _whole_pair(size) and isinstance(dims, list) and len(dims) in (3, 4):
        cell = _STRIDES[len(dims) - 1]
        yield (
            f"- Small defects: an image is resized to {size[0]} x {size[1]} pixels, and the finest "
            f"features compared cover {cell} x {cell} of those, 1/{size[0] // cell} of the height "
            f"by 1/{size[1] // cell} of the width. What is much smaller than that is easily lost."
        )
    yield (
        "- Classes it was not trained on: it says the nearest class it knows and never that it "
        "knows none."
    )
    held = [_at(model, "calibration_images", name) for name in _names(model)]
    few = [n for n, count in zip(_names(model), held, strict=True) if _is_few(count)]
    if few:
        yield (
            "- Thresholds that rest on fewer than ten held-out images, to be checked on fresh good "
            f"images before they decide anything: {', '.join(map(escape, few))}."
        )
    yield (
        "- Changes of camera, light, position or supplier look like defects. After a change, "
        "train again with images from after it."
    )
    yield "- Defects in the training images are learned as normal."
    yield "- The threshold says nothing about which defects are found; only a measurement does."


def _is_few(count: object) -> bool:
    return type(count) is int and count < 10


def _making(
    model: Mapping[str, Any], data: Mapping[str, Any], environment: Mapping[str, Any]
) -> Iterator[str]:
    training = _at(model, "training")
    yield "## How it was made"
    yield ""
    learned = _at(training, "images")
    images = _sum({"": {"n": sum(learned.values())}}, "n") if _counts(learned) else UNKNOWN
    rows = [
        ["images learned from", images],
        ["fingerprint of all training and held-out images", _known(_at(training, "data_sha256"))],
        ["steps", _known(_at(training, "steps"))],
        ["seconds, everything included", _known(_at(training, "seconds"))],
        ["seed", _known(_at(training, "seed"))],
    ]
    for key, label in _ENVIRONMENT.items():
        value = environment.get(key)
        rows.append(
            [label, "none" if key == "gpu" and value is None and environment else _known(value)]
        )
    yield from table(["", ""], rows)
    if data:
        yield ""
        yield "`data.json` names every image and its SHA-256, `config.json` every setting."


def _counts(value: object) -> bool:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


def _use() -> Iterator[str]:
    yield "## How to use it"
    yield ""
    yield "With this folder as RUN, and nothing else from the machine that made it:"
    yield ""
    yield "```"
    yield "mambaadv2 predict RUN IMAGES --out RESULTS"
    yield "mambaadv2 evaluate RUN DATA"
    yield "```"
    yield ""
    yield "```python"
    yield "from mambaadv2 import load"
    yield "from mambaadv2.image import read_image"
    yield ""
    yield '[prediction] = load("RUN").predict([read_image("IMAGE")])'
    yield "prediction.score, prediction.threshold, prediction.defect, prediction.class_name"
    yield "```"


def _hashes(folder: Path, model: Mapping[str, Any]) -> Iterator[str]:
    yield "## Is this the model?"
    yield ""
    yield (
        "Loading checks that `model.safetensors` is the file that `model.json` describes. To check "
        "all of it by hand, in this folder:"
    )
    yield ""
    yield "```"
    yield "sha256sum --check <<'END'"
    weights = model.get("weights_sha256")
    if isinstance(weights, str) and re.fullmatch(r"[0-9a-f]{64}", weights):
        yield f"{weights}  model.safetensors"
    for name in ("model.json", "data.json"):
        try:
            yield f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        except OSError:
            continue
    yield "END"
    yield "```"
