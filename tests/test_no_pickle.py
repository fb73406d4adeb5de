"""No pickle anywhere: the sources are searched for what would load one, and every door is tried.

Loading a pickle runs what its author chose. So none is loaded, and none is written that others
would have to load.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mambaadv2 import cli
from mambaadv2.checkpoint import ModelCard, make_scorer, save_run
from mambaadv2.data.features import fill_store
from mambaadv2.doctor import software
from mambaadv2.errors import MambaADv2Error, WeightsError
from mambaadv2.foreign import explain_foreign
from mambaadv2.image import write_png
from mambaadv2.model import weights
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network
from mambaadv2.modelcard import write_model_card
from mambaadv2.predict import load
from mambaadv2.snapshot import FOLDER as SNAPSHOTS
from mambaadv2.snapshot import Snapshots
from mambaadv2.train import train

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "benchmarks", "scripts", ".ci")
OURS = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
PYTHON = sorted(path for path in OURS if path.suffix == ".py")
SHELL = sorted(p for p in OURS if p.is_file() and p.read_bytes()[:2] == b"#!")
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Modules whose reason is pickle, or that send pickles between processes.
PICKLING = {
    *("_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle"),
    *("copyreg", "multiprocessing", "pandas", "shelve", "torch.multiprocessing", "torch.package"),
}
HARMLESS = {"pickle.UnpicklingError"}  # an error to catch
# Calls that load a pickle, or run text, whatever their arguments.
FORBIDDEN_CALLS = {
    *("eval", "exec", "__import__", "torch.save", "torch.hub.load", "torch.jit.load"),
    *("torch.hub.load_state_dict_from_url", "np.fromregex", "yaml.load", "yaml.unsafe_load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "ProcessPoolExecutor"),
}
# Calls that need an argument to be harmless.
NEEDS = {
    "torch.load": ("weights_only", "True"),
    **{f"np.{name}": ("allow_pickle", "False") for name in ("load", "save", "savez")},
}
# Tests write pickles to try them on us; loading one is for nobody.
LOADING_CALLS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "eval", "exec"}


# Search


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def is_pickling(name: str) -> bool:
    return name not in HARMLESS and any(name == m or name.startswith(f"{m}.") for m in PICKLING)


def violations(source: str) -> list[str]:
    """What in a source could load or write a pickle, or run text, with its line."""
    tree = ast.parse(source)
    wrong = [f"{line} imports {name}" for name, line in imported(tree) if is_pickling(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            needed, value = NEEDS.get(name.replace("numpy.", "np."), ("", ""))
            loose = given.get("weights_only") == "False" or given.get("allow_pickle") == "True"
            if name in FORBIDDEN_CALLS or loose or (needed and given.get(needed) != value):
                wrong.append(f"{node.lineno} {ast.unparse(node)}")
        # A module can be imported by its name as text.
        if isinstance(node, ast.Constant) and node.value in PICKLING:
            wrong.append(f"{node.lineno} names {node.value!r}")
    return wrong


def loads(source: str) -> list[str]:
    """What in a test could load a pickle, or run text, with its line."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    wrong = []
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        name = ast.unparse(call.func)
        unsafe = name == "torch.load" and given.get("weights_only") != "True"
        loaded = name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False"
        if name in LOADING_CALLS or unsafe or loaded:
            wrong.append(f"{call.lineno} {ast.unparse(call)}")
    return wrong


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_or_writes_a_pickle(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_loads_a_pickle(path: Path) -> None:
    assert loads(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SHELL, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_script_loads_a_pickle_or_runs_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert not re.findall(r"\b(?:pickle|joblib|torch\.load|allow_pickle|eval|exec\()\b", code)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from multiprocessing import Pool",
        "import pandas as pd",
        "importlib.import_module('pickle')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.save(path, array)",
        "np.savez(path, a)",
        "frame.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(file)",
    ],
)
def test_the_search_finds_what_it_should(source: str) -> None:
    assert violations(source) != []


def test_the_search_lets_through_what_is_harmless() -> None:
    source = """
from pickle import UnpicklingError
import pickletools
network.eval()
torch.load(path, map_location="cpu", weights_only=True)
np.load(path, mmap_mode="r", allow_pickle=False)
np.save(path, array, allow_pickle=False)
"""
    assert violations(source) == []
    assert loads("torch.load(p, weights_only=True); np.load(p); x.eval(); pickle.dumps(1)") == []
    assert len(loads("torch.load(p); pickle.loads(b); np.load(p, allow_pickle=True)")) == 3
    assert len(PYTHON) > 30
    assert ROOT / "scripts" / "test" in SHELL


