"""The orders that an experiment compares: at t0 each gives the ranks of all parameters."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.order import rank, reverse, shuffle_within
from parameter_ordering.paper.orders.ancestors import ANCESTORS
from parameter_ordering.paper.orders.readings import READINGS
from parameter_ordering.paper.orders.scores import SCORES, Scores
from parameter_ordering.paper.orders.training import Training

Ranks = dict[str, Tensor]


def by_score(score: Callable[[Training], Scores], trained: Training) -> Ranks:
    """The order that a score gives, lowest first; the paper's is that of ``covariance``."""
    return rank(score(trained), trained.tie_seeds, ENSEMBLE_DIMS)


def covariance_descending(trained: Training) -> Ranks:
    """The printed reading of (2.7) and (2.8): largest diag(C_t0) first."""
    return reverse(by_score(SCORES["covariance"], trained), ENSEMBLE_DIMS)


def random(trained: Training) -> Ranks:
    """One random permutation a run, the paper's baseline."""
    return _permutation(trained, trained.own_seeds)


def random_shared(trained: Training) -> Ranks:
    """One random permutation for all runs: what is left of the spread once it is not redrawn."""
    return _permutation(trained, [trained.common_seed] * len(trained.own_seeds))


def random_within_tensors(trained: Training) -> Ranks:
    """A random order that freezes as many of each weight matrix as the paper's order at every k."""
    return _shuffled("covariance", trained)


def fresh_within_tensors(trained: Training) -> Ranks:
    """The same for the order of ``fresh_gradient``."""
    return _shuffled("fresh_gradient", trained)


def recommended_within_tensors(trained: Training) -> Ranks:
    """The same for the order of ``recommended``."""
    return _shuffled("recommended", trained)


def _shuffled(score: str, trained: Training) -> Ranks:
    ranks = by_score(SCORES[score], trained)
    return shuffle_within(ranks, trained.own_seeds, ENSEMBLE_DIMS)


def _permutation(trained: Training, seeds: list[int]) -> Ranks:
    """A random order of each run: that of scores which are all tied."""
    zeros = {name: torch.zeros_like(w) for name, w in trained.start.items()}
    return rank(zeros, seeds, ENSEMBLE_DIMS)


_SCORES = SCORES | ANCESTORS | READINGS

ORDERS: dict[str, Callable[[Training], Ranks]] = {
    **{name: partial(by_score, score) for name, score in _SCORES.items()},
    "random": random,
    "random_shared": random_shared,
    "random_within_tensors": random_within_tensors,
    "fresh_within_tensors": fresh_within_tensors,
    "recommended_within_tensors": recommended_within_tensors,
    "covariance_descending": covariance_descending,
}
