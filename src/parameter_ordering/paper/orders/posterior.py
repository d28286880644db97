r"""A Gaussian posterior with diagonal covariance, trained by the bound on the evidence.

The bound, in nats for each of m objects and with its sign turned, is

.. math:: \frac{1}{m} \sum_i E_q [-\ln p(y_i | x_i, w)] + \frac{1}{m} KL(q \| p), \quad
    q = \prod_j N(\mu_j, \sigma_j^2).

The first term is estimated from one minibatch and one draw of noise an iteration.
"""

from collections.abc import Callable
from itertools import islice
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from parameter_ordering.ensemble import evaluate
from parameter_ordering.paper.orders.noise import Noise
from parameter_ordering.paper.orders.training import Training

START = 0.01  # sigma before training
TRAVEL = 5.0  # how far ln sigma may go in all, in nats


class Posterior(NamedTuple):
    """Means and logarithms of standard deviations, (R, 1, ...) by parameter name."""

    mean: dict[str, Tensor]
    log_sigma: dict[str, Tensor]

    def squared_ratio(self) -> dict[str, Tensor]:
        r""":math:`\mu^2 / \sigma^2`."""
        return {
            name: m.square() * (-2 * self.log_sigma[name]).exp() for name, m in self.mean.items()
        }


Outputs = Callable[[Posterior, Tensor, Noise], Tensor]
Divergence = Callable[[Posterior], Tensor]


def fit(
    trained: Training,
    outputs: Outputs,
    divergence: Divergence,
    purpose: str,
    noise_variance: float | None = None,
) -> Posterior:
    r"""Train a posterior from w_0, on the minibatches that the paper's training to t0 had.

    Adam has the learning rate of that training for the means. It goes about that far an iteration
    whatever the gradient, and few iterations would leave :math:`\sigma` where it starts: for
    :math:`\ln \sigma` the rate is what goes :data:`TRAVEL` in all, if that is more.

    Args:
        outputs: those of the model (R, 1, S, K) with weights drawn from the posterior.
        divergence: KL(q || p) of each model, (R, 1), in nats.
        purpose: of the noise.
        noise_variance: of the answers of a regression; by default what is most likely at w_t0, the
            training loss there.

    Raises:
        FloatingPointError: the bound is no longer finite.
    """
    mean = {name: w.clone().requires_grad_() for name, w in trained.start.items()}
    log_sigma = {n: torch.full_like(w, log(START)).requires_grad_() for n, w in mean.items()}
    posterior, noise = Posterior(mean, log_sigma), Noise(trained.own_seeds, purpose)
    weight, m = nats(trained, noise_variance), trained.x.shape[2]
    lr, t0 = trained.optimizer.param_groups[0]["lr"], trained.covariance.t
    groups = [
        {"params": list(mean.values()), "lr": lr},
        {"params": list(log_sigma.values()), "lr": max(lr, TRAVEL / t0)},
    ]
    optimizer = torch.optim.Adam(groups, fused=True)
    for t, (x, y) in enumerate(islice(trained.replay(), t0), 1):
        losses = trained.loss(outputs(posterior, x, noise), y).mean(-1)
        bound = weight * losses + divergence(posterior) / m
        if not bound.isfinite().all():
            run = int((~bound.isfinite()).nonzero()[0, 0])
            raise FloatingPointError(
                f"{purpose}: the bound of model {run} is {bound[run, 0].item()} at iteration {t}; "
                f"take a smaller lr than {lr}"
            )
        optimizer.zero_grad()
        bound.sum().backward()
        optimizer.step()
    mean, log_sigma = ({n: w.detach() for n, w in part.items()} for part in posterior)
    return Posterior(mean, log_sigma)


@torch.no_grad()
def nats(trained: Training, noise_variance: float | None = None) -> Tensor | float:
    r"""What the loss of an object is to be multiplied with to be :math:`-\ln p(y | x, w)`.

    1 for a cross entropy; :math:`1 / (2 s^2)`, (R, 1), for a squared error with noise of variance
    :math:`s^2`, up to a constant. By default :math:`s^2` is the training loss at w_t0.
    """
    if not trained.gaussian:
        return 1.0
    if noise_variance is not None:
        return 0.5 / noise_variance
    loss = evaluate(trained.model, trained.loss, trained.x[:, 0], trained.y[:, 0])
    return (0.5 / loss).to(trained.x.dtype)
