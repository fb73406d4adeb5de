"""The public surface is this list: adding a name here is a promise to keep it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import mambaadv2

PUBLIC = {
    "DriftWatch": "mambaadv2.calibrate",
    "Prediction": "mambaadv2.predict",
    "Predictor": "mambaadv2.predict",
    "evaluate": "mambaadv2.evaluate",
    "load": "mambaadv2.predict",
    "recalibrate": "mambaadv2.recalibrate",
    "recalibrate_labelled": "mambaadv2.recalibrate_labelled",
    "selective_scan": "mambaadv2.scan",
    "train": "mambaadv2.train",
}


def test_the_public_list_is_pinned() -> None:
    assert sorted(mambaadv2.__all__) == sorted([*PUBLIC, "__version__"])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    assert getattr(mambaadv2, name) is getattr(importlib.import_module(PUBLIC[name]), name)


def test_a_type_checker_sees_the_same_names_from_the_same_places() -> None:
    source = Path(str(mambaadv2.__file__)).read_text(encoding="utf-8")
    guarded = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for block in guarded
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == PUBLIC


@pytest.mark.parametrize("name", ["train", "evaluate", "recalibrate", "recalibrate_labelled"])
def test_a_function_is_not_replaced_by_the_module_of_its_name(name: str) -> None:
    module = importlib.import_module(f"mambaadv2.{name}")
    setattr(mambaadv2, name, module)  # what Python does at the end of every first import
    assert getattr(mambaadv2, name) is getattr(module, name)


def test_dir_lists_the_public_names() -> None:
    assert set(mambaadv2.__all__) <= set(dir(mambaadv2))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'finetune'"):
        mambaadv2.finetune  # noqa: B018
