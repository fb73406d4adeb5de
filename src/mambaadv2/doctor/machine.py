"""Checks of the machine: processor, GPU, memory, disk, image formats, limits, text."""

from __future__ import annotations

import contextlib
import io
import locale
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from mambaadv2.doctor.findings import Finding, State, short

# A small default training holds 1.3 GB of its own, measured; more images take more.
LEAST_MEMORY, USUAL_MEMORY = 1_400_000_000, 2_500_000_000  # bytes
LEAST_DISK, USUAL_DISK = 100_000_000, 2_000_000_000
USUAL_FILES = 256  # open at once

# Name, what Pillow needs for it, and whether a default run needs it.
_FORMATS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("PNG", {}, True),
    ("JPEG", {}, True),
    ("BMP", {}, False),
    ("TIFF", {}, False),
    ("TIFF/LZW", {"compression": "tiff_lzw"}, False),
    ("TIFF/Deflate", {"compression": "tiff_adobe_deflate"}, False),
    ("TIFF/JPEG", {"compression": "jpeg"}, False),
    ("WebP", {}, False),
)
_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HOME")


def check_processor() -> Iterator[Finding]:
    """Name, cores that may be used, threads that torch takes, vector instructions."""
    import torch

    from mambaadv2.runlog import environment

    facts = environment()
    usable, threads = _usable_cores(), torch.get_num_threads()
    value = f"{facts['processor']}, {usable:g} of {os.cpu_count()} cores usable, {threads} threads"
    value += f", {facts['cpu_capability']}"
    if threads > max(1, round(usable)):
        advice = f"More threads than cores slow everything: export OMP_NUM_THREADS={usable:.0f}"
        yield Finding("processor", "note", value, advice)
    else:
        yield Finding("processor", "ok", value)


def _usable_cores() -> float:
    """Cores that this process may use, a container's quota included."""
    cores = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, float(quota) / float(period))
    return cores


def check_gpu() -> Iterator[Finding]:
    """Every CUDA device, tried with one product; or why there is none."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        yield Finding("GPU", "note", f"none: {_why_no_gpu(said)}; the CPU is used")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        value = f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, {facts.major}.{facts.minor}"
        try:
            torch.ones(8, 8, device=f"cuda:{index}").mm(torch.ones(8, 8, device=f"cuda:{index}"))
        except RuntimeError as error:
            advice = "Install a torch build for this GPU and driver, or give --device cpu."
            yield Finding(f"GPU {index}", "problem", f"{value}: {short(error)}", advice)
        else:
            yield Finding(f"GPU {index}", "ok", value)


def _why_no_gpu(said: Sequence[warnings.WarningMessage]) -> str:
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return "no NVIDIA driver"
    return " ".join(str(said[0].message).split())[:200] if said else "torch sees no CUDA device"


def check_memory() -> Iterator[Finding]:
    """Memory that is free now."""
    from mambaadv2.memory import free_memory

    free = float(free_memory())
    value = f"{free / 1e9:.1f} GB free, a container's limit included"
    if free < LEAST_MEMORY:
        advice = "End other programs or raise the container's limit; 2.5 GB is comfortable."
        yield Finding("memory", "problem", value, advice)
    elif free < USUAL_MEMORY:
        yield Finding("memory", "note", value, "Enough for little data; 2.5 GB is comfortable.")
    else:
        yield Finding("memory", "ok", value)


def check_disk() -> Iterator[Finding]:
    """Space in the working folder and in the temporary one, and whether files can be made."""
    yield _folder("working folder", Path.cwd(), "problem")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError:
        advice = "Let TMPDIR name a folder that can be written to."
        yield Finding("temporary folder", "note", "there is none", advice)
    else:
        yield _folder("temporary folder", temporary, "note")


def _folder(label: str, folder: Path, worst: State) -> Finding:
    free = shutil.disk_usage(folder).free
    value = f"{free / 1e9:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "Give --out a folder that can be written to."
        return Finding(
            label, "note", f"{value}, but no file can be written: {error.strerror}", advice
        )
    if free < LEAST_DISK:
        return Finding(label, worst, value, "Free some space: a run takes about 50 MB.")
    if free < USUAL_DISK:
        return Finding(label, "note", value, "Features of large data sets may not fit on it.")
    return Finding(label, "ok", value)


def check_images() -> Iterator[Finding]:
    """Formats that Pillow reads here, each tried on a small picture; limits."""
    from mambaadv2.errors import ConfigError
    from mambaadv2.image import Limits

    works: list[str] = []
    lacks: list[str] = []
    needed: list[str] = []
    for name, options, default in _FORMATS:
        if _round_trip(name.partition("/")[0], options):
            works.append(name)
        else:
            (needed if default else lacks).append(name)
    advice = "Install a complete Pillow: pip install --force-reinstall --only-binary :all: pillow"
    if lacks or needed:
        value = f"cannot be read: {', '.join([*needed, *lacks])}; can be: {', '.join(works)}"
        yield Finding("image formats", "problem" if needed else "note", value, advice)
    else:
        yield Finding("image formats", "ok", ", ".join(works))
    try:
        limits = Limits.from_environment()
    except ConfigError as error:
        reason, _, advice = str(error).rpartition("; ")
        yield Finding("image limits", "problem", reason, advice[:1].upper() + advice[1:])
    else:
        value = f"{limits.pixels / 1e6:g} million pixels, {limits.bytes / 1e6:.0f} MB each"
        yield Finding("image limits", "ok", value)


def _round_trip(name: str, options: dict[str, str]) -> bool:
    """Whether a small picture comes back from this format."""
    from PIL import Image

    file = io.BytesIO()
    try:
        Image.new("RGB", (16, 16), (200, 100, 50)).save(file, name, **options)
        file.seek(0)
        with Image.open(file) as image:
            image.load()
            # Pillow takes a compression that it does not know for none.
            return options.get("compression") in (None, image.info.get("compression"))
    except (OSError, KeyError, ValueError):
        return False


def check_system() -> Iterator[Finding]:
    """Limit of open files, text encoding, variables that change what commands do."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = "no limit" if soft == resource.RLIM_INFINITY else str(soft)
    few = 0 <= soft < USUAL_FILES
    advice = f"Raise it: ulimit -n {min(1024, hard) if hard > 0 else 1024}" if few else ""
    yield Finding("open files", "note" if few else "ok", value, advice)
    encodings = {sys.stdout.encoding or "none", sys.getfilesystemencoding()}
    value = f"{', '.join(sorted(encodings))}; locale {locale.setlocale(locale.LC_CTYPE)}"
    if {name.lower().replace("-", "") for name in encodings} == {"utf8"}:
        yield Finding("text", "ok", value)
    else:
        advice = "Names outside ASCII may fail to print: export LANG=C.UTF-8 PYTHONUTF8=1"
        yield Finding("text", "note", value, advice)
    names = sorted(name for name in os.environ if name.startswith("MAMBAADV2_"))
    given = [f"{name}={os.environ[name]}" for name in (*names, *_VARIABLES) if name in os.environ]
    yield Finding("environment", "ok", ", ".join(given) or "no variable of ours is set")
