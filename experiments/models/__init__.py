"""The papers' networks as Flax Linen modules, NHWC, with their published layer shapes.

LeNet and the MLP (MNIST), ConvNet (Caffe's cifar10_full), and for CIFAR the ResNets of
depth 6n + 2, pre-activation ResNet-164, DenseNet-40 and -100, VGG-16 and -19.
The first four follow Wen et al. 2016 (SSL): a ResNet's shortcut at a change of width
is one 1x1 stride-2 convolution without BatchNorm. ResNet-20 on 32x32x3 with 10 classes
has 270,896 convolution and dense weights and 40.81M multiply-accumulates.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from experiments.models.densenet import DenseNet as DenseNet
from experiments.models.plain import MLP as MLP
from experiments.models.plain import VGG as VGG
from experiments.models.plain import ConvNet as ConvNet
from experiments.models.plain import LeNet as LeNet
from experiments.models.resnet import PreResNet as PreResNet
from experiments.models.resnet import ResNet as ResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet8": functools.partial(ResNet, 8),
    "resnet20": functools.partial(ResNet, 20),
    "resnet32": functools.partial(ResNet, 32),
    "resnet56": functools.partial(ResNet, 56),
    "resnet110": functools.partial(ResNet, 110),
    "resnet164": functools.partial(PreResNet, 164),
    "densenet40": functools.partial(DenseNet, 40),
    "densenet100": functools.partial(DenseNet, 100),
    "densenet100bc": functools.partial(
        DenseNet, 100, bottleneck=True, compression=0.5, first=24
    ),
    "vgg16": functools.partial(VGG, 16),
    "vgg19": functools.partial(VGG, 19),
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
