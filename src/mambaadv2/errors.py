"""Every exception that a caller may want to catch.

All of them derive from `MambaADv2Error`; each also derives from the built-in that fits best, so
code that knows nothing of this package still catches them in the expected way.
"""

from __future__ import annotations


class MambaADv2Error(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(MambaADv2Error, ValueError):
    """A configuration field is unknown, out of range or inconsistent with another."""


class DataError(MambaADv2Error, ValueError):
    """A data set or folder is not what was expected."""


class ImageError(DataError):
    """One image or mask cannot be used; the message names the file."""


class WeightsError(MambaADv2Error, RuntimeError):
    """Encoder weights cannot be found, read or matched."""


class CheckpointError(MambaADv2Error, RuntimeError):
    """A run folder is missing, damaged or of another version."""


class TrainingError(MambaADv2Error, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


class BackendError(MambaADv2Error, RuntimeError):
    """A scan backend was asked for by name and cannot be used."""


class UndefinedMetricError(MambaADv2Error, ValueError):
    """A metric has no value for this input, for example AUROC with one class only."""
