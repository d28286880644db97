"""The gradients g_i of one parameter at the S samples of a minibatch, held in factors.

For a linear layer g_i = d_i a_i^T, with the input a_i and the output gradient d_i of sample i. Each
class here gives what the covariance (2.6) needs of the g_i, without building more than a few.

Axes: *E of the ensemble, S samples, T positions (time steps, pixels), m outputs, n inputs. Output
gradients d are those of the loss of the minibatch, times ``scale`` those of a sample's own loss.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor


class Rows:
    """g_i = scale * g[i]: g (*E, S, *shape), the sample axis at ``dim``."""

    def __init__(self, g: Tensor, dim: int = 0, scale: float = 1):
        self.g, self.dim, self.scale = g, dim, scale

    def rows(self) -> Tensor:
        """All g_i: (*E, S, *shape)."""
        return self.scale * self.g

    def __len__(self) -> int:
        """S."""
        return self.g.shape[self.dim]

    def part(self, start: int, length: int) -> "Rows":
        """Those of ``length`` samples from ``start`` on, in memory of their own if they are few."""
        return Rows(_few(self.g, self.dim, start, length), self.dim, self.scale)

    def first(self) -> Tensor:
        """g_1: (*E, *shape)."""
        return self.scale * self.g.select(self.dim, 0)

    def total(self) -> Tensor:
        """The sum of the g_i: (*E, *shape)."""
        return self.scale * self.g.sum(self.dim)

    def weighted(self, weights: Tensor) -> "Rows":
        """weights[i] g_i."""
        return Rows(_times(self.g, weights, self.dim), self.dim, self.scale)

    def add_first_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        """C <- C + alpha (g_1 - g_S)^2, in place."""
        r = torch.sub(g_S, self.g.select(self.dim, 0), alpha=self.scale)
        C.addcmul_(r, r, value=alpha)

    def add_all_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        """C <- C + alpha mean_i (g_i - g_S)^2, in place."""
        r = torch.sub(g_S.unsqueeze(self.dim), self.g, alpha=self.scale)
        C.add_(r.square_().sum(self.dim), alpha=alpha / r.shape[self.dim])

    def add_squares_(self, C: Tensor, alpha: float) -> None:
        """C <- C + alpha mean_i g_i^2, in place."""
        C.add_(self.g.square().sum(self.dim), alpha=alpha * self.scale**2 / len(self))


class Factors(Rows):
    """Factors of the g_i: these are squared and added up first, then g_S^2 is subtracted."""

    dim = 0

    def add_first_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        r = self.first() - g_S
        C.addcmul_(r, r, value=alpha)

    def add_all_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        self.add_squares_(C, alpha)
        C.addcmul_(g_S, g_S, value=-alpha)


class Sum(Factors):
    """g_i = scale times the sum of the g_i of several: a parameter that is used several times."""

    def __init__(self, terms: Sequence[Rows], scale: float = 1):
        self.terms, self.scale, self.dim = terms, scale, terms[0].dim

    def __len__(self) -> int:
        return len(self.terms[0])

    def part(self, start: int, length: int) -> "Sum":
        return Sum([term.part(start, length) for term in self.terms], self.scale)

    def weighted(self, weights: Tensor) -> "Sum":
        return Sum([term.weighted(weights) for term in self.terms], self.scale)

    def rows(self) -> Tensor:
        first, *others = (term.rows() for term in self.terms)
        return self.scale * sum(others, first)

    def first(self) -> Tensor:
        first, *others = (term.first() for term in self.terms)
        return self.scale * sum(others, first)

    def total(self) -> Tensor:
        first, *others = (term.total() for term in self.terms)
        return self.scale * sum(others, first)

    def add_squares_(self, C: Tensor, alpha: float) -> None:
        S = len(self)
        step = max(1, _block(C) // C.numel())
        for start in range(0, S, step):
            g = self.part(start, min(step, S - start)).rows()
            C.add_(g.square_().sum(self.dim), alpha=alpha / S)


class Outer(Factors):
    """g_i = scale d_i a_i^T: d (*E, S, m), a (*E, S, n)."""

    def __init__(self, d: Tensor, a: Tensor, scale: float):
        self.d, self.a, self.scale, self.dim = d, a, scale, d.dim() - 2

    def __len__(self) -> int:
        return self.d.shape[-2]

    def part(self, start: int, length: int) -> "Outer":
        d, a = (_few(t, -2, start, length) for t in (self.d, self.a))
        return Outer(d, a, self.scale)

    def weighted(self, weights: Tensor) -> "Outer":
        return Outer(_times(self.d, weights, -2), self.a, self.scale)

    def rows(self) -> Tensor:
        return self.scale * self.d.unsqueeze(-1) * self.a.unsqueeze(-2)

    def first(self) -> Tensor:
        d, a = self._first()
        return self.scale * d * a

    def total(self) -> Tensor:
        return self.scale * (self.d.mT @ self.a)

    def add_first_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        d, a = self._first()
        blocks = _row_blocks(C, g_S, d)
        room = torch.empty_like(blocks[0][0])
        for c, g, column in blocks:
            r = room.narrow(-2, 0, c.shape[-2])  # the last block may be smaller
            torch.addcmul(g, column, a, value=-self.scale, out=r)
            c.addcmul_(r, r, value=alpha)

    def _first(self) -> tuple[Tensor, Tensor]:
        """d_1 as a column, a_1 as a row."""
        return self.d.select(-2, 0).unsqueeze(-1), self.a.select(-2, 0).unsqueeze(-2)

    def add_squares_(self, C: Tensor, alpha: float) -> None:
        # The mean over i of (d_i a_i^T)^2 is a product of squares, and BLAS adds it to C.
        d, a = self.d.square(), self.a.square()
        alpha *= self.scale**2 / d.shape[-2]
        if C.dim() == 2:
            C.addmm_(d.mT, a, alpha=alpha)
        else:
            a = a.expand(*d.shape[:-1], -1).flatten(0, -3)
            C.flatten(0, -3).baddbmm_(d.flatten(0, -3).mT, a, alpha=alpha)


class OuterSum(Factors):
    """g_i = scale sum_t d_it a_it^T: d (S, *groups, m, T), a = unfold(x) (S, *groups, n, T)."""

    def __init__(
        self,
        d: Tensor,
        x: Tensor,
        scale: float,
        shape: tuple[int, ...],
        unfold: Callable[[Tensor], Tensor] | None = None,
    ):
        self.d, self.x, self.scale, self.shape = d, x, scale, shape
        self.unfold = unfold or (lambda x: x)

    def __len__(self) -> int:
        return len(self.d)

    def part(self, start: int, length: int) -> "OuterSum":
        d, x = (_few(t, 0, start, length) for t in (self.d, self.x))
        return OuterSum(d, x, self.scale, self.shape, self.unfold)

    def weighted(self, weights: Tensor) -> "OuterSum":
        d = _times(self.d, weights, 0)
        return OuterSum(d, self.x, self.scale, self.shape, self.unfold)

    def _product(self, d: Tensor, x: Tensor) -> Tensor:
        return (d @ self.unfold(x).mT).view(-1, *self.shape)

    def rows(self) -> Tensor:
        return self.scale * self._product(self.d, self.x)

    def first(self) -> Tensor:
        return self.scale * self._product(self.d[:1], self.x[:1])[0]

    def total(self) -> Tensor:
        parts = zip(self.d.split(self._step()), self.x.split(self._step()), strict=True)
        first, *others = (self._product(d, x).sum(0) for d, x in parts)
        return self.scale * sum(others, first)

    def _step(self) -> int:
        """How many samples at a time stay in the cache."""
        m, T = self.d.shape[-2:]
        return max(1, _block(self.d) // (prod(self.shape) // m * max(m, T)))

    def _matrices(self, t: Tensor) -> Tensor:
        """(*groups, m, n)."""
        return t.reshape(*self.d.shape[1:-1], -1)

    def add_first_(self, C: Tensor, g_S: Tensor, alpha: float) -> None:
        d, a = self.d[0], self.unfold(self.x[:1])[0].mT
        add = torch.addmm if d.dim() == 2 else torch.baddbmm
        for c, g, rows in _row_blocks(C.view_as(self._matrices(C)), self._matrices(g_S), d):
            r = add(g, rows, a, beta=-1, alpha=self.scale)
            c.addcmul_(r, r, value=alpha)

    def add_squares_(self, C: Tensor, alpha: float) -> None:
        alpha *= self.scale**2 / len(self.d)
        C = C.view_as(self._matrices(C))
        blocks, step = _row_blocks(C, self.d), min(self._step(), len(self.d))
        room = C.new_empty(step, *blocks[0][0].shape)
        for start in range(0, len(self.d), step):
            n = min(step, len(self.d) - start)
            a = self.unfold(self.x.narrow(0, start, n)).mT
            for c, d in blocks:
                out = room.narrow(0, 0, n).narrow(-2, 0, c.shape[-2])
                g = torch.matmul(d.narrow(0, start, n), a, out=out)
                if g.device.type == "cpu":  # in one pass
                    for each in g:
                        c.addcmul_(each, each, value=alpha)
                else:
                    c.add_(g.square_().sum(0), alpha=alpha)


class Lookup(Factors):
    """g_i = scale sum_t d_it in row index_it: index (S, T), d (S, T, n)."""

    def __init__(self, index: Tensor, d: Tensor, scale: float, shape: torch.Size):
        self.index, self.d, self.scale, self.shape = index, d, scale, shape

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, length: int) -> "Lookup":
        index, d = (_few(t, 0, start, length) for t in (self.index, self.d))
        return Lookup(index, d, self.scale, self.shape)

    def weighted(self, weights: Tensor) -> "Lookup":
        return Lookup(self.index, _times(self.d, weights, 0), self.scale, self.shape)

    def _scatter(self, index: Tensor, d: Tensor, length: int) -> Tensor:
        out = d.new_zeros(length, d.shape[-1])
        return out.index_add_(0, index.flatten(), d.flatten(0, -2), alpha=self.scale)

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

    def add_squares_(self, C: Tensor, alpha: float) -> None:
        keys, position = torch.unique(self._keys(), return_inverse=True)
        g = self._scatter(position, self.d, len(keys))
        C.index_add_(0, keys % self.shape[0], g.square_(), alpha=alpha / len(self.index))


def _times(t: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Each sample times its weight."""
    shape = [1] * t.dim()
    shape[dim] = len(weights)
    return t * weights.to(t).view(shape)


def _few(t: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A part of the samples; a copy if small, so that it does not hold the memory of the whole."""
    part = t.narrow(dim, start, length)
    return part.clone() if 8 * length < t.shape[dim] else part


def _block(like: Tensor) -> int:
    """How many numbers a temporary may have: what stays in the cache, or fills an accelerator."""
    return 2**19 if like.device.type == "cpu" else 2**26


def _row_blocks(C: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors in blocks along axis -2, so that nothing of the size of a large C is written."""
    step = max(1, _block(C) * C.shape[-2] // C.numel())
    if step >= C.shape[-2]:
        return [(C, *others)]
    return list(zip(*(t.split(step, -2) for t in (C, *others)), strict=True))
