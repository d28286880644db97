"""The shares of samples in the gradient of one module, which is differentiated again.

For a layer without a formula: it runs once more on the input that it had, alone, with the random
numbers that it drew. What flows back through the rows of sample i of its output is the share of i.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from parameter_ordering.gradients.coupling import rounding
from parameter_ordering.gradients.recorder import Call
from parameter_ordering.gradients.replay import attributes_kept, places, replayed

_ROOM = 2**28  # bytes that the gradients of single samples may take at a time


class Again:
    """Differentiates modules again, each in the way that has proved right for it."""

    def __init__(self) -> None:
        self._mapped: dict[nn.Module, bool] = {}

    def shares(
        self, call: Call, parameters: dict[str, Tensor], axis: int, first: bool, test: bool
    ) -> Iterator[dict[str, Tensor]]:
        """The shares of some samples at a time, (s, *shape) by name, in their order.

        Args:
            call: of the module, with the gradients of its outputs.
            parameters: those whose shares are asked for, by name.
            axis: that of the samples.
            first: whether to give the first sample only.
            test: whether to try, again, if the samples can be mapped over.

        Raises:
            RuntimeError: torch cannot differentiate the module again.
        """
        if not first and (test or call.layer not in self._mapped):
            self._mapped[call.layer] = self._try(call, parameters, axis)
        if first and call.random is None and self._mapped.get(call.layer):
            yield from _mapped(call, parameters, axis, 1)
        elif not first and self._mapped[call.layer]:
            yield from _mapped(call, parameters, axis, call.within.S or 0)
        else:
            yield from _one_by_one(call, parameters, axis, first)

    def _try(self, call: Call, parameters: dict[str, Tensor], axis: int) -> bool:
        if call.random is not None and axis:
            return False
        try:
            parts = list(_mapped(call, parameters, axis, call.within.S or 0))
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            return False
        w, outputs, direct = _run(call, parameters, axis)
        want = torch.autograd.grad(outputs, list(w.values()), direct, allow_unused=True)
        for name, g in zip(w, want, strict=True):
            total = sum(part[name].sum(0) for part in parts)
            size = sum(float(part[name].norm()) for part in parts)
            g = torch.zeros_like(w[name]) if g is None else _dense(g)
            if not float((total - g).norm()) <= rounding(g.dtype) * size:
                return False
        return True


def _run(
    call: Call, parameters: dict[str, Tensor], axis: int
) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """The parameters as leaves, the outputs that have an axis of samples, their gradients."""
    w = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    leaves = tree_leaves(_call(call, w, call.args, call.kwargs, parameters))
    # A number of all samples, such as the loss, passes its gradient on through their rows.
    found = [(leaves[k], d) for k, d in _by_samples(call, axis).items()]
    outputs = [output for output, _ in found if output.requires_grad]
    return w, outputs, _direct(outputs, [d for output, d in found if output.requires_grad])


def _by_samples(call: Call, axis: int) -> dict[int, Tensor]:
    S, gradients = call.within.S, call.gradients.items()
    found = {k: d for k, d in gradients if d.dim() > axis and d.shape[axis] == S}
    if not found:
        raise RuntimeError("no output of it has an axis of the samples")
    return found


def _call(
    call: Call, w: dict[str, Tensor], args: tuple, kwargs: dict, parameters: dict[str, Tensor]
) -> object:
    layer = call.layer
    names = {id(p): name for name, p in parameters.items()}
    state = {
        place: w[names[id(p)]] if id(p) in names else p.detach()
        for place, p in places(layer, "parameters")
    }
    clones = {id(b): b.clone() for b in layer.buffers()}
    state |= {place: clones[id(b)] for place, b in places(layer, "buffers")}
    device = next(iter(parameters.values())).device
    with (
        torch.enable_grad(),
        torch.autocast(**call.autocast, cache_enabled=False),
        replayed(call.random, device),
        attributes_kept(layer),
    ):
        for each in layer.modules():
            if isinstance(each, nn.utils.parametrize.ParametrizationList):
                each.eval()  # a spectral norm would take a step in training
        return functional_call(layer, state, args, kwargs, tie_weights=False)


def _direct(outputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """What each output's gradient has that has not come through another of the outputs.

    They are in the order in which their gradients came.
    """
    direct: list[Tensor] = []
    through: list[Tensor | None] = [None] * len(outputs)
    for j, (output, d) in enumerate(zip(outputs, gradients, strict=True)):
        came = through[j]
        direct.append(d if came is None else d - came)
        later = outputs[j + 1 :]
        if later and direct[j].any():
            found = torch.autograd.grad(
                output, later, direct[j], retain_graph=True, allow_unused=True
            )
            for k, g in enumerate(found, j + 1):
                known = through[k]
                through[k] = g if known is None else known if g is None else known + g
    return direct


def _one_by_one(
    call: Call, parameters: dict[str, Tensor], axis: int, first: bool
) -> Iterator[dict[str, Tensor]]:
    """One backward pass a sample, through the graph of all."""
    w, outputs, direct = _run(call, parameters, axis)
    S = direct[0].shape[axis]
    for i in range(1 if first else S):
        rows = [torch.zeros_like(d) for d in direct]
        for row, d in zip(rows, direct, strict=True):
            row.narrow(axis, i, 1).copy_(d.narrow(axis, i, 1))
        more = i + 1 < S and not first
        found = torch.autograd.grad(
            outputs, list(w.values()), rows, retain_graph=more, allow_unused=True
        )
        yield {
            name: (torch.zeros_like(p) if g is None else _dense(g)).unsqueeze(0)
            for (name, p), g in zip(w.items(), found, strict=True)
        }


def _mapped(
    call: Call, parameters: dict[str, Tensor], axis: int, of: int
) -> Iterator[dict[str, Tensor]]:
    """By vmap over the first samples, as many at a time as memory has room for."""
    gradients = _by_samples(call, axis)
    S = call.within.S or 0
    leaves, spec = tree_flatten((call.args, call.kwargs))
    mapped = [
        axis if torch.is_tensor(t) and t.dim() > axis and t.shape[axis] == S else None
        for t in leaves
    ]
    w = {name: p.detach() for name, p in parameters.items()}

    def share(w: dict, tensors: list, d: dict) -> Tensor:
        several = [
            t if m is None else tensors[j].unsqueeze(axis)
            for j, (t, m) in enumerate(zip(leaves, mapped, strict=True))
        ]
        args, kwargs = tree_unflatten(several, spec)
        out = tree_leaves(_call(call, w, args, kwargs, parameters))
        return sum((out[k] * d[k].unsqueeze(axis)).sum() for k in d)

    chosen = [t if m is not None else torch.zeros(()) for t, m in zip(leaves, mapped, strict=True)]
    size = sum(p.numel() * p.itemsize for p in parameters.values())
    step = S if call.random is not None else max(1, min(S, _ROOM // max(size, 1)))
    for start in range(0, of, step):
        n = min(step, of - start)
        some = [t if m is None else t.narrow(m, start, n) for t, m in zip(chosen, mapped, strict=True)]
        d = {k: g.narrow(axis, start, n) for k, g in gradients.items()}
        over = vmap(grad(share), (None, mapped, axis), 0, randomness="different")
        yield {name: _dense(g) for name, g in over(w, some, d).items()}


def _dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g
