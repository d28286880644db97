"""What the backward passes of a step leave of its contribution to the covariance."""

from collections.abc import Mapping

import torch
from torch import Tensor

from parameter_ordering.gradients.factors import Rows, Sum
from parameter_ordering.gradients.running import Running


class Pending:
    """What the backward passes of a step leave of its V_t, until the step is made.

    Of all samples it is the sum of the squares of their shares, of the first its shares as factors.
    """

    def __init__(self, C: Running):
        self._C = C
        self._squares: dict[str, Tensor] = {}
        self._matrix: Tensor | None = None
        self._firsts: dict[str, list[Rows]] = {}
        self._from_now = True  # whether the first sample is still to come
        self.S = 0

    def take(self, name: str, rows: Rows) -> None:
        """The shares of a backward pass in the gradient of a parameter."""
        if self._C.first:
            if self._from_now:
                self._firsts.setdefault(name, []).append(rows.part(0, 1))
            return
        if name not in self._squares:
            C = self._C.sum[name]  # type: ignore[index]
            self._squares[name] = torch.zeros_like(C)
        rows.add_squares_(self._squares[name], len(rows))

    def end(self, shares: Mapping[str, Rows], S: int) -> None:
        """The rest of the shares of a backward pass, of S samples."""
        C = self._C
        if C.full and not C.first:
            rows = C.joined({name: g.rows() for name, g in shares.items()}, S)
            product = rows.mT @ rows
            self._matrix = product if self._matrix is None else self._matrix.add_(product)
        else:
            for name, each in shares.items():
                self.take(name, each)
        self._from_now, self.S = False, self.S + S

    def clear(self) -> None:
        """Nothing has come."""
        for square in self._squares.values():
            square.zero_()
        self._matrix, self._from_now, self.S = None, True, 0
        self._firsts.clear()

    def add_to(self, C: Running, g: Mapping[str, Tensor], mean: float, alpha: float) -> None:
        r"""C <- C + alpha V_t for :math:`g_i = n s_i` and :math:`g_S = n g / S`, n being ``mean``.

        Args:
            C: the running mean.
            g: the gradient of the step.
            mean: S where the loss is a mean over samples, 1 where it is their sum.
            alpha: the weight.
        """
        if C.first:
            g_S = {name: each.to(_like(C, name)) for name, each in g.items()}
            if mean != self.S:
                g_S = {name: each * (mean / self.S) for name, each in g_S.items()}
            none = {n: [Rows(torch.zeros_like(g_S[n])[None])] for n in g.keys() - self._firsts}
            firsts = none | self._firsts
            C.add(g_S, {name: _joined(firsts[name], mean) for name in g}, alpha)
        elif isinstance(C.sum, Tensor):
            own = {name: each.unsqueeze(0) for name, each in g.items()}
            r = C.joined(own, 1)
            if self._matrix is not None:
                C.sum.add_(self._matrix, alpha=alpha * mean**2 / self.S / C.scale)
            C.sum.addmm_(r.mT, r, alpha=-alpha * (mean / self.S) ** 2 / C.scale)
        else:
            for name, each in g.items():
                square = self._squares.get(name)
                if square is not None:
                    C.sum[name].add_(square, alpha=alpha * mean**2 / self.S / C.scale)
                each = each.to(_like(C, name))
                C.sum[name].addcmul_(each, each, value=-alpha * (mean / self.S) ** 2 / C.scale)


def _like(C: Running, name: str) -> torch.dtype:
    return C.sum.dtype if isinstance(C.sum, Tensor) else C.sum[name].dtype


def _joined(terms: list[Rows], scale: float) -> Rows:
    rows = terms[0] if len(terms) == 1 else Sum(terms)
    rows.scale = scale
    return rows
