"""What a batch of predictions says as a whole: counts, discoveries, drift; `summary.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambaadv2.calibrate import StreamWatch, adjusted_p_values, needed_images, within
from mambaadv2.checkpoint import ModelCard
from mambaadv2.errors import ConfigError
from mambaadv2.files import write_atomically

SUMMARY, SCHEMA_VERSION = "summary.json", 1
WATCH_DELTA, WATCH_DEFECTS = 0.001, 0.01  # of `StreamWatch`
BINS = 10  # of the p-values' histogram, each 1 / BINS wide
NAMED = 10  # discoveries in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A change in the stream: line of `predictions.jsonl`, from 1, image, class or None for all."""

    line: int
    path: str
    class_name: str | None
    says: str


class Watching:
    """A `StreamWatch` over the lines of a predictions file, in their order.

    Its state follows from the lines alone: fed with those that are there, it goes on where an
    interrupted call ended.
    """

    def __init__(self, card: ModelCard) -> None:
        self.alone = card.leave_one_out
        self.alarms: list[Alarm] = []
        self._watch = StreamWatch(card.unseen_scores, delta=WATCH_DELTA, defects=WATCH_DEFECTS)
        self._lines = self._said = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in the next line; an image that could not be read says nothing."""
        self._lines += 1
        if "error" in line:
            return
        for alarm in self._watch.add(line["class"], line["score"]):
            self.alarms.append(
                Alarm(
                    line=self._lines,
                    path=line["path"],
                    class_name=alarm.class_name,
                    says=alarm.says,
                )
            )

    def opening(self) -> str:
        """What is watched for, and the bound."""
        text = (
            "watch: while nothing changes and each image is a defect with a chance of at most "
            f"{100 * WATCH_DEFECTS:g} %, whatever came before, the chance of any alarm in this "
            f"call is at most {100 * WATCH_DELTA:g} %, however long the stream; many defects in a "
            "row are a change"
        )
        if self.alone:
            text += (
                "; compared with the stream's own beginning, since the held-out images of this run "
                "fitted its scorer too: 'mambaadv2 calibrate' with new good images mends that"
            )
        return text

    def news(self) -> Iterator[str]:
        """A sentence for each alarm that was not told yet."""
        while self._said < len(self.alarms):
            alarm = self.alarms[self._said]
            self._said += 1
            of = "" if alarm.class_name is None else f" of {alarm.class_name}"
            yield (
                f"watch: change at line {alarm.line} ({alarm.path}): {alarm.says}{of}; the camera, "
                f"the light or the product is another, or more than {100 * WATCH_DEFECTS:g} % are "
                "defects"
            )

    def closing(self) -> str:
        """What was seen in all."""
        count = len(self.alarms)
        seen = "no change" if not count else f"{count} change{'s' if count > 1 else ''}"
        return f"watch: {seen} in {self._watch.seen} images"

    def content(self) -> dict[str, object]:
        """For `summary.json`."""
        return {
            "delta": WATCH_DELTA,
            "defects": WATCH_DEFECTS,
            "images": self._watch.seen,
            "compared_with": "the stream's beginning" if self.alone else "held-out good images",
            "alarms": [
                {"line": a.line, "path": a.path, "class": a.class_name, "says": a.says}
                for a in self.alarms
            ],
        }


def require_fdr(card: ModelCard, share: float | None) -> None:
    """Raise `ConfigError` for a share that is none, and for a model without p-values."""
    if share is None:
        return
    if not 0 < share < 1:
        raise ConfigError(f"fdr: expected a share between 0 and 1, got {share}")
    without = [name for name in card.classes if not card.kept_scores(name)]
    if without:
        raise ConfigError(
            f"fdr: expected a run that knows the scores of its held-out images, this one does not "
            f"for {', '.join(without)}: 'mambaadv2 calibrate RUN' with new good images adds them"
        )


def write_summary(
    lines: Path, card: ModelCard, *, fdr: float | None, watching: Watching | None
) -> list[str]:
    """Read finished lines, write `summary.json` beside them; returns sentences on it, for people.

    fdr: wished share of good images among the discoveries, in (0, 1); None makes none.
    """
    classes: dict[str, dict[str, Any]] = {}
    p_values: list[tuple[int, float]] = []
    images = errors = defects = 0
    with lines.open("rb") as content:
        for number, text in enumerate(content, start=1):
            line = json.loads(text)
            images += 1
            if "error" in line:
                errors += 1
                continue
            own = classes.setdefault(
                line["class"], {"images": 0, "defects": 0, "p_values": [0] * BINS}
            )
            own["images"] += 1
            own["defects"] += line["defect"]
            defects += line["defect"]
            if (p := line["p_value"]) is not None:
                own["p_values"][min(BINS - 1, int(p * BINS))] += 1
                p_values.append((number, p))
    told: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "images": images,
        "errors": errors,
        "defects": defects,
        "classes": {name: classes[name] for name in sorted(classes)},
    }
    sentences: list[str] = []
    if watching is not None:
        told["watch"] = watching.content()
        sentences.append(watching.closing())
    if fdr is not None:
        held = max((len(card.kept_scores(name)) for name in classes), default=0)
        told["fdr"] = _discovered(lines, p_values, fdr)
        sure = not card.leave_one_out and not any(card.calibration_trimmed.values())
        told["fdr"]["p_values_guaranteed"] = sure
        sentences.append(_discovery_words(told["fdr"], held))
        if not sure:
            sentences.append(
                "fdr: this share is near and not proved: the held-out images fitted the scorer "
                "too, or some were left out; 'mambaadv2 calibrate' with new good images mends that"
            )
    write_atomically(lines.with_name(SUMMARY), (json.dumps(told, indent=2) + "\n").encode())
    return sentences


def _discovered(lines: Path, p_values: Sequence[tuple[int, float]], share: float) -> dict[str, Any]:
    adjusted = adjusted_p_values([p for _, p in p_values])
    chosen = {
        number: (p, float(rate))
        for (number, p), rate in zip(p_values, adjusted, strict=True)
        if within(rate, share)
    }
    found = []
    with lines.open("rb") as content:
        for number, text in enumerate(content, start=1):
            if number in chosen:
                p, rate = chosen[number]
                path = json.loads(text)["path"]
                found.append({"line": number, "path": path, "p_value": p, "adjusted": rate})
    return {"share": share, "images": len(p_values), "found": len(found), "discoveries": found}


def _discovery_words(found: Mapping[str, Any], held: int) -> str:
    share, images, count = found["share"], found["images"], found["found"]
    if count:
        names = ", ".join(each["path"] for each in found["discoveries"][:NAMED])
        more = f" and {count - NAMED} more" if count > NAMED else ""
        return (
            f"fdr: {count} of {images} images are called defects; at most {100 * share:g} % of "
            f"such are good, on average: {names}{more}; all are in {SUMMARY}"
        )
    text = f"fdr: none of {images} images can be called a defect at {100 * share:g} %"
    if not images:
        return text
    needed = needed_images(share)
    if held < needed:
        return (
            f"{text}: {held} held-out good images cannot show it in any batch, which takes at "
            f"least {needed}"
        )
    least = math.ceil(images / (share * (held + 1)) - 1e-9)
    return (
        f"{text}: with {held} held-out good images that takes at least {least} image"
        f"{'' if least == 1 else 's'} above all of them"
    )
