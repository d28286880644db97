"""Variational dropout, the paper's [6]."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.paper.orders.noise import Noise
from parameter_ordering.paper.orders.posterior import Posterior, fit
from parameter_ordering.paper.orders.training import Training

_K = 0.63576, 1.87320, 1.48695


def variational_dropout(trained: Training) -> dict[str, Tensor]:
    r""":math:`1 / \alpha = \mu^2 / \sigma^2`: the parameter with the largest rate of dropout first.

    The prior is uniform in :math:`\ln |w|`, so that the bound drives :math:`\alpha` up wherever the
    data do not object. KL by the source's approximation; noise is drawn for what each unit adds
    up (local reparametrization). The source has no noise on biases; here a bias is the weight of an
    input that is 1. Extra: 6 p numbers, and a second training to t0 with twice the products.
    Source: Molchanov, Ashukha, Vetrov, Variational dropout sparsifies deep neural networks, ICML
    2017.
    """
    model = copy.deepcopy(trained.model)
    layers = {
        f"{name}.": each for name, each in model.named_modules() if isinstance(each, nn.Linear)
    }

    def outputs(posterior: Posterior, x: Tensor, noise: Noise) -> Tensor:
        hooks = []
        for prefix, layer in layers.items():
            own = {name for name in posterior.mean if name.startswith(prefix)}
            variance = {n.removeprefix(prefix): (2 * posterior.log_sigma[n]).exp() for n in own}
            hooks.append(layer.register_forward_hook(_noisy(variance, noise)))
        try:
            return functional_call(model, posterior.mean, (x,))
        finally:
            for hook in hooks:
                hook.remove()

    return fit(trained, outputs, divergence, "variational dropout").squared_ratio()


def _noisy(variance: dict[str, Tensor], noise: Noise):
    """A hook that adds to a layer's output the noise of its weights, summed over inputs."""

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = inputs
        spread = x.square() @ variance["weight"].mT
        if "bias" in variance:
            spread = spread + variance["bias"].unsqueeze(-2)
        epsilon = noise.normal(output.shape, output.device).to(output.dtype)
        return output + (spread + 1e-16).sqrt() * epsilon

    return hook


def divergence(posterior: Posterior) -> Tensor:
    r"""KL(q || p), (R, 1), within 0.01 for each weight, and up to a constant: (14) of the source.

    :math:`k_1 (1 - \mathrm{sigmoid}(k_2 + k_3 \ln \alpha)) + \ln(1 + \alpha^{-1}) / 2`.
    """
    total = torch.zeros(())
    k1, k2, k3 = _K
    for name, mean in posterior.mean.items():
        log_alpha = 2 * posterior.log_sigma[name] - (mean.square() + 1e-12).log()
        each = k1 * (-(k2 + k3 * log_alpha)).sigmoid() + F.softplus(-log_alpha) / 2
        total = total + each.flatten(ENSEMBLE_DIMS).sum(-1)
    return total
