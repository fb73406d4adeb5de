"""What a description of a model says of a class's threshold, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambaadv2.calibrate.classes import ClassCalibration
from mambaadv2.calibrate.conformal import largest_rank
from mambaadv2.errors import ConfigError


def recorded_calibration(content: Mapping[str, Any], name: str) -> ClassCalibration | None:
    """The calibration of class `name` from the fields of `model.json`, parsed.

    None for a threshold of the rule before schema 3 (kind "earlier"), which promises nothing.
    Raises `ConfigError` for fields that are absent or contradict each other.
    """
    try:
        kind = content["calibration_kinds"][name]
        if kind == "earlier":
            return None
        if kind not in ("conformal", "assumed"):
            raise ConfigError(
                f"calibration_kinds: expected conformal, assumed or earlier for {name}, got "
                f"{kind!r}"
            )
        images = content["calibration_images"][name]
        if type(images) is not int or not 0 < images < 2**31:
            raise ConfigError(f"calibration_images: expected a number of images, got {images!r}")
        trimmed = tuple(content["calibration_trimmed"][name])
        rate, confidence = content["false_alarm_rate"], content["false_alarm_confidence"]
        return ClassCalibration(
            threshold=content["thresholds"][name],
            images=images,
            kind="conformal" if kind == "conformal" else "assumed",
            rate=rate,
            confidence=confidence,
            rank=largest_rank(images - len(trimmed), rate, confidence=confidence) or 1,
            trimmed=trimmed,
            leave_one_out=bool(content["leave_one_out"]),
        )
    except ConfigError as error:
        raise ConfigError(f"calibration of {name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"calibration of {name}: missing or wrong field ({error})") from error
