r"""AdamW's decay of what is free, ahead of a step that has none.

AdamW multiplies by :math:`1 - \eta \lambda` before it does what Adam does. Multiplying what is free
before the step, and what is frozen by one, leaves the frozen still under zero gradient and zero
moments, so that nothing need be saved and put back; what is free gets the same bits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from parameter_ordering.frozen.parts import FrozenPart, local

_ROUNDED_ONCE = (torch.float32, torch.float64)  # a fused step on others rounds at its end alone


class AheadOfStep:
    """The groups whose decay has been done, and is off until the step has ended."""

    def __init__(self) -> None:
        self._decays: list[tuple[dict[str, Any], float, float]] = []

    def decay_(self, group: dict[str, Any], parts: Mapping[Tensor, FrozenPart]) -> None:
        """Decay the parameters of a group that have a gradient, as AdamW does."""
        factor = 1 - group["lr"] * group["weight_decay"]
        for p in group["params"]:
            if p.grad is None:
                continue
            if p in parts:
                parts[p].scale_(p, factor)
            else:
                local(p.detach()).mul_(factor)
        off = float("0")  # an object of its own, to be known again
        self._decays.append((group, group["weight_decay"], off))
        group["weight_decay"] = off

    def end(self, optimizer: Optimizer) -> None:
        """Turn the decay on again, also after a step that raised, but for one set since."""
        while self._decays:
            group, decay, off = self._decays.pop()
            if group["weight_decay"] is off:
                group["weight_decay"] = decay


def decays_ahead(
    optimizer: Optimizer, group: dict[str, Any], parts: Mapping[Tensor, FrozenPart]
) -> bool:
    """Whether this step of an Adam may decay ahead: the same bits, and nothing in its way."""
    lr, decay = group["lr"], group["weight_decay"]
    if not (decay and group["decoupled_weight_decay"]) or isinstance(lr, Tensor):
        return False
    if not 0 <= lr * decay < 1 or group.get("compact"):
        return False
    # Steps under a GradScaler may be skipped inside, captured ones are replayed without hooks.
    if getattr(optimizer, "found_inf", None) is not None:
        return False
    if group["capturable"] or group["differentiable"] or torch.compiler.is_compiling():
        return False
    moving = [p for p in group["params"] if p.grad is not None]
    return any(p in parts for p in moving) and all(_is_plain(p, group) for p in moving)


def _is_plain(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether the product is the one that torch's step would make."""
    return (
        p.dtype in _ROUNDED_ONCE
        and p.grad_fn is None
        and group["eps"] >= torch.finfo(p.dtype).tiny
        and (p.device.type == "cpu" or not group["fused"])
    )
