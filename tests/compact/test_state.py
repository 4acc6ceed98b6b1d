"""Which outputs are new values of variables: those that are named, no others."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.scope import DenyList

import sslx
from sslx._compact.jaxpr.state import state_of

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)
WIDE = jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32).at[:, jnp.array([1, 5])].set(0)
OUT = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)


def close(got: Any, want: Any) -> None:
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want
    )


def test_an_output_with_the_place_and_shape_of_a_variable_comes_back_whole() -> None:
    def net(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p[0])
        return h, h @ p[1]

    small = sslx.compact(net)([WIDE, OUT], X)
    close(small.apply(small.variables, X), net([WIDE, OUT], X))


def test_an_output_with_the_name_and_shape_of_a_variable_comes_back_whole() -> None:
    def net(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["hidden"])
        return {"hidden": h, "logits": h @ p["out"]}

    params = {"hidden": WIDE, "out": OUT}
    small = sslx.compact(net)(params, X)
    close(small.apply(small.variables, X), net(params, X))


def averaged(v: Any, x: Any) -> Any:
    h = x @ v["w"]
    mean = 0.9 * v["mean"] + 0.1 * h.mean(0)
    return (h - mean[None]) @ v["out"], {"mean": mean}


def averaging() -> dict[str, jax.Array]:
    return {"w": WIDE, "out": OUT, "mean": jnp.zeros(8)}


@pytest.mark.parametrize("state", ["^mean$", ["mean"]])
def test_named_state_comes_back_reduced_and_goes_in_again(state: Any) -> None:
    small = sslx.compact(averaged, state=state)(averaging(), X)
    assert small.variables["mean"].shape == (6,)
    now, dense = small.variables, averaging()
    for _ in range(3):
        got, new = small.apply(now, X)
        want, wide = averaged(dense, X)
        now, dense = {**now, **new}, {**dense, **wide}
        close(got, want)
    close(now["mean"], sslx.apply_plan(small.plan, dense)["mean"])


def test_state_that_was_not_named_comes_back_whole_and_the_error_says_how() -> None:
    small = sslx.compact(lambda v, x: averaged(v, x)[0])(averaging(), X)
    wide = {**small.variables, "mean": averaging()["mean"]}
    with pytest.raises(ValueError, match=r"name it as state: .*state=\['mean'\]"):
        small.apply(wide, X)


def test_units_of_a_function_that_returns_its_state() -> None:
    assert not sslx.units(averaged)(averaging(), X).classes
    (found,) = sslx.units(averaged, state="mean")(averaging(), X).classes
    assert {m.path for m in found.members} == {"w", "out", "mean"}


def test_state_is_kept_in_the_file(tmp_path: Any) -> None:
    small = sslx.compact(averaged, state="mean")(averaging(), X)
    sslx.save(tmp_path / "small", small)
    loaded = sslx.load(tmp_path / "small", averaged)
    assert loaded.state == small.state == ("mean",)
    close(loaded.apply(loaded.variables, X), small.apply(small.variables, X))


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.BatchNorm(not train)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(3)(nn.relu(x))


@pytest.mark.parametrize(
    "mutable", ["batch_stats", ("batch_stats",), DenyList("params"), True]
)
def test_collections_that_linen_calls_mutable_are_state(mutable: Any) -> None:
    variables = Norm().init(jax.random.key(0), X)
    kernel = variables["params"]["Dense_0"]["kernel"].at[:, 2].set(0)
    variables["params"]["Dense_0"]["kernel"] = kernel
    small = sslx.compact(Norm().apply)(variables, X, mutable=mutable)
    bound = sslx.compact(functools.partial(Norm().apply, mutable=mutable))(variables, X)
    assert bound.plan == small.plan
    got, new = small.apply(small.variables, X, mutable=mutable)
    want, wide = Norm().apply(variables, X, mutable=mutable)
    close(got, want)
    close(new, sslx.apply_plan(small.plan, wide))
    assert new["batch_stats"]["BatchNorm_0"]["mean"].shape == (7,)


@pytest.mark.parametrize(
    ("mutable", "names"),
    [
        (False, ""),
        (None, ""),
        (True, "pbc"),
        ("cache", "c"),
        (["batch_stats"], "b"),
        ({"cache", "params"}, "pc"),
        (DenyList("params"), "bc"),
        (DenyList(["params", "cache"]), "b"),
        (DenyList(True), ""),
        (DenyList(False), "pbc"),
    ],
)
def test_filters_of_linen(mutable: Any, names: str) -> None:
    paths = {"p": "params/w", "b": "batch_stats/w", "c": "cache/w"}
    found = state_of(print, {"mutable": mutable}, (), paths.values())
    assert found == {paths[n] for n in names}
