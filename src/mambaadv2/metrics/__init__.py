"""Exact metrics of detection and localisation: pure functions that refuse undefined input."""

from __future__ import annotations

from mambaadv2.metrics.bootstrap import (
    Interval,
    Resampling,
    Sampled,
    difference,
    image_key,
    mean_sampled,
)
from mambaadv2.metrics.bounds import PixelBounds
from mambaadv2.metrics.curve import Curve
from mambaadv2.metrics.images import ImagePool
from mambaadv2.metrics.ranking import (
    RankingMetrics,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    iou_of_f1,
)
from mambaadv2.metrics.region import PixelMetrics, PixelPool, aupro, pixel_metrics, pooled
from mambaadv2.metrics.saved import load_images, load_pool, save_images, save_pool
from mambaadv2.metrics.spaced import Spacing
from mambaadv2.metrics.streaming import StreamedMetrics, StreamingPool

__all__ = [
    "Curve",
    "ImagePool",
    "Interval",
    "PixelBounds",
    "PixelMetrics",
    "PixelPool",
    "RankingMetrics",
    "Resampling",
    "Sampled",
    "Spacing",
    "StreamedMetrics",
    "StreamingPool",
    "aupro",
    "auroc",
    "average_precision",
    "difference",
    "f1_max",
    "image_key",
    "image_metrics",
    "iou_of_f1",
    "load_images",
    "load_pool",
    "mean_sampled",
    "pixel_metrics",
    "pooled",
    "save_images",
    "save_pool",
]
