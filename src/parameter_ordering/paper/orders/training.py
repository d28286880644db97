"""The training to t0: the models, and what watches them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.moments import GradientMoments

if TYPE_CHECKING:
    from parameter_ordering.paper.orders.readings import Readings


@dataclass(frozen=True)
class Training:
    """R models in training to t0, and what watches them: all that an order may look at.

    Attributes:
        model: ensemble (R, 1, ...); it has the weights w_t0 when an order looks at it.
        optimizer: with its moments.
        start: the weights w_0 by name.
        covariance: C_t0 of (2.6), from the first sample of each minibatch.
        all_samples: the same from all samples, or None if no order asks for it.
        exact: the variance at the weights of its last update, from all samples of that.
        moments: of the minibatch gradient, over all iterations.
        x: all training objects, (R or 1, 1, m, n).
        y: their answers, (R or 1, 1, m).
        loss: of each object, from output and answer.
        gaussian: whether it is a squared error; otherwise it is minus a log likelihood, in nats.
        replay: gives the minibatches of this training again, from the first.
        w_true: the weights that synthetic data were drawn from, (R or 1, n), or None.
        tie_seeds: one seed a run, which breaks the ties of a score.
        own_seeds: one seed a run, for the orders that are drawn in each run anew.
        common_seed: the seed of what all runs share.
        readings: other readings of (2.6), or None if no order asks for one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    start: Mapping[str, Tensor]
    covariance: GradientCovariance
    all_samples: GradientCovariance | None
    exact: GradientCovariance
    moments: GradientMoments
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    gaussian: bool
    replay: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    w_true: Tensor | None
    tie_seeds: list[int]
    own_seeds: list[int]
    common_seed: int
    readings: "Readings | None" = None
