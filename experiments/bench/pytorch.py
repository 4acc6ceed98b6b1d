"""The CIFAR networks in PyTorch, and Torch-Pruning; needs neither JAX nor sslx.

`experiments.bench.worker` runs this in an interpreter that has `torch` and
`torch-pruning`. Layers and widths are those of `experiments.models`.
"""

import functools
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.fx.experimental import optimization

Tensor = torch.Tensor


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != width:
            self.shortcut = _conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Head(nn.Module):
    """Mean over the image, then a dense layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.mean((2, 3)))


def resnet(depth: int) -> nn.Module:
    """Depth 6n + 2; 16, 32, 64 wide."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            layers.append(Block(inputs, 16 * 2**stage, stride))
            inputs = 16 * 2**stage
    return nn.Sequential(*layers, Head(inputs))


def vgg(depth: int) -> nn.Module:
    """Five blocks of 3x3 convolutions, halved in between."""
    counts = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    layers: list[nn.Module] = []
    inputs = 3
    for stage, count in enumerate(counts):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            width = 64 * 2 ** min(stage, 3)
            layers += [_conv(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers, Head(inputs))


class DenseLayer(nn.Module):
    """concat(x, conv(relu(bn(x)))), with a 1x1 convolution first in bottlenecks."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(inputs), nn.ReLU()]
        if bottleneck:
            width = 4 * growth
            layers += [_conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, _conv(inputs, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet(
    depth: int, bottleneck: bool = False, compression: float = 1.0, width: int = 16
) -> nn.Module:
    """Three blocks, growth 12."""
    layers: list[nn.Module] = [_conv(3, width, 3)]
    for block in range(3):
        if block:
            after = int(width * compression)
            layers += [nn.BatchNorm2d(width), nn.ReLU(), _conv(width, after, 1)]
            layers.append(nn.AvgPool2d(2))
            width = after
        for _ in range((depth - 4) // (6 if bottleneck else 3)):
            layers.append(DenseLayer(width, 12, bottleneck))
            width += 12
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), Head(width))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": functools.partial(resnet, 8),
    "resnet20": functools.partial(resnet, 20),
    "resnet56": functools.partial(resnet, 56),
    "vgg16": functools.partial(vgg, 16),
    "vgg19": functools.partial(vgg, 19),
    "densenet40": functools.partial(densenet, 40),
    "densenet100bc": functools.partial(densenet, 100, True, 0.5, 24),
}


def versions() -> dict[str, str]:
    """Of both packages."""
    names = ("torch", "torch-pruning")
    return {name: importlib.metadata.version(name) for name in names}


def create(name: str) -> nn.Module:
    """The network called `name`, for inference.

    Raises:
        ValueError: there is none.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: got {name!r}, expected one of {list(NETWORKS)}")
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def prune(model: nn.Module, image: Tensor, ratio: float = 0.5) -> dict[str, float]:
    """Remove the channels of smallest l2 norm in place; seconds of each part."""
    start = time.perf_counter()
    torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)
    graph = time.perf_counter() - start
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
    )
    built = time.perf_counter() - start
    start = time.perf_counter()
    pruner.step()
    return {"graph": graph, "pruner": built, "step": time.perf_counter() - start}


def size(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Multiply-accumulates and parameters."""
    macs, parameters = torch_pruning.utils.count_ops_and_params(model, image)
    return {"macs": macs, "parameters": parameters}


def runner(
    model: nn.Module, image: Tensor, mode: str
) -> tuple[Callable[[], Any], Tensor]:
    """A call of the network, and what it gives.

    Args:
        model: of `create`.
        image: `(N, C, H, W)`.
        mode: `eager`; `channels-last`, norms folded into convolutions; `compile`, the
            same by `torch.compile`.
    """
    if mode != "eager":
        model = optimization.fuse(model)
        model = model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    call = model
    if mode == "compile":
        call = torch.compile(model, options={"freezing": True})

    def once() -> Tensor:
        with torch.no_grad():
            return call(image)

    return once, once()


def trainer(
    model: nn.Module, images: Tensor, labels: Tensor, mode: str
) -> Callable[[], float]:
    """A step of SGD with momentum on the cross entropy, which gives the loss.

    Args:
        model: of `create`, in train mode.
        images: `(N, C, H, W)`.
        labels: `(N,)`.
        mode: `eager` or `channels-last`.
    """
    if mode == "channels-last":
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
