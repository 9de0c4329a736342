"""Metrics of a judge, against values worked by hand and plain loops."""

import itertools
import math

import factories
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vlgenrm_ray.evaluation import metrics
from vlgenrm_ray.records import Judgement, PairResult

NAN = math.nan
probabilities = st.integers(0, 16).map(lambda n: n / 16)
samples = st.lists(probabilities, min_size=1, max_size=20).map(np.array)


def judgement(id: str, reward: float | None) -> Judgement:
    status = "unreadable_verdict" if reward is None else "ok"
    return Judgement(id=id, reward=reward, status=status, verdict_mass=1.0)


def result(id: str, chosen: float | None, rejected: float | None, kind: str = "count") -> PairResult:
    return PairResult(
        id=id, preference_id=id, kind=kind, chosen=judgement(id, chosen), rejected=judgement(id, rejected)
    )


def test_ties_and_unreadable_pairs_are_one_half() -> None:
    chosen, rejected = np.array([0.9, 0.1, 0.5, NAN, 0.9]), np.array([0.1, 0.9, 0.5, 0.1, NAN])
    assert metrics.outcomes(chosen, rejected).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5]


@given(samples)
def test_outcomes_of_swapped_sides_add_up_to_one(values: np.ndarray) -> None:
    other = values[::-1]
    assert (metrics.outcomes(values, other) + metrics.outcomes(other, values) == 1.0).all()


def test_the_wilson_interval_equals_the_textbook_and_scipy() -> None:
    # Worked by hand: 8 of 10, z = 1.96 gives (0.490, 0.943).
    estimate = metrics.wilson_interval(np.array([1.0] * 8 + [0.0] * 2))
    assert (estimate.value, estimate.num) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    expected = binomtest(8, 10).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_wilson_interval_is_no_point_at_the_ends() -> None:
    assert metrics.wilson_interval(np.ones(10)).low == pytest.approx(0.7225, abs=1e-4)
    assert math.isnan(metrics.wilson_interval(np.array([])).value)


@given(samples, samples)
def test_auroc_is_the_share_of_pairs_ranked_right(good: np.ndarray, bad: np.ndarray) -> None:
    pairs = [(g > b) + 0.5 * (g == b) for g, b in itertools.product(good, bad)]
    assert metrics.auroc(good, bad) == pytest.approx(np.mean(pairs))
    assert metrics.auroc(np.append(good, NAN), bad) == metrics.auroc(good, bad)


@given(samples)
def test_ece_is_the_sum_over_bins(probability: np.ndarray) -> None:
    label = (np.arange(len(probability)) % 2).astype(float)
    expected = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = (probability >= low) & ((probability < high) | ((index == 14) & (probability == 1.0)))
        if inside.any():
            expected += inside.mean() * abs(label[inside].mean() - probability[inside].mean())
    assert metrics.ece(probability, label) == pytest.approx(expected)


def test_calibration_of_a_perfect_and_of_an_inverted_judge() -> None:
    label = np.array([1.0, 0.0])
    assert metrics.ece(label, label) == metrics.brier(label, label) == 0.0
    assert metrics.ece(1 - label, label) == metrics.brier(1 - label, label) == 1.0
    assert metrics.brier(np.array([0.8, NAN]), label) == pytest.approx(0.04)


def test_the_gain_is_paired_and_its_interval_covers_it() -> None:
    before = {f"p{i}": float(i % 2) for i in range(200)}
    after = before | {f"p{i}": 1.0 for i in range(0, 40, 2)}
    gain = metrics.paired_gain(before, after | {"another": 1.0})
    assert gain.num == 200
    assert gain.value == pytest.approx(0.1)
    assert 0.05 < gain.low < 0.1 < gain.high < 0.15
    # The bootstrap's spread is that of the mean difference, sqrt(p (1 - p) / n).
    assert (gain.high - gain.low) / 2 == pytest.approx(1.96 * math.sqrt(0.1 * 0.9 / 200), rel=0.1)


def test_the_gain_of_no_change_is_0() -> None:
    same = {f"p{i}": float(i % 2) for i in range(50)}
    gain = metrics.paired_gain(same, same)
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert metrics.paired_gain(same, {}).num == 0


def test_judge_metrics_report_coverage_with_the_accuracy() -> None:
    results = [result("a", 0.9, 0.2), result("b", 0.4, 0.6), result("c", None, 0.6, "spatial")]
    values = metrics.judge_metrics(results)
    assert values["pairwise_accuracy"] == 0.5
    assert values["num_pairs"] == 3
    assert values["ci95"][0] < 0.5 < values["ci95"][1]
    assert values["pair_coverage"] == pytest.approx(2 / 3, abs=1e-6)
    assert values["verdict_coverage"] == pytest.approx(5 / 6, abs=1e-6)
    assert values["auroc"] == pytest.approx(4 / 6, abs=1e-6)
    assert values["by_kind"]["spatial"]["value"] == 0.5
    assert values["by_kind"]["count"]["num"] == 2


def test_without_results_all_metrics_are_none() -> None:
    values = metrics.judge_metrics([])
    assert values["num_pairs"] == 0
    assert values["pairwise_accuracy"] is values["auroc"] is values["ece"] is values["verdict_coverage"] is None


def test_length_baselines_ignore_everything_but_length() -> None:
    texts = [("aaa", "a"), ("aaa", "a"), ("a", "aaa"), ("aa", "bb")]
    pairs = [factories.preference(f"q/p{i}", chosen=c, rejected=r) for i, (c, r) in enumerate(texts)]
    baselines = metrics.length_baselines(pairs)
    assert baselines["longer"]["value"] == 2.5 / 4
    assert baselines["shorter"]["value"] == 1.5 / 4


