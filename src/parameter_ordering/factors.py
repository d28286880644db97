"""The gradients of one parameter for each sample of a minibatch, kept in factors.

A layer that is applied once leaves the gradient of each sample's loss in two factors which the
backward pass computes anyway: for a linear layer g_i = d_i a_i^T, with the input a_i and the output
gradient d_i of sample i. Each class here holds the S gradients of one parameter and gives what the
covariance (2.6) needs of them; `FACTORS` builds them for a layer from its input and output gradient.

Axes: E axes of the ensemble, (*E); samples S; positions T (time steps, pixels); outputs m; inputs n.
"""

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rows:
    """The S gradients as they are: (*E, S, *shape), the sample axis at `dim`."""

    def __init__(self, g: Tensor, dim: int = 0):
        self.g, self.dim = g, dim

    def rows(self) -> Tensor:
        """All g_i: (*E, S, *shape)."""
        return self.g

    def first(self) -> Tensor:
        """g_1: (*E, *shape)."""
        return self.g.select(self.dim, 0)

    def total(self) -> Tensor:
        """The sum of the g_i: (*E, *shape)."""
        return self.g.sum(self.dim)

    def add_first_(self, C: Tensor, g_S: Tensor, beta: float, alpha: float) -> None:
        """C <- beta C + alpha (g_1 - g_S)^2, in place."""
        r = self.first() - g_S
        C.mul_(beta).addcmul_(r, r, value=alpha)

    def add_all_(self, C: Tensor, g_S: Tensor, beta: float, alpha: float) -> None:
        """C <- beta C + alpha mean_i (g_i - g_S)^2, in place."""
        self._add_squares_(C, beta, alpha)
        C.addcmul_(g_S, g_S, value=-alpha)

    def _add_squares_(self, C: Tensor, beta: float, alpha: float) -> None:
        C.mul_(beta).add_(self.g.square().mean(self.dim), alpha=alpha)


