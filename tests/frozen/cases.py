"""What the tests of a freeze share: all optimizers with all options, and a freeze by hand."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.masked_adam import MaskedAdam

LR = {"lr": st.sampled_from([1e-3, 0.1])}
DECAY = LR | {"weight_decay": st.sampled_from([0.0, 0.1])}
COMMON = DECAY | {"maximize": st.booleans()}
DECOUPLED = COMMON | {"decoupled_weight_decay": st.booleans()}
ADAM = {"amsgrad": st.booleans(), "eps": st.sampled_from([0.0, 1e-8])}
SUMS = {"lr_decay": st.sampled_from([0, 0.1]), "initial_accumulator_value": st.sampled_from([0, 1])}
OPTIONS = {
    optim.Adadelta: COMMON,
    optim.Adagrad: COMMON | SUMS,
    optim.Adam: DECOUPLED | ADAM,
    optim.AdamW: COMMON | ADAM,
    MaskedAdam: DECOUPLED | ADAM | {"compact": st.booleans()},
    optim.Adamax: COMMON,
    optim.ASGD: COMMON | {"t0": st.sampled_from([2, 1e6])},
    optim.NAdam: DECOUPLED,
    optim.RAdam: DECOUPLED,
    optim.RMSprop: COMMON | {"momentum": st.sampled_from([0, 0.9]), "centered": st.booleans()},
    optim.Rprop: LR | {"maximize": st.booleans()},
    optim.SGD: COMMON | {"momentum": st.sampled_from([0.5, 0.9]), "nesterov": st.booleans()},
    optim.Adafactor: COMMON,
    optim.Muon: DECAY | {"nesterov": st.booleans()},
}
ELEMENTWISE = [kind for kind in OPTIONS if kind not in (optim.Adafactor, optim.Muon)]
FUSED = (optim.Adam, optim.AdamW, MaskedAdam, optim.Adagrad, optim.SGD)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (1,), (9,), (3, 5), (0, 2), (2, 3, 4, 5)]
MATRICES = [(3, 5), (4, 4), (5, 1)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Case(NamedTuple):
    """An optimizer with its options, and what it works on; one entry for each parameter."""

    kind: type[optim.Optimizer]
    options: dict
    values: list[torch.Tensor]
    masks: list[torch.Tensor]
    gradients: list[list[torch.Tensor]]
    grouped: bool

    def build(self, values=None):
        params = [nn.Parameter(v.clone()) for v in (self.values if values is None else values)]
        first, *rest = params
        groups = [{"params": [first], "lr": 0.01}, {"params": rest}] if self.grouped else params
        return params, self.kind(groups, **self.options)


@st.composite
def cases(draw, kinds=tuple(OPTIONS), floats=FLOATS):
    kind = draw(st.sampled_from(kinds))
    options = {name: draw(values) for name, values in OPTIONS[kind].items()}
    if kind is not optim.Muon:
        ways = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}]
        options |= draw(st.sampled_from(ways if kind in FUSED else ways[:3]))
    dtype = draw(st.sampled_from(floats))
    possible = SHAPES if kind in ELEMENTWISE else MATRICES
    shapes = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=3))
    share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    values = [torch.randn(s, generator=g).to(dtype) for s in shapes]
    for v in values:
        v.view(-1)[::4] = -0.0  # where -0 + 0 = 0 would change a bit
    masks = [torch.rand(s, generator=g) < share for s in shapes]
    gradients = [[torch.randn(s, generator=g).to(dtype) for s in shapes] for _ in range(6)]
    return Case(kind, options, values, masks, gradients, draw(st.booleans()))


def train(params, optimizer, gradients):
    for now in gradients:
        for p, g in zip(params, now, strict=True):
            p.grad = g.clone()
        optimizer.step()


def slowly(params, optimizer, gradients, masks):
    """The reference: frozen by hand."""
    for now in gradients:
        old = [p.detach().clone() for p in params]
        for p, g, m in zip(params, now, masks, strict=True):
            p.grad = g.masked_fill(m, 0)
        optimizer.step()
        for p, o, m in zip(params, old, masks, strict=True):
            p.data = torch.where(m, o, p.data)


def bits(x):
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).view(torch.uint8)


def same_bits(xs, ys):
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(xs, ys, strict=True))


def state_of(optimizer):
    states = optimizer.state_dict()["state"].values()
    return [x for state in states for x in state.values() if isinstance(x, torch.Tensor)]


def linear(kind=optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    return model, kind(model.named_parameters(), **options)


def compiled(optimizer):
    torch.compiler.reset()  # it gives up on code that it has compiled a few times
    return torch.compile(lambda: optimizer.step(), backend="eager")


HALF = {"weight": torch.tensor([[True, False, True], [False, True, False]])}
KINDS = {
    "SGD": partial(optim.SGD, momentum=0.9, weight_decay=0.1),
    "Adam": optim.Adam,
    "MaskedAdam": MaskedAdam,
    "compact": partial(MaskedAdam, compact=True),
    "finite": partial(MaskedAdam, finite_gradients=True),
}
