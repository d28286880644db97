"""A running mean of matrices, or of their diagonals, over the parameters of a model."""

import functools
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from parameter_ordering.gradients.factors import Rows

_SMALL = 1e-3  # a scale below it is multiplied into the sum


class Running:
    """C = scale * sum: a step of (2.6) multiplies the scale, and adds to the sum.

    Args:
        parameters: by name.
        E: how many leading axes tell the models of an ensemble apart.
        full: whether to keep the matrix, not only its diagonal.
        first: whether V_t is of the first sample alone.
        memory_limit: bytes; a larger matrix is refused.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], E: int, full: bool, first: bool, memory_limit: int
    ):
        self.full, self.first, self.E = full, first, E
        self.shapes = {name: w.shape for name, w in parameters.items()}
        self.ensemble = next(iter(self.shapes.values()))[:E]
        for name, shape in self.shapes.items():
            if len(shape) < E or shape[:E] != self.ensemble:
                raise ValueError(
                    f"parameter {name!r} of shape {tuple(shape)}: the {E} leading "
                    f"axes of the ensemble must be the same for all, {tuple(self.ensemble)}"
                )
        self.sizes = [prod(shape[E:]) for shape in self.shapes.values()]
        self.scale = 1.0
        self.sum: dict[str, Tensor] | Tensor = self._zero(parameters, memory_limit)

    def parts(self) -> Iterable[Tensor]:
        """The tensors that the sum consists of."""
        return (self.sum,) if isinstance(self.sum, Tensor) else self.sum.values()

    def move(self, parameters: Mapping[str, Tensor]) -> None:
        """To where the parameters are now."""
        if isinstance(self.sum, Tensor):
            self.sum = self.sum.to(next(iter(parameters.values())).device)
        else:
            self.sum = {name: C.to(parameters[name].device) for name, C in self.sum.items()}

    def decay(self, beta: float) -> None:
        """C <- beta C."""
        self.scale *= beta
        if self.scale < _SMALL:
            for C in self.parts():
                C.mul_(self.scale)
            self.scale = 1.0

    def add(self, g_S: Mapping[str, Tensor], g: Mapping[str, Rows], alpha: float) -> None:
        """C <- C + alpha V_t."""
        alpha /= self.scale
        if isinstance(self.sum, Tensor):
            self._add_to_matrix(self.sum, g_S, g, alpha)
            return
        for name, g_i in g.items():
            add = g_i.add_first_ if self.first else g_i.add_all_
            add(self.sum[name], g_S[name], alpha)

    def _add_to_matrix(
        self, C: Tensor, g_S: Mapping[str, Tensor], g: Mapping[str, Rows], alpha: float
    ) -> None:
        E = self.E
        deviations = {
            name: (g_i.first().unsqueeze(E) if self.first else g_i.rows()) - g_S[name].unsqueeze(E)
            for name, g_i in g.items()
        }
        S = next((r.shape[E] for r in deviations.values()), 1)
        r = self.joined(deviations, S)
        r, C = r.view(-1, *r.shape[-2:]), C.view(-1, *C.shape[-2:])
        C.baddbmm_(r.mT, r, alpha=alpha / S)

    def joined(self, rows: Mapping[str, Tensor], S: int) -> Tensor:
        """Rows of all parameters, flattened, side by side: (*E, S, p); zero where there are none."""
        like = next(iter(self.parts()))
        r = like.new_zeros(*self.ensemble, S, sum(self.sizes))
        for name, part in zip(self.shapes, r.split(self.sizes, -1), strict=True):
            if name in rows:
                part.copy_(rows[name].reshape(part.shape))
        return r

    def diagonal(self, sums: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """diag(C) by name; a copy."""
        if not isinstance(sums, Tensor):
            return {name: (self.scale * C).clamp_min_(0) for name, C in sums.items()}
        parts = sums.diagonal(dim1=-2, dim2=-1).split(self.sizes, -1)
        return {
            name: self.scale * part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def set(self, C: Mapping[str, Tensor] | Tensor) -> None:
        """C as given, once all of it is found to fit."""
        if self.full == isinstance(C, Mapping):
            kinds = ("a diagonal", "the full matrix")
            raise ValueError(
                f"C is given as {kinds[not self.full]}: full={self.full} takes {kinds[self.full]}"
            )
        own: Any = {"C": self.sum} if self.full else self.sum
        given: Any = {"C": C} if self.full else C
        if own.keys() != given.keys():
            raise ValueError(f"C is for {sorted(given)}, the parameters followed are {sorted(own)}")
        for name, old in own.items():
            if given[name].shape != old.shape:
                raise ValueError(
                    f"C of {name!r} has shape {tuple(given[name].shape)}, not {tuple(old.shape)}"
                )
        for name, old in own.items():
            old.copy_(given[name])

    def _zero(
        self, parameters: Mapping[str, Tensor], memory_limit: int
    ) -> dict[str, Tensor] | Tensor:
        """C_0 = 0."""
        like = {name: accumulator_dtype(w) for name, w in parameters.items()}
        if not self.full:
            return {
                name: torch.zeros(w.shape, dtype=like[name], device=w.device)
                for name, w in parameters.items()
            }
        p, models = sum(self.sizes), prod(self.ensemble)
        dtype = functools.reduce(torch.promote_types, like.values())
        size = models * p * p * dtype.itemsize
        if size > memory_limit:
            raise MemoryError(
                f"the full covariance of {models} x {p} parameters takes {size:,} bytes, above "
                f"memory_limit={memory_limit:,}: follow fewer (parameters=...), keep the diagonal "
                "only, or raise the limit"
            )
        device = next(iter(parameters.values())).device
        return torch.zeros(*self.ensemble, p, p, dtype=dtype, device=device)


def accumulator_dtype(parameter: Tensor) -> torch.dtype:
    """A running mean in half precision would soon stop to move."""
    return torch.promote_types(parameter.dtype, torch.float32)
