"""The scores against their formula, object by object in float64, and their limits.

The Jacobian of every object is made row by row, the Hessian of the loss by autograd.
"""

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


def squared(h, y):
    return (h[:, 0] - y.to(h.dtype)).square().mean()


LOSSES = {"cross entropy": F.cross_entropy, "squared error": squared}


def trained(loss, seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(N, 5), nn.Tanh(), nn.Linear(5, K)).double()
    x, y = scale * torch.randn(M, N).double(), torch.randint(K, (M,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(9):
        optimizer.zero_grad()
        loss(model(x[:8]), y[:8]).backward()
        optimizer.step()
    return model, optimizer, x, y


def slow_scores(model, optimizer, loss, x, y, mu, theta):
    mean, square = adam_moments(model, optimizer)
    total = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for each, answer in zip(x, y, strict=True):
        h = model(each[None]).detach()[0]

        def of_output(h, answer=answer):
            return loss(h[None], answer[None])

        u = torch.func.grad(of_output)(h)
        H = torch.func.hessian(of_output)(h)
        r = u - torch.func.grad(of_output)(torch.zeros_like(h)) - H @ h
        for k, pull in enumerate(u - theta * r):
            model.zero_grad()
            model(each[None])[0, k].backward()
            for name, w in model.named_parameters():
                total[name] += pull * w.grad / len(x)
    model.zero_grad()
    return {
        name: g.square() + mu * (square[name] - mean[name].square()).clamp_min(0)
        for name, g in total.items()
    }


@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", LOSSES)
def test_scores_are_their_formula_however_the_data_are_cut(name, theta):
    loss = LOSSES[name]
    model, optimizer, x, y = trained(loss)
    expected = slow_scores(model, optimizer, loss, x, y, 0.1, theta)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    found = scores(model, optimizer, loss, batches, mu=0.1, theta=theta)
    torch.testing.assert_close(found, expected)


def test_a_squared_error_does_not_saturate():
    model, optimizer, x, y = trained(squared)
    found = [scores(model, optimizer, squared, [(x, y)], theta=theta) for theta in (0, 1)]
    torch.testing.assert_close(*found)


def test_logistic_regression_looks_to_where_the_weights_go():
    """With isotropic x and large outputs r goes along -w: weights that grow on score higher."""
    torch.manual_seed(0)
    w, n = torch.tensor([3.0, 3.0, 1.0, 1.0]).double(), 200_000
    x = torch.randn(n, 4).double()
    y = torch.bernoulli((x @ w).sigmoid())
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = torch.optim.Adam(model.parameters())

    def loss(h, y):
        return F.binary_cross_entropy_with_logits(h[:, 0], y)

    loss(model(x), y).backward()
    optimizer.step()
    model.weight.data[0] = w  # at the optimum the gradient is zero
    plain, ahead = (scores(model, optimizer, loss, [(x, y)], mu=0, theta=t) for t in (0, 0.5))
    assert plain["weight"].max() < 0.01 * ahead["weight"].min()
    torch.testing.assert_close((ahead["weight"][0] / ahead["weight"][0, 2]).sqrt(),
                               w, rtol=0.1, atol=0)  # fmt: skip


def test_an_ensemble_scores_each_model_alone():
    pairs = [trained(F.cross_entropy, seed) for seed in (0, 1)]
    models, optimizers, xs, ys = zip(*pairs, strict=True)
    both = stack(list(models))
    optimizer = torch.optim.Adam(both.parameters())
    for w, *alone in zip(both.parameters(), *(m.parameters() for m in models), strict=True):
        states = [o.state[a] for o, a in zip(optimizers, alone, strict=True)]
        optimizer.state[w] = {
            key: torch.stack([s[key] for s in states]).unsqueeze(1) if key != "step" else s_0["step"]
            for s_0 in states[:1]
            for key in s_0
        }
    x, y = torch.stack(xs)[:, None], torch.stack(ys)[:, None]
    loss = summed(cross_entropy)
    found = scores(both, optimizer, loss, zip(x.split(8, 2), y.split(8, 2)), ensemble_dims=2)
    for run, (model, its_optimizer, x, y) in enumerate(pairs):
        alone = scores(model, its_optimizer, F.cross_entropy, [(x, y)])
        torch.testing.assert_close({n: s[run, 0] for n, s in found.items()}, alone)


def test_training_is_left_as_it_was():
    model, optimizer, x, y = trained(F.cross_entropy)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    scores(model, optimizer, F.cross_entropy, [(x, y)])
    assert all(w.grad is None for w in model.parameters())
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_what_cannot_be_scored_is_refused():
    model, optimizer, x, y = trained(F.cross_entropy)
    with pytest.raises(ValueError, match="no batch"):
        scores(model, optimizer, F.cross_entropy, [])
    with pytest.raises(ValueError, match=r"theta in \[0, 1\], got 0.05 and 2"):
        scores(model, optimizer, F.cross_entropy, [(x, y)], theta=2)
    with pytest.raises(ValueError, match="train it before"):
        fresh = torch.optim.Adam(model.parameters())
        scores(model, fresh, F.cross_entropy, [(x, y)])

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x), x

    pair = Pair()
    with pytest.raises(TypeError, match="output is a tuple"):
        scores(pair, optimizer, F.cross_entropy, [(x, y)])
