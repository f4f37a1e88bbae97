"""The commands of the shell: what each is told, as flags, and what it does.

A command imports what it needs when it runs: `--help` and a refusal need none of it.
"""

import dataclasses
import logging
from pathlib import Path

from tyro.conf import Positional

import jaxmetric as jm
from jaxmetric.cli.flags import Labels, Matrix, ReferenceLabels, ReferenceMatrix, ontology_of, read
from jaxmetric.config import Config, DataOn, Filters
from jaxmetric.files import write_json


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train on 700 real blood cells, score held-out ones, draw pictures: about a minute."""

    directory: Path = Path("jaxmetric_demo")
    """Where to write the run, the embedded cells and the pictures."""

    def __call__(self) -> None:
        from jaxmetric.cli.demo import demo

        demo(self.directory)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Stream files of any size into one training store; the same command again goes on where it was."""

    files: Positional[tuple[Path, ...]]
    """h5ad files, zarr folders, or folders of these."""
    out: Path
    """The store's folder, which must not exist."""
    labels: Labels
    matrix: Matrix
    filters: Filters
    genes: str = "intersection"
    """The store's genes: intersection or union of those of the files, or a file with a name per line."""
    skip_bad: bool = False
    """Leave out files that cannot be used, rather than stop before anything is written."""
    quiet: bool = False
    """No progress bars, warnings only."""

    def __call__(self) -> None:
        from jaxmetric.preparation.report import report_table

        _warnings_only(self.quiet)
        if self.labels.label_key is None:
            raise ValueError("the column of obs with the cell types is needed: --label-key.")
        genes = self.genes
        if genes not in ("intersection", "union"):
            genes = Path(genes).read_text().split()
        report = jm.prepare(
            self.files,
            self.out,
            label_key=self.labels.label_key,
            study_key=self.labels.study_key,
            ontology=ontology_of(self.labels.ontology),
            **dataclasses.asdict(self.matrix),
            genes=genes,
            filters=self.filters,
            skip_bad=self.skip_bad,
            progress=not self.quiet,
        )
        print(report_table(report))
        print(f"store: {self.out}")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model; the same command again goes on with an interrupted run."""

    files: Positional[tuple[Path, ...]]
    """A training store, or h5ad files, zarr folders, or a folder of these."""
    directory: Path
    """The run's directory."""
    labels: Labels
    matrix: Matrix
    config: Config
    validation: tuple[str, ...] = ()
    """Studies to hold out and score after each epoch."""
    init: Path | None = None
    """A model directory to start from, with its genes, its network sizes and, where flags do not say
    otherwise, its hyperparameters; see also --freeze."""
    scimilarity: bool = False
    """SCimilarity's own numerics and hyperparameters where flags do not say otherwise."""
    quiet: bool = False
    """No progress bar, warnings only."""
    log_every: int = 0
    """Also log the loss and the pace every so many steps."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, in the run's directory (extra `tensorboard`)."""
    data_on: DataOn = "host"
    """host: batches are made by the host, ahead; device: all cells live packed on each device."""
    deterministic: bool = False
    """Only deterministic kernels on GPUs, so that the same command gives the same bits; slower."""
    distributed: bool = False
    """Join the processes that the cluster's environment tells of: SLURM, Open MPI, a TPU pod slice."""
    coordinator: str | None = None
    """Address and port of process 0 of a job of several processes, with --processes, --process-id."""
    processes: int | None = None
    """Processes of the job."""
    process_id: int | None = None
    """Which process of the job this is, from 0."""

    def __call__(self) -> None:
        from jaxmetric.sharding import connect, is_first_process, make_repeatable
        from jaxmetric.training.warm_start import check_sizes

        if self.deterministic:
            make_repeatable()
        where = self.coordinator, self.processes, self.process_id
        if self.distributed or where != (None, None, None):
            connect(*where)
        _warnings_only(self.quiet or not is_first_process())
        init = None if self.init is None else jm.load(self.init)
        if init is not None:
            check_sizes(self.config, init)
        cells = read(self.files, self.labels, self.matrix, None if init is None else init.genes)
        jm.fit(
            cells,
            self.config,
            directory=self.directory,
            validation=self.validation,
            init=init,
            progress=not self.quiet,
            log_every=self.log_every,
            tensorboard=self.tensorboard,
            data_on=self.data_on,
        )
        if is_first_process():
            print(f"model: {self.directory / 'model'}")


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed the cells of a file of any size: obsm["X_jaxmetric"] in a copy of it, or in itself."""

    model: Positional[Path]
    """A model directory, or a run's."""
    file: Positional[Path]
    """An h5ad file, a zarr folder or a training store."""
    matrix: Matrix
    out: Path | None = None
    """The copy to write, which must not exist; an .h5ad of a zarr folder has obs and obsm alone."""
    in_place: bool = False
    """Add the embeddings to the file itself, which is replaced once the new one is whole."""
    quiet: bool = False
    """No progress bar, warnings only."""

    def __call__(self) -> None:
        _warnings_only(self.quiet)
        if (self.out is None) != self.in_place:
            raise ValueError("say where the embeddings go: --out FILE, or --in-place.")
        model, how = jm.load(self.model), dataclasses.asdict(self.matrix)
        target = jm.embed_file(model, self.file, self.out, progress=not self.quiet, **how)
        print(f"obsm['X_jaxmetric']: {target}")


