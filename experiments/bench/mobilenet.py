"""A network of inverted residuals with depthwise convolutions, after MobileNetV2."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2))
_STAGES = (*_STAGES, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Inverted(nn.Module):
    """x + project(depthwise(expand(x))), BatchNorm after each, ReLU after two."""

    expansion: int
    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool
    ) -> Float[Array, "N h w D"]:
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he_normal)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        wide, strides = self.expansion * x.shape[-1], (self.stride, self.stride)
        y = x
        if self.expansion > 1:
            y = nn.relu(norm(name="bn1")(conv(wide, (1, 1), name="expand")(y)))
        y = conv(
            wide, (3, 3), strides, ((1, 1),) * 2, feature_group_count=wide, name="depth"
        )(y)
        y = nn.relu(norm(name="bn2")(y))
        y = norm(name="bn3")(conv(self.width, (1, 1), name="project")(y))
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """For CIFAR: MobileNetV2's stages at strides that suit images of 32x32.

    Attributes:
        classes: outputs.
        stages: expansion, width, blocks and stride of each stage.
        first: channels of the first convolution.
        last: channels before the mean.
    """

    classes: int = 10
    stages: tuple[tuple[int, int, int, int], ...] = _STAGES
    first: int = 32
    last: int = 1280

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he_normal)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        x = nn.relu(norm(name="bn1")(conv(self.first, (3, 3), name="conv1")(images)))
        for stage, (expansion, width, blocks, stride) in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                name = f"stage{stage}_{block}"
                x = Inverted(expansion, width, stride if block == 1 else 1, name=name)(
                    x, train=train
                )
        x = nn.relu(norm(name="bn2")(conv(self.last, (1, 1), name="conv2")(x)))
        return nn.Dense(self.classes, name="dense")(x.mean(axis=(1, 2)))
