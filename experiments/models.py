"""The papers' networks as Flax Linen modules, NHWC, with their published layer shapes.

LeNet (MNIST), ConvNet (Caffe's cifar10_full) and the CIFAR ResNets of depth 6n + 2.
Shapes follow Wen et al. 2016 (SSL): a ResNet's shortcut at a change of width is one
1x1 stride-2 convolution without BatchNorm. ResNet-20 on 32x32x3 with 10 classes has
270,896 convolution and dense weights and 40.81M multiply-accumulates.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class LeNet(nn.Module):
    """Caffe's LeNet: conv1 20@5x5, conv2 50@5x5, dense1 500, dense2; no conv ReLU."""

    classes: int = 10

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        del train
        x = nn.Conv(20, (5, 5), padding="VALID", name="conv1")(images)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Conv(50, (5, 5), padding="VALID", name="conv2")(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(500, name="dense1")(x))
        return nn.Dense(self.classes, name="dense2")(x)


def _local_response_norm(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """x / (1 + alpha * mean of x^2 over 3x3)^beta, alpha 5e-5, beta 0.75."""
    mean_square = nn.avg_pool(x * x, (3, 3), (1, 1), padding="SAME")
    return x / (1.0 + 5e-5 * mean_square) ** 0.75


class ConvNet(nn.Module):
    """Caffe's cifar10_full: three 5x5 convolutions (32, 32, 64) and one dense layer."""

    classes: int = 10

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        del train
        conv = functools.partial(nn.Conv, kernel_size=(5, 5), padding="SAME")
        normal = nn.initializers.normal
        # Caffe rounds pooled sizes up: one extra row and column, at the end only.
        pool = {"window_shape": (3, 3), "strides": (2, 2), "padding": ((0, 1), (0, 1))}
        mean = functools.partial(nn.avg_pool, count_include_pad=False, **pool)
        x = conv(32, kernel_init=normal(1e-2), name="conv1")(images)
        x = _local_response_norm(nn.relu(nn.max_pool(x, **pool)))
        x = conv(32, kernel_init=normal(1e-2), name="conv2")(x)
        x = _local_response_norm(mean(nn.relu(x)))
        x = conv(64, kernel_init=normal(1e-2), name="conv3")(x)
        x = mean(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.classes, name="dense")(x)


class Block(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), 3x3 convolutions."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N h w D"]:
        conv = functools.partial(
            nn.Conv, self.width, use_bias=False, kernel_init=_he_normal
        )
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        strides = (self.stride, self.stride)
        # One padding for both strides, as in the papers: a row above and one below.
        ones = ((1, 1), (1, 1))
        y = conv((3, 3), strides=strides, padding=ones, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = norm(name="bn2")(conv((3, 3), padding=ones, name="conv2")(y))
        if x.shape[-1] != self.width:
            x = conv((1, 1), strides=strides, padding="VALID", name="shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: three stages of n blocks, 16, 32, 64 wide."""

    depth: int = 20
    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        blocks, rest = divmod(self.depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"ResNet depth: got {self.depth}, expected 6n + 2 (8, 14, 20, 32, ...)"
            )
        x = nn.Conv(
            self.width, (3, 3), kernel_init=_he_normal, padding="SAME", name="conv1"
        )(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x)
        x = nn.relu(x)
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Block(
                    self.width * 2**stage, stride, name=f"stage{stage + 1}_{block + 1}"
                )(x, train=train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.classes, name="dense")(x)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "convnet": ConvNet,
    "resnet8": functools.partial(ResNet, 8),
    "resnet20": functools.partial(ResNet, 20),
    "resnet32": functools.partial(ResNet, 32),
    "resnet56": functools.partial(ResNet, 56),
    "resnet110": functools.partial(ResNet, 110),
}


def create(name: str, classes: int = 10) -> nn.Module:
    """The model called `name` with `classes` outputs.

    Raises:
        ValueError: `name` is not a key of `MODELS`.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name](classes=classes)


def init(
    model: nn.Module, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0
) -> dict[str, dict]:
    """Fresh variables of `model` for images of `shape` (H, W, C), unit: pixels."""
    images = jax.numpy.zeros((1, *shape))
    return jax.jit(model.init)(jax.random.key(seed), images)
