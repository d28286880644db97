"""Optimizers that stand around others, and those that write parameters outside of their step.

Accelerate's and Lightning's wrappers pass for an optimizer of torch, and only hand on: what counts
is the one inside. Others, as many a Lookahead or an optimizer with averages, have one inside and
write its parameters themselves. And methods beside ``step`` move parameters too: the ``train`` and
``eval`` of schedule-free ones, the two half steps of SAM, the swap of stochastic weight averaging.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from inspect import getattr_static, isfunction
from types import MethodType
from typing import Any

from torch.optim import Optimizer

_ONLY_HAND_ON = ("accelerate.", "lightning.", "pytorch_lightning.", "lightning_fabric.")
_HOOKS = "_optimizer_step_pre_hooks"

Hold = Callable[[], AbstractContextManager[None]]


def unwrap(optimizer: Any) -> tuple[Optimizer, list[Optimizer]]:
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
        self._methods: dict[str, tuple[Any, Any]] = {}
        for name in names:
            before = vars(writer).get(name)  # a scheduler may have put itself before the method
            guarded = _guarded(getattr(type(writer), name), before, hold)
            self._methods[name] = guarded, before
            vars(writer)[name] = MethodType(guarded, writer)

    def remove(self) -> None:
        writer = self._writer()
        for name, (guarded, before) in self._methods.items():
            if getattr(vars(writer).get(name), "__func__", None) is guarded:
                del vars(writer)[name]
                if before is not None:
                    vars(writer)[name] = before


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


def _guarded(method: Any, before: Any, hold: Hold) -> Callable[..., Any]:
    @wraps(before or method)
    def guarded(writer: Any, *args: Any, **kwargs: Any) -> Any:
        call = method.__get__(writer) if before is None else before
        with hold():
            result = call(*args, **kwargs)
        return _held(result, hold) if isinstance(result, AbstractContextManager) else result

    return guarded


@contextmanager
def _held(context: AbstractContextManager[Any], hold: Hold) -> Iterator[Any]:
    """The context, with a hold while it begins and while it ends."""
    with ExitStack() as stack:
        with hold():
            value = context.__enter__()
        stack.push(partial(_leave, context, hold))
        yield value


def _leave(context: AbstractContextManager[Any], hold: Hold, *error: Any) -> bool | None:
    with hold():
        return context.__exit__(*error)
