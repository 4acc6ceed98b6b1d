"""What training keeps beside the parameters shrinks and grows with them."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import sslx
from sslx import select
from sslx._compact.plan import LeafPlan, Plan, expand_plan

KEPT = (*range(56), *range(156, 256))
normals = np.random.default_rng


def mlp():
    """Two layers, of which one may be factored and the other is not."""
    draw = lambda seed, *shape: jnp.asarray(normals(seed).normal(size=shape), "f4")
    params = {
        "a": {"kernel": draw(0, 130, 256), "bias": draw(1, 256)},
        "b": {"kernel": draw(2, 256, 140), "bias": draw(3, 140)},
    }
    return params, plan_of(params, {256: KEPT}), lambda tree: tree


def nested():
    """The default names of Linen, at two depths, and a collection beside."""
    shapes = {
        "Conv_0": {"kernel": (3, 3, 3, 8), "bias": (8,)},
        "Block_0": {
            "Conv_0": {"kernel": (3, 3, 8, 7), "bias": (7,)},
            "Conv_1": {"kernel": (3, 3, 7, 8), "bias": (8,)},
        },
        "Conv_1": {"kernel": (1, 1, 8, 12), "bias": (12,)},
    }
    is_shape = lambda s: isinstance(s, tuple)
    draw = lambda s: jnp.asarray(normals(len(s)).normal(size=s), "f4")
    variables = {
        "params": jax.tree.map(draw, shapes, is_leaf=is_shape),
        "batch_stats": {"Norm_0": {"mean": draw((12,))}},
    }
    plan = plan_of(variables, {7: (1, 2, 5, 6), 12: (0, 3, 4, 11), 8: range(1, 8)})
    return variables, plan, lambda tree: tree["params"]


def plan_of(tree, kept):
    """A plan that keeps the given indices of axes of the given lengths."""

    def leaf(x):
        axes = tuple(tuple(kept[n]) if n in kept else None for n in x.shape)
        return LeafPlan(x.shape, axes, (None,) * x.ndim)

    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return Plan({name(path): leaf(x) for path, x in paths})


def by_rank(tree):
    return jax.tree.map(lambda x: "matrix" if jnp.ndim(x) > 1 else "vector", tree)


def matrices(tree):
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)


def norm_of(updates, *_, **__):
    return jnp.sqrt(sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(updates)))


inner = functools.partial(optax.adam, 1e-3)
RATE, NOTHING = {"learning_rate": 1e-3}, {}

# Name -> arguments, or a function that makes it. Every public name of optax and of
# optax.contrib that makes a transformation is here.
PLAIN = dict.fromkeys(
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad"
    " fromage lamb lars lbfgs lion nadam nadamw novograd optimistic_adam_v2"
    " optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 yogi"
    " scale_by_learning_rate contrib.acprop contrib.ademamix contrib.adopt"
    " contrib.galore contrib.madgrad contrib.muon contrib.simplified_ademamix"
    " contrib.sophia scale_by_rprop contrib.scale_by_madgrad"
    " contrib.schedule_free_adamw contrib.schedule_free_sgd".split(),
    RATE,
)
PLAIN |= dict.fromkeys(
    "add_decayed_weights centralize identity keep_params_nonnegative polyak_sgd"
    " normalize_by_update_norm scale_by_adadelta scale_by_adam scale_by_adamax"
    " scale_by_adan scale_by_amsgrad scale_by_belief scale_by_lbfgs scale_by_lion"
    " scale_by_distance_over_gradients scale_by_novograd scale_by_optimistic_gradient"
    " scale_by_param_block_norm scale_by_param_block_rms scale_by_polyak"
    " scale_by_radam scale_by_rms scale_by_rss scale_by_sign scale_by_sm3"
    " scale_by_stddev scale_by_trust_ratio scale_by_yogi set_to_zero zero_nans"
    " scale_by_factored_rms apply_every contrib.cocob contrib.dadapt_adamw"
    " contrib.momo contrib.momo_adam contrib.normalize contrib.prodigy"
    " contrib.reduce_on_plateau contrib.scale_by_acprop contrib.scale_by_ademamix"
    " contrib.scale_by_adopt contrib.scale_by_cocob contrib.scale_by_galore"
    " contrib.scale_by_muon contrib.scale_by_simplified_ademamix".split(),
    NOTHING,
)
WITH = {
    "adaptive_grad_clip": {"clipping": 1.0},
    "add_noise": {"eta": 0.1, "gamma": 0.5, "key": 0},
    "clip": {"max_delta": 1.0},
    "clip_by_block_rms": {"threshold": 1.0},
    "clip_by_global_norm": {"max_norm": 1.0},
    "contrib.differentially_private_aggregate": {
        "l2_norm_clip": 1.0,
        "noise_multiplier": 1.0,
        "key": 0,
    },
    "contrib.dpsgd": {
        "learning_rate": 1.0,
        "l2_norm_clip": 1.0,
        "noise_multiplier": 1.0,
        "seed": 0,
    },
    "ema": {"decay": 0.9},
    "noisy_sgd": {"learning_rate": 1.0, "key": 0},
    "optimistic_adam": {"learning_rate": 1.0},
    "polyak_sgd": {},
    "scale": {"step_size": 1.0},
    "scale_by_backtracking_linesearch": {"max_backtracking_steps": 3},
    "scale_by_schedule": {"step_size_fn": optax.constant_schedule(1.0)},
    "scale_by_zoom_linesearch": {"max_linesearch_steps": 3},
    "trace": {"decay": 0.9},
}
MADE = {
    "MultiSteps": lambda: optax.MultiSteps(inner(), 4).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(inner(), 5),
    "chain": lambda: optax.chain(optax.clip(1.0), inner(), optax.ema(0.9)),
    "conditionally_mask": lambda: optax.conditionally_mask(inner(), lambda k: k > 2),
    "conditionally_transform": lambda: optax.conditionally_transform(
        inner(), lambda k: k > 2
    ),
    "contrib.mechanize": lambda: optax.contrib.mechanize(inner()),
    "contrib.sam": lambda: optax.contrib.sam(inner(), optax.sgd(0.1)),
    "contrib.schedule_free": lambda: optax.contrib.schedule_free(inner(), 1e-3),
    "contrib.split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(
        inner()
    ),
    "flatten": lambda: optax.flatten(inner()),
    "freeze": lambda: optax.freeze(matrices),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(1e-3),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(
        optax.adamw
    )(1e-3),
    "lookahead": lambda: optax.lookahead(inner(), 5, 0.5),
    "masked": lambda: optax.masked(inner(), matrices),
    "measure_with_ema": lambda: optax.measure_with_ema(norm_of, 0.9),
    "multi_transform": lambda: optax.multi_transform(
        {"matrix": inner(), "vector": optax.sgd(0.1, momentum=0.9)}, by_rank
    ),
    "named_chain": lambda: optax.named_chain(("first", inner())),
    "partition": lambda: optax.partition(
        {"matrix": optax.sm3(0.1), "vector": inner()}, by_rank
    ),
    "selective_transform": lambda: optax.selective_transform(
        inner(), freeze_mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    ),
    "snapshot": lambda: optax.snapshot("norm", norm_of),
    "stateless": lambda: optax.stateless(lambda u, p: u),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda u, p: u),
    "with_extra_args_support": lambda: optax.with_extra_args_support(inner()),
}
NAMES = [*PLAIN, *WITH, *MADE]


def make(name):
    if name in MADE:
        return MADE[name]()
    module = optax.contrib if name.startswith("contrib.") else optax
    known = getattr(module, name.removeprefix("contrib."))
    return known(**(PLAIN | WITH)[name])


def test_the_table_has_all_of_optax():
    def makes(function):
        said = str(getattr(function, "__annotations__", {}).get("return", ""))
        return callable(function) and "GradientTransformation" in said

    names = lambda module: [n for n in dir(module) if n[0] != "_"]
    found = {n for n in names(optax) if makes(getattr(optax, n))}
    more = {n for n in names(optax.contrib) if makes(getattr(optax.contrib, n))}
    found |= {f"contrib.{name}" for name in more}
    assert found - set(NAMES) == set()


REFUSED = {"contrib.galore", "contrib.scale_by_galore"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("tree", [mlp, nested])
@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_states_of_optax_shrink_to_those_of_the_small_network(name, tree):
    variables, plan, part = tree()
    params, small = part(variables), part(sslx.apply_plan(plan, variables))
    if name == "lookahead":
        params, small = map(optax.LookaheadParams.init_synced, (params, small))
    tx = make(name)
    numbered = _numbered(jax.eval_shape(tx.init, params))
    try:
        got = sslx.apply_plan(plan, numbered)
    except ValueError as error:
        assert name in REFUSED and "/kernel: " in str(error), error
        return
    want = jax.eval_shape(tx.init, small)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
    back = sslx.apply_plan(plan, expand_plan(plan, got))
    for first, second in zip(*map(jax.tree.leaves, (back, got)), strict=True):
        if jnp.ndim(first) and not isinstance(first, jax.ShapeDtypeStruct):
            np.testing.assert_array_equal(first, second)


def _numbered(state):
    """Arrays of the given shapes with other numbers in every entry."""

    def numbers(x):
        if not isinstance(x.dtype, np.dtype) or not x.ndim:
            return x
        return np.arange(x.size).astype(x.dtype).reshape(x.shape)

    return jax.tree.map(numbers, state)


def test_slices_of_states_are_the_right_ones():
    params, plan, _ = mlp()
    x = params["a"]["kernel"]
    state = optax.scale_by_factored_rms().init(params)
    rows = state._replace(
        v_col=state.v_col | {"a": state.v_row["a"] | {"kernel": x[0]}}
    )
    small = sslx.apply_plan(plan, rows)
    np.testing.assert_array_equal(small.v_col["a"]["kernel"], x[0][np.array(KEPT)])
    sm3 = optax.scale_by_sm3().init(params)
    assert [m.shape for m in sslx.apply_plan(plan, sm3).mu["a"]["kernel"]] == [
        (130,),
        (156,),
    ]
    flat = optax.flatten(optax.trace(0.9)).init(params)
    vector = jax.flatten_util.ravel_pytree(params)[0]
    got = sslx.apply_plan(plan, flat._replace(trace=vector)).trace
    want = jax.flatten_util.ravel_pytree(sslx.apply_plan(plan, params))[0]
    np.testing.assert_array_equal(got, want)


def test_names_that_repeat_at_several_depths_keep_their_own_indices():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.Conv(8, (1, 1))(nn.relu(nn.Conv(6, (1, 1))(x)))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (1, 1))(Block()(nn.Conv(8, (1, 1))(x))))
            return nn.Dense(3)(x.mean((1, 2)))

    model, x = Net(), jnp.ones((1, 2, 2, 3))
    variables = model.init(jax.random.key(0), x)
    units = sslx.units(model.apply)(variables, x)
    half = {c.name: np.arange(c.count) % 2 == 0 for c in units.classes}
    small = sslx.compact(model.apply)(sslx.scale(units, variables, half), x)
    tx = optax.adam(1e-3)

    def state(params):
        return train_state.TrainState.create(apply_fn=None, params=params, tx=tx)

    for made in (state, tx.init, lambda p: {"ema": p}, lambda p: p):
        want = made(small.variables["params"])
        got = sslx.apply_plan(small.plan, made(variables["params"]), like=want)
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


@pytest.mark.parametrize(
    ("strange", "text"),
    [
        ({"a": {"kernel": np.zeros((130, 255))}}, "a/kernel: got shape"),
        ({"x": np.zeros((130, 256))}, "x: of shape"),
        ({"x": np.zeros((3, 130, 256))}, "x: of shape"),
        ({"mu": np.zeros(130 * 256 + 140)}, "mu: of shape"),
        ({"mu": {"a": {"kernel": np.zeros((130, 5))}}}, "mu/a/kernel: got shape"),
    ],
)
def test_what_cannot_be_matched_is_named(strange, text):
    _, plan, _ = mlp()
    with pytest.raises(ValueError, match=text):
        sslx.apply_plan(plan, strange)


def test_averages_that_would_not_be_the_same_are_refused():
    params = {"w": jnp.zeros((200, 256))}
    plan = plan_of(params, {256: range(150)})
    state = optax.scale_by_factored_rms().init(params)
    with pytest.raises(ValueError, match="w: row and column averages of shape"):
        sslx.apply_plan(plan, state)


def test_a_state_that_is_not_like_the_small_one_is_refused():
    params, plan, _ = mlp()
    state = optax.adam(0.1).init(params)
    with pytest.raises(ValueError, match="the result is not like `like`"):
        sslx.apply_plan(plan, state, like=state)


def test_counters_and_keys_stay():
    params, plan, _ = mlp()
    rest = {"step": 3, "key": jax.random.key(0), "old": jax.random.PRNGKey(0)}
    got = sslx.apply_plan(plan, {"params": params, **rest})
    assert got["step"] == 3 and got["old"].shape == (2,)


def test_variables_are_matched_by_path_in_any_order():
    draw = lambda seed: jnp.asarray(normals(seed).normal(size=(6, 6)), "f4")
    first = collections.OrderedDict((k, draw(i)) for i, k in enumerate(("q", "k", "a")))
    first["q"] = first["q"].at[:, 1].set(0)
    first["k"] = first["k"].at[:, 1].set(0)
    fn = lambda p, x: (x @ p["q"]) @ (jnp.tanh(x) @ p["k"]).T @ x @ p["a"]
    x = jnp.asarray(normals(7).normal(size=(4, 6)), "f4")
    small = sslx.compact(fn)(first, x)
    assert small.variables["q"].shape == (6, 5)
    turned = collections.OrderedDict((k, small.variables[k]) for k in "akq")
    for variables in (turned, dict(small.variables)):
        np.testing.assert_allclose(small.apply(variables, x), fn(first, x), rtol=1e-4)


EXACT = {
    "alone": lambda tx: tx,
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda k: k != 1),
    "masked": lambda tx: optax.masked(tx, matrices),
    "inject": lambda tx: optax.inject_hyperparams(lambda rate: tx)(1.0),
    "partition": lambda tx: optax.partition(
        {"matrix": tx, "vector": optax.set_to_zero()}, by_rank
    ),
    "lookahead": lambda tx: optax.lookahead(tx, 2, 0.5),
}


@pytest.mark.parametrize("name", EXACT)
def test_wrappers_that_keep_zeros_exact(name):
    params = {"w": jnp.asarray(normals(0).normal(size=(3, 4)), "f4").at[:, 1].set(0)}
    groups = sslx.groups(params, {"w": sslx.FILTER})
    tx = EXACT[name](optax.chain(optax.adam(0.1), sslx.keep_zeros(groups)))
    if name == "lookahead":
        params = optax.LookaheadParams.init_synced(params)
    state = tx.init(params)
    for step in range(4):
        slopes = {"w": jnp.asarray(normals(step).normal(size=(3, 4)), "f4")}
        updates, state = tx.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
    fast = params.fast if name == "lookahead" else params
    assert (fast["w"][:, 1] == 0).all() and (fast["w"][:, 0] != 0).all()
    if name == "lookahead":
        assert (params.slow["w"][:, 1] == 0).all()


def test_schedule_free_keeps_zeros_where_its_average_does():
    params = {"w": jnp.ones((2, 3)).at[:, 1].set(0)}
    groups = sslx.groups(params, {"w": sslx.FILTER})
    inside = optax.chain(optax.sgd(0.1), sslx.keep_zeros(groups))
    tx = optax.contrib.schedule_free(inside, 0.1)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update({"w": jnp.ones((2, 3))}, state, params)
        params = optax.apply_updates(params, updates)
    shown = optax.contrib.schedule_free_eval_params(state, params)
    assert (shown["w"][:, 1] == 0).all() and (shown["w"][:, 0] != 0).all()


def test_masks_of_pruning_are_not_left_at_full_size_in_silence():
    params, plan, _ = mlp()
    groups = sslx.groups(params, {"a/kernel": sslx.FILTER})
    state = select.prune(groups, 0.5).init(params)
    with pytest.raises(ValueError, match="masks/a/kernel:FILTER"):
        sslx.apply_plan(plan, state)
