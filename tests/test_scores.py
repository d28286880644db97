"""The scores against their formula, object by object in float64, and what they leave alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from parameter_ordering import scores
from parameter_ordering.ensemble import stack, summed
from parameter_ordering.moments import adam_moments
from parameter_ordering.paper.experiments.models import cross_entropy

M, N, K = 21, 4, 3


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(N, 5), nn.ReLU(), nn.Linear(5, K)).double()
    x, y = torch.randn(M, N).double(), torch.randint(K, (M,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for batch in torch.randint(M, (9, 8)):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model, optimizer, x, y


def slow_scores(model, optimizer, x, y, mu, saturating):
    mean, square = adam_moments(model, optimizer)
    total = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for each, answer in zip(x, y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(each[None]), answer[None]).backward()
        for name, w in model.named_parameters():
            total[name] += w.grad / len(x)
    model.zero_grad()
    return {
        name: (g.square() + mu * (square[name] - mean[name].square()).clamp(min=0))
        * (model.get_parameter(name).detach().abs() if saturating else 1.0)
        for name, g in total.items()
    }


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("size", [M, 8, 1])
def test_scores_are_their_formula_however_the_data_are_cut(saturating, size):
    model, optimizer, x, y = trained()
    expected = slow_scores(model, optimizer, x, y, 0.1, saturating)
    batches = zip(x.split(size), y.split(size), strict=True)
    found = scores(model, optimizer, F.cross_entropy, batches, saturating=saturating, mu=0.1)
    torch.testing.assert_close(found, expected)


def test_an_ensemble_scores_each_model_alone():
    pairs = [trained(seed) for seed in (0, 1)]
    models, optimizers, xs, ys = zip(*pairs, strict=True)
    both = stack(list(models))
    optimizer = torch.optim.Adam(both.parameters())
    for w, *alone in zip(both.parameters(), *(m.parameters() for m in models), strict=True):
        states = [o.state[a] for o, a in zip(optimizers, alone, strict=True)]
        moments = {
            k: torch.stack([s[k] for s in states])[:, None] for k in states[0] if k != "step"
        }
        optimizer.state[w] = {**moments, "step": states[0]["step"]}
    x, y = torch.stack(xs)[:, None], torch.stack(ys)[:, None]
    batches = zip(x.split(8, 2), y.split(8, 2), strict=True)
    found = scores(
        both, optimizer, summed(cross_entropy), batches, saturating=True, ensemble_dims=2
    )
    for run, (model, its_optimizer, x, y) in enumerate(pairs):
        alone = scores(model, its_optimizer, F.cross_entropy, [(x, y)], saturating=True)
        torch.testing.assert_close({n: s[run, 0] for n, s in found.items()}, alone)


def test_a_model_may_take_and_give_what_it_likes():
    """A dictionary in, a pair out; a parameter that nothing depends on is scored by its noise."""
    model, optimizer, x, y = trained()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, inputs):
            return self.inner(inputs["x"]), None

    def loss(output, y):
        return F.cross_entropy(output[0], y)

    expected = scores(model, optimizer, F.cross_entropy, [(x, y)], saturating=True)
    found = scores(Wrapped(), optimizer, loss, [({"x": x}, y)], saturating=True)
    torch.testing.assert_close(found, {f"inner.{name}": s for name, s in expected.items()})


def test_training_is_left_as_it_was():
    model, optimizer, x, y = trained()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = scores(model, optimizer, F.cross_entropy, [(x, y)], saturating=False)
    for each in found.values():
        each.fill_(-1)
    assert all(w.grad is None for w in model.parameters())
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_what_cannot_be_scored_is_refused_and_leaves_no_gradient():
    model, optimizer, x, y = trained()
    with pytest.raises(ValueError, match="no batch"):
        scores(model, optimizer, F.cross_entropy, [], saturating=True)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        scores(model, optimizer, F.cross_entropy, [(x, y)], saturating=True, mu=-1)
    fresh = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="train it before"):
        scores(model, fresh, F.cross_entropy, [(x, y)], saturating=True)
    batches = [(x, y), (x[:, :2], y)]
    with pytest.raises(RuntimeError):
        scores(model, optimizer, F.cross_entropy, batches, saturating=True)
    assert all(w.grad is None for w in model.parameters())
