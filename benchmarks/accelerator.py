"""Is jaxmetric right on this accelerator, and how fast?

    python benchmarks/accelerator.py               # at most 8 minutes on one GPU or TPU
    python benchmarks/accelerator.py --small       # small sizes, a minute or two on a CPU
    python benchmarks/accelerator.py --only step schedule

Each section runs in a process of its own, one after the other, so that its peak of memory is its own and
a failure costs no other section. Prints one table and writes it with all numbers to accelerator.md and
accelerator.json in the folder --out. Sections:

  ceilings   what the device copies and multiplies, measured: the floors below are made of these
  right      mining equals loops; a training step equals the CPU's
  bits       the same run twice, with and without deterministic kernels
  mining     1000 to 65,536 cells with 20 and 200 labels
  chunks     mining with other numbers of comparisons at a time
  step       a step of the published sizes beside its floor; the same networks in PyTorch
  schedule   training by `fit`, input included, and the published 50,000 steps extrapolated
  scores     silhouette of 1,000,000 cells, neighbours of 100,000 cells among 1,000,000
  embedding  a file of 20,000 cells

Exits with 1 when a section fails or a check of `right` or `bits` does not hold. Runs from a copied source
tree with jax 0.10 to 0.12: put the tree on PYTHONPATH.
"""

# pyright: reportMissingImports=false

import argparse
import contextlib
import datetime
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BUDGET = 480  # seconds, for all sections
GENES, VALUES, BATCH = 28231, 2800, 1000  # SCimilarity's genes and batch; values of a cell
PRECISIONS = ("tensorfloat32", "bfloat16", "float32")
TOLERANCE = {"float32": 1e-4, "tensorfloat32": 5e-3, "bfloat16": 3e-2}  # relative, of a first step
PUBLISHED_STEPS = 50_000

Row = dict[str, Any]


def row(what: str, measured: str, floor: str = "", note: str = "", **numbers) -> Row:
    """One line of the table, and its numbers for the JSON."""
    numbers = {name: x.item() if hasattr(x, "item") else x for name, x in numbers.items()}
    return {"what": what, "measured": measured, "floor": floor, "note": note} | numbers


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def peak_bytes() -> int | None:
    """The most memory of the device that this process has had; None where the device does not tell."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def peak() -> str:
    used = peak_bytes()
    return "" if used is None else f"peak {used / 1e9:.2f} GB"


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of a call, to the end of its work on the device, after one that compiles."""
    import jax

    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@contextlib.contextmanager
def precision(name: str) -> Iterator[dict[str, str]]:
    """How networks multiply: JAX's precision is set, and what `Config` needs beside it is given."""
    import jax

    with jax.default_matmul_precision("highest" if name == "float32" else "tensorfloat32"):
        yield {"compute_dtype": "bfloat16" if name == "bfloat16" else "float32"}


