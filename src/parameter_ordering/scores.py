"""What freezing a parameter costs, estimated from what Adam keeps and one pass over the data."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from parameter_ordering.moments import adam_moments

__all__ = ["scores"]


def scores(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    loss_fn: Callable[[Any, Tensor], Tensor],
    batches: Iterable[tuple[Any, Tensor]],
    *,
    saturating: bool,
    mu: float = 0.05,
    ensemble_dims: int = 0,
) -> dict[str, Tensor]:
    r"""Scores that say what freezing costs: rank them, and freeze what has the lowest first.

    .. math::

        f_j = \bar g_j^2 + \mu\,(\hat v_j - \hat m_j^2), \qquad
        s_j = \begin{cases} f_j & \text{for a squared error} \\
        f_j\,|w_j| & \text{for a loss that saturates} \end{cases}

    To first order freezing gives up the gradient times the way that the parameter would have gone.
    :math:`\bar g` is the gradient over all of ``batches`` and m and v are Adam's moments, bias
    corrected: the noise of the gradient says how much of *later* residuals the parameter could take
    up. Where the loss is a parabola, the way is as long as the gradient says. Where it saturates,
    as a cross entropy does, weights go on to grow when their gradient is small already, and the
    longer the larger they are.

    Memory: none beyond Adam's but the scores; the pass accumulates in ``.grad``, which is None
    afterwards. Time: a forward and a backward pass over ``batches``.

    Args:
        model: in the mode in which it is to be looked at.
        optimizer: Adam or a subclass, after at least one step.
        loss_fn: mean loss of a batch, as ``loss_fn(model(x), y)``.
        batches: pairs x, y, of any sizes: all training data, or a part. The rows of y are counted.
        saturating: True for cross entropies, False for a squared error.
        mu: weight of the noise of the gradient.
        ensemble_dims: leading axes of ``model``'s parameters and of y that tell models apart; the
            loss is summed over them.

    Returns:
        The scores by parameter name, for :func:`rank` and :func:`frozen_mask`.

    Raises:
        ValueError: no batch, no moments yet, or a negative mu.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the second feature is dead
    >>> y = torch.tensor([[1.0], [-1.0]])
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> nn.functional.mse_loss(model(x), y).backward()
    >>> optimizer.step()
    >>> found = scores(model, optimizer, nn.functional.mse_loss, [(x, y)], saturating=False)
    >>> found["weight"] > 0
    tensor([[ True, False]])
    """
    if mu < 0:
        raise ValueError(f"mu must be at least 0, got {mu}")
    mean, square = adam_moments(model, optimizer)
    model.zero_grad()
    try:
        objects = 0
        for x, y in batches:
            size = y.shape[ensemble_dims]
            (size * loss_fn(model(x), y)).backward()
            objects += size
        if not objects:
            raise ValueError("there is no batch: the gradient needs data")
        found = {}
        for name, w in model.named_parameters():
            score = (square[name] - mean[name].square()).clamp_min_(0).mul_(mu)
            if w.grad is not None:
                score.addcmul_(w.grad, w.grad, value=1 / objects**2)
            found[name] = score.mul_(w.detach().abs()) if saturating else score
        return found
    finally:
        model.zero_grad()
