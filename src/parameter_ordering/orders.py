"""The orders that an experiment compares: at t0 each gives the ranks of all parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.moments import GradientMoments
from parameter_ordering.order import rank, reverse, shuffle_within
from parameter_ordering.scores import SCORES, Scores


@dataclass(frozen=True)
class Trained:
    """R models after t0 iterations: all that an order may look at.

    Attributes:
        model: ensemble (R, 1, ...) with the weights w_t0.
        optimizer: Adam, with its moments.
        start: the weights w_0 by name.
        covariance: C_t0 of (2.6), from the first sample of each minibatch.
        variance: the same from all samples, or None if no order asks for it.
        exact: the variance at the weights of its last update, from all samples of that.
        moments: of the minibatch gradient, over all iterations.
        x: all training objects, (R or 1, 1, m, n).
        y: their answers, (R or 1, 1, m).
        loss: of each object, from output and answer.
        w_true: the weights that synthetic data were drawn from, (R or 1, n), or None.
        tie_seeds: one seed a run, which breaks the ties of a score.
        own_seeds: one seed a run, for the orders that are drawn in each run anew.
        common_seed: the seed of what all runs share.
    """

    model: nn.Module
    optimizer: torch.optim.Adam
    start: Mapping[str, Tensor]
    covariance: GradientCovariance
    variance: GradientCovariance | None
    exact: GradientCovariance
    moments: GradientMoments
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    w_true: Tensor | None
    tie_seeds: list[int]
    own_seeds: list[int]
    common_seed: int

    def rank(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ranks of scores (R, 1, ...), ties broken anew in each run."""
        return rank(scores, self.tie_seeds, ENSEMBLE_DIMS)


Ranks = dict[str, Tensor]


def by_score(score: Callable[[Trained], Scores], trained: Trained) -> Ranks:
    """The order that a score gives, lowest first; the paper's is that of ``covariance``."""
    return trained.rank(score(trained))


def covariance_descending(trained: Trained) -> Ranks:
    """The printed reading of (2.7) and (2.8): largest diag(C_t0) first."""
    return reverse(by_score(SCORES["covariance"], trained), ENSEMBLE_DIMS)


def random(trained: Trained) -> Ranks:
    """One random permutation a run, the paper's baseline."""
    return _permutation(trained, trained.own_seeds)


def random_shared(trained: Trained) -> Ranks:
    """One random permutation for all runs: what is left of the spread once it is not redrawn."""
    return _permutation(trained, [trained.common_seed] * len(trained.own_seeds))


def random_within_tensors(trained: Trained) -> Ranks:
    """A random order that freezes as many of each weight matrix as the paper's order at every k."""
    return _shuffled("covariance", trained)


def fresh_within_tensors(trained: Trained) -> Ranks:
    """The same for the order of ``fresh_gradient``."""
    return _shuffled("fresh_gradient", trained)


def _shuffled(score: str, trained: Trained) -> Ranks:
    ranks = by_score(SCORES[score], trained)
    return shuffle_within(ranks, trained.own_seeds, ENSEMBLE_DIMS)


def _permutation(trained: Trained, seeds: list[int]) -> Ranks:
    """A random order of each run: that of scores which are all tied."""
    zeros = {name: torch.zeros_like(w) for name, w in trained.start.items()}
    return rank(zeros, seeds, ENSEMBLE_DIMS)


ORDERS: dict[str, Callable[[Trained], Ranks]] = {
    **{name: partial(by_score, score) for name, score in SCORES.items()},
    "random": random,
    "random_shared": random_shared,
    "random_within_tensors": random_within_tensors,
    "fresh_within_tensors": fresh_within_tensors,
    "covariance_descending": covariance_descending,
}
