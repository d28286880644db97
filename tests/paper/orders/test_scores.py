"""Scores against references that anyone can check by eye, in float64, on ensembles of two models.

Gradients of each model at each object are computed one by one and kept, so that every moment is a
mean over a list. The second derivative is that of autograd, object by object.
"""

import copy
import functools
import importlib
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.ensemble import stack, summed
from parameter_ordering.moments import GradientMoments, adam_moments
from parameter_ordering.order import rank
from parameter_ordering.paper.experiments.models import (
    binary_cross_entropy,
    cross_entropy,
    linear,
    perceptron,
    squared_error,
)
from parameter_ordering.paper.orders import gauss_newton as gauss_newton_module
from parameter_ordering.paper.orders.gauss_newton import gauss_newton
from parameter_ordering.paper.orders.scores import SCORES, fresh_gradient

RUNS, M, N, S, T0 = 2, 24, 5, 4, 9
BETAS = (0.9, 0.999)
DEAD = 2  # the input that is always 0


def single(model, run):
    """One model of an ensemble, as an ensemble of one."""
    alone = copy.deepcopy(model)
    for name, w in model.named_parameters():
        alone.get_parameter(name).data = w.detach()[run : run + 1].clone()
    return alone


def gradients(model, loss, x, y):
    """Gradients of each object (RUNS, S, 1, ...) by name, one backward pass for each."""
    each = {name: [] for name, _ in model.named_parameters()}
    for run in range(RUNS):
        alone = single(model, run)
        for i in range(x.shape[2]):
            alone.zero_grad()
            loss(alone(x[run : run + 1, :, [i]]), y[run : run + 1, :, [i]]).sum().backward()
            for name, w in alone.named_parameters():
                each[name].append(w.grad[0].clone())
    return {name: torch.stack(g).view(RUNS, x.shape[2], *g[0].shape) for name, g in each.items()}


def train(build, loss, answers, scale=1.0):
    """Two models after T0 iterations of Adam, and all gradients on the way."""
    torch.manual_seed(0)
    model = stack([build().double() for _ in range(RUNS)])
    start = {name: w.detach().clone() for name, w in model.named_parameters()}
    x = torch.randn(1, 1, M, N, dtype=torch.float64)
    x[..., DEAD] = 0
    y = answers(x)

    def scaled(output, y):
        return scale * loss(output, y)

    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01, betas=BETAS, eps=1e-30)
    covariance = GradientCovariance(model, ensemble_dims=2)
    variance = GradientCovariance(model, samples="all", ensemble_dims=2)
    moments = GradientMoments(model)
    history = []
    for _ in range(T0):
        rows = torch.randint(M, (RUNS, 1, S))
        minibatch = x[0, 0, rows], y[0, 0, rows]
        history.append(gradients(model, scaled, *minibatch))
        variance.update(summed(scaled), *minibatch)
        covariance.update(summed(scaled), *minibatch)
        moments.update()
        optimizer.step()
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        start=start,
        covariance=covariance,
        all_samples=variance,
        moments=moments,
        x=x,
        y=y,
        loss=scaled,
        gaussian=loss is squared_error,
        w_true=torch.randn(1, N, dtype=torch.float64),
        history=history,
    )


KINDS = {
    "regression": (lambda: perceptron(N, 3, 1), squared_error, lambda x: x.sum(-1)),
    "classes": (lambda: perceptron(N, 3, 3), cross_entropy, lambda x: (x[..., 0] > 0).long()),
    "two classes": (
        lambda: linear(N),
        binary_cross_entropy,
        lambda x: (x[..., 0] > 0).to(x.dtype),
    ),
    "linear": (lambda: linear(N), squared_error, lambda x: x.sum(-1)),
}


@functools.cache
def trained_once(kind):
    return train(*KINDS[kind])


@pytest.fixture(params=KINDS)
def trained(request):
    return trained_once(request.param)


@pytest.fixture
def regression():
    return trained_once("regression")


