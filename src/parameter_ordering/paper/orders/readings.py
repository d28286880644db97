r"""Other readings of (2.6): what an author may have computed who wrote it down so.

All follow the recursion :math:`C_t = (1 - \kappa_t) C_{t-1} + \kappa_t V_t` with the same
:math:`\kappa_t` and :math:`C_0`, and differ in the diagonal of :math:`V_t`. The paper's own,
:math:`(g_1 - g_S)^2`, is the order ``covariance``; ``all_samples`` is its mean over all samples.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from parameter_ordering.paper.orders.training import Training


class Readings:
    r"""The recursion for :math:`g_S^2` and for :math:`g_1^2`, of an ensemble (R, V, ...).

    Args:
        model: the ensemble.
        loss: of the ensemble, summed over models.
        kappa: :math:`\kappa_t`, a number or a function of t = 1, 2, ...
        initial: :math:`C_0` by parameter name.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        kappa: float | Callable[[int], float],
        initial: Mapping[str, Tensor],
    ):
        self.model, self.loss, self.kappa, self.t = model, loss, kappa, 0
        self.batch = {name: torch.zeros_like(C) for name, C in initial.items()}
        self.first = {name: C.clone() for name, C in initial.items()}
        self._forgotten = {name: C.clone() for name, C in initial.items()}

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in :math:`g_S`, which stands in ``.grad``, and :math:`g_1` of x (R, V, S, n)."""
        self.t += 1
        kappa = self.kappa(self.t) if callable(self.kappa) else self.kappa
        weights = dict(self.model.named_parameters())
        loss = self.loss(self.model(x[:, :, :1]), y[:, :, :1])
        g_1 = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), g_1, strict=True):
                self.batch[name].lerp_(w.grad.square(), kappa)
                self.first[name].lerp_(g.square(), kappa)
                self._forgotten[name].mul_(1 - kappa)

    @property
    def accumulated(self) -> dict[str, Tensor]:
        """The recursion for :math:`g_S^2` from :math:`C_0`."""
        return {name: batch + self._forgotten[name] for name, batch in self.batch.items()}


def first_not_centred(trained: Training) -> dict[str, Tensor]:
    r""":math:`V_t = g_1^2`: the square of the gradient at the first sample, nothing subtracted.

    Also what (2.6) becomes where :math:`g_S` is taken first and ``.grad`` is not cleared before the
    backward pass of the first sample: :math:`(g_S + g_1) - g_S`.
    """
    return _readings(trained).first


def all_not_centred(trained: Training) -> dict[str, Tensor]:
    r""":math:`V_t = \frac{1}{S} \sum_i g_i^2`: the square of the gradient, from all samples."""
    batch, variance = _readings(trained).batch, trained.all_samples
    if variance is None:
        raise ValueError("all_not_centred needs the variance of all samples: it was not followed")
    return {name: C + batch[name] for name, C in variance.diagonal().items()}


def not_cleared(trained: Training) -> dict[str, Tensor]:
    r""":math:`V_t = g_S^2`: ``.grad`` is not cleared between the two backward passes.

    The gradient at the first sample is taken, then that of the minibatch is added to it, and what
    is subtracted is the sum: :math:`g_1 - (g_1 + g_S) = -g_S`. A public port of the recursion does
    this. With :math:`\kappa_t = 1/t` it is the order of ``second_moment``.
    """
    return _readings(trained).accumulated


def _readings(trained: Training) -> Readings:
    if trained.readings is None:
        raise ValueError("the readings of (2.6) were not followed in this training")
    return trained.readings


READINGS: dict[str, Callable[[Training], dict[str, Tensor]]] = {
    reading.__name__: reading for reading in (first_not_centred, all_not_centred, not_cleared)
}
