"""The checkpoints of a run, written by Orbax in the background. No pickle."""

import contextlib
import json
import logging
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxmetric.errors import CheckpointWriteError
from jaxmetric.sharding import is_first_process, wait_for_all

log = logging.getLogger("jaxmetric")
KEPT = 2  # newest checkpoints that a run keeps


class Checkpoints:
    """The checkpoints of a run, by step: saved in the background, the newest whole one restored.

    Each holds a tree of arrays and a JSON record. Fingerprints of both are saved with them, so that
    damage is seen.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(KEPT), cleanup_tmp_directories=True
        )
        self.directory = directory
        with self._named_errors():
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, arrays, step: int, record: dict) -> None:
        """Starts to save what there is after a step; nothing where that step is saved already."""
        if step == self.newest:
            return
        marks = {"arrays": int(_fingerprint_of_arrays(arrays)), "record": _fingerprint_of(record)}
        with self._named_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    record=ocp.args.JsonSave({"record": record, "fingerprints": marks}),
                ),
            )

    def restore(self, like) -> tuple[Any, dict] | None:
        """The newest whole arrays, laid out like the given ones, and their record; None: there are none.

        Damaged checkpoints that are newer are named and moved to `damaged/`, beside the directory.

        Raises:
          ValueError: when there are checkpoints, and none can be restored; they are left where they are.
        """
        target, failed = jax.tree.map(ocp.utils.to_shape_dtype_struct, like), {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, target)
            except Exception as error:  # whatever orbax and tensorstore raise for damaged files
                failed[step] = " ".join(str(error).split())[:300]
                continue
            for bad, why in failed.items():
                self._set_aside(bad, why)
            with self._named_errors():
                for old in sorted(self._manager.all_steps())[:-KEPT]:  # killed while it made room
                    self._manager.delete(old)
            return found
        if failed:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be restored ({failed}): restore them "
                "from a copy, or choose another directory to start anew."
            )
        return None

    def _restore(self, step: int, target) -> tuple[Any, dict]:
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        record = found.record["record"]
        marks = {
            "arrays": int(_fingerprint_of_arrays(found.arrays)),
            "record": _fingerprint_of(record),
        }
        if marks != found.record["fingerprints"]:
            raise ValueError("its content is not what was saved")
        return found.arrays, record

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._named_errors():
            self._manager.wait_until_finished()
        self._manager.close()

    def _set_aside(self, step: int, why: str) -> None:
        damaged = self.directory.parent / "damaged" / f"{step}-{time.time_ns()}"
        log.warning(
            "%s is damaged and was moved to %s; going on from the one before: %s",
            self.directory / str(step),
            damaged,
            why,
        )
        if is_first_process():
            damaged.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(damaged)
        wait_for_all(f"checkpoint {step} set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of another process that is gone
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointWriteError(
                f"no checkpoint can be written to {self.directory} ("
                f"{' '.join(str(error).split())[:300]}). The checkpoints already there are whole: make "
                "room or make it writable, and give the same command again to go on from the newest."
            ) from error


@jax.jit
def _fingerprint_of_arrays(arrays) -> jax.Array:
    """32 bits that any flipped bit changes: the words, each times an odd number, summed."""

    def of_leaf(leaf):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        place = jnp.arange(words.size, dtype=jnp.uint32)
        return (words * (place * jnp.uint32(0x9E3779B2) + jnp.uint32(1))).sum(dtype=jnp.uint32)

    return of_leaf(jnp.stack([of_leaf(leaf) for leaf in jax.tree.leaves(arrays)]))


def _fingerprint_of(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
