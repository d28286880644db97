"""The order on the set of parameters (section 2.1) and the parameters that it freezes, (2.7).

Scores, ranks and masks are mappings from parameter name to tensor, of the parameter's shape. With
``ensemble_dims > 0`` the leading axes tell models apart, and every model is ordered alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from operator import index

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from parameter_ordering.selection import concatenate, mark_first, tie_breaks

__all__ = ["frozen_mask", "mean_frozen", "rank", "reverse", "shuffle_within"]


class NoRank(ValueError, FloatingPointError):
    """A score is NaN: the argument is wrong, and the training that it comes from has diverged."""


@torch.no_grad()
def rank(
    scores: Mapping[str, Tensor], seed: int | Sequence[int] | Tensor = 0, ensemble_dims: int = 0
) -> dict[str, Tensor]:
    r"""Ranks :math:`I` of all parameters together, the smallest score first.

    :math:`I_i = 1 + \#\{j : (s_j, u_j) < (s_i, u_i)\}` with scores :math:`s`, in the paper the
    diagonal of :math:`C_{t_0}`, and distinct random integers :math:`u` that break ties.

    Args:
        scores: per parameter a tensor of shape ``(*ensemble, *parameter.shape)``, real, without
            NaN; infinities are in order. Tensors of several types are compared in their common
            type.
        seed: of the random integers. One for each model, in a shape that is that of the ensemble
            or of its first axes; an int stands for ``seed``, ``seed + 1``, ... along the first
            axis. So models that share all but their first axis break ties alike, and the ranks of
            a model do not depend on how many others there are, nor on the device.
        ensemble_dims: how many leading axes tell models apart; 0 for one model.

    Returns:
        The ranks 1 ... p, int64, in the shapes of ``scores``.

    Raises:
        ValueError: for no scores at all, complex or boolean ones, NaN, leading axes that differ,
            a seed of another shape; the parameter is named.

    Source: Grabovoy, Bakhteev, Strijov, section 2.1.

    >>> rank({"w": torch.tensor([0.3, 0.2, 0.25])})
    {'w': tensor([3, 1, 2])}
    """
    ensemble, _ = _check(scores, ensemble_dims)
    ranks = {name: torch.empty_like(s, dtype=torch.int64) for name, s in scores.items()}
    for model, model_seed in _models(ensemble, seed):
        flat = concatenate([s[model].flatten() for s in scores.values()])
        places = torch.arange(1, len(flat) + 1, device=flat.device)
        order = tie_breaks(places - 1, model_seed).argsort()
        order = order[flat[order].argsort(stable=True)]
        flat_ranks = torch.empty_like(places).index_copy_(0, order, places)
        sizes = [s[model].numel() for s in scores.values()]
        for r, part in zip(ranks.values(), flat_ranks.split(sizes), strict=True):
            r[model] = part.view(r[model].shape)
    return ranks


@torch.no_grad()
def frozen_mask(
    scores: Mapping[str, Tensor],
    k: int,
    seed: int | Sequence[int] | Tensor = 0,
    ensemble_dims: int = 0,
) -> dict[str, Tensor]:
    r"""The vector :math:`\alpha(k)` of (2.7): True for the k parameters that come first.

    The same as ``rank(scores, seed, ensemble_dims)[name] <= k``, ties included, by selection
    in O(p): beside the mask it needs at most two arrays of size p at a time.

    Args:
        scores, seed, ensemble_dims: as in :func:`rank`.
        k: how many parameters of each model to freeze, 0 to p.

    Returns:
        Boolean tensors in the shapes of ``scores``, exactly k of them True for each model.

    Raises:
        ValueError: as :func:`rank`, and for k outside of [0, p].

    Source: Grabovoy, Bakhteev, Strijov, (2.7).

    >>> frozen_mask({"w": torch.tensor([0.3, 0.2]), "b": torch.tensor([0.25])}, k=2)
    {'w': tensor([False,  True]), 'b': tensor([True])}
    """
    ensemble, p = _check(scores, ensemble_dims)
    k = _check_k(k, p)
    masks = {
        name: torch.zeros(s.shape, dtype=torch.bool, device=s.device) for name, s in scores.items()
    }
    for model, model_seed in _models(ensemble, seed):
        if k > 0:
            mark_first(
                [s[model].flatten() for s in scores.values()],
                [mask[model].view(-1) for mask in masks.values()],
                k,
                model_seed,
            )
    return masks


def mean_frozen(ranks: ArrayLike | Tensor, k: ArrayLike | Tensor) -> Tensor:
    r"""The mean :math:`\hat\alpha(k)` of :math:`\alpha(k)` over runs (section 3 of the paper).

    Args:
        ranks: array-like of shape (runs, p), a permutation of 1 ... p in each row.
        k: one number of frozen parameters, or several.

    Returns:
        The share of runs in which a parameter is among the k first, float64 in [0, 1], of shape
        (p,), or (len(k), p) for several k. In a random order it is k / p on average.

    Raises:
        ValueError: for ranks that are not of shape (runs, p), or k outside of [0, p].

    >>> mean_frozen([[3, 1, 2], [1, 3, 2]], k=[1, 2])
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    # By way of numpy torch reads what has labelled axes too.
    ranks, k = (v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for v in (ranks, k))
    if ranks.ndim != 2 or len(ranks) == 0:
        raise ValueError(f"ranks must be of shape (runs, p), got {tuple(ranks.shape)}")
    for number in k.flatten().tolist():
        _check_k(number, ranks.shape[1])
    return (ranks <= k[..., None, None].to(ranks.device)).double().mean(-2)