class Outer(Rows):
    """g_i = d_i a_i^T: d (*E, S, m), a (*E, S, n)."""

    def __init__(self, d: Tensor, a: Tensor):
        self.d, self.a = d, a

    def rows(self) -> Tensor:
        return self.d.unsqueeze(-1) * self.a.unsqueeze(-2)

    def first(self) -> Tensor:
        return self.d[..., 0, :, None] * self.a[..., 0, None, :]

    def total(self) -> Tensor:
        return self.d.mT @ self.a

    def add_first_(self, C: Tensor, g_S: Tensor, beta: float, alpha: float) -> None:
        if C.dim() > 2:
            return super().add_first_(C, g_S, beta, alpha)
        # By blocks of rows that stay in the cache: no temporary of the size of C is written.
        step = max(1, _block(C) // C.shape[1])
        for c, g, d in zip(C.split(step), g_S.split(step), self.d[0].split(step), strict=True):
            r = torch.addr(g, d, self.a[0], beta=-1)
            c.mul_(beta).addcmul_(r, r, value=alpha)

    def _add_squares_(self, C: Tensor, beta: float, alpha: float) -> None:
        # The mean over i of (d_i a_i^T)^2 is a product of squares, and BLAS adds it to C.
        d, a = self.d.square(), self.a.square()
        alpha = alpha / d.shape[-2]
        if C.dim() == 2:
            C.addmm_(d.mT, a, beta=beta, alpha=alpha)
        else:
            a = a.expand(*d.shape[:-1], -1).flatten(0, -3)
            C.flatten(0, -3).baddbmm_(d.flatten(0, -3).mT, a, beta=beta, alpha=alpha)


class OuterSum(Rows):
    """g_i = sum_t d_it a_it^T: d (S, *groups, m, T), `unfold(x)` (S, *groups, n, T)."""

    dim = 0

    def __init__(self, d: Tensor, x: Tensor, shape: torch.Size, unfold: Callable | None = None):
        self.d, self.x, self.shape = d, x, shape
        self.unfold = unfold or (lambda x: x)

    def _chunks(self):
        """The g_i, as many at a time as stay in the cache."""
        step = max(1, _block(self.d) // max(prod(self.shape), self.x[0].numel()))
        for d, x in zip(self.d.split(step), self.x.split(step), strict=True):
            yield (d @ self.unfold(x).mT).view(-1, *self.shape)

    def rows(self) -> Tensor:
        return torch.cat(list(self._chunks()))

    def first(self) -> Tensor:
        return (self.d[0] @ self.unfold(self.x[:1])[0].mT).view(self.shape)

    def total(self) -> Tensor:
        return sum(g.sum(0) for g in self._chunks())

    def _add_squares_(self, C: Tensor, beta: float, alpha: float) -> None:
        C.mul_(beta)
        for g in self._chunks():
            C.add_(g.square_().sum(0), alpha=alpha / len(self.d))


class Lookup(Rows):
    """g_i = the sum over positions of d_it, each in row `index[i, t]`: index (S, T), d (S, T, n)."""

    dim = 0

    def __init__(self, index: Tensor, d: Tensor, shape: torch.Size):
        self.index, self.d, self.shape = index, d, shape

    def _scatter(self, index: Tensor, d: Tensor, length: int) -> Tensor:
        out = d.new_zeros(length, d.shape[-1])
        return out.index_add_(0, index.flatten(), d.flatten(0, -2))

    def _keys(self) -> Tensor:
        """Sample and row as one number: what two positions of a sample look up must be added."""
        samples = torch.arange(len(self.index), device=self.index.device).unsqueeze(1)
        return samples * self.shape[0] + self.index

    def rows(self) -> Tensor:
        S = len(self.index)
        return self._scatter(self._keys(), self.d, S * self.shape[0]).view(S, *self.shape)

    def first(self) -> Tensor:
        return self._scatter(self.index[0], self.d[0], self.shape[0])

    def total(self) -> Tensor:
        return self._scatter(self.index, self.d, self.shape[0])

    def _add_squares_(self, C: Tensor, beta: float, alpha: float) -> None:
        keys, position = torch.unique(self._keys(), return_inverse=True)
        g = self._scatter(position, self.d, len(keys))
        C.mul_(beta).index_add_(0, keys % self.shape[0], g.square_(), alpha=alpha / len(self.index))


def _block(like: Tensor) -> int:
    return 2**18 if like.device.type == "cpu" else 2**26


def _linear(module: nn.Linear, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    if a.dim() == E + 2:
        return {"weight": Outer(d, a), "bias": Rows(d, E)}
    if E:
        return {}
    a, d = a.flatten(1, -2), d.flatten(1, -2)
    return {"weight": OuterSum(d.mT, a.mT, module.weight.shape), "bias": Rows(d.sum(1))}


def _conv(module: nn.Conv1d | nn.Conv2d, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    def twice(setting: tuple, one: int) -> tuple:
        return (one, *setting) if len(setting) == 1 else setting

    pad = module._reversed_padding_repeated_twice  # the one place where "same" is a number
    if any(pad):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, pad, mode=mode)
    if a.dim() == 3:
        a = a.unsqueeze(2)
    kernel, stride = twice(module.kernel_size, 1), twice(module.stride, 1)
    dilation = twice(module.dilation, 1)

    def unfold(x: Tensor) -> Tensor:
        columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
        return columns.unflatten(1, (module.groups, -1))

    d = d.flatten(2)
    groups = d.unflatten(1, (module.groups, -1))
    return {
        "weight": OuterSum(groups, a, module.weight.shape, unfold),
        "bias": Rows(d.sum(2)),
    }


def _embedding(module: nn.Embedding, index: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    if module.padding_idx is not None:
        d = d.masked_fill((index == module.padding_idx).unsqueeze(-1), 0)
    index, d = index.reshape(len(d), -1), d.reshape(len(d), -1, d.shape[-1])
    return {"weight": Lookup(index, d, module.weight.shape)}


def _trailing(normalise: Callable) -> Callable:
    """Norms whose weight has the shape of the last axes of the input."""

    def factors(module, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
        between = tuple(range(1, d.dim() - len(module.normalized_shape)))
        total = (lambda g: g.sum(between)) if between else (lambda g: g)
        return {"weight": Rows(total(d * normalise(module, a))), "bias": Rows(total(d))}

    return factors


def _channels(normalise: Callable) -> Callable:
    """Norms with one weight a channel, the second axis of the input."""

    def factors(module, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
        def total(g: Tensor) -> Tensor:
            return g.flatten(2).sum(2) if g.dim() > 2 else g

        return {"weight": Rows(total(d * normalise(module, a))), "bias": Rows(total(d))}

    return factors


_layer_norm = _trailing(lambda m, a: F.layer_norm(a, m.normalized_shape, eps=m.eps))
_rms_norm = _trailing(lambda m, a: F.rms_norm(a, m.normalized_shape, eps=m.eps))
_group_norm = _channels(lambda m, a: F.group_norm(a, m.num_groups, eps=m.eps))
_batch_norm = _channels(
    lambda m, a: F.batch_norm(a, m.running_mean, m.running_var, eps=m.eps)  # refused in training
)

FACTORS: dict[type, Callable] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
