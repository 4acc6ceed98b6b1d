"""DenseNet for CIFAR: every layer reads what all layers before it in its block gave."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class DenseLayer(nn.Module):
    """concat(x, conv(relu(bn(x)))): `growth` channels more.

    A bottleneck is a 1x1 convolution to 4 * growth channels before the 3x3 one.
    """

    growth: int
    bottleneck: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N H W D"]:
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he_normal)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        y = nn.relu(norm(name="bn1")(x))
        if self.bottleneck:
            y = conv(4 * self.growth, (1, 1), name="conv1")(y)
            y = nn.relu(norm(name="bn2")(y))
            y = conv(self.growth, (3, 3), name="conv2")(y)
        else:
            y = conv(self.growth, (3, 3), name="conv1")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Mean over 2x2 of conv(relu(bn(x))), 1x1, to `width` channels."""

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N h w D"]:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        x = nn.Conv(
            self.width, (1, 1), use_bias=False, kernel_init=_he_normal, name="conv"
        )(nn.relu(x))
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """DenseNet of depth 3n + 4, or 6n + 4 with bottlenecks: three blocks of n layers.

    The first convolution has `first` channels. `compression` is the share of the
    channels that a transition keeps. DenseNet-BC has bottlenecks, half the channels
    after a transition, and 2 * growth channels first.
    """

    depth: int = 40
    classes: int = 10
    growth: int = 12
    bottleneck: bool = False
    compression: float = 1.0
    first: int = 16

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        unit = 6 if self.bottleneck else 3
        layers, rest = divmod(self.depth - 4, unit)
        if rest or layers < 1:
            raise ValueError(
                f"DenseNet depth: got {self.depth}, expected {unit}n + 4 (10, 40, ...)"
            )
        x = nn.Conv(
            self.first, (3, 3), use_bias=False, kernel_init=_he_normal, name="conv1"
        )(images)
        for block in range(1, 4):
            if block > 1:
                width = int(x.shape[-1] * self.compression)
                x = Transition(width, name=f"transition{block - 1}")(x, train=train)
            for layer in range(1, layers + 1):
                x = DenseLayer(
                    self.growth, self.bottleneck, name=f"stage{block}_{layer}"
                )(x, train=train)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        x = nn.relu(x).mean(axis=(1, 2))
        return nn.Dense(self.classes, name="dense")(x)
