"""What this machine has for training and prediction, what is missing, and what to do about it.

Command: `mambaadv2 doctor`. Every check looks at the thing itself where it can: libraries are
imported, weights are read, a picture goes through each format, a small model learns one step. The
only question to the network is whether the model hub answers, and no answer is not a problem.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

from mambaadv2.doctor import machine, software
from mambaadv2.doctor.findings import Finding, as_json, as_text, ready, short

__all__ = ["Finding", "as_json", "as_text", "diagnose", "ready"]

Check = Callable[[], Iterator[Finding]]

# In the order of the list that people read; the second needs nothing but what the first allows.
WITHOUT_TORCH: tuple[Check, ...] = (
    *(machine.check_memory, machine.check_disk, machine.check_images, machine.check_system),
)
WITH_TORCH: tuple[Check, ...] = (
    *(machine.check_processor, machine.check_gpu, software.check_scan, software.check_weights),
    *(software.check_hub, software.check_one_step),
)


def diagnose() -> tuple[Finding, ...]:
    """Run every check, in a few seconds; a check that breaks is itself a problem that is found."""
    found = [*_guarded(software.check_versions)]
    libraries = [*_guarded(software.check_libraries)]
    found += libraries
    if ready(libraries):
        found += [finding for check in WITH_TORCH for finding in _guarded(check)]
    else:
        found.append(Finding("devices, weights", "note", "not checked: they need torch and timm"))
    found += [finding for check in WITHOUT_TORCH for finding in _guarded(check)]
    return tuple(found)


def _guarded(check: Check) -> Iterator[Finding]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from check()
    except Exception as error:  # whatever it is, the other checks are wanted all the same
        name = check.__name__.removeprefix("check_").replace("_", " ")
        advice = "Install again in a fresh environment: python3 -m venv NEW; NEW/bin/pip install ."
        yield Finding(name, "problem", f"the check stopped: {short(error)}", advice)
