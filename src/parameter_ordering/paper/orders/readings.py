r"""Other readings of (2.6): what an author may have computed who wrote it down so.

All follow the recursion :math:`C_t = (1 - \kappa_t) C_{t-1} + \kappa_t V_t` with the same
:math:`\kappa_t` and :math:`C_0`, and differ in the diagonal of :math:`V_t`. The paper's own,
:math:`(g_1 - g_S)^2`, is the order ``covariance``; ``all_samples`` is its mean over all samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.paper.orders.training import Training


class Readings:
    r"""All readings of an ensemble from one backward pass an iteration.

    Args:
        covariance: (2.6) as printed, at :math:`C_0`, of samples="first".
        all_samples: the same of samples="all".
    """

    def __init__(self, covariance: GradientCovariance, all_samples: GradientCovariance):
        self._both, self._kappa = (covariance, all_samples), covariance.kappa
        self.first = covariance.diagonal()
        self._forgotten = covariance.diagonal()
        self.batch = {name: torch.zeros_like(C) for name, C in self.first.items()}

    def update(self, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """One step of all readings, as :meth:`GradientCovariance.update` of each would do it."""
        covariance, all_samples = self._both
        loss, g_S, g = all_samples._gradients(loss_fn, x, y)
        t = covariance.t + 1
        kappa = self._kappa(t) if callable(self._kappa) else self._kappa
        with torch.no_grad():
            for C in self._both:
                C._C.decay(1 - kappa)
                C._C.add(g_S, g, kappa)
                C.t = t
            for name, rows in g.items():
                self.batch[name].lerp_(g_S[name].square(), kappa)
                self.first[name].lerp_(rows.first().square(), kappa)
                self._forgotten[name].mul_(1 - kappa)
        return loss

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
