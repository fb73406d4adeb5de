"""A run folder: comes back to the bit, needs nothing else, and is refused when anything is off."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from mambaadv2 import predict
from mambaadv2.checkpoint import (
    ModelCard,
    calibration_fields,
    load_run,
    make_scorer,
    read_card,
    save_run,
    write_card,
)
from mambaadv2.errors import CheckpointError
from mambaadv2.model import encoder as encoder_module
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import EncoderProvenance, build_encoder
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import Scorer

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    encoder="tf_efficientnet_lite0",
    image_size=(64, 96),
    dims=(16, 8, 8),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=8,
    state_dim=4,
    score="whitened",
)
CARD = ModelCard(
    model=CONFIG,
    encoder=EncoderProvenance(
        name="tf_efficientnet_lite0",
        source="packaged",
        file="weights.pth",
        sha256="0" * 64,
        licence="Apache-2.0",
    ),
    classes=("bolt", "nut"),
    thresholds={"bolt": 1.25, "nut": 0.1 + 0.2},
    calibration_images={"bolt": 4, "nut": 7},
    calibration_scores={"bolt": (0.1 + 0.2, 0.5, 0.6, 0.7), "nut": ()},
    calibration_kinds={"bolt": "assumed", "nut": "earlier"},
    calibration_trimmed={"bolt": (3,), "nut": ()},
    false_alarm_rate=0.02,
    false_alarm_confidence=None,
    leave_one_out=True,
    colour_scale=(0.8, 2.0),
    training={"steps": 3},
)


@dataclass(frozen=True)
class Saved:
    """A model in memory and its folder, which tests only read."""

    folder: Path
    network: Network
    scorer: Scorer

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        predictor = predict.Predictor(self.network, self.scorer, CARD, CPU)
        return predictor.predict_tensor(images)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = build_encoder(CONFIG.encoder, pretrained=False, image_size=CONFIG.image_size)
        network = Network(CONFIG, encoder).eval()
        scorer = make_scorer(CONFIG, network, 2).eval()
        for buffer in (*scorer.buffers(), network.feature_scale):
            buffer.copy_(torch.rand_like(buffer) + 0.1)
    folder = tmp_path_factory.mktemp("saved")
    save_run(folder, network, scorer, CARD)
    return Saved(folder, network, scorer)


@pytest.fixture
def run(saved: Saved, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved.folder, tmp_path / "run"))


def images(count: int = 3) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 64, 96), dtype=np.uint8)
    return torch.from_numpy(pixels)


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change model.json as parsed JSON."""
    path = run / "model.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def replace_weights(run: Path, data: bytes) -> None:
    """Put other weights in place, with a hash that agrees."""
    (run / "model.safetensors").write_bytes(data)
    edit(run, lambda content: content.update(weights_sha256=hashlib.sha256(data).hexdigest()))


