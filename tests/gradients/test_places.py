"""Models that move samples about inside, from the minibatch on where the numbers say so.

Up to then each row stays where it is, so that all tests of the first minibatches pass.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from parameter_ordering.covariance import GradientCovariance
from tests.gradients.test_field_cases import follow, rows

S, STILL, T = 6, 5, 7  # minibatches in all, the last two of them move; the sixth is not tested

pytestmark = pytest.mark.usefixtures("double")


class Sub(torch.autograd.Function):
    """Somebody's own, with a name that torch has too."""

    @staticmethod
    def forward(context, h, order):
        context.order = order
        return h[order]

    @staticmethod
    def backward(context, d):
        return d[context.order.argsort()], None


def one_hot(order):
    return F.one_hot(order, S).to(torch.double)


def buffer(h, order):
    rows = torch.zeros_like(h)
    rows[order.argsort()] = h
    return rows


def row_by_row(h, order):
    rows = torch.zeros_like(h)
    for i, j in enumerate(order):
        rows[i] = h[j]
    return rows


def shifted(h, order):
    """Not by the order, but by its first number."""
    k = int(order[0])
    return F.pad(h, (0, 0, -k, k)) + F.pad(h, (0, 0, S - k, k - S))


def regrouped(h, order):
    n = 1 if torch.equal(order, torch.arange(S)) else 2
    return h.view(n, -1, 4).transpose(0, 1).reshape(S, 4)


MOVES = {
    "index": lambda h, order: h[order],
    "index_select": lambda h, order: h.index_select(0, order),
    "gather": lambda h, order: h.gather(0, order[:, None].expand_as(h)),
    "index_add": lambda h, order: torch.zeros_like(h).index_add(0, order.argsort(), h),
    "unbind": lambda h, order: torch.stack([h.unbind(0)[i] for i in order]),
    "the same rows": lambda h, order: (lambda r: torch.stack([r[i] for i in order]))(h.unbind(0)),
    "split": lambda h, order: torch.cat([h.split(1)[i] for i in order]),
    "buffer": buffer,
    "row by row": row_by_row,
    "product": lambda h, order: one_hot(order) @ h,
    "einsum": lambda h, order: torch.einsum("ij,jd->id", one_hot(order), h),
    "linear": lambda h, order: F.linear(h.T, one_hot(order)).T,
    "convolution": lambda h, order: F.conv1d(h[None], one_hot(order)[:, :, None])[0],
    "sum": lambda h, order: (one_hot(order)[:, :, None] * h).sum(1),
    "mean": lambda h, order: S * (one_hot(order)[:, :, None] * h).mean(1),
    "max": lambda h, order: h.masked_fill(one_hot(order)[:, :, None] == 0, -torch.inf).amax(1),
    "product for each of many": lambda h, order: (
        one_hot(order).expand(2 * S, S, S).bmm(h.expand(2 * S, S, 4)).mean(0)
    ),
    "somebody's own": lambda h, order: Sub.apply(h, order),
    "padding": shifted,
    "view": regrouped,
    "detached": lambda h, order: h + (h[order] - h).detach(),
}


class Moving(nn.Module):
    """Moves samples before its middle layer, and not back: row i of the output is sample i's."""

    def __init__(self, move, reentrant=None):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.move, self.reentrant = move, reentrant

    def forward(self, x):
        still = x[0, 0] > 0
        order = torch.arange(S) if still else torch.roll(torch.arange(S), 2)

        def inside(h):
            return self.move(self.b(self.move(h, order)).tanh(), order.argsort())

        h = self.a(x).tanh()
        if self.reentrant is not None:
            return self.c(checkpoint(inside, h, use_reentrant=self.reentrant))
        return self.c(inside(h))


def batches():
    for t in range(T):
        x, y = torch.randn(S, 4), torch.randn(S, 2)
        x[0, 0] = x[0, 0].abs() * (1 if t < STILL else -1)
        yield x, y


SETTINGS = {"first": ("first", False), "all": ("all", False), "matrix": ("all", True)}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("way", ["attached", "updated"])
@pytest.mark.parametrize("name", MOVES)
def test_moved_later(name, way, setting):
    samples, full = SETTINGS[setting]
    model, several = Moving(MOVES[name]), list(batches())
    C = GradientCovariance(model, samples, full=full)
    follow(C, model, way, several)
    want = 0.0
    for x, y in several:
        g = torch.cat([g.flatten(1) for g in rows(model, F.mse_loss, x, y).values()], 1)
        r = (g - g.mean(0))[: 1 if samples == "first" else S]
        want = want + (r.T @ r) / len(r) / T
    have = C.matrix() if full else torch.cat([V.flatten() for V in C.diagonal().values()])
    torch.testing.assert_close(have, want if full else want.diagonal(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["attached", "updated"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_reentrant_checkpoint_hides_moves(inside, way):
    """Around them, or around something else: then they are refused, else they are not."""
    model = Moving(MOVES["index"], reentrant=True if inside else None)
    if not inside:
        last = model.c
        model.c = nn.Identity()
        model.register_module("last", last)
        model.register_forward_hook(
            lambda module, given, h: checkpoint(module.last, h, use_reentrant=True)
        )
    C = GradientCovariance(model)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        follow(C, model, way, batches())
    assert C.t == 0
    plain = Moving(lambda h, order: h, reentrant=True)
    C = GradientCovariance(plain)
    follow(C, plain, way, batches())
    assert C.t == T
