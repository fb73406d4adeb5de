"""Compiles the native scan into the package at installation; without a compiler it is left out.

Hatchling calls `NativeScan` for `pip install .` and `pip install -e .`. While working on the
kernels, rebuild in place with one line: `python hatch_build.py`.

Variables: CXX names the compiler, CXXFLAGS adds options, MAMBAADV2_NATIVE_BUILD=0 leaves the
library out.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as _Hook
except ImportError:  # run as a script in an environment without hatchling
    _Hook = object

SOURCES = Path("src/mambaadv2/scan/csrc")
LIBRARY = Path("src/mambaadv2/scan/libmambaadv2_scan.so")
# No -ffast-math: NaN and infinity must stay what they are, and the bits the same.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
# The rest of the library is for any processor: only these files may use more, and the library asks
# the processor before it calls them.
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")
X86_FLAGS = {
    "kernel_avx2.cpp": _AVX2,
    "kernel_avx512.cpp": (*_AVX512, "-mprefer-vector-width=512"),
}


class BuildError(Exception):
    """There is no compiler, or it failed; the text says which and how."""


def find_compiler() -> list[str]:
    """Command of the C++ compiler: $CXX, else the first of c++, g++, clang++."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"CXX={shlex.join(named)} is not there" if named else "no C++ compiler found")


def build(root: Path, library: Path | None = None) -> Path:
    """Compile the sources below `root` into one library and return where it lies.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = [*find_compiler(), *FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    library = library or root / LIBRARY
    # Of the Python that is built for, not of the machine that builds.
    x86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
    sources = sorted((root / SOURCES).glob("*.cpp"))
    if not sources:
        raise BuildError(f"{root / SOURCES} holds no source")
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(source: Path) -> str:
            target = Path(folder) / f"{source.stem}.o"
            extra = X86_FLAGS.get(source.name, ()) if x86 else ()
            _run([*compiler, *extra, "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
            objects = list(threads.map(compile_one, sources))
        linked = Path(folder) / library.name
        _run([*compiler, "-shared", *objects, "-o", str(linked)])
        # Moved, not written over: a process that has the old file loaded keeps it.
        moved = library.with_name(f"new-{library.name}")
        shutil.copyfile(linked, moved)
        moved.replace(library)
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


class NativeScan(_Hook):  # type: ignore[misc,unused-ignore]
    """The hook that hatchling finds here."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library and put it into the wheel, or say once why not and go on."""
        root = Path(self.root)
        library = root / LIBRARY
        if os.environ.get("MAMBAADV2_NATIVE_BUILD") == "0":
            reason = "MAMBAADV2_NATIVE_BUILD=0"
        else:
            try:
                build(root)
            except BuildError as error:
                reason = str(error)
            else:
                build_data["artifacts"].append(f"/{LIBRARY}")
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{_platform_tag()}"
                return
        # One of an earlier build would be packed, or loaded, in place of the one that is missing.
        library.unlink(missing_ok=True)
        self.app.display_warning(
            f"mambaadv2: the native scan was not built ({reason}). Everything works without it, "
            "on a CPU several times slower; install a C++ compiler and run pip install again."
        )


def _platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    try:
        print(build(Path(__file__).parent))
    except BuildError as problem:
        sys.exit(f"not built: {problem}")