def refused(run: Path, file: str, message: str) -> None:
    """Loading fails, names the file by its path and says why."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_run(run, CPU)
    assert str(run / file) in str(caught.value)


def test_a_loaded_run_predicts_the_same_bits(saved: Saved) -> None:
    network, scorer, card = load_run(saved.folder, CPU)
    assert card == CARD
    assert network.encoder.provenance == CARD.encoder
    assert not network.training
    assert not scorer.training
    expected_maps, expected_classes = saved.maps(images())
    maps, classes = predict.Predictor(network, scorer, card, CPU).predict_tensor(images())
    assert torch.equal(maps, expected_maps)
    assert torch.equal(classes, expected_classes)


def test_saving_what_was_loaded_gives_the_same_files(saved: Saved, tmp_path: Path) -> None:
    save_run(tmp_path, *load_run(saved.folder, CPU))
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (saved.folder / name).read_bytes()


def test_loading_asks_neither_hub_nor_package(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object) -> NoReturn:
        raise AssertionError("weights were looked for")

    monkeypatch.setattr(encoder_module, "find_weights", forbidden)
    monkeypatch.setattr(encoder_module, "read_weights", forbidden)
    assert predict.load(saved.folder, device="cpu").classes == ("bolt", "nut")


def test_loading_leaves_the_random_state(saved: Saved) -> None:
    before = torch.random.get_rng_state()
    load_run(saved.folder, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_can_be_moved(run: Path, tmp_path: Path, saved: Saved) -> None:
    assert str(saved.folder) not in (run / "model.json").read_text(encoding="utf-8")
    moved = run.rename(tmp_path / "elsewhere")
    network, scorer, card = load_run(moved, CPU)
    maps, _ = predict.Predictor(network, scorer, card, CPU).predict_tensor(images(1))
    assert torch.equal(maps, saved.maps(images(1))[0])


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_one_flipped_bit_is_noticed(run: Path, place: float) -> None:
    path = run / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    refused(run, "model.safetensors", "damaged or not the file")


def test_truncated_weights_are_noticed(run: Path) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(run, "model.safetensors", "damaged")


def test_weights_of_another_run_are_noticed(run: Path, saved: Saved) -> None:
    # What a crash leaves between writing the weights and their description.
    tensors = load((saved.folder / "model.safetensors").read_bytes())
    tensors["scorer.centres"] += 1
    (run / "model.safetensors").write_bytes(save(tensors))
    refused(run, "model.safetensors", "not the file that model.json describes")


def test_missing_files_are_named(run: Path, tmp_path: Path) -> None:
    (run / "model.safetensors").unlink()
    refused(run, "model.safetensors", "cannot be read")
    (run / "model.json").unlink()
    refused(run, "", "written by 'mambaadv2 train', found no model.json")
    with pytest.raises(CheckpointError, match="nowhere: expected a run folder"):
        load_run(tmp_path / "nowhere", CPU)


def test_a_pickle_in_place_of_the_weights_never_runs(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (os.mkdir, (str(mark),))

    torch.save({"network": Harmful()}, tmp_path / "model.pt")
    replace_weights(run, (tmp_path / "model.pt").read_bytes())
    refused(run, "model.safetensors", "not a safetensors file")
    assert not mark.exists()


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_what_is_no_schema_version_is_refused(run: Path, version: object) -> None:
    edit(run, lambda content: content.update(schema_version=version))
    refused(run, "model.json", f"schema version {version!r}, expected a whole number from 1 to 3")


def test_a_file_from_the_future_is_refused(run: Path) -> None:
    edit(run, lambda content: content.update(schema_version=4, news=1))
    refused(run, "model.json", "version 4, this package reads up to 3; .*upgrade this one")


def test_a_run_of_schema_1_is_read(saved: Saved, run: Path) -> None:
    # As the release before schema 2 wrote it, for a model of the same configuration.
    old = json.loads((Path(__file__).parent / "fixtures/model-schema-1.json").read_text())
    old["weights_sha256"] = read_card(run)[1]
    (run / "model.json").write_text(json.dumps(old))
    network, scorer, card = load_run(run, CPU)
    none: dict[str, tuple[int, ...]] = {"bolt": (), "nut": ()}
    assert card == dataclasses.replace(
        CARD,
        calibration_scores=none,
        calibration_kinds=dict.fromkeys(none, "earlier"),
        calibration_trimmed=none,
        false_alarm_rate=0.01,
    )
    assert card.calibration("bolt") is None
    maps, _ = predict.Predictor(network, scorer, card, CPU).predict_tensor(images())
    assert torch.equal(maps, saved.maps(images())[0])


def test_a_run_of_schema_2_keeps_its_scores(run: Path) -> None:
    newer = {"calibration_kinds", "calibration_trimmed", "false_alarm_rate"}
    newer |= {"false_alarm_confidence", "leave_one_out"}

    def age(content: dict[str, Any]) -> None:
        for name in newer:
            del content[name]
        content["schema_version"] = 2

    edit(run, age)
    card, _ = read_card(run)
    assert card.thresholds == CARD.thresholds
    assert card.kept_scores("bolt") == CARD.calibration_scores["bolt"]
    assert card.calibration("bolt") is None
    assert card.leave_one_out


def test_a_card_says_what_its_thresholds_promise() -> None:
    promised = CARD.calibration("bolt")
    assert promised is not None
    assert (promised.kind, promised.images, promised.kept) == ("assumed", 4, 3)
    assert promised.guaranteed == 1 / 4
    assert promised.leave_one_out
    assert CARD.kept_scores("bolt") == (0.1 + 0.2, 0.5, 0.6)
    assert CARD.calibration("nut") is None
    fields = calibration_fields({"bolt": promised}, {"bolt": CARD.calibration_scores["bolt"]})
    for name, value in fields.items():
        whole = getattr(CARD, name)
        own = {"bolt": whole["bolt"]} if isinstance(whole, dict) and whole else whole
        assert value == own, name


LABELLED = {
    "aim": "best F1",
    "split": "validation",
    "defects": 5,
    "good": 9,
    "recall": 0.8,
    "false_alarms": 1 / 3,
    "guarantee": "",
}


def test_a_threshold_chosen_with_defects_is_told_from_the_others(run: Path) -> None:
    kinds = {"calibration_kinds": {"bolt": "assumed", "nut": "labelled"}}
    edit(run, lambda content: content.update(kinds, calibration_labelled={"nut": LABELLED}))
    card, weights = read_card(run)
    assert card.calibration("nut") is None
    assert card.threshold_sentence("nut").startswith("Chosen for best F1 on the split validation: ")
    assert card.threshold_sentence("bolt") == CARD.threshold_sentence("bolt")
    write_card(run, card, weights)
    assert read_card(run) == (card, weights)
    # What an older file of this schema does not say is: none.
    edit(run, lambda content: content.update(calibration_kinds=CARD.calibration_kinds))
    edit(run, lambda content: content.pop("calibration_labelled"))
    assert read_card(run)[0].calibration_labelled == {}


def test_a_stream_may_be_compared_with_scores_that_fitted_nothing() -> None:
    assert CARD.unseen_scores == {"bolt": (), "nut": ()}
    fresh = dataclasses.replace(CARD, leave_one_out=False)
    assert fresh.unseen_scores == {"bolt": CARD.kept_scores("bolt"), "nut": ()}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"calibration_labelled": {"nut": LABELLED}}, "calibration of nut: calibration_labelled: "),
        ({"calibration_labelled": {"cog": LABELLED}}, "calibration_labelled: expected some of"),
        ({"calibration_labelled": None}, "missing or unknown field"),
        (
            {"calibration_kinds": {"bolt": "labelled", "nut": "earlier"}},
            "calibration of bolt: calibration_labelled: expected an entry",
        ),
        *(
            (
                {
                    "calibration_kinds": {"bolt": "labelled", "nut": "earlier"},
                    "calibration_labelled": {"bolt": wrong},
                },
                words,
            )
            for wrong, words in (
                ({**LABELLED, "recall": 2}, "calibration of bolt: labelled threshold: expected"),
                ({**LABELLED, "cost": 2}, "calibration of bolt: missing or wrong field"),
                ({}, "calibration of bolt: missing or wrong field"),
                (None, "calibration of bolt: missing or wrong field"),
            )
        ),
        (
            {"calibration_kinds": {"bolt": "sure", "nut": "earlier"}},
            "calibration of bolt: calibration_kinds: expected",
        ),
        ({"calibration_kinds": {"bolt": "assumed"}}, "calibration_kinds: expected one entry"),
        ({"calibration_trimmed": {"bolt": [4], "nut": []}}, "calibration of bolt: .*positions"),
        ({"calibration_trimmed": {"bolt": [-1], "nut": []}}, "calibration of bolt: .*positions"),
        ({"calibration_images": {"bolt": 1, "nut": 7}}, "calibration of bolt: rank"),
        ({"calibration_images": {"bolt": 4.5, "nut": 7}}, "calibration_images: expected a number"),
        ({"false_alarm_rate": 2.0}, "calibration of bolt: rate"),
        ({"false_alarm_confidence": 0.0}, "calibration of bolt: confidence"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(
    run: Path, change: dict[str, Any], words: str
) -> None:
    edit(run, lambda content: content.update(change))
    refused(run, "model.json", words)


@pytest.mark.parametrize("classes", [None, 3])
def test_a_broken_file_of_schema_1_is_refused(run: Path, classes: object) -> None:
    edit(run, lambda content: content.update(schema_version=1, classes=classes))
    refused(run, "model.json", "missing or unknown field")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"model"', "\udcff"])
def test_what_is_no_json_object_is_refused(run: Path, text: str) -> None:
    (run / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(run, "model.json", "JSON")


FIELDS = [
    *["weights_sha256", "model", "encoder", "classes", "thresholds", "calibration_images"],
    *["calibration_scores", "calibration_kinds", "calibration_trimmed", "colour_scale"],
    *["false_alarm_rate", "false_alarm_confidence", "leave_one_out"],
]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(run: Path, field: str) -> None:
    edit(run, lambda content: content.pop(field))
    refused(run, "model.json", f"missing or unknown field .*{field}")


@pytest.mark.parametrize("field", ["sigma", "image_size", "drop_path"])
def test_a_missing_model_field_takes_no_default(run: Path, field: str) -> None:
    edit(run, lambda content: content["model"].pop(field))
    refused(run, "model.json", f"missing or unknown field .*{field}")


@pytest.mark.parametrize("part", [None, "model", "encoder"])
def test_an_unknown_field_is_named(run: Path, part: str | None) -> None:
    edit(run, lambda content: (content[part] if part else content).update(temperature=1))
    refused(run, "model.json", "temperature")


@pytest.mark.parametrize("field", ["model", "encoder", "classes", "thresholds", "colour_scale"])
@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_a_field_of_another_kind_is_refused(run: Path, field: str, value: object) -> None:
    edit(run, lambda content: content.update({field: value}))
    with pytest.raises(CheckpointError, match=r"model\.(json|safetensors)"):
        load_run(run, CPU)


def places(content: object, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every value in parsed JSON, of lists to the first two."""
    items: Iterable[tuple[str | int, object]] = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = list(enumerate(content))[:2]
    for key, value in items:
        yield (*way, key)
        yield from places(value, (*way, key))


