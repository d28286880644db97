"""When to freeze: at t0 as in the paper, or step by step along k(t)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, distributed
from torch.optim import Optimizer

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.granularity import to_parameters
from parameter_ordering.skipping import skip_gradients

__all__ = ["FreezeSchedule", "ramp"]


class FreezeSchedule:
    r"""Freezes the first k(t) of an order, where t is the number of iterations done.

    ``step()`` is called once an iteration, after that of the optimizer, as with the schedulers of
    the learning rate. The order is taken when it is first needed and then stays, so that what is
    frozen remains frozen while k(t) grows; where k(t) falls, the last of the order train again.
    Tensors frozen as a whole get no gradient (:func:`.skip_gradients`), where nobody waits for it.

    Copied or pickled together with model and optimizer it acts on their copies. A lambda for
    ``order`` or ``k`` is not copied, though, and cannot be pickled.

    Args:
        optimizer: built from ``named_parameters()``. The schedule sets its mask: freeze nothing
            else in it.
        order: gives the ranks by name, of parameters, units or tensors (k counts the same), as
            ``lambda: rank(C.diagonal())`` or ``lambda: rank(by_tensors(C.diagonal()))``.
        k: the number of frozen parameters after t = 1, 2, ... iterations, such as :func:`ramp`.
        in_backward: as in :func:`freeze`.
        skip_gradients: whether to compute no gradient for tensors that are frozen as a whole.
            ``DistributedDataParallel`` waits for every gradient that it knows of, unless built with
            ``find_unused_parameters=True``, and raises an error for one that is missing. So None
            skips where ``torch.distributed`` has not been initialized.

    Attributes:
        t: iterations done.
        k: what is frozen now.
        ranks: the order, None before it was needed.

    Raises:
        ValueError: for an optimizer that knows no names; from ``step()``, with nothing changed
            but t, for k(t) outside of [0, p] and ranks of other names or shapes.

    >>> import torch
    >>> from parameter_ordering.order import rank
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.named_parameters())
    >>> order = lambda: rank({"weight": torch.tensor([[0.3, 0.2]]), "bias": torch.tensor([0.25])})
    >>> schedule = FreezeSchedule(optimizer, order, k=ramp(2, t0=3))
    >>> for t in range(4):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 2)).square().mean().backward()
    ...     optimizer.step()
    ...     schedule.step()
    ...     print(schedule.k, model.bias.requires_grad)
    0 True
    0 True
    2 False
    2 False
    """

    def __init__(
        self,
        optimizer: Optimizer,
        order: Callable[[], Mapping[str, Tensor]],
        k: Callable[[int], int],
        *,
        in_backward: bool | None = None,
        skip_gradients: bool | None = None,
    ):
        self._parameters: dict[str, Tensor] = {
            name: p
            for group in optimizer.param_groups
            for name, p in zip(group.get("param_names") or (), group["params"], strict=False)
        }
        if not self._parameters:
            raise ValueError("the optimizer knows no names: build it from model.named_parameters()")
        self._optimizer, self._order, self._k = optimizer, order, k
        self._in_backward, self._skips = in_backward, skip_gradients
        self._skipped: list[Tensor] = []
        self.t, self.k = 0, 0
        self.ranks: Mapping[str, Tensor] | None = None

    def step(self) -> None:
        """Count an iteration and freeze the k(t) first."""
        self.t += 1
        if (k := self._k(self.t)) != self.k:
            self._freeze(k, self._order() if self.ranks is None else self.ranks)

    def unfreeze(self) -> None:
        """Let everything train again, with its gradient."""
        self._stop_skipping()
        unfreeze(self._optimizer)
        self.k = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed schedule needs: t, k and the ranks; k(t) itself is code."""
        return {"t": self.t, "k": self.k, "ranks": self.ranks}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the state and freeze as then, before or after the optimizer loads its own."""
        if state_dict["ranks"] is None:
            self.unfreeze()
        else:
            self._freeze(state_dict["k"], state_dict["ranks"])
        self.t, self.ranks = state_dict["t"], state_dict["ranks"]

    def _freeze(self, k: int, ranks: Mapping[str, Tensor]) -> None:
        last = max(int(r.max()) for r in ranks.values() if r.numel())
        if not 0 <= k <= last:
            raise ValueError(f"k({self.t}) is {k}; it must be in [0, {last}], as the ranks are")
        mask = to_parameters({name: r <= k for name, r in ranks.items()}, self._parameters)
        # With its gradient on, so that the freeze can mask the gradient where it comes to be.
        self._stop_skipping()
        freeze(self._optimizer, mask, in_backward=self._in_backward)
        self.k, self.ranks = k, ranks
        if self._skips is False or (self._skips is None and _in_a_group()):
            return
        trainable = [p for p in self._parameters.values() if p.requires_grad]
        skip_gradients(self._parameters.items(), mask)  # to close it would act on no copy
        self._skipped = [p for p in trainable if not p.requires_grad]

    def _stop_skipping(self) -> None:
        while self._skipped:
            self._skipped.pop().requires_grad_(True)


def _in_a_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def ramp(k: int, t0: int, t1: int | None = None) -> Callable[[int], int]:
    """k(t): 0 before t0, then in equal steps up to k at t1; all at t0, as the paper, without t1.

    >>> [ramp(6, t0=2)(t) for t in range(1, 6)]
    [0, 6, 6, 6, 6]
    >>> [ramp(6, t0=2, t1=4)(t) for t in range(1, 6)]
    [0, 2, 4, 6, 6]
    """
    t1 = t0 if t1 is None else t1
    if not 1 <= t0 <= t1:
        raise ValueError(f"t0 = {t0}, t1 = {t1}: 1 <= t0 <= t1 is needed")
    return partial(_ramp, k, t0, t1)


def _ramp(k: int, t0: int, t1: int, t: int) -> int:
    return k * min(max(t - t0 + 1, 0), t1 - t0 + 1) // (t1 - t0 + 1)
