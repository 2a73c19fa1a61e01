"""The statistics of two variants against each other: against scipy's, and on simulated machines whose truth is
known."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.simulations import BLOCKS, MARGIN, coverage, simulate, table, verdicts
from evaluation.latency import SAMPLES_FOR_PERCENTILE, blocks_to_decide, paired_ratio, percentiles
from evaluation.latency.paired import bootstrap_objection, t_interval


def test_the_ratio_and_its_interval_are_students() -> None:
    random = np.random.default_rng(0)
    baseline_B = np.exp(random.normal(size=9))
    times_B = 1.1 * baseline_B * np.exp(0.1 * random.normal(size=9))
    ratio = paired_ratio(times_B, baseline_B)
    theirs = stats.ttest_rel(np.log(times_B), np.log(baseline_B))
    shown, judged = theirs.confidence_interval(0.95), theirs.confidence_interval(0.90)
    assert ratio.interval is not None
    assert ratio.bounds is not None
    assert (ratio.interval.low, ratio.interval.high) == pytest.approx((math.exp(shown.low), math.exp(shown.high)))
    assert (ratio.bounds.low, ratio.bounds.high) == pytest.approx((math.exp(judged.low), math.exp(judged.high)))
    assert ratio.value == pytest.approx(stats.gmean(times_B / baseline_B))


def test_twice_and_half_are_alike() -> None:
    ones, twos = np.ones(4), np.array([2.0, 2.0, 2.0, 2.1])
    there, back = paired_ratio(twos, ones), paired_ratio(ones, twos)
    assert there.interval is not None
    assert back.interval is not None
    assert there.value == pytest.approx(1 / back.value)
    assert there.interval.low == pytest.approx(1 / back.interval.high)


def test_the_bootstrap_objects_to_a_block_unlike_the_others_and_seldom_to_anything_else() -> None:
    ones_B, random = np.ones(12), np.random.default_rng(1)
    calm = [np.exp(0.01 * random.normal(size=12)) for _ in range(60)]
    assert sum(bootstrap_objection(calm_B, ones_B) != "" for calm_B in calm) <= 6
    for calm_B in calm:
        struck_B = np.append(calm_B[:-1], 1.2)
        assert "a bootstrap of blocks disagrees" in bootstrap_objection(struck_B, ones_B)
        assert bootstrap_objection(struck_B[-5:], np.ones(5)) == ""  # too few blocks to check anything


def test_the_blocks_that_would_decide_are_enough_and_no_more() -> None:
    deviation, limit, blocks = 0.02, 1.02, 10
    logs_B = deviation * stats.zscore(np.random.default_rng(2).normal(size=blocks), ddof=1)
    ratio = paired_ratio(np.exp(logs_B), np.ones(blocks))
    needed = blocks_to_decide(ratio, blocks, limit)
    assert needed is not None
    margins = {
        count: (stats.t.ppf(0.95, count - 1) + stats.norm.ppf(0.9)) * deviation / math.sqrt(count)
        for count in (needed - 1, needed)
    }
    assert margins[needed] <= math.log(limit) < margins[needed - 1] or needed == blocks
    assert blocks_to_decide(ratio, blocks, limit=ratio.value) is None
    assert blocks_to_decide(ratio.model_copy(update={"interval": None}), blocks, limit) is None


def test_as_many_blocks_as_advised_do_decide() -> None:
    truth, first = 1.008, simulate(300, ratio=1.008, seed=5)
    median_EBA = np.median(first.steps_EBAS, axis=-1)
    logs = np.log(median_EBA[..., 1] / median_EBA[..., 0])
    deviation = float(np.median(np.abs(logs - np.median(logs)))) * 1.4826
    ratio = paired_ratio(np.exp(np.log(truth) + deviation * stats.zscore(logs.ravel()[:40], ddof=1)), np.ones(40))
    needed = blocks_to_decide(ratio, 40, MARGIN, fewest=2)
    assert needed is not None
    assert 10 < needed < 40
    told = verdicts(100, ratio=truth, blocks=needed, seed=6)
    assert told["PASS"] >= 80
    assert told["FAIL"] == 0


@pytest.mark.parametrize("count", [1, 63, 64, 130, 662, 6_636])
def test_percentiles_need_samples(count: int) -> None:
    times = np.arange(count, dtype=float)
    for percent, value in percentiles(times.tolist()).items():
        enough = count >= SAMPLES_FOR_PERCENTILE[percent]
        assert value == (np.percentile(times, percent) if enough else None)


# ---- simulated machines


@pytest.mark.parametrize("sessions", [60, pytest.param(200, marks=pytest.mark.thorough)])
def test_identical_variants_pass_and_a_real_slowdown_is_found(sessions: int) -> None:
    identical, slower = verdicts(sessions, ratio=1.0), verdicts(sessions, ratio=1.05)
    assert identical["PASS"] >= 0.95 * sessions
    assert identical["FAIL"] <= 0.01 * sessions
    assert slower["FAIL"] >= 0.95 * sessions
    assert slower["PASS"] == 0


@pytest.mark.parametrize("sessions", [100, pytest.param(300, marks=pytest.mark.thorough)])
def test_on_the_limit_a_wrong_pass_is_as_rare_as_promised(sessions: int) -> None:
    told = verdicts(sessions, ratio=MARGIN, seed=3)
    assert told["PASS"] <= 0.08 * sessions
    assert told["FAIL"] <= 0.10 * sessions  # few outliers are as good as none: what slows is told of a little too often


@pytest.mark.parametrize(("sessions", "leeway"), [(500, 0.025), pytest.param(2000, 0.02, marks=pytest.mark.thorough)])
def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says(sessions: int, leeway: float) -> None:
    assert coverage(sessions) == pytest.approx(0.95, abs=leeway)
    assert (
        coverage(sessions // 4, interleaved=False) < 0.7
    )  # one variant after the other: drift is taken for a difference


def test_thefts_are_left_out_where_they_are_large() -> None:
    simulated = simulate(200, seed=4)
    kept_EB = np.array([simulated.kept(number) for number in range(200)])
    stolen_EB = simulated.stolen_EBA.max(axis=-1)
    assert kept_EB.shape == (200, BLOCKS)
    assert 0.02 < 1 - kept_EB.mean() < 0.10
    assert stolen_EB[kept_EB].max() < stolen_EB[~kept_EB].max()


def test_the_interval_is_the_textbooks() -> None:
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert (t_interval(values).low, t_interval(values).high) == pytest.approx((low, high))


def test_the_table_has_a_row_for_every_question() -> None:
    rows = [line for line in table(sessions=4, experiments=20).splitlines() if line.startswith("| ")]
    assert len(rows) == 10
    assert [row.split(" | ")[1] for row in rows[1:7]] == ["10", "10", "10", "5", "5", "20"]
    for row in rows[1:7]:
        assert sum(float(workload.rstrip("% |")) for workload in row.split(" | ")[2:]) == pytest.approx(100)