WRONG = ["x", 5, -1, None, [], {}, [[]], {"a": 1}, True, 10**400, 1e308, ["x"], [None]]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:8])
def test_whatever_stands_in_a_description_it_is_read_or_refused(run: Path, value: object) -> None:
    whole = json.loads((run / "model.json").read_text())
    refusals = 0
    for *way, last in places(whole):
        content = copy.deepcopy(whole)
        inner = content
        for key in way:
            inner = inner[key]
        inner[last] = value
        (run / "model.json").write_text(json.dumps(content))
        try:
            read_card(run)
        except CheckpointError as error:
            refusals += str(run / "model.json") in str(error)
    assert refusals > 20


def test_json_that_is_too_deep_is_refused(run: Path) -> None:
    (run / "model.json").write_text("[" * 100_000)
    refused(run, "model.json", "cannot be read as JSON")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_an_impossible_threshold_is_refused(run: Path, value: float) -> None:
    # NaN above all: no score is greater, so every part would pass.
    edit(run, lambda content: content["thresholds"].update(nut=value))
    refused(run, "model.json", "thresholds: .*nut, got")


def test_thresholds_are_those_of_the_classes(run: Path) -> None:
    edit(run, lambda content: content["thresholds"].pop("nut"))
    refused(run, "model.json", "thresholds: expected one entry per class")


