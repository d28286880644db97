"""Two processes under DistributedDataParallel: C of all samples of both, the same bits on each."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.freezing import freeze
from parameter_ordering.moments import GradientMoments
from parameter_ordering.order import frozen_mask
from tests.frozen.cases import same_bits
from tests.processes import run_on_two

S, STEPS = 4, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SETTINGS = {
    "default": {},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
}


class Model(nn.Module):
    """With a branch that the first process alone may take."""

    def __init__(self, branches):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        if branches:
            self.branch = nn.Linear(5, 5)
        self.double()

    def forward(self, x, rank):
        h = self.norm(self.a(x).tanh())
        return self.b(h + self.branch(h) if rank == 0 and hasattr(self, "branch") else h)


def minibatch(t, rank, S=S):
    generator = torch.Generator().manual_seed(10 * t + rank)
    x = torch.randn(S, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (S,), generator=generator)


def half(model):
    torch.manual_seed(1)
    return {name: torch.rand(w.shape) < 0.5 for name, w in model.named_parameters()}


def want(samples, branches, frozen):
    """By definition, from the samples of both processes in one."""
    model = Model(branches)
    optimizer = optim.SGD(model.named_parameters(), lr=0.1)
    w = dict(model.named_parameters())
    total = {name: torch.zeros_like(each) for name, each in w.items()}
    for t in range(STEPS):
        if frozen and t == 1:
            freeze(optimizer, half(model))
        found = []
        for rank in range(2):
            for x, y in zip(*minibatch(t, rank), strict=True):
                loss = F.cross_entropy(model(x[None], rank), y[None])
                found.append(torch.autograd.grad(loss, [*w.values()], materialize_grads=True))
        for (name, each), rows in zip(w.items(), zip(*found, strict=True), strict=True):
            g = torch.stack(rows)
            each.grad = g.mean(0)
            r = (g - each.grad).square()
            total[name] += (r.mean(0) if samples == "all" else (r[0] + r[S]) / 2) / STEPS
        optimizer.step()
    return total


def step(model, optimizer, rank, t, way, C):
    x, y = minibatch(t, rank)
    if way == "update":
        C.update(F.cross_entropy, (x, rank), y)
        optimizer.step()
        return
    optimizer.zero_grad()
    if way == "accumulated":
        with model.no_sync():
            (F.cross_entropy(model(x[:2], rank), y[:2]) / 2).backward()
        (F.cross_entropy(model(x[2:], rank), y[2:]) / 2).backward()
    else:
        F.cross_entropy(model(x, rank), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()


def train(rank, setting, samples, way, branches, frozen):
    """With C, and then on with a third frozen that C orders."""
    inner = Model(branches)
    model = DistributedDataParallel(inner, **SETTINGS[setting])
    optimizer = optim.SGD(inner.named_parameters(), lr=0.1)
    C = GradientCovariance(model, samples)
    if way != "update":
        C.attach(optimizer)
    for t in range(STEPS):
        if frozen and t == 1:
            freeze(optimizer, half(inner))
        step(model, optimizer, rank, t, way, C)
    C.detach()
    diagonal = C.diagonal()
    mask = frozen_mask(diagonal, 20, seed=1)
    freeze(optimizer, mask)
    before = {f"module.{name}": w.detach().clone() for name, w in inner.named_parameters()}
    for t in range(2):
        step(model, optimizer, rank, STEPS + t, "attached", None)
    return C.t, diagonal, mask, before, {n: w.detach() for n, w in model.named_parameters()}


@pytest.mark.parametrize(
    ("setting", "samples", "way", "branches", "frozen"),
    [
        ("default", "first", "attached", False, False),
        ("default", "all", "attached", False, False),
        ("default", "all", "accumulated", False, False),
        ("default", "first", "update", False, False),
        ("default", "all", "update", False, False),
        ("default", "all", "accumulated", False, True),
        ("default", "first", "update", False, True),
        ("static graph", "all", "attached", False, False),
        ("static graph", "all", "update", False, False),
        ("unused parameters", "first", "accumulated", False, False),
        ("unused parameters", "all", "attached", True, False),
        ("unused parameters", "first", "attached", True, True),
        ("unused parameters", "all", "update", True, True),
        ("bucket view", "all", "attached", False, True),
        ("bucket view", "all", "update", False, False),
    ],
)
def test_two_processes(setting, samples, way, branches, frozen):
    both = run_on_two(train, setting, samples, way, branches, frozen)
    (t, C, mask, before, after), (_, *others) = both
    assert t == STEPS
    for name, V in want(samples, branches, frozen).items():
        torch.testing.assert_close(C[f"module.{name}"], V, **CLOSE)
    for mine, its in zip((C, mask, before, after), others, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert sum(int(each.sum()) for each in mask.values()) == 20
    for name, w in before.items():
        assert torch.equal(w[mask[name]], after[name][mask[name]])
    assert any(not torch.equal(w, after[name]) for name, w in before.items())


def train_moments(rank):
    inner = Model(False)
    model, moments = DistributedDataParallel(inner), GradientMoments(inner)
    optimizer = optim.SGD(inner.named_parameters(), lr=0.1)
    moments.attach(optimizer)
    freeze(optimizer, half(inner))
    step(model, optimizer, rank, 0, "attached", None)
    return list(moments.mean.values())


def test_moments_of_what_is_frozen():
    first, second = run_on_two(train_moments)
    assert same_bits(first, second)
    model = Model(False)
    x, y = (torch.cat(each) for each in zip(minibatch(0, 0), minibatch(0, 1), strict=True))
    F.cross_entropy(model(x, 0), y).backward()
    for mean, w in zip(first, model.parameters(), strict=True):
        torch.testing.assert_close(mean, w.grad, **CLOSE)


def differ(rank, way):
    inner = Model(False)
    model = DistributedDataParallel(inner)
    C = GradientCovariance(model)
    optimizer = optim.SGD(inner.parameters(), lr=0.1)
    x, y = minibatch(0, rank, S=3 + rank)
    if way == "update":
        C.update(F.cross_entropy, (x, rank), y)
    else:
        C.attach(optimizer)
        F.cross_entropy(model(x, rank), y).backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"minibatches of different sizes.*drop_last=True"):
        C.diagonal()


@pytest.mark.parametrize("way", ["attached", "update"])
def test_minibatches_of_different_sizes_are_refused(way):
    run_on_two(differ, way)


def shard(rank):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = GradientCovariance(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    sharded = partial(pytest.raises, ValueError, match=r"'0.weight', .* sharded .*\(FSDP\)")
    with sharded():
        GradientCovariance(model)
    with sharded():
        GradientMoments(model).attach(optimizer)
    with pytest.raises(ValueError, match=r"does not train \['0.weight'"):
        before.attach(optimizer)


def test_sharded_parameters_are_refused_by_name():
    run_on_two(shard)
