"""The models (2.2) and per-sample losses (2.3) of the paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perceptron(n: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two-layer perceptron with biases and ReLU, ``n - hidden - outputs``."""
    return nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def linear(n: int) -> nn.Sequential:
    """Linear model without bias and with one output."""
    return nn.Sequential(nn.Linear(n, 1, bias=False))


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """``(f(w, x) - y)^2`` of each sample: (..., S, 1) and (..., S) give (..., S)."""
    return (output.squeeze(-1) - target).square()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """``-ln softmax_y(h(w, x))`` of each sample: (..., S, K) and int64 (..., S) give (..., S)."""
    chosen = output.gather(-1, target.expand(output.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(output, -1) - chosen


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of one logit: (..., S, 1) and 0 or 1 of (..., S) give (..., S)."""
    logit = output.squeeze(-1)
    return F.softplus(logit) - target * logit
