"""The hooks that hold the frozen parts of one optimizer's parameters still.

The masks themselves stand in its parameter groups.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from parameter_ordering.frozen.checkpoints import admit_masks, export_masks
from parameter_ordering.frozen.decay import AheadOfStep, decays_ahead
from parameter_ordering.frozen.masks import (
    Masked,
    drop_masks,
    has_masks_of_nobody,
    keys,
    set_masks,
    standing_masks,
    stored,
)
from parameter_ordering.frozen.parts import (
    FreeCoordinates,
    FrozenBits,
    FrozenPart,
    InfiniteMoment,
)
from parameter_ordering.frozen.wrappers import Guard, writing_methods

# These move nothing where stands_still, gradient and moments are zero.
STILL: set[type[Optimizer]] = {Adam, AdamW}

Parts = dict[Tensor, FrozenPart]


def freezing_of(optimizer: Optimizer) -> "Freezing | None":
    return vars(optimizer).get("_freezing")


class Freezing:
    """The frozen parts of an optimizer's parameters, and the hooks that act on them."""

    def __init__(self, optimizer: Optimizer):
        self.in_backward = True
        self.parts: Parts = {}
        self._ahead = AheadOfStep()
        self._gradient_hooks: list[Any] = []
        self._guarded: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._ahead.end),
            optimizer.register_state_dict_post_hook(export_masks),
            optimizer.register_load_state_dict_pre_hook(admit_masks),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        vars(optimizer)["_freezing"] = self
        # torch drops the hooks from a copy or pickle of an optimizer.
        vars(optimizer)["__reduce_ex__"] = partial(_reduce, weakref.ref(optimizer))
        self._remove_gradient_hooks = weakref.finalize(optimizer, _remove, self._gradient_hooks)
        self.guard(optimizer)

    def guard(self, writer: Optimizer, step: bool = False) -> None:
        """Hold what is frozen also while other methods of a writer run."""
        if writer not in self._guarded and (names := writing_methods(writer, step)):
            self._guarded.add(writer)
            self._hooks.append(Guard(writer, names, self.hold))

    def install(self, optimizer: Optimizer, parts: Parts) -> None:
        """Hold still the parts, which the masks in the groups mark, and no other."""
        _remove(self._gradient_hooks)
        self.parts = parts
        for p, part in parts.items():
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

    def remove(self, optimizer: Optimizer) -> None:
        """Let everything train again, and leave no trace."""
        self._ahead.end(optimizer)
        self.thaw(optimizer)
        self._remove_gradient_hooks()
        _remove(self._hooks)
        self.parts = {}  # a guard that somebody has wrapped holds nothing any more
        for name in ("_freezing", "__reduce_ex__"):
            del vars(optimizer)[name]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A time in which others may write to parameters and move nothing that is frozen."""
        with ExitStack() as holds:
            for p, part in self.parts.items():
                holds.enter_context(part.hold(p))
            yield

    def _after_load(self, optimizer: Optimizer) -> None:
        masked = standing_masks(optimizer)
        parts = build_parts(optimizer, masked, self.in_backward)
        set_masks(optimizer, masked)
        self.install(optimizer, parts)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._ahead.end(optimizer)
        if has_masks_of_nobody(optimizer):  # some optimizers load them on ways of their own
            self._after_load(optimizer)
        _refuse_replaced(optimizer, self.parts)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        # A later hook of somebody else could write to the gradient once more.
        hooks = optimizer._optimizer_step_pre_hooks
        calm = type(optimizer) in STILL and next(reversed(hooks.values())) == self._before_step
        ahead = []
        for group in optimizer.param_groups:
            decays = calm and closure is None and decays_ahead(optimizer, group, self.parts)
            still = decays or (calm and _stands_still(group))
            for p in group["params"]:
                if p in self.parts:
                    # An eps that vanishes in the parameter's type makes 0 / 0 of zero moments.
                    nonzero_eps = still and group["eps"] >= torch.finfo(p.dtype).tiny
                    self.parts[p].before_step(p, still=nonzero_eps)
            if decays:
                ahead.append(group)
        for group in ahead:
            self._ahead.decay_(group, self.parts)
        if callable(kwargs.get("closure")):
            return args, kwargs | {"closure": self._masked(kwargs["closure"])}
        if callable(closure):
            return (optimizer, self._masked(closure), *args[2:]), kwargs
        return None

    def _masked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, followed by a mask of the gradient that it made."""

        def masked_closure() -> Any:
            loss = closure()
            for p, part in self.parts.items():
                part.mask_gradient(p)
            return loss

        return masked_closure

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._ahead.end(optimizer)
        for p, part in self.parts.items():
            # Weight decay goes into Adam's moments of what is frozen, unless autograd needs these.
            if part.after_step(p) and isinstance(optimizer, Adam) and p.grad_fn is None:
                part.forget(p, optimizer.state.get(p, {}))


