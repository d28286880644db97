"""Optimizers that stand around others, and those that write parameters outside of their step.

Accelerate's and Lightning's wrappers pass for an optimizer of torch, and only hand on: what counts
is the one inside. Others, as many a Lookahead or an optimizer with averages, have one inside and
write its parameters themselves. And methods beside ``step`` move parameters too: the ``train`` and
``eval`` of schedule-free ones, the two half steps of SAM, the swap of stochastic weight averaging.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from inspect import getattr_static, isfunction
from typing import Any

from torch.optim import Optimizer

_ONLY_HAND_ON = ("accelerate.", "lightning.", "pytorch_lightning.", "lightning_fabric.")
_HOOKS = "_optimizer_step_pre_hooks"

Hold = Callable[[], AbstractContextManager[None]]


def unwrap(optimizer: Optimizer) -> tuple[Optimizer, list[Optimizer]]:
    """The optimizer whose steps have hooks, and what stands around it and may write as well."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"freeze takes an optimizer of torch, not a {type(optimizer)}; if it has one inside, "
            "that does not see what is written around it"
        )
    around: list[Optimizer] = []
    while _HOOKS not in vars(optimizer) or _only_hands_on(optimizer):
        inner = vars(optimizer).get("optimizer", getattr(optimizer, "optimizer", None))
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"a {type(optimizer)} has none of the hooks of an optimizer, so that it cannot be "
                "frozen: freeze one of torch's, and let it write no parameter by itself"
            )
        if not _only_hands_on(optimizer):
            around.append(optimizer)
        optimizer = inner
    return optimizer, around


class Guard:
    """Methods of an object that hold still, while they run, what is frozen."""

    def __init__(self, writer: object, names: list[str], hold: Hold):
        self._writer = weakref.ref(writer)
        self._names = names
        for name in names:
            vars(writer)[name] = _guarded(self._writer, name, hold)

    def remove(self) -> None:
        writer = self._writer()
        for name in self._names:
            vars(writer).pop(name, None)


def writing_methods(writer: Optimizer, step: bool = False) -> list[str]:
    """The methods by which an optimizer may write parameters, but for those that torch's have."""
    kind = type(writer)
    public = [name for name in dir(kind) if name[0] != "_" and not hasattr(Optimizer, name)]
    methods = [(name, getattr_static(kind, name)) for name in [*public, *["step"] * step]]
    return [
        name
        for name, method in methods
        if isfunction(method) and not method.__module__.startswith("torch.")
    ]


def _only_hands_on(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith(_ONLY_HAND_ON)


def _guarded(reference: weakref.ref[Any], name: str, hold: Hold) -> Callable[..., Any]:
    method = getattr(type(reference()), name)

    @wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with hold():
            result = method(reference(), *args, **kwargs)
        return _held(result, hold) if isinstance(result, AbstractContextManager) else result

    return guarded


@contextmanager
def _held(context: AbstractContextManager[Any], hold: Hold) -> Iterator[Any]:
    """The context, with a hold while it begins and while it ends."""
    with hold():
        value = context.__enter__()
    try:
        yield value
    finally:
        with hold():
            context.__exit__(None, None, None)
