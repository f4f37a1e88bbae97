"""The shell: `jaxmetric demo | train | embed | evaluate | import | export`."""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import anndata
import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional

import jaxmetric as jm
from jaxmetric.checkpoint import write_h5ad, write_json
from jaxmetric.data import Values
from jaxmetric.evaluation import score_table
from jaxmetric.learner import load_config
from jaxmetric.warm_start import check_sizes

DESCRIPTION = "Metric learning for single-cell RNA-seq: train, use and evaluate cell embeddings."


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Which matrix to read, and its genes."""

    layer: str | None = None
    """A layer's name, X or raw. Default: layer "counts" where there is one, else X."""
    values: Values | None = None
    """What the matrix holds: raw counts, or log1p of counts per 10,000. Default: detected."""
    gene_key: str | None = None
    """Column of var with the gene names. Default: the index of var."""
    min_gene_overlap: float = 0.2
    """Least share of the genes expected that a file must have."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Where labels and studies are."""

    label_key: str
    """Column of obs with the cell types: names or ids of the ontology."""
    study_key: str | None = None
    """Column of obs with the study. Default: each file is a study."""
    ontology: str = "default"
    """"default": the Cell Ontology in the package; "none": plain class labels; or an OBO file."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train on 700 real blood cells, score held-out ones, draw pictures: about a minute."""

    directory: Path = Path("jaxmetric_demo")
    """Where to write the run, the embedded cells and the pictures."""

    def __call__(self) -> None:
        from jaxmetric.demo import demo

        demo(self.directory)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model; the same command again goes on with an interrupted run."""

    files: Positional[tuple[Path, ...]]
    """h5ad files or zarr folders."""
    directory: Path
    """The run's directory."""
    labels: Labels
    matrix: Matrix
    config: jm.Config
    validation: tuple[str, ...] = ()
    """Studies to hold out and score after each epoch."""
    init: Path | None = None
    """A model directory to start from, with its genes, its network sizes and, where flags do not say
    otherwise, its hyperparameters; see also --freeze."""
    scimilarity: bool = False
    """SCimilarity's own numerics and hyperparameters where flags do not say otherwise."""
    quiet: bool = False
    """No progress bar, warnings only."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, in the run's directory (extra `tensorboard`)."""

    def __call__(self) -> None:
        if self.quiet:
            logging.getLogger("jaxmetric").setLevel(logging.WARNING)
        init = None if self.init is None else jm.load(self.init)
        if init is not None:
            check_sizes(self.config, init)
        cells = _read(self.files, self.labels, self.matrix, None if init is None else init.genes)
        jm.fit(
            cells,
            self.config,
            directory=self.directory,
            validation=self.validation,
            init=init,
            progress=not self.quiet,
            tensorboard=self.tensorboard,
        )
        print(f"model: {self.directory / 'model'}")


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed the cells of a file: writes a copy of it with obsm["X_jaxmetric"]."""

    model: Positional[Path]
    """A model directory, or a run's."""
    file: Positional[Path]
    """An h5ad file or zarr folder."""
    out: Path
    """The h5ad file to write; it must not exist."""
    matrix: Matrix

    def __call__(self) -> None:
        if self.out.exists():
            raise ValueError(f"{self.out} exists: choose another file with --out.")
        if not self.out.parent.is_dir():
            raise ValueError(f"no such folder: {self.out.parent}, to write {self.out.name} in.")
        model = jm.load(self.model)
        z = model.embed(self.file, progress=True, **dataclasses.asdict(self.matrix))
        adata = anndata.read_zarr(self.file) if self.file.is_dir() else anndata.read_h5ad(self.file)
        adata.obsm["X_jaxmetric"] = z
        write_h5ad(adata, self.out)
        print(f"{z.shape[0]} cells x {z.shape[1]} dimensions: {self.out}, obsm['X_jaxmetric']")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a model's embedding of labelled cells, beside a truncated SVD of 50 dimensions.

    Labels are transferred from the reference cells to the query cells by their nearest neighbours.
    """

    model: Positional[Path]
    """A model directory, or a run's."""
    files: Positional[tuple[Path, ...]]
    """h5ad files or zarr folders with the query cells."""
    labels: Labels
    matrix: Matrix
    studies: tuple[str, ...] = ()
    """The query cells are those of these studies. Default: all cells of the files."""
    reference: tuple[Path, ...] = ()
    """Files with the reference cells. Default: the other cells of the query files."""
    all_labels: bool = False
    """Use reference cells of every label, not only of those that the model was trained on."""
    k: int = 15
    """Neighbours that vote, each weighted by 1 / distance."""
    out: Path | None = None
    """Also write the scores to this JSON file."""

    def __call__(self) -> None:
        model = jm.load(self.model)
        cells = _read(self.files, self.labels, self.matrix, model.genes)
        query = cells.select(cells.in_studies(self.studies)) if self.studies else cells
        if self.reference:
            reference = _read(self.reference, self.labels, self.matrix, model.genes)
        else:
            reference = cells.select(~cells.in_studies(self.studies)) if self.studies else None
        if reference is not None and not self.all_labels:
            reference = reference.with_only(model.labels)
        scores = model.evaluate(
            query, reference, k=self.k, svd=reference is not None, progress=True
        )
        print(score_table(scores))
        if self.out is not None:
            write_json(self.out, scores)


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


def _commands(base: jm.Config) -> Any:
    """The commands, with the base's values as the defaults of `train`'s flags."""
    train = Train(
        files=tyro.MISSING,
        directory=tyro.MISSING,
        labels=Labels(label_key=tyro.MISSING),
        matrix=Matrix(),
        config=base,
    )
    return (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Train, tyro.conf.subcommand("train", default=train)]
        | Annotated[Embed, tyro.conf.subcommand("embed")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    )


def _base_config(arguments: list[str]) -> jm.Config:
    """What the flags of `train` change: the config of the model to start from, or a preset."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--init", nargs="?")
    look.add_argument("--scimilarity", action="store_true")
    found, _ = look.parse_known_args(arguments)
    if arguments[:1] != ["train"] or not (found.init or found.scimilarity):
        return jm.Config()
    if found.scimilarity:
        return jm.Config.scimilarity(**(load_config(found.init).sizes if found.init else {}))
    return dataclasses.replace(load_config(found.init), freeze=())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; bad use and bad input end with one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("jaxmetric").setLevel(logging.INFO)
    try:
        _parse(arguments)()
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error))


def _read(
    files: tuple[Path, ...],
    labels: Labels,
    matrix: Matrix,
    genes: tuple[str, ...] | None = None,
) -> jm.Cells:
    ontology = labels.ontology
    if ontology == "none":
        ontology = None
    elif ontology != "default":
        ontology = jm.CellOntology.from_obo(ontology)
    keys = {"label_key": labels.label_key, "study_key": labels.study_key}
    how = keys | dataclasses.asdict(matrix)
    return jm.read_cells(list(files), **how, ontology=ontology, genes=genes)


def _parse(arguments: list[str] | None):
    """The command, from the arguments; tyro's boxed complaints become one line."""
    commands = _commands(_base_config(sys.argv[1:] if arguments is None else arguments))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands,
                prog="jaxmetric",
                description=DESCRIPTION,
                args=arguments,
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]|Error parsing \S+ ", "", said.getvalue())
        _fail(" ".join(text.split()))


def _fail(message: str) -> NoReturn:
    sys.exit(print(f"jaxmetric: error: {' '.join(message.split())}", file=sys.stderr) or 2)