def build_parts(optimizer: Optimizer, masked: Iterable[Masked], in_backward: bool) -> Parts:
    """The frozen part of each parameter, of the kind that its group asks for."""
    by_moments = isinstance(optimizer, Adam)  # groups may be shared with an optimizer around one
    return {each.p: _part(each, in_backward, by_moments) for each in masked}


def _part(masked: Masked, in_backward: bool, by_moments: bool) -> FrozenPart:
    group, p, mask, name = masked
    if by_moments and group.get("compact"):
        return FreeCoordinates(p, mask, name)
    if group.get("differentiable") or not p.is_floating_point():
        return FrozenPart(p, mask, name)
    finite = by_moments and group.get("finite_gradients") and group["betas"][1]
    if finite and not in_backward and InfiniteMoment.holds(p, mask):
        return InfiniteMoment(p, mask, name)
    return FrozenBits(p, mask, name)


def unfreeze_one(optimizer: Optimizer) -> None:
    freezing = freezing_of(optimizer)
    if freezing is not None:
        freezing.remove(optimizer)
    drop_masks(optimizer)


def _refuse_replaced(optimizer: Optimizer, parts: Parts) -> None:
    """An error where a parameter stands in the place of one that has a mask."""
    for group in optimizer.param_groups:
        if masks := stored(group):
            for key, p in zip(keys(group), group["params"], strict=True):
                if masks.get(key) is not None and p not in parts:
                    raise RuntimeError(
                        f"parameter {key!r} has been replaced since it was frozen: "
                        "freeze(optimizer) takes its mask over, unfreeze(optimizer) drops it"
                    )


def _stands_still(group: dict[str, Any]) -> bool:
    """Whether Adam has no decay and divides by no learning rate that could be zero."""
    divides = group["capturable"] or group["differentiable"] or torch.compiler.is_compiling()
    lr = group["lr"]
    return group["weight_decay"] == 0 and not (divides and (isinstance(lr, Tensor) or lr == 0))


def _reduce(reference: weakref.ref[Optimizer], protocol: int) -> tuple[Any, ...]:
    optimizer = reference()
    assert optimizer is not None
    freezing = freezing_of(optimizer)
    assert freezing is not None
    arguments = (type(optimizer), optimizer.__getstate__(), freezing.in_backward)
    return _restore, arguments


def _restore(kind: type[Optimizer], state: dict[str, Any], in_backward: bool) -> Optimizer:
    optimizer = kind.__new__(kind)
    optimizer.__setstate__(state)
    freezing = Freezing(optimizer)
    freezing.in_backward = in_backward
    freezing._after_load(optimizer)
    return optimizer


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _refuse_unless_frozen(
    optimizer: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    if freezing_of(optimizer) is None and has_masks_of_nobody(optimizer):
        raise RuntimeError(
            "the optimizer has loaded a checkpoint with masks, and freezes nothing: call "
            "freeze(optimizer) before loading them, or unfreeze(optimizer) to drop them"
        )


# An optimizer that loaded masks and was never frozen can be seen from nowhere else.
register_optimizer_step_pre_hook(_refuse_unless_frozen)