def test_a_clustered_interval_is_wilsons_if_every_cluster_has_one_value() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.5])
    assert metrics.clustered_interval(values, list("abcde")) == metrics.wilson_interval(values)


def test_equal_values_of_a_cluster_count_as_one_observation() -> None:
    # Ten clusters of five equal values each carry as much as ten values.
    once = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    clusters = [cluster for cluster in range(10) for _ in range(5)]
    clustered = metrics.clustered_interval(np.repeat(once, 5), clusters)
    alone = metrics.wilson_interval(once)
    assert clustered.num == 50
    # The variance between 10 clusters is estimated with 10 / 9.
    assert alone.high - alone.low <= clustered.high - clustered.low <= 1.06 * (alone.high - alone.low)
    right = metrics.clustered_interval(np.ones(50), clusters)
    assert (right.low, right.high) == pytest.approx((metrics.wilson_interval(np.ones(10)).low, 1.0))


def test_a_bootstrap_over_clusters_agrees_with_the_clustered_interval() -> None:
    generator = np.random.default_rng(0)
    clusters = [cluster for cluster in range(200) for _ in range(4)]
    values = np.repeat(generator.random(200) < 0.7, 4).astype(float)
    flips = generator.random(800) < 0.1
    values = np.where(flips, 1 - values, values)
    formula = metrics.clustered_interval(values, clusters)
    bootstrap = metrics.bootstrap_interval(
        lambda weights: metrics.divide(weights @ values, weights.sum(axis=1)), clusters
    )
    assert bootstrap.value == pytest.approx(formula.value)
    assert (bootstrap.low, bootstrap.high) == pytest.approx((formula.low, formula.high), abs=0.01)
    alone = metrics.bootstrap_interval(lambda weights: weights @ values, [0] * 800)
    assert np.isnan(alone.low), "one cluster has no interval"


def test_a_paired_gain_over_clusters_equals_the_bootstrap_by_hand() -> None:
    before = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0}
    after = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}
    # Image x has two pairs that gain together, y and z have one each that does not gain: all 27 draws by hand.
    sums, counts = {"x": 2.0, "y": 0.0, "z": 0.0}, {"x": 2, "y": 1, "z": 1}
    draws = list(itertools.product("xyz", repeat=3))
    means = [sum(sums[c] for c in draw) / sum(counts[c] for c in draw) for draw in draws]
    estimate = metrics.paired_gain(before, after, clusters={"a": "x", "b": "x", "c": "y", "d": "z"})
    assert (estimate.value, estimate.num) == (0.5, 4)
    assert (estimate.low, estimate.high) == (min(means), max(means)) == (0.0, 1.0)
    # With every pair a cluster of its own, it is the bootstrap over pairs.
    single = metrics.paired_gain(before, after, clusters={i: i for i in before})
    assert single == metrics.paired_gain(before, after)


def test_clusters_of_equal_pairs_widen_the_interval_of_a_gain() -> None:
    before = {f"{i}/{k}": 0.0 for i in range(20) for k in range(5)}
    after = {id: float(int(id.split("/")[0]) % 2) for id in before}
    by_pair = metrics.paired_gain(before, after)
    by_image = metrics.paired_gain(before, after, clusters={id: id.split("/")[0] for id in before})
    assert by_pair.value == by_image.value == 0.5
    assert (by_image.high - by_image.low) == pytest.approx((by_pair.high - by_pair.low) * math.sqrt(5), rel=0.15)


def test_an_interval_over_items_and_seeds_equals_the_formula_by_hand() -> None:
    from scipy.stats import t

    # Two seeds, three items, no clusters: mean 1/2, residuals +-1/2.
    values = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    of_items = ((1 - 1) ** 2 * 0.25 + (-1) ** 2 + 1**2) / 36 * 3 / 2
    of_seeds = (0.5**2 + 0.5**2) / 36 * 2 / 1
    of_both = 6 * 0.25 / 36 * 6 / 5
    variance = max(of_items + of_seeds - of_both, of_items, of_seeds)
    degrees = (of_items + of_seeds) ** 2 / (of_items**2 / 2 + of_seeds**2 / 1)
    half = t.ppf(0.975, degrees) * math.sqrt(variance)
    estimate = metrics.crossed_interval(values, ["a", "b", "c"])
    assert (estimate.value, estimate.num) == (0.5, 3)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    items = rng.random(400)
    clusters = [str(i // 2) for i in range(400)]
    alone = metrics.crossed_interval(items[None], clusters)
    equal = metrics.crossed_interval(np.stack([items, items, items]), clusters)
    assert (equal.low, equal.high) == pytest.approx((alone.low, alone.high), abs=2e-3)
    apart = metrics.crossed_interval(np.stack([items - 0.1, items, items + 0.1]), clusters)
    assert apart.high - apart.low > 3 * (equal.high - equal.low)
    assert math.isnan(metrics.crossed_interval(np.zeros((2, 3)), ["a", "a", "a"]).low)


def test_the_interval_over_items_and_seeds_covers_the_true_mean() -> None:
    rng = np.random.default_rng(1)
    num_covered = 0
    for _ in range(300):
        difficulty, luck = rng.normal(0, 0.3, 60), rng.normal(0, 0.04, 3)
        values = 0.6 + difficulty[None] + luck[:, None] + rng.normal(0, 0.2, (3, 60))
        estimate = metrics.crossed_interval(values, list(range(60)))
        num_covered += estimate.low <= 0.6 <= estimate.high
    assert 0.92 <= num_covered / 300 <= 1.0
