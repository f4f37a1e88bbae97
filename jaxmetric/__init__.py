"""Metric learning for single-cell RNA-seq in JAX."""

__version__ = "0.1.0"

from jaxmetric.cells.cells import Cells
from jaxmetric.cells.read import read_cells
from jaxmetric.config import Config
from jaxmetric.evaluation.plots import plot_history
from jaxmetric.labels.ontology import CellOntology, UnknownLabelError
from jaxmetric.metric.distances import pairwise_distances
from jaxmetric.metric.losses import triplet_loss, triplet_losses
from jaxmetric.metric.mining import Triplets, mine_triplets, triplet_indices
from jaxmetric.metric.retrieval import retrieval_scores
from jaxmetric.metric.silhouette import ontology_silhouette
from jaxmetric.model.embed_file import embed_file
from jaxmetric.model.load import load, load_scimilarity
from jaxmetric.model.metric_learning import MetricLearning
from jaxmetric.networks.autoencoder import Autoencoder, Decoder, Encoder
from jaxmetric.preparation.filters import Filters
from jaxmetric.preparation.prepare import prepare
from jaxmetric.sharding import connect
from jaxmetric.training.crossvalidate import crossvalidate
from jaxmetric.training.fit import fit
from jaxmetric.training.signals import Interrupted
from jaxmetric.training.watch import NonFiniteError

__all__ = [
    "Autoencoder",
    "CellOntology",
    "Cells",
    "Config",
    "Decoder",
    "Encoder",
    "Filters",
    "Interrupted",
    "MetricLearning",
    "NonFiniteError",
    "Triplets",
    "UnknownLabelError",
    "connect",
    "crossvalidate",
    "embed_file",
    "fit",
    "load",
    "load_scimilarity",
    "mine_triplets",
    "ontology_silhouette",
    "pairwise_distances",
    "plot_history",
    "prepare",
    "read_cells",
    "retrieval_scores",
    "triplet_indices",
    "triplet_loss",
    "triplet_losses",
]
