"""Ordering units or tensors instead of single parameters.

The paper orders single parameters. An aggregate of their scores orders what a framework can leave
out as a whole: a unit (the weights into one output: a row, a filter, an entry of a bias) or a
tensor. Aggregated scores are ranked and masked as any others, k then counts units or tensors, and
:func:`to_parameters` carries the mask back to the parameters::

    mask = to_parameters(frozen_mask(by_tensors(C.diagonal()), k), C.diagonal())
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from parameter_ordering.frozen.names import Names

__all__ = ["by_tensors", "by_units", "to_parameters"]

Reduce = Callable[..., Tensor]


def by_units(
    scores: Mapping[str, Tensor], reduce: Reduce = torch.mean, ensemble_dims: int = 0
) -> dict[str, Tensor]:
    """One score for each unit: each index of a parameter's first axis.

    Args:
        scores: per parameter a tensor of shape ``(*ensemble, units, *rest)``; a parameter of no
            axes, shape ``(*ensemble,)``, is one unit.
        reduce: called with ``dim=-1`` on shape ``(*ensemble, units, n)``, n scores a unit:
            ``torch.mean``, ``torch.amax``, ``torch.sum``, ``torch.linalg.vector_norm``.
        ensemble_dims: how many leading axes tell models apart.

    Returns:
        Scores of shape ``(*ensemble, units)``.

    >>> by_units(
    ...     {"weight": torch.tensor([[1.0, 3.0], [0.0, 6.0]]), "bias": torch.tensor([5.0, 4.0])}
    ... )
    {'weight': tensor([2., 3.]), 'bias': tensor([5., 4.])}
    """
    return _aggregate(scores, reduce, ensemble_dims, ensemble_dims + 1)


def by_tensors(
    scores: Mapping[str, Tensor], reduce: Reduce = torch.mean, ensemble_dims: int = 0
) -> dict[str, Tensor]:
    """One score for each tensor, of shape ``(*ensemble,)``; arguments as in :func:`by_units`.

    >>> by_tensors(
    ...     {"weight": torch.tensor([[1.0, 3.0], [0.0, 6.0]]), "bias": torch.tensor([5.0, 4.0])}
    ... )
    {'weight': tensor(2.5000), 'bias': tensor(4.5000)}
    """
    return _aggregate(scores, reduce, ensemble_dims, ensemble_dims)


def to_parameters(
    values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give every parameter the mask (or the rank) of the unit or the tensor that it belongs to.

    Args:
        values: tensors of any type, each of a shape that the parameter's shape begins with.
        parameters: by name; only their shapes matter, so scores of the parameters do as well.
            What wrappers put before a name does not matter.

    Returns:
        Tensors of the shapes of the parameters, under the names that these have.

    Raises:
        ValueError: for a name that is not among the parameters, or a shape that does not fit.

    >>> to_parameters({"weight": torch.tensor([True, False])}, {"weight": torch.zeros(2, 3)})
    {'weight': tensor([[ True,  True,  True],
            [False, False, False]])}
    """
    spread = {}
    names = Names(parameters)
    for given, v in values.items():
        name = names.one(given)
        if name is None:
            raise ValueError(f"{given!r} is not among the parameters {sorted(parameters)}")
        shape = parameters[name].shape
        if v.shape != shape[: v.ndim]:
            raise ValueError(f"{name!r}: {tuple(shape)} does not begin with {tuple(v.shape)}")
        spread[name] = v.reshape(v.shape + (1,) * (len(shape) - v.ndim)).expand(shape).contiguous()
    return spread


def _aggregate(
    scores: Mapping[str, Tensor], reduce: Reduce, ensemble_dims: int, kept: int
) -> dict[str, Tensor]:
    for name, s in scores.items():
        if s.ndim < ensemble_dims:
            raise ValueError(f"{name!r} of shape {tuple(s.shape)} lacks {ensemble_dims=} axes")
    return {
        name: reduce(s.flatten(kept) if s.ndim > kept else s.unsqueeze(-1), dim=-1)
        for name, s in scores.items()
    }
