"""Metric learning for single-cell RNA-seq in JAX."""

__version__ = "0.1.0"

from jaxmetric.config import Config
from jaxmetric.data import Cells, read_cells
from jaxmetric.fit import fit
from jaxmetric.learner import MetricLearning, load, load_scimilarity
from jaxmetric.losses import triplet_loss, triplet_losses
from jaxmetric.metrics import ontology_silhouette
from jaxmetric.mining import Triplets, mine_triplets, pairwise_distances, triplet_indices
from jaxmetric.model import Autoencoder, Decoder, Encoder
from jaxmetric.ontology import CellOntology, UnknownLabelError
from jaxmetric.retrieval import retrieval_scores

__all__ = [
    "Autoencoder",
    "CellOntology",
    "Cells",
    "Config",
    "Decoder",
    "Encoder",
    "MetricLearning",
    "Triplets",
    "UnknownLabelError",
    "fit",
    "load",
    "load_scimilarity",
    "mine_triplets",
    "ontology_silhouette",
    "pairwise_distances",
    "read_cells",
    "retrieval_scores",
    "triplet_indices",
    "triplet_loss",
    "triplet_losses",
]
