r"""Freezing part of the parameters of a model, exactly, for any torch optimizer.

The paper multiplies the update by one minus the indicator of the frozen parameters,

.. math::
    w_t = w_{t-1} + (1 - \alpha(k)) \, \Delta w(g_{S,t}, w_{t-1}, w_{t-2}, \dots). \qquad (2.8)

Masking the gradient alone is not that: momentum and weight decay go on moving what should stand
still. So the gradient is masked and, where the step could still move them, the frozen values are
put back.
"""

import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from parameter_ordering.frozen.masks import (
    check_checkpoint,
    copy_masks,
    drop_masks,
    has_masks,
    masked_parameters,
    set_masks,
)
from parameter_ordering.frozen.parts import (
    FreeCoordinates,
    FrozenBits,
    FrozenPart,
    InfiniteMoment,
)

__all__ = ["freeze", "unfreeze"]

_REFUSED = {
    LBFGS: "its line search judges the loss at values that a freeze would then take back",
    SparseAdam: "it takes sparse gradients, and what is frozen needs a dense one",
}
_STILL = {Adam, AdamW}  # these move nothing where _stands_still, gradient and moments are zero


def freeze(
    optimizer: Optimizer,
    mask: Mapping[str, Tensor] | Mapping[Tensor, Tensor] | None = None,
    *,
    in_backward: bool | None = None,
) -> None:
    r"""Freeze what ``mask`` marks: from now on no step of ``optimizer`` moves it by one bit.

    What is free moves as if the rest did not exist, under every optimizer that works element by
    element: all of ``torch.optim`` but ``Adafactor`` and ``Muon``. These move what is free as they
    do when the gradient of the rest is zero.

    **Gradients.** After ``backward()``, ``.grad`` is zero where a parameter is frozen, whatever it
    was: inf and NaN do no harm, ``clip_grad_norm_`` does not count it, a ``GradScaler`` does not
    see it, and there is nothing to call for that. A gradient that is assigned by hand is masked
    when the optimizer steps. One that shares its memory is replaced by a masked copy.

    **State.** Adam, AdamW and ``MaskedAdam`` forget the moments of what is frozen. What trains
    again starts from moments of zero, but t, which corrects their bias and is one for each tensor,
    has gone on. Its first update is :math:`(1 - \beta_1) / \sqrt{1 - \beta_2} \cdot
    \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` learning rates long, 3.2 for large t. The state of other
    optimizers goes on by its own rule with a gradient of zero, so that momentum fades and sums
    stay, and what trains again finds it like that.

    **Checkpoints.** The masks are in ``optimizer.state_dict()``, as ``"frozen_masks"`` of the
    parameter groups. To resume, call ``freeze(optimizer)`` before ``load_state_dict``: the masks of
    the checkpoint replace those of the optimizer; if it holds none, these stay. An optimizer that
    loads masks without a ``freeze`` freezes nothing. It warns when it steps, but only where this
    module has been imported; nothing can warn where it has not. Copies and pickles of a frozen
    optimizer are frozen.

    **Cost.** A tensor with a frozen part takes a byte and one word of its own size more for each
    parameter, and a step one pass over its gradient. Where decay, momentum or the rule itself could
    move what is frozen (all but Adam, AdamW and ``MaskedAdam`` without decay), a step also copies
    the tensor and puts values back.

    Args:
        optimizer: any optimizer of dense gradients. Move its model to another device or type
            before, or call ``freeze(optimizer)`` after.
        mask: True = frozen; bool, of the shape of its parameter. By the names that an optimizer
            keeps if built from ``model.named_parameters()``, or by the parameters themselves. What
            is not in it trains. It replaces the mask before, and is copied. None keeps the masks
            that the optimizer has, if any.
        in_backward: mask gradients as soon as ``backward()`` has accumulated them, by a hook on
            each parameter. With False the step alone masks them, which saves a pass; clipping and
            a ``GradScaler`` then see what is frozen. ``MaskedAdam(finite_gradients=True)`` then
            masks nothing. None keeps what the optimizer has, True at first.

    Raises:
        TypeError: for ``LBFGS``, ``SparseAdam`` and what is no optimizer, for a mask that is not
            bool, and for that of integers.
        ValueError: for a mask of another shape, and for names that the optimizer does not know or
            knows twice. Whenever an error is raised, nothing has changed.

    Source: Grabovoy, Bakhteev, Strijov, (2.8), with the update multiplied by 1 - alpha, since alpha
    marks what is frozen.

    >>> model = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> optimizer = torch.optim.SGD(model.named_parameters(), lr=0.5, weight_decay=0.5)
    >>> freeze(optimizer, {"weight": torch.tensor([[True, False]])})
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> model.weight.grad, model.weight.data
    (tensor([[0., 1.]]), tensor([[1.0000, 0.2500]]))
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"freeze takes an optimizer of torch, not a {type(optimizer)}")
    for kind, reason in _REFUSED.items():
        if isinstance(optimizer, kind):
            raise TypeError(f"{kind.__name__} cannot be frozen: {reason}")
    masks = None if mask is None else copy_masks(optimizer, mask)
    freezing = getattr(optimizer, "_freezing", None) or _Freezing(optimizer)
    if in_backward is not None:
        freezing.in_backward = in_backward
    if masks is not None:
        freezing.thaw(optimizer)
        set_masks(optimizer, masks)
    freezing.read_masks(optimizer)


def unfreeze(optimizer: Optimizer) -> None:
    """Let everything train again, from the state that :func:`freeze` describes.

    The masks and all hooks on the optimizer and its parameters are gone.
    """
    freezing = getattr(optimizer, "_freezing", None)
    if freezing is not None:
        freezing.thaw(optimizer)
        freezing.remove()
        del optimizer._freezing, optimizer.__reduce_ex__
    drop_masks(optimizer)


class _Freezing:
    """The hooks that hold the frozen parts of one optimizer's parameters still.

    The masks themselves stand in its parameter groups.
    """

    def __init__(self, optimizer: Optimizer):
        self.in_backward = True
        self.parts: dict[Tensor, FrozenPart] = {}
        self._gradient_hooks: list = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_pre_hook(check_checkpoint),
            optimizer.register_load_state_dict_post_hook(self.read_masks),
        ]
        optimizer._freezing = self
        # torch drops the hooks from a copy or pickle of an optimizer.
        optimizer.__reduce_ex__ = partial(_reduce, weakref.ref(optimizer))
        self._remove_gradient_hooks = weakref.finalize(optimizer, _remove, self._gradient_hooks)

    def read_masks(self, optimizer: Optimizer) -> None:
        """Hold still what the masks in the parameter groups mark."""
        _remove(self._gradient_hooks)
        self.parts.clear()
        for group, p, mask, name in masked_parameters(optimizer):
            part = self.parts[p] = _part(group, p, mask, name, self.in_backward)
            if isinstance(optimizer, Adam):
                part.forget(p, optimizer.state.get(p, {}))
            if self.in_backward and p.is_leaf:
                needs_gradient = p.requires_grad  # it may later, and torch wants it for a hook
                hook = p.requires_grad_().register_post_accumulate_grad_hook(part.mask_gradient)
                p.requires_grad_(needs_gradient)
                self._gradient_hooks.append(hook)

    def thaw(self, optimizer: Optimizer) -> None:
        """Give Adam whole moments again, zero in the parts that were frozen."""
        if isinstance(optimizer, Adam):
            for p, part in self.parts.items():
                part.recall(p, optimizer.state.get(p, {}))

    def remove(self) -> None:
        self._remove_gradient_hooks()
        _remove(self._hooks)

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        # A later hook of somebody else could write to the gradient once more.
        alone = len(optimizer._optimizer_step_pre_hooks) == 1
        for group in optimizer.param_groups:
            still = alone and type(optimizer) in _STILL and _stands_still(group)
            for p in group["params"]:
                if p in self.parts:
                    # An eps that vanishes in the parameter's type makes 0 / 0 of zero moments.
                    nonzero_eps = still and group["eps"] >= torch.finfo(p.dtype).tiny
                    self.parts[p].before_step(p, still=nonzero_eps)
        if callable(kwargs.get("closure")):
            return args, kwargs | {"closure": self._masked(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (optimizer, self._masked(args[1]), *args[2:]), kwargs
        return None

    def _masked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, followed by a mask of the gradient that it made."""

        def masked_closure() -> Any:
            loss = closure()
            for p, part in self.parts.items():
                part.mask_gradient(p)
            return loss

        return masked_closure

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for p, part in self.parts.items():
            # Weight decay goes into Adam's moments of what is frozen, unless autograd needs these.
            if part.after_step(p) and isinstance(optimizer, Adam) and p.grad_fn is None:
                part.forget(p, optimizer.state.get(p, {}))


