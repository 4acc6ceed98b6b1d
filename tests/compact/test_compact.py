"""Compaction as a user meets it: real models, files, errors, settings."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sslx
from experiments import models
from tests.arrays import relative_error, sparse_variables

IMAGES = {"lenet": (2, 28, 28, 1)}


def make(name: str, dead: float, dtype=np.float32, kernels: str = "conv"):
    """A model with random weights, statistics and biases, some filters at zero."""
    model = models.create(name)
    image = IMAGES.get(name, (2, 32, 32, 3))
    variables, x = sparse_variables(
        model, image, dead, dtype, lambda path, leaf: kernels in path
    )
    return model, variables, x


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("resnet20", "resnet32", "resnet56", "resnet110")
]
MODELS = ["lenet", "convnet", "resnet8", *SLOW]


@pytest.mark.parametrize("name", MODELS)
def test_output_is_that_of_the_zeroed_network_in_float32(name: str) -> None:
    model, variables, x = make(name, 0.4)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_output_is_that_of_the_zeroed_network_in_float64(name: str, x64) -> None:
    model, variables, x = make(name, 0.4, np.float64)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-12
    before = sslx.measure.cost(model.apply, variables, x)
    after = sslx.measure.cost(small.apply, small.variables, x)
    assert after.macs < 0.8 * before.macs


def test_training_mode_and_its_new_statistics_are_those_of_the_zeroed_network(
    x64,
) -> None:
    model, variables, x = make("resnet8", 0.4, np.float64, kernels="conv1")
    small = sslx.compact(model.apply)(variables, x)
    kwargs = {"train": True, "mutable": ["batch_stats"]}
    want, stats = jax.jit(functools.partial(model.apply, **kwargs))(variables, x)
    train = jax.jit(functools.partial(small.apply, **kwargs))
    got, small_stats = train(small.variables, x)
    assert relative_error(got, want) < 1e-12
    reduced = sslx.apply_plan(small.plan, stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), small_stats, reduced
    )


def test_a_layer_whose_kernel_alone_is_zero_disappears(x64) -> None:
    model, variables, x = make("resnet8", 0.0, np.float64)
    block = variables["params"]["stage1_1"]
    block["conv1"]["kernel"] = jnp.zeros_like(block["conv1"]["kernel"])
    small = sslx.compact(model.apply)(variables, x)
    convs = [str(e) for e in equations(small, x) if "conv_general" in str(e.primitive)]
    assert len(convs) == 9 - 2
    want = jax.jit(model.apply)(variables, x)
    assert relative_error(jax.jit(small.apply)(small.variables, x), want) < 1e-12


def equations(small, x):
    return jax.make_jaxpr(small.apply)(small.variables, x).jaxpr.eqns


@pytest.mark.parametrize("kernels", ["conv1", "nothing"])
def test_nothing_is_moved_at_run_time_where_operands_agree(kernels: str) -> None:
    model, variables, x = make("resnet8", 0.5, kernels=kernels)
    small = sslx.compact(model.apply, constants="keep")(variables, x)
    names = {e.primitive.name for e in equations(small, x)}
    assert not names & {"gather", "scatter", "scatter-add", "slice", "copy"}


def test_alignment_decides_between_moving_and_keeping() -> None:
    model, variables, x = make("resnet8", 0.5)
    moves = {}
    for alignment in ("align", "scatter"):
        options = {"alignment": alignment, "constants": "keep"}
        small = sslx.compact(model.apply, **options)(variables, x)
        code = jax.make_jaxpr(small.apply)(small.variables, x)
        moves[alignment] = str(code).count("gather[")
    assert moves["align"] == 0 < moves["scatter"]


def test_shapes_and_masks_give_the_same_plan_as_arrays() -> None:
    model, variables, x = make("resnet8", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    groups = sslx.groups(
        variables, {"kernel": sslx.FILTER | sslx.CHANNEL, ".*": sslx.FILTER}
    )
    masks = sslx.alive(groups, variables)
    shapes = jax.eval_shape(lambda: variables)
    planned = sslx.compact(model.apply, groups=groups, masks=masks)(shapes, x)
    assert planned.plan == small.plan
    reduced = sslx.apply_plan(planned.plan, variables)
    jax.tree.map(np.testing.assert_array_equal, reduced, small.variables)


def test_optimizer_state_shrinks_with_the_parameters_and_comes_back() -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = tx.init(variables)
    reduced = sslx.apply_plan(small.plan, state)
    fresh = tx.init(small.variables)
    assert jax.tree.map(jnp.shape, reduced) == jax.tree.map(jnp.shape, fresh)


def test_files_hold_the_network_without_pickle(tmp_path) -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    sslx.save(tmp_path / "small", small)
    loaded = sslx.load(tmp_path / "small", model.apply)
    assert loaded.plan == small.plan
    assert (
        sslx.Plan.from_json(json.loads(json.dumps(small.plan.to_json()))) == small.plan
    )
    got = jax.jit(loaded.apply)(loaded.variables, x)
    np.testing.assert_array_equal(got, jax.jit(small.apply)(small.variables, x))
    assert loaded.summary() == small.summary()
    dense = jax.jit(model.apply)
    np.testing.assert_allclose(
        dense(loaded.expand(), x), dense(variables, x), rtol=1e-5, atol=1e-6
    )


def test_files_are_never_overwritten_and_damage_is_named(tmp_path) -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    sslx.save(tmp_path / "small", small)
    with pytest.raises(FileExistsError, match="give a new folder"):
        sslx.save(tmp_path / "small", small)
    with pytest.raises(FileNotFoundError, match="no compact network"):
        sslx.load(tmp_path / "other", model.apply)
    (tmp_path / "small" / "compact.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        sslx.load(tmp_path / "small", model.apply)


def test_loading_against_the_wrong_model_names_path_and_shapes(tmp_path) -> None:
    model, variables, x = make("lenet", 0.5)
    sslx.save(tmp_path / "small", sslx.compact(model.apply)(variables, x))
    other = jax.tree.map(lambda a: a, variables)
    other["params"]["conv1"]["kernel"] = jnp.zeros((5, 5, 1, 21))
    with pytest.raises(ValueError, match=r"conv1/kernel: the model has shape .*21"):
        sslx.load(tmp_path / "small", model.apply, like=other)


def test_wrong_variables_are_named_with_both_shapes() -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    with pytest.raises(ValueError, match=r"conv1/kernel: got shape \(5, 5, 1, 20\)"):
        small.apply(variables, x)


def solve(params, x):
    h = x @ params["a"]
    return jnp.linalg.cholesky(jnp.eye(4) + h @ h.T) @ jnp.ones((4, 4)) @ params["b"]


def test_an_unknown_primitive_keeps_what_touches_it_and_is_reported() -> None:
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(4, 3))}
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    params["a"] = params["a"].at[:, 2].set(0)
    x = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    small = sslx.compact(solve)(params, x)
    np.testing.assert_allclose(
        small.apply(small.variables, x), solve(params, x), rtol=1e-5
    )
    assert small.variables["a"].shape == (4, 5)


def test_strict_names_primitive_line_and_parameters() -> None:
    def fn(params, x):
        return jnp.linalg.cholesky(x @ params["a"])

    params = {"a": jnp.eye(4)}
    small = sslx.compact(fn)(params, jnp.eye(4))
    (held,) = small.held_back
    assert held.primitive == "cholesky"
    assert held.paths == ("a",)
    assert "test_compact.py" in held.source
    assert "cholesky" in small.summary()
    with pytest.raises(
        ValueError, match=r"cholesky at .*test_compact.py.* holds back a"
    ):
        sslx.compact(fn, strict=True)(params, jnp.eye(4))


def test_a_call_that_needs_removed_slices_is_refused() -> None:
    def fn(params, x, both=False):
        h = x @ params["a"]
        return h[:, :2] if not both else h

    params = {"a": jnp.ones((3, 4))}
    small = sslx.compact(fn)(params, jnp.ones((2, 3)))
    assert small.variables["a"].shape == (3, 2)
    with pytest.raises(ValueError, match=r"  a: .*removed slices .* needed"):
        small.apply(small.variables, jnp.ones((2, 3)), both=True)


def test_summary_counts_before_and_after() -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    rows = small.rows()
    layers = [r["layer"].split("/")[-2] for r in rows if r["kernel_before"]]
    assert layers == ["conv1", "conv2", "dense1", "dense2"]
    after = small.variables["params"]["conv1"]["kernel"]
    assert rows[0]["kernel_after"] == after.shape
    assert "conv1" in small.summary() and "<table>" in small._repr_html_()


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dense(8)(x)
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        return nn.Dense(3)(nn.relu(x))


def test_random_numbers_inside_the_function() -> None:
    model = Dropped()
    x = jnp.ones((4, 5))
    variables = model.init(jax.random.key(0), x)
    kernel = variables["params"]["Dense_0"]["kernel"]
    variables["params"]["Dense_0"]["kernel"] = kernel.at[:, [1, 5]].set(0)
    small = sslx.compact(model.apply)(variables, x)
    rngs = {"dropout": jax.random.key(3)}
    want = model.apply(variables, x, deterministic=False, rngs=rngs)
    got = small.apply(small.variables, x, deterministic=False, rngs=rngs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert small.variables["params"]["Dense_0"]["kernel"].shape == (5, 6)


def test_transformations_of_the_reduced_function() -> None:
    model, variables, x = make("lenet", 0.5)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    apply, v = small.apply, small.variables
    one = lambda image: apply(v, image[None])[0]
    mapped = jax.jit(jax.vmap(one))(x)
    np.testing.assert_allclose(mapped, want, rtol=1e-4, atol=1e-5)
    _, scanned = jax.lax.scan(lambda c, image: (c, one(image)), 0, x)
    np.testing.assert_allclose(scanned, want, rtol=1e-4, atol=1e-5)
    loss = lambda v: (jax.checkpoint(apply)(v, x) ** 2).sum()
    full = lambda v: (model.apply(v, x) ** 2).sum()
    reduced = sslx.apply_plan(small.plan, jax.jit(jax.grad(full))(variables))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        jax.jit(jax.grad(loss))(v),
        reduced,
    )


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def loop(h):
    step = lambda c: (c[0] + 1, jnp.tanh(c[1]))
    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, h))[1]


INNER = {
    "custom_vjp": straight_through,
    "cond": lambda h: jax.lax.cond(h[0, 0] > 0, jnp.tanh, jnp.negative, h),
    "while": loop,
    "fori": lambda h: jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y), h),
    "sort": lambda h: jnp.sort(h, 0),
    "vmap": jax.vmap(jax.nn.softplus),
    "cumsum": lambda h: jnp.cumsum(h, 0),
    "remat": jax.checkpoint(jnp.tanh),
    "repeat": lambda h: jnp.concatenate([h, h], 0),
    "fft": lambda h: jnp.fft.fft(h, axis=0).real,
}


@pytest.mark.parametrize("name", INNER)
def test_what_stands_between_two_products_is_exact_and_shrinks(name: str, x64) -> None:
    inner = INNER[name]
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    params["a"][:, 2] = 0
    params = {k: jnp.asarray(v) for k, v in params.items()}
    x = jnp.asarray(rng.normal(size=(5, 4)))
    net = lambda p, x: inner(x @ p["a"]) @ p["b"]
    small = sslx.compact(net)(params, x)
    assert relative_error(small.apply(small.variables, x), net(params, x)) < 1e-12
    assert not small.held_back
    assert small.variables["a"].shape[1] == 5


def test_numpy_arrays_of_double_precision_are_taken_as_jax_takes_them() -> None:
    net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    params["a"][:, 1] = 0
    x = rng.normal(size=(5, 4))
    small = sslx.compact(net)(params, x)
    assert relative_error(small.apply(small.variables, x), net(params, x)) < 1e-6
