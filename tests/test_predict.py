"""Images in, predictions and files out, with one small trained model for the whole file."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.tiny_model import SIDE, TINY

from mambaadv2.errors import CheckpointError, ConfigError, DataError, ImageError
from mambaadv2.evaluate import evaluate
from mambaadv2.fit import TrainConfig
from mambaadv2.image import overlay, read_image, write_png
from mambaadv2.predict import (
    Prediction,
    Predictor,
    find_images,
    load,
    predict_paths,
    predict_to_folder,
)
from mambaadv2.readers import Readers
from mambaadv2.train import train_model

CLASSES = ("disc", "stripes")
LINE = {
    *("path", "score", "p_value", "threshold", "defect", "class", "width", "height", "ms"),
    *("overlay", "threshold_kind", "n_regions", "regions"),
}


def draw(kind: str, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.uint8]:
    """A good image of one of two classes, in any size; no two share their noise."""
    rng = np.random.default_rng((CLASSES.index(kind), seed))
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    y, x = y / size[0], x / size[1]
    grey = (
        60 + 120.0 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
        if kind == "disc"
        else 128 + 60 * np.sin(20 * x + rng.uniform(0, 0.5))
    )
    noisy = grey[:, :, None] + rng.normal(0, 5, (*size, 3))
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def stain(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    spoilt = image.copy()
    spoilt[20:36, 24:40] = (255, 0, 0)
    return spoilt


@dataclass(frozen=True)
class Trained:
    data: Path
    run: Path
    predictor: Predictor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("predict")
    data = root / "data"
    for kind in CLASSES:
        good = data / kind / "train" / "good"
        good.mkdir(parents=True)
        for i in range(12):
            write_png(good / f"{i:03d}.png", draw(kind, i))
    config = TrainConfig(epochs=15, batch_size=8, device="cpu")
    run = train_model(data, root / "run", TINY, config, progress=False)
    return Trained(data, run, load(run, device="cpu"))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_good_images_pass_and_a_stain_is_found_where_it_is(trained: Trained) -> None:
    good = [draw(kind, 100 + i) for kind in CLASSES for i in range(4)]
    for prediction in trained.predictor.predict(good):
        assert not prediction.defect
    for kind in CLASSES:
        (found,) = trained.predictor.predict([stain(draw(kind, 200))])
        assert found.defect
        row, column = np.unravel_index(int(found.map.argmax()), found.map.shape)
        assert 12 <= row < 44
        assert 16 <= column < 48


def test_sizes_may_be_mixed_and_maps_have_the_image_s_own(trained: Trained) -> None:
    sizes = [(64, 64), (48, 100), (200, 31), (1, 1), (129, 65)]
    images = [draw("stripes", i, size) for i, size in enumerate(sizes)]
    for prediction, size in zip(trained.predictor.predict(images), sizes, strict=True):
        assert prediction.map.shape == size
        assert prediction.map.dtype == np.float32
        assert prediction.map.min() >= 0
        assert np.isfinite(prediction.map).all()
        assert prediction.class_name in trained.predictor.classes


def test_a_batch_gives_what_its_images_give_alone(trained: Trained) -> None:
    images = [draw(kind, i, (70, 50 + i)) for i in range(3) for kind in CLASSES]
    together = trained.predictor.predict(images)
    for image, one in zip(images, together, strict=True):
        (alone,) = trained.predictor.predict([image])
        np.testing.assert_allclose(one.map, alone.map, rtol=1e-5, atol=1e-5)
        assert one.score == pytest.approx(alone.score, rel=1e-5)
        assert (one.class_name, one.threshold) == (alone.class_name, alone.threshold)


def test_regions_are_places_in_the_image(trained: Trained) -> None:
    predictor = trained.predictor
    size = (3 * SIDE, 2 * SIDE)
    good, bad = predictor.predict([draw("disc", 1), stain(draw("disc", 1, size))])
    assert not good.defect
    assert predictor.regions(good) == []
    first, *rest = predictor.regions(bad)
    assert bad.map[first.at[1], first.at[0]] == first.peak == bad.map.max()
    assert first.p_value == bad.p_value
    assert sum(r.area for r in (first, *rest)) == int((bad.map > bad.threshold).sum())
    large = predictor.regions(bad, min_area=first.area)
    assert [r.area for r in large] == [r.area for r in (first, *rest) if r.area >= first.area]
    assert large[0].peak < first.peak


def test_colour_marks_are_of_the_class(trained: Trained) -> None:
    predictor = trained.predictor
    for name in CLASSES:
        marks = predictor.colour_marks(name)
        held = predictor.card.calibration_scores[name]
        assert marks[-1][0] == pytest.approx(max(held) / predictor.card.thresholds[name])
        assert marks[-1][1] == 1 / (len(held) + 1)


def test_a_model_that_knows_no_scores_gives_no_p_value(trained: Trained) -> None:
    known = trained.predictor
    none: dict[str, tuple[float, ...]] = dict.fromkeys(CLASSES, ())
    card = dataclasses.replace(known.card, calibration_scores=none)
    predictor = Predictor(known.network, known.scorer, card, known.device)
    (prediction,) = predictor.predict([stain(draw("disc", 1))])
    assert prediction.p_value is None
    assert {region.p_value for region in predictor.regions(prediction)} == {None}
    assert predictor.colour_marks("disc") == []


def test_a_prediction_adds_up(trained: Trained) -> None:
    predictor = trained.predictor
    images = [draw("disc", 1), stain(draw("disc", 1)), draw("stripes", 2)]
    predictions = predictor.predict(images)
    for prediction in predictions:
        assert prediction.threshold == predictor.card.thresholds[prediction.class_name]
        assert prediction.defect == (prediction.score > prediction.threshold)
        held = predictor.card.calibration_scores[prediction.class_name]
        above = sum(score >= prediction.score for score in held)
        assert prediction.p_value == (1 + above) / (len(held) + 1)
        # These images have the network's size, so that the map is the one that is scored.
        assert prediction.score == pytest.approx(float(prediction.map.max()))
    assert [p.class_name for p in predictions[::2]] == ["disc", "stripes"]


def test_the_model_s_facts(trained: Trained) -> None:
    predictor = trained.predictor
    assert predictor.classes == CLASSES
    assert predictor.image_size == (SIDE, SIDE)
    assert predictor.colour_scale.low < 1 < predictor.colour_scale.high
    assert predictor.device == torch.device("cpu")


def test_no_image_gives_no_prediction(trained: Trained) -> None:
    assert trained.predictor.predict([]) == []


def test_prediction_leaves_the_image_and_makes_no_gradient(trained: Trained) -> None:
    image = draw("disc", 5)
    before = image.copy()
    trained.predictor.predict([image])
    assert np.array_equal(image, before)
    maps, classes = trained.predictor.predict_tensor(
        torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    )
    assert not maps.requires_grad
    assert maps.shape == (2, SIDE, SIDE)
    assert classes.shape == (2,)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_file_counts_as_its_colour_twin(trained: Trained, tmp_path: Path, bits: int) -> None:
    grey = draw("disc", 9)[:, :, 0]
    stored = grey if bits == 8 else grey.astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "grey.png")
    (from_file,) = trained.predictor.predict([read_image(tmp_path / "grey.png")])
    (from_colour,) = trained.predictor.predict([np.repeat(grey[:, :, None], 3, axis=2)])
    assert np.array_equal(from_file.map, from_colour.map)


@pytest.mark.parametrize(
    "shape, kind",
    [
        *[((64, 64), np.uint8), ((64, 64, 1), np.uint8), ((64, 64, 4), np.uint8)],
        *[((3, 64, 64), np.uint8), ((64, 64, 3), np.float32), ((64, 64, 3), np.uint16)],
        *[((1, 64, 64, 3), np.uint8), ((0, 64, 3), np.uint8), ((), np.uint8)],
    ],
)
def test_what_is_no_image_is_refused_by_position(
    trained: Trained, shape: tuple[int, ...], kind: type
) -> None:
    with pytest.raises(DataError, match=r"images\[1\]: expected \(H, W, 3\) uint8 RGB, got \("):
        trained.predictor.predict([draw("disc", 0), np.zeros(shape, kind)])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, SIDE, 32, dtype=torch.uint8),
        torch.zeros(3, SIDE, SIDE, dtype=torch.uint8),
        torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8),
        torch.zeros(1, 3, SIDE, SIDE),
    ],
)
def test_the_strict_form_takes_one_shape(trained: Trained, images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"images: expected \(B, 3, 64, 64\) uint8, got"):
        trained.predictor.predict_tensor(images)


def test_devices_and_runs_that_do_not_exist_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: expected"):
        load(trained.run, device="tpu")
    with pytest.raises(CheckpointError, match="expected a run folder"):
        load(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            load(trained.run, device="cuda")


def test_a_map_that_is_not_finite_is_an_error_that_names_the_image(
    trained: Trained, tmp_path: Path
) -> None:
    sound = trained.predictor
    scorer = copy.deepcopy(sound.scorer)
    scorer.floor[CLASSES.index("stripes")] = float("nan")
    damaged = Predictor(sound.network, scorer, sound.card, sound.device)
    images = [draw("disc", 0), draw("stripes", 0)]
    with pytest.raises(CheckpointError, match=r"^images\[1\]: expected a finite anomaly map"):
        damaged.predict(images)
    good = tmp_path / "part" / "test" / "good"
    good.mkdir(parents=True)
    paths = [good / "0.png", good / "1.png"]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    message = f"^{re.escape(str(paths[1]))}: expected a finite anomaly map"
    with pytest.raises(CheckpointError, match=message):
        list(predict_paths(damaged, paths))
    with pytest.raises(CheckpointError, match=message):
        evaluate(damaged, tmp_path, progress=False)


def test_paths_come_back_in_order_with_image_and_time(trained: Trained) -> None:
    paths = sorted((trained.data / "disc" / "train" / "good").iterdir())[:5]
    found = list(predict_paths(trained.predictor, iter(paths), batch_size=2))
    assert [path for path, _, _, _ in found] == paths
    for path, image, prediction, ms in found:
        assert np.array_equal(image, read_image(path))
        (alone,) = trained.predictor.predict([image])
        np.testing.assert_allclose(prediction.map, alone.map, rtol=1e-5, atol=1e-5)
        assert ms > 0


def test_an_unreadable_path_stops_where_it_stands(trained: Trained, tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", draw("disc", 0))
    (tmp_path / "1.png").write_bytes(b"no image")
    results = predict_paths(trained.predictor, sorted(tmp_path.iterdir()))
    assert next(results)[0].name == "0.png"
    with pytest.raises(ImageError, match=r"1\.png"):
        next(results)


def test_memory_does_not_grow_with_the_number_of_images(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
    asked = 0

    def read(_: Readers, path: Path) -> Future[NDArray[np.uint8]]:
        image, number = draw("disc", 0), int(path.stem)
        future: Future[NDArray[np.uint8]] = Future()
        alive[number] = weakref.ref(image, lambda _: alive.pop(number))
        future.set_result(image)
        return future

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield Path(f"{asked}.png")

    monkeypatch.setattr(Readers, "image", read)
    batch, most = 3, 0
    for number, _ in enumerate(predict_paths(trained.predictor, endless(), batch_size=batch), 1):
        most = max(most, len(alive))
        assert asked <= number + 2 * batch
        if number == 24:
            break
    # The batch at hand and the one read ahead; the caller holds the last one of the batch before.
    assert batch <= most <= 2 * batch + 1


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Two good images and a stained one, of other sizes, and one that cannot be read."""
    folder = tmp_path / "parts"
    folder.mkdir()
    write_png(folder / "a.png", draw("disc", 300))
    write_png(folder / "b.png", draw("stripes", 301, (80, 120)))
    (folder / "c.png").write_bytes(b"no image")
    write_png(folder / "d.png", stain(draw("disc", 302)))
    return folder


