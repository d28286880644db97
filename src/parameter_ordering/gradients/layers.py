"""What a layer leaves in a forward and backward pass, and the per-sample gradients in it.

The input a of a layer and the gradient d of its output hold the gradient of each sample's loss, and
the backward pass computes both anyway.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_ordering.gradients.factors import Lookup, Outer, OuterSum, Rows


class Call:
    """What one call of a layer leaves: its input, and in the backward pass its output gradient."""

    def __init__(self, input: Tensor | None):
        self.input, self.output_grad = input, None

    def receive(self, output_grad: Tensor) -> None:
        self.output_grad = output_grad


@contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Call]]]:
    """The calls of each layer; all hooks are gone afterwards."""
    calls, handles = {}, []

    def record(layer: nn.Module, args: tuple, output: Any) -> None:
        call = Call(args[0].detach() if args and torch.is_tensor(args[0]) else None)
        calls.setdefault(layer, []).append(call)
        if torch.is_tensor(output) and output.requires_grad:
            handles.append(output.register_hook(call.receive))

    try:
        # First of all forward hooks: others may replace the output.
        handles += [layer.register_forward_hook(record, prepend=True) for layer in layers]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def owned(
    model: nn.Module, parameters: dict[str, Tensor], E: int
) -> dict[nn.Module, dict[str, str]]:
    """Layers that have a rule, with the parameters that each alone owns: local name to name."""
    own = {layer: dict(layer.named_parameters(recurse=False)) for layer in model.modules()}
    owners = Counter(id(w) for each in own.values() for w in each.values())
    names = {id(w): name for name, w in parameters.items() if owners[id(w)] == 1}
    layers = {
        layer: {local: names[id(w)] for local, w in each.items() if id(w) in names}
        for layer, each in own.items()
        if _rule(layer, E)
    }
    return {layer: each for layer, each in layers.items() if each}


def factors(layer: nn.Module, a: Tensor, d: Tensor, E: int, scale: float) -> dict[str, Rows]:
    """The g_i of the parameters of a layer, by local name, with E axes of an ensemble.

    d is the gradient of the loss, ``scale`` what turns d_i into that of the loss of sample i.
    """
    rule = _rule(layer, E)
    return rule(layer, a, d, E, scale) if rule else {}


def _linear(layer: nn.Linear, a: Tensor, d: Tensor, E: int, scale: float) -> dict[str, Rows]:
    if a.dim() == d.dim() == E + 2:
        return {"weight": Outer(d, a, scale), "bias": Rows(d, E, scale)}
    if E or a.dim() == 1:
        return {}
    a, d = a.flatten(1, -2), d.flatten(1, -2)
    weight = OuterSum(d.mT, a.mT, scale, (d.shape[-1], a.shape[-1]))
    return {"weight": weight, "bias": Rows(d.sum(1), 0, scale)}


def _conv(
    layer: nn.Conv1d | nn.Conv2d, a: Tensor, d: Tensor, E: int, scale: float
) -> dict[str, Rows]:
    if a.dim() != len(layer.kernel_size) + 2:
        return {}

    def twice(setting: tuple) -> tuple:
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
        return columns.unflatten(1, (layer.groups, -1))

    # Not layer.weight.shape: a parametrized weight is computed when asked for, which may move it.
    shape = (d.shape[1], a.shape[1] // layer.groups, *layer.kernel_size)
    d = d.flatten(2)
    groups = d.unflatten(1, (layer.groups, -1))
    weight = OuterSum(groups, a, scale, shape, unfold)
    return {"weight": weight, "bias": Rows(d.sum(2), 0, scale)}


def _embedding(
    layer: nn.Embedding, index: Tensor, d: Tensor, E: int, scale: float
) -> dict[str, Rows]:
    if layer.padding_idx is not None:
        d = d.masked_fill((index == layer.padding_idx).unsqueeze(-1), 0)
    index, d = index.reshape(len(d), -1), d.reshape(len(d), -1, d.shape[-1])
    return {"weight": Lookup(index, d, scale, layer.weight.shape)}


def _norm(normalised: Callable, positions: Callable) -> Callable:
    """The rule of a layer that gives weight * normalised(layer, a) + bias at every position."""

    def rule(layer: nn.Module, a: Tensor, d: Tensor, E: int, scale: float) -> dict[str, Rows]:
        def total(g: Tensor) -> Tensor:
            axes = positions(layer, g)
            return g.sum(axes) if axes else g

        weight = Rows(total(d * normalised(layer, a)), 0, scale)
        return {"weight": weight, "bias": Rows(total(d), 0, scale)}

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
_RULES: dict[Callable, Callable] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Embedding.forward: _embedding,
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.BatchNorm1d.forward: _batch_norm,  # and of 2d and 3d; with running statistics, or refused
}


def _rule(layer: nn.Module, E: int) -> Callable | None:
    if E:  # the weight has more axes than nn.Linear knows, so forward is never its own
        return _linear if isinstance(layer, nn.Linear) else None
    forward = getattr(layer, "forward", None)  # a scripted module may have none
    return _RULES.get(getattr(forward, "__func__", None))
