"""Unsupervised visual anomaly detection: one model for many classes, trained on good images only.

`__all__` is the whole public list; everything else may change. The names load on first use, so
importing the package is cheap and has no effect.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mambaadv2.calibrate import DriftWatch
    from mambaadv2.evaluate import evaluate
    from mambaadv2.predict import Prediction, Predictor, load
    from mambaadv2.recalibrate import recalibrate
    from mambaadv2.recalibrate_labelled import recalibrate_labelled
    from mambaadv2.scan import selective_scan
    from mambaadv2.train import train

__all__ = [
    "DriftWatch",
    "Prediction",
    "Predictor",
    "__version__",
    "evaluate",
    "load",
    "recalibrate",
    "recalibrate_labelled",
    "selective_scan",
    "train",
]

__version__ = "0.1.0.dev0"

_HOME = {
    "DriftWatch": "mambaadv2.calibrate",
    "Prediction": "mambaadv2.predict",
    "Predictor": "mambaadv2.predict",
    "evaluate": "mambaadv2.evaluate",
    "load": "mambaadv2.predict",
    "recalibrate": "mambaadv2.recalibrate",
    "recalibrate_labelled": "mambaadv2.recalibrate_labelled",
    "selective_scan": "mambaadv2.scan",
    "train": "mambaadv2.train",
}


class _Package(ModuleType):
    """Keeps `mambaadv2.train` and `mambaadv2.evaluate` the functions.

    Python binds a submodule to its package once it is imported, which would put the module of the
    same name in the function's place, depending on who imported what first.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