def test_a_folder_of_results(trained: Trained, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    errors = predict_to_folder(
        trained.run, [str(inputs)], out, raw=True, device="cpu", batch_size=2, progress=False
    )
    assert errors == 1
    first, second, bad, last = lines(out)
    assert [Path(line["path"]).name for line in (first, second, bad, last)] == [
        *["a.png", "b.png", "c.png", "d.png"]
    ]
    assert set(bad) == {"path", "error"}
    assert "c.png" in bad["error"]
    assert {p.name for p in (out / "overlays").iterdir()} == {
        f"{tmp_path.parent.name}_{tmp_path.name}_parts_{stem}.png" for stem in "abd"
    }
    for line in (first, second, last):
        assert set(line) == LINE | {"map"}
        stem = f"{tmp_path.parent.name}_{tmp_path.name}_parts_{Path(line['path']).stem}"
        assert (line["overlay"], line["map"]) == (f"overlays/{stem}.png", f"maps/{stem}.npy")
        image = read_image(line["path"])
        assert (line["height"], line["width"]) == image.shape[:2]
        assert read_image(out / line["overlay"]).shape == image.shape
        values = np.load(out / line["map"], allow_pickle=False)
        assert values.shape == image.shape[:2]
        assert values.dtype == np.float32
        (alone,) = trained.predictor.predict([image])
        np.testing.assert_allclose(values, alone.map, rtol=1e-5, atol=1e-5)
        assert line["score"] == pytest.approx(alone.score, rel=1e-5)
        assert line["defect"] == alone.defect
        assert line["class"] == alone.class_name
        assert line["threshold"] == alone.threshold
        assert line["p_value"] == alone.p_value
        assert line["ms"] > 0
    assert last["defect"]


def test_without_raw_there_are_no_maps(trained: Trained, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_to_folder(trained.run, [str(inputs / "a.png")], out, device="cpu", progress=False)
    assert {p.name for p in out.iterdir()} == {
        *("overlays", "predict.json", "predictions.jsonl", "scale.png", "summary.json")
    }
    assert set(lines(out)[0]) == LINE


@pytest.mark.parametrize("given", ["parts", "part*", "parts/**/*.png"])
def test_results_inside_the_input_are_not_scored_again(
    trained: Trained, inputs: Path, tmp_path: Path, given: str
) -> None:
    found = []
    for _ in range(2):
        out = inputs / "results"
        predict_to_folder(trained.run, [str(tmp_path / given)], out, device="cpu", progress=False)
        found.append([Path(line["path"]).name for line in lines(out)])
    assert found[0] == found[1] == ["a.png", "b.png", "c.png", "d.png"]


def test_a_folder_for_results_and_images_alike(trained: Trained, inputs: Path) -> None:
    for _ in range(2):
        predict_to_folder(trained.run, [str(inputs)], inputs, device="cpu", progress=False)
        assert len(lines(inputs)) == 4


def test_a_good_image_stays_itself_and_a_stain_glows(trained: Trained) -> None:
    scale = trained.predictor.colour_scale

    def picture(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Prediction]:
        (found,) = trained.predictor.predict([image])
        heat = overlay(image, found.map / found.threshold, scale.low, scale.high)
        return heat, found

    for kind in CLASSES:
        image = draw(kind, 400)
        drawn, _ = picture(image)
        change = np.abs(drawn.astype(int) - image)
        assert change.mean() < 1
        assert (change.max(axis=2) > 16).mean() < 0.02
        spoilt = stain(image)
        drawn, found = picture(spoilt)
        hot = np.abs(drawn.astype(int) - spoilt).max(axis=2)
        assert hot[20:36, 24:40].mean() > 50
        assert hot[20:36, 24:40].mean() > 2 * hot[:, :4].mean()
        assert found.defect


def test_equal_names_do_not_overwrite_each_other(trained: Trained, tmp_path: Path) -> None:
    picture = draw("disc", 0)
    names = ["p/x/1.png", "q/x/1.png", "p/x/1.bmp", "p/x/1_1.png", "p/x/1_1.bmp", "r/p/x/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    out = tmp_path / "out"
    given = [str(tmp_path / name) for name in names]
    assert predict_to_folder(trained.run, given, out, raw=True, device="cpu", progress=False) == 0
    assert len(lines(out)) == len(names)
    assert len(list((out / "overlays").iterdir())) == len(names)
    assert len(list((out / "maps").iterdir())) == len(names)


def test_the_same_file_twice_is_predicted_twice(
    trained: Trained, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [str(inputs / "a.png"), str(inputs / "a.png")]
    assert predict_to_folder(trained.run, given, out, device="cpu", progress=False) == 0
    one, two = lines(out)
    assert one["score"] == two["score"]


def test_images_are_found_in_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/c/1.jpeg", "a.png", "b/notes.txt", "b/.hidden.png", "b/.git/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "folder.png").mkdir()

    def names(*inputs: str) -> list[str]:
        found = find_images([str(tmp_path / text) for text in inputs])
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("b") == ["b/2.PNG", "b/c/1.jpeg"]
    assert names("a.png", "b") == ["a.png", "b/2.PNG", "b/c/1.jpeg"]
    assert names("b/*.PNG") == ["b/2.PNG"]
    assert names("**/*.jpeg") == ["b/c/1.jpeg"]
    assert names("b/notes.txt") == ["b/notes.txt"]  # named by hand: its content decides
    # A pattern may match folders, and an image more than once.
    assert names("b*") == ["b/2.PNG", "b/c/1.jpeg"]
    assert names("b/[2c]*") == ["b/2.PNG", "b/c/1.jpeg"]
    assert names("b/c/**") == ["b/c/1.jpeg"]


@pytest.mark.parametrize("text", ["nothing", "empty", "*.gif"])
def test_inputs_without_an_image_are_refused(trained: Trained, tmp_path: Path, text: str) -> None:
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "a.png", draw("disc", 0))
    given = [str(tmp_path / "a.png"), str(tmp_path / text)]
    with pytest.raises(DataError, match=r"expected an image, a folder .* found no image"):
        predict_to_folder(trained.run, given, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_brackets_in_its_name_is_no_pattern(
    trained: Trained, inputs: Path, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(inputs, tmp_path / "lot [7]"))
    assert [p.parent for p in find_images([str(odd / "a.png"), str(odd)])] == [odd] * 5
