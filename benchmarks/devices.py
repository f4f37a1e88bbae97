"""Does the number of devices change the result, and how much memory does each need?

    python benchmarks/devices.py                 # 8 made-up devices on this host
    python benchmarks/devices.py --batch 4096

20 steps with dropout, batch normalisation and mining over the whole batch. Each step on 2, 4 and 8
devices starts from the state that the one device had before it: the largest relative difference of a
loss, and of the number of triplets mined, which near ties change. Beside it, the same 20 steps run
freely: rounding differs by 1e-7, and Adam, which divides a gradient by its own size, multiplies what
differs in the smallest ones at each step. Last, the temporary memory per device of the mining with its
loss, as the compiled program states it.
"""

import argparse
import datetime
import functools
import os

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxmetric as jm
from jaxmetric.batches.batches import Batch
from jaxmetric.config import PUBLISHED
from jaxmetric.labels.label_set import label_set
from jaxmetric.sharding import by_cell, cell_mesh, replicated
from jaxmetric.training.step import init_state, train_step

GENES, LABELS = 2000, 20


def batch_of(n: int, seed: int, shares: int) -> Batch:
    """Cells of 20 types that differ in their genes, of 5 studies that differ in depth."""
    profiles = np.random.default_rng(0).gamma(0.4, 1.0, (LABELS, GENES)) + 0.05
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, LABELS, n).astype(np.int32)
    studies = generator.integers(0, 5, n).astype(np.int32)
    rate = (
        profiles[labels] / profiles[labels].sum(1, keepdims=True) * (1000 * (1 + studies[:, None]))
    )
    columns = np.broadcast_to(np.arange(GENES, dtype=np.uint16), rate.shape).reshape(shares, -1)
    values = generator.poisson(rate).astype(np.uint16)
    lengths, totals = np.full(n, GENES, np.int32), values.sum(1, dtype=np.float32)
    flat = values.reshape(shares, -1)
    return Batch(columns, flat, lengths, totals, labels, studies, np.ones(n, bool))


def twenty_steps(config: jm.Config, mesh: Mesh, states: list | None = None):
    """Metrics of 20 steps, each from the given state before it, or free; and the states before them."""
    everywhere = replicated(mesh)
    step = jax.jit(
        functools.partial(train_step, config=config, counts=True, mesh=mesh),
        in_shardings=(everywhere, by_cell(mesh), everywhere),
        out_shardings=everywhere,
    )
    state = jax.jit(functools.partial(init_state, config, GENES), out_shardings=everywhere)()
    relations = jax.device_put(label_set([str(i) for i in range(LABELS)], None), everywhere)
    infos, before = [], []
    for i in range(20):
        batch = jax.device_put(batch_of(config.batch_size, i, mesh.size), by_cell(mesh))
        if states is not None:
            state = jax.device_put(states[i], everywhere)
        before.append(jax.device_get(state))
        state, info = step(state, batch, relations)
        infos.append(jax.device_get(info))
    return {name: np.array([info[name] for info in infos]) for name in infos[0]}, before


def pair_bytes(n: int, mesh: Mesh) -> int:
    """Temporary memory per device of the mining and the gradient of its loss."""

    def loss(z, key, labels):
        triplets = jm.mine_triplets(
            key, jax.lax.stop_gradient(z), labels, both_orders=True, mesh=mesh
        )
        return jm.triplet_loss(z, triplets, metric="sqeuclidean")

    place = by_cell(mesh), replicated(mesh), by_cell(mesh)
    shapes = jax.ShapeDtypeStruct((n, 128), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    compiled = (
        jax.jit(jax.grad(loss), in_shardings=place, out_shardings=place[0])
        .lower(shapes[0], jax.random.key(0), shapes[1])
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    n = parser.parse_args().batch
    config = jm.Config(**PUBLISHED | {"hidden_dim": (256, 256)}, batch_size=n)
    print(
        f"{datetime.date.today()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, {n} cells"
    )
    print("         each step from the same state  free run")
    print("devices  loss     mse      triplets  loss     mse      triplets  MB per device")

    def difference(found, one, name) -> float:
        return float(np.abs(found[name] / one[name] - 1).max())

    one, states = twenty_steps(config, cell_mesh(jax.devices()[:1]))
    for count in (1, 2, 4, 8):
        mesh = cell_mesh(jax.devices()[:count])
        forced, free = twenty_steps(config, mesh, states)[0], twenty_steps(config, mesh)[0]
        names = ("loss", "mse", "num_triplets")
        row = [difference(found, one, name) for found in (forced, free) for name in names]
        print(
            f"{count:<8} {row[0]:<8.0e} {row[1]:<8.0e} {row[2]:<9.0e} {row[3]:<8.0e} {row[4]:<8.0e} "
            f"{row[5]:<9.0e} {pair_bytes(n, mesh) / 1e6:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
