"""The build of the native scan by pip: with a compiler, without one, and with a bad one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mambaadv2.scan import absent_backends

ROOT = Path(__file__).resolve().parents[1]
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = load_hook()


class App:
    """Hatchling's, as far as the hook uses it."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def install(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the hook on a project folder; what it says about the wheel, and its warnings."""
    app = App()
    # Hatchling gives both as properties.
    kind: Any = type("Hook", (hook.NativeScan,), {"root": str(root), "app": app})
    data: dict[str, Any] = {"artifacts": []}
    object.__new__(kind).initialize("standard", data)
    return data, app.warnings


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one source in place of the kernels, and a library of an earlier build."""
    sources = tmp_path / hook.SOURCES
    sources.mkdir(parents=True)
    (sources / "one.cpp").write_text('extern "C" int answer() { return 42; }\n', encoding="utf-8")
    (tmp_path / hook.LIBRARY).write_bytes(b"stale")
    return tmp_path


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_with_a_compiler_the_wheel_is_for_this_platform(project: Path) -> None:
    data, warnings = install(project)
    assert not warnings
    assert data["artifacts"] == [f"/{hook.LIBRARY}"]
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-linux_")
    assert (project / hook.LIBRARY).read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    "variable, value, said",
    [
        ("CXX", "no-such-compiler", "CXX=no-such-compiler is not there"),
        ("CXX", "false", "false -std=c++17"),
        ("MAMBAADV2_NATIVE_BUILD", "0", "MAMBAADV2_NATIVE_BUILD=0"),
        ("PATH", "/nowhere", "no C++ compiler found"),
    ],
)
def test_without_one_it_is_said_and_the_wheel_is_for_all(
    project: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, value)
    data, [warning] = install(project)
    assert data == {"artifacts": []}
    assert said in warning
    assert "Everything works without it" in warning
    # An old library must not be packed in place of the one that could not be built.
    assert not (project / hook.LIBRARY).exists()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_compiler_error_is_shown(project: Path) -> None:
    (project / hook.SOURCES / "one.cpp").write_text("int broken(\n", encoding="utf-8")
    _, [warning] = install(project)
    assert "one.cpp" in warning
    assert "error" in warning


def test_a_folder_without_sources_is_no_success(project: Path) -> None:
    (project / hook.SOURCES / "one.cpp").unlink()
    _, [warning] = install(project)
    assert "holds no source" in warning or "no C++ compiler" in warning


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif("CI" not in os.environ, reason="an own environment may be without the library")
def test_where_there_is_a_compiler_the_library_is_installed() -> None:
    assert "native" not in absent_backends(), absent_backends()["native"]


def test_only_files_of_one_instruction_set_get_its_options() -> None:
    assert set(hook.X86_FLAGS) == {"kernel_avx2.cpp", "kernel_avx512.cpp"}
    assert all((ROOT / hook.SOURCES / name).is_file() for name in hook.X86_FLAGS)
