"""Orbax checkpoints that are complete or absent, and checked when they are read."""

import functools
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, UInt32

logging.getLogger("absl").setLevel(logging.ERROR)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the text says what is still good."""


@jax.jit
def _digest(tree: PyTree[Array]) -> UInt32[Array, ""]:
    """Sum of all words, each times an odd number that follows from its place, mod 2^32.

    A word is 32 bits of an entry, or all of a smaller one.
    """
    total = start = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        if leaf.dtype != bool:
            bits = min(32, leaf.dtype.itemsize * 8)
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}"))
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            at = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place = place * jnp.uint32(size) + at
        words = leaf.astype(jnp.uint32) * (2 * (start + place) + 1)
        total, start = total + jnp.sum(words), start + jnp.uint32(leaf.size)
    return total


@jax.jit
def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether no leaf holds a NaN or an infinity."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))


class Checkpoints:
    """The last two checkpoints of one training stage, written in the background."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = pathlib.Path(folder).absolute()
        # Now, and not by orbax while others may already read or write.
        for cut in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(cut)
        import orbax.checkpoint as ocp

        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: PyTree[Array], note: str = "", position: Any = None
    ) -> None:
        """Start writing `state` as checkpoint `step`.

        Args:
            step: its name.
            state: arrays.
            note: what `restore` gives back with them.
            position: a Grain iterator whose state is kept beside, if any.

        Raises:
            CheckpointError: this or the previous write failed (a full disk, say).
        """
        import orbax.checkpoint as ocp

        if step == self.latest():
            return
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(_storable(state)),
            "check": ocp.args.JsonSave({"digest": int(_digest(state)), "note": note}),
        }
        if position is not None:
            items["position"] = _grain().CheckpointSave(position)
        args = ocp.args.Composite(**items)
        try:
            self._manager.save(step, args=args)
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            CheckpointError: a write failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def restore(
        self, like: PyTree[Array], position: Any = None
    ) -> tuple[PyTree[Array], str]:
        """The newest checkpoint, shaped, typed and sharded as `like`; and its note.

        Args:
            like: a state as it was saved.
            position: a Grain iterator to bring to where it was, if any.

        Raises:
            CheckpointError: it is damaged, or of other shapes.
        """
        import orbax.checkpoint as ocp

        step = self.latest()
        place = self.folder / str(step)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(shapes),
            "check": ocp.args.JsonRestore(),
        }
        if position is not None:
            items["position"] = _grain().CheckpointRestore(position)
        args = ocp.args.Composite(**items)
        try:
            restored: Any = self._manager.restore(step, args=args)
            state = jax.tree.map(
                lambda got, old: got if old.size else old, restored["state"], like
            )
            digest = int(_digest(state))
            expected, note = (restored["check"][key] for key in ("digest", "note"))
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(self._damaged(place, reason[0])) from error
        if digest != expected:
            reason = f"digest {digest}, expected {expected}"
            raise CheckpointError(self._damaged(place, reason))
        return state, note

    def close(self) -> None:
        """Finish the background work."""
        self._manager.close()

    def _damaged(self, place: pathlib.Path, reason: str) -> str:
        older = [s for s in self._manager.all_steps() if str(s) != place.name]
        rest = f"step {max(older)}" if older else "the start of this stage"
        return (
            f"checkpoint {place} is damaged or of another run ({reason}); "
            f"delete that folder to continue from {rest}"
        )

    def _write_error(self, error: Exception) -> CheckpointError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        last = self.latest()
        good = f"the one of step {last} is complete" if last is not None else "none yet"
        return CheckpointError(
            f"cannot write a checkpoint to {self.folder} ({reason}): free some space "
            f"and run the same command again; last good checkpoint: {good}"
        )


def _grain() -> Any:
    """Grain's checkpoint arguments; only streams need that package."""
    import grain

    return grain.checkpoint


def _storable(state: PyTree[Array]) -> PyTree[Array]:
    """One zero in the place of every empty array (of a removed layer): orbax's rule."""
    return jax.tree.map(lambda x: x if x.size else jnp.zeros(1, x.dtype), state)
