"""The stages of `experiments.imagenet_ssl`: those of `ssl_stages` on a stream."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

import sslx
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import imagenet as imagenet_data
from experiments.imagenet_ssl import groups as imagenet_groups
from experiments.models import imagenet as imagenet_models
from experiments.training import loop

_RATE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Context(ssl_stages.Context):
    """Of `ssl_stages`, with ImageNet's data, networks, groups and learning rates."""

    arrays: imagenet_data.ImageNet

    @functools.cached_property
    def source(self) -> loop.Source:
        """What trainings read: the stream itself."""
        return self.arrays

    @property
    def training(self) -> dict[str, Any]:
        """Options of every training; the crops are made by the stream."""
        return {"smoothing": self.config.smoothing, "dropout": True}

    @functools.cached_property
    def model(self) -> nn.Module:
        """The dense network: float32 parameters, computing in `--dtype`."""
        return self._create(jnp.dtype(self.config.dtype))

    @functools.cached_property
    def exact(self) -> nn.Module:
        """The dense network computing in float32, to compare with."""
        return self._create(jnp.dtype("float32"))

    def _create(self, dtype: Any) -> nn.Module:
        classes = len(self.arrays.classes)
        return imagenet_models.create(self.config.model, classes, dtype)

    @functools.cached_property
    def groups(self) -> sslx.Groups:
        """What SSL penalises."""
        image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        config = self.config
        groups = imagenet_groups.make_groups(
            config.structure, self.exact, self.trained, image, config.block
        )
        if config.multipliers == "alexnet":
            return imagenet_groups.authors_groups(groups)
        return groups

    @functools.cached_property
    def penalised(self) -> sslx.Groups:
        """The groups, with the factors of lambda; those of units follow their norms."""
        if self.config.structure == "units":
            return imagenet_groups.balanced(self.groups, self.trained["params"])
        return self.groups

    def images(self, count: int) -> Float[Array, "N H W C"]:
        """The first test images, normalised."""
        pixels = jnp.asarray(self.arrays.test_images(count))
        return imagenet_data.normalise(pixels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and colours."""
        return (self.arrays.size, self.arrays.size, 3)

    @property
    def checked(self) -> int:
        """How many images the compact network is compared on."""
        return min(64, self.arrays.test_count)

    def schedule(
        self, peak: float, epochs: int, epoch_steps: int = 0
    ) -> optax.Schedule:
        """Linear warm-up to `peak` * batch / 256, then cosine to zero or 0.1x drops."""
        config = self.config
        peak = peak * config.batch / _RATE_BATCH
        per_epoch = epoch_steps or self.per_epoch
        steps = epochs * per_epoch
        warm = round(min(config.warmup_epochs, epochs / 5) * per_epoch)
        if not config.drops:
            return optax.warmup_cosine_decay_schedule(
                peak / 20, peak, max(1, warm), steps, 0.0
            )
        rises = optax.linear_schedule(peak / 20, peak, warm)
        drops = {round(part * steps) - warm: 0.1 for part in config.drops}
        falls = optax.piecewise_constant_schedule(peak, drops)
        return optax.join_schedules([rises, falls], [warm]) if warm else falls
