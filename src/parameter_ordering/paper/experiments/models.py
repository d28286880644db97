r"""Models (2.2) and per-sample losses (2.3) of the paper.

The models are ordinary :class:`torch.nn.Sequential` modules. They return :math:`h(w, x)`; the
softmax of a classifier belongs to its loss.

The losses keep the sample axis: an output (..., S, K) and a target (..., S) give (..., S), with any
leading axes, and a target broadcasts against the output's leading axes. The loss of a data set,
:math:`L(w, D)`, is the mean over S.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier uniform": nn.init.xavier_uniform_,
    "normal": partial(nn.init.normal_, std=0.1),
}


def perceptron(n: int, hidden: int, outputs: int) -> nn.Sequential:
    r"""Two-layer perceptron :math:`h(w, x) = W_1 \sigma(W_2 x + b_2) + b_1` with ReLU.

    Equation (2.2) has no biases; the numbers of parameters in Table 1 need them.

    >>> def p(model):
    ...     return sum(parameter.numel() for parameter in model.parameters())
    >>> p(perceptron(13, 20, 1)), p(perceptron(784, 10, 10)), p(perceptron(200, 20, 1))
    (301, 7960, 4041)
    """
    return nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def linear(n: int) -> nn.Sequential:
    r"""Linear model :math:`h(w, x) = w^T x`, no bias: a value, or the logit of two classes.

    >>> linear(200)
    Sequential(
      (0): Linear(in_features=200, out_features=1, bias=False)
    )
    """
    return nn.Sequential(nn.Linear(n, 1, bias=False))


def initialized(model: nn.Module, weights: str = "torch") -> nn.Module:
    r"""The model with initial weights of another distribution, and biases of zero.

    Args:
        model: its layers are ``nn.Linear``.
        weights: "torch" leaves what torch draws, uniform in :math:`\pm 1 / \sqrt n` for n inputs;
            "kaiming normal", :math:`N(0, 2 / n)`; "xavier uniform"; "normal", of deviation 0.1.

    >>> initialized(linear(2), "normal")[0].weight.shape
    torch.Size([1, 2])
    """
    for layer in model.modules():
        if weights != "torch" and isinstance(layer, nn.Linear):
            INITIAL_WEIGHTS[weights](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    r"""Loss of regression, :math:`(y - h(w, x))^2`, in squared units of y.

    Args:
        output: (..., S, 1).
        target: (..., S), floating point.

    Returns:
        (..., S).

    Raises:
        TypeError: the target is not floating point.
        ValueError: a shape does not fit.

    >>> squared_error(torch.tensor([[1.0], [5.0]]), torch.tensor([0.0, 2.0]))
    tensor([1., 9.])
    """
    _check_one_output(output)
    _check_target(output, target, "floating point", target.is_floating_point())
    h = output.squeeze(-1)
    return F.mse_loss(h, target.expand_as(h), reduction="none")


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    r"""Loss of classification, :math:`-\ln \mathrm{softmax}_y\, h(w, x)`, in nats.

    Args:
        output: (..., S, K), one value for each class.
        target: (..., S), int64, from 0 to K - 1 (the paper counts from 1).

    Returns:
        (..., S).

    Raises:
        TypeError: the target is not int64.
        ValueError: a shape does not fit.

    >>> cross_entropy(torch.zeros(2, 10), torch.tensor([3, 9]))
    tensor([2.3026, 2.3026])
    """
    _check_target(output, target, "int64", target.dtype == torch.int64)
    # A few classes at a time, logsumexp is several times faster on a CPU than log_softmax.
    chosen = output.gather(-1, target.expand(output.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return output.logsumexp(-1) - chosen


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    r"""Loss of two classes from one logit h: :math:`\ln(1 + e^h) - y h`, in nats.

    Written as :math:`-\ln \sigma((2 y - 1) h)`, so that nothing overflows.

    Args:
        output: (..., S, 1), the logit of y = 1.
        target: (..., S), 0 or 1 in floating point.

    Returns:
        (..., S).

    Raises:
        TypeError: the target is not floating point.
        ValueError: a shape does not fit.

    >>> binary_cross_entropy(torch.tensor([[0.0], [-100.0]]), torch.tensor([1.0, 1.0]))
    tensor([  0.6931, 100.0000])
    """
    _check_one_output(output)
    _check_target(output, target, "floating point", target.is_floating_point())
    return -F.logsigmoid((2 * target - 1) * output.squeeze(-1))


def _check_one_output(output: Tensor) -> None:
    if output.shape[-1:] != (1,):
        raise ValueError(f"output has shape {tuple(output.shape)}: its last axis must be of size 1")


def _check_target(output: Tensor, target: Tensor, wanted: str, right_type: bool) -> None:
    if not right_type:
        raise TypeError(f"target has type {target.dtype}: it must be {wanted}")
    samples = output.shape[:-1]
    axes = zip(reversed(target.shape), reversed(samples), strict=False)
    # The sample axis is never broadcast: a target (S, 1) would give S x S losses.
    if (
        target.ndim > len(samples)
        or target.shape[-1:] != samples[-1:]
        or any(t not in (1, s) for t, s in axes)
    ):
        raise ValueError(
            f"target has shape {tuple(target.shape)}: it must be {tuple(samples)}, or broadcast "
            f"to it but for the sample axis, to fit the output's {tuple(output.shape)}"
        )