def _stands_still(group: dict) -> bool:
    """Whether Adam has no decay and divides by no learning rate that could be zero."""
    divides = group["capturable"] or group["differentiable"] or torch.compiler.is_compiling()
    lr = group["lr"]
    return group["weight_decay"] == 0 and not (divides and (isinstance(lr, Tensor) or lr == 0))


def _part(group: dict, p: Tensor, mask: Tensor, name: str, in_backward: bool) -> FrozenPart:
    if group.get("compact"):
        return FreeCoordinates(p, mask, name)
    if group.get("differentiable") or not p.is_floating_point():
        return FrozenPart(p, mask, name)
    infinite = group.get("finite_gradients") and group["betas"][1] and not in_backward
    if infinite and InfiniteMoment.holds(p, mask):
        return InfiniteMoment(p, mask, name)
    return FrozenBits(p, mask, name)


def _reduce(reference: weakref.ref, protocol: int) -> tuple:
    optimizer = reference()
    arguments = (type(optimizer), optimizer.__getstate__(), optimizer._freezing.in_backward)
    return _restore, arguments


def _restore(kind: type[Optimizer], state: dict, in_backward: bool) -> Optimizer:
    optimizer = kind.__new__(kind)
    optimizer.__setstate__(state)
    freeze(optimizer, in_backward=in_backward)
    return optimizer


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _warn_unless_frozen(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    if not hasattr(optimizer, "_freezing") and has_masks(optimizer):
        warnings.warn(
            "the optimizer holds masks and freezes nothing: call freeze(optimizer), best before "
            "loading them, or unfreeze(optimizer) to drop them",
            stacklevel=3,
        )


# An optimizer that loaded masks and was never frozen can be seen from nowhere else.
register_optimizer_step_pre_hook(_warn_unless_frozen)
