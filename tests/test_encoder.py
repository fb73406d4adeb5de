"""The frozen encoder: shapes, frozenness, normalisation, the transformer's pyramid, refusals."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from mambaadv2.errors import ConfigError, DataError
from mambaadv2.model.encoder import EncoderProvenance, FrozenEncoder, build_encoder
from mambaadv2.model.weights import find_weights, read_weights

# Every way in which timm builds a pyramid, and plain transformers with patch 14 and 16, with class
# and register tokens, and with rotary positions.
CHANNELS = {
    "resnet18": (64, 128, 256),
    "tf_efficientnet_lite0": (24, 40, 112),
    "mobilenetv3_small_100": (16, 24, 48),
    "convnext_atto": (40, 80, 160),
    "swin_tiny_patch4_window7_224": (96, 192, 384),
    "hrnet_w18_small": (128, 256, 512),
    "vit_tiny_patch16_224": (192, 192, 192),
    "vit_small_patch14_dinov2.lvd142m": (384, 384, 384),
    "vit_small_patch14_reg4_dinov2": (384, 384, 384),
    "vit_small_patch16_dinov3": (384, 384, 384),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def images(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", CHANNELS)
def test_features_have_the_promised_shapes(name: str) -> None:
    encoder = build_encoder(name, pretrained=False, image_size=(64, 96))
    assert encoder.name == name
    assert encoder.strides == (4, 8, 16)
    assert encoder.channels == CHANNELS[name]
    shapes = [tuple(feature.shape) for feature in encoder(images(64, 96))]
    expected = zip(CHANNELS[name], (16, 8, 4), (24, 12, 6), strict=True)
    assert shapes == [(2, channels, height, width) for channels, height, width in expected]


@pytest.mark.parametrize(
    "name, count",
    [
        ("resnet34", 8_170_304),
        ("tf_efficientnet_lite0", 700_768),
        ("mobilenetv3_small_100", 190_520),
    ],
)
def test_nothing_beyond_stride_16_is_kept(name: str, count: int) -> None:
    encoder = build_encoder(name, pretrained=False)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count


def test_shortening_leaves_the_features_as_timm_gives_them() -> None:
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3))
    tensors = read_weights(find_weights("tf_efficientnet_lite0").path)
    whole.load_state_dict({key: tensors[key] for key in whole.state_dict()})
    with torch.no_grad():
        expected = whole.eval()((images() - 0.5) / 0.5)
    torch.testing.assert_close(build_encoder("tf_efficientnet_lite0")(images()), tuple(expected))


@pytest.mark.parametrize(
    "name, statistics",
    [
        ("resnet18", IMAGENET),
        ("tf_efficientnet_lite0", HALF),
        ("vit_tiny_patch16_224", HALF),
        ("vit_small_patch16_dinov3", IMAGENET),
    ],
)
def test_the_encoder_normalises_as_it_was_trained(
    name: str, statistics: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    encoder = build_encoder(name, pretrained=False, image_size=(64, 64))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    torch.testing.assert_close(encoder.mean, mean)
    torch.testing.assert_close(encoder.std, std)
    with torch.no_grad():
        expected = encoder.body((images() - mean) / std)
    torch.testing.assert_close(encoder(images()), expected)
    assert not {"mean", "std"} & set(encoder.state_dict())


def test_the_encoder_never_learns() -> None:
    encoder = build_encoder("resnet18", pretrained=False)
    outer = nn.Sequential(encoder)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    outer.train()
    assert not any(module.training for module in encoder.modules())
    assert encoder.train() is encoder
    features = outer(images().requires_grad_())
    assert not any(feature.requires_grad for feature in features)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_transformers_last_map_is_its_token_grid(name: str) -> None:
    patch = 16 if "16" in name else 14
    encoder = build_encoder(name, pretrained=False, image_size=(64, 96))
    vit = encoder.body.timm
    assert isinstance(vit, VisionTransformer)
    rows, columns = round(64 / patch), round(96 / patch)
    x = (images(64, 96) - encoder.mean) / encoder.std
    x = nn.functional.interpolate(x, size=(rows * patch, columns * patch), mode="bilinear")
    with torch.no_grad():
        tokens = vit.forward_features(x)[:, vit.num_prefix_tokens :]
    grid = tokens.transpose(1, 2).reshape(2, vit.embed_dim, rows, columns)
    expected = nn.functional.interpolate(grid, size=(4, 6), mode="bilinear")
    torch.testing.assert_close(encoder(images(64, 96))[2], expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_takes_its_features_at_a_third_two_thirds_and_the_end() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False, image_size=(64, 64))
    vit = encoder.body.timm
    assert isinstance(vit, VisionTransformer)
    outputs: dict[int, Tensor] = {}
    for number in (3, 7, 11):
        vit.blocks[number].register_forward_hook(
            lambda _module, _args, output, number=number: outputs.update({number: output})
        )
    features = encoder(images())
    for feature, number in zip(features, (3, 7, 11), strict=True):
        tokens = vit.norm(outputs[number])[:, vit.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).reshape(2, vit.embed_dim, 4, 4)
        expected = nn.functional.interpolate(grid, size=feature.shape[-2:], mode="bilinear")
        torch.testing.assert_close(feature, expected)


def test_a_transformer_takes_other_sizes_than_its_own() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False, image_size=(64, 64))
    assert [feature.shape[-1] for feature in encoder(images(96, 128))] == [32, 16, 8]


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = build_encoder("resnet18", pretrained=False)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    torch.manual_seed(3)
    second = build_encoder("resnet18", pretrained=False)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_random_weights_are_called_so() -> None:
    encoder = build_encoder("resnet18", pretrained=False)
    assert isinstance(encoder, FrozenEncoder)
    assert encoder.provenance == EncoderProvenance(
        name="resnet18", source="none", file=None, sha256=None, licence=None
    )


@pytest.mark.parametrize("name", ["resnt34", "resnet34.no_such_tag", "RESNET34"])
def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"has no model '{name}'.*(did you mean.*resnet34|see)"):
        build_encoder(name)


def test_an_encoder_without_the_strides_is_refused_before_its_weights_are_sought() -> None:
    with pytest.raises(ConfigError, match=r"levit_128s.*strides 4, 8 and 16, it offers 16, 32, 64"):
        build_encoder("levit_128s")


@pytest.mark.parametrize("size", [(250, 256), (256, 0), (-16, 16)])
def test_a_wrong_image_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="image_size: expected positive multiples of 16"):
        build_encoder("resnet18", pretrained=False, image_size=size)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 60, 64)])
def test_a_wrong_batch_is_refused(shape: tuple[int, ...]) -> None:
    encoder = build_encoder("resnet18", pretrained=False)
    with pytest.raises(DataError, match=r"images: expected \(B, 3, H, W\)"):
        encoder(torch.zeros(shape))


def test_bytes_are_refused() -> None:
    encoder = build_encoder("resnet18", pretrained=False)
    with pytest.raises(DataError, match="uint8"):
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