def test_an_encoder_that_timm_does_not_know_is_refused(run: Path) -> None:
    edit(run, lambda content: content["encoder"].update(name="resnet_of_the_future"))
    refused(run, "model.json", "no model 'resnet_of_the_future'")


@pytest.mark.parametrize("name", ["network.encoder.body.timm.conv_stem.weight", "scorer.centres"])
def test_a_missing_tensor_is_named(run: Path, name: str) -> None:
    tensors = load((run / "model.safetensors").read_bytes())
    del tensors[name]
    replace_weights(run, save(tensors))
    refused(run, "model.safetensors", f"missing tensors .*{name.split('.', 1)[1]}")


@pytest.mark.parametrize("name", ["network.decoder.extra", "scorer.extra", "extra"])
def test_an_unknown_tensor_is_named(run: Path, name: str) -> None:
    tensors = load((run / "model.safetensors").read_bytes())
    replace_weights(run, save(tensors | {name: torch.zeros(2)}))
    refused(run, "model.safetensors", "unknown tensors .*extra")


def test_a_tensor_of_another_shape_is_named(run: Path) -> None:
    tensors = load((run / "model.safetensors").read_bytes())
    tensors["scorer.centres"] = tensors["scorer.centres"][:1].contiguous()
    replace_weights(run, save(tensors))
    refused(run, "model.safetensors", "centres has shape .*expected")


def test_weights_that_are_not_finite_give_no_map(run: Path) -> None:
    tensors = load((run / "model.safetensors").read_bytes())
    tensors["scorer.mean_0"][0] = float("nan")
    tensors["scorer.mean_0"][1] = float("nan")
    replace_weights(run, save(tensors))
    picture = np.ascontiguousarray(images(1)[0].permute(1, 2, 0).numpy())
    with pytest.raises(CheckpointError, match=r"images\[0\]: expected a finite anomaly map"):
        predict.load(run, device="cpu").predict([picture])


def test_a_card_tells_the_hash_of_its_weights(saved: Saved) -> None:
    card, expected = read_card(saved.folder)
    data = (saved.folder / "model.safetensors").read_bytes()
    assert card == CARD
    assert expected == hashlib.sha256(data).hexdigest()
