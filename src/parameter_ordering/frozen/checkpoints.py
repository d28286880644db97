"""How masks travel: in the state dict of an optimizer, by name, and complete.

A checkpoint has a mask for every parameter, of False where nothing is frozen, so that whoever
loads it can tell what it says nothing of; and all masks in each group, so that other groups find
theirs. ``torch.distributed.checkpoint.state_dict`` puts names in the place of the numbers of
``"params"``, in the order of the optimizer that loads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from parameter_ordering.frozen.masks import KEY, LOST, has_lost_masks, keys, stored
from parameter_ordering.frozen.names import Names, bare


def export_masks(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Put the complete masks into a state dict that has just been made."""
    complete = [_complete(group) for group in optimizer.param_groups]
    union = {key: mask for masks in complete for key, mask in masks.items()}
    by_name = all(isinstance(key, str) for key in union)
    if by_name and len(union) == sum(map(len, complete)):
        complete = [union] * len(complete)
    frozen = any(stored(group) for group in optimizer.param_groups)
    for group, masks in zip(state_dict["param_groups"], complete, strict=True):
        group[KEY] = masks
        if frozen and "param_names" in group:
            group["param_names"] = tuple(group["param_names"])


def admit_masks(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict to load, with each mask where its parameter stands, or an error.

    Where it has no masks, those of the optimizer stay. What torch would load by position, although
    both sides have the same names in another order, is put into the order of the optimizer.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    found: dict[str | int, Tensor | None] = {
        key: mask for group in groups for key, mask in stored(group).items() if isinstance(key, str)
    }
    index = Names(key for key in found if isinstance(key, str))
    for ours, group in zip(optimizer.param_groups, groups, strict=False):
        if group.get("compact") and "compact" not in optimizer.defaults:
            raise ValueError(
                "the checkpoint is that of a MaskedAdam(compact=True): no other optimizer can use "
                "moments of the free parameters alone"
            )
        if has_lost_masks(group):
            raise ValueError(LOST)
        masks = stored(group)
        if any(isinstance(each, str) for each in group["params"]):
            names = group["params"]
            if any(isinstance(key, int) and _freezes(mask) for key, mask in masks.items()):
                raise ValueError(
                    "the masks of the checkpoint stand by position, and the distributed state dict "
                    "goes by name: build the optimizer that saves from model.named_parameters()"
                )
            group.pop("param_names", None)
        else:
            _put_in_order(ours, group)
            names = ours.get("param_names") or group.get("param_names") or ()
        if known := ours.get("param_names") or group.get("param_names"):
            group["param_names"] = list(known)
        if KEY not in group:
            if KEY in ours:
                group[KEY] = ours[KEY]
            continue
        keys_here = keys({**ours, "param_names": group.get("param_names")})
        if not any(map(_freezes, [*found.values(), *masks.values()])):
            group[KEY] = {}
        elif any(isinstance(key, str) for key in masks):
            own = Names(key for key in masks if isinstance(key, str))
            pairs = zip(keys_here, names or map(str, keys_here), strict=False)  # torch compares
            everything = {**found, **masks}
            group[KEY] = {key: everything[_known(name, own, index)] for key, name in pairs}
        else:
            group[KEY] = {key: masks.get(i) for i, key in enumerate(keys_here)}
        for key, p in zip(keys_here, ours["params"], strict=False):
            mask = group[KEY].get(key)
            if mask is not None and mask.shape != p.shape:
                raise ValueError(
                    f"the mask of parameter {key!r} has shape {tuple(mask.shape)}, the parameter "
                    f"{tuple(p.shape)}: the checkpoint is that of another model"
                )
    return {**state_dict, "param_groups": groups}


def _known(name: str, own: Names, index: Names) -> str:
    known = own.one(name) or index.one(name)
    if known is None:
        raise ValueError(
            f"the checkpoint has masks, and none for {name!r}: it was saved with other names, or "
            "with another optimizer; rename what it holds, or load it where no freeze is wanted"
        )
    return known


def _put_in_order(ours: Mapping[str, Any], group: dict[str, Any]) -> None:
    names = [bare(name) for name in ours.get("param_names") or ()]
    saved = {bare(name): i for i, name in enumerate(group.get("param_names") or ())}
    if len(saved) == len(group["params"]) and sorted(names) == sorted(saved):
        group["params"] = [group["params"][saved[name]] for name in names]


def _freezes(mask: Tensor | None) -> bool:
    return mask is not None and bool(mask.any())


def _complete(group: dict[str, Any]) -> dict[str | int, Tensor]:
    masks = stored(group)
    complete = {}
    for key, p in zip(keys(group), group["params"], strict=True):
        mask = masks.get(key)
        complete[key] = torch.zeros_like(p, dtype=torch.bool) if mask is None else mask
    return complete
