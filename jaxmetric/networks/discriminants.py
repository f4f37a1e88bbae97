"""Directions of expression in which labels differ, and neither cells of a label nor its studies do.

Fisher's linear discriminants (Fisher, Annals of Eugenics 7:179, 1936), with one change: a label's studies
weigh alike, however many cells each has. So the shift of a label from study to study counts fully as
noise: directions in which studies differ are those in which an unseen study will differ too.
"""

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from jaxtyping import Float, Int

RIDGE = 5.0  # of the noise's trace per cell, added to each direction of the noise


def cell_weights(
    labels: Int[np.ndarray, " n"], studies: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Weights of mean 1: a label counts as the root of its cells, and a study within it likewise."""
    label, group_of, size = _groups(labels, studies)
    share = np.sqrt(size)
    share *= np.sqrt(np.bincount(labels)[label]) / np.bincount(label, share)[label]
    weights = (share / size)[group_of]
    return weights * len(labels) / weights.sum()


def discriminants(
    z: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    studies: Int[np.ndarray, " n"],
    number: int,
) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, " d"]]:
    """The leading directions U, most telling first, and the point that they are seen from.

    They maximise the scatter of label means, U' B U, where U' (W + S + ridge) U is the identity: W is the
    covariance within a label and study, S that of a label's study means about their mean. Each label
    weighs the root of its cells in W and S, and its studies alike; all labels weigh the same in B. There
    are as many directions as labels less one, and at most `number`.
    """
    label, group_of, size = _groups(labels, studies)
    present = np.unique(labels)
    groups = np.bincount(label)  # of each label
    weight = np.sqrt(np.bincount(labels)) / np.maximum(groups, 1)  # of each group of a label
    weight /= (weight * groups).sum()
    means = _sums(z, group_of) / size[:, None]
    label_means = _sums(means, label) / np.maximum(groups, 1)[:, None]
    W = _scatter(z - means[group_of], (weight[label] / size)[group_of])
    S = _scatter(means - label_means[label], weight[label])
    center = label_means[present].mean(0)
    B = _scatter(label_means[present] - center, np.full(len(present), 1 / len(present)))
    noise = W + S
    level = np.trace(noise) / len(z) or np.trace(B) / len(z) or 1.0  # single cells have no noise
    d, m = len(B), min(number, len(present) - 1, len(B))
    noise += RIDGE * level * np.eye(d)
    _, U = scipy.linalg.eigh(B, noise, subset_by_index=(d - m, d - 1))
    return U[:, ::-1], center


def _groups(labels, studies):
    """Cells of one label and study are a group: the groups' labels, each cell's group, their sizes."""
    pairs = np.stack([labels, studies], 1)
    found, group_of, size = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    return found[:, 0], group_of.ravel(), size


def _sums(z: Float[np.ndarray, "n d"], group_of: Int[np.ndarray, " n"]) -> np.ndarray:
    member = sp.csr_matrix((np.ones(len(z)), (group_of, np.arange(len(z)))))
    return member @ z


def _scatter(z: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]) -> np.ndarray:
    return (z * weights[:, None]).T @ z