@dataclasses.dataclass(frozen=True)
class Annotate:
    """Label the cells of a file of any size by their nearest reference cells: six columns of obs.

    They are jaxmetric_label, jaxmetric_confidence (the label's share of the votes),
    jaxmetric_label_coarse (the term that the votes agree on), jaxmetric_confidence_coarse,
    jaxmetric_distance (to the nearest reference cell) and jaxmetric_out_of_distribution.
    """

    model: Positional[Path]
    """A model directory, or a run's."""
    file: Positional[Path]
    """An h5ad file, or a zarr folder or training store with --out FILE.h5ad."""
    reference: tuple[Path, ...]
    """A training store, h5ad files or zarr folders with the reference cells, best of several studies."""
    labels: Labels
    matrix: Matrix
    reference_matrix: ReferenceMatrix
    out: Path | None = None
    """The copy to write, which must not exist; an .h5ad of a zarr folder has obs alone."""
    in_place: bool = False
    """Add the columns to the file itself, which is replaced once the new one is whole."""
    all_labels: bool = False
    """Use reference cells of every label, not only of those that the model was trained on."""
    k: int = 15
    """Neighbours that vote, each weighted by 1 / distance."""
    quantile: float = 0.95
    """A cell is out of distribution where it is farther from the reference than this share of the
    reference's own cells are from other studies."""
    quiet: bool = False
    """No progress bar, warnings only."""

    def __call__(self) -> None:
        from jaxmetric.model.annotate_file import annotate_file

        _warnings_only(self.quiet)
        if (self.out is None) != self.in_place:
            raise ValueError("say where the annotations go: --out FILE, or --in-place.")
        model = jm.load(self.model)
        matrix = self.reference_matrix.over(self.matrix, self.reference)
        reference = read(self.reference, self.labels, matrix, model.genes)
        target = annotate_file(
            model,
            self.file,
            reference,
            self.out,
            k=self.k,
            all_labels=self.all_labels,
            quantile=self.quantile,
            progress=not self.quiet,
            **dataclasses.asdict(self.matrix),
        )
        print(f"obs['jaxmetric_label'], ...: {target}")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a model's embedding of labelled cells, beside baselines that take seconds.

    Labels are transferred from the reference cells to the query cells by their nearest neighbours.
    """

    model: Positional[Path]
    """A model directory, or a run's."""
    files: Positional[tuple[Path, ...]]
    """h5ad files or zarr folders with the query cells."""
    labels: Labels
    matrix: Matrix
    reference_matrix: ReferenceMatrix
    reference_labels: ReferenceLabels
    studies: tuple[str, ...] = ()
    """The query cells are those of these studies. Default: all cells of the files."""
    reference: tuple[Path, ...] = ()
    """Files with the reference cells. Default: the other cells of the query files."""
    all_labels: bool = False
    """Use reference cells of every label, not only of those that the model was trained on."""
    k: int = 15
    """Neighbours that vote, each weighted by 1 / distance."""
    obsm: tuple[str, ...] = ()
    """Embeddings to score too, such as X_pca: in the obsm of all query and reference files."""
    baselines: bool = True
    """Score a truncated SVD, its linear discriminants and a logistic regression of genes too."""
    out: Path | None = None
    """Also write the report to this JSON file."""
    page: Path | None = None
    """Also write the report with pictures to this HTML file (extra `eval`)."""

    def __call__(self) -> None:
        import numpy as np

        from jaxmetric.cells.obsm import read_obsm
        from jaxmetric.evaluation.report import score_table

        _require_folder(self.out)
        model = jm.load(self.model)
        cells = read(self.files, self.labels, self.matrix, model.genes)
        chosen = cells.in_studies(self.studies) if self.studies else np.ones(len(cells), bool)
        if self.reference:
            files = self.reference
            labels = self.reference_labels.over(self.labels, files)
            matrix = self.reference_matrix.over(self.matrix, files)
            others = read(files, labels, matrix, model.genes)
            known = np.ones(len(others), bool)
        else:
            others, files, known = (cells if self.studies else None), self.files, ~chosen
        report = model.evaluate(
            cells.select(chosen),
            None if others is None else others.select(known),
            k=self.k,
            all_labels=self.all_labels,
            baselines=self.baselines,
            embeddings={
                key: (read_obsm(self.files, key)[chosen], read_obsm(files, key)[known])
                for key in self.obsm
            },
            page=self.page,
            progress=True,
        )
        print(score_table(report))
        if self.out is not None:
            write_json(self.out, report)


