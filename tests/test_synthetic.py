"""The synthetic data set: well formed, deterministic, varied, with exact masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mambaadv2.data import synthetic
from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.data.synthetic import CLASSES, VISIBLE, generate
from mambaadv2.errors import DataError
from mambaadv2.image import read_image, read_mask

CASES = [(name, kind) for name, (_, kinds) in CLASSES.items() for kind in kinds]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "new" / "set"
    assert generate(folder, size=96, train=4, good=2, defect=2) == tuple(CLASSES)
    return folder


@pytest.fixture(scope="module")
def records(root: Path) -> tuple[Record, ...]:
    return mvtec_records(root)


def test_layout(records: tuple[Record, ...]) -> None:
    assert sorted({record.class_name for record in records}) == sorted(CLASSES)
    for name, (_, kinds) in CLASSES.items():
        own = [record for record in records if record.class_name == name]
        assert sum(record.split == "train" for record in own) == 4
        assert sum(record.split == "test" and not record.defect for record in own) == 2
        assert sorted(record.defect_type for record in own if record.defect) == sorted(kinds * 2)
        assert all(record.mask is not None for record in own if record.defect)


def test_images_are_sane(records: tuple[Record, ...]) -> None:
    for record in records:
        image = read_image(record.path)
        assert image.shape == (96, 96, 3)
        assert 20 < image.mean() < 235
        assert ((image == 0) | (image == 255)).mean() < 0.05
        if record.mask is not None:
            mask = read_mask(record.mask)
            assert mask.shape == (96, 96)
            assert 0.0005 < mask.mean() < 0.2, record.path


def test_normal_images_vary(records: tuple[Record, ...]) -> None:
    for name in CLASSES:
        good = [r.path for r in records if r.class_name == name and not r.defect]
        images = np.stack([read_image(path) for path in good]).astype(float)
        assert len({image.tobytes() for image in images}) == len(good)
        assert images.mean(axis=(1, 2, 3)).std() > 1
        assert images.std(axis=0).mean() > 3


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_mask_is_where_the_defect_shows(name: str, kind: str) -> None:
    draw, _ = CLASSES[name]
    for index in range(12):
        key = (3, 0, 2, index)
        image, mask = synthetic._pair(draw, key, 96, kind)
        clean, nothing = synthetic._pair(draw, key, 96, "good")
        assert not nothing.any()
        change = np.abs(image.astype(int) - clean).max(axis=2)
        np.testing.assert_array_equal(mask, change > VISIBLE)
        assert change[~mask].max() <= VISIBLE
        # A region, not scattered pixels: most of it lies in pieces that a person can see.
        _, pieces = np.unique(ndimage.label(mask, np.ones((3, 3)))[0][mask], return_counts=True)
        assert pieces.max() >= 6, index
        assert pieces[pieces >= 4].sum() > 0.8 * pieces.sum(), index


def test_same_seed_same_files_whatever_the_counts(tmp_path: Path, root: Path) -> None:
    generate(tmp_path, size=96, train=2, good=1, defect=1)
    written = sorted(path for path in tmp_path.rglob("*.png"))
    assert len(written) == 4 * (2 + 1) + 2 * len(CASES)
    for path in written:
        assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes()


def test_another_seed_gives_other_images(tmp_path: Path, root: Path) -> None:
    generate(tmp_path, seed=1, size=96, train=1, good=1, defect=0)
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes() != (root / path.relative_to(tmp_path)).read_bytes()
    assert not list(tmp_path.rglob("ground_truth"))


def test_all_files_differ(records: tuple[Record, ...]) -> None:
    assert len({record.path.read_bytes() for record in records}) == len(records)


def test_it_never_overwrites(root: Path) -> None:
    with pytest.raises(DataError, match="is there already"):
        generate(root)


@pytest.mark.parametrize(
    ("field", "value"), [("seed", -1), ("size", 63), ("train", 0), ("good", -1), ("defect", -1)]
)
def test_numbers_are_checked(tmp_path: Path, field: str, value: int) -> None:
    with pytest.raises(DataError, match=rf"{field}: expected at least"):
        generate(tmp_path, **{field: value})
    assert not list(tmp_path.iterdir())
