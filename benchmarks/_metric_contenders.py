"""One way to compute metrics, in a process of its own: started by `scripts/bench metrics`.

    python benchmarks/_metric_contenders.py NAME FOLDER [--grow 1000,2000]

Runs in whatever environment has what NAME needs, so it imports nothing of the benchmarks. FOLDER
holds maps.npy (N, H, W) float32 and masks.npy (N, H, W) bool. Images are read one by one, outside
the time measured, and the last line printed is JSON: times, values, memory. With --grow the images
are gone through again and again, each time a little hotter, and memory is taken on the way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]
Values = dict[str, float]

LIMIT = 0.3
THRESHOLDS = 200


class Contender(NamedTuple):
    add: Callable[[Mask, Map, str], None]
    finish: Callable[[], Values]


class Scale(NamedTuple):
    """What a contender may know beforehand."""

    low: float
    high: float


def streaming(scale: Scale) -> Contender:
    return _ours(None)


def streaming_with_intervals(scale: Scale) -> Contender:
    from mambaadv2.metrics import Resampling

    return _ours(Resampling())


def _ours(resampling: Any) -> Contender:
    from mambaadv2.metrics import ImagePool, StreamingPool

    pixels, images = StreamingPool(resampling=resampling), ImagePool()

    def add(mask: Mask, scores: Map, key: str) -> None:
        pixels.add(mask, scores, key)
        images.add(bool(mask.any()), float(scores.max()), key)

    def finish() -> Values:
        found = pixels.metrics(fpr_limit=LIMIT)
        values = _named(found, images.metrics())
        values |= {"bound": found.bounds.widest, "level": float(found.level)}
        if resampling is not None:
            for level, every in (
                ("pixel", pixels.sampled(fpr_limit=LIMIT)),
                ("image", images.sampled(resampling)),
            ):
                for name, sampled in every.items():
                    interval = sampled.interval()
                    values[f"{level} {name} low"] = interval.low
                    values[f"{level} {name} high"] = interval.high
            assert pixels.replicates is not None
            lost = pixels.replicates.resolution(
                {"auroc": found.auroc, "average_precision": found.average_precision}
                | {"f1_max": found.f1_max, "aupro": found.aupro},
                LIMIT,
            )
            values["resolution"] = max(lost.values())
        return values

    return Contender(add, finish)


def _named(pixel: Any, image: Any) -> Values:
    return {
        "image_auroc": image.auroc,
        "image_ap": image.average_precision,
        "image_f1max": image.f1_max,
        "pixel_auroc": pixel.auroc,
        "pixel_ap": pixel.average_precision,
        "pixel_f1max": pixel.f1_max,
        "pixel_aupro": pixel.aupro,
        "pixel_iou_max": pixel.iou_max,
    }


def rules_of_ader(scale: Scale) -> Contender:
    return _rules("ader")


def rules_of_dinomaly(scale: Scale) -> Contender:
    return _rules("dinomaly")


def _rules(protocol: str) -> Contender:
    """The few thresholds of a protocol, on the same maps and masks: what its rules alone do."""
    from mambaadv2.measure import spacing_of
    from mambaadv2.metrics import StreamingPool
    from mambaadv2.protocols import protocol_named

    rules, pixels = protocol_named(protocol), StreamingPool()
    spacing = spacing_of(rules)

    def finish() -> Values:
        found = pixels.values(fpr_limit=rules.fpr_limit, spacing=spacing)
        return {"pixel_f1max": found["f1_max"], "pixel_aupro": found["aupro"]}

    return Contender(pixels.add, finish)


def _kept() -> tuple[list[Mask], list[Map], Callable[[Mask, Map, str], None]]:
    """Lists of all masks and maps, and what fills them."""
    masks: list[Mask] = []
    maps: list[Map] = []

    def add(mask: Mask, scores: Map, key: str) -> None:
        masks.append(mask)
        maps.append(scores)

    return masks, maps, add


def full_precision(scale: Scale) -> Contender:
    from mambaadv2.metrics import image_metrics, pixel_metrics

    masks, maps, add = _kept()

    def finish() -> Values:
        defect = np.array([mask.any() for mask in masks])
        peaks = np.array([scores.max() for scores in maps])
        return _named(pixel_metrics(masks, maps, fpr_limit=LIMIT), image_metrics(defect, peaks))

    return Contender(add, finish)


def scikit_learn(scale: Scale) -> Contender:
    """AUROC, AP and F1max; it has no AUPRO."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    masks, maps, add = _kept()

    def finish() -> Values:
        values: Values = {}
        for level, labels, scores in (
            ("image", [m.any() for m in masks], [s.max() for s in maps]),
            ("pixel", np.stack(masks).ravel(), np.stack(maps).ravel()),
        ):
            precision, recall, _ = precision_recall_curve(labels, scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
            values[f"{level}_auroc"] = float(roc_auc_score(labels, scores))
            values[f"{level}_ap"] = float(average_precision_score(labels, scores))
            values[f"{level}_f1max"] = float(f1.max())
        return values

    return Contender(add, finish)


def threshold_loop(scale: Scale) -> Contender:
    """AUPRO as most repositories compute it: 200 even thresholds, the FPR axis cut and stretched.

    Generous: theirs find the regions anew at every threshold, here they are found once.
    """
    masks, maps, add = _kept()

    def finish() -> Values:
        every, good = np.stack(maps), ~np.stack(masks)
        regions = []
        for at, mask in enumerate(masks):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            regions += [(at, *np.nonzero(labels == label)) for label in range(1, count + 1)]
        pros, rates = [], []
        for threshold in np.linspace(every.min(), every.max(), THRESHOLDS, endpoint=False):
            called = every > threshold
            pros.append(np.mean([called[at, y, x].mean() for at, y, x in regions]))
            rates.append((called & good).sum() / good.sum())
        fpr, pro = np.array(rates)[::-1], np.array(pros)[::-1]
        kept = fpr < LIMIT
        stretched = fpr[kept] / fpr[kept].max()
        area = np.diff(stretched) @ (pro[kept][1:] + pro[kept][:-1]) / 2
        return {"pixel_aupro": float(area)}

    return Contender(add, finish)


def _torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


def anomalib_aupro(scale: Scale) -> Contender:
    torch = _torch()
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=LIMIT)

    def add(mask: Mask, scores: Map, key: str) -> None:
        metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None].int())

    return Contender(add, lambda: {"pixel_aupro": float(metric.compute())})