# Try


class Touches:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (f"touch '{self.marker}'",)


@dataclasses.dataclass(frozen=True)
class Trap:
    """A folder of hostile files, and the file that exists once one of them was loaded."""

    folder: Path
    marker: Path

    def files(self) -> dict[str, bytes]:
        """The same attack in every form that it may come in, by the form's name."""
        bomb = Touches(self.marker)
        forms = {f"protocol {n}": pickle.dumps(bomb, n) for n in (0, 2, 4)}
        forms["in a dictionary"] = pickle.dumps({"conv1.weight": bomb}, 2)
        for form, zipped in (("torch", True), ("old torch", False)):
            path = self.folder / "made.pth"
            torch.save(
                {"conv1.weight": torch.zeros(1), "x": bomb},
                path,
                _use_new_zipfile_serialization=zipped,
            )
            forms[form] = path.read_bytes()
        path = self.folder / "made.npy"
        np.save(path, np.array([bomb], dtype=object), allow_pickle=True)
        forms["npy"] = path.read_bytes()
        with zipfile.ZipFile(self.folder / "made.npz", "w") as archive:
            archive.write(path, "features.npy")
        forms["npz"] = (self.folder / "made.npz").read_bytes()
        return forms


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    folder = tmp_path / "trap"
    folder.mkdir()
    set_trap = Trap(folder, tmp_path / "it ran")
    yield set_trap
    assert not set_trap.marker.exists()


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small network that has learned nothing; it loads."""
    config = ModelConfig(
        encoder="tf_efficientnet_lite0",
        image_size=(64, 64),
        dims=(16, 8, 8),
        modules=((1,), (1,), (1,)),
        directions=(1, 1, 2),
        head_dim=8,
        state_dim=4,
        score="whitened",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(config, build_encoder(config.encoder, image_size=config.image_size))
    card = ModelCard(
        model=config,
        encoder=network.encoder.provenance,
        classes=("disc",),
        thresholds={"disc": 1.0},
        calibration_images={"disc": 1},
        calibration_scores={"disc": (0.5,)},
        calibration_kinds={"disc": "assumed"},
        calibration_trimmed={"disc": ()},
        false_alarm_rate=0.01,
        false_alarm_confidence=None,
        leave_one_out=True,
        colour_scale=(0.8, 2.0),
        training={},
    )
    folder = tmp_path_factory.mktemp("sound")
    save_run(folder, network, make_scorer(config, network, 1), card)
    load(folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part in ("train/good", "test/good", "test/cut"):
        folder = root / "disc" / part
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            write_png(folder / f"{i}.png", pixels)
    return root


def refused(call: Callable[[], object]) -> str:
    """The call ends with one of our errors, in words."""
    with pytest.raises(MambaADv2Error) as caught:
        call()
    return str(caught.value)


def test_the_trap_works(trap: Trap) -> None:
    """Were one of these files loaded as its author wishes, the marker would be there."""
    forms = trap.files()
    assert len(forms) == 8
    for data in forms.values():
        assert b"touch" in data
    trap_only = Touches(trap.marker).__reduce__()
    assert trap_only[0](*trap_only[1]) == 0
    assert trap.marker.exists()
    trap.marker.unlink()


def test_a_run_that_is_a_pickle_is_refused(trap: Trap) -> None:
    for suffix in (".pth", ".ckpt", ".safetensors", ".json", ""):
        for name, content in trap.files().items():
            path = trap.folder / f"{name}{suffix}"
            path.write_bytes(content)
            assert str(path) in refused(partial(load, path, device="cpu"))
            assert explain_foreign(path) is not None


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_a_run_with_a_pickle_in_it_is_refused(trap: Trap, sound_run: Path, file: str) -> None:
    for name, content in trap.files().items():
        run = Path(shutil.copytree(sound_run, trap.folder / f"run {name}"))
        (run / file).write_bytes(content)
        assert str(run) in refused(partial(load, run, device="cpu"))
        if file == "model.safetensors":  # also where the hash agrees
            description = json.loads((run / "model.json").read_text(encoding="utf-8"))
            description["weights_sha256"] = hashlib.sha256(content).hexdigest()
            (run / "model.json").write_text(json.dumps(description), encoding="utf-8")
            assert "not a safetensors file" in refused(partial(load, run, device="cpu"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".pkl", ".npy", ".npz"])
def test_weights_that_are_a_pickle_are_refused(trap: Trap, data: Path, suffix: str) -> None:
    for name, content in trap.files().items():
        path = trap.folder / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            train(data, trap.folder / "run", weights=path, device="cpu", progress=False)
    assert not (trap.folder / "run" / "model.json").exists()


def test_a_hub_cache_with_a_pickle_is_refused(
    trap: Trap, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trap.folder / "pytorch_model.bin"
    monkeypatch.setattr(weights, "_cached", lambda *_: path)
    for content in trap.files().values():
        path.write_bytes(content)
        out = trap.folder / "run"
        refused(partial(train, data, out, encoder="resnet18", device="cpu", progress=False))


def test_every_command_has_words_for_a_run_that_is_a_pickle(
    trap: Trap, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trap.folder / "net.pth"
    path.write_bytes(trap.files()["torch"])
    image = str(data / "disc" / "test" / "good" / "0.png")
    for command in (
        ["evaluate", str(path), str(data)],
        ["predict", str(path), image, "--out", str(trap.folder / "out")],
        ["train", str(data), "--out", str(trap.folder / "run"), "--weights", str(path)],
    ):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert f"mambaadv2: error: {'weights ' * (command[0] == 'train')}{path}" in said
        assert "Traceback" not in said


def test_images_and_masks_that_are_pickles_are_refused(
    trap: Trap, sound_run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(data, trap.folder / "data"))
    masks = own / "disc" / "ground_truth" / "cut"
    masks.mkdir(parents=True)
    out = trap.folder / "out"
    suffixes = (".png", ".tif", ".jpg", ".webp", ".bmp")
    forms = trap.files()
    for (name, content), suffix in zip(forms.items(), itertools.cycle(suffixes), strict=False):
        mask = masks / f"0_mask{suffix}"
        mask.write_bytes(content)
        assert cli.main(["evaluate", str(sound_run), str(own)]) == 2
        mask.unlink()
        path = own / "disc" / "train" / "good" / f"x{suffix}"
        path.write_bytes(content)
        refused(partial(train, own, trap.folder / "run", device="cpu", progress=False))
        path = path.rename(trap.folder / f"{name}{suffix}")
        assert cli.main(["predict", str(sound_run), str(path), "--out", str(out)]) == 1
        assert "error" in json.loads((out / "predictions.jsonl").read_text(encoding="utf-8"))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_data_set_that_is_a_pickle_is_refused(trap: Trap, suffix: str) -> None:
    for name, content in trap.files().items():
        path = trap.folder / f"{name}{suffix}"
        path.write_bytes(content)
        refused(partial(train, path, trap.folder / "run", device="cpu", progress=False))


def test_cached_features_that_are_pickles_are_made_anew(trap: Trap, data: Path) -> None:
    images = sorted((data / "disc" / "train" / "good").iterdir())

    def fill() -> list[np.ndarray[tuple[int, ...], np.dtype[np.float16]]]:
        store = fill_store(
            images,
            (64, 64),
            lambda batch: (batch.mean(dim=(2, 3), keepdim=True),),
            [(3, 1, 1)],
            folder=trap.folder / "features",
            key="key",
        )
        return [np.array(array) for array in store.arrays]

    (before,) = fill()
    for content in trap.files().values():
        (trap.folder / "features" / "scale_0.npy").write_bytes(content)
        (after,) = fill()
        np.testing.assert_array_equal(after, before)


def test_a_snapshot_that_is_a_pickle_is_not_taken(trap: Trap) -> None:
    folder = trap.folder / SNAPSHOTS
    folder.mkdir()
    for step, content in enumerate(trap.files().values()):
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"step-{step:08d}-{digest}.safetensors").write_bytes(content)
    snapshot, words = Snapshots(trap.folder, 0.0).newest()
    assert snapshot is None
    assert len(words) == 8


def test_a_model_card_is_made_beside_pickles(trap: Trap, sound_run: Path) -> None:
    run = Path(shutil.copytree(sound_run, trap.folder / "run"))
    for content in trap.files().values():
        for name in ("data.json", "environment.json", "evaluation.json"):
            (run / name).write_bytes(content)
        write_model_card(run)
        assert "Not measured yet" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_doctor_finds_a_pickle_among_the_packaged_weights(
    trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in trap.files().values():
        # With the name that its hash asks for, so that only reading it can find it.
        path = trap.folder / f"lite-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        path.write_bytes(content)
        file = weights.WeightsFile(path=path, source="packaged", licence=None)
        monkeypatch.setattr(weights, "find_weights", lambda _name, file=file: file)
        findings = list(software.check_weights())
        assert [finding.state for finding in findings] == ["problem", "note", "note"]
