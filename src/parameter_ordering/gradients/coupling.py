"""Refusing models and losses that couple the samples of a minibatch.

The covariance (2.6) is that of the gradients of single samples: these exist where the loss of a
minibatch is the mean, or the sum, of losses l(f(x_i), y_i) in which the other samples have no part.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Loss = Callable[[Tensor, Tensor], Tensor]

_LOOKED_AT = 64  # samples at most, since each needs a loss of its own


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that may take the statistics of the minibatch, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def check_batch_norms(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """That none of these takes the statistics of the minibatch now."""
    for name, layer in layers:
        if layer.training or layer.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a BatchNorm that takes the statistics of the minibatch: "
                "this couples the samples, so none has a gradient of its own; call eval() on this "
                "layer, or use GroupNorm or LayerNorm"
            )


def check_loss(loss_fn: Loss, output: Tensor, y: Tensor, dim: int, mean: bool) -> bool:
    """That a loss that is said to be a mean over samples is not their sum, or the other way round.

    Whatever else it is, the shares of the samples in its gradient are well defined. Returns whether
    there was a gradient to see it by.
    """
    o = output.detach().requires_grad_()
    S = o.shape[dim]
    some = range(0, S, -(-S // _LOOKED_AT))
    loss = loss_fn(o, y)
    (together,) = torch.autograd.grad(loss, o)
    _check_finite(loss, "loss of the minibatch")
    _check_finite(together, "gradient of the loss with respect to the output")
    try:
        losses = [loss_fn(o.narrow(dim, i, 1), y.narrow(dim, i, 1)) for i in some]
    except Exception as error:
        raise ValueError(
            f"loss_fn takes a minibatch, but not one of a single sample, S = 1: {error}. A "
            "squeeze() without an axis takes the axis of the samples away there: name the axis, "
            "squeeze(-1)"
        ) from error
    if S == 1:
        return bool(together.any())
    (apart,) = torch.autograd.grad(torch.stack(losses).sum(), o)
    places = torch.tensor(some, device=o.device)
    together, apart = together.index_select(dim, places), apart.index_select(dim, places)
    other = (together if mean else S * together) - apart
    if apart.any() and other.norm() <= rounding(o.dtype) * apart.norm():
        given, found = ("mean", "sum") if mean else ("sum", "mean")
        raise ValueError(
            f"loss_fn is not the {given} over samples but their {found}: give the other reduction="
        )
    return bool(apart.any())


def check_model(loss_fn: Loss, output: Tensor, y: Tensor, x: Tensor, dim: int) -> bool:
    """That the loss of the first sample does not depend on the others; x is a leaf.

    Returns whether there was a gradient to see it by, or will never be.
    """
    l_1 = loss_fn(output.narrow(dim, 0, 1), y.narrow(dim, 0, 1))
    (d,) = torch.autograd.grad(l_1, x, retain_graph=True, allow_unused=True)
    if d is None:  # the model cuts the graph
        return True
    _check_finite(d, "gradient of the loss with respect to x")
    if d.narrow(dim, 1, x.shape[dim] - 1).any():
        raise ValueError(
            "the model couples the samples: the loss of the first depends on the inputs of the "
            "others, so it has no gradient of its own; replace the layer that looks across the "
            "minibatch"
        )
    return bool(d.any())


def _check_finite(value: Tensor, what: str) -> None:
    """Before it is taken for another reason that what it enters does not agree."""
    if not value.isfinite().all():
        raise ValueError(
            f"the {what} is not finite: look for inf or NaN in x, in y and in the parameters, and "
            "with a scaled loss lower its scale"
        )


def rounding(dtype: torch.dtype) -> float:
    """How far two orders of computing may be apart, TF32 too; what is wrong is off by about 1."""
    return torch.finfo(dtype).eps ** 0.4
