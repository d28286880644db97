"""Moments of the minibatch gradient: those that Adam keeps, and their running mean."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Moments(NamedTuple):
    """Estimates of the mean of the minibatch gradient and of its square, by parameter name."""

    mean: dict[str, Tensor]
    square: dict[str, Tensor]


def adam_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    r"""Adam's :math:`\hat m_t` and :math:`\hat v_t`, with its correction of the start.

    Raises:
        ValueError: the optimizer has no moments of a parameter yet.

    Source: Kingma, Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1.
    """
    betas = {w: group.get("betas") for group in optimizer.param_groups for w in group["params"]}
    moments = Moments({}, {})
    for name, w in model.named_parameters():
        state = optimizer.state.get(w, {})
        if "exp_avg" not in state:
            raise ValueError(
                f"the optimizer has no moments of {name!r}: train it before it is scored"
            )
        for kept, key, beta in zip(moments, ("exp_avg", "exp_avg_sq"), betas[w], strict=True):
            kept[name] = state[key] / (1 - beta ** float(state["step"]))
    return moments


class GradientMoments:
    r"""Running means of the minibatch gradient :math:`g_S` and of its square, over all iterations.

    :math:`\frac{1}{t} \sum_s g_{S,s}` and :math:`\frac{1}{t} \sum_s g_{S,s}^2`: not centred, unlike
    (2.6), and not forgetting, unlike Adam's. Two numbers for each parameter.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> moments = GradientMoments(model)
    >>> for x in (1.0, 3.0):
    ...     model.zero_grad()
    ...     model(torch.tensor([[x]])).sum().backward()
    ...     moments.update()
    >>> moments.mean["weight"].item(), moments.square["weight"].item()
    (2.0, 5.0)
    """

    def __init__(self, model: nn.Module):
        self.model, self.t = model, 0
        self.mean = {name: torch.zeros_like(w).detach() for name, w in model.named_parameters()}
        self.square = {name: torch.zeros_like(each) for name, each in self.mean.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the gradient that stands in ``.grad``; none counts as zero."""
        self.t += 1
        for name, w in self.model.named_parameters():
            mean, square = self.mean[name], self.square[name]
            square.mul_(1 - 1 / self.t)
            if w.grad is not None:
                mean.lerp_(w.grad, 1 / self.t)
                square.addcmul_(w.grad, w.grad, value=1 / self.t)
            else:
                mean.mul_(1 - 1 / self.t)
