"""What freezing a parameter costs, estimated from what Adam keeps and one pass over the data."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from parameter_ordering.moments import adam_moments

__all__ = ["scores"]


def scores(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    mu: float = 0.05,
    theta: float = 0.5,
    ensemble_dims: int = 0,
) -> dict[str, Tensor]:
    r"""Scores that say what freezing costs: rank them, and freeze what has the lowest first.

    .. math::

        s_j = \hat g_j^2 + \mu\,(\hat v_j - \hat m_j^2), \qquad
        \hat g = \mathrm{mean}_i\, J_i^T (u_i - \theta r_i), \qquad r_i = u_i(h_i) - u_i(0) - H_i h_i

    :math:`J_i` is the derivative of the output :math:`h_i = h(w, x_i)` by the parameters,
    :math:`u_i` the gradient of the loss by the output and :math:`H_i` its Hessian; m and v are
    Adam's moments, bias corrected. Without r the first term is the squared gradient over all data,
    to first order what freezing gives up now; the second, the noise of the gradient, says how much
    of *later* residuals the parameter could take up. The term r is what the gradient of a loss that
    saturates falls short of a parabola's: for a cross entropy the outputs go on growing when the
    gradient is small already, and r is in the direction in which they do. For a squared error r is
    zero and the score is that of ``fresh_gradient`` in the book.

    Memory: none beyond Adam's but the scores; the pass accumulates in ``.grad``, which is None
    afterwards. Time: a forward and a backward pass over ``batches``, without r half a pass less.

    Args:
        model: in the mode in which it is to be looked at; its output is a tensor.
        optimizer: Adam or a subclass, after at least one step.
        loss_fn: mean loss of a batch, as ``loss_fn(model(x), y)``; twice differentiable by the
            output.
        batches: pairs x, y, of any sizes: all training data, or a part.
        mu: weight of the noise of the gradient.
        theta: how much of r to take, from 0 to 1.
        ensemble_dims: leading axes of ``model``'s parameters, outputs and y that tell models
            apart; the loss is summed over them.

    Returns:
        The scores by parameter name, for :func:`rank` and :func:`frozen_mask`.

    Raises:
        ValueError: no batch, no moments yet, or mu or theta out of range.
        TypeError: the output is no tensor.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the second feature is dead
    >>> y = torch.tensor([[1.0], [-1.0]])
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> nn.functional.mse_loss(model(x), y).backward()
    >>> optimizer.step()
    >>> scores(model, optimizer, nn.functional.mse_loss, [(x, y)])["weight"] > 0
    tensor([[ True, False]])
    """
    if mu < 0 or not 0 <= theta <= 1:
        raise ValueError(f"mu must be at least 0 and theta in [0, 1], got {mu} and {theta}")
    mean, square = adam_moments(model, optimizer)
    model.zero_grad()
    try:
        objects = sum(_add(model, loss_fn, x, y, theta, ensemble_dims) for x, y in batches)
        if not objects:
            raise ValueError("there is no batch: the gradient needs data")
        found = {}
        for name, w in model.named_parameters():
            noise = (square[name] - mean[name].square()).clamp_min_(0)
            found[name] = noise.mul_(mu)
            if w.grad is not None:
                found[name].addcmul_(w.grad, w.grad, value=1 / objects**2)
        return found
    finally:
        model.zero_grad()


def _add(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    theta: float,
    ensemble_dims: int,
) -> int:
    """Add S times the gradient of a batch to ``.grad``; its number S of objects."""
    output = model(x)
    if not torch.is_tensor(output):
        raise TypeError(f"the output is a {type(output).__name__}: scores need one tensor")
    size = y.shape[ensemble_dims]
    pull = _pull(loss_fn, output.detach(), y, theta)
    output.backward(size * pull)
    return size


def _pull(
    loss_fn: Callable[[Tensor, Tensor], Tensor], h: Tensor, y: Tensor, theta: float
) -> Tensor:
    """u - theta r of a batch, of the shape of its output h."""
    h = h.requires_grad_()
    (u,) = torch.autograd.grad(loss_fn(h, y), h, create_graph=theta > 0)
    if not theta:
        return u
    Hh = torch.zeros_like(h)
    if u.requires_grad:
        (Hh,) = torch.autograd.grad(u, h, h.detach())
    zero = torch.zeros_like(h, requires_grad=True)
    (u_0,) = torch.autograd.grad(loss_fn(zero, y), zero)
    u = u.detach()
    return u - theta * (u - u_0 - Hh)