def anomalib_others(scale: Scale) -> Contender:
    """AUROC, AUPR and F1max of images and pixels.

    On scores brought to 0..1, as its post-processor does: what is outside, torchmetrics takes for
    logits and squashes, until most of the good and the bad are 1.
    """
    torch = _torch()
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    names = {"auroc": _AUROC, "ap": _AUPR, "f1max": _F1Max}
    metrics = {f"{at}_{name}": make() for at in ("image", "pixel") for name, make in names.items()}

    def add(mask: Mask, scores: Map, key: str) -> None:
        shared = (scores - np.float32(scale.low)) / np.float32(scale.high - scale.low)
        pixels, truth = torch.from_numpy(shared).flatten(), torch.from_numpy(mask).flatten().int()
        for name, metric in metrics.items():
            if name.startswith("image"):
                metric.update(pixels.max()[None], truth.max()[None])
            else:
                metric.update(pixels, truth)

    return Contender(add, lambda: {name: float(m.compute()) for name, m in metrics.items()})


def adeval(scale: Scale) -> Contender:
    """Told the range of the scores, which it cannot find out by itself; 1,000 strips by default."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]  # 1.1.0 predates numpy 2.4
    from adeval import EvalAccumulator

    found = EvalAccumulator(scale.low, scale.high, scale.low, scale.high)

    def add(mask: Mask, scores: Map, key: str) -> None:
        found.add_anomap(scores, mask.astype(np.uint8))
        found.add_image(float(scores.max()), int(mask.any()))

    def finish() -> Values:
        # Sample-level metrics are in the same summary, without any sample.
        with np.errstate(invalid="ignore", divide="ignore"):
            values = found.summary()
        return {
            "image_auroc": values["i_auroc"],
            "image_ap": values["i_aupr"],
            "pixel_auroc": values["p_auroc"],
            "pixel_ap": values["p_aupr"],
            "pixel_aupro": values["p_aupro"],
        }

    return Contender(add, finish)


CONTENDERS = {
    "streaming": streaming,
    "streaming with intervals": streaming_with_intervals,
    "full precision": full_precision,
    "rules of ader": rules_of_ader,
    "rules of dinomaly": rules_of_dinomaly,
    "scikit-learn": scikit_learn,
    "200 thresholds": threshold_loop,
    "anomalib AUPRO": anomalib_aupro,
    "anomalib others": anomalib_others,
    "ADEval": adeval,
}


def images(folder: Path) -> Iterator[tuple[Mask, Map]]:
    """One by one, by reading and not by mapping the files: their pages would count as memory."""
    with (folder / "maps.npy").open("rb") as maps, (folder / "masks.npy").open("rb") as masks:
        count, h, w = _header(maps)
        _header(masks)
        for _ in range(count):
            scores = np.frombuffer(maps.read(4 * h * w), dtype=np.float32).reshape(h, w).copy()
            mask = np.frombuffer(masks.read(h * w), dtype=np.bool_).reshape(h, w).copy()
            yield mask, scores


def _header(file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    assert version == (1, 0), version
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return tuple(shape)


class Peak:
    """The largest resident memory since this was made, above what it was then, in MB; Linux.

    `getrusage` will not do: what it gives includes the process that started this one.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self.start = self._read("VmRSS")

    def above_start_mb(self) -> float:
        return (self._read("VmHWM") - self.start) * 1024 / 1e6

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Time per image for adding and for the rest, values, and memory above the start.

    Times are of the processor, one thread: a busy machine stretches those of the clock.
    """
    ends = [(float(scores.min()), float(scores.max())) for _, scores in images(folder)]
    scale = Scale(min(low for low, _ in ends), max(high for _, high in ends))
    make = CONTENDERS[name]
    marked = next(x for x in images(folder) if x[0].any())
    good = next(x for x in images(folder) if not x[0].any())
    warm = make(scale)  # whatever is loaded or compiled at the first call
    for at, (mask, scores) in enumerate((marked, good)):
        warm.add(mask, scores, str(at))
    warm.finish()
    del warm
    contender = make(scale)
    peak, adding, count = Peak(), 0.0, 0
    begun = time.perf_counter()
    for mask, scores in images(folder):
        before = time.process_time()
        contender.add(mask, scores, f"{count}.png")
        adding += time.process_time() - before
        count += 1
    before = time.process_time()
    values = contender.finish()
    finishing = time.process_time() - before
    return {
        "images": count,
        "ms_adding": 1e3 * adding / count,
        "ms_finishing": 1e3 * finishing / count,
        "seconds_by_the_clock": time.perf_counter() - begun,
        "memory_mb": peak.above_start_mb(),
        "values": values,
    }


def grow(name: str, folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Memory above the start when so many images have been added and the metrics were asked for."""
    contender = CONTENDERS[name](Scale(0.0, 1.0))
    peak, done, rows = Peak(), 0, []
    begun = time.perf_counter()
    while done < counts[-1]:
        for mask, scores in images(folder):
            contender.add(mask, scores * np.float32(1 + 1e-6 * done), f"{done}.png")
            done += 1
            if done in counts:
                contender.finish()
                rows.append({"images": done, "memory_mb": peak.above_start_mb()})
            if done == counts[-1]:
                break
    return {"memory": rows, "seconds": time.perf_counter() - begun}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grow", help="numbers of images, rising")
    options = parser.parse_args(arguments)
    if options.grow:
        counts = [int(part) for part in options.grow.split(",")]
        found = grow(options.name, options.folder, counts)
    else:
        found = measure(options.name, options.folder)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
