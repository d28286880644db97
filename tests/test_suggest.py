"""suggest_k where the growth of the loss is known in closed form, and that it leaves no trace.

The model is w itself, the loss 1/2 sum_i h_i (w_i - w*_i)^2. Gradient descent with the rate r takes
e_i = w_i - w*_i to (1 - r h_i)^s e_i after s steps, and leaves a frozen e_i as it is.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from parameter_ordering.freezing import freeze
from parameter_ordering.granularity import by_tensors
from parameter_ordering.order import rank
from parameter_ordering.schedule import FreezeSchedule
from parameter_ordering.suggest import _mean_and_bounds, suggest_k

CURVATURE = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0], dtype=torch.float64)
ERROR = torch.tensor([0.1, -0.3, 0.05, 0.2, 1.0], dtype=torch.float64)
RATE, STEPS = 0.1, 7
RANKS = {"w": torch.tensor([2, 4, 1, 3, 5])}


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(ERROR.clone())


def sgd(model):
    return torch.optim.SGD(model.named_parameters(), lr=RATE)


def descend(model, optimizer, _):
    optimizer.zero_grad()
    (0.5 * CURVATURE * model.w**2).sum().backward()
    optimizer.step()


def true_growth(candidates):
    each = 0.5 * CURVATURE * ERROR**2 * (1 - (1 - RATE * CURVATURE) ** (2 * STEPS))
    return torch.stack([each[RANKS["w"] <= k].sum() for k in candidates])


def quadratic_losses(model):
    """The same growth for every object, whatever its loss."""
    return (0.5 * CURVATURE * model.w**2).sum() + torch.arange(6, dtype=torch.float64)


def suggest(model, optimizer, losses=quadratic_losses, batches=None, **arguments):
    batches = [None] * 100 if batches is None else batches
    arguments = {"tolerance": 0.1, "steps": STEPS} | arguments
    ranks = arguments.pop("ranks", RANKS)
    step = arguments.pop("step", descend)
    return suggest_k(model, optimizer, ranks, step, losses, batches, **arguments)


def test_without_noise_the_growth_is_exact_and_so_is_k():
    model = Point()
    truth = true_growth(range(6))
    found = suggest(model, sgd(model), candidates=range(6))
    for values in (found.growth, found.lower, found.upper):
        torch.testing.assert_close(values, truth, rtol=1e-12, atol=1e-14)
    assert found.candidates.tolist() == list(range(6))
    for k in range(5):
        for tolerance in ((truth[k] + truth[k + 1]) / 2, truth[k] * (1 + 1e-9)):
            assert suggest(model, sgd(model), tolerance=float(tolerance)).k == k
    assert suggest(model, sgd(model), tolerance=float(truth[5]) * (1 + 1e-9)).k == 5


def test_a_candidate_behind_one_that_fails_is_not_suggested():
    # Training lowers w_0 by 1 a step and raises w_1 by 2; the validation loss is their sum.
    def drift(model, optimizer, _):
        optimizer.zero_grad()
        ((model.w[0] - 2 * model.w[1]) / RATE).backward()
        optimizer.step()

    def losses(model):
        return (model.w[0] + model.w[1]).expand(2)

    model = Point()
    arguments = {"step": drift, "ranks": {"w": torch.arange(1, 6)}, "candidates": [1, 2]}
    found = suggest(model, sgd(model), losses, tolerance=0.0, **arguments)
    torch.testing.assert_close(found.growth, torch.tensor([0.0, STEPS, -STEPS]).double())
    assert found.k == 0
    assert suggest(model, sgd(model), losses, tolerance=STEPS + 0.1, **arguments).k == 2


def test_bounds_cover_the_truth_as_often_as_they_say():
    # One step takes w from 0 to -(1 + u), u differs by trial; object j loses (1 + x_j) w. The
    # growth with w frozen is (1 + x_j) (1 + u), 1 on average over trials and objects.
    def step(model, optimizer, u):
        model.w.grad = (1 + u).expand(1)
        optimizer.step()

    repetitions, trials, objects = 100, 8, 40
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=1.0)
    arguments = {"step": step, "ranks": {"w": torch.tensor([1])}, "steps": 1, "trials": trials}
    found = []
    for repetition in range(repetitions):
        u = torch.randn(trials, generator=generator, dtype=torch.float64)
        x = 2 * torch.randn(objects, generator=generator, dtype=torch.float64)
        one = suggest(
            model, optimizer, lambda model, x=x: (1 + x) * model.w, u, seed=repetition, **arguments
        )
        found.append(torch.stack([one.growth[1], one.lower[1], one.upper[1]]))
    growth, lower, upper = torch.stack(found).T
    assert abs(growth.mean() - 1) < 4 * growth.std() / repetitions**0.5
    # Four standard errors below 0.95, and for so few trials a little less.
    for covered in (upper >= 1, lower <= 1):
        assert covered.double().mean() > 0.86
    # For a normal distribution 3.3 standard deviations lie between the two bounds.
    assert 2.5 < (upper - lower).mean() / growth.std() < 4.5


def test_the_upper_bound_decides_not_the_mean():
    model = Point()
    x = torch.linspace(0, 2, 9, dtype=torch.float64)

    def losses(model):
        return quadratic_losses(model)[0] * x

    def k_tolerating(tolerance):
        return suggest(model, sgd(model), losses, candidates=[5], tolerance=float(tolerance)).k

    found = suggest(model, sgd(model), losses, candidates=[5])
    growth, upper = found.growth[1], found.upper[1]
    assert upper > 1.1 * growth
    assert k_tolerating((growth + upper) / 2) == 0
    assert k_tolerating(upper) == 5


def test_the_seed_alone_decides_what_is_resampled():
    """Not how many random numbers the training takes; and what the defaults are."""

    def wasteful(model, optimizer, batch):
        torch.rand(3)
        descend(model, optimizer, batch)

    def losses(model):
        return quadratic_losses(model)[0] * torch.linspace(0, 2, 9, dtype=torch.float64)

    def bounds(**arguments):
        model = Point()
        found = suggest(model, sgd(model), losses, **arguments)
        return torch.stack([found.lower, found.upper])

    default = bounds(trials=3, confidence=0.95, seed=0, candidates=range(6))
    assert torch.equal(bounds(), default)
    assert torch.equal(bounds(step=wasteful), default)
    for other in ({"trials": 2}, {"confidence": 0.9}, {"seed": 1}):
        assert not torch.equal(bounds(**other), default)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("objects", [100, 30_000])
@pytest.mark.parametrize(("confidence", "quantile"), [(0.95, 1.645), (0.8, 0.842)])
def test_the_bootstrap_of_one_trial_is_that_of_a_mean(objects, confidence, quantile):
    """Whatever the number of objects, in little memory; against the normal distribution."""
    growth = torch.randn(1, 2, objects, dtype=torch.float64)
    with Largest() as largest:
        mean, lower, upper = _mean_and_bounds(growth, confidence)
    torch.testing.assert_close(mean, growth.mean((0, 2)))
    error = quantile * growth.std(-1, correction=0)[0] / objects**0.5
    torch.testing.assert_close(mean - lower, error, rtol=0.1, atol=0.0)
    torch.testing.assert_close(upper - mean, error, rtol=0.1, atol=0.0)
    assert largest.numel <= 2**20


def network():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01, amsgrad=True)
    return model, optimizer


def classify(model, optimizer, batch):
    x, y = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def labelled(number):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(number, 16, 4, generator=generator)
    return list(zip(x, (x[..., 0] > 0).long(), strict=True))


def validation_losses(model):
    x, y = labelled(40)[-1]
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("frozen", [False, True])
def test_model_optimizer_and_random_numbers_are_untouched(frozen):
    model, optimizer = network()
    for batch in labelled(3):
        classify(model, optimizer, batch)
    scores = {name: p.detach().abs() for name, p in model.named_parameters()}
    if frozen:
        freeze(optimizer, {name: s < s.median() for name, s in scores.items()})
    shuffled = torch.utils.data.DataLoader(labelled(20), batch_size=None, shuffle=True)
    arguments = {"step": classify, "ranks": rank(scores), "steps": 3, "tolerance": 1.0}

    def snapshot():
        return {
            "model": copy.deepcopy(model.state_dict()),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "gradients": [p.grad.clone() for p in model.parameters()],
            "parameters": [(p.data_ptr(), p.requires_grad) for p in model.parameters()],
            "modules": [(m.training, len(m._forward_hooks)) for m in model.modules()],
            "random numbers": torch.get_rng_state(),
        }

    before = snapshot()
    found = suggest(model, optimizer, validation_losses, shuffled, **arguments)
    after = snapshot()
    for what, value in before.items():
        assert same(value, after[what]), what
    assert (found.growth[1:] != 0).all()
    assert found.growth.dtype == torch.float64
    again = suggest(model, optimizer, validation_losses, shuffled, **arguments)
    assert same(tuple(found), tuple(again))


def test_a_trial_with_nothing_frozen_is_the_training_itself():
    model, optimizer = network()
    seen = []

    def losses(model):
        seen.append(copy.deepcopy(model.state_dict()))
        assert not model.training
        assert not torch.is_grad_enabled()
        return validation_losses(model)

    arguments = {"step": classify, "ranks": {"4.bias": torch.tensor([1, 2])}, "trials": 2}
    suggest(model, optimizer, losses, labelled(8), steps=4, candidates=[2], seed=9, **arguments)
    for trial, stretch in enumerate((labelled(8)[:4], labelled(8)[4:])):
        other, other_optimizer = network()
        torch.manual_seed(9 + trial)
        for batch in stretch:
            classify(other, other_optimizer, batch)
        assert same(seen[2 * trial], other.state_dict())


def test_parameters_without_elements():
    model = Point()
    model.empty = nn.Parameter(torch.ones(0))
    ranks = RANKS | {"empty": torch.ones(0, dtype=torch.int64)}
    found = suggest(model, sgd(model), ranks=ranks, candidates=range(5))
    torch.testing.assert_close(found.growth, true_growth(range(5)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("k", [1, 4, 6])
def test_nothing_is_frozen_in_the_trial_at_zero(k):
    """Whatever a schedule has frozen in the original, skipped gradients included."""
    model, optimizer = network()
    ranks = rank(by_tensors({name: p.detach().abs() for name, p in model.named_parameters()}))
    arguments = {"step": classify, "ranks": ranks, "steps": 2, "tolerance": 1e9}
    expected = suggest(model, optimizer, validation_losses, labelled(6), **arguments)
    FreezeSchedule(optimizer, lambda: ranks, lambda t: k).step()
    needs_gradient = [p.requires_grad for p in model.parameters()]
    found = suggest(model, optimizer, validation_losses, labelled(6), **arguments)
    assert same(tuple(found), tuple(expected))
    assert [p.requires_grad for p in model.parameters()] == needs_gradient


def test_tensors_are_a_granularity_too():
    model, optimizer = network()
    ranks = rank(by_tensors({name: p.detach().abs() for name, p in model.named_parameters()}))
    skipped = []

    def step(model, optimizer, batch):
        skipped.append(sum(not p.requires_grad for p in model.parameters()))
        classify(model, optimizer, batch)

    arguments = {"step": step, "ranks": ranks, "steps": 2}
    found = suggest(model, optimizer, validation_losses, labelled(6), tolerance=1e9, **arguments)
    assert found.candidates.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.k == 6
    # With all six frozen the last keeps its gradient.
    assert skipped == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"tolerance": torch.nan}, "tolerance is nan"),
        ({"steps": 0}, "steps=0"),
        ({"trials": 0}, "trials=0"),
        ({"confidence": 0.5}, "confidence is 0.5"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"candidates": [2, 6]}, r"\[0, 2, 6\]; each must be in \[0, 5\]"),
        ({"candidates": [-1]}, r"\[-1, 0\]"),
        ({"batches": [None] * 20}, "ended after 20, 3 trials of 7 steps need 21"),
        ({"losses": lambda model: model.w.sum()}, r"shape \(\)"),
        ({"losses": lambda model: model.w[:1]}, r"shape \(1,\); \(n,\) with n >= 2"),
        ({"losses": lambda model: model.w * torch.inf}, "not finite"),
        ({"losses": lambda model: model.w * torch.tensor([1, 1, 1, 1, torch.nan])}, "not finite"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    model = Point()
    with pytest.raises(ValueError, match=message):
        suggest(model, sgd(model), **arguments)


def test_a_loss_that_diverges_with_some_frozen_is_not_suggested():
    model = Point()

    def losses(model):
        return quadratic_losses(model) / (model.w[2] != ERROR[2])

    assert suggest(model, sgd(model), losses, tolerance=1e9).k == 0
