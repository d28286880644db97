"""Dropout of single parameters, the paper's [5]."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor
from torch.func import functional_call

from parameter_ordering.paper.orders.noise import Noise
from parameter_ordering.paper.orders.training import Training

Masks = dict[str, Tensor]


def dropout(trained: Training) -> dict[str, Tensor]:
    r"""Growth of the loss when w_j is dropped, on average over which others are dropped.

    :math:`E[L(2 z \odot w) | z_j = 0] - E[L(2 z \odot w) | z_j = 1]`, each :math:`z_i` being 0 or 1
    with probability 1/2 and the factor keeping the mean. As many minibatches as training to t0 had,
    each with one mask and its complement, so that every parameter is dropped in one of the two.
    Extra: 2 p numbers, and two forward passes an iteration. Source: Srivastava, Hinton, Krizhevsky,
    Sutskever, Salakhutdinov, Dropout, JMLR 15, 2014, for units; the paper has it of parameters.
    """
    noise = Noise(trained.own_seeds, "dropout")

    def drawn() -> Iterable[tuple[Tensor, Tensor, Masks]]:
        for x, y in islice(trained.replay(), trained.covariance.t):
            kept = {name: noise.coins(w.shape, w.device) for name, w in trained.start.items()}
            yield x, y, kept

    return growth_when_dropped(trained, drawn())


@torch.no_grad()
def growth_when_dropped(
    trained: Training, drawn: Iterable[tuple[Tensor, Tensor, Masks]]
) -> dict[str, Tensor]:
    """The mean, over minibatches x and y with a mask of what is kept, of the growth by dropping."""
    weights = {name: w.detach() for name, w in trained.model.named_parameters()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    pairs = 0
    for x, y, kept in drawn:
        losses = []
        for mask in (kept, {name: ~z for name, z in kept.items()}):
            thinned = {name: 2 * w * mask[name] for name, w in weights.items()}
            losses.append(trained.loss(functional_call(trained.model, thinned, (x,)), y).mean(-1))
        contrast = losses[1] - losses[0]  # growth of those that the first mask keeps
        for name, z in kept.items():
            each = contrast.view(*contrast.shape, *[1] * (z.ndim - contrast.ndim))
            total[name] += torch.where(z, each, -each)
        pairs += 1
    return {name: each / pairs for name, each in total.items()}