def rates(small: bool) -> dict[str, float]:
    """Bytes per second of a copy, and operations per second of a large product in each precision."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2 ** (22 if small else 29), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    found = {"copy": 2 * x.nbytes / seconds(lambda: add(x))}
    del x
    n = 512 if small else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n)) for i in range(2))
    for name in PRECISIONS:
        kind = jnp.bfloat16 if name == "bfloat16" else jnp.float32
        x, y = a.astype(kind), b.astype(kind)
        with precision(name):
            product = jax.jit(lambda x, y: x @ y)
            found[name] = 2 * n**3 / seconds(lambda x=x, y=y, product=product: product(x, y))
    return found


def ceilings(small: bool) -> Iterator[Row]:
    found = rates(small)
    yield row("copy", f"{found['copy'] / 1e9:.0f} GB/s", **found)
    for name in PRECISIONS:
        yield row(f"product, {name}", f"{found[name] / 1e12:.3g} TFLOP/s")


def points(n: int, num_labels: int, num_studies: int = 10, latent: int = 128):
    """Embeddings of unit length around the point of their label, and labels and studies."""
    import jax.numpy as jnp

    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_labels, n)
    centers = generator.normal(size=(num_labels, latent))
    z = centers[labels] + generator.normal(size=(n, latent))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(labels), jnp.asarray(generator.integers(0, num_studies, n))


def mined_as_loops_do(selection: str, both_orders: bool) -> tuple[bool, int]:
    """Whether every pair's negative is one that the rule allows by loops over cells; and how many."""
    import jax

    import jaxmetric as jm

    n, margin = 300, 0.2
    z, labels, studies = points(n, 6, 4)
    mine = jax.jit(
        lambda key, z: jm.mine_triplets(
            key,
            z,
            labels,
            studies=studies,
            margin=margin,
            selection=selection,
            both_orders=both_orders,
        )
    )
    found = mine(jax.random.key(0), z)
    D = np.asarray(jax.jit(jm.pairwise_distances)(z, z), np.float64)
    exact = np.square(np.asarray(z, np.float64)[:, None] - np.asarray(z, np.float64)[None]).sum(-1)
    labels, studies, negative = (np.asarray(x) for x in (labels, studies, found.negative))
    holds, number, rounding = bool(np.abs(D - exact).max() < 1e-5), 0, 1e-5
    for a in range(n):
        for p in range(n):
            pair = labels[a] == labels[p] and studies[a] != studies[p] and (both_orders or a < p)
            gap = np.where(labels != labels[a], D[a, p] - D[a] + margin, -np.inf)
            upper = margin if selection == "semihard" else np.inf
            surely = pair & (gap > rounding) & (gap < upper - rounding)
            maybe = pair & (gap > -rounding) & (gap < upper + rounding)
            chosen = negative[a, p]
            number += chosen >= 0
            if chosen < 0:
                holds &= not surely.any()
            elif selection == "hardest":
                holds &= bool(maybe[chosen]) and gap[chosen] >= gap.max() - rounding
            else:
                holds &= bool(maybe[chosen])
    return holds, int(number)


def one_step(small: bool, name: str, device) -> dict[str, float]:
    """What the first step says of itself, on a device."""
    import jax
    from step import synthetic_batch

    import jaxmetric as jm
    from jaxmetric.labels.label_set import label_set
    from jaxmetric.training.step import init_state, train_step

    with precision(name) as how, jax.default_device(device):
        config = jm.Config.scimilarity(**how, **({"hidden_dim": (64, 64)} if small else {}))
        genes, cells = (500, 100) if small else (GENES, BATCH)
        relations = label_set([str(i) for i in range(100)], None)
        batch = jax.device_put(synthetic_batch(genes, cells, 20), device)
        state = jax.jit(lambda: init_state(config, genes))()
        step = jax.jit(lambda *x: train_step(*x, config=config, counts=True))
        return {name: float(value) for name, value in step(state, batch, relations)[1].items()}


def right(small: bool) -> Iterator[Row]:
    import jax

    for selection in ("semihard", "hardest", "random"):
        for both_orders in (False, True):
            holds, number = mined_as_loops_do(selection, both_orders)
            orders = "both orders" if both_orders else "one order"
            what = f"mining by loops, {selection}, {orders}, {number} triplets"
            yield row(what, "equal" if holds else "DIFFERENT", holds=holds)
    expected = one_step(small, "float32", jax.devices("cpu")[0])
    for name in PRECISIONS[:2] if small else PRECISIONS:
        found = one_step(small, name, jax.devices()[0])
        off = {
            key: abs(found[key] - expected[key]) / abs(expected[key])
            for key in ("mse", "triplet_loss", "gradient_norm", "num_triplets")
        }
        holds = max(off.values()) <= TOLERANCE[name]
        said = ", ".join(f"{key} {value:.1e}" for key, value in off.items())
        limit = f"at most {TOLERANCE[name]:.0e}"
        what = f"a first step beside the CPU's in float32, {name}: relative differences"
        yield row(what, said, limit, "" if holds else "TOO LARGE", holds=holds, **off)


