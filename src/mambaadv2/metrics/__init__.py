"""Exact metrics of detection and localisation: pure functions that refuse undefined input."""

from __future__ import annotations

from mambaadv2.metrics.curve import Curve
from mambaadv2.metrics.ranking import (
    RankingMetrics,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
)
from mambaadv2.metrics.region import PixelMetrics, PixelPool, aupro, pixel_metrics, pooled

__all__ = [
    "Curve",
    "PixelMetrics",
    "PixelPool",
    "RankingMetrics",
    "aupro",
    "auroc",
    "average_precision",
    "f1_max",
    "image_metrics",
    "pixel_metrics",
    "pooled",
]
