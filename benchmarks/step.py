"""How far is one training step from the floor of its matrix products?

    python benchmarks/step.py            # 28,231 genes, batch 1000, default networks
    python benchmarks/step.py --genes 5000 --batch 500

The floor: 3 products (forward, and two backward) of 2 n i o operations for each linear layer (the
first needs no gradient of its input), over the rate of the first layer's product, in float32,
measured in the same process between the steps. Prints one row, with medians and the ratio.
"""

import argparse
import datetime
import functools
import itertools
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric as jm
from jaxmetric.batches.batches import Batch
from jaxmetric.config import PUBLISHED
from jaxmetric.labels.label_set import label_set
from jaxmetric.training.step import init_state, train_step


def operations(num_genes: int, config: jm.Config) -> float:
    """Floating-point operations of the matrix products of one step."""
    sizes = [num_genes, *config.hidden_dim, config.latent_dim]
    layers = [*itertools.pairwise(sizes)] * 2  # the decoder has the same products
    weights = sum(i * o for i, o in layers)
    return 2 * config.batch_size * (3 * weights - num_genes * config.hidden_dim[0])


def synthetic_batch(num_genes: int, n: int, num_labels: int = 100, density: float = 0.1) -> Batch:
    """Poisson counts in a tenth of the genes, 100 labels, 20 studies."""
    generator = np.random.default_rng(0)
    width = int(num_genes * density)
    columns = np.stack([generator.choice(num_genes, width, replace=False) for _ in range(n)])
    values = generator.poisson(1.0, (n, width)) + 1
    return Batch(
        jnp.asarray(columns.reshape(1, -1), jnp.uint16),
        jnp.asarray(values.reshape(1, -1), jnp.uint8),
        jnp.full(n, width, jnp.int32),
        jnp.asarray(values.sum(1), jnp.float32),
        jnp.asarray(generator.integers(0, num_labels, n), jnp.int32),
        jnp.asarray(generator.integers(0, 20, n), jnp.int32),
        jnp.ones(n, bool),
    )


def seconds(function) -> float:
    """Wall time of a call, to the end of its work on the device."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=28231)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = jm.Config(**PUBLISHED, batch_size=arguments.batch)
    batch = synthetic_batch(arguments.genes, arguments.batch)
    relations = label_set([str(i) for i in range(100)], None)
    state = jax.jit(functools.partial(init_state, config, arguments.genes))()
    step = jax.jit(functools.partial(train_step, config=config, counts=True), donate_argnums=0)
    compile_seconds = seconds(lambda: step.lower(state, batch, relations).compile())
    x = jax.random.normal(jax.random.key(0), (arguments.batch, arguments.genes))
    w = jax.random.normal(jax.random.key(1), (arguments.genes, config.hidden_dim[0]))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, w))
    state, _ = step(state, batch, relations)
    steps, rates = [], []
    for _ in range(arguments.repeats):
        rates.append(2 * x.size * w.shape[1] / seconds(lambda: product(x, w)))
        start = time.perf_counter()
        state, info = step(state, batch, relations)
        jax.block_until_ready((state, info))
        steps.append(time.perf_counter() - start)
    floor = operations(arguments.genes, config) / np.median(rates)
    device = jax.devices()[0]
    print(f"{datetime.date.today()}, {device.device_kind} x {jax.device_count()}, "
          f"{platform.machine()}, jax {jax.__version__}")  # fmt: skip
    print("genes   batch  GFLOP  matmul GFLOP/s  floor s  step s  step/floor  compile s")
    print(
        f"{arguments.genes:<7} {arguments.batch:<6} "
        f"{operations(arguments.genes, config) / 1e9:<6.0f} {np.median(rates) / 1e9:<15.0f} "
        f"{floor:<8.3f} {np.median(steps):<7.3f} {np.median(steps) / floor:<11.2f} "
        f"{compile_seconds:.1f}"
    )


if __name__ == "__main__":
    main()
