"""The architecture, checked on the source: which layer may know which, and the size of things."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mambaadv2

PACKAGE = Path(str(mambaadv2.__file__)).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Layer -> the layers it may import; `LEAVES` are for all. A layer is a module or folder at the top;
# `data.index` and what it needs are layers of their own, so that listing files needs no image
# library.
ARROWS: dict[str, set[str]] = {
    "scan": set(),
    "metrics": set(),
    "container": set(),
    "decode": {"container"},
    "heat": set(),
    "image": {"container", "decode", "heat"},
    "data.record": set(),
    "data.parquet": set(),
    "data.manifest": {"data.parquet", "data.record"},
    # The image door for one data set alone, whose labels are its masks; imported when it is listed.
    "data.layouts": {"data.manifest", "data.record", "image"},
    "data.index": {"data.layouts", "data.manifest", "data.record"},
    "memory": set(),
    "readers": {"image"},
    "tiles": {"image"},
    "data": {"data.index", "data.record", "image", "memory", "readers", "tiles"},
    "protocols": set(),
    "results": {"metrics", "protocols"},
    "evaluation_file": {"metrics", "protocols", "results"},
    "compare": {"evaluation_file", "metrics", "results"},
    "published": {"evaluation_file", "results"},
    "data.samples": {"data.record"},
    "measure": {"data.samples", "metrics", "protocols", "results"},
    "report": {"compare", "image", "metrics", "results"},
    "model": {"scan"},
    "calibrate": set(),
    "foreign": set(),
    "checkpoint": {"calibrate", "foreign", "model"},
    "predictor": {"calibrate", "checkpoint", "image", "model"},
    "legend": {"calibrate", "image"},
    "summary": {"calibrate", "checkpoint"},
    "predict_folder": {"calibrate", "image", "legend", "predictor", "summary"},
    "rehearsal": {"data", "image", "memory", "model", "predictor", "readers"},
    "predict": {
        *["checkpoint", "data.index", "predict_folder", "predictor", "readers"],
        *["rehearsal", "summary"],
    },
    "frames": {"image", "predict", "protocols"},
    "provenance": {
        *["checkpoint", "data.record", "evaluation_file", "metrics", "modelcard", "predict"],
        *["protocols", "report", "results", "runlog"],
    },
    "evaluate": {
        *["data", "data.record", "evaluation_file", "frames", "measure", "metrics", "predict"],
        *["protocols", "provenance", "report", "results"],
    },
    "heldout": {"calibrate", "data", "model"},
    "runlog": {"report"},
    "snapshot": {"model"},
    "fit": {"data", "model", "snapshot"},
    "prepare": {
        *["checkpoint", "data", "data.record", "fit", "heldout", "model", "runlog", "snapshot"],
    },
    "resume": {"checkpoint", "prepare", "snapshot"},
    "train": {
        *["checkpoint", "data", "fit", "heldout", "model", "modelcard", "prepare", "rehearsal"],
        *["resume", "runlog", "scan", "snapshot", "suspect_sheet"],
    },
    "recipes": {"data", "evaluate", "predict", "train"},
    "suspect_sheet": {"calibrate", "image", "tiles"},
    "thresholds": {"calibrate", "checkpoint", "evaluation_file", "modelcard", "suspect_sheet"},
    "recalibrate": {"calibrate", "checkpoint", "predict", "suspect_sheet", "thresholds"},
    "recalibrate_labelled": {
        *["calibrate", "checkpoint", "data", "data.index", "data.record", "predict", "thresholds"],
    },
    "installed": set(),
    "markdown": set(),
    "modelcard": {"calibrate", "evaluation_file", "markdown"},
    "doctor": {"image", "installed", "memory", "model", "runlog", "scan"},
    "cli_calibrate": {"calibrate", "recalibrate", "recalibrate_labelled"},
    "cli": {
        *["cli_calibrate", "compare", "data", "doctor", "evaluate", "evaluation_file", "model"],
        *["predict", "protocols", "published", "recipes", "report", "train"],
    },
    "__main__": {"cli"},
    "__init__": {
        *["calibrate", "evaluate", "predict", "recalibrate", "recalibrate_labelled", "scan"],
        "train",
    },
}
LEAVES = {"__version__", "device", "errors", "files", "names", "signals"}

MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 70
BANNED_NAMES = {"common", "core", "helper", "helpers", "misc", "util", "utils"}
# Unpickling runs code chosen by whoever wrote the file. The error may be caught.
BANNED_IMPORTS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
HARMLESS_IMPORTS = {"pickle.UnpicklingError"}


def module_name(path: Path) -> str:
    """Return the dotted name inside the package: "data.index", and "data" for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


MODULES = {module_name(path): path for path in SOURCES}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every absolute dotted name that a file imports, anywhere in it, with its line."""
    package = ["mambaadv2", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the modules of this package that a file imports, as in `MODULES`, with the line."""
    for name, line in imported_names(path):
        if name.split(".")[0] != "mambaadv2":
            continue
        inside = name.removeprefix("mambaadv2").removeprefix(".")
        while inside and inside not in MODULES and inside not in LEAVES:
            inside = inside.rpartition(".")[0]
        yield inside or name, line


def layer(module: str) -> str:
    while module not in ARROWS and "." in module:
        module = module.rpartition(".")[0]
    return module


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


each_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)


def test_the_arrows_have_no_cycle() -> None:
    tuple(graphlib.TopologicalSorter(ARROWS).static_order())


def test_the_modules_have_no_cycle() -> None:
    graph = {
        module: {target for target, _ in imported_modules(path)} - {module}
        for module, path in MODULES.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())


@each_source
def test_imports_follow_the_arrows(path: Path) -> None:
    here = layer(module_name(path))
    if here in LEAVES:
        allowed: set[str] = {"errors"} - {here}
    else:
        assert here in ARROWS, f"{name_of(path)} is a new layer: say in ARROWS what it may know"
        allowed = ARROWS[here] | LEAVES | {here}
    wrong = [
        f"{name_of(path)}:{line} imports {target}; {here} may import {sorted(allowed)}"
        for target, line in imported_modules(path)
        if layer(target) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@each_source
def test_nothing_is_imported_by_star_or_unpickled(path: Path) -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for name, line in imported_names(path)
        if name.endswith(".*")
        or (name.split(".")[0] in BANNED_IMPORTS and name not in HARMLESS_IMPORTS)
    ]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = (
                ast.unparse(node.func) == "torch.load" and options.get("weights_only") != "True"
            )
            if unsafe or options.get("allow_pickle", "False") != "False":
                wrong.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


@each_source
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines"
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {size} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
        and not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert not long, "\n".join(long)


@each_source
def test_a_module_is_named_for_what_it_does(path: Path) -> None:
    assert not BANNED_NAMES & set(re.split(r"[._]", module_name(path)))


def test_the_checks_see_what_they_should() -> None:
    assert {"errors", "cli", "__init__", "__main__"} <= set(MODULES)
    cli = dict(imported_modules(MODULES["cli"]))
    assert {"__version__", "errors"} <= set(cli)
    assert ("mambaadv2.errors.MambaADv2Error") in dict(imported_names(MODULES["cli"]))
    assert {layer("data.index"), layer("data.synthetic")} == {"data.index", "data"}
