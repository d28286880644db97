"""The shares of LSTM, GRU and RNN, by their recurrences written out.

torch's own step is one function, which knows no single samples. Written out, the gradients of the
gates are there for each sample and time, and with the inputs and states of the layer they are the
factors of the shares of its weights.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_ordering.gradients.factors import OuterSum, Rows
from parameter_ordering.gradients.recorder import Call

State = tuple[Tensor, ...]


def has_recurrence(call: Call) -> bool:
    """Whether this is a call that is written out here; the others are differentiated again."""
    layer = call.layer
    return (
        isinstance(layer, nn.RNNBase)
        and type(layer) in (nn.LSTM, nn.GRU, nn.RNN)
        and layer._parameters.keys() == set(layer._flat_weights_names)
        and not layer.proj_size
        and not (layer.dropout and layer.training and layer.num_layers > 1)
        and (x := call.input()) is not None
        and x.dim() == 3
    )


@torch.no_grad()
def recurrent(call: Call, first: bool, dtype: torch.dtype) -> dict[str, Rows]:
    """The shares by local name, of all samples or of the first."""
    layer, x = call.layer, call.input()
    assert isinstance(layer, nn.RNNBase)
    assert x is not None
    # Time first, then samples.
    d = dict(call.gradients)
    if layer.batch_first:
        x = x.transpose(0, 1)
        d |= {0: d[0].transpose(0, 1)} if 0 in d else {}
    if first:
        x, d = x[:, :1], {k: each[:, :1] for k, each in d.items()}
    x, d = x.to(dtype), {k: each.to(dtype) for k, each in d.items()}
    levels = []
    for n in range(layer.num_layers):
        ways = [_Way(layer, f"l{n}", x)]
        if layer.bidirectional:
            ways.append(_Way(layer, f"l{n}_reverse", x.flip(0)))
        x = torch.cat([_turned(way.after, k) for k, way in enumerate(ways)], 2)
        levels.append(ways)
    shares: dict[str, Rows] = {}
    d_x = d.get(0, torch.zeros_like(x))
    for n, ways in reversed([*enumerate(levels)]):
        parts = []
        for k, (way, part) in enumerate(zip(ways, d_x.chunk(len(ways), 2), strict=True)):
            last = [d[j][n * len(ways) + k] if j in d else None for j in (1, 2)]
            d_own = way.differentiate(_turned(part, k), last, shares)
            if n:
                parts.append(_turned(F.linear(d_own, way.w_i.mT), k))
        d_x = sum(parts[1:], parts[0]) if n else d_x
    return shares


def _turned(x: Tensor, reverse: int) -> Tensor:
    return x.flip(0) if reverse else x


class _Way:
    """One layer in one direction, run once more.

    A step is a function, number by number, of the products of its input and of the state with the
    weights, and of the state. So the slopes of all steps are had at once, and little is left to do
    one after the other.

    Attributes:
        after: the first part of the state after each step, (T, S, H).
        w_i: the weight of the input.
    """

    def __init__(self, layer: nn.RNNBase, name: str, x: Tensor):
        sides = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]
        w = [getattr(layer, f"{side}_{name}").detach().to(x.dtype) for side in sides]
        self._name, self._x, self._step = name, x, _STEPS[layer.mode]
        self.w_i, self._w_h = w[:2]
        zero = x.new_zeros(1, x.shape[1], layer.hidden_size)
        lstm = layer.mode == "LSTM"
        run = getattr(torch, layer.mode.lower())
        start = (zero, zero) if lstm else zero
        self.after: Tensor = run(x, start, w, layer.bias, 1, 0.0, False, False, False)[0]
        before = torch.cat([zero, self.after[:-1]])
        self._own, self._hidden = F.linear(x, w[0], *w[2:3]), F.linear(before, w[1], *w[3:])
        self._before = before, *([_cells(self._own + self._hidden, zero)] if lstm else [])

    def differentiate(
        self, d_after: Tensor, d_last: Sequence[Tensor | None], shares: dict[str, Rows]
    ) -> Tensor:
        """The gradient of the products of the input with ``w_i``; adds the shares, by local name.

        Args:
            d_after: the gradient of ``after``.
            d_last: those of the parts of the last state.
            shares: of the layer.
        """
        own, hidden, *before = self._slopes()
        zero = torch.zeros_like(d_after[0])
        parts = zip(before, d_last, strict=False)
        d = [(zero if last is None else last).unsqueeze(1) for _, last in parts]
        steps = [[s.unbind(0) for s in slopes] for slopes in (hidden, *before)]
        ds = []
        for t in reversed(range(len(d_after))):
            d[0] = d[0] + d_after[t].unsqueeze(1)
            ds.append(d)
            at_hidden, *d = (_through([s[t] for s in slopes], ds[-1]) for slopes in steps)
            d[0] = d[0] + (at_hidden.flatten(1) @ self._w_h).unsqueeze(1)
        d = [torch.stack(part[::-1]) for part in zip(*ds, strict=True)]
        d_own, d_hidden = _through(own, d).flatten(2), _through(hidden, d).flatten(2)
        for side, delta, a in (("ih", d_own, self._x), ("hh", d_hidden, self._before[0])):
            delta, a = delta.permute(1, 2, 0), a.permute(1, 2, 0)
            weight = OuterSum(delta, a, 1, (delta.shape[1], a.shape[1]))
            shares[f"weight_{side}_{self._name}"] = weight
            shares[f"bias_{side}_{self._name}"] = Rows(delta.sum(2))
        return d_own

    @torch.enable_grad()
    def _slopes(self) -> list[list[Tensor]]:
        """Those of each part of the state, (T, S, numbers for each of a state's, H).

        In own and hidden products, and in each part of the state before.
        """
        of = [t.detach().requires_grad_() for t in (self._own, self._hidden, *self._before)]
        H = self.after.shape[-1]
        found = [
            torch.autograd.grad(part.sum(), of, retain_graph=True, allow_unused=True)
            for part in self._step(of[0], of[1], tuple(of[2:]))
        ]
        return [
            [s.unflatten(-1, (-1, H)) for s in each if s is not None]
            for each in zip(*found, strict=True)
        ]


def _through(slopes: Sequence[Tensor], d: Sequence[Tensor]) -> Tensor:
    """The gradient of what has these slopes, or on which nothing depends."""
    if not slopes:
        return d[0].new_zeros(())
    total = slopes[0] * d[0]
    for slope, each in zip(slopes[1:], d[1:], strict=True):
        total.addcmul_(slope, each)
    return total


def _cells(gates: Tensor, zero: Tensor) -> Tensor:
    """The cells of an LSTM before each step."""
    i, f, g, _ = gates.chunk(4, -1)
    kept, new, cells = f.sigmoid().unbind(0), (i.sigmoid() * g.tanh()).unbind(0), [zero[0]]
    for t in range(len(gates) - 1):
        cells.append(torch.addcmul(new[t], kept[t], cells[-1]))
    return torch.stack(cells)


def _lstm(own: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (own + hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(own: Tensor, hidden: Tensor, state: State) -> State:
    (r_i, z_i, n_i), (r_h, z_h, n_h) = own.chunk(3, -1), hidden.chunk(3, -1)
    z = (z_i + z_h).sigmoid()
    n = (n_i + (r_i + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * state[0],)


_STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda own, hidden, state: ((own + hidden).tanh(),),
    "RNN_RELU": lambda own, hidden, state: ((own + hidden).relu(),),
}
