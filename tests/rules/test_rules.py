"""The laws of rules, for every primitive that has one and every form in a table."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslx._compact.analysis.body import BODIES
from sslx._compact.analysis.constants import require_constants
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks, is_region, uniform
from sslx._compact.jaxpr.program import trace
from sslx._compact.rewrite.rewriter import Rewriter
from sslx._compact.rules.conservative import CONSERVATIVE
from sslx._compact.rules.relation import _RULES, FIRST, Link, each
from sslx._jax_compat import CALLS
from tests.rules.cases import CASES, FILES, PRIMITIVES, Form

DTYPES = {
    "f": np.float64,
    "h": jnp.bfloat16,
    "i": np.int8,
    "b": np.bool_,
    "c": np.complex128,
}


def random(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind == "i":
        signs = rng.choice(np.array([-1, 1], np.int8), shape)
        return rng.integers(1, 5, shape, np.int8) * signs
    array = rng.normal(size=shape)
    if kind == "c":
        array = array + 1j * rng.normal(size=shape)
    return np.asarray(array).astype(DTYPES[kind])


def inside(masks: Masks, shape: tuple[int, ...]) -> np.ndarray:
    """The entries in the product of some slices."""
    if not shape:
        return np.asarray(masks[0].all())
    lines = [
        m.reshape([-1 if b == a else 1 for b in range(len(shape))])
        for a, m in enumerate(masks)
    ]
    return np.broadcast_to(functools.reduce(np.logical_and, lines), shape)


def touched(masks: Masks, shape: tuple[int, ...]) -> np.ndarray:
    """The entries in any of some slices."""
    return ~inside([~m for m in masks], shape)


class Operand:
    """A random operand, what is said of it, and other values that fit that."""

    def __init__(self, rng: np.random.Generator, given: Any, kind: str):
        self.rng, self.kind, self.fixed = rng, kind, isinstance(given, np.ndarray)
        self.shape = given.shape if self.fixed else given
        draw = lambda p: [rng.random(n) < p for n in self.shape or (1,)]
        zero = draw(0 if self.fixed else rng.choice([0, 0.3]))
        if not self.shape or any(m.all() for m in zero):
            zero = uniform(self.shape, bool(rng.random() < 0.2 and not self.fixed))
        self.static = bool(rng.random() < 0.4) and not self.fixed
        more = draw(0 if self.fixed else rng.choice([0, 0.3]))
        constant = [z | m for z, m in zip(zero, more, strict=True)]
        if self.static or any(m.all() for m in constant):
            constant = uniform(self.shape, True)
        self.facts = Facts(zero, constant, self.static, self.static)
        self.zero = touched(zero, self.shape)
        self.array = given if self.fixed else self.filled()

    def filled(self) -> np.ndarray:
        array = random(self.rng, self.shape, self.kind)
        return np.where(self.zero, np.zeros((), array.dtype), array)

    def other(self, keep: np.ndarray) -> np.ndarray:
        """Other values where `keep` does not hold; zeros stay."""
        return self.array if self.fixed else np.where(keep, self.array, self.filled())


def restricted(array: Any, masks: Masks) -> Any:
    return array[np.ix_(*masks)] if np.ndim(array) else array


class Trial:
    """One form with random operands, analysed, and what has to be evaluated."""

    def __init__(self, name: str, form: Form, kind: str, seed: int):
        rng = np.random.default_rng(seed)
        self.form, self.label = form, f"{name} {kind} {seed}"
        self.operands = [Operand(rng, given, kind) for given in form.operands]
        arrays = [x.array for x in self.operands]
        self.program, self.treedef, _ = trace(form.fn, *arrays)
        self.live = Liveness(self.program, fold_constants=bool(rng.random() < 0.6))
        self.facts = [x.facts for x in self.operands]
        self.claims = self.live.forward(self.facts)
        self.uniform = [
            [self.live.copies.uniform(v, a) for a in range(len(v.shape))]
            for v in self.program.outputs
        ]
        self.wanted = self._wanted(rng)
        self.live.backward(self.wanted)
        require_constants(self.live, self.wanted)
        moved = [x.other(touched(x.facts.constant, x.shape)) for x in self.operands]
        spared = [
            x.other(self._read(v))
            for x, v in zip(self.operands, self.program.inputs, strict=True)
        ]
        while self.live.prune():
            self.live.forward(self.facts)
            self.live.backward(self.wanted)
            require_constants(self.live, self.wanted)
        self.inputs = (arrays, moved, spared, self._held(rng))

    def _wanted(self, rng: np.random.Generator) -> list[Masks]:
        several = len(self.program.outputs) > 1
        return [
            full(v, False)
            if several and rng.random() < 0.3
            else [rng.random(n) < 0.7 for n in v.shape]
            if v.shape
            else full(v, True)
            for v in self.program.outputs
        ]

    def _read(self, value: Any) -> np.ndarray:
        """The entries of an input that anything reads."""
        live, read = self.live, np.zeros(value.shape, bool)
        for store in (live.need, live.constant_need, live.copied):
            if value in store:
                read = read | inside(store[value], value.shape)
        return read

    def _held(self, rng: np.random.Generator) -> list[np.ndarray]:
        return [
            restricted(x.array, self.live.alive(v))
            for x, v in zip(self.operands, self.program.inputs, strict=True)
        ]

    def constants(self) -> list[Any]:
        """The operands, right only where constants are read."""
        rows = []
        for x, value in zip(self.operands, self.program.inputs, strict=True):
            need = self.live.constant_need.get(value)
            junk = x.other(np.zeros(x.shape, bool))
            rows.append(
                None if need is None else np.where(inside(need, x.shape), x.array, junk)
            )
        return rows

    def dense(self, arrays) -> list[Any]:
        return jax.tree.leaves(self.form.fn(*arrays))

    def reduced(self, held) -> list[Any]:
        alive = [self.live.alive(v) for v in self.program.inputs]
        rows = zip(held, alive, strict=True)
        pairs = [(x, m) if is_region(m) else None for x, m in rows]
        return Rewriter(self.live, self.constants()).run(pairs, self.wanted)

    def check(self, dense, moved, spared, small) -> None:
        for o, claim in enumerate(self.claims):
            shape, label = dense[o].shape, f"{self.label}, output {o}"
            zero = touched(claim.zero, shape)
            assert not np.any(dense[o][zero]), f"{label}: claimed zero"
            constant = touched(claim.constant, shape)
            same(moved[o][constant], dense[o][constant], f"{label}: claimed constant")
            for axis, masks in enumerate(self.uniform[o]):
                rows = np.compress(masks, dense[o], axis)
                same(rows, rows[(slice(None),) * axis + (slice(1),)], f"{label}: equal")
            want = restricted(dense[o], self.wanted[o])
            assert small[o].shape == want.shape, f"{label}: shape"
            assert small[o].dtype == want.dtype, f"{label}: dtype"
            if not is_region(self.wanted[o]):
                continue
            same(restricted(spared[o], self.wanted[o]), want, f"{label}: not needed")
            same(small[o], want, f"{label}: reduced")


def same(got: Any, want: Any, label: str) -> None:
    exact = want.dtype in (np.float64, np.complex128)
    if want.dtype == jnp.bfloat16:
        got, want = got.astype(np.float32), want.astype(np.float32)
    scale = np.abs(want[np.isfinite(want)]).max(initial=0) if want.size else 0
    rtol = 1e-10 if exact else 0.05
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            got, np.broadcast_to(want, got.shape), rtol, rtol * scale, err_msg=label
        )


def check(trials: list[Trial]) -> None:
    """All in two compilations."""

    def compiled(method: str, rows: list[Any]) -> Any:
        run = lambda rows: [
            getattr(t, method)(r) for t, r in zip(trials, rows, strict=True)
        ]
        return jax.jit(run).lower(rows).compile()

    arrays, moved, spared, held = zip(*(t.inputs for t in trials), strict=True)
    dense = compiled("dense", list(arrays))
    outs = [dense(list(rows)) for rows in (arrays, moved, spared)]
    outs.append(compiled("reduced", list(held))(list(held)))
    for trial, *rows in zip(trials, *jax.tree.map(np.asarray, outs), strict=True):
        trial.check(*rows)


def trials_of(name: str) -> list[Trial]:
    return [
        Trial(name, form, kind, 10 * k + n)
        for k, form in enumerate(CASES[name])
        for n, kind in enumerate(form.kinds)
    ]


def test_cases_lie_in_the_file_of_their_rules() -> None:
    homes = {name: rule.__module__.rpartition(".")[2] for name, rule in _RULES.items()}
    assert {n: f for f, cases in FILES.items() for n in cases if homes[n] != f} == {}


@pytest.mark.parametrize("name", sorted(_RULES))
def test_a_rule_says_only_what_holds(name: str, x64) -> None:
    if name not in PRIMITIVES:
        pytest.skip("newer than this JAX")
    assert CASES.get(name), (
        f"{name} has a rule and no case: add it to tests/rules/cases"
    )
    trials = trials_of(name)
    made = {eqn.name for t in trials for eqn in t.program.equations}
    assert name in made, f"no case of {name} makes such an equation: {made}"
    check(trials)


WRONG: dict[str, dict[str, Any]] = {
    "exp": {"zero": FIRST},
    "clamp": {"zero": each(3)},
    "reduce_prod": {"zero": FIRST},
    "gather": {"zero": FIRST, "refine": None},
    "pad": {"zero": FIRST, "refine": None},
    "optimization_barrier": {"zero": FIRST, "sources": None},
    "cumsum": {"links": (Link(0, 0, 0, 0), Link(0, 1, 0, 1))},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found(name: str, x64, monkeypatch) -> None:
    right = _RULES[name]
    wrong = lambda eqn: dataclasses.replace(right(eqn), **WRONG[name])
    monkeypatch.setitem(_RULES, name, wrong)
    with pytest.raises(AssertionError, match=f"{name} ."):
        check(trials_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.parametrize("name", sorted(CASES.keys() & PRIMITIVES.keys()))
def test_a_rule_says_only_what_holds_at_random(name: str, seed: int, x64) -> None:
    check([Trial(name, form, form.kinds[0], seed) for form in CASES[name]])


NEWER = {"log2", "one_minus_square", "polynomial"}
"""Primitives that the oldest supported JAX does not have."""


def test_every_primitive_has_a_word() -> None:
    known = {*_RULES, *BODIES, *CALLS, *CONSERVATIVE}
    unknown = sorted(PRIMITIVES.keys() - known)
    assert not unknown, (
        f"JAX {jax.__version__} can emit {unknown}, of which nothing is said: "
        "give each a rule, or a reason in sslx/_compact/rules/conservative.py"
    )


def test_nothing_is_registered_that_jax_cannot_emit() -> None:
    assert _RULES.keys() - PRIMITIVES.keys() <= NEWER
    assert not _RULES.keys() & CONSERVATIVE.keys()
    assert not CASES.keys() - _RULES.keys()
