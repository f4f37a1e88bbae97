"""The scores that need no labels, against loops, numpy, scipy and scikit-learn."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import sklearn.metrics

from jaxmetric.scores.agreement import (
    hidden_gene_agreement,
    hidden_genes,
    mean_of_neighbors,
    most_variable,
    neighborhood_agreement,
    ranked_pairs,
)


def expression(n, genes, seed=0):
    return np.random.default_rng(seed).poisson(0.7, (n, genes)).astype(np.float32)


def test_genes_of_greatest_variance():
    x = expression(50, 30) * np.random.default_rng(1).permutation(30)
    expected = np.argsort(-x.var(0), kind="stable")[:7]
    np.testing.assert_array_equal(most_variable(sp.csr_matrix(x), 7), expected)


def test_neighborhood_agreement_is_the_definition():
    generator = np.random.default_rng(0)
    x, y = expression(40, 6), expression(25, 6, seed=1)
    x[:, 2] = 1  # constant: left out
    neighbors = np.stack([generator.permutation(25)[:4] for _ in range(40)])
    correlations = []
    for gene in (0, 1, 3, 4, 5):
        around = [np.mean([y[j, gene] for j in neighbors[i]]) for i in range(40)]
        correlations.append(np.corrcoef(x[:, gene], around)[0, 1])
    around = mean_of_neighbors(y, neighbors)
    assert neighborhood_agreement(x, around) == pytest.approx(np.mean(correlations), abs=1e-6)
    itself = mean_of_neighbors(y, np.arange(25)[:, None])
    assert neighborhood_agreement(y, itself) == pytest.approx(1)
    assert np.isnan(neighborhood_agreement(np.ones((40, 6), np.float32), around))


def test_weights_count_a_cell_so_often():
    generator = np.random.default_rng(0)
    x, around = expression(40, 6), generator.normal(size=(40, 6)).astype(np.float32)
    weights = generator.integers(0, 4, 40)
    found = neighborhood_agreement(x, around, weights)
    rows = np.repeat(np.arange(40), weights)
    assert found == pytest.approx(neighborhood_agreement(x[rows], around[rows]), abs=1e-6)
    assert found != pytest.approx(neighborhood_agreement(x, around), abs=1e-3)
    pairs = ranked_pairs(around, sp.csr_matrix(x), pairs=500)
    a, b = pairs.cells
    rows = np.repeat(np.arange(500), weights[a] * weights[b])
    expected = np.corrcoef(pairs.embedded[rows, 0], pairs.measured[rows, 0])[0, 1]
    assert hidden_gene_agreement(pairs, weights) == pytest.approx(expected)
    assert np.isnan(hidden_gene_agreement(pairs, 0 * weights))


def test_resamples_together_have_the_scores_of_each():
    generator = np.random.default_rng(0)
    x, around = expression(40, 6) + 100, generator.normal(size=(40, 6)).astype(np.float32)
    x[1:, 3] = 7  # constant without cell 0, and then left out
    weights = generator.integers(0, 4, (5, 40)).astype(float)
    weights[:2, 0], weights[4] = 0, 0
    pairs = ranked_pairs(around, sp.csr_matrix(x), pairs=500)
    for score, of in ((neighborhood_agreement, (x, around)), (hidden_gene_agreement, (pairs,))):
        each = [score(*of, one) for one in weights]
        np.testing.assert_allclose(score(*of, weights), each, rtol=0, atol=1e-9)
        assert np.isnan(each[4])
    others = [0, 1, 2, 4, 5]
    without = neighborhood_agreement(x[:, others], around[:, others], weights[0])
    assert neighborhood_agreement(x, around, weights[0]) == pytest.approx(without, abs=1e-9)


def test_hidden_gene_agreement_is_scipys_rank_correlation_of_scikit_learns_distances():
    generator = np.random.default_rng(0)
    hidden, z = expression(30, 20), generator.normal(size=(30, 4)).astype(np.float32)
    hidden[3] = 0
    every = np.triu_indices(30, 1)
    one, other = (
        sklearn.metrics.pairwise_distances(values, metric="cosine")[every] for values in (z, hidden)
    )
    expected = scipy.stats.spearmanr(one, other).statistic
    found = hidden_gene_agreement(ranked_pairs(z, sp.csr_matrix(hidden), pairs=200_000))
    assert found == pytest.approx(expected, abs=0.02)


def test_hidden_gene_agreement_of_the_hidden_genes_is_one_and_of_noise_none():
    hidden = expression(200, 20)
    generator = np.random.default_rng(0)

    def score(z, hidden=hidden):
        return hidden_gene_agreement(ranked_pairs(z, sp.csr_matrix(hidden)))

    assert score(hidden) == pytest.approx(1)
    noise = generator.normal(size=(200, 8)).astype(np.float32)
    assert abs(score(noise)) < 0.05
    assert np.isnan(score(np.ones((200, 8), np.float32)))
    assert np.isnan(score(noise[:2], hidden[:2]))


def test_a_fifth_of_the_genes_is_hidden():
    genes = hidden_genes(1001)
    assert len(genes) == len(set(genes)) == 201
    np.testing.assert_array_equal(genes, hidden_genes(1001))
    assert len(hidden_genes(2)) == 1
