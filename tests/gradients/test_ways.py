"""Every model, in every way of training, against one backward pass a sample in float64.

That no bit of the training differs is tested here too.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from parameter_ordering.covariance import GradientCovariance
from tests.gradients.brute_force import MODELS, contribution, shares

S, STEPS = 6, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:RNN module weights"),
]


def loss_fn(output, y):
    """A mean over samples that weighs all outputs differently."""
    weights = torch.linspace(0.5, 1.5, output[0].numel()).view(1, *output.shape[1:])
    error = weights * (output - y.view(-1, *[1] * (output.dim() - 1))) ** 2
    return error.flatten(1).sum(1).mean()


def whole(model, optimizer, C, x, y):
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()


def in_place(model, optimizer, C, x, y):
    optimizer.zero_grad(set_to_none=False)
    loss_fn(model(x), y).backward()
    optimizer.step()


def clipped(model, optimizer, C, x, y):
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    optimizer.step()


def accumulated(model, optimizer, C, x, y):
    optimizer.zero_grad()
    for part in (slice(0, 2), slice(2, S)):
        share = len(y[part]) / S
        (share * loss_fn(model(x[part]), y[part])).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    optimizer.step()


def closure(model, optimizer, C, x, y):
    def closed():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closed)


def with_other_passes(model, optimizer, C, x, y):
    """An evaluation, a pass that nobody differentiates, and a gradient that is dropped."""
    with torch.no_grad():
        model(x)
    model(x)
    loss_fn(model(x), y).backward()
    optimizer.zero_grad()
    whole(model, optimizer, C, x, y)


def updated(model, optimizer, C, x, y):
    C.update(loss_fn, x, y)
    optimizer.step()


WAYS = {
    way.__name__: way
    for way in (whole, in_place, clipped, accumulated, closure, with_other_passes, updated)
}


def one_of(x):
    """The minibatch, or one sample of it, as arguments."""
    return lambda i: (x if i is None else x[i : i + 1],)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_against_brute_force(name, samples, way):
    build, draw = MODELS[name]
    model = build()
    twin = copy.deepcopy(model)
    optimizer, its = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, twin))
    C = GradientCovariance(model, samples)
    if way != "updated":
        C.attach(optimizer)
    want = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for _ in range(STEPS):
        x, y = draw(S), torch.randn(S)
        rows = shares(twin, lambda o, y=y: loss_fn(o, y), one_of(x), S)
        for each, V in contribution(rows, samples).items():
            want[each] += V / STEPS
        WAYS[way](model, optimizer, C, x, y)
        (whole if way == "updated" else WAYS[way])(twin, its, C, x, y)
    assert C.t == STEPS
    for each, have in C.diagonal().items():
        torch.testing.assert_close(have, want[each], **CLOSE)
    for have, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(have, other)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.a(x).tanh()
        for _ in range(2):
            x = self.run(x)
        return self.c(x)

    def run(self, x):
        if self.reentrant is None:
            return self.b(x).tanh()
        return checkpoint(lambda x: self.b(x).tanh(), x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, samples, way):
    """Against the same model without it: brute force asks for what reentrant checkpoints refuse."""
    model, plain = Checkpointed(reentrant), Checkpointed(None)
    plain.load_state_dict(model.state_dict())
    Cs = []
    for each in (model, plain):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        Cs.append(GradientCovariance(each, samples))
        if way != "updated":
            Cs[-1].attach(optimizer)
        for _ in range(STEPS):
            WAYS[way](each, optimizer, Cs[-1], torch.randn(S, 4), torch.randn(S))
    assert Cs[0].t == STEPS
    for have, want in zip(Cs[0].diagonal().values(), Cs[1].diagonal().values(), strict=True):
        torch.testing.assert_close(have, want, **CLOSE)
