"""What a layer leaves in a forward and backward pass, and the per-sample gradients in it.

The input a of a layer and the gradient d of its output hold the gradient of each sample's loss, and
the backward pass computes both anyway.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from parameter_ordering.factors import Lookup, Outer, OuterSum, Rows


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

    def record(layer: nn.Module, args: tuple, output: Tensor) -> None:
        call = Call(args[0].detach() if args else None)
        calls.setdefault(layer, []).append(call)
        if output.requires_grad:
            handles.append(output.register_hook(call.receive))

    try:
        # First of all forward hooks: others may replace the output.
        handles += [layer.register_forward_hook(record, prepend=True) for layer in layers]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def owned(model: nn.Module, parameters: dict[str, Tensor]) -> dict[nn.Module, dict[str, str]]:
    """Layers of `FACTORS` with those parameters that they alone own: local name to name."""
    own = {m: dict(m.named_parameters(recurse=False)) for m in model.modules()}
    owners = Counter(id(p) for of in own.values() for p in of.values())
    names = {id(p): name for name, p in parameters.items() if owners[id(p)] == 1}
    layers = {
        m: {local: names[id(p)] for local, p in of.items() if id(p) in names}
        for m, of in own.items()
        if _kind(m)
    }
    return {m: of for m, of in layers.items() if of}


def factors(layer: nn.Module, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    """The g_i of the parameters of a layer, by local name, with E axes of an ensemble.

    d is the gradient of the sum of all losses, so that d_i belongs to g_i and not to g_i/S.
    """
    return _FACTORS[_kind(layer)](layer, a, d, E)


def _linear(module: nn.Linear, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    if a.dim() == E + 2:
        return {"weight": Outer(d, a), "bias": Rows(d, E)}
    if E:
        return {}
    a, d = a.flatten(1, -2), d.flatten(1, -2)
    return {"weight": OuterSum(d.mT, a.mT, module.weight.shape), "bias": Rows(d.sum(1))}


def _conv(module: nn.Conv1d | nn.Conv2d, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    def twice(setting: tuple, one: int) -> tuple:
        return (one, *setting) if len(setting) == 1 else setting

    pad = module._reversed_padding_repeated_twice  # the one place where "same" is a number
    if any(pad):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, pad, mode=mode)
    if a.dim() == 3:
        a = a.unsqueeze(2)
    kernel, stride = twice(module.kernel_size, 1), twice(module.stride, 1)
    dilation = twice(module.dilation, 1)

    def unfold(x: Tensor) -> Tensor:
        columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
        return columns.unflatten(1, (module.groups, -1))

    d = d.flatten(2)
    groups = d.unflatten(1, (module.groups, -1))
    return {
        "weight": OuterSum(groups, a, module.weight.shape, unfold),
        "bias": Rows(d.sum(2)),
    }


def _embedding(module: nn.Embedding, index: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
    if module.padding_idx is not None:
        d = d.masked_fill((index == module.padding_idx).unsqueeze(-1), 0)
    index, d = index.reshape(len(d), -1), d.reshape(len(d), -1, d.shape[-1])
    return {"weight": Lookup(index, d, module.weight.shape)}


def _trailing(normalise: Callable) -> Callable:
    """Norms whose weight has the shape of the last axes of the input."""

    def factors(module, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
        between = tuple(range(1, d.dim() - len(module.normalized_shape)))
        total = (lambda g: g.sum(between)) if between else (lambda g: g)
        return {"weight": Rows(total(d * normalise(module, a))), "bias": Rows(total(d))}

    return factors


def _channels(normalise: Callable) -> Callable:
    """Norms with one weight a channel, the second axis of the input."""

    def factors(module, a: Tensor, d: Tensor, E: int) -> dict[str, Rows]:
        def total(g: Tensor) -> Tensor:
            return g.flatten(2).sum(2) if g.dim() > 2 else g

        return {"weight": Rows(total(d * normalise(module, a))), "bias": Rows(total(d))}

    return factors


_layer_norm = _trailing(lambda m, a: F.layer_norm(a, m.normalized_shape, eps=m.eps))
_rms_norm = _trailing(lambda m, a: F.rms_norm(a, m.normalized_shape, eps=m.eps))
_group_norm = _channels(lambda m, a: F.group_norm(a, m.num_groups, eps=m.eps))
_batch_norm = _channels(
    lambda m, a: F.batch_norm(a, m.running_mean, m.running_var, eps=m.eps)  # refused in training
)

_FACTORS: dict[type, Callable] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}


def _kind(layer: nn.Module) -> type | None:
    return next((kind for kind in _FACTORS if isinstance(layer, kind)), None)
