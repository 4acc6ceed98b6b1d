"""The ImageNet networks of Mao et al. 2017 as Flax Linen modules, NHWC.

With 1,000 classes and biases, norm scales and shifts counted:

    alexnet      60,965,224 parameters  0.724G multiply-accumulates (227x227 pixels)
    vgg16       138,357,544            15.470G (224x224, as the rest)
    googlenet     6,998,552             1.582G
    resnet50     25,557,032             3.858G
    densenet121   7,978,856             2.834G

AlexNet is the CaffeNet variant, with grouped convolutions and pooling before
normalisation; GoogLeNet is the one of the Caffe model zoo without its auxiliary
classifiers; ResNet-50 has its strides in the first 1x1 convolution of a block, as
published. Dropout is active in training calls that give a `dropout` key, the way
`experiments.models` is called without one. `dtype` is the type of the computation;
parameters and logits are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_UNEVEN = ((0, 1), (0, 1))
_ONES = ((1, 1), (1, 1))


def _max_pool(x: Array, padding: Any = "VALID") -> Array:
    """Largest of 3x3, stride 2; Caffe rounds sizes up by one extra row and column."""
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def _response_norm(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """x / (1 + alpha * mean of x^2 over 5 neighbouring channels)^beta; 1e-4, 0.75."""
    squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    windows = [squares[..., k : k + x.shape[-1]] for k in range(5)]
    return x / (1.0 + 1e-4 / 5 * sum(windows)) ** 0.75


def _dropout(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    """Drop entries where `train` and the call has a key for it."""
    still = not (train and module.has_rng("dropout"))
    return nn.Dropout(rate, deterministic=still, parent=module)(x)


class AlexNet(nn.Module):
    """CaffeNet: conv1 to conv5 (2, 4 and 5 in two feature groups), fc6 to fc8."""

    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=_he_normal)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = conv(96, (11, 11), 4, padding="VALID", name="conv1")(images)
        x = _response_norm(_max_pool(nn.relu(x)))
        x = conv(256, (5, 5), feature_group_count=2, name="conv2")(x)
        x = _response_norm(_max_pool(nn.relu(x)))
        x = nn.relu(conv(384, (3, 3), name="conv3")(x))
        x = nn.relu(conv(384, (3, 3), feature_group_count=2, name="conv4")(x))
        x = nn.relu(conv(256, (3, 3), feature_group_count=2, name="conv5")(x))
        x = _max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = _dropout(self, nn.relu(dense(4096, name=name)(x)), 0.5, train)
        return dense(self.classes, name="fc8")(x).astype(jnp.float32)


class VGG(nn.Module):
    """VGG-16: thirteen 3x3 convolutions in five blocks, fc6 to fc8."""

    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=_he_normal)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = images
        blocks = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
        for block, (depth, width) in enumerate(blocks, 1):
            for layer in range(1, depth + 1):
                x = nn.relu(conv(width, (3, 3), name=f"conv{block}_{layer}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = _dropout(self, nn.relu(dense(4096, name=name)(x)), 0.5, train)
        return dense(self.classes, name="fc8")(x).astype(jnp.float32)


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pooled 1x1, side by side.

    Attributes:
        widths: of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj.
    """

    widths: tuple[int, int, int, int, int, int]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W D"]:
        def conv(x: Array, width: int, size: int, name: str) -> Array:
            layer = nn.Conv(
                width,
                (size, size),
                dtype=self.dtype,
                kernel_init=_he_normal,
                name=name,
            )
            return nn.relu(layer(x))

        one, three_in, three, five_in, five, pooled = self.widths
        parts = [
            conv(x, one, 1, "1x1"),
            conv(conv(x, three_in, 1, "3x3_reduce"), three, 3, "3x3"),
            conv(conv(x, five_in, 1, "5x5_reduce"), five, 5, "5x5"),
            conv(nn.max_pool(x, (3, 3), (1, 1), "SAME"), pooled, 1, "pool_proj"),
        ]
        return jnp.concatenate(parts, axis=-1)


