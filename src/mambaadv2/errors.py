"""Every exception that a caller may want to catch.

All of them derive from `MambaADv2Error`; each also derives from the built-in that fits best, so
code that knows nothing of this package still catches them in the expected way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class MambaADv2Error(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(MambaADv2Error, ValueError):
    """A configuration field is unknown, out of range or inconsistent with another."""


class DataError(MambaADv2Error, ValueError):
    """A data set or folder is not what was expected."""


class ImageError(DataError):
    """One image or mask cannot be used; the message names the file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One file, folder or line of a manifest that cannot be used."""

    path: Path
    message: str
    """A whole sentence for people: names the file, what was expected, what came, what to do."""


class BadFilesError(DataError):
    """Files of a data set cannot be used; the message is the complete list.

    problems: one for each, in the data set's order, at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        lines = "\n".join(f"  {problem.message}" for problem in self.problems)
        super().__init__(
            f"{count} in the data, nothing was started:\n{lines}\n"
            "Mend or remove these files, or go on without them: --on-error skip"
        )


class WorkerError(MambaADv2Error, RuntimeError):
    """A process that reads images ended before its time, for example killed or out of memory."""


class WeightsError(MambaADv2Error, RuntimeError):
    """Encoder weights cannot be found, read or matched."""


class CheckpointError(MambaADv2Error, RuntimeError):
    """A run folder is missing, damaged or of another version."""


class TrainingError(MambaADv2Error, RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""


class RunBusyError(MambaADv2Error, RuntimeError):
    """Another process is writing to the run folder."""


class TrainingInterruptedError(MambaADv2Error, RuntimeError):
    """Training was asked to stop by a signal and has saved its state.

    signal: its number; a shell expects the exit code 128 + signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class BackendError(MambaADv2Error, RuntimeError):
    """A scan backend was asked for by name and cannot be used."""


class UndefinedMetricError(MambaADv2Error, ValueError):
    """A metric has no value for this input, for example AUROC with one class only."""