@torch.no_grad()
def shuffle_within(
    ranks: Mapping[str, Tensor], seed: int | Sequence[int] | Tensor = 0, ensemble_dims: int = 0
) -> dict[str, Tensor]:
    """A random order that, at every k, freezes as many parameters of each tensor as ``ranks``.

    The ranks of each tensor are permuted at random inside it: what is left of an order when only
    the shares of the tensors are kept. Arguments as in :func:`.rank`.

    >>> order = {"w": torch.tensor([1, 3, 4]), "b": torch.tensor([2])}
    >>> shuffled = shuffle_within(order, seed=1)
    >>> shuffled["w"].sort().values, shuffled["b"]
    (tensor([1, 3, 4]), tensor([2]))
    """
    ensemble, _ = _check(ranks, ensemble_dims)
    shuffled = {name: torch.empty_like(r) for name, r in ranks.items()}
    for model, model_seed in _models(ensemble, seed):
        generator = torch.Generator().manual_seed(model_seed)
        for name, r in ranks.items():
            own = r[model].flatten()
            places = torch.randperm(len(own), generator=generator).to(own.device)
            shuffled[name][model] = own[places].view(r[model].shape)
    return shuffled


def reverse(ranks: Mapping[str, Tensor], ensemble_dims: int = 0) -> dict[str, Tensor]:
    """The opposite order, p + 1 - I: the largest score first, as (2.7) and (2.8) are printed.

    >>> reverse({"w": torch.tensor([3, 1, 2])})
    {'w': tensor([1, 3, 2])}
    """
    _, p = _check(ranks, ensemble_dims)
    return {name: p + 1 - r for name, r in ranks.items()}


def _models(
    ensemble: tuple[int, ...], seed: int | Sequence[int] | Tensor
) -> Iterator[tuple[tuple[int, ...], int]]:
    """The index and the seed of every model; one model has the index ()."""
    seeds = torch.as_tensor(seed, device="cpu")
    if seeds.ndim == 0 and ensemble:
        seeds = seeds + torch.arange(ensemble[0])
    if seeds.dtype.is_floating_point or seeds.shape != ensemble[: seeds.ndim]:
        raise ValueError(
            f"seed must be an int, or ints in the shape {ensemble} of the ensemble or of its first"
            f" axes; got shape {tuple(seeds.shape)}, {seeds.dtype}"
        )
    for model in product(*map(range, ensemble)):
        yield model, int(seeds[model[: seeds.ndim]])


def _check(tensors: Mapping[str, Tensor], ensemble_dims: int) -> tuple[tuple[int, ...], int]:
    """The shape of the ensemble and p, the number of parameters of one model."""
    if not tensors:
        raise ValueError("no parameters to order: the mapping is empty")
    first = next(iter(tensors))
    ensemble = tuple(tensors[first].shape[:ensemble_dims])
    for name, s in tensors.items():
        if s.dtype.is_complex or s.dtype == torch.bool:
            raise ValueError(f"{name!r} is {s.dtype}; scores must be real numbers")
        if s.ndim < ensemble_dims:
            raise ValueError(f"{name!r} of shape {tuple(s.shape)} lacks {ensemble_dims=} axes")
        leading = tuple(s.shape[:ensemble_dims])
        if leading != ensemble:
            raise ValueError(
                f"the leading axes of {name!r}, {leading}, differ from {ensemble} of {first!r}"
            )
        # The minimum of a tensor with a NaN is NaN, and takes no temporary.
        if s.is_floating_point() and s.numel() and s.min().isnan():
            raise NoRank(f"the scores of {name!r} contain NaN, which has no rank")
    return ensemble, sum(s.shape[ensemble_dims:].numel() for s in tensors.values())


def _check_k(k: int, p: int) -> int:
    if not 0 <= index(k) <= p:
        raise ValueError(f"k is {k}; the number of frozen parameters must be in [0, {p}]")
    return index(k)
