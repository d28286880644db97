"""The share left of a curve, where it is reached, and that the early t0 are what they say."""

import numpy as np
import pytest
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.evidence.stage import EARLY, LATE, STAGES, ratios, reached, share_left
from parameter_ordering.paper.experiments import book_runs


def curve(loss, iteration):
    """A learning curve with this mean test loss, in two runs that differ about it."""
    loss = np.stack([np.asarray(loss) + 0.5, np.asarray(loss) - 0.5])
    return xr.Dataset(
        {"loss": (("split", "run", "iteration"), [np.zeros_like(loss), loss])},
        {"split": ["train", "test"], "iteration": iteration},
    )


def test_the_share_left_goes_from_1_to_0_at_the_lowest_loss():
    left = share_left(curve([12.0, 7.0, 2.0, 4.5], [0, 10, 20, 30]))
    assert left.values.tolist() == [1.0, 0.5, 0.0, 0.25]


@pytest.mark.parametrize("share", STAGES)
def test_an_exponential_reaches_a_share_when_its_logarithm_says(share):
    t = np.arange(0, 2001)
    assert reached(curve(3 + np.exp(-t / 100), t), share) == pytest.approx(
        -100 * np.log(share), abs=1.1
    )


def test_between_points_the_curve_is_straight_and_the_iteration_is_rounded_up():
    falling = curve([10.0, 5.0, 0.0, 1.0], [0, 10, 30, 40])
    assert reached(falling, 0.75) == 5
    assert reached(falling, 0.5) == 10
    assert reached(falling, 0.26) == 20  # 19.6
    assert reached(falling, 0.05) == 28


def test_a_curve_that_comes_back_is_left_at_its_first_passing():
    assert reached(curve([10.0, 0.0, 8.0, 0.0], [0, 10, 20, 30]), 0.5) == 5


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_there_is_no_stage_at_the_start_or_the_end(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
        reached(curve([1.0, 0.0], [0, 1]), share)


def test_where_nothing_is_learnt_there_is_no_stage():
    with pytest.raises(ValueError, match="nothing to gain"):
        reached(curve([1.0, 1.0], [0, 1]), 0.5)


def test_early_and_late_are_among_the_stages_which_descend():
    assert {EARLY, LATE} <= {*STAGES}
    assert list(STAGES) == sorted(STAGES, reverse=True)


def test_a_point_is_the_ratio_at_its_stage(results):
    stages = xr.concat([results(ratio=0.5), results(1, ratio=2.0), results(2, size=0.0)], "left")
    stages = stages.assign_coords(left=[0.9, 0.5, 0.1])
    first, second, third = ratios(stages, ("random",))
    assert (first.left, first.versus) == (0.9, "random")
    assert first.ratio.value == pytest.approx(0.5, abs=0.03)
    assert second.ratio.value == pytest.approx(2.0, abs=0.1)
    assert third.ratio is None


@pytest.mark.slow
@pytest.mark.parametrize("name", book_runs.EXPERIMENTS)
def test_the_early_t0_of_an_experiment_is_where_the_early_share_is_left(name):
    experiment = getattr(experiments, name)()
    learning = experiment.replace(seed=book_runs.CURVE_SEED, runs=book_runs.CURVE_RUNS)
    assert experiment.t0 == reached(learning.learning_curve(progress=False), EARLY)
