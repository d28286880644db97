"""Many models as one module.

The parameters of an ensemble have two leading axes, (runs, variants), and keep the names that
they have in a single model. Inputs are (R, 1 or V, S, n), outputs (R, V, S, K). The loss of an
ensemble is the sum of the losses of its models, so the gradient of each model is its own, and any
elementwise torch optimizer trains all of them at once.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ENSEMBLE_DIMS = 2


class Linear(nn.Linear):
    """``nn.Linear`` of R x V models: weight (R, V, out, in) and bias (R, V, out).

    An input (R, 1, S, in) is shared by the variants: their weights then stand one below the other
    in one product [W_1; ...; W_V] X^T. In the output (R, V, S, out) the samples are adjacent in
    memory, so nothing is transposed in the products of the backward pass either.
    """

    bias: nn.Parameter | None  # type: ignore[assignment]  # torch says it is there

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = weight.shape[-1], weight.shape[-2]
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        runs, variants, out, _ = self.weight.shape
        first, last = (1, 2) if x.size(1) == 1 else (0, 1)
        weight = self.weight.flatten(first, last)
        x = x.flatten(0, 1).expand(len(weight), -1, -1)
        y = torch.bmm(weight, x.mT)
        if self.bias is not None:
            y += self.bias.reshape(*weight.shape[:2], 1)
        return y.view(runs, variants, out, -1).mT


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One module with parameters (R, 1, ...) from R models of the same structure.

    Raises:
        TypeError: if a model has parameters outside ``nn.Linear``, the only layer that is stacked.
    """
    if isinstance(models[0], nn.Linear):
        return _stack(models)
    stacked = copy.deepcopy(models[0])
    covered: set[int] = set()
    for name, layer in models[0].named_modules():
        if isinstance(layer, nn.Linear):
            stacked.set_submodule(name, _stack([model.get_submodule(name) for model in models]))
            covered.update(id(parameter) for parameter in layer.parameters())
    for name, parameter in models[0].named_parameters():
        if id(parameter) not in covered:
            raise TypeError(f"parameter {name!r} is not of an nn.Linear: only these can be stacked")
    return stacked


def _stack(layers: Sequence[nn.Module]) -> Linear:
    def stacked(name: str) -> Tensor:
        return torch.stack([layer.get_parameter(name).detach() for layer in layers]).unsqueeze(1)

    return Linear(**{name: stacked(name) for name, _ in layers[0].named_parameters()})


@torch.no_grad()
def branch(model: nn.Module, optimizer: torch.optim.Optimizer, variants: int) -> None:
    """Copy each run of an ensemble (R, 1, ...) ``variants`` times, with its optimizer state.

    The parameters of the model are new ones then: while somebody holds a graph of an old one,
    autograd gives that gradients of its old shape, whatever its data are.
    """

    def expand(tensor: Tensor) -> Tensor:
        return tensor.expand(-1, variants, *tensor.shape[2:]).contiguous()

    new = {}
    for name, old in list(model.named_parameters()):
        layer, _, local = name.rpartition(".")
        new[old] = nn.Parameter(expand(old))
        setattr(model.get_submodule(layer), local, new[old])
        optimizer.state[new[old]] = {
            key: expand(value) if torch.is_tensor(value) and value.shape == old.shape else value
            for key, value in optimizer.state.pop(old, {}).items()
        }
    for group in optimizer.param_groups:
        group["params"] = [new[old] for old in group["params"]]


def summed(per_sample: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an ensemble: mean over samples (2.3), summed over models."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        losses = per_sample(output, target)
        return losses.sum() / losses.shape[-1]

    return loss


@torch.no_grad()
def evaluate(
    model: nn.Module,
    per_sample: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    chunk: int = 1000,
) -> Tensor:
    """Loss (2.3) of every model, (R, V), on objects x (R or 1, m, n) with answers y (R or 1, m)."""
    total = torch.zeros(())
    for rows, answers in zip(x.split(chunk, 1), y.split(chunk, 1), strict=True):
        losses = per_sample(model(rows[:, None]), answers[:, None])
        total = total + losses.sum(-1, dtype=torch.float64)
    return total / x.shape[1]
