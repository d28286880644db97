"""Rules: the shares of the samples in the gradient of a layer's parameters.

The input a of a layer and the gradient d of its output hold the share of each sample, and the
backward pass computes both anyway.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_ordering.gradients.factors import Lookup, Outer, OuterSum, Rows

__all__ = ["register_rule"]

Rule = Callable[[Any, Tensor, Tensor], Mapping[str, Rows | Tensor]]


def register_rule(layer: type[nn.Module], rule: Rule) -> None:
    r"""Give the class of a layer of your own a rule for the shares of its parameters.

    Without one a layer is differentiated again by itself, which is right and slower. The rule holds
    for all calls with one tensor as input and one as output, but not for a subclass with a
    ``forward`` of its own.

    Args:
        layer: the class.
        rule: ``rule(layer, a, d)`` gives the share of each sample by local name, (S, \*shape), from
            the input a (S, ...) and the gradient d (S, ...) of the output. A parameter that it
            leaves out takes the slower way.

    Raises:
        ValueError: the class inherits its ``forward``.

    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = nn.Parameter(torch.ones(3))
    ...
    ...     def forward(self, x):
    ...         return self.scale * x
    >>> register_rule(Scale, lambda layer, a, d: {"scale": a * d})
    """
    if "forward" not in vars(layer):
        raise ValueError(f"{layer.__name__} has no forward of its own: give its class the rule")
    _RULES[layer.forward] = rule


def units(
    model: nn.Module, parameters: Mapping[str, Tensor], another_way: Mapping[str, nn.Module]
) -> dict[nn.Module, dict[str, str]]:
    """The modules that account for the parameters: for each, the names and their local names.

    It is the module that has the parameter, unless that is never called, as a list of parameters or
    a parametrization; or unless ``another_way`` says which.
    """
    around = {child: module for module in model.modules() for child in module.children()}
    names = {id(w): name for name, w in parameters.items()}
    found: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        for local, w in module.named_parameters(recurse=False):
            if (name := names.get(id(w))) is None:
                continue
            unit = another_way.get(name, module)
            while unit is not model and not _is_called(unit, around[unit]):
                unit = around[unit]
            found.setdefault(unit, {}).setdefault(name, local if unit is module else "")
    return found


def _is_called(module: nn.Module, around: nn.Module) -> bool:
    return (
        getattr(getattr(module, "forward", None), "__func__", module) is not nn.Module.forward
        and not isinstance(
            module, (nn.utils.parametrize.ParametrizationList, torch.jit.ScriptModule)
        )
        and not isinstance(
            around, (nn.MultiheadAttention, nn.utils.parametrize.ParametrizationList)
        )
    )


def has_rule(layer: nn.Module, ensemble: bool) -> bool:
    """Whether there is a rule for the layer."""
    return _rule(layer, ensemble) is not None


def sample_axis(layer: nn.Module, tensor: Tensor, place: int = 0) -> int | None:
    """Where a layer that says so has its samples in one of its outputs; None for the others."""
    if isinstance(layer, nn.RNNBase) and place:
        return 1  # its last states
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and tensor.dim() == 3:
        return 0 if layer.batch_first else 1
    return None


def works_on_positions(layer: nn.Module) -> bool:
    """Whether the layer does the same to each row, however these are laid out in axes."""
    return isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding))


def factors(layer: nn.Module, a: Tensor, d: Tensor, ensemble: bool, E: int) -> dict[str, Rows]:
    """The shares of the parameters of a layer, by local name; those that the rule gives.

    Args:
        layer: of one of the known kinds.
        a, d: its input, and the gradient of its output.
        ensemble: whether the models of an ensemble are on the first E axes.
        E: the axis of the samples.
    """
    if ensemble:
        return _stacked(a, d, E)
    rule = _rule(layer, ensemble)
    found = rule(layer, a, d) if rule else {}
    return {local: s if isinstance(s, Rows) else Rows(s) for local, s in found.items()}


def _stacked(a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    """Linear layers of an ensemble."""
    if not a.dim() == d.dim() == E + 2:
        return {}
    return {"weight": Outer(d, a, 1), "bias": Rows(d, E)}


def _linear(layer: nn.Linear, a: Tensor, d: Tensor) -> dict[str, Rows]:
    if a.dim() == d.dim() == 2:
        return {"weight": Outer(d, a, 1), "bias": Rows(d)}
    if a.dim() < 3:
        return {}
    a, d = a.flatten(1, -2), d.flatten(1, -2)
    weight = OuterSum(d.mT, a.mT, 1, (d.shape[-1], a.shape[-1]))
    return {"weight": weight, "bias": Rows(d.sum(1))}


def _conv(layer: nn.Conv1d | nn.Conv2d, a: Tensor, d: Tensor) -> dict[str, Rows]:
    if a.dim() != len(layer.kernel_size) + 2:
        return {}

    def twice(setting: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *setting) if len(setting) == 1 else setting

    pad = layer._reversed_padding_repeated_twice  # the one place where "same" is a number
    if any(pad):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        a = F.pad(a, pad, mode=mode)
    if a.dim() == 3:
        a = a.unsqueeze(2)
    kernel, stride, dilation = map(twice, (layer.kernel_size, layer.stride, layer.dilation))

    def unfold(x: Tensor) -> Tensor:
        columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
        split: Tensor = columns.unflatten(1, (layer.groups, -1))
        return split

    # Not layer.weight.shape: a parametrized weight is computed when asked for, which may move it.
    shape = (d.shape[1], a.shape[1] // layer.groups, *layer.kernel_size)
    d = d.flatten(2)
    groups = d.unflatten(1, (layer.groups, -1))
    return {"weight": OuterSum(groups, a, 1, shape, unfold), "bias": Rows(d.sum(2))}


def _embedding(layer: nn.Embedding, index: Tensor, d: Tensor) -> dict[str, Rows]:
    if layer.padding_idx is not None:
        d = d.masked_fill((index == layer.padding_idx).unsqueeze(-1), 0)
    index, d = index.reshape(len(d), -1), d.reshape(len(d), -1, d.shape[-1])
    return {"weight": Lookup(index, d, 1, layer.weight.shape)}


def _embedding_bag(layer: nn.EmbeddingBag, index: Tensor, d: Tensor) -> dict[str, Rows]:
    if layer.mode == "max" or index.dim() != 2:
        return {}
    d = d.unsqueeze(1).expand(*index.shape, -1)
    counted = torch.ones_like(index, dtype=d.dtype)
    if layer.padding_idx is not None:
        counted = (index != layer.padding_idx).to(d.dtype)
    if layer.mode == "mean":
        counted = counted / counted.sum(1, keepdim=True).clamp_min(1)
    return {"weight": Lookup(index, d * counted.unsqueeze(-1), 1, layer.weight.shape)}


def _prelu(layer: nn.PReLU, a: Tensor, d: Tensor) -> dict[str, Rows]:
    if a.dim() < 2:
        return {}
    g = (d * a.clamp_max(0)).unsqueeze(-1).flatten(2)  # (S, channels, positions)
    return {"weight": Rows(g.sum(2) if layer.num_parameters > 1 else g.sum((1, 2)).unsqueeze(1))}


def _norm(normalised: Callable[..., Tensor], positions: Callable[..., tuple[int, ...]]) -> Rule:
    """The rule of a layer that gives weight * normalised(layer, a) + bias at every position."""

    def rule(layer: nn.Module, a: Tensor, d: Tensor) -> dict[str, Rows]:
        def total(g: Tensor) -> Tensor:
            axes = positions(layer, g)
            return g.sum(axes) if axes else g

        return {"weight": Rows(total(d * normalised(layer, a))), "bias": Rows(total(d))}

    return rule


def _between(layer: nn.LayerNorm | nn.RMSNorm, g: Tensor) -> tuple[int, ...]:
    """Positions are all axes between the samples and those of the weight."""
    return tuple(range(1, g.dim() - len(layer.normalized_shape)))


def _after(layer: nn.Module, g: Tensor) -> tuple[int, ...]:
    """Positions are all axes after the channels."""
    return tuple(range(2, g.dim()))


_layer_norm = _norm(lambda m, a: F.layer_norm(a, m.normalized_shape, eps=m.eps), _between)
_rms_norm = _norm(lambda m, a: F.rms_norm(a, m.normalized_shape, eps=m.eps), _between)
_group_norm = _norm(lambda m, a: F.group_norm(a, m.num_groups, eps=m.eps), _after)
_batch_norm = _norm(lambda m, a: F.batch_norm(a, m.running_mean, m.running_var, eps=m.eps), _after)

# By the function that runs: a subclass with a forward of its own may do anything.
_RULES: dict[Callable[..., Any], Rule] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Embedding.forward: _embedding,
    nn.EmbeddingBag.forward: _embedding_bag,
    nn.PReLU.forward: _prelu,
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.BatchNorm1d.forward: _batch_norm,  # and of 2d and 3d; with running statistics, or refused
}


def _rule(layer: nn.Module, ensemble: bool) -> Rule | None:
    if ensemble:  # the weight has more axes than nn.Linear knows, so forward is never its own
        return _linear if isinstance(layer, nn.Linear) else None
    forward = getattr(layer, "forward", None)  # a scripted module may have none
    return _RULES.get(getattr(forward, "__func__", forward))  # type: ignore[arg-type]
