"""The masks of an optimizer: whose they are, where they stand, and which are refused.

They stand in its parameter groups, since torch saves and loads what stands there as it is, and
under the names of the parameters, since nothing else survives another order of these. A group whose
parameters have no names has their positions in its place.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from parameter_ordering.frozen.names import Names
from parameter_ordering.frozen.parts import local

KEY = "frozen_masks"
LOST = (
    "the masks of the checkpoint were lost on the way into the optimizer: call freeze(optimizer) "
    "before set_optimizer_state_dict, and load it again"
)


class Held(dict[str | int, Tensor]):
    """The masks of a parameter group whose parameters hooks hold still."""


_NOTHING = Held()


class Masked(NamedTuple):
    """A parameter with a mask: its group, the mask, and what errors call it."""

    group: dict[str, Any]
    p: Tensor
    mask: Tensor
    name: str


def keys(group: Mapping[str, Any]) -> Sequence[str | int]:
    """What the masks of a group stand under: the names of its parameters, or their positions."""
    names = group.get("param_names") or ()
    positions = range(len(group["params"]))
    return names if len(set(names)) == len(positions) else positions


def stored(group: Mapping[str, Any]) -> dict[str | int, Tensor | None]:
    """The masks in a group of an optimizer or a checkpoint; once they stood in a list."""
    masks = group.get(KEY, {})
    if isinstance(masks, Mapping):
        return dict(masks)
    return dict(zip(group.get("param_names") or range(len(masks)), masks, strict=True))


def standing_masks(optimizer: Optimizer) -> list[Masked]:
    """What the masks in the groups of an optimizer freeze, or an error where they do not fit."""
    masks = {}
    for group in optimizer.param_groups:
        if has_lost_masks(group):
            raise ValueError(LOST)
        of_group = stored(group)
        for key, p in zip(keys(group), group["params"], strict=True):
            if (mask := of_group.get(key)) is not None:
                masks[p] = mask
    return fit([optimizer], masks)[0]


def fit(optimizers: Sequence[Optimizer], masks: Mapping[Tensor, Tensor]) -> list[list[Masked]]:
    """The masks that freeze anything, checked and placed as their parameters are; by optimizer."""
    for optimizer in optimizers:
        for p, name in _called(optimizer).items():
            if p in masks:
                _check(masks[p], p, name)
    return [
        [
            Masked(group, p, place(masks[p], p), called[p])
            for group in optimizer.param_groups
            for p in group["params"]
            if p in masks and local(masks[p]).any()
        ]
        for optimizer, called in ((each, _called(each)) for each in optimizers)
    ]


def set_masks(optimizer: Optimizer, masked: Iterable[Masked]) -> None:
    """Take over the masks as they are."""
    masks = {each.p: each.mask for each in masked}
    for group in optimizer.param_groups:
        pairs = zip(keys(group), group["params"], strict=True)
        group[KEY] = Held({key: masks[p] for key, p in pairs if p in masks})
        _forget_loss(group)


def drop_masks(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group.pop(KEY, None)
        _forget_loss(group)


def has_lost_masks(group: Mapping[str, Any]) -> bool:
    """Whether a group comes from a checkpoint with masks, and they do not.

    Names are a tuple there, where torch has a list: a flattened state dict brings the names of
    parameters to every optimizer, and the masks only to one that has some.
    """
    return KEY not in group and type(group.get("param_names")) is tuple


def has_masks_of_nobody(optimizer: Optimizer) -> bool:
    """Whether masks were loaded that no hooks hold, or were lost on the way."""
    return any(
        has_lost_masks(group) or type(group.get(KEY, _NOTHING)) is not Held
        for group in optimizer.param_groups
    )


def _forget_loss(group: dict[str, Any]) -> None:
    if "param_names" in group:
        group["param_names"] = list(group["param_names"])


def by_parameter(optimizers: Sequence[Optimizer], mask: Mapping[Any, Tensor]) -> dict[Tensor, Any]:
    """The mask keyed by parameter, or an error for what no optimizer has or for what is not one."""
    if not isinstance(mask, Mapping):
        raise TypeError(f"mask must map names or parameters to tensors, not be a {type(mask)}")
    named: dict[Tensor, str] = {}
    params: set[Tensor] = set()
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        params.update(group["params"])
        named |= dict(zip(group["params"], group.get("param_names") or (), strict=False))
    names = Names(named.values())
    masks: dict[Tensor, Any] = {}
    for key, each in mask.items():
        p = key if isinstance(key, Tensor) else _find(key, list(named), list(named.values()), names)
        if p not in params:
            raise ValueError(f"the optimizer does not have this parameter: {key}")
        if p in masks:
            raise ValueError(f"parameter {named.get(p, key)!r} stands twice in the mask")
        masks[p] = each
    return masks


def _find(key: object, params: list[Tensor], names: list[str], index: Names) -> Tensor:
    if not names:
        raise ValueError(
            f"the optimizer has no names, so not {key!r}: build it from model.named_parameters(), "
            "or key the mask by the parameters themselves"
        )
    found = index[key] if isinstance(key, str) else []
    if not found:
        raise ValueError(f"the optimizer has no parameter {key!r}; it has {', '.join(names)}")
    if len(found) > 1:
        raise ValueError(
            f"the optimizer has {len(found)} parameters named {key!r}: key the mask by the "
            "parameters themselves"
        )
    return params[found[0]]


def place(mask: Any, p: Any) -> Tensor:
    """The mask on the device of its parameter, and sharded as that is."""
    placed: Tensor
    if not hasattr(p, "placements"):
        placed = (mask.full_tensor() if hasattr(mask, "full_tensor") else mask).to(p.device)
    elif hasattr(mask, "placements"):
        placed = mask.redistribute(p.device_mesh, p.placements)
    else:
        from torch.distributed.tensor import distribute_tensor

        # Every process has the whole mask: none is sent.
        whole = mask.to(p.device)
        placed = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
    return placed


def _called(optimizer: Optimizer) -> dict[Tensor, str]:
    """What errors call the parameters: their names, or their numbers in the state dict."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [repr(n) for group in optimizer.param_groups for n in group.get("param_names") or ()]
    calls = names if len(names) == len(params) else range(len(params))
    return {p: f"parameter {call}" for p, call in zip(params, calls, strict=True)}


def _check(mask: object, p: Tensor, name: str) -> None:
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask)
    if not isinstance(mask, Tensor) or kind != torch.bool:
        raise TypeError(f"the mask of {name} must be a tensor of torch.bool, not {kind}")
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(f"{name} is of {p.dtype}, which no gradient trains: it needs no mask")
    if mask.shape != p.shape:
        raise ValueError(
            f"the mask of {name} has shape {tuple(mask.shape)}, the parameter {tuple(p.shape)}"
        )