def over_time(trained, statistic):
    """Mean over iterations of a statistic of the gradients (RUNS, S, 1, ...)."""
    return {
        name: torch.stack([statistic(g[name]) for g in trained.history]).mean(0)
        for name in trained.start
    }


def slow_moments(trained):
    """Adam's algorithm 1, line by line."""
    mean, square = {}, {}
    for name in trained.start:
        m = v = 0
        for g in trained.history:
            g_S = g[name].mean(1)
            m = BETAS[0] * m + (1 - BETAS[0]) * g_S
            v = BETAS[1] * v + (1 - BETAS[1]) * g_S**2
        mean[name], square[name] = m / (1 - BETAS[0] ** T0), v / (1 - BETAS[1] ** T0)
    return mean, square


def weights(trained):
    return {name: w.detach() for name, w in trained.model.named_parameters()}


def full_gradient(trained):
    x, y = (each.expand(RUNS, *each.shape[1:]) for each in (trained.x, trained.y))
    return {n: g.mean(1) for n, g in gradients(trained.model, trained.loss, x, y).items()}


def ratio(a, b):
    return torch.tensor(
        [p / q if q > 0 else 0.0 for p, q in zip(a.flatten(), b.flatten(), strict=True)],
        dtype=a.dtype,
    ).view_as(a)


def slow_gauss_newton(trained):
    """Mean over objects of J^T H J, the Jacobian and the Hessian one output at a time."""
    total = {name: torch.zeros_like(w) for name, w in trained.start.items()}
    for run in range(RUNS):
        alone = single(trained.model, run)
        for i in range(M):
            x, y = trained.x[:, :, [i]], trained.y[:, :, [i]]
            output = alone(x)
            H = torch.autograd.functional.hessian(
                lambda o, y=y, shape=output.shape: trained.loss(o.view(shape), y).sum(),
                output.detach().flatten(),
            )
            J = {name: [] for name in total}
            for k in range(output.numel()):
                alone.zero_grad()
                output.flatten()[k].backward(retain_graph=True)
                for name, w in alone.named_parameters():
                    J[name].append(w.grad[0].clone())
            for name, rows in J.items():
                for a, left in enumerate(rows):
                    for b, right in enumerate(rows):
                        total[name][run] += left * H[a, b] * right / M
    return total


def slow(name, trained):
    m, v = slow_moments(trained)
    w = weights(trained)
    full = full_gradient(trained) if name in ("fresh_gradient", "recommended") else None
    h = slow_gauss_newton(trained) if name == "obd" else None
    by_name = {
        "covariance": lambda: over_time(trained, lambda g: (g[:, 0] - g.mean(1)) ** 2),
        "all_samples": lambda: over_time(
            trained, lambda g: ((g - g.mean(1, keepdim=True)) ** 2).mean(1)
        ),
        "second_moment": lambda: over_time(trained, lambda g: g.mean(1) ** 2),
        "zero_variance": lambda: {
            n: (c > 0).double()
            for n, c in over_time(trained, lambda g: (g[:, 0] - g.mean(1)) ** 2).items()
        },
        "adam_v": lambda: v,
        "mean_gradient": lambda: {n: m[n] ** 2 for n in m},
        "signal_to_noise": lambda: {n: ratio(m[n] ** 2, v[n]) for n in m},
        "magnitude": lambda: {n: w[n].abs() for n in w},
        "movement": lambda: {n: (w[n] - trained.start[n]).abs() for n in w},
        "taylor": lambda: {n: (w[n] * m[n]).abs() for n in w},
        "obd": lambda: {n: 0.5 * h[n] * w[n] ** 2 for n in w},
        "oracle": lambda: {n: (w[n] - trained.w_true) ** 2 for n in w},
        "fresh_gradient": lambda: {
            n: full[n] ** 2 + 0.05 * (v[n] - m[n] ** 2).clamp(min=0) for n in m
        },
        "recommended": lambda: {
            n: (full[n] ** 2 + 0.05 * (v[n] - m[n] ** 2).clamp(min=0))
            * (1.0 if trained.gaussian else w[n].abs())
            for n in m
        },
    }
    return by_name[name]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"oracle"}))
