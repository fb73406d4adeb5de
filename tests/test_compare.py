"""Evaluations in files: written, read back, refused when damaged, and compared."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambaadv2 import cli
from mambaadv2.compare import compare, differences, require_comparable, verdict_changes
from mambaadv2.errors import DataError, Problem
from mambaadv2.evaluation_file import Filed, evaluation_text, read_evaluation
from mambaadv2.measure import ClassMeasure
from mambaadv2.metrics import Resampling, image_metrics
from mambaadv2.protocols import ADER, EXACT, Protocol
from mambaadv2.provenance import read_against
from mambaadv2.results import METRICS, ClassResult, Evaluation, ImageResult

DRAWN = Resampling(replicates=200)
TWOS = np.full(50, 2.0).tobytes()
ROW: list[object] = ["a.png", "good", False, 1.0, 2.0, False, "nut", None, None, None, None, 9]


def measured(
    seed: int,
    *,
    classes: tuple[str, ...] = ("nut", "tile"),
    noise: float = 1.0,
    resampling: Resampling | None = DRAWN,
    protocol: Protocol = EXACT,
    masks: bool = True,
) -> Evaluation:
    """Twenty images a class; what makes an image hard is the same in all, `noise` is the run's."""
    results: dict[str, ClassResult] = {}
    own = np.random.default_rng(seed)
    for at, name in enumerate(classes):
        shared = np.random.default_rng(at)
        measure = ClassMeasure(protocol, resampling, pixels=masks)
        for number in range(20):
            defect = number % 2 == 1
            mask = np.zeros((8, 9), dtype=np.bool_)
            mask[2:5, 3:6] = defect
            hard = shared.standard_normal((8, 9)) + 1.2 * mask
            values = (hard + noise * own.standard_normal((8, 9))).astype(np.float32)
            image = ImageResult(
                name=f"{name}/test/{number}.png",
                kind="dent" if defect else "good",
                defect=defect,
                score=float(values.max()),
                threshold=2.5,
                flagged=float(values.max()) > 2.5,
                found_class=name,
                p_value=0.25,
                pixels=72,
                defect_pixels=int(mask.sum()),
            )
            measure.add(image, values if masks else None, mask if masks else None)
        results[name] = measure.result()
    return Evaluation(
        classes=results,
        seconds=1.5,
        skipped=(Problem(Path("odd \udcff.png"), "broken"),),
        protocol=protocol,
        resampling=resampling,
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Evaluation], Path]:
    def write(name: str, evaluation: Evaluation) -> Path:
        path = tmp_path / name
        path.write_text(evaluation_text(evaluation, "ab" * 32, {"mambaadv2": "1"}))
        return path

    return write


Write = Callable[[str, Evaluation], Path]


def test_what_is_read_is_what_was_written(write: Write) -> None:
    evaluation = measured(0)
    path = write("a.json", evaluation)
    found = read_evaluation(path)
    assert (found.path, found.data_sha256) == (path, "ab" * 32)
    again = found.evaluation
    assert (again.protocol, again.resampling, again.seconds) == (EXACT, DRAWN, 1.5)
    assert again.skipped == evaluation.skipped
    for name, result in evaluation.classes.items():
        other = again.classes[name]
        assert other.images == result.images
        assert other.metrics == result.metrics
        assert other.sampled.keys() == result.sampled.keys() == set(METRICS)
        for metric in METRICS:
            ours, theirs = result.interval(metric), other.interval(metric)
            assert ours is not None
            assert theirs is not None
            assert (theirs.low, theirs.high) == (ours.low, ours.high)


def test_an_image_is_a_line_and_the_rest_is_readable(write: Write) -> None:
    lines = write("a.json", measured(0)).read_text().splitlines()
    assert sum('"nut/test/' in line for line in lines) == 20
    assert '  "protocol": "exact",' in lines


def test_a_run_folder_is_read_by_its_evaluation(write: Write, tmp_path: Path) -> None:
    write("evaluation.json", measured(0))
    assert read_evaluation(tmp_path).path == tmp_path / "evaluation.json"


def test_without_intervals_there_are_numbers_alone(write: Write) -> None:
    found = read_evaluation(write("a.json", measured(0, resampling=None))).evaluation
    assert found.resampling is None
    assert found.interval("mad") is None
    assert found.mean["mad"] is not None


