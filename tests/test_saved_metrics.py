"""Saved pools: what is read back is what was written, and what was not written is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mambaadv2.errors import DataError
from mambaadv2.metrics import (
    ImagePool,
    Resampling,
    StreamingPool,
    load_images,
    load_pool,
    save_images,
    save_pool,
    saved,
)

DRAWN = Resampling(seed=3, replicates=6, groups=3)
Arrays = dict[str, Any]


def _add(pool: StreamingPool, numbers: range) -> None:
    for at in numbers:
        rng = np.random.default_rng(at)
        mask = rng.random((6, 7)) < 0.2
        pool.add(mask, rng.standard_normal((6, 7)).astype(np.float32) + mask, f"{at}.png")


def _pool(numbers: range, drawn: Resampling | None = DRAWN) -> StreamingPool:
    pool = StreamingPool(resampling=drawn, pages=4, page_bits=8)
    _add(pool, numbers)
    return pool


def _image_pool() -> ImagePool:
    pool = ImagePool()
    for at, score in enumerate((0.3, 0.1, 0.9, 0.5)):
        pool.add(at > 1, score, f"{at}.png")
    return pool


def _content(path: Path) -> tuple[Arrays, dict[str, Any]]:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["facts"])


@pytest.mark.parametrize("drawn", [DRAWN, None], ids=["resampled", "plain"])
def test_a_pool_goes_on_where_it_was_saved(tmp_path: Path, drawn: Resampling | None) -> None:
    path = tmp_path / "pool.safetensors"
    save_pool(_pool(range(5), drawn), path)
    again = load_pool(path)
    assert again.metrics() == _pool(range(5), drawn).metrics()
    _add(again, range(5, 9))
    whole = _pool(range(9), drawn)
    assert again.metrics() == whole.metrics()
    assert (again.n_images, again.n_pixels, again.bits) == (9, 9 * 42, whole.bits)
    if drawn is not None:
        for name, sampled in again.sampled().items():
            expected = whole.sampled()[name]
            assert (sampled.replicates == expected.replicates).all()
            assert (sampled.left_out == expected.left_out).all()


def test_an_empty_pool_can_be_saved(tmp_path: Path) -> None:
    save_pool(_pool(range(0)), tmp_path / "pool")
    again = load_pool(tmp_path / "pool")
    again.merge(_pool(range(3)))
    assert again.metrics() == _pool(range(3)).metrics()


def test_the_same_images_give_the_same_file(tmp_path: Path) -> None:
    save_pool(_pool(range(6)), tmp_path / "once")
    late, early = _pool(range(4, 6)), _pool(range(4))
    late.merge(early)
    save_pool(late, tmp_path / "merged")
    save_pool(load_pool(tmp_path / "once"), tmp_path / "again")
    expected = (tmp_path / "once").read_bytes()
    assert (tmp_path / "merged").read_bytes() == expected
    assert (tmp_path / "again").read_bytes() == expected


def test_image_scores_come_back(tmp_path: Path) -> None:
    pool = _image_pool()
    save_images(pool, tmp_path / "images")
    again = load_images(tmp_path / "images")
    assert again.metrics() == pool.metrics()
    assert (
        again.sampled(DRAWN)["auroc"].replicates.tolist()
        == pool.sampled(DRAWN)["auroc"].replicates.tolist()
    )


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    with pytest.raises(DataError, match=r"pool.safetensors: cannot be read"):
        load_pool(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(DataError, match=r"pool.safetensors: cannot be read"):
        load_pool(path)
    save_file({"keys": np.zeros(3, dtype=np.uint32)}, path)
    with pytest.raises(DataError, match=r"pool.safetensors: expected .*another program"):
        load_pool(path)
    save_images(_image_pool(), path)
    with pytest.raises(DataError, match=r"pixel metrics', got 'mambaadv2 image scores'"):
        load_pool(path)


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    save_pool(_pool(range(3)), path)
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=str(path)):
            load_pool(path)
    for at in np.random.default_rng(0).integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        with pytest.raises(DataError, match=str(path)):
            load_pool(path)


def test_another_version_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saved, "VERSION", 2)
        save_pool(_pool(range(2)), tmp_path / "pool")
    with pytest.raises(DataError, match=r"version 2 .* reads 1; read it with the program that"):
        load_pool(tmp_path / "pool")


def _off_level(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["keys"][0] += 1


def _not_rising(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["keys"] = arrays["keys"][::-1]


def _negative(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["all"][0] = -1


def _too_many_defects(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["all"] = np.maximum(arrays["defect"] - 1, 1)


def _regions(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["n_regions"] += 1


def _no_level(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["level"] = 99


def _too_fine(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["level"] = 0


def _missing(arrays: Arrays, facts: dict[str, Any]) -> None:
    del arrays["defect"]


def _short(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["region"] = arrays["region"][:-1]


def _fraction(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["replicates.good"] = arrays["replicates.good"] + 0.5


def _fewer_replicates(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["replicates"] -= 1


def _other_pixels(arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["replicates.good"] = arrays["replicates.good"] + 1


def _huge(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["replicates"] = 10**15


def _no_images(arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["n_images"] = 0


@pytest.mark.parametrize(
    "change",
    [
        _off_level, _not_rising, _negative, _too_many_defects, _regions, _no_level, _too_fine,
        _missing, _short, _fraction, _fewer_replicates, _other_pixels, _huge, _no_images,
    ],
)  # fmt: skip
def test_numbers_that_no_pool_has_are_refused(
    tmp_path: Path, change: Callable[[Arrays, dict[str, Any]], None]
) -> None:
    path = tmp_path / "pool"
    save_pool(_pool(range(4)), path)
    arrays, facts = _content(path)
    for known in ("kind", "version", "sha256"):
        del facts[known]
    change(arrays, facts)
    saved._write(path, saved.PIXELS, arrays, facts)
    with pytest.raises(DataError, match=f"{path}: damaged, no pool could have written it"):
        load_pool(path)


def test_image_scores_that_no_pool_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    save_images(_image_pool(), path)
    arrays, _ = _content(path)
    for name, values in (
        ("scores", np.full(4, np.nan)),
        ("defect", np.zeros(4, dtype=np.uint8)),
        ("keys", arrays["keys"][1:]),
    ):
        saved._write(path, saved.IMAGES, {**arrays, name: values}, {})
        with pytest.raises(DataError, match="damaged"):
            load_images(path)
