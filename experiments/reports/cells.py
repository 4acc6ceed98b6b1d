"""Cells of tables: ratios, shares, and what networks are called."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, str]]

NAMES = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "densenet40": "DenseNet-40",
    "densenet100bc": "DenseNet-100-BC",
    "densenet121": "DenseNet-121",
    "mobilenet": "depthwise net",
    "convnet": "ConvNet",
    "alexnet": "AlexNet",
    "googlenet": "GoogLeNet",
    "transformer-7b": "decoder of 6.7e9 weights",
    "depth-10": "residual MLP, 10 blocks",
    "depth-100": "residual MLP, 100 blocks",
    "depth-1000": "residual MLP, 1,000 blocks",
}


def ratio(found: Mapping[str, Any] | None, *, spread: bool = False) -> str:
    """A speed-up; `=` marks a tie with 1."""
    if found is None:
        return ""
    text = f"{found['median']:.2f}{'=' if found['tie'] else ''}"
    return f"{text} ({found['q1']:.2f} to {found['q3']:.2f})" if spread else text


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"