def run_of_steps(small: bool) -> dict:
    """Losses of 20 steps, and a digest of each array of the networks after them."""
    import jax
    from step import synthetic_batch

    import jaxmetric as jm
    from jaxmetric.labels.label_set import label_set
    from jaxmetric.training.step import init_state, train_step

    sizes = {"hidden_dim": (64, 64)} if small else {}
    config = jm.Config.scimilarity(**sizes, max_epochs=1, steps_per_epoch=20)
    genes, cells = (500, 100) if small else (GENES, BATCH)
    batch = synthetic_batch(genes, cells, 20)
    relations = label_set([str(i) for i in range(100)], None)
    step = jax.jit(lambda *x: train_step(*x, config=config, counts=True), donate_argnums=0)
    state, losses = jax.jit(lambda: init_state(config, genes))(), []
    start = 0.0
    for i in range(20):
        state, info = step(state, batch, relations)
        losses.append(float(info["loss"]))
        start = time.perf_counter() if i == 9 else start
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.variables))
    digests = {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in leaves
    }
    return {
        "losses": losses,
        "digests": digests,
        "seconds": (time.perf_counter() - start) / 10,
    }


def bits(small: bool) -> Iterator[Row]:
    """Runs of their own processes, since XLA reads its flags once."""
    flags = "--xla_gpu_deterministic_ops=true", ""
    for flag in flags[1:] if small else flags:
        pair = []
        for _ in range(2):
            given = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
            environment = os.environ | {"XLA_FLAGS": given}
            pair.append(json.loads(child("--steps", small, environment, timeout=120)))
        one, other = pair
        same = one == other | {"seconds": one["seconds"]}
        apart = [name for name in one["digests"] if one["digests"][name] != other["digests"][name]]
        loss = max(abs(a - b) / abs(a) for a, b in zip(one["losses"], other["losses"], strict=True))
        said = "the same bits" if same else f"{len(apart)} of {len(one['digests'])} arrays differ"
        note = f"losses within {loss:.1e}; {ms(min(x['seconds'] for x in pair))} a step"
        holds = same or not flag
        what = f"20 steps twice, {'deterministic' if flag else 'as it comes'}"
        yield row(what, said, "", note, holds=holds, loss=loss, apart=apart)


def compiled_mining(n: int, num_labels: int, both_orders: bool = False):
    """The compiled miner, its arguments, and the pairs that it goes through."""
    import jax

    import jaxmetric as jm

    z, labels, studies = points(n, num_labels)
    function = jax.jit(
        lambda key, z, labels, studies: jm.mine_triplets(
            key, z, labels, studies=studies, both_orders=both_orders
        )
    )
    arguments = jax.random.key(0), z, labels, studies
    sizes = np.zeros((num_labels, 10), np.int64)
    np.add.at(sizes, (np.asarray(labels), np.asarray(studies)), 1)
    pairs = int((sizes.sum(1) ** 2 - (sizes**2).sum(1)).sum()) // (1 if both_orders else 2)
    return function.lower(*arguments).compile(), arguments, pairs


def mining(small: bool) -> Iterator[Row]:
    import jax

    copy = rates(True)["copy"] if small else rates(False)["copy"]
    for n in (200, 500) if small else (1000, 4096, 16384, 65536):
        for num_labels in (200, 20):
            mine, arguments, pairs = compiled_mining(n, num_labels)
            jax.block_until_ready(mine(*arguments)) if n < 60000 else None
            taken = (
                seconds(lambda m=mine, a=arguments: m(*a), 5)
                if n < 60000
                else once(mine, arguments)
            )
            floor = 4 * (pairs * n + 2 * n * n) / copy
            memory = mine.memory_analysis()
            used = memory.temp_size_in_bytes + memory.output_size_in_bytes
            yield row(
                f"mining {n} cells, {num_labels} labels, {pairs} pairs",
                ms(taken),
                ms(floor),
                f"{used / 1e9:.2f} GB",
                seconds=taken,
                floor_seconds=floor,
                bytes=used,
            )
            del mine, arguments


def once(function: Callable, arguments: tuple) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def chunks(small: bool) -> Iterator[Row]:
    from jaxmetric.metric import mining as miner

    for n in (200,) if small else (1000, 16384):
        for num_labels in (200, 20):
            said = []
            for exponent in (12, 14) if small else (20, 22, 24, 26, 28):
                miner.COMPARISONS = miner.ON_ACCELERATOR = 2**exponent
                mine, arguments, _ = compiled_mining(n, num_labels, both_orders=True)
                said.append((exponent, seconds(lambda m=mine, a=arguments: m(*a), 3)))
            times = ", ".join(f"2^{exponent} {ms(taken)}" for exponent, taken in said)
            yield row(f"comparisons at a time, {n} cells, {num_labels} labels", times)


