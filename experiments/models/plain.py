"""Networks without shortcuts: MLP and LeNet (MNIST), ConvNet and VGG (CIFAR)."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class MLP(nn.Module):
    """784-500-300-10 on MNIST: dense layers with ReLU on the flattened image."""

    classes: int = 10
    hidden: tuple[int, ...] = (500, 300)

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        del train
        x = images.reshape(images.shape[0], -1)
        for layer, width in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(width, name=f"dense{layer}")(x))
        return nn.Dense(self.classes, name=f"dense{len(self.hidden) + 1}")(x)


def _max_pool(x: Float[Array, "N H W C"], size: int) -> Float[Array, "N h w C"]:
    """Max over 2x2 or 3x3 pixels, stride 2; sizes are rounded up, as Caffe does.

    Written as maxima of slices, first rows, then columns: the gradient of a windowed
    maximum alone takes as long as the rest of a training step on XLA's CPU.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        count = -(-(length - size) // 2) + 1
        if length % 2:
            last = lax.slice_in_dim(x, length - 1, length, axis=axis)
            x = jnp.concatenate([x, last], axis)
        pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        even, odd = (lax.index_in_dim(pairs, i, axis + 1, False) for i in (0, 1))
        x = jnp.maximum(even, odd)
        if size == 3:
            after = lax.slice_in_dim(even, 1, None, axis=axis)
            last = lax.slice_in_dim(even, -1, None, axis=axis)
            x = jnp.maximum(x, jnp.concatenate([after, last], axis))
        x = lax.slice_in_dim(x, 0, count, axis=axis)
    return x


class LeNet(nn.Module):
    """Caffe's LeNet: conv1 20@5x5, conv2 50@5x5, dense1 500, dense2; no conv ReLU."""

    classes: int = 10

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        del train
        x = nn.Conv(20, (5, 5), padding="VALID", name="conv1")(images)
        x = _max_pool(x, 2)
        x = nn.Conv(50, (5, 5), padding="VALID", name="conv2")(x)
        x = _max_pool(x, 2)
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
        mean = functools.partial(
            nn.avg_pool,
            window_shape=(3, 3),
            strides=(2, 2),
            padding=((0, 1), (0, 1)),
            count_include_pad=False,
        )
        x = conv(32, kernel_init=normal(1e-2), name="conv1")(images)
        x = _local_response_norm(nn.relu(_max_pool(x, 3)))
        x = conv(32, kernel_init=normal(1e-2), name="conv2")(x)
        x = _local_response_norm(mean(nn.relu(x)))
        x = conv(64, kernel_init=normal(1e-2), name="conv3")(x)
        x = mean(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.classes, name="dense")(x)


_VGG = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """VGG for CIFAR: five stages of conv-BN-ReLU, a max pool between, one dense layer.

    Stages are `width` times 1, 2, 4, 8, 8 wide. Without the last pool and the hidden
    dense layers of ImageNet's VGG: the mean over the last 2x2 pixels is classified.
    """

    depth: int = 16
    classes: int = 10
    width: int = 64

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], *, train: bool = False
    ) -> Float[Array, "N K"]:
        if self.depth not in _VGG:
            raise ValueError(f"VGG depth: got {self.depth}, expected 16 or 19")
        x = images
        for stage, layers in enumerate(_VGG[self.depth], 1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for layer in range(1, layers + 1):
                x = nn.Conv(
                    self.width * 2 ** min(stage - 1, 3),
                    (3, 3),
                    use_bias=False,
                    kernel_init=_he_normal,
                    name=f"conv{stage}_{layer}",
                )(x)
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.9,
                    name=f"bn{stage}_{layer}",
                )(x)
                x = nn.relu(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.classes, name="dense")(x)
