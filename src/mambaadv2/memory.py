"""How much memory there is, and how much work will need: stated before the work, then held."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path


def free_memory() -> float:
    """Bytes that can be taken without swapping, a container's limit included."""
    return min(_free_memory_of_machine(), _free_memory_of_group())


def _free_memory_of_group() -> float:
    """What the control groups (version 2) around this process leave, infinite without a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        groups = []
    own = next((line[3:] for line in groups if line.startswith("0::")), "/")
    inside = root / own.lstrip("/")
    return min(_left_in(group) for group in (inside, *inside.parents) if _within(group, root))


def _within(group: Path, root: Path) -> bool:
    return group == root or root in group.parents


def _left_in(group: Path) -> float:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return math.inf
        used = float((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
        # Copies of files that nobody looks at: the system takes them back when memory is short.
        spare = next(
            (row.split()[1] for row in stat.splitlines() if row.startswith("inactive_file ")), 0
        )
        return max(0.0, float(limit) - used + float(spare))
    except (OSError, ValueError):
        return math.inf


def _free_memory_of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def resident() -> int:
    """Bytes of memory that this process takes now."""
    return _status("VmRSS") or _largest_so_far()


def peak() -> int:
    """Bytes of memory that this process took at most, since its start or the last `peak_of`."""
    return _status("VmHWM") or _largest_so_far()


def peak_of(work: Callable[[], object]) -> int:
    """Do the work and return the bytes of memory that this process took meanwhile at most.

    Where the system cannot measure a span, it is the most since the start of the process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    return peak()


def give_back() -> None:
    """Return to the system what was freed but kept for later; where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _largest_so_far() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