def step(small: bool) -> Iterator[Row]:
    """The state is donated from step to step; 20 steps are dispatched before their end is waited for."""
    import jax
    from step import operations, synthetic_batch

    import jaxmetric as jm
    from jaxmetric.labels.label_set import label_set
    from jaxmetric.sharding import step_options
    from jaxmetric.training.step import init_state, train_step

    found, steps = rates(small), 5 if small else 30
    genes, cells = (500, 100) if small else (GENES, BATCH)
    relations = label_set([str(i) for i in range(100)], None)
    batch = jax.device_put(synthetic_batch(genes, cells))
    mine, arguments, _ = compiled_mining(cells, 100)
    mining_seconds = seconds(lambda: mine(*arguments))
    for name in PRECISIONS[:2] if small else PRECISIONS:
        with precision(name) as how:
            sizes = {"hidden_dim": (64, 64)} if small else {}
            config = jm.Config.scimilarity(**how, **sizes, batch_size=cells)
            state = jax.jit(lambda config=config: init_state(config, genes))()
            weights = sum(x.size for x in jax.tree.leaves(state.params))
            jitted = jax.jit(
                lambda *x, config=config: train_step(*x, config=config, counts=True),
                donate_argnums=0,
                compiler_options=step_options(),
            )
            start = time.perf_counter()
            compiled = jitted.lower(state, batch, relations).compile()
            compiling = time.perf_counter() - start
            for _ in range(3):
                state, info = compiled(state, batch, relations)
            jax.block_until_ready((state, info))
            start = time.perf_counter()
            for _ in range(steps):
                state, info = compiled(state, batch, relations)
            jax.block_until_ready((state, info))
            taken = (time.perf_counter() - start) / steps
            products = operations(genes, config) / found[name]
            # AdamW reads parameter, gradient and two moments and writes three of them; the dense batch
            # and its reconstruction are written, read forwards and read backwards
            moved = 4 * (7 * weights + 6 * genes * cells) / found["copy"]
            memory = compiled.memory_analysis()
            used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        yield row(
            f"step, {genes} genes x {cells} cells, {name}",
            ms(taken),
            f"{ms(products)} products + {ms(moved)} bytes",
            f"{taken / (products + moved):.2f} times the floor, mining alone {ms(mining_seconds)}, "
            f"{used / 1e9:.2f} GB, {cells / taken:.0f} cells/s, compiled in {compiling:.1f} s",
            seconds=taken,
            products=products,
            moved=moved,
            mining=mining_seconds,
        )
        del state, compiled


