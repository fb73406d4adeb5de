"""What is shipped: version, types, licence, dependencies with their reasons, and a cheap import."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mambaadv2

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(str(mambaadv2.__file__)).parent

IMPORT_SECONDS = 0.2
HELP_SECONDS = 0.5
HEAVY = ("PIL", "numpy", "scipy", "timm", "torch", "torchvision", "tqdm")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def seconds(*args: str) -> float:
    """Return the best wall time of five runs of Python, robust on a busy machine."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def bare_python() -> float:
    return seconds("-c", "pass")


def test_importing_is_fast(bare_python: float) -> None:
    assert seconds("-c", "import mambaadv2") - bare_python < IMPORT_SECONDS


def test_help_is_fast(bare_python: float) -> None:
    assert seconds("-m", "mambaadv2", "--help") - bare_python < HELP_SECONDS


@pytest.mark.parametrize(
    "code", ["import mambaadv2", "import mambaadv2.cli; mambaadv2.cli.build_parser()"]
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    code += f"; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## \[?([^\]\s]+)", changelog, flags=re.MULTILINE)
    assert first is not None
    assert first[1] == mambaadv2.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_licence_is_the_one_declared(project: dict[str, Any]) -> None:
    assert project["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_dependency_has_its_reason(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"].values()
    requirements = [
        *project["project"]["dependencies"],
        *(name for extra in extras for name in extra),
    ]
    names = {re.split(r"[\[<>=~!; ]", requirement)[0] for requirement in requirements}
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    reasons = set(re.findall(r"^\| `([\w-]+)` \| .*\w.* \|$", table, flags=re.MULTILINE))
    assert reasons == names - {"mambaadv2"}


@pytest.mark.parametrize(
    "name", ["_venv", "bench", "check", "check-native", "demo", "test", "../.ci/run"]
)
def test_scripts_can_be_run(name: str) -> None:
    script = ROOT / "scripts" / name
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK) is (name != "_venv")  # that one is sourced
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_git_ignores_no_source() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # What Python and the compiler made is no source.
    made = {".pyc", ".so"}
    sources = [str(p) for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in made]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(sources),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "LOG.md",
        *("docs/" + p.name for p in sorted((ROOT / "docs").glob("*.md"))),
    ],
)
def test_pages_are_finished_and_their_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
