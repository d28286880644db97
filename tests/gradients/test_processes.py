"""Two processes under DistributedDataParallel: C of all samples of both, the same bits on each."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parameter_ordering.covariance import GradientCovariance

S, STEPS = 4, 3

SETTINGS = {
    "default": {},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
}


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def minibatch(t, rank):
    generator = torch.Generator().manual_seed(10 * t + rank)
    return (
        torch.randn(S, 4, generator=generator, dtype=torch.float64),
        torch.randint(0, 3, (S,), generator=generator),
    )


def want(samples):
    """By definition, from the samples of both processes in one."""
    torch.set_default_dtype(torch.float64)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for t in range(STEPS):
        rows = {name: [] for name in total}
        for rank in range(2):
            for x, y in zip(*minibatch(t, rank), strict=True):
                loss = nn.functional.cross_entropy(model(x[None]), y[None])
                for name, g in zip(rows, torch.autograd.grad(loss, [*model.parameters()]), strict=True):
                    rows[name].append(g)
        for name, w in model.named_parameters():
            g = torch.stack(rows[name])
            w.grad = g.mean(0)
            r = (g - g.mean(0)).square()
            total[name] += (r.mean(0) if samples == "all" else (r[0] + r[S]) / 2) / STEPS
        optimizer.step()
    return total


def train(rank, port, setting, samples, way, path):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    inner = build()
    model = DistributedDataParallel(inner, **SETTINGS[setting])
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    C = GradientCovariance(inner, samples)
    if way != "update":
        C.attach(optimizer)
    for t in range(STEPS):
        x, y = minibatch(t, rank)
        optimizer.zero_grad()
        if way == "update":
            GradientCovariance.update(C, nn.functional.cross_entropy, x, y)
        elif way == "accumulated":
            with model.no_sync():
                (nn.functional.cross_entropy(model(x[:2]), y[:2]) / 2).backward()
            (nn.functional.cross_entropy(model(x[2:]), y[2:]) / 2).backward()
        else:
            nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(inner.parameters(), 1e9)
        optimizer.step()
    torch.save((C.t, C.diagonal(), inner.state_dict()), f"{path}/{rank}")
    dist.destroy_process_group()


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("setting", "samples", "way"),
    [
        ("default", "first", "attached"),
        ("default", "all", "attached"),
        ("default", "all", "accumulated"),
        ("static graph", "all", "attached"),
        ("unused parameters", "first", "accumulated"),
        ("bucket view", "all", "attached"),
    ],
)
@pytest.mark.usefixtures("double")
def test_two_processes(setting, samples, way, tmp_path):
    mp.spawn(train, (port(), setting, samples, way, tmp_path), nprocs=2)
    (t, first, its), (_, second, others) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert t == STEPS
    for name, V in want(samples).items():
        torch.testing.assert_close(first[name], V, rtol=1e-10, atol=1e-10)
        assert torch.equal(first[name], second[name])
        assert torch.equal(its[name], others[name])