@dataclasses.dataclass(frozen=True)
class Crossvalidate:
    """Leave each study out in turn, train on the others, label its cells; the same command goes on."""

    files: Positional[tuple[Path, ...]]
    """A training store, or h5ad files, zarr folders, or a folder of these."""
    directory: Path
    """Where the scores of each study and seed are kept."""
    labels: Labels
    matrix: Matrix
    config: Config
    studies: tuple[str, ...] = ()
    """The studies to leave out. Default: all."""
    seeds: int = 3
    """Models of each recipe and left-out study, with seeds from 0 on."""
    scimilarity: bool = False
    """SCimilarity's own numerics and hyperparameters where flags do not say otherwise."""
    beside_scimilarity: bool = False
    """Also train with SCimilarity's own numerics and hyperparameters, for as many passes over the cells
    in batches of the same size."""
    k: int = 15
    """Neighbours that vote, each weighted by 1 / distance."""
    baselines: bool = True
    """Score a truncated SVD, its linear discriminants and a logistic regression of genes too."""
    keep_runs: bool = False
    """Keep the run of each study and seed, with its model."""
    out: Path | None = None
    """Also write the rows of the table to this JSON file."""
    quiet: bool = False
    """No progress bars, warnings only."""

    def __call__(self) -> None:
        from jaxmetric.training.crossvalidate import crossvalidation_table

        _warnings_only(self.quiet)
        _require_folder(self.out, to_be_made=self.directory)
        recipes = {"jaxmetric": self.config}
        if self.beside_scimilarity:
            same = ("max_epochs", "steps_per_epoch", "batch_size")
            budget = {name: getattr(self.config, name) for name in same}
            recipes["SCimilarity"] = Config.scimilarity(**budget)
        rows = jm.crossvalidate(
            read(self.files, self.labels, self.matrix),
            recipes,
            directory=self.directory,
            studies=self.studies or None,
            seeds=range(self.seeds),
            k=self.k,
            baselines=self.baselines,
            keep_runs=self.keep_runs,
            progress=not self.quiet,
        )
        print(crossvalidation_table(rows))
        if self.out is not None:
            write_json(self.out, {"rows": rows})


@dataclasses.dataclass(frozen=True)
class Import:
    """Turn a SCimilarity model directory into a model directory of jaxmetric."""

    scimilarity: Positional[Path]
    """The directory with encoder.ckpt, layer_sizes.json, gene_order.tsv, label_ints.csv and, where
    there are, decoder.ckpt and hyperparameters.json. Nothing in them is executed."""
    out: Positional[Path]
    """The model directory to write; it must not exist."""

    def __call__(self) -> None:
        model = jm.load_scimilarity(self.scimilarity)
        model.save(self.out)
        parts = "encoder and decoder" if model.has_decoder else "encoder (no decoder.ckpt)"
        print(f"{parts}, {len(model.genes)} genes, {len(model.labels)} labels: {self.out}")


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a model as a directory that SCimilarity opens."""

    model: Positional[Path]
    """A model directory, or a run's."""
    out: Positional[Path]
    """The directory to write; it must not exist."""

    def __call__(self) -> None:
        jm.load(self.model).export_scimilarity(self.out)
        print(f"for SCimilarity: {self.out}")


def _warnings_only(quiet: bool) -> None:
    if quiet:
        logging.getLogger("jaxmetric").setLevel(logging.WARNING)


def _require_folder(out: Path | None, to_be_made: Path | None = None) -> None:
    if out is None:
        return
    folder = out.absolute().parent
    if not folder.is_dir() and (to_be_made is None or folder != to_be_made.absolute()):
        raise ValueError(f"no such folder: {out.parent}, to write {out.name} in.")