def damage(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *way, last = field.split("/")
        for name in way:
            content = content[name]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage("schema", 1), "schema: expected 2, got 1; evaluate again"),
        (damage("protocol", "mine"), "mine"),
        (damage("rules", {"image": "upside down"}), "rules: protocol exact of another version"),
        (damage("classes/nut/mad", 1.5), "nut mad: expected 0..1 or null, got 1.5"),
        (damage("classes/nut/mad", True), "nut mad: expected 0..1"),
        (damage("images", {}), "'nut'"),
        (damage("columns", ["name"]), "argument 2 is longer"),
        (damage("replicates/nut/image_ap/drawn", "AAAA"), "multiple of element size"),
        (damage("replicates/nut/image_ap/drawn", "AAAAAAAAEEA="), "expected 200 numbers, got 1"),
        (damage("replicates/nut/image_ap/left_out", "AAAAAAAAEEA="), "expected 50 numbers, got 1"),
        (
            damage("replicates/nut/image_ap/left_out", base64.b64encode(TWOS).decode()),
            "nut image_ap: expected numbers of 0..1",
        ),
        (damage("replicates/nut", []), "list"),
        (damage("replicates", []), "list"),
        (damage("notes", []), "list"),
        (damage("classes", []), "classes: expected one or more"),
        (damage("classes", [1]), "list"),
        (damage("classes/nut/n_good", -3), "nut n_good: expected a whole number"),
        (damage("classes/nut/samples", [1]), "list"),
        (damage("seconds", float("inf")), "seconds: expected a number, got inf"),
        (damage("intervals/seed", float("inf")), "infinity"),
        (damage("images/nut", [[None] * 12]), "images: nut None: name: got None"),
        (damage("images/nut", [[*ROW[:2], "yes", *ROW[3:]]]), "nut 'a.png': defect: got 'yes'"),
        (damage("images/nut", [[*ROW[:3], float("nan"), *ROW[4:]]]), "score: expected a number"),
        (damage("images/nut", [[*ROW[:4], 0, *ROW[5:]]]), "threshold: expected a number above 0"),
        (damage("replicates/nut/image_ap/drawn", "!"), "base64"),
        (damage("classes/nut/image_ap", None), "nut image_ap has some and no value"),
    ],
)
def test_what_was_changed_is_named(
    write: Write, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    path = write("a.json", measured(0))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=str(path)) as caught:
        read_evaluation(path)
    assert said in str(caught.value)


