"""Other readings of (2.6), held against gradients taken one object at a time."""

import pytest
import torch

from parameter_ordering import experiments
from parameter_ordering.paper.experiments.protocol import kappa_of, seeds, train, uniform
from parameter_ordering.paper.experiments.shard import Shard
from parameter_ordering.paper.orders.readings import READINGS
from parameter_ordering.paper.orders.scores import SCORES

STEPS = 7


def plain(experiment, runs, reading):
    """The recursion written out, for each run a dict of tensors."""
    shard = Shard(experiment, runs)
    training = shard._training()
    C = uniform(training.start, seeds(experiment.seed, "C_0", runs))
    kappa = kappa_of(experiment.kappa)
    for t in range(1, STEPS + 1):
        x, y = next(shard.minibatches)
        g = []
        for i in range(experiment.S):
            shard.model.zero_grad()
            experiment.loss(shard.model(x[:, :, i : i + 1]), y[:, :, i : i + 1]).sum().backward()
            g.append({name: w.grad.clone() for name, w in shard.model.named_parameters()})
        k = kappa(t) if callable(kappa) else kappa
        for name, w in shard.model.named_parameters():
            each = torch.stack([g_i[name] for g_i in g])
            mean, first = each.mean(0), each[0]
            V = {
                "covariance": (first - mean).square(),
                "all_samples": (each - mean).square().mean(0),
                "first_not_centred": first.square(),
                "all_not_centred": each.square().mean(0),
                "not_cleared": (first - (first + mean)).square(),
            }[reading]
            C[name] = (1 - k) * C[name] + k * V
            w.grad = mean
        training.optimizer.step()
    return C


@pytest.mark.parametrize("kappa", ["1/t", "1/(t+1)", "0.1"])
@pytest.mark.parametrize("reading", ["covariance", "all_samples", *READINGS])
def test_a_reading_is_its_recursion(reading, kappa):
    experiment = experiments.boston_housing(hidden=3, S=5, kappa=kappa, orders=(reading,))
    shard = Shard(experiment, range(2))
    training = shard._training()
    expected = plain(experiment, range(2), reading)
    train(training, shard.minibatches, STEPS, lambda loss: None)
    for name, C in (SCORES | READINGS)[reading](training).items():
        torch.testing.assert_close(C, expected[name], rtol=1e-4, atol=1e-4)


def test_not_cleared_is_the_second_moment():
    experiment = experiments.boston_housing(hidden=3, orders=("not_cleared",))
    shard = Shard(experiment, range(2))
    training = shard._training()
    train(training, shard.minibatches, 30, lambda loss: None)
    for name, C in READINGS["not_cleared"](training).items():
        torch.testing.assert_close(C, SCORES["second_moment"](training)[name])


@pytest.mark.parametrize("reading", READINGS)
def test_what_was_not_followed_is_named(reading):
    training = Shard(experiments.boston_housing(hidden=3), range(2))._training()
    with pytest.raises(ValueError, match="not followed"):
        READINGS[reading](training)
