r"""Freezing part of the parameters of a model, exactly, for any torch optimizer.

The paper multiplies the update by one minus the indicator of the frozen parameters,

.. math:: w_t = w_{t-1} + (1 - \alpha(k)) \cdot \Delta w(g_{S,t}, w_{t-1}, w_{t-2}, \dots) \qquad (2.8)

Masking the gradient alone is not that: momentum and weight decay go on moving what should
stand still. So the gradient is masked and, wherever the step could still move a frozen value,
that value is put back.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

_ADAM = {Adam, AdamW}
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def freeze(optimizer: Optimizer, mask: Mapping[Any, Tensor] | None = None) -> None:
    r"""Freeze the parameters that ``mask`` marks: no step of ``optimizer`` moves them by one bit.

    Args:
        optimizer: any optimizer of dense parameters.
        mask: boolean tensors, True = frozen, each of the shape of its parameter. Keyed by the
            names that an optimizer built from ``named_parameters()`` keeps, or by the parameters
            themselves. What is not in it trains. It replaces the mask of an earlier call.
            Without a mask the optimizer is made ready to load a checkpoint that holds masks.
    """
    masks = None if mask is None else _checked(optimizer, mask)
    hooks = getattr(optimizer, "_freezing", None) or _Freezing(optimizer)
    if masks is not None:
        for group in optimizer.param_groups:
            group["frozen"] = [masks.get(p) for p in group["params"]]
        hooks.read_masks(optimizer)


def unfreeze(optimizer: Optimizer) -> None:
    """Let everything train again."""
    hooks = optimizer.__dict__.pop("_freezing", None)
    if hooks is not None:
        hooks.remove()
    for group in optimizer.param_groups:
        group.pop("frozen", None)


class _Freezing:
    """The hooks that hold the frozen part of one optimizer's parameters still."""

    def __init__(self, optimizer: Optimizer):
        self.keep: dict[Tensor, Tensor] = {}
        self.saved: dict[Tensor, Tensor] = {}
        self.forget = False
        self.gradient_hooks: list = []
        self.step_hooks = [
            optimizer.register_step_pre_hook(self.before_step),
            optimizer.register_step_post_hook(self.after_step),
            optimizer.register_load_state_dict_post_hook(self.read_masks),
        ]
        optimizer._freezing = self
        weakref.finalize(optimizer, _remove, self.gradient_hooks)

    def read_masks(self, optimizer: Optimizer) -> None:
        """Take over the masks that stand in the parameter groups."""
        _remove(self.gradient_hooks)
        self.keep.clear()
        self.forget = True
        for p, mask in _masked(optimizer):
            self.keep[p] = keep = _keep(mask, p)
            if p.is_leaf and p.requires_grad:
                hook = p.register_post_accumulate_grad_hook(partial(_mask_gradient, keep=keep))
                self.gradient_hooks.append(hook)

    def remove(self) -> None:
        _remove(self.gradient_hooks)
        _remove(self.step_hooks)

    def before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self.saved.clear()
        for group in optimizer.param_groups:
            still = type(optimizer) in _ADAM and group["weight_decay"] == 0
            for p in group["params"]:
                keep = self.keep.get(p)
                if keep is None or p.grad is None:
                    continue
                _mask_gradient(p, keep)
                if type(optimizer) in _ADAM and self.forget:
                    for name in _ADAM_MOMENTS:
                        if name in optimizer.state.get(p, ()):
                            _zero_(optimizer.state[p][name], keep)
                if not still or group["eps"] < torch.finfo(p.dtype).tiny:
                    self.saved[p] = p.detach().clone()
        self.forget = bool(self.saved)

    def after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for p, saved in self.saved.items():
            _put_back_(p, saved, self.keep[p])
        self.saved.clear()


def _checked(optimizer: Optimizer, mask: Mapping[Any, Tensor]) -> dict[Tensor, Tensor]:
    """The mask of each parameter that has any frozen, or a clear error."""
    names = [n for group in optimizer.param_groups for n in group.get("param_names", ())]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    by_name = dict(zip(names, params, strict=False))
    repeated = {name for name, count in Counter(names).items() if count > 1}
    masks = {}
    for key, m in mask.items():
        if isinstance(key, Tensor):
            p, label = key, f"a parameter of shape {tuple(key.shape)}"
        elif not names:
            raise ValueError(
                f"the optimizer does not know the name {key!r}: build it from "
                "model.named_parameters(), or key the mask by the parameters themselves"
            )
        elif key in repeated:
            raise ValueError(f"two parameters of the optimizer are named {key!r}")
        elif key not in by_name:
            raise ValueError(f"the optimizer has no parameter named {key!r}")
        else:
            p, label = by_name[key], f"parameter {key!r}"
        if m.dtype != torch.bool:
            raise TypeError(f"the mask of {label} has dtype {m.dtype}, it must be torch.bool")
        if m.shape != p.shape:
            raise ValueError(
                f"the mask of {label} has shape {tuple(m.shape)}, the parameter {tuple(p.shape)}"
            )
        if m.any():
            masks[p] = m.to(p.device, copy=True)
    return masks


def _masked(optimizer: Optimizer):
    for group in optimizer.param_groups:
        for p, mask in zip(group["params"], group.get("frozen", ()), strict=False):
            if mask is not None:
                yield p, mask


# torch.where and masked_fill_ with a bool mask cost several Adam steps on a CPU. The same on the
# bits, with words that are 0 where frozen and all ones where free, is a vectorised pass, and inf
# and NaN are bits like any other.
def _keep(mask: Tensor, p: Tensor) -> Tensor:
    return (~mask).to(_WORDS[p.element_size()]).neg_()


def _zero_(x: Tensor, keep: Tensor) -> None:
    x.detach().view(keep.dtype).bitwise_and_(keep)


def _put_back_(x: Tensor, saved: Tensor, keep: Tensor) -> None:
    x, saved = x.detach().view(keep.dtype), saved.view(keep.dtype)
    x.bitwise_xor_(saved).bitwise_and_(keep).bitwise_xor_(saved)


def _mask_gradient(p: Tensor, keep: Tensor) -> None:
    """Zero the frozen part of the gradient, unless it is zero and nobody wrote to it since."""
    if getattr(p.grad, "_masked", None) != (id(keep), p.grad._version):
        _zero_(p.grad, keep)
        p.grad._masked = (id(keep), p.grad._version)


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
