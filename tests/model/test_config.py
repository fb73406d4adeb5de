"""The model's config: every field refused by name, saved and read back unchanged; the presets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mambaadv2.errors import ConfigError
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.presets import PRESETS, preset_config

NAN, INF = float("nan"), float("inf")

# Field -> values that must be refused: outside its range, of another length, of another type.
REFUSED: dict[str, tuple[object, ...]] = {
    "encoder": ("", None, 3),
    "image_size": ((256,), (256, 256, 3), (255, 256), (256, 0), (-32, 32), (256.0, 256), "256"),
    "dims": ((), (64, 64), (64,) * 5, (0, 64, 64, 64), (64, -64, 64, 64), (33, 64, 64, 64)),
    "modules": ((), ((1,),) * 3, ((1,), (1,), (1,), ()), ((0,), (1,), (1,), (1,))),
    "directions": ((), (1, 1, 1), (3, 1, 1, 1), (0, 1, 1, 1), (1, 1, 1, 16), ("1", 1, 1, 1)),
    "order": ("spiral", "Hilbert", None),
    "direction_weights": (1, None, "true"),
    "paths": ("all", None),
    "rotary": (1, None, "true"),
    "trapezoid": (0, None, "true"),
    "frequency": ("dct", None, False),
    "local_kernels": ((), None, (4,), (5, 6), (0,), (-3,)),
    "band_kernel": (2, 0, -3, 3.0, "3", True),
    "fusion": ("sum", None),
    "head_dim": (-32, 1.5),
    "state_dim": (0, -4, 6, 16.0, None, "32"),
    "expand": (0, -1, 1.5),
    "rotary_fraction": (-0.1, 1.1, 0.1, NAN),
    "drop_path": (-0.1, 1.0, NAN),
    "score": ("l2", None),
    "sigma": (-1.0, NAN),
}

# Values that JSON can hold and arithmetic cannot.
WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "image_size": (256, None),
    "dims": (None, 64, "abcd", (64.0, 64, 64, 64)),
    "modules": (None, 1, (1, 1, 1, 1), ((1.5,), (1,), (1,), (1,))),
    "directions": (None, 1, (1.0, 1, 1, 1)),
    "local_kernels": (5, ("5",), (5.0,)),
    "head_dim": (0, None, "32", True),
    "expand": (None, "2"),
    "rotary_fraction": (None, "half"),
    "drop_path": (None, "0.2"),
    "sigma": (None, "4", INF),
}


def cases(table: dict[str, tuple[object, ...]]) -> list[tuple[str, object]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_field_has_a_refused_value() -> None:
    assert set(REFUSED) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("name, value", cases(REFUSED))
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ModelConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name, value", cases(WRONG_TYPES))
def test_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ModelConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, value",
    [
        ("image_size", (32, 160)),
        ("directions", (8, 4, 2, 1)),
        ("local_kernels", (1,)),
        ("local_kernels", (3, 5, 7, 9)),
        ("modules", ((1,), (1,), (1,), (5, 1, 2))),
        ("rotary_fraction", 0.0),
        ("rotary_fraction", 1),
        ("drop_path", 0),
        ("sigma", 0),
        ("state_dim", 4),
        ("expand", 1),
    ],
)
def test_the_edges_of_the_ranges_are_allowed(name: str, value: object) -> None:
    assert getattr(ModelConfig(**{name: value}), name) == value  # type: ignore[arg-type]


def test_each_stage_needs_whole_heads() -> None:
    with pytest.raises(ConfigError, match=r"dims: 8 x expand 2 .* head_dim 32"):
        ModelConfig(dims=(64, 64, 64, 8))


def test_the_message_names_the_choices_and_the_value() -> None:
    with pytest.raises(
        ConfigError, match=r"paths: expected one of 'both', .*'none'; got 'matrices'"
    ):
        ModelConfig(paths="matrices")  # type: ignore[arg-type]


def test_the_config_is_a_value() -> None:
    config = ModelConfig()
    assert config == ModelConfig()
    assert hash(config) == hash(ModelConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sigma = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "config",
    [
        *(preset_config(name) for name in PRESETS),
        ModelConfig(
            encoder="resnet18", image_size=(96, 64),
            dims=(64, 32, 16), modules=((1,), (2, 1), (3,)),
            directions=(8, 1, 4), order="zigzag", direction_weights=False, paths="matrix",
            rotary=False, trapezoid=False, frequency="fft", local_kernels=(3,), band_kernel=5,
            fusion="concat", head_dim=16, state_dim=8, expand=1, rotary_fraction=1.0, drop_path=0.1,
            score="whitened", sigma=0.5,
        ),
    ],
)  # fmt: skip
def test_a_config_survives_json(config: ModelConfig) -> None:
    text = json.dumps(dataclasses.asdict(config))
    assert ModelConfig.from_dict(json.loads(text)) == config


def test_missing_fields_take_the_defaults() -> None:
    assert ModelConfig.from_dict({"sigma": 2.0}) == ModelConfig(sigma=2.0)


@pytest.mark.parametrize(
    "name, message",
    [
        ("direction", r"unknown field 'direction'; did you mean 'directions'\?"),
        ("Path", r"unknown field 'Path'; did you mean 'paths'\?"),
        ("colour", r"unknown field 'colour'$"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({name: 1})


def test_values_from_json_are_validated() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        ModelConfig.from_dict({"image_size": [100, 100]})


def test_strides_follow_the_number_of_stages() -> None:
    assert ModelConfig().strides == (16, 8, 4)
    three = ModelConfig(dims=(64,) * 3, modules=((1,),) * 3, directions=(1,) * 3)
    assert three.strides == (16, 8)


def test_a_preset_takes_another_encoder_and_size() -> None:
    for name in PRESETS:
        config = preset_config(name)
        changed = preset_config(name, encoder="resnet18", image_size=(64, 96))
        assert changed == dataclasses.replace(config, encoder="resnet18", image_size=(64, 96))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset: expected one of lite, r34; got 'big'"):
        preset_config("big")
