"""Exact metrics of detection and localisation: pure functions that refuse undefined input."""

from __future__ import annotations

from mambaadv2.metrics.ranking import auroc, average_precision, f1_max
from mambaadv2.metrics.region import PixelMetrics, aupro, pixel_metrics

__all__ = ["PixelMetrics", "aupro", "auroc", "average_precision", "f1_max", "pixel_metrics"]
