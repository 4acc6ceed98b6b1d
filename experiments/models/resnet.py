"""Residual networks for CIFAR: post-activation blocks, pre-activation bottlenecks."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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


class Bottleneck(nn.Module):
    """x + conv3(conv2(conv1(x))), 1x1-3x3-1x1, BatchNorm and ReLU before each.

    At a change of width the shortcut is a 1x1 convolution of relu(bn1(x)).
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N h w D"]:
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he_normal)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        wide, strides = 4 * self.width, (self.stride, self.stride)
        ones = ((1, 1), (1, 1))
        y = nn.relu(norm(name="bn1")(x))
        if x.shape[-1] != wide:
            x = conv(wide, (1, 1), strides, "VALID", name="shortcut")(y)
        y = conv(self.width, (1, 1), name="conv1")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(self.width, (3, 3), strides, ones, name="conv2")(y)
        y = nn.relu(norm(name="bn3")(y))
        return x + conv(wide, (1, 1), name="conv3")(y)


class PreResNet(nn.Module):
    """Pre-activation ResNet of depth 9n + 2: three stages of n bottlenecks."""

    depth: int = 164
    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        blocks, rest = divmod(self.depth - 2, 9)
        if rest or blocks < 1:
            raise ValueError(
                f"PreResNet depth: got {self.depth}, expected 9n + 2 (11, 20, 164, ...)"
            )
        x = nn.Conv(
            self.width, (3, 3), use_bias=False, kernel_init=_he_normal, name="conv1"
        )(images)
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(
                    self.width * 2**stage, stride, name=f"stage{stage + 1}_{block + 1}"
                )(x, train=train)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        x = nn.relu(x).mean(axis=(1, 2))
        return nn.Dense(self.classes, name="dense")(x)
