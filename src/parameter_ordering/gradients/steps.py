"""Which gradient each step of an optimizer takes, whoever calls its backward passes.

Passes may be accumulated, scaled, synchronised between processes, clipped or dropped before the
step. What counts is ``.grad`` as the last backward pass of a step has left it.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from parameter_ordering.gradients.processes import exchanged, in_data_parallel
from parameter_ordering.gradients.recorder import Hook, in_backward, silent

_engine: Any = torch.autograd.Variable._execution_engine
_NO_CLIPPING = 256.0  # a gradient that shrinks by as much is hardly clipped alone


class Steps:
    """Hooks on the parameters and on the optimizer that trains them.

    Args:
        parameters: those that are followed, by name.
        optimizer: of torch, or what wraps one.
        scaler: that multiplies the loss, if one does.
        step: called once for each step of the optimizer before it moves anything, with the gradient
            of the step by name, not clipped, and the factor that the scaler had on it.
        passed: called when a backward pass has ended, with what it has added to each gradient, if
            :attr:`exact` was set then, or else with what stands in ``.grad``.
        dropped: called when what has come since the last step is thrown away.

    Attributes:
        exact: whether the addition of this pass is to be known apart.

    Raises:
        TypeError: for LBFGS and what is no optimizer.
        ValueError: for an optimizer that does not train all of the parameters, or that steps in the
            backward pass.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        optimizer: object,
        scaler: Any,
        step: Callable[[dict[str, Tensor], float], None],
        passed: Callable[[dict[str, Tensor]], None] = lambda gradients: None,
        dropped: Callable[[], None] = lambda: None,
    ):
        self.optimizer = unwrapped(optimizer)
        _check(self.optimizer, parameters)
        self.parameters, self.scaler = parameters, scaler
        self._step, self._passed, self._dropped = step, passed, dropped
        self._g: dict[str, Tensor] = {}
        self._added: dict[str, Tensor | None] = {}
        self._seen: set[str] = set()  # those with a gradient in this step
        self._left: dict[str, int] = {}  # the versions of .grad after the last backward pass
        self._passes, self._in_pass, self._error, self._scale = 0, -1, "", 1.0
        self.exact = self._distributed = False
        self._scale_is_known = scaler is not None
        add = self.optimizer.register_step_pre_hook
        self._handles: list[Any] = [add(Hook(self._before_step))]
        for name, w in parameters.items():
            self._handles.append(w.register_hook(Hook(partial(self._arrived, name))))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self) -> None:
        """A forward pass goes on: whatever backward pass there was has ended, or failed."""
        if self._in_pass != -1:
            self._in_pass, self._added = -1, {}
            self.drop()
        self.exact = False
        self._distributed |= in_data_parallel()

    def begin(self) -> None:
        """A backward pass has begun, or goes on; those inside of it belong to it."""
        if self._in_pass == -1:
            self._in_pass = torch._C._current_graph_task_id()
            self._look_at_what_is_there()
            _engine.queue_callback(self._last)

    def _arrived(self, name: str, gradient: Tensor) -> None:
        if silent.depth or not in_backward():
            return
        self.begin()
        known = self._added.get(name)
        if self.exact or self.parameters[name]._post_accumulate_grad_hooks:
            gradient = _copy(gradient)
            self._added[name] = gradient if known is None else known + gradient
        else:
            self._added[name] = None

    def _look_at_what_is_there(self) -> None:
        """Whether the gradient of earlier passes is still there, or one that nobody knows."""
        there = {n: w.grad for n, w in self.parameters.items() if w.grad is not None}
        if self._passes:
            changed = {n for n, g in there.items() if g._version != self._left.get(n)}
            if all(n in changed and not _any(g) for n, g in there.items()):
                self.drop()
            elif changed:
                self._error = (
                    "the gradient was changed between the backward passes of one step (clipped or "
                    "unscaled?): do that after the last of them"
                )
        elif any(_any(g) for g in there.values()):
            self._error = (
                "the gradient of an earlier step was still there at the first backward pass: call "
                "zero_grad() after each step"
            )

    def drop(self) -> None:
        """Forget what has come since the last step."""
        self._reset()
        self._dropped()

    def fail(self, why: str) -> None:
        """Let the step raise an error, before anything moves."""
        self._error = self._error or why

    def _reset(self) -> None:
        self._passes, self._error, self._left, self._seen = 0, "", {}, set()

    def _last(self) -> None:
        _engine.queue_callback(self._end)  # after the callbacks of DistributedDataParallel

    @torch.no_grad()
    def _end(self) -> None:
        self._in_pass = -1
        if not self._added:
            self._passed({})
            return
        added, self._added = self._added, {}
        scale = scale_of(self.scaler)
        if self._passes and scale != self._scale:
            self._error = "the scale of the loss has changed between the backward passes of a step"
        self._passes, self._scale = self._passes + 1, scale
        there = {n: self.parameters[n].grad if g is None else g for n, g in added.items()}
        self._passed({name: g for name, g in there.items() if g is not None})
        for name, g in (self._of_others() | added).items():
            self._keep(name, self.parameters[name], g)

    def _of_others(self) -> dict[str, Tensor | None]:
        """Parameters that have a gradient where none has come: other processes have used them."""
        return {
            n: None
            for n, w in self.parameters.items()
            if self._distributed and w.grad is not None and not w._post_accumulate_grad_hooks
        }

    def _keep(self, name: str, w: nn.Parameter, added: Tensor | None) -> None:
        before, there = self._g.get(name) if name in self._seen else None, w.grad
        self._seen.add(name)
        if added is not None and (there is None or w._post_accumulate_grad_hooks):
            # .grad is not what it was: a freeze masks it.
            self._g[name] = added if before is None else before + added
        elif there is not None:
            room = self._g.get(name)
            if room is None or there.is_sparse or room.dtype != there.dtype:
                self._g[name] = _copy(there)
            else:
                room.copy_(there)
        if there is not None:
            self._left[name] = there._version

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("the optimizer steps in the backward pass: this cannot be followed")
        if callable(kwargs.get("closure")):
            return args, kwargs | {"closure": self._followed(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (optimizer, self._followed(args[1]), *args[2:]), kwargs
        self._take()
        return None

    def _followed(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def followed() -> Any:
            loss = closure()
            self._take()
            return loss

        return followed

    @torch.no_grad()
    def _take(self) -> None:
        gone = all(w.grad is None for w in self.parameters.values())
        if self._passes and self._left and gone:  # zero_grad() came in between
            self.drop()
        if not self._passes:
            return
        error, g = self._error, {name: self._g[name] for name in self._seen}
        self._reset()
        try:
            if error:
                raise RuntimeError(error)
            if not self._scale_is_known:
                self._look_for_a_scale(g)
            if self._distributed:
                g |= exchanged(g, self.parameters)
            self._step(g, self._scale)
        except BaseException:
            self._dropped()
            raise

    def _look_for_a_scale(self, g: dict[str, Tensor]) -> None:
        """Whether the loss was scaled, as the gradient of the first step tells: it was divided."""
        told = "; attach(optimizer, scaler=scaler) takes that factor out of C"
        if getattr(self.optimizer, "grad_scale", None) is not None:
            raise RuntimeError("a GradScaler multiplies the loss" + told)
        for name, gradient in g.items():
            factors = _factors(gradient, self.parameters[name].grad)
            if not len(factors):
                continue
            factor = factors.median().item()
            if factor > 1 and math.frexp(factor)[0] == 0.5 and bool((factors == factor).all()):
                raise RuntimeError(
                    f"the gradient was divided by {factor:g} before the step: if a GradScaler "
                    f"multiplies the loss{told}; to average minibatches, divide their losses"
                )
            self._scale_is_known = True
            if factor > _NO_CLIPPING:
                warnings.warn(
                    f"the gradient was made {factor:g} times smaller before the step: if a "
                    f"GradScaler multiplies the loss{told}",
                    stacklevel=2,
                )
            return


def unwrapped(optimizer: Any) -> Optimizer:
    """torch's optimizer within those of Accelerate, Lightning and others."""
    while isinstance(inside := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inside
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(f"attach takes an optimizer of torch, not a {type(optimizer)}")
    return optimizer


def _check(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    if isinstance(optimizer, LBFGS):
        raise TypeError("LBFGS takes many gradients a step: this cannot be followed")
    trained = {id(w) for group in optimizer.param_groups for w in group["params"]}
    if missing := [name for name, w in parameters.items() if id(w) not in trained]:
        raise ValueError(
            f"the optimizer does not train {missing}: attach the one that does, and follow others "
            "by parameters=..."
        )
    if inside := [n for n, w in parameters.items() if hasattr(w, "_in_backward_optimizers")]:
        raise ValueError(f"{inside} are stepped in the backward pass: this cannot be followed")


def scale_of(scaler: Any) -> float:
    """The factor that a GradScaler has on the loss."""
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0


def _factors(g: Tensor, there: Tensor | None) -> Tensor:
    """How many times smaller each element has become, where it is not zero."""
    if there is None or there.is_sparse or there.shape != g.shape:
        return g.new_empty(0)
    some = (g != 0) & (there != 0) & g.isfinite() & there.isfinite()
    return g[some] / there[some].to(g.dtype)


def _copy(g: Tensor) -> Tensor:
    return g.detach().to_dense() if g.is_sparse else g.detach().clone()


def _any(g: Tensor) -> bool:
    return True if g.is_sparse else bool(g.any())
