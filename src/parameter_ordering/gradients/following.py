"""How a covariance follows a training, in one process or in several."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from parameter_ordering.gradients.pending import Pending
from parameter_ordering.gradients.steps import Steps

if TYPE_CHECKING:
    from parameter_ordering.covariance import GradientCovariance


class Following:
    """The hooks by which a covariance follows a training."""

    def __init__(self, C: "GradientCovariance", optimizer: Any, scaler: Any):
        self._of, self._shares = C, C._gradients.shares
        self._pending = Pending(C._C)
        self._steps = Steps(
            C._parameters, optimizer, scaler, self._step, self._passed, self._pending.clear
        )
        self._shares.start(self._steps)
        if not (C.full and C.samples == "all"):
            self._shares.stream(self._pending.take)

    def remove(self) -> None:
        self._shares.stop()
        self._shares.stream(None)
        self._steps.remove()

    def _passed(self, gradients: dict[str, Tensor]) -> None:
        shares = self._shares
        if not gradients:
            shares.forget()
            return
        found = shares.finish(gradients)
        if shares.error is not None:
            self._steps.fail(shares.error)
        elif shares.S is not None:
            self._pending.end(found, shares.S)

    def _step(self, g: dict[str, Tensor], scale: float) -> None:
        C, S = self._of, self._pending.S
        C._check_size(S)
        kappa = C._next_kappa()
        if kappa > 0:
            C._C.decay(1 - kappa)
            mean = S if C.reduction == "mean" else 1
            self._pending.add_to(C._C, g, mean, C._alpha(kappa, S) / scale**2)
        self._pending.clear()
        C.t, C._sizes_seen = C.t + 1, hash((C._sizes_seen, S))