def in_torch(small: bool) -> Iterator[Row]:
    """The same networks, reconstruction loss and AdamW in PyTorch; no mining, no normalising."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    genes, cells = (500, 100) if small else (GENES, BATCH)
    hidden = (64, 64) if small else (1024, 1024, 1024)

    def layers(sizes, dropout):
        for i, o in itertools.pairwise(sizes):
            yield from (nn.Dropout(dropout), nn.Linear(i, o), nn.BatchNorm1d(o), nn.PReLU())

    for name in ("float32", "tensorfloat32", "bfloat16"):
        torch.backends.cuda.matmul.allow_tf32 = name != "float32"
        encoder = nn.Sequential(*layers((genes, *hidden), 0.5), nn.Linear(hidden[-1], 128))
        decoder = nn.Sequential(*layers((128, *hidden[::-1]), 0.5), nn.Linear(hidden[0], genes))
        networks = nn.Sequential(encoder, decoder).to(device)
        adamw = torch.optim.AdamW(networks.parameters(), 5e-3, fused=True)
        x = torch.rand(cells, genes, device=device)

        def one(x=x, networks=networks, adamw=adamw, encoder=encoder, decoder=decoder, name=name):
            adamw.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16"):
                z = nn.functional.normalize(encoder(x), dim=1)
                loss = nn.functional.mse_loss(decoder(z).float(), x)
            loss.backward()
            adamw.step()

        def wait():
            torch.cuda.synchronize() if device == "cuda" else None

        steps = 3 if small else 30
        for _ in range(3):
            one()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            one()
        wait()
        taken = (time.perf_counter() - start) / steps
        note = f"without mining; torch {torch.__version__}"
        yield row(f"PyTorch's step, {name}", ms(taken), "", note, seconds=taken)


def synthetic_counts(num_cells: int, genes: int, values: int):
    """Counts of so many cells, sparse, about as many values of each as said."""
    import scipy.sparse as sp

    generator = np.random.default_rng(0)
    columns = np.cumsum(
        generator.integers(1, 2 * genes // values, (num_cells, values), dtype=np.int32),
        axis=1,
        dtype=np.int32,
    )
    kept = columns < genes
    indptr = np.append(0, np.cumsum(kept.sum(1)))
    data = generator.integers(1, 6, int(indptr[-1]), dtype=np.int8).astype(np.float32)
    return sp.csr_matrix((data, columns[kept], indptr), (num_cells, genes))


def synthetic_cells(num_cells: int, genes: int, values: int):
    from jaxmetric.cells.cells import Cells

    generator = np.random.default_rng(1)
    labels, studies = (generator.integers(0, k, num_cells).astype(np.int32) for k in (100, 20))
    return Cells(
        synthetic_counts(num_cells, genes, values),
        "counts",
        tuple(f"gene {i}" for i in range(genes)),
        labels,
        tuple(f"label {i:03}" for i in range(100)),
        studies,
        tuple(f"study {i:02}" for i in range(20)),
    )


def schedule(small: bool) -> Iterator[Row]:
    """The pace of epochs of 100 steps after the first, from the log of `fit`."""
    import jaxmetric as jm

    said: list[tuple[float, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((time.perf_counter(), record.getMessage()))
    logging.getLogger("jaxmetric").addHandler(handler)
    logging.getLogger("jaxmetric").setLevel(logging.INFO)
    cells = synthetic_cells(*((2000, 500, 50) if small else (20_000, GENES, VALUES)))
    sizes: dict = {"hidden_dim": (64, 64), "batch_size": 100} if small else {}
    epochs, steps = (3, 10) if small else (4, 100)
    ways = ("device", "tensorfloat32"), ("host", "tensorfloat32"), ("device", "bfloat16")
    for data_on, name in ways[:1] if small else ways:
        said.clear()
        with precision(name) as how:
            config = jm.Config.scimilarity(**sizes, **how, max_epochs=epochs, steps_per_epoch=steps)
            start = time.perf_counter()
            jm.fit(cells, config, progress=False, data_on=data_on)  # type: ignore
        ends = [when for when, line in said if line.startswith("epoch ")]
        pace = (ends[-1] - ends[0]) / (len(ends) - 1) / steps
        last = [line for _, line in said if line.startswith("epoch ")][-1]
        yield row(
            f"fit, cells on the {data_on}, {name}: a step, input included",
            ms(pace),
            "",
            f"{config.batch_size / pace:.0f} cells/s; {PUBLISHED_STEPS} steps: "
            f"{PUBLISHED_STEPS * pace / 60:.1f} min; first epoch done after {ends[0] - start:.1f} s; "
            f"{last.split('; ')[-1]}; {peak()}",
            seconds=pace,
        )


def scores(small: bool) -> Iterator[Row]:
    import jaxmetric as jm
    from jaxmetric.metric.neighbors import nearest_neighbors

    n, q = (20_000, 500) if small else (1_000_000, 100_000)
    z, labels, _ = (np.asarray(x) for x in points(n, 200))
    taken = seconds(lambda: jm.ontology_silhouette(z, labels), 1)
    yield row(f"silhouette of {n} cells", ms(taken), "", peak(), seconds=taken)
    taken = seconds(lambda: nearest_neighbors(z[:q], z, 15), 1)
    yield row(f"15 neighbours of {q} among {n} cells", ms(taken), "", peak(), seconds=taken)


def embedding(small: bool) -> Iterator[Row]:
    import anndata
    import jax
    import pandas as pd

    import jaxmetric as jm
    from jaxmetric.training.step import init_state

    num_cells, genes, values = (1000, 500, 50) if small else (20_000, GENES, VALUES)
    X = synthetic_counts(num_cells, genes, values)
    names = [f"gene {i}" for i in range(genes)]
    config = jm.Config.scimilarity(**({"hidden_dim": (64, 64)} if small else {}))
    variables = jax.device_get(jax.jit(lambda: init_state(config, genes))().variables)
    model = jm.MetricLearning(
        config=config,
        genes=tuple(names),
        labels=("a",),
        variables=variables,
        history=pd.DataFrame(),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        anndata.AnnData(X, var=pd.DataFrame(index=names)).write_h5ad(path)
        jm.embed_file(model, path, Path(folder) / "first.h5ad", progress=False)
        start = time.perf_counter()
        jm.embed_file(model, path, Path(folder) / "second.h5ad", progress=False)
        taken = time.perf_counter() - start
    note = f"{num_cells / taken:.0f} cells/s, {peak()}"
    yield row(f"a file of {num_cells} cells embedded", ms(taken), "", note, seconds=taken)


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "ceilings": ceilings,
    "right": right,
    "step": step,
    "torch": in_torch,
    "schedule": schedule,
    "mining": mining,
    "chunks": chunks,
    "scores": scores,
    "embedding": embedding,
    "bits": bits,
}


def child(which: str, small: bool, environment: dict, timeout: float, section: str = "") -> str:
    """The standard output of this script in a process of its own."""
    command = [sys.executable, __file__, which, *([section] if section else [])]
    done = subprocess.run(
        command + ["--small"] * small,
        env=environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, which, done.stdout, done.stderr)
    return done.stdout


def run_section(name: str, small: bool, left: float) -> list[Row]:
    """The rows of a section; one more, that says why, where it failed."""
    start, why = time.perf_counter(), ""
    try:
        said = child("--section", small, dict(os.environ), max(left, 1), name)
    except subprocess.TimeoutExpired as error:
        said, why = error.stdout or b"", f"out of time after {left:.0f} s"
    except subprocess.CalledProcessError as error:
        said, why = error.stdout, error.stderr.strip().splitlines()[-1]
        print(error.stderr, file=sys.stderr)
    said = said.decode() if isinstance(said, bytes) else said
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if why:
        rows.append(row(name, "FAILED", "", why, holds=False))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return [{"section": name} | one for one in rows]


def table(rows: list[Row], head: str) -> str:
    lines = [head, "", "| what | measured | floor | |", "|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['measured']} | {r['floor']} | {r['note']} |" for r in rows]
    return "\n".join(lines) + "\n"


def head() -> str:
    """Day, device and versions."""
    import jax

    device = jax.devices()[0]
    return (
        f"{datetime.date.today()}, {device.device_kind} ({device.platform}) x {jax.device_count()}, "
        f"{os.cpu_count()} CPU cores, jax {jax.__version__}"
    )


def run_all(names: list[str], small: bool, budget: float, out: Path) -> list[Row]:
    """The rows of all sections, which are also written and printed."""
    start, rows, said = time.perf_counter(), [], ""
    first = child("--head", False, dict(os.environ), 120).strip().splitlines()[-1]
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows += run_section(name, small, budget - (time.perf_counter() - start))
        took = f"{time.perf_counter() - start:.0f} s for {', '.join(names)}"
        said = table(rows, f"{first}; {took}")
        (out / "accelerator.md").write_text(said)
        numbers = json.dumps({"head": first, "rows": rows}, indent=1)
        (out / "accelerator.json").write_text(numbers + "\n")
    print(said)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all sections")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the table and JSON")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--head", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.head:
        print(head())
    elif arguments.steps:
        print(json.dumps(run_of_steps(arguments.small)))
    elif arguments.section:
        for one in SECTIONS[arguments.section](arguments.small):
            print(json.dumps(one), flush=True)
    else:
        with tempfile.TemporaryDirectory() as cache:
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)  # sections share programs
            rows = run_all(arguments.only, arguments.small, arguments.budget, arguments.out)
        if not all(one.get("holds", True) for one in rows):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