def test_json_of_any_depth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"a\.json: expected the JSON of an evaluation"):
        read_evaluation(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", '{"schema": "2"}'])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="evaluat"):
        read_evaluation(path)
    with pytest.raises(DataError, match=r"missing.json"):
        read_evaluation(tmp_path / "missing.json")


def test_a_difference_is_paired() -> None:
    first, second = measured(1, noise=0.05), measured(2, noise=0.05)
    for item in differences(first, second):
        if item.class_name is None or item.metric != "pixel_auroc":
            continue
        assert item.interval is not None
        alone = first.classes[item.class_name].interval("pixel_auroc")
        assert alone is not None
        width = item.interval.high - item.interval.low
        assert width < 0.5 * (alone.high - alone.low), "images hard for both do not count"
        assert item.interval.low - 0.02 < item.second - item.first < item.interval.high + 0.02


def test_a_run_against_itself_differs_in_nothing(write: Write) -> None:
    path = write("a.json", measured(3))
    found = differences(measured(3), measured(3))
    assert {item.second - item.first for item in found} == {0.0}
    assert not any(item.clear for item in found)
    text = compare(path, path)
    assert "0 of 27 differences are marked; of as many without any, about 1.4 would" in text
    assert text.count("no image is judged otherwise") == 2


def test_the_mean_is_over_classes_that_both_have() -> None:
    first, second = measured(1), measured(2)
    lacking = dataclasses.replace(
        second.classes["tile"],
        metrics={**second.classes["tile"].metrics, "pixel_ap": None},
    )
    second = dataclasses.replace(second, classes={**second.classes, "tile": lacking})
    [mean] = [d for d in differences(first, second) if d.class_name is None and "_ap" in d.metric][
        1:
    ]
    assert mean.metric == "pixel_ap"
    assert (mean.first, mean.second) == (
        first.classes["nut"].metrics["pixel_ap"],
        second.classes["nut"].metrics["pixel_ap"],
    )


def test_no_interval_without_like_replicates(write: Write) -> None:
    other = Resampling(seed=1, replicates=200)
    for resampling in (None, other):
        second = measured(2, resampling=resampling)
        assert all(item.interval is None for item in differences(measured(1), second))
    text = compare(write("a.json", measured(1)), write("b.json", measured(2, resampling=None)))
    assert "there is no interval" in text
    assert "[" not in text


def test_numbers_that_cannot_be_compared_are_refused() -> None:
    first = Filed(Path("a.json"), measured(0), "aa")
    for second, what in (
        (Filed(Path("b.json"), measured(0, protocol=ADER), "aa"), "protocol: .*exact; got ader"),
        (Filed(Path("b.json"), measured(0, classes=("nut",)), "aa"), "classes: .*nut, tile; got"),
        (Filed(Path("b.json"), measured(0), "bb"), "SHA-256: .*aa; got bb"),
    ):
        with pytest.raises(DataError, match=rf"^b\.json: {what}|^b\.json: .*{what}"):
            require_comparable(first, second)
    require_comparable(first, first)


def test_other_names_of_the_same_images_are_refused() -> None:
    first, other = measured(0), measured(0)
    nut = other.classes["nut"]
    named = [
        dataclasses.replace(image, name=image.name.removeprefix("nut/")) for image in nut.images
    ]
    other = dataclasses.replace(
        other, classes={**other.classes, "nut": dataclasses.replace(nut, images=tuple(named))}
    )
    with pytest.raises(
        DataError, match=r"from the data set's folder: .*nut/test/0\.png; got test/0"
    ):
        require_comparable(Filed(Path("a.json"), first, "aa"), Filed(Path("b.json"), other, "aa"))


def test_changed_verdicts_are_counted_by_kind() -> None:
    one = measured(0).classes["nut"]
    images = [dataclasses.replace(i, flagged=n < 3) for n, i in enumerate(one.images)]
    later = [dataclasses.replace(i, flagged=n > 1) for n, i in enumerate(one.images)]
    said = verdict_changes(
        dataclasses.replace(one, images=tuple(images)),
        dataclasses.replace(one, images=tuple(later)),
    )
    # Good ones have even numbers: 0 passes now, 4 to 18 are flagged; of the defects 1 is missed.
    assert said == (
        "at the stored thresholds now 9 more defects found, 1 missed; 8 more good images flagged, "
        "1 passed"
    )


def test_image_metrics_rank_what_the_protocol_scores() -> None:
    measure = ClassMeasure(ADER, None, pixels=False)
    truth = [False, True, False, True]
    for number, (defect, ranked) in enumerate(zip(truth, (1.0, 2.0, 3.0, 4.0), strict=True)):
        measure.add(
            ImageResult(
                name=str(number),
                kind="dent",
                defect=defect,
                score=0.5,
                threshold=1.0,
                flagged=False,
                found_class="nut",
                ranked=ranked,
            )
        )
    wanted = image_metrics(truth, [1.0, 2.0, 3.0, 4.0]).auroc
    assert measure.result().metrics["image_auroc"] == wanted


def test_the_commands(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(write(f"{n}.json", measured(n))) for n in (1, 2))
    assert cli.main(["compare", first, second]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"first:  {first}\nsecond: {second}\nProtocol exact")
    assert cli.main(["compare", first, str(Path(first).with_name("none.json"))]) == 2
    assert cli.main(["results", "--dataset", "mvtec"]) == 0
    assert "MambaAD" in capsys.readouterr().out


def test_views_of_a_piece_are_drawn_together() -> None:
    """40 pieces of 5 views that are nearly alike: intervals must be those of 40, not of 200."""

    def width(*, pieces: bool) -> float:
        rng = np.random.default_rng(0)
        measure = ClassMeasure(EXACT, DRAWN, pixels=False)
        for piece in range(40):
            defect = piece % 2 == 1
            shared = rng.standard_normal() + defect
            for view in range(5):
                score = float(shared + 0.01 * rng.standard_normal())
                image = ImageResult(
                    name=f"{piece} {view}",
                    kind="dent" if defect else "good",
                    defect=defect,
                    score=score,
                    threshold=1.0,
                    flagged=False,
                    found_class="nut",
                    sample=str(piece) if pieces else None,
                )
                measure.add(image)
        result = measure.result()
        assert bool(result.samples) is pieces
        found = result.interval("image_auroc")
        assert found is not None
        return found.high - found.low

    assert width(pieces=True) > 1.7 * width(pieces=False)


@pytest.mark.parametrize(
    ("count", "interval", "note"), [(1, False, True), (9, True, True), (10, True, False)]
)
def test_few_defects_have_no_interval_or_a_note(count: int, interval: bool, note: bool) -> None:
    measure = ClassMeasure(EXACT, DRAWN, pixels=True)
    for number in range(20 + count):
        mask = np.zeros((4, 4), dtype=np.bool_)
        mask[1, 1:3] = number < count
        values = np.random.default_rng(number).random((4, 4), dtype=np.float32)
        image = ImageResult(
            name=str(number),
            kind="dent",
            defect=number < count,
            score=float(values.max()),
            threshold=1.0,
            flagged=False,
            found_class="nut",
        )
        measure.add(image, values, mask)
    result = measure.result()
    for metric in ("image_auroc", "pixel_aupro", "mad"):
        assert (result.interval(metric) is not None) is interval
        assert result.metrics[metric] is not None
    assert any("intervals are too narrow" in text for text in result.notes) is note
    assert result.grid_bound is not None


def test_verdicts_at_replaced_thresholds_are_not_compared(write: Write) -> None:
    path = write("a.json", measured(1))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "thresholds_replaced": True}))
    other = write("b.json", measured(2))
    assert read_evaluation(path).replaced
    text = compare(path, other)
    assert f"{path}: thresholds were replaced since, so verdicts are not compared" in text
    assert "stored thresholds" not in text
    with pytest.raises(DataError, match="evaluate that run again"):
        read_against(path, "page.html", "exact")
