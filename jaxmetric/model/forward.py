"""The networks over all cells of a source, batch by batch, on all devices."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import jax
import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxmetric.batches.batches import Batch, batches, capacity, reader, rows_in_order
from jaxmetric.batches.expression import expression
from jaxmetric.batches.prefetch import prefetch
from jaxmetric.batches.stream import batches_of, of_one_kind
from jaxmetric.cells.cells import Cells
from jaxmetric.cells.genes import gene_columns, warn_of_missing
from jaxmetric.cells.packed import move_columns
from jaxmetric.cells.read import read_cells
from jaxmetric.cells.source import opened, paths_in
from jaxmetric.cells.store import about
from jaxmetric.compiled import keep_compiled
from jaxmetric.config import Values
from jaxmetric.networks.autoencoder import Autoencoder
from jaxmetric.shapes import padded_size
from jaxmetric.sharding import cell_mesh, put_batch, replicated

BATCH = 1000  # cells at a time, over all devices


@functools.partial(jax.jit, static_argnames=("network", "counts"))
def embed(network: Autoencoder, variables: dict, batch: Batch, counts: bool):
    """Embedding of each cell."""
    x = expression(batch, network.num_genes, counts)
    return network.apply(variables, x, method="embed")


@functools.partial(jax.jit, static_argnames=("network", "counts"))
def embed_and_reconstruct(network: Autoencoder, variables: dict, batch: Batch, counts: bool):
    """Embedding, squared error and squared expression of each cell, these summed over genes."""
    x = expression(batch, network.num_genes, counts)
    z, y = network.apply(variables, x)
    return z, ((x - y) ** 2).sum(1), (x**2).sum(1)


def over_cells(
    function: Callable, network: Autoencoder, variables: dict, cells: Cells, *, progress: bool
) -> Any:
    """The arrays that `embed` or `embed_and_reconstruct` gives for every cell, in the cells' order."""
    keep_compiled()
    mesh = cell_mesh(jax.local_devices())
    size, counts = _batch_size(len(cells), mesh.size), cells.values == "counts"
    variables = jax.device_put(variables, replicated(mesh))
    rows = rows_in_order(np.arange(len(cells)), size)
    fullest = capacity(cells.lengths, rows, mesh.size)
    ahead = prefetch(batches(cells, rows, reader(cells), mesh.size, fullest))
    bar = tqdm(ahead, "embedding", len(rows), unit="batch", disable=None if progress else True)
    outputs = [
        jax.device_get(function(network, variables, put_batch(batch, mesh), counts))
        for batch in bar
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(cells)], *outputs)


def over_source(
    network: Autoencoder,
    variables: dict,
    genes: Sequence[str],
    source: str | Path | anndata.AnnData | Cells | Sequence,
    *,
    progress: bool,
    **reading: Any,
) -> Float[np.ndarray, "cells latent"]:
    """Embeddings of every cell of the source: a file's are read a block at a time.

    `reading`: `layer`, `values`, `gene_key`, `min_gene_overlap`, as in `MetricLearning.embed`.
    """
    if isinstance(source, str | Path) and about(Path(source)) is None:
        networks = network, variables, genes
        files = paths_in(Path(source))
        blocks = (over_file(*networks, file, progress=progress, **reading) for file in files)
        return np.concatenate([z for blocks_of_file in blocks for z in blocks_of_file])
    cells = read_cells(source, genes=genes, ontology=None, **reading)
    return over_cells(embed, network, variables, cells, progress=progress)


def over_file(
    network: Autoencoder,
    variables: dict,
    genes: Sequence[str],
    source: str | Path,
    *,
    layer: str | None = None,
    values: Values | None = None,
    gene_key: str | None = None,
    min_gene_overlap: float = 0.2,
    start: int = 0,
    progress: bool = False,
) -> Iterator[Float[np.ndarray, "batch latent"]]:
    """Embeddings of a file's cells from number `start` on, a batch at a time, for files of any size.

    Arguments as in `MetricLearning.embed`.
    """
    keep_compiled()
    mesh = cell_mesh(jax.local_devices())
    variables = jax.device_put(variables, replicated(mesh))
    with opened(source, str(source), layer) as cells:
        columns, missing = gene_columns(cells.genes(gene_key), genes, min_gene_overlap, cells.where)
        warn_of_missing(missing, len(genes), cells.name)
        kind, blocks = of_one_kind(cells, values, start)
        aligned = (move_columns(X, columns, len(genes)) for X in blocks)
        ahead = prefetch(batches_of(aligned, _batch_size(len(cells), mesh.size), mesh.size))
        bar = tqdm(
            total=len(cells),
            initial=start,
            desc="embedding",
            unit=" cells",
            disable=None if progress else True,
        )
        with bar, contextlib.closing(blocks), contextlib.closing(ahead):
            for batch, real in ahead:
                z = embed(network, variables, put_batch(batch, mesh), kind == "counts")
                yield np.asarray(z)[:real]
                bar.update(real)


def _batch_size(num_cells: int, num_devices: int) -> int:
    """At most BATCH, but a multiple of the number of devices; few sizes."""
    return -(-min(BATCH, padded_size(num_cells)) // num_devices) * num_devices
