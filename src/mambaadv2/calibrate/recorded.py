"""What a description of a model says of a class's threshold, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambaadv2.calibrate.classes import ClassCalibration
from mambaadv2.calibrate.conformal import largest_rank
from mambaadv2.calibrate.labelled import LabelledThreshold
from mambaadv2.errors import ConfigError


def recorded_calibration(content: Mapping[str, Any], name: str) -> ClassCalibration | None:
    """The calibration of class `name` from the fields of `model.json`, parsed.

    None for a threshold that promises no rate of false alarms: one of the rule before schema 3
    (kind "earlier") and one chosen with known defects (kind "labelled", see `recorded_labelled`).
    Raises `ConfigError` for fields that are absent or contradict each other.
    """
    try:
        kind = content["calibration_kinds"][name]
        if kind in ("earlier", "labelled"):
            return None
        if kind not in ("conformal", "assumed"):
            raise ConfigError(
                f"calibration_kinds: expected conformal, assumed, labelled or earlier for {name}, "
                f"got {kind!r}"
            )
        images = content["calibration_images"][name]
        if type(images) is not int or not 0 < images < 2**31:
            raise ConfigError(f"calibration_images: expected a number of images, got {images!r}")
        trimmed = tuple(content["calibration_trimmed"][name])
        rate, confidence = content["false_alarm_rate"], content["false_alarm_confidence"]
        rank = largest_rank(images - len(trimmed), rate, confidence=confidence)
        if (kind == "conformal") != (rank > 0):
            raise ConfigError(
                f"calibration_kinds: {kind} contradicts {images - len(trimmed)} images for a rate "
                f"of {rate}"
            )
        return ClassCalibration(
            threshold=content["thresholds"][name],
            images=images,
            kind="conformal" if kind == "conformal" else "assumed",
            rate=rate,
            confidence=confidence,
            rank=rank or 1,
            trimmed=trimmed,
            trim=bool(content.get("calibration_trim", True)),
            leave_one_out=bool(content["leave_one_out"]),
        )
    except ConfigError as error:
        raise ConfigError(f"calibration of {name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"calibration of {name}: missing or wrong field ({error})") from error


def recorded_labelled(content: Mapping[str, Any], name: str) -> LabelledThreshold | None:
    """The threshold of class `name` chosen with known defects; None for one of another kind.

    From the fields of `model.json`, parsed. Raises `ConfigError` for fields that are absent, wrong
    or contradict the kind.
    """
    try:
        kind = content["calibration_kinds"][name]
        told = content.get("calibration_labelled", {})
        if (kind == "labelled") != (name in told):
            raise ConfigError(
                f"calibration_labelled: expected an entry exactly for kind labelled, the kind is "
                f"{kind!r}"
            )
        if kind != "labelled":
            return None
        return LabelledThreshold(threshold=content["thresholds"][name], **told[name])
    except ConfigError as error:
        raise ConfigError(f"calibration of {name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"calibration of {name}: missing or wrong field ({error})") from error


def threshold_sentence(content: Mapping[str, Any], name: str) -> str:
    """Which rule made the threshold of class `name` and what it promises, for people.

    From the fields of `model.json`, parsed; raises as the other two.
    """
    labelled, promised = recorded_labelled(content, name), recorded_calibration(content, name)
    if labelled is not None:
        return labelled.sentence
    if promised is not None:
        return promised.sentence
    return (
        "By the rule of an older version, a wish of 1 % of false alarms; nothing is guaranteed. "
        "Calibrate the run again with good images for a guarantee."
    )
