"""Masks by module, by name, by pattern or by rows, rather than by an order."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from parameter_ordering.frozen.names import bare

__all__ = ["mask_of"]

Which = str | nn.Module | nn.Parameter


def mask_of(model: nn.Module, *which: Which | Mapping[Which, Tensor]) -> dict[str, Tensor]:
    """A mask for :func:`.freeze` of all that is named: True = frozen, by name.

    Args:
        model: whose parameters they are. What ``DistributedDataParallel`` and ``torch.compile`` put
            before a name need not be given.
        which: each a module or a parameter of the model; the name of one; a pattern of names of
            parameters, with ``*``, ``?`` and ``[...]`` as in a shell; or a mapping from any of
            these to a bool tensor that is broadcast to the shape of each parameter: rows of a
            matrix of shape (m, n) are (m, 1), columns (n,). What is named twice is frozen where
            either says so.

    Returns:
        Masks of the parameters that are named, of their shapes and on their devices.

    Raises:
        TypeError: for a mask that is not bool.
        ValueError: for what is not in the model, and for a shape that cannot be broadcast.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> list(mask_of(model, "*.bias"))
    ['0.bias', '2.bias']
    >>> list(mask_of(model, model[0], "2.bias"))
    ['0.weight', '0.bias', '2.bias']
    >>> rows = torch.tensor([[True], [False], [False]])
    >>> mask_of(model, {"0.weight": rows})["0.weight"]
    tensor([[ True,  True],
            [False, False],
            [False, False]])
    """
    mask: dict[str, Tensor] = {}
    for each in which:
        rules = each if isinstance(each, Mapping) else {each: torch.tensor(True)}
        for one, values in rules.items():
            for name, p in _named(model, one).items():
                spread = _spread(values, p, name)
                mask[name] = mask[name] | spread if name in mask else spread
    return mask


def _named(model: nn.Module, which: Which) -> dict[str, nn.Parameter]:
    """The parameters of the model that are meant, by name."""
    named = dict(model.named_parameters())
    if isinstance(which, str):
        meant = bare(which)
        inside = f"{meant}." if meant else ""
        found = {
            name: p
            for name, p in named.items()
            if name == which
            or (short := bare(name)) == meant
            or fnmatchcase(short, meant)
            or (inside and short.startswith(inside))
        }
    else:
        parts = {which} if isinstance(which, nn.Parameter) else set(which.parameters())
        found = {name: p for name, p in named.items() if p in parts}
    if not found:
        what = repr(which) if isinstance(which, str) else f"this {type(which).__name__}"
        raise ValueError(f"{what} names no parameter of the model; it has {', '.join(named)}")
    return found


def _spread(values: Tensor, p: nn.Parameter, name: str) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype != torch.bool:
        kind = values.dtype if isinstance(values, Tensor) else type(values)
        raise TypeError(f"the mask of {name!r} must be a tensor of torch.bool, not {kind}")
    try:
        return values.to(p.device).expand(p.shape).clone(memory_format=torch.contiguous_format)
    except RuntimeError as error:
        raise ValueError(
            f"a mask of shape {tuple(values.shape)} cannot be broadcast to {name!r}, which has "
            f"{tuple(p.shape)}: rows of a matrix are rows[:, None]"
        ) from error
