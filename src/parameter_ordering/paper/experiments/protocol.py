"""The paper's experiment on R runs at once: train to t0, put in order, freeze, train on."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from parameter_ordering.ensemble import branch, stack, summed
from parameter_ordering.freezing import freeze
from parameter_ordering.paper.orders.catalogue import Ranks
from parameter_ordering.paper.orders.training import Training

_PURPOSES = ("weights", "minibatches", "ties", "own order", "common order", "C_0")
_FETCHED = 2**18  # numbers that are fetched at a time: few calls, and all stays in the cache
Loss = Callable[[Tensor, Tensor], Tensor]
Tick = Callable[[float], None]


def seeds(seed: int, purpose: str, runs: Sequence[int]) -> list[int]:
    """One independent seed a run: it depends on nothing but ``seed``, purpose and run number."""
    entropy = [(seed, _PURPOSES.index(purpose), run) for run in runs]
    return [int(np.random.SeedSequence(each).generate_state(1)[0]) for each in entropy]


def build_all(build: Callable[[], nn.Module], weight_seeds: Sequence[int]) -> nn.Module:
    """An ensemble (R, 1, ...) of models, each built from its own seed."""
    models = []
    for seed in weight_seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(build())
    return stack(models)


# How the m objects of an epoch are drawn: each once in random order, with replacement, in the order
# of the file. The last minibatch, where it is incomplete, is left out.
DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "epochs": lambda m, generator: torch.randperm(m, generator=generator),
    "replacement": lambda m, generator: torch.randint(m, (m,), generator=generator),
    "fixed order": lambda m, generator: torch.arange(m),
}


class Minibatches(Iterator[tuple[Tensor, Tensor]]):
    """Endless minibatches x (R, 1, S, n) and y (R, 1, S), each run in its own epochs.

    Drawn from objects x (R or 1, m, n) and y (R or 1, m), of each run or shared by all. An epoch
    is floor(m / S) minibatches; how its objects are drawn is one of ``DRAWS``. ``t`` counts the
    minibatches given so far.
    """

    def __init__(
        self, x: Tensor, y: Tensor, S: int, run_seeds: Sequence[int], draw: str = "epochs"
    ):
        self.x, self.y, self.S, self.t = x, y, S, 0
        self._run_seeds, self._draw = run_seeds, draw
        self._stream = self._give()

    def __next__(self) -> tuple[Tensor, Tensor]:
        self.t += 1
        return next(self._stream)

    def copy(self) -> "Minibatches":
        """The same minibatches from here on, whatever becomes of these."""
        other = Minibatches(self.x, self.y, self.S, self._run_seeds, self._draw)
        other.t = self.t
        return other

    def _give(self) -> Iterator[tuple[Tensor, Tensor]]:
        generators = [torch.Generator().manual_seed(seed) for seed in self._run_seeds]
        runs, m, n = len(generators), *self.x.shape[1:]
        past = self.t - 1  # minibatches that a copy does not give again
        objects, answers = self.x.flatten(0, 1), self.y.flatten()
        first = torch.arange(len(self.x)).unsqueeze(1) * m
        ahead = max(1, _FETCHED // (runs * self.S * n))
        while True:
            epoch = first + torch.stack([DRAWS[self._draw](m, g) for g in generators])
            if past >= m // self.S:
                past -= m // self.S
                continue
            epoch = epoch[:, past * self.S : m - m % self.S].to(self.x.device)
            past = 0
            for chosen in epoch.split(ahead * self.S, dim=1):
                rows = chosen.flatten()
                # On a CPU index_select is several times faster than x[rows].
                x = objects.index_select(0, rows).view(runs, 1, -1, n).split(self.S, dim=2)
                y = answers.index_select(0, rows).view(runs, 1, -1).split(self.S, dim=2)
                yield from zip(x, y, strict=True)


class Diverged(ArithmeticError):
    """The loss of a model is not finite at iteration t; run and variant are its place (R, V)."""

    def __init__(self, run: int, variant: int, t: int, loss: float):
        super().__init__(run, variant, t, loss)
        self.run, self.variant, self.t, self.loss = run, variant, t, loss


def _finite(total: Tensor, model: nn.Module, loss: Loss, x: Tensor, y: Tensor, t: int) -> float:
    """The loss of the ensemble as a number; :class:`Diverged` if it is not finite."""
    value = total.item()
    if math.isfinite(value):
        return value
    with torch.no_grad():
        each = loss(model(x), y).mean(-1)
    beyond = ~each.isfinite()
    if not beyond.any():  # each is, and their sum is not
        beyond = each == each.max()
    run, variant = beyond.nonzero()[0].tolist()
    raise Diverged(run, variant, t, each[run, variant].item())


def kappa_of(setting: str) -> float | Callable[[int], float]:
    """The smoothing kappa_t of (2.6): "1/t" as in the paper, "1/(t+1)", or a number for all t."""
    if setting == "1/t":
        return lambda t: 1 / t
    if setting == "1/(t+1)":
        return lambda t: 1 / (t + 1)
    try:
        kappa = float(setting)
    except ValueError:
        kappa = 0
    if not 0 < kappa <= 1:
        raise ValueError(f'kappa must be "1/t", "1/(t+1)" or a number in (0, 1], got {setting!r}')
    return kappa


def uniform(like: Mapping[str, Tensor], run_seeds: Sequence[int]) -> dict[str, Tensor]:
    """For each parameter a tensor (R, 1, ...) drawn from [0, 1], each run from its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    return {
        name: torch.stack([torch.rand(w.shape[1:], generator=g) for g in generators]).to(w.device)
        for name, w in like.items()
    }


def train(trained: Training, minibatches: Minibatches, t0: int, tick: Tick) -> None:
    """t0 iterations of Adam, with C estimated at each (2.6)."""
    loss = summed(trained.loss)
    for _ in range(t0):
        x, y = next(minibatches)
        if trained.readings is not None:
            total = trained.readings.update(loss, x, y)
        else:
            if trained.all_samples is not None:
                trained.all_samples.update(loss, x, y)
            total = trained.covariance.update(loss, x, y)
        trained.moments.update()
        value = _finite(total, trained.model, trained.loss, x, y, minibatches.t)
        trained.optimizer.step()
        tick(value / len(x))


def exact_variance(trained: Training) -> dict[str, Tensor]:
    """Variance of the gradients of all training objects at the weights that the model has now."""
    trained.exact.update(summed(trained.loss), trained.x, trained.y)
    return trained.exact.diagonal()


def freeze_and_train(
    trained: Training,
    variants: Sequence[tuple[Ranks, int]],
    minibatches: Minibatches,
    iterations: int,
    tick: Tick,
) -> None:
    """Branch every run into V variants (order, k), freeze the k first of each, train on.

    The model becomes (R, V, ...). The variants of a run start from the same weights and moments and
    see the same minibatches.
    """
    model, optimizer = trained.model, trained.optimizer
    branch(model, optimizer, len(variants))
    mask = {
        name: torch.cat([ranks[name] <= k for ranks, k in variants], dim=1)
        for name, _ in model.named_parameters()
    }
    freeze(optimizer, mask, in_backward=False)
    loss = summed(trained.loss)
    for _ in range(iterations):
        x, y = next(minibatches)
        model.zero_grad()
        total = loss(model(x), y)
        value = _finite(total, model, trained.loss, x, y, minibatches.t)
        total.backward()
        optimizer.step()
        tick(value / (len(x) * len(variants)))
