"""The shares of LSTM, GRU and RNN, by their recurrences written out.

torch's own step is one function, which knows no single samples. Written out, the gradients of the
gates are there for each sample and time, and with the inputs and states of the layer they are the
factors of the shares of its weights.
"""

from collections.abc import Callable

import torch
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
        and not layer.proj_size
        and not (layer.dropout and layer.training and layer.num_layers > 1)
        and (x := call.input()) is not None
        and x.dim() == 3
    )


def recurrent(call: Call, first: bool, dtype: torch.dtype) -> dict[str, Rows]:
    """The shares by local name, of all samples or of the first."""
    layer, x = call.layer, call.input()
    assert isinstance(layer, nn.RNNBase) and x is not None
    # Time first, then samples.
    d = dict(call.gradients)
    if layer.batch_first:
        x = x.transpose(0, 1)
        d |= {0: d[0].transpose(0, 1)} if 0 in d else {}
    if first:
        x, d = x[:, :1], {k: each[:, :1] for k, each in d.items()}
    x = x.to(dtype)
    gates: dict[str, tuple[list[Tensor], Tensor]] = {}
    last: list[State] = []
    with torch.enable_grad():
        for n in range(layer.num_layers):
            ways = [
                _run(layer, f"l{n}{suffix}", x, gates, last, reverse)
                for suffix, reverse in (("", False), ("_reverse", True))[: 1 + layer.bidirectional]
            ]
            x = torch.cat(ways, 2)
        outputs = [x, *(torch.stack(each) for each in zip(*last, strict=True))]
        wanted = [t for kept, _ in gates.values() for t in kept]
        found = torch.autograd.grad(
            [outputs[k] for k in d], wanted, [each.to(dtype) for each in d.values()],
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
    shares: dict[str, Rows] = {}
    gradients = iter(found)
    for name, (kept, a) in gates.items():
        delta = torch.cat([next(gradients) for _ in kept])  # (T, S, gates)
        delta, a = delta.permute(1, 2, 0), a.permute(1, 2, 0)
        shares["weight_" + name] = OuterSum(delta, a, 1, (delta.shape[1], a.shape[1]))
        shares["bias_" + name] = Rows(delta.sum(2))
    return shares


def _run(
    layer: nn.RNNBase,
    name: str,
    x: Tensor,
    gates: dict[str, tuple[list[Tensor], Tensor]],
    last: list[State],
    reverse: bool,
) -> Tensor:
    """One layer in one direction; keeps what has a share, in factors."""
    w_i, w_h = (getattr(layer, f"weight_{side}_{name}").detach().to(x.dtype) for side in ("ih", "hh"))
    b_i = b_h = None
    if layer.bias:
        b_i, b_h = (
            getattr(layer, f"bias_{side}_{name}").detach().to(x.dtype) for side in ("ih", "hh")
        )
    own = nn.functional.linear(x, w_i, b_i)
    own = own if own.requires_grad else own.requires_grad_()
    h = x.new_zeros(x.shape[1], layer.hidden_size)
    state: State = (h, h) if layer.mode == "LSTM" else (h,)
    step = _STEPS[layer.mode]
    before, after, hidden = [], [], []
    times = range(len(x))
    for t in reversed(times) if reverse else times:
        before.append(state[0])
        hidden.append(nn.functional.linear(state[0], w_h, b_h).unsqueeze(0))
        if not hidden[-1].requires_grad:
            hidden[-1].requires_grad_()
        state = step(own[t], hidden[-1][0], state)
        after.append(state[0])
    if reverse:
        before, after, hidden = before[::-1], after[::-1], hidden[::-1]
    gates["ih_" + name] = [own], x.detach()
    gates["hh_" + name] = hidden, torch.stack(before).detach()
    last.append(state)
    return torch.stack(after)


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
