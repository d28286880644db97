"""The shares of samples in the gradient of one module, which is differentiated again.

For a layer without a formula: it runs once more on the input that it had, alone, with the random
numbers that it drew. What flows back through the rows of sample i of its output is the share of i.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from parameter_ordering.gradients.coupling import rounding
from parameter_ordering.gradients.factors import Rows
from parameter_ordering.gradients.recorder import Call
from parameter_ordering.gradients.replay import attributes_kept, places, replayed
from parameter_ordering.gradients.running import accumulator_dtype

_ROOM = 2**28  # bytes that the gradients of single samples may take at a time


class Again:
    """Differentiates modules again, each in the way that has proved right for it."""

    def __init__(self) -> None:
        self._mapped: dict[nn.Module, bool] = {}

    @torch.no_grad()
    def rows(
        self, call: Call, w: Mapping[str, Tensor], axis: int, E: int, first: bool, test: bool
    ) -> dict[str, Rows]:
        """All shares by name, those of single samples on axis E; else as :meth:`shares`."""
        found: dict[str, list[Tensor]] = {name: [] for name in w}
        for part in self.shares(call, dict(w), axis, first, test):
            for name, s in part.items():
                found[name].append(s.to(accumulator_dtype(w[name])))
        return {name: Rows(torch.cat(parts).movedim(0, E), E) for name, parts in found.items()}

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
        want = _run(call, parameters, axis, partial(torch.autograd.grad, allow_unused=True))
        for (name, w), g in zip(parameters.items(), want, strict=True):
            total = sum(part[name].sum(0) for part in parts)
            size = sum(float(part[name].norm()) for part in parts)
            g = torch.zeros_like(w) if g is None else _dense(g)
            if not float((total - g).norm()) <= rounding(g.dtype) * size:
                return False
        return True


def _run(
    call: Call,
    parameters: dict[str, Tensor],
    axis: int,
    then: Callable[[list[Tensor], list[Tensor], list[Tensor]], Any],
) -> Any:
    """What ``then`` makes of outputs with an axis of samples, parameters and output gradients.

    The parameters are leaves, and the module has them until ``then`` is over: what it checkpoints
    it runs once more.
    """
    w = {name: p.detach().requires_grad_() for name, p in parameters.items()}

    def differentiate(output: object) -> Any:
        leaves = tree_leaves(output)
        # A number of all samples, such as the loss, passes its gradient on through their rows.
        found = [(leaves[k], d) for k, d in _by_samples(call, axis).items()]
        outputs = [output for output, _ in found if output.requires_grad]
        direct = _direct(outputs, [d for output, d in found if output.requires_grad])
        return then(outputs, list(w.values()), direct)

    return _call(call, w, call.args, call.kwargs, parameters, differentiate)


def _by_samples(call: Call, axis: int) -> dict[int, Tensor]:
    S, gradients = call.within.S, call.gradients.items()
    found = {k: d for k, d in gradients if d.dim() > axis and d.shape[axis] == S}
    if not found:
        raise RuntimeError("no output of it has an axis of the samples")
    return found


def _call(
    call: Call,
    w: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: dict[str, Tensor],
    then: Callable[[object], Any],
) -> Any:
    layer = _Then(call.layer, then)
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
        return functional_call(layer, state, (args, kwargs), tie_weights=False)


class _Then(nn.Module):
    """A module, and what is to be done with its output."""

    def __init__(self, module: nn.Module, then: Callable[[object], Any]):
        super().__init__()
        self.module, self.then = module, then

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.then(self.module(*args, **kwargs))


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
) -> list[dict[str, Tensor]]:
    """One backward pass a sample, through the graph of all."""

    def differentiate(outputs: list[Tensor], w: list[Tensor], direct: list[Tensor]) -> Any:
        S = direct[0].shape[axis]
        for i in range(1 if first else S):
            rows = [torch.zeros_like(d) for d in direct]
            for row, d in zip(rows, direct, strict=True):
                row.narrow(axis, i, 1).copy_(d.narrow(axis, i, 1))
            more = i + 1 < S and not first
            found = torch.autograd.grad(outputs, w, rows, retain_graph=more, allow_unused=True)
            shares.append(
                {
                    name: (torch.zeros_like(p) if g is None else _dense(g)).unsqueeze(0)
                    for (name, p), g in zip(parameters.items(), found, strict=True)
                }
            )

    shares: list[dict[str, Tensor]] = []
    _run(call, parameters, axis, differentiate)
    return shares


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

    def share(w: dict[str, Tensor], tensors: list[Any], d: dict[int, Tensor]) -> Tensor:
        several = [
            t if m is None else tensors[j].unsqueeze(axis)
            for j, (t, m) in enumerate(zip(leaves, mapped, strict=True))
        ]
        args, kwargs = tree_unflatten(several, spec)
        out = _call(call, w, args, kwargs, parameters, tree_leaves)
        products = [(out[k] * d[k].unsqueeze(axis)).sum() for k in d]
        return torch.stack(products).sum()

    chosen = [t if m is not None else torch.zeros(()) for t, m in zip(leaves, mapped, strict=True)]
    size = sum(p.numel() * p.itemsize for p in parameters.values())
    step = S if call.random is not None else max(1, min(S, _ROOM // max(size, 1)))
    for start in range(0, of, step):
        n = min(step, of - start)
        some = [
            t if m is None else t.narrow(m, start, n) for t, m in zip(chosen, mapped, strict=True)
        ]
        d = {k: g.narrow(axis, start, n) for k, g in gradients.items()}
        over = vmap(grad(share), (None, mapped, axis), 0, randomness="different")
        yield {name: _dense(g) for name, g in over(w, some, d).items()}


def _dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g
