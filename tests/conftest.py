"""Settings and fixtures shared by all tests.

Tests run on the CPU unless JAX_PLATFORMS says otherwise; tests marked `gpu` are
skipped where JAX's default backend is not a GPU. On the CPU, XLA compiles fast rather
than well: most of a test's time is compilation.
"""

import importlib.metadata
import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ["JAX_PLATFORMS"] == "cpu":
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # Later releases end the process over a flag that they do not know.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Try more examples of each law where the slow tests run as well."""
    quick = "not slow" in config.option.markexpr
    hypothesis.settings.register_profile(
        "sslx",
        deadline=None,
        derandomize=bool(os.environ.get("CI")),
        max_examples=20 if quick else 100,
    )
    hypothesis.settings.load_profile("sslx")


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="JAX sees no GPU"))
