import numpy as np
import pytest

from jaxmetric.scores.bootstrap import intervals, weighted_means


def of_mean(values, **kwargs):
    found = intervals(lambda weights: weighted_means({"x": values}, weights), len(values), **kwargs)
    return found["x"]


def test_the_interval_of_a_mean_is_the_normal_one_and_shrinks_with_the_root_of_n():
    generator = np.random.default_rng(0)
    widths = {}
    for n in (100, 1600):
        values = generator.normal(size=n)
        low, high = of_mean(values, resamples=1000)
        assert low < values.mean() < high
        widths[n] = high - low
        assert widths[n] == pytest.approx(2 * 1.96 * values.std() / n**0.5, rel=0.12)
    assert widths[100] / widths[1600] == pytest.approx(4, rel=0.25)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    drawn = (generator.random(150) < 0.7 for _ in range(100))
    ends = np.array([of_mean(one.astype(float), seed=i) for i, one in enumerate(drawn)])
    assert ((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7)).mean() == pytest.approx(0.95, abs=0.05)


def test_constant_values_have_an_interval_of_no_width_and_no_values_none():
    assert of_mean(np.full(20, 0.3)) == pytest.approx((0.3, 0.3))
    assert np.isnan(of_mean(np.full(20, np.nan))).all()
    few = np.where(np.arange(20) == 3, 0.3, np.nan)  # missing from a third of the resamples
    assert of_mean(few) == pytest.approx((0.3, 0.3))


def test_the_same_seed_draws_the_same_cells():
    values = np.random.default_rng(0).normal(size=50)
    assert of_mean(values) == of_mean(values)
    assert of_mean(values) != of_mean(values, seed=1)


def test_resamples_at_a_time_or_one_by_one_are_the_same(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    together = of_mean(values)
    monkeypatch.setattr("jaxmetric.scores.bootstrap.WEIGHTS", 150)  # three, the last time two
    assert of_mean(values) == pytest.approx(together, abs=1e-12)


def test_means_leave_out_what_is_nan():
    values, weights = np.array([1.0, np.nan, 3.0]), np.array([1, 5, 3])
    assert weighted_means({"x": values}, weights)["x"] == 2.5
    assert np.isnan(weighted_means({"x": values}, np.array([0, 5, 0]))["x"])
