"""Relevance by variational inference, the paper's [7]."""

from functools import partial
from math import log

import torch
from torch import Tensor
from torch.func import functional_call

from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.paper.orders.noise import Noise
from parameter_ordering.paper.orders.posterior import Posterior, fit
from parameter_ordering.paper.orders.training import Training


def variational_relevance(
    trained: Training, prior_variance: float | None = None, noise_variance: float | None = None
) -> dict[str, Tensor]:
    r""":math:`\mu^2 / \sigma^2` of a Gaussian posterior: what the data hardly need comes first.

    The prior is Gaussian, and its mean and variance are those that make the bound largest, as in
    the source; or 0 and ``prior_variance``. The order is that of the source's
    :math:`|\mu| / \sigma`. Extra: 6 p numbers, and a second training to t0. Source: Graves,
    Practical variational inference for neural networks, NIPS 2011.
    """

    def outputs(posterior: Posterior, x: Tensor, noise: Noise) -> Tensor:
        weights = {}
        for name, mean in posterior.mean.items():
            epsilon = noise.normal(mean.shape, mean.device).to(mean.dtype)
            weights[name] = torch.addcmul(mean, posterior.log_sigma[name].exp(), epsilon)
        return functional_call(trained.model, weights, (x,))

    prior = partial(_fixed_prior, prior_variance) if prior_variance else _fitted_prior
    posterior = fit(trained, outputs, prior, "variational relevance", noise_variance)
    return posterior.squared_ratio()


def _fitted_prior(posterior: Posterior) -> Tensor:
    r"""KL(q || p) for the best Gaussian p: :math:`p \ln \sigma_0 - \sum_j \ln \sigma_j`."""
    mean, log_sigma = (_flat(part) for part in posterior)
    second = (2 * log_sigma).exp() + (mean - mean.mean(-1, keepdim=True)).square()
    return mean.shape[-1] * second.mean(-1).log() / 2 - log_sigma.sum(-1)


def _fixed_prior(variance: float, posterior: Posterior) -> Tensor:
    """KL(q || N(0, variance))."""
    mean, log_sigma = (_flat(part) for part in posterior)
    second = (2 * log_sigma).exp() + mean.square()
    return (second / variance - 1 + log(variance) - 2 * log_sigma).sum(-1) / 2


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([each.flatten(ENSEMBLE_DIMS) for each in tensors.values()], ENSEMBLE_DIMS)
