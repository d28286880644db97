"""Per-sample gradients of a layer, from its inputs and the gradients of its outputs.

A layer that is applied once to a minibatch leaves the gradient of each sample's loss in two
factors that the backward pass computes anyway: for a linear layer g_i = d_i a_i^T, with the
input a_i and the output gradient d_i of sample i. What the covariance (2.6) needs of the g_i is
had from the factors without building all S of them.
"""

import torch
from torch import Tensor, nn


class _Outer:
    """g_i = scale d_i a_i^T: the weight of a linear layer. d (*E, S, m), a (*E, S, n)."""

    def __init__(self, d: Tensor, a: Tensor, scale: float):
        self.d, self.a, self.scale = d, a, scale

    def total(self) -> Tensor:
        return self.scale * (self.d.mT @ self.a)

    def first(self) -> Tensor:
        return self.scale * self.d[..., 0, :, None] * self.a[..., 0, None, :]

    def rows(self) -> Tensor:
        return self.scale * self.d.unsqueeze(-1) * self.a.unsqueeze(-2)

    def add_mean_square_(self, C: Tensor, beta: float, alpha: float) -> None:
        """C <- beta C + alpha mean_i g_i^2, by one product of squares: (d^2)^T a^2."""
        d, a = self.d.square(), self.a.square()
        alpha *= self.scale**2 / d.shape[-2]
        if C.dim() == 2:
            C.addmm_(d.mT, a, beta=beta, alpha=alpha)
        else:
            a = a.expand(*d.shape[:-1], a.shape[-1])
            C.flatten(0, -3).baddbmm_(
                d.flatten(0, -3).mT, a.flatten(0, -3), beta=beta, alpha=alpha
            )


class _Rows:
    """The g_i themselves: (*E, S, *shape), with the sample axis at `dim`; times `scale`."""

    def __init__(self, g: Tensor, dim: int, scale: float):
        self.g, self.dim, self.scale = g, dim, scale

    def total(self) -> Tensor:
        return self.scale * self.g.sum(self.dim)

    def first(self) -> Tensor:
        return self.scale * self.g.select(self.dim, 0)

    def rows(self) -> Tensor:
        return self.scale * self.g

    def add_mean_square_(self, C: Tensor, beta: float, alpha: float) -> None:
        S = self.g.shape[self.dim]
        C.mul_(beta).add_(self.g.square().sum(self.dim), alpha=alpha * self.scale**2 / S)


def linear(module: nn.Linear, a: Tensor, d: Tensor, scale: float) -> dict:
    return {"weight": _Outer(d, a, scale), "bias": _Rows(d, d.dim() - 2, scale)}


FACTORS = {nn.Linear: linear}
