"""The baselines to beat: what takes seconds and no network, of log-normalised expression."""

import logging
import warnings

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.evaluation.embeddings import (
    LDA,
    LOGISTIC,
    SVD,
    Embedding,
    Prediction,
    logged,
    seen_genes,
)
from jaxmetric.networks.components import right_singular_vectors
from jaxmetric.scores.label_transfer import (
    Labelled,
    number_alike,
    predict,
    prediction_scores,
)

log = logging.getLogger("jaxmetric")

MOST = 20_000  # reference cells that the logistic regression is fitted on
PRODUCTS = 1e9  # of a value and a weight, in one of its steps: some seconds on one core
CHUNK = 10_000  # query cells whose labels it predicts at a time


def baselines(
    query: Cells, reference: Cells, logged_query: Cells, logged_reference: Cells
) -> dict[str, Embedding | Prediction]:
    """Truncated SVD, its linear discriminants, and a logistic regression, fitted on the reference.

    Both embeddings are also fitted without the hidden genes, on the cells as they are: hidden counts are
    no part of a cell's total either.
    """
    labels, seen = number_alike(query, reference), seen_genes(query.genes)
    whole = svd_embedding(logged_query, logged_reference)
    rest = svd_embedding(query.with_genes(seen), reference.with_genes(seen))
    discriminants, of_rest = (lda_embedding(*pair, labels.reference) for pair in (whole, rest))
    return {
        SVD: Embedding(*whole, rest[0]),
        LDA: Embedding(*discriminants, of_rest[0]),
        LOGISTIC: Prediction(predict_by_genes(logged_query, logged_reference, labels)),
    }


def baseline_scores(query: Cells, reference: Cells, k: int) -> dict[str, dict[str, float | int]]:
    """How right the labels of each baseline are: see `transfer_scores`."""
    labels, cells = number_alike(query, reference), (logged(query), logged(reference))
    svd = svd_embedding(*cells)
    lda = lda_embedding(*svd, labels.reference)
    predicted = {
        SVD: predict(*svd, labels, k),
        LDA: predict(*lda, labels, k),
        LOGISTIC: predict_by_genes(*cells, labels),
    }
    return {name: prediction_scores(one, labels) for name, one in predicted.items()}


def svd_embedding(
    query: Cells, reference: Cells, dim: int = 50
) -> tuple[Float[np.ndarray, "q dim"], Float[np.ndarray, "r dim"]]:
    """Truncated SVD of the reference cells' log-normalised expression.

    The query cells are projected on the right singular vectors of the reference. There are fewer
    dimensions where cells or genes are few.
    """
    x, y = log_normalized(query), log_normalized(reference)
    vectors = right_singular_vectors(y, dim)
    return np.asarray(x @ vectors), np.asarray(y @ vectors)


def lda_embedding(
    z: Float[np.ndarray, "q dim"],
    z_reference: Float[np.ndarray, "r dim"],
    labels: Int[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, "q d"], Float[np.ndarray, "r d"]]:
    """Linear discriminants of an embedding: the directions in which its reference cells' labels differ.

    At most one direction less than labels, found by scikit-learn, with 0.1 of the covariance within
    labels shrunk towards a sphere. The embedding itself where the reference has one label, or no label
    twice.

    Args:
      z: the query cells.
      z_reference: the reference cells.
      labels: of the reference cells; -1: none.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    known = labels >= 0
    if not 1 < len(np.unique(labels[known])) < known.sum():
        return z, z_reference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a label has one cell
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(
            z_reference[known].astype(np.float64), labels[known]
        )
    return lda.transform(z), lda.transform(z_reference)


def predict_by_genes(query: Cells, reference: Cells, labels: Labelled) -> Int[np.ndarray, " q"]:
    """What a logistic regression of the genes predicts of the query cells that are scored, -1 of others.

    Args:
      query: log-normalised cells.
      reference: log-normalised cells of the same genes; those with a label are learned from.
      labels: of both.
    """
    known, predicted = labels.reference >= 0, np.full(len(query), -1)
    predicted[labels.scored] = logistic_regression(
        reference.matrix()[known], labels.reference[known], query.matrix()[labels.scored]
    )
    return predicted


def logistic_regression(
    X: sp.csr_matrix, labels: Int[np.ndarray, " n"], X_new: sp.csr_matrix
) -> Int[np.ndarray, " m"]:
    """The labels that a multinomial logistic regression on some rows predicts of new ones.

    By scikit-learn: L2 penalty with C = 1, every label of the same weight, at most 200 steps. Of more
    than MOST rows, or of fewer with so many values and labels that a step takes more than PRODUCTS,
    a part is used, drawn at random and evenly from the labels (`evenly`).
    """
    from sklearn.linear_model import LogisticRegression

    num_labels, num_new = len(np.unique(labels)), len(X_new.indptr) - 1
    if num_labels < 2:
        return np.repeat(labels[:1], num_new)
    values = max(1, X.nnz / len(labels))
    chosen = evenly(labels, min(MOST, int(PRODUCTS / (values * num_labels))))
    if len(chosen) < len(labels):
        log.info(
            "logistic regression: fitted on %d of %d reference cells, drawn evenly from %d labels",
            len(chosen),
            len(labels),
            num_labels,
        )
    model = LogisticRegression(C=1, max_iter=200, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 200 steps are not enough
        model.fit(X[chosen], labels[chosen])
    starts = range(0, num_new, CHUNK)
    return np.concatenate([model.predict(X_new[start : start + CHUNK]) for start in starts])


def evenly(labels: Int[np.ndarray, " n"], most: int, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Numbers of at most so many cells, drawn at random.

    There are as many of each label as of any other label, but for labels that have no more.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = pd.Series(order).groupby(labels[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])
