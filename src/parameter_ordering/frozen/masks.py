"""The masks of an optimizer: whose they are, where they stand, and which are refused.

They stand in its parameter groups, a mask or None for each parameter, since torch saves and loads
what stands there as it is.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

_KEY = "frozen_masks"


def set_masks(optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> None:
    """Take over the masks as they are, keyed by parameter."""
    for group in optimizer.param_groups:
        group[_KEY] = [masks.get(p) for p in group["params"]]


def drop_masks(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group.pop(_KEY, None)


def has_masks(optimizer: Optimizer) -> bool:
    return any(_KEY in group for group in optimizer.param_groups)


def masked_parameters(optimizer: Optimizer) -> Iterator[tuple[dict, Tensor, Tensor, str]]:
    """Group, parameter, mask and name for errors of each parameter that has a frozen part."""
    names = _names(optimizer)
    for group in optimizer.param_groups:
        group_masks = group.get(_KEY, [])
        for i, (p, mask) in enumerate(zip(group["params"], group_masks, strict=False)):
            if mask is not None:
                group_masks[i] = mask.to(p.device)
                yield group, p, group_masks[i], names[p]


def copy_masks(optimizer: Optimizer, mask: Mapping) -> dict[Tensor, Tensor]:
    """A copy of each mask that freezes anything, keyed by parameter, or an error."""
    if not isinstance(mask, Mapping):
        raise TypeError(f"mask must map names or parameters to tensors, not be a {type(mask)}")
    names = _names(optimizer)
    masks: dict[Tensor, Tensor] = {}
    for key, each in mask.items():
        p = _find(optimizer, key)
        if p in masks:
            raise ValueError(f"{names[p]} stands twice in the mask")
        _check(each, p, names[p])
        masks[p] = each
    return {p: each.to(p.device, copy=True) for p, each in masks.items() if each.any()}


def check_checkpoint(optimizer: Optimizer, state_dict: dict) -> dict:
    """The state dict if its masks fit, with those of the optimizer where it has none."""
    names = _names(optimizer)
    groups = [dict(group) for group in state_dict["param_groups"]]
    for ours, group in zip(optimizer.param_groups, groups, strict=False):
        if _KEY in ours:
            group.setdefault(_KEY, ours[_KEY])
        if group.get("compact") and "compact" not in optimizer.defaults:
            raise ValueError(
                "the checkpoint is that of a MaskedAdam(compact=True): no other optimizer can use "
                "moments of the free parameters alone"
            )
        for p, mask in zip(ours["params"], group.get(_KEY, ()), strict=False):
            if mask is not None:
                _check(mask, p, names[p])
    return {**state_dict, "param_groups": groups}


def _find(optimizer: Optimizer, key: str | Tensor) -> Tensor:
    """The parameter that the key of a mask means."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    if isinstance(key, Tensor):
        if not any(key is p for p in params):
            raise ValueError(f"the optimizer does not have this parameter: {key}")
        return key
    if not names:
        raise ValueError(
            f"the optimizer has no names, so not {key!r}: build it from model.named_parameters(), "
            "or key the mask by the parameters themselves"
        )
    if key not in names:
        raise ValueError(f"the optimizer has no parameter {key!r}; it has {', '.join(names)}")
    if names.count(key) > 1:
        raise ValueError(
            f"the optimizer has {names.count(key)} parameters named {key!r}: key the mask by the "
            "parameters themselves"
        )
    return params[names.index(key)]


def _names(optimizer: Optimizer) -> dict[Tensor, str]:
    """What errors call the parameters: their names, or their numbers in the state dict."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [repr(n) for group in optimizer.param_groups for n in group.get("param_names", ())]
    return {p: f"parameter {n}" for p, n in zip(params, names or range(len(params)), strict=True)}


def _check(mask: Tensor, p: Tensor, name: str) -> None:
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask)
    if kind != torch.bool:
        raise TypeError(f"the mask of {name} must be a tensor of torch.bool, not {kind}")
    if not (p.is_floating_point() or p.is_complex()):
        raise TypeError(f"{name} is of {p.dtype}, which no gradient trains: it needs no mask")
    if mask.shape != p.shape:
        raise ValueError(
            f"the mask of {name} has shape {tuple(mask.shape)}, the parameter {tuple(p.shape)}"
        )
