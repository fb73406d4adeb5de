"""The scripts for a release and for a machine without a network, as far as no network is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mambaadv2.installed import metadata_folder, needed_packages

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
PINS = "numpy==2.4.6\ntorch==2.14.1\n"


def run(*args: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("name", ["release", "wheelhouse", "_audit"])
def test_scripts_can_be_run(name: str) -> None:
    script = SCRIPTS / name
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0


@pytest.mark.parametrize("name, wrong", [("release", "--now"), ("wheelhouse", "--help")])
def test_wrong_usage_starts_nothing(name: str, wrong: str) -> None:
    done = run(SCRIPTS / name, wrong)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: scripts/{name}")
    assert run(SCRIPTS / "wheelhouse").returncode == 2


# Before a release


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed checkout of what the script looks at first; in place of the rest it says so."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "src" / "mambaadv2").mkdir(parents=True)
    shutil.copy(SCRIPTS / "release", root / "scripts")
    (root / "scripts" / "_venv").write_text("echo began; exit 7\n", encoding="utf-8")
    (root / "src" / "mambaadv2" / "__init__.py").write_text('__version__ = "1.2.0"\n', "utf-8")
    (root / "CHANGELOG.md").write_text("# Log\n\n## [1.2.0] - 2026-11-24\n", encoding="utf-8")
    commit(root)
    return root


def commit(root: Path) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "x")):
        done = run("git", *identity, *command, cwd=root)
        assert done.returncode == 0, done.stderr


def test_a_release_begins_from_a_committed_and_dated_version(checkout: Path) -> None:
    done = run(checkout / "scripts" / "release")
    assert (done.returncode, done.stdout) == (7, "began\n")


@pytest.mark.parametrize(
    "heading, said",
    [
        ("## [1.1.0] - 2026-11-24", "but __version__ is 1.2.0"),
        ("## [1.2.0.dev0] - 2026-11-24", "but __version__ is 1.2.0"),
        ("## [1.2.0] - Unreleased", "has no date for 1.2.0"),
    ],
)
def test_a_changelog_that_says_something_else_stops_it(
    checkout: Path, heading: str, said: str
) -> None:
    (checkout / "CHANGELOG.md").write_text(f"# Log\n\n{heading}\n", encoding="utf-8")
    commit(checkout)
    done = run(checkout / "scripts" / "release")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_changes_in_the_tree_stop_it_but_not_a_dry_run(checkout: Path) -> None:
    (checkout / "new.py").write_text("", encoding="utf-8")
    done = run(checkout / "scripts" / "release")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the working tree has changes" in done.stderr
    done = run(checkout / "scripts" / "release", "--dry-run")
    assert (done.returncode, done.stdout) == (7, "began\n")
    assert "(dry run) the working tree has changes" in done.stderr


# The audit


def audit(
    tmp_path: Path, pypi: str, osv: str, pins: str = PINS
) -> subprocess.CompletedProcess[str]:
    """Run the audit with a stand-in that answers as told: "CODE ANSWER", by service."""
    for name, told in (("pypi", pypi), ("osv", osv)):
        code, _, answer = told.partition(" ")
        (tmp_path / f"{name}.code").write_text(code, encoding="utf-8")
        (tmp_path / f"{name}.answer").write_text(answer, encoding="utf-8")
    tool = tmp_path / "pip-audit"
    tool.write_text(
        f"""#!/usr/bin/env bash
while [[ $# != 0 ]]; do
    case "$1" in
        --strict) strict=1 ;;
        --vulnerability-service) service="$2" ;;
        --output) output="$2" ;;
    esac
    shift
done
[[ $strict == 1 ]] || exit 0
echo "WARNING: something" >&2
echo "ERROR: $service says so" >&2
answer="$(cat '{tmp_path}'/$service.answer)"
[[ -z $answer ]] || echo "$answer" >"$output"
exit "$(cat '{tmp_path}'/$service.code)"
""",
        encoding="utf-8",
    )
    tool.chmod(0o755)
    (tmp_path / "pins.txt").write_text(pins, encoding="utf-8")
    return run(SCRIPTS / "_audit", tool, tmp_path / "pins.txt")


def answer(*vulnerable: str, names: tuple[str, ...] = ("numpy", "torch")) -> str:
    vulns = {name: [{"id": "CVE-1"}] if name in vulnerable else [] for name in names}
    return json.dumps({"dependencies": [{"name": n, "vulns": v} for n, v in vulns.items()]})


def test_an_audit_is_clean_when_every_package_was_asked_about(tmp_path: Path) -> None:
    done = audit(tmp_path, f"0 {answer()}", "1 ")
    assert done.returncode == 0
    assert done.stdout == "audit: pypi knows of no vulnerability in any of 2 packages\n"


def test_the_second_service_is_asked_where_the_first_does_not_answer(tmp_path: Path) -> None:
    done = audit(tmp_path, "1 ", f"0 {answer()}")
    assert done.returncode == 0
    assert done.stdout.startswith("audit: osv knows")
    assert "pypi answered for 0 of 2 packages: ERROR: pypi says so" in done.stderr


def test_a_vulnerability_stops_it_and_is_shown(tmp_path: Path) -> None:
    done = audit(tmp_path, f"1 {answer('torch')}", f"0 {answer()}")
    assert done.returncode == 1
    assert "CVE-1" in done.stderr
    assert "raise the lower bounds" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "told, pins",
    [
        ("1 ", PINS),  # no connection
        ("0 ", PINS),  # nothing answered
        (f"0 {answer(names=('numpy',))}", PINS),  # one left out in silence
        (f"0 {answer('torch')}", PINS),  # found, and called a success
        (f"0 {answer(names=())}", ""),  # nothing was asked
    ],
)
def test_an_audit_that_did_not_ask_is_never_clean(tmp_path: Path, told: str, pins: str) -> None:
    done = audit(tmp_path, told, told, pins)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "NOT audited" in done.stderr


# What is released with it


def test_what_is_needed_here_fits_and_its_metadata_is_found() -> None:
    packages = needed_packages("mambaadv2")
    assert {"torch", "torchvision", "timm", "pillow", "filelock"} <= set(packages)
    assert not {"pytest", "ruff", "mypy", "hypothesis"} & set(packages)
    for name, package in packages.items():
        assert package.misfits == (), name
        assert (metadata_folder(name) / "METADATA").is_file()


def test_the_tools_are_pinned() -> None:
    script = (SCRIPTS / "release").read_text(encoding="utf-8")
    for tool in ("build", "twine", "pip-audit", "cyclonedx-bom"):
        assert re.search(rf"\b{tool}==\d", script), tool