def test_a_score_is_its_reference(name, kind):
    assert_is_reference(name, trained_once(kind))


def test_the_oracle_is_its_reference():
    assert_is_reference("oracle", trained_once("linear"))


def assert_is_reference(name, trained):
    scores, expected = SCORES[name](trained), slow(name, trained)
    assert scores.keys() == trained.start.keys()
    for parameter, w in trained.start.items():
        assert scores[parameter].shape == w.shape
        torch.testing.assert_close(scores[parameter], expected[parameter], rtol=1e-9, atol=1e-14)
        assert not scores[parameter].requires_grad


@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"magnitude", "oracle"}))
def test_a_dead_weight_has_the_lowest_score(name, regression):
    """Magnitude knows nothing of the data; for OBD a weight that has no effect costs nothing."""
    first = SCORES[name](regression)["0.weight"]
    assert (first[..., DEAD] == 0).all()
    assert (first[..., DEAD - 1] > 0).any()


@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"oracle"}))
def test_the_order_does_not_depend_on_the_unit_of_the_loss(name):
    """Nor on Adam, which does not either but for its epsilon."""
    orders = []
    for scale in (1.0, 1000.0):
        scores = SCORES[name](train(*KINDS["regression"], scale=scale))
        scores = {n: s.clone().where(s > 1e-25, 0) for n, s in scores.items()}
        orders.append(rank(scores, ensemble_dims=2))
    for parameter, ranks in orders[0].items():
        assert torch.equal(ranks, orders[1][parameter])


@pytest.mark.parametrize("name", SCORES)
def test_scoring_changes_nothing_that_training_goes_on_with(name):
    each = train(*KINDS["linear"])
    before = copy.deepcopy((each.model.state_dict(), each.optimizer.state_dict()["state"]))
    each.model.zero_grad()
    SCORES[name](each)
    assert all(w.grad is None for w in each.model.parameters())
    after = each.model.state_dict(), each.optimizer.state_dict()["state"]
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_scores_do_not_hand_out_what_training_writes_to(regression):
    for name in sorted(SCORES.keys() - {"oracle"}):
        scores = SCORES[name](regression)
        kept = {n: s.clone() for n, s in scores.items()}
        for s in scores.values():
            s.fill_(-1)
        again = SCORES[name](regression)
        for n, s in again.items():
            torch.testing.assert_close(s, kept[n], rtol=0, atol=0)


def test_an_untrained_optimizer_has_no_moments():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=re.escape("no moments of 'weight': train it")):
        adam_moments(model, optimizer)


def test_moments_of_one_model_with_parameter_groups():
    """Each group has its own betas."""
    model = nn.Linear(2, 1).double()
    optimizer = torch.optim.Adam(
        [{"params": [model.weight], "betas": (0.5, 0.7)}, {"params": [model.bias]}], lr=0.0
    )
    for g in (1.0, 3.0):
        model.weight.grad = torch.full_like(model.weight, g)
        model.bias.grad = torch.full_like(model.bias, g)
        optimizer.step()
    mean, square = adam_moments(model, optimizer)
    assert mean["weight"][0, 0].item() == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)
    assert square["weight"][0, 0].item() == pytest.approx((0.21 * 1 + 0.3 * 9) / 0.51)
    assert mean["bias"].item() == pytest.approx((0.09 * 1 + 0.1 * 3) / 0.19)


def test_running_moments_count_a_missing_gradient_as_zero():
    model = nn.Linear(1, 1, bias=False)
    moments = GradientMoments(model)
    for g in (2.0, None, 4.0):
        model.weight.grad = None if g is None else torch.full_like(model.weight, g)
        moments.update()
    assert moments.mean["weight"].item() == pytest.approx(2)
    assert moments.square["weight"].item() == pytest.approx(20 / 3)


