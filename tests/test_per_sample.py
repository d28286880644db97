"""Per-sample gradients of every kind of model against brute force: one backward pass per sample.

Also which of the three ways each parameter goes, that nothing is left behind on the model, and
that what has no per-sample gradient is refused.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parameter_ordering import factors
from parameter_ordering.per_sample import PerSampleGradients

S = 6


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def brute_force(model, loss_fn, x, y):
    """The gradients (S, *shape) of each parameter, sample by sample; zero where there is none."""
    rows = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        loss_fn(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, w in model.named_parameters():
            rows[name].append(torch.zeros_like(w) if w.grad is None else w.grad.to_dense())
    return {name: torch.stack(g) for name, g in rows.items()}


def squared_error(output, y):
    """Mean over samples of a sum that weighs all outputs differently."""
    weights = torch.linspace(0.5, 1.5, output[0].numel()).view(1, *output.shape[1:])
    return (weights * (output - y.view(-1, *[1] * (output.dim() - 1))) ** 2).flatten(1).sum(1).mean()


def check(model, x, loss_fn=squared_error, y=None, by_layer=None):
    """All ways against brute force, twice: the first use is a trial, the next ones are not."""
    y = torch.randn(len(x)) if y is None else y
    want = brute_force(model, loss_fn, x, y)
    model.zero_grad()
    loss_fn(model(x), y).backward()
    batch = {name: w.grad for name, w in model.named_parameters()}
    for first_only in (False, True):
        gradients = PerSampleGradients(model, want, first_only, 0, True)
        for _ in range(2):
            loss, g = gradients(loss_fn, x, y)
            assert torch.allclose(loss, loss_fn(model(x), y))
            assert g.keys() == {name for name, grad in batch.items() if grad is not None}
            for name in g:
                grad = model.get_parameter(name).grad
                assert torch.equal(grad.to_dense(), batch[name].to_dense())
                torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
                if not first_only:
                    check_factor(g[name], want[name])
        if by_layer is not None:
            assert gradients.by_layer == set(by_layer)
    return gradients


def check_factor(factor, want):
    """All that a factor gives against the rows that it stands for."""
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(factor.rows(), want, **close)
    torch.testing.assert_close(factor.total(), want.sum(0), **close)
    C_0, g_S, beta, alpha = torch.rand_like(want[0]), want.mean(0), 0.7, 0.4
    C = C_0.clone()
    factor.add_all_(C, g_S, beta, alpha)
    torch.testing.assert_close(C, beta * C_0 + alpha * (want - g_S).square().mean(0), **close)
    C = C_0.clone()
    factor.add_first_(C, g_S, beta, alpha)
    torch.testing.assert_close(C, beta * C_0 + alpha * (want[0] - g_S) ** 2, **close)


class Transposed(nn.Module):
    """A layer that sees the samples on its second axis, of the same length as the first."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).tanh().transpose(0, 1)


class Permute(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


LAYERS = {
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), (5,)),
    "linear, sequence": (nn.Linear(5, 4), (7, 5)),
    "linear, two axes of positions": (nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 11)),
    "conv1d, same": (nn.Conv1d(4, 6, 4, padding="same", groups=2), (4, 11)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (3, 7, 8)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 6, 6)),
    "conv2d, reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 6)),
    "conv2d, circular same": (
        nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="circular"),
        (2, 5, 6),
    ),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
        ),
        (1, 8, 8),
    ),
    "layer norm": (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), (5,)),
    "layer norm, two axes": (nn.LayerNorm((3, 5)), (2, 3, 5)),
    "rms norm": (nn.RMSNorm(5, eps=1e-6), (4, 5)),
    "group norm": (nn.GroupNorm(2, 4), (4, 3, 3)),
    "group norm, no positions": (nn.GroupNorm(2, 4), (4,)),
    "batch norm in evaluation": (nn.BatchNorm2d(3).eval(), (3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_go_the_first_way(name):
    model, shape = copy.deepcopy(LAYERS[name][0]).double(), LAYERS[name][1]
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.1 * torch.randn_like(w))
    check(model, torch.randn(S, *shape), by_layer=[n for n, _ in model.named_parameters()])
