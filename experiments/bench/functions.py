"""ResNet and DenseNet of `experiments.models` as functions of JAX alone.

They take the variables of the Flax modules and give the same outputs (inference), so
that the time of tracing them is JAX's and not Flax's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments import models

Images = Float[Array, "N H W C"]
Logits = Float[Array, "N K"]
Layer = tuple[Mapping[str, Any], Mapping[str, Any]]


def resnet(variables: Any, images: Images) -> Logits:
    """`models.ResNet` of any depth."""
    params, stats = variables["params"], variables["batch_stats"]
    x = _conv(images, params["conv1"]) + _last(params["conv1"]["bias"])
    x = jax.nn.relu(_norm(x, "bn1", params, stats))
    for stage in (1, 2, 3):
        for number, (p, s) in enumerate(_layers(variables, stage)):
            stride = 2 if stage > 1 and number == 0 else 1
            y = jax.nn.relu(_norm(_conv(x, p["conv1"], stride), "bn1", p, s))
            y = _norm(_conv(y, p["conv2"]), "bn2", p, s)
            if "shortcut" in p:
                x = _conv(x, p["shortcut"], stride)
            x = jax.nn.relu(x + y)
    return _dense(x, params)


def densenet(variables: Any, images: Images) -> Logits:
    """`models.DenseNet` of any depth and growth, with bottlenecks or without."""
    params, stats = variables["params"], variables["batch_stats"]
    x = _conv(images, params["conv1"])
    for stage in (1, 2, 3):
        if stage > 1:
            name = f"transition{stage - 1}"
            x = _conv(_active(x, "bn", params[name], stats[name]), params[name]["conv"])
            x = _halved(x)
        for p, s in _layers(variables, stage):
            y = _conv(_active(x, "bn1", p, s), p["conv1"])
            if "conv2" in p:
                y = _conv(_active(y, "bn2", p, s), p["conv2"])
            x = jnp.concatenate([x, y], axis=-1)
    return _dense(_active(x, "bn", params, stats), params)


FUNCTIONS = {models.ResNet: resnet, models.DenseNet: densenet}


def _layers(variables: Any, stage: int) -> Iterator[Layer]:
    """The parameters and statistics of a stage, layer by layer."""
    params, stats = variables["params"], variables["batch_stats"]
    number = 1
    while (name := f"stage{stage}_{number}") in params:
        yield params[name], stats[name]
        number += 1


def _conv(x: Images, layer: Any, stride: int = 1) -> Images:
    kernel = layer["kernel"]
    margin = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((margin, margin), (margin, margin)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _norm(x: Images, name: str, params: Any, stats: Any) -> Images:
    p, s = params[name], stats[name]
    factor = jax.lax.rsqrt(s["var"] + 1e-5) * p["scale"]
    return (x - _last(s["mean"])) * _last(factor) + _last(p["bias"])


def _last(vector: Any) -> Any:
    """Along the last of four axes."""
    return vector.reshape(1, 1, 1, -1)


def _active(x: Images, name: str, params: Any, stats: Any) -> Images:
    return jax.nn.relu(_norm(x, name, params, stats))


def _halved(x: Images) -> Images:
    """The mean over 2x2 pixels."""
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4


def _dense(x: Images, params: Any) -> Logits:
    kernel, bias = params["dense"]["kernel"], params["dense"]["bias"]
    return x.mean((1, 2)) @ kernel + bias.reshape(1, -1)
