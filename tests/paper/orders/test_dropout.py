"""Dropout against exact enumeration: a perceptron of eight parameters has 256 masks."""

import itertools

import pytest
import torch
from torch import nn

from parameter_ordering.paper.orders.dropout import dropout, growth_when_dropped


@pytest.fixture
def training(own_training):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.ReLU(),
                            nn.Linear(1, 1)).double() for _ in range(2)]  # fmt: skip
    assert sum(w.numel() for w in models[0].parameters()) == 8
    for model in models:
        for w in model.parameters():
            w.data.uniform_(0.5, 1.5)
    x = torch.randn(20, 1).double()
    return own_training(models, x, x[:, 0].abs(), t0=1500)


def masks(training):
    """Every mask by name, of both runs alike."""
    for bits in itertools.product([False, True], repeat=8):
        parts = torch.tensor(bits).split([w[0].numel() for w in training.start.values()])
        named = zip(training.start.items(), parts, strict=True)
        yield {name: z.view(1, *w.shape[1:]).expand(w.shape) for (name, w), z in named}


def exact(training):
    """Mean loss over all masks without a parameter minus that over all masks with it."""
    weights = dict(training.model.named_parameters())
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for kept in masks(training):
        thinned = {name: 2 * w.detach() * kept[name] for name, w in weights.items()}
        output = torch.func.functional_call(training.model, thinned, (training.x,))
        loss = (output[..., 0] - training.y).square().mean(-1)
        for name, z in kept.items():
            signs = 1.0 - 2.0 * z.double()
            total[name] += signs * loss.view(2, 1, *[1] * (z.ndim - 2)) / 128
    return {name: each.detach() for name, each in total.items()}


def test_over_all_masks_it_is_exact(training):
    drawn = ((training.x, training.y, kept) for kept in masks(training))
    found, expected = growth_when_dropped(training, drawn), exact(training)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_over_random_masks_it_comes_near(training):
    found, expected = dropout(training), exact(training)
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=0, atol=0.15 * max_of(expected))


def max_of(tensors):
    return max(each.abs().max().item() for each in tensors.values())


def test_a_run_does_not_depend_on_the_others(training, own_training):
    training.covariance.t = 10
    both = dropout(training)
    for w in training.model.parameters():
        w.data = w.data[1:].clone()
    training.start = {name: w[1:] for name, w in training.start.items()}
    training.own_seeds = training.own_seeds[1:]
    for name, each in dropout(training).items():
        torch.testing.assert_close(each, both[name][1:])
