"""The orders that an experiment compares: at t0 each gives the ranks of all parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.order import rank, reverse, shuffle_within


@dataclass(frozen=True)
class Trained:
    """R models after t0 iterations: all that an order may look at.

    Attributes:
        model: ensemble (R, 1, ...) with the weights w_t0.
        start: the weights w_0 by name.
        optimizer: Adam, with its moments.
        covariance: C_t0 of (2.6), from the first sample of each minibatch.
        own_seeds: one seed a run, for what is drawn in each run anew.
        common_seed: the seed of what all runs share.
    """

    model: nn.Module
    start: Mapping[str, Tensor]
    optimizer: torch.optim.Adam
    covariance: GradientCovariance
    own_seeds: list[int]
    common_seed: int

    def rank(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ranks of scores (R, 1, ...), ties broken anew in each run."""
        return rank(scores, self.own_seeds, ENSEMBLE_DIMS)


Ranks = dict[str, Tensor]


def covariance(trained: Trained) -> Ranks:
    """The paper's order: smallest diag(C_t0) first (section 2.1)."""
    return trained.rank(trained.covariance.diagonal())


def covariance_descending(trained: Trained) -> Ranks:
    """The printed reading of (2.7) and (2.8): largest diag(C_t0) first."""
    return reverse(covariance(trained), ENSEMBLE_DIMS)


def random(trained: Trained) -> Ranks:
    """One random permutation a run, the paper's baseline."""
    return trained.rank({name: torch.zeros_like(w) for name, w in trained.start.items()})


def random_shared(trained: Trained) -> Ranks:
    """One random permutation for all runs: what is left of the spread once it is not redrawn."""
    seeds = [trained.common_seed] * len(trained.own_seeds)
    zeros = {name: torch.zeros_like(w) for name, w in trained.start.items()}
    return rank(zeros, seeds, ENSEMBLE_DIMS)


def random_within_tensors(trained: Trained) -> Ranks:
    """A random order that freezes as many of each weight matrix as the paper's order at every k."""
    return shuffle_within(covariance(trained), trained.own_seeds, ENSEMBLE_DIMS)


def zero_variance_first(trained: Trained) -> Ranks:
    """Parameters whose gradient never varied first, all others at random."""
    diagonal = trained.covariance.diagonal()
    return trained.rank({name: (c > 0).float() for name, c in diagonal.items()})


ORDERS: dict[str, Callable[[Trained], Ranks]] = {
    order.__name__: order
    for order in (
        covariance,
        random,
        random_shared,
        random_within_tensors,
        covariance_descending,
        zero_variance_first,
    )
}
