"""Scores of held-out cells during training."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxmetric.batches.batches import batches, capacity, reader, rows_in_order
from jaxmetric.cells.cells import Cells
from jaxmetric.config import Config
from jaxmetric.labels.label_set import LabelSet
from jaxmetric.metric.silhouette import ontology_silhouette
from jaxmetric.sharding import by_cell, own_share, put_batch, replicated
from jaxmetric.training.feed import PROGRAMS
from jaxmetric.training.numbers import numbers_of, structure_of
from jaxmetric.training.step import EvalInfo, empty_triplet_loss, eval_step, hard_fraction


def validator(
    held_out: Cells, relations: LabelSet, config: Config, mesh: Mesh
) -> Callable[[dict], dict[str, float]]:
    """A function of the networks' variables that scores the held-out cells, each once.

    Triplets are mined within batches of a fixed random order, whatever the studies. Reconstruction
    and silhouette width (cosine, ontology-aware) are computed over all held-out cells together.
    `val_evaluation_metric` is (1 - silhouette) / 2 + nmse: lower is better.
    """
    size = -(-min(config.batch_size, len(held_out)) // mesh.size) * mesh.size
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    key, read = jax.random.key(config.seed), reader(held_out)
    rows, own, shares = rows_in_order(order, size), own_share(size, mesh), len(mesh.local_devices)
    fullest = capacity(held_out.lengths, rows, mesh.size)
    margin = numbers_of(config).margin
    score = scoring(structure_of(config), held_out.values == "counts", mesh)

    def validate(variables: dict) -> dict[str, float]:
        packed = (
            put_batch(batch, mesh)
            for batch in batches(held_out, rows[:, own], read, shares, fullest)
        )
        infos = [score(variables, batch, relations, key, margin) for batch in packed]
        return held_out_scores(jax.device_get(infos), held_out, order, relations, config)

    return validate


@functools.lru_cache(PROGRAMS)
def scoring(config: Config, counts: bool, mesh: Mesh) -> Callable:
    """(variables, batch, relations, key, margin) -> `EvalInfo`; compiled for all keys and margins."""

    def score(variables, batch, relations, key, margin):
        asked = {"config": config, "counts": counts, "mesh": mesh, "margin": margin}
        return eval_step(variables, batch, relations, key, **asked)

    everywhere = replicated(mesh)
    return jax.jit(
        score,
        in_shardings=(everywhere, by_cell(mesh), everywhere, everywhere, everywhere),
        out_shardings=everywhere,
    )


def held_out_scores(
    infos: list[EvalInfo],
    held_out: Cells,
    order: Int[np.ndarray, " n"],
    relations: LabelSet,
    config: Config,
) -> dict[str, float]:
    """The scores of all held-out cells from those of their batches, which hold them in this order."""
    z = np.concatenate([info.z for info in infos])[: len(held_out)]
    sums = jax.tree.map(lambda *x: float(np.sum(x, dtype=np.float64)), *[i.sums for i in infos])
    error = sum(float(info.error.sum(dtype=np.float64)) for info in infos)
    power = sum(float(info.power.sum(dtype=np.float64)) for info in infos)
    triplet = empty_triplet_loss(config, config.margin)
    if sums["num_triplets"] > 0:
        triplet = sums["triplet_loss"] / sums["num_triplets"]
    mse = error / (len(held_out) * len(held_out.genes))
    nmse = error / max(power, 1e-12)
    silhouette = ontology_silhouette(
        z,
        held_out.labels[order],
        descendants=relations.descendants,
        divisor=config.silhouette_divisor,
    )
    weight = config.triplet_loss_weight
    return {
        "val_loss": weight * triplet + (1 - weight) * mse,
        "val_triplet_loss": triplet,
        "val_mse": mse,
        "val_nmse": nmse,
        "val_silhouette": silhouette,
        "val_evaluation_metric": (1 - silhouette) / 2 + nmse,
        "val_hard_fraction": float(hard_fraction(sums["num_hard"], sums["num_viable"], config)),
        "val_num_triplets": sums["num_triplets"],
        "val_num_nonzero": sums["num_nonzero"],
    }
