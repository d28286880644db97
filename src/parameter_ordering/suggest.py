"""How many parameters can be frozen: a short trial of several k from one and the same state."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parameter_ordering.freezing import freeze
from parameter_ordering.granularity import to_parameters
from parameter_ordering.skipping import skip_gradients

__all__ = ["Suggestion", "suggest_k"]

_RESAMPLES = 2000
_AT_ONCE = 2**20  # how many resampled objects are in memory


class Suggestion(NamedTuple):
    r"""What :func:`.suggest_k` found.

    Attributes:
        k: the largest candidate up to which no upper bound passes the tolerance.
        candidates: the values of k that were tried, increasing, the first 0; int64, shape (K,).
        growth: the mean growth of the loss at each candidate, in units of the loss; 0 at k = 0.
        lower: its lower bound at each candidate.
        upper: its upper bound; each of the two holds with probability ``confidence``.
    """

    k: int
    candidates: Tensor
    growth: Tensor
    lower: Tensor
    upper: Tensor


def suggest_k(
    model: nn.Module,
    optimizer: Optimizer,
    ranks: Mapping[str, Tensor],
    step: Callable[[nn.Module, Optimizer, Any], Any],
    losses: Callable[[nn.Module], Tensor],
    batches: Iterable[Any],
    *,
    tolerance: float,
    steps: int,
    candidates: Sequence[int] | None = None,
    trials: int = 3,
    confidence: float = 0.95,
    seed: int = 0,
) -> Suggestion:
    r"""The number of parameters that can be frozen for a tolerated growth of a validation loss.

    For each candidate k and each trial a copy of model and optimizer trains ``steps`` iterations
    with the k first of the order frozen. The growth at k is

    .. math:: \Delta(k) = \frac{1}{T n} \sum_{\tau = 1}^{T} \sum_{j = 1}^{n}
        \bigl( l_j(w_{\tau, k}) - l_j(w_{\tau, 0}) \bigr),

    a mean over T trials and n validation objects of the loss with k frozen less the loss with
    nothing frozen. All k of a trial see the same minibatches and random numbers, so this is a
    paired comparison. Its bounds are quantiles of a bootstrap of both trials and objects (Owen,
    The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), which is rather too wide than
    too narrow for many trials; few trials say little of how much trials differ, one says nothing.

    Suggested is the largest candidate such that, at it and at every smaller one, the upper bound
    is at most the tolerance. The bounds hold for each k by itself and speak of ``steps`` more
    iterations, not of a whole training.

    Args:
        model, optimizer: the state to start from. They are copied, never changed; nor are the
            global random numbers of torch. Hooks on the optimizer are not copied.
        ranks: the order, of parameters, units or tensors; k counts the same. What it names trains
            in the copies, frozen or not in the original.
        step: ``step(model, optimizer, batch)`` does one iteration of training.
        losses: ``losses(model)`` gives the losses of n >= 2 validation objects, shape (n,). It
            is called in evaluation mode, without gradients.
        batches: gives at least ``trials * steps`` minibatches, which are held in memory.
        tolerance: the growth to tolerate, in units of the loss, at least 0.
        steps: iterations of each trial.
        candidates: values of k; by default 21 from 0 to all, equally spaced. 0 is always tried.
        trials: T, the number of stretches of minibatches. In all, T x K x ``steps`` iterations.
        confidence: that of each bound.
        seed: of the random numbers in the trials and of the bootstrap.

    Raises:
        ValueError: for numbers out of range, too few batches, losses that are not of shape (n,)
            or not finite with nothing frozen.

    >>> model = torch.nn.Linear(2, 1, bias=False)  # The second feature is always 0.
    >>> def step(model, optimizer, x):
    ...     optimizer.zero_grad()
    ...     (model(x) - 1).square().mean().backward()
    ...     optimizer.step()
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    >>> found = suggest_k(
    ...     model,
    ...     torch.optim.SGD(model.parameters(), lr=0.1),
    ...     {"weight": torch.tensor([[2, 1]])},
    ...     step,
    ...     lambda model: (model(x) - 1).square().squeeze(1),
    ...     [x] * 60,
    ...     tolerance=0.01,
    ...     steps=20,
    ... )
    >>> found.k, found.candidates
    (1, tensor([0, 1, 2]))
    """
    p = max(int(r.max()) for r in ranks.values() if r.numel())
    if candidates is None:
        candidates = [round(p * i / 20) for i in range(21)]
    candidates = sorted({0, *candidates})
    _check(candidates, p, tolerance, steps, trials, confidence)
    with _random_numbers_apart(model):
        held = list(islice(batches, trials * steps))
        if len(held) < trials * steps:
            raise ValueError(
                f"batches ended after {len(held)}, {trials} trials of {steps} steps need "
                f"{trials * steps}; chain.from_iterable(repeat(loader)) of itertools never ends"
            )
        found = []
        for trial in range(trials):
            stretch = held[trial * steps : (trial + 1) * steps]
            for k in candidates:
                torch.manual_seed(seed + trial)
                mask = {name: r <= k for name, r in ranks.items()}
                found.append(_train(model, optimizer, mask, step, losses, stretch))
        found = torch.stack(found).unflatten(0, (trials, len(candidates)))
        if not found[:, 0].isfinite().all():
            raise ValueError("the losses with nothing frozen are not finite")
        torch.manual_seed(seed)
        growth, lower, upper = _mean_and_bounds(found - found[:, :1], confidence)
    tolerated = (upper <= tolerance).int().cumprod(0)
    k = candidates[int(tolerated.sum()) - 1]
    return Suggestion(k, torch.tensor(candidates), growth, lower, upper)


def _train(
    model: nn.Module,
    optimizer: Optimizer,
    mask: Mapping[str, Tensor],
    step: Callable[[nn.Module, Optimizer, Any], Any],
    losses: Callable[[nn.Module], Tensor],
    batches: Iterable[Any],
) -> Tensor:
    """The validation losses (n,) of a copy that has trained with a mask; float64, on the CPU."""
    model, optimizer = copy.deepcopy((model, optimizer))
    parameters = dict(model.named_parameters())
    mask = to_parameters(mask, parameters)
    for name in mask:  # a schedule may have switched it off
        parameters[name].requires_grad_()
    freeze(optimizer, {parameters[name]: m for name, m in mask.items()})
    with skip_gradients(parameters.items(), mask):
        for batch in batches:
            step(model, optimizer, batch)
    with torch.no_grad():
        values = losses(model.eval())
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"losses gave shape {tuple(values.shape)}; (n,) with n >= 2 is needed")
    return values.double().cpu()


def _mean_and_bounds(growth: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means and bounds, each (K,), of growths (T, K, n) in T trials and n objects."""
    trials, _, objects = growth.shape
    sums = []
    for part in torch.arange(_RESAMPLES).split(max(1, _AT_ONCE // objects)):
        resampled_trials = _resample(growth, len(part), trials)
        resampled_objects = _resample(growth, len(part), objects)
        sums.append(torch.einsum("tkb,bt->kb", growth @ resampled_objects.T, resampled_trials))
    means = torch.cat(sums, dim=-1) / (trials * objects)
    lower, upper = torch.quantile(means, growth.new_tensor([1 - confidence, confidence]), dim=-1)
    return growth.mean((0, 2)), lower, upper


def _resample(like: Tensor, number: int, n: int) -> Tensor:
    """How often each of n is among n that are drawn with replacement; (number, n), as ``like``."""
    drawn = torch.randint(n, (number, n), device=like.device)
    return like.new_zeros(number, n).scatter_add_(1, drawn, like.new_ones(()).expand_as(drawn))


def _random_numbers_apart(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which random numbers are drawn without anybody outside noticing."""
    devices = {p.device for p in model.parameters() if p.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    return torch.random.fork_rng(devices, device_type=kind)


def _check(
    candidates: Sequence[int], p: int, tolerance: float, steps: int, trials: int, confidence: float
) -> None:
    if candidates[0] < 0 or candidates[-1] > p:
        raise ValueError(f"candidates are {candidates}; each must be in [0, {p}], as the ranks are")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0")
    if steps < 1 or trials < 1:
        raise ValueError(f"{steps=}, {trials=}: each must be at least 1")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0.5 and 1")