_INCEPTIONS: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Three convolutions and nine inception modules, without auxiliary classifiers."""

    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=_he_normal)
        threes = ((3, 3), (3, 3))
        x = nn.relu(conv(64, (7, 7), 2, padding=threes, name="conv1")(images))
        x = _response_norm(_max_pool(x, _UNEVEN))
        x = nn.relu(conv(64, (1, 1), name="conv2_reduce")(x))
        x = _response_norm(nn.relu(conv(192, (3, 3), name="conv2")(x)))
        for name, widths in _INCEPTIONS.items():
            if name in ("3a", "4a", "5a"):
                x = _max_pool(x, _UNEVEN)
            x = Inception(widths, self.dtype, name=f"inception_{name}")(x)
        x = _dropout(self, x.mean(axis=(1, 2)), 0.4, train)
        logits = nn.Dense(self.classes, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


def _norm(dtype: Any, train: bool) -> Callable[..., nn.BatchNorm]:
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=dtype
    )


class Bottleneck(nn.Module):
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x))."""

    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N h w D"]:
        conv = functools.partial(
            nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_he_normal
        )
        norm = _norm(self.dtype, train)
        y = conv(self.width, (1, 1), self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, (3, 3), padding=_ONES, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = norm(name="bn3")(conv(4 * self.width, (1, 1), name="conv3")(y))
        if x.shape != y.shape:
            x = conv(4 * self.width, (1, 1), self.stride, name="shortcut")(x)
            x = norm(name="shortcut_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-50: stages of 3, 4, 6 and 3 bottlenecks, 64, 128, 256 and 512 wide.

    Attributes:
        classes: outputs.
        dtype: of the computation.
        depths: bottlenecks per stage.
        width: of the first stage; each stage after it has twice as much.
    """

    classes: int = 1000
    dtype: Any = jnp.float32
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(
            nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_he_normal
        )
        threes = ((3, 3), (3, 3))
        x = conv(self.width, (7, 7), 2, padding=threes, name="conv1")(images)
        x = nn.relu(_norm(self.dtype, train)(name="bn1")(x))
        x = _max_pool(x, _ONES)
        for stage, depth in enumerate(self.depths, 1):
            for block in range(1, depth + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                width = self.width * 2 ** (stage - 1)
                name = f"stage{stage}_{block}"
                x = Bottleneck(width, stride, self.dtype, name=name)(x, train=train)
        x = x.mean(axis=(1, 2))
        logits = nn.Dense(self.classes, dtype=self.dtype, name="dense")(x)
        return logits.astype(jnp.float32)


class DenseLayer(nn.Module):
    """x with 32 channels more: conv2(relu(bn2(conv1(relu(bn1(x))))))."""

    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N H W D"]:
        conv = functools.partial(
            nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_he_normal
        )
        norm = _norm(self.dtype, train)
        y = conv(128, (1, 1), name="conv1")(nn.relu(norm(name="bn1")(x)))
        y = nn.relu(norm(name="bn2")(y))
        y = conv(32, (3, 3), padding=_ONES, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers, halved between blocks."""

    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(
            nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_he_normal
        )
        norm = _norm(self.dtype, train)
        threes = ((3, 3), (3, 3))
        x = conv(64, (7, 7), 2, padding=threes, name="conv1")(images)
        x = _max_pool(nn.relu(norm(name="bn1")(x)), _ONES)
        for block, depth in enumerate((6, 12, 24, 16), 1):
            if block > 1:
                x = nn.relu(norm(name=f"transition{block - 1}_bn")(x))
                x = conv(x.shape[-1] // 2, (1, 1), name=f"transition{block - 1}")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for layer in range(1, depth + 1):
                name = f"block{block}_{layer}"
                x = DenseLayer(self.dtype, name=name)(x, train=train)
        x = nn.relu(norm(name="bn2")(x)).mean(axis=(1, 2))
        logits = nn.Dense(self.classes, dtype=self.dtype, name="dense")(x)
        return logits.astype(jnp.float32)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "vgg16": VGG,
    "googlenet": GoogLeNet,
    "resnet50": ResNet,
    "densenet121": DenseNet,
}
SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet14": functools.partial(ResNet, depths=(1, 1, 1, 1), width=16),
}
"""Not of any paper: to try things out."""


def image_shape(name: str) -> tuple[int, int, int]:
    """Height, width and channels that the model called `name` was published for."""
    side = 227 if name == "alexnet" else 224
    return (side, side, 3)


def create(name: str, classes: int = 1000, dtype: Any = jnp.float32) -> nn.Module:
    """The model called `name` with `classes` outputs, computing in `dtype`.

    Raises:
        ValueError: `name` is not a key of `MODELS` or `SMALL`.
    """
    known = MODELS | SMALL
    if name not in known:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(known)}")
    return known[name](classes=classes, dtype=dtype)
