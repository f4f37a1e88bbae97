"""What users call; `__init__.py` loads each name when it is first used."""

from .cells.cells import Cells
from .cells.read import read_cells
from .config import Config, Filters
from .errors import Interrupted, NonFiniteError
from .evaluation.plots import plot_history
from .labels.ontology import CellOntology, UnknownLabelError
from .metric.distances import pairwise_distances
from .metric.losses import triplet_loss, triplet_losses
from .metric.mining import Triplets, mine_triplets, triplet_indices
from .metric.retrieval import retrieval_scores
from .metric.silhouette import ontology_silhouette
from .model.embed_file import embed_file
from .model.load import load, load_scimilarity
from .model.metric_learning import MetricLearning
from .networks.autoencoder import Autoencoder, Decoder, Encoder
from .preparation.prepare import prepare
from .sharding import connect
from .training.crossvalidate import crossvalidate
from .training.fit import fit

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

__version__: str
