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
        rows = shares(
            twin, lambda o, y=y: loss_fn(o, y), lambda i, x=x: (x if i is None else x[i : i + 1],), S
        )
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
            x = checkpoint(lambda x: self.b(x).tanh(), x, use_reentrant=self.reentrant)
        return self.c(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, samples, way, monkeypatch):
    monkeypatch.setitem(
        MODELS, "checkpointed", (lambda: Checkpointed(reentrant), lambda S: torch.randn(S, 4))
    )
    if reentrant:  # brute force by one graph a sample asks autograd.grad, which this refuses
        monkeypatch.setattr(Checkpointed, "forward", Checkpointed.forward)
        pytest.importorskip("torch")
    test_against_brute_force("checkpointed", samples, way)
