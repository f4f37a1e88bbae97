"""Metric learning for single-cell RNA-seq in JAX."""

__version__ = "0.1.0"

from jaxmetric.cells import Cells
from jaxmetric.config import Config
from jaxmetric.crossvalidate import crossvalidate
from jaxmetric.data import read_cells
from jaxmetric.embed_file import embed_file
from jaxmetric.filters import Filters
from jaxmetric.fit import fit
from jaxmetric.learner import MetricLearning
from jaxmetric.load import load, load_scimilarity
from jaxmetric.losses import triplet_loss, triplet_losses
from jaxmetric.metrics import ontology_silhouette
from jaxmetric.mining import Triplets, mine_triplets, pairwise_distances, triplet_indices
from jaxmetric.model import Autoencoder, Decoder, Encoder
from jaxmetric.ontology import CellOntology, UnknownLabelError
from jaxmetric.plots import plot_history
from jaxmetric.prepare import prepare
from jaxmetric.retrieval import retrieval_scores
from jaxmetric.sharding import connect
from jaxmetric.signals import Interrupted
from jaxmetric.watch import NonFiniteError

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