def test_signal_to_noise_orders_like_its_usual_form(regression):
    mean, square = slow_moments(regression)
    usual = {n: ratio(m**2, square[n] - m**2) for n, m in mean.items()}
    expected = rank(usual, ensemble_dims=2)
    for name, ranks in rank(SCORES["signal_to_noise"](regression), ensemble_dims=2).items():
        assert torch.equal(ranks, expected[name])


@pytest.mark.parametrize("loss", [squared_error, binary_cross_entropy])
def test_gauss_newton_of_a_linear_model_is_its_hessian(loss):
    torch.manual_seed(0)
    model = linear(3).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    w = model[0].weight.detach().clone()
    H = torch.autograd.functional.hessian(lambda w: loss(x @ w.T, y).mean(), w)
    expected = H.view(3, 3).diagonal()
    torch.testing.assert_close(gauss_newton(model, loss, x, y)["0.weight"][0], expected)


@pytest.mark.parametrize("chunk", [2, 5, 23])  # 5 makes pieces that are not equal
def test_gauss_newton_in_pieces(monkeypatch, trained, chunk):
    x, y = (each.expand(RUNS, *each.shape[1:]) for each in (trained.x, trained.y))
    whole = gauss_newton(trained.model, trained.loss, x, y, 2)
    monkeypatch.setattr(gauss_newton_module, "_CHUNK", chunk)
    pieces = gauss_newton(trained.model, trained.loss, x, y, 2)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name])


def test_obd_is_what_setting_a_weight_to_zero_costs_at_the_minimum():
    """For a linear model at its least-squares solution the growth is exact."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 30, 3, dtype=torch.float64)
    y = torch.randn(1, 1, 30, dtype=torch.float64)
    model = stack([linear(3).double()])
    weight = model[0].weight
    weight.data[0, 0] = torch.linalg.lstsq(x[0, 0], y[0, 0, :, None]).solution.T
    each = SimpleNamespace(model=model, x=x, y=y, loss=squared_error)
    scores = SCORES["obd"](each)["0.weight"][0, 0, 0]
    at_minimum = squared_error(model(x), y).mean().item()
    for j in range(3):
        kept = weight.data.clone()
        weight.data[..., j] = 0
        growth = squared_error(model(x), y).mean().item() - at_minimum
        weight.data.copy_(kept)
        assert scores[j].item() == pytest.approx(growth)


def test_fresh_without_noise_is_the_oracle_on_an_orthogonal_design():
    """With X^T X = m I the mean gradient is 2 (w - w_hat)."""
    each = train(*KINDS["linear"])
    torch.manual_seed(1)
    each.x = torch.linalg.qr(torch.randn(M, N, dtype=torch.float64))[0].mul(M**0.5)[None, None]
    each.y = torch.randn(1, 1, M, dtype=torch.float64)
    w_hat = torch.linalg.lstsq(each.x[0, 0], each.y[0, 0, :, None]).solution
    each.w_true = w_hat.T
    scores = fresh_gradient(each, mu=0.0)["0.weight"]
    torch.testing.assert_close(scores, 4 * SCORES["oracle"](each)["0.weight"])


def test_noise_of_the_gradient_is_never_negative(monkeypatch, regression):
    """Adam's two moments forget at different rates, so v can be less than the square of m."""
    m = {name: torch.ones_like(w) for name, w in regression.start.items()}
    v = {name: each / 2 for name, each in m.items()}
    module = importlib.import_module("parameter_ordering.scores")
    monkeypatch.setattr(module, "adam_moments", lambda *_: (m, v))
    without, ours = fresh_gradient(regression, mu=0.0), fresh_gradient(regression)
    for name in m:
        torch.testing.assert_close(ours[name], without[name], rtol=0, atol=0)


def test_the_oracle_asks_for_the_truth():
    each = train(*KINDS["linear"])
    each.w_true = None
    with pytest.raises(ValueError, match="linear models of synthetic data"):
        SCORES["oracle"](each)
    with pytest.raises(ValueError, match="linear models of synthetic data"):
        SCORES["oracle"](train(*KINDS["regression"]))
