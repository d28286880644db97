"""An order is that of its score, or drawn from the seeds that are for it."""

import functools

import pytest
import torch

from parameter_ordering import experiments
from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.order import rank, shuffle_within
from parameter_ordering.paper.experiments.protocol import train
from parameter_ordering.paper.experiments.shard import Shard
from parameter_ordering.paper.orders.ancestors import ANCESTORS
from parameter_ordering.paper.orders.catalogue import ORDERS
from parameter_ordering.paper.orders.scores import SCORES

SMALL = {"t0": 6, "S": 8, "orders": ("all_samples",)}


@functools.cache
def at_t0(name):
    """Three runs of an experiment when an order looks at them."""
    small = {"hidden": 2} if name == "boston_housing" else {"objects": 40}
    shard = Shard(getattr(experiments, name)(**SMALL, **small), range(3))
    training = shard._training()
    train(training, shard.minibatches, SMALL["t0"], lambda loss: None)
    return training


@pytest.fixture
def training():
    return at_t0("boston_housing")


def assert_same(ranks, expected):
    assert ranks.keys() == expected.keys()
    assert all(torch.equal(ranks[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", SCORES | ANCESTORS)
def test_an_order_by_score_is_that_of_its_score(name):
    """Ties, which ``zero_variance`` has, are broken by the seeds of each run."""
    linear = name in ("oracle", "lasso", "elastic_net")
    training = at_t0("synthetic_3" if linear else "boston_housing")
    expected = rank((SCORES | ANCESTORS)[name](training), training.tie_seeds, ENSEMBLE_DIMS)
    assert_same(ORDERS[name](training), expected)


@pytest.mark.parametrize(
    ("order", "seeds"),
    [
        ("random", lambda training: training.own_seeds),
        ("random_shared", lambda training: [training.common_seed] * 3),
    ],
)
def test_a_random_order_is_that_of_its_seeds(order, seeds, training):
    tied = {name: torch.zeros_like(w) for name, w in training.start.items()}
    assert_same(ORDERS[order](training), rank(tied, seeds(training), ENSEMBLE_DIMS))


@pytest.mark.parametrize(
    ("order", "score"),
    [
        ("random_within_tensors", "covariance"),
        ("fresh_within_tensors", "fresh_gradient"),
        ("recommended_within_tensors", "recommended"),
    ],
)
def test_a_random_order_within_tensors_is_of_its_score_and_each_runs_seed(order, score, training):
    expected = shuffle_within(ORDERS[score](training), training.own_seeds, ENSEMBLE_DIMS)
    assert_same(ORDERS[order](training), expected)
