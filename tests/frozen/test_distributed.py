"""A freeze under the ways in which torch trains on many processes."""

from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor

from parameter_ordering.freezing import freeze
from parameter_ordering.masked_adam import MaskedAdam
from parameter_ordering.order import rank as rank_of
from parameter_ordering.schedule import FreezeSchedule, ramp
from tests.frozen.cases import HALF, linear, same_bits, slowly
from tests.processes import run_on_two


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("views", [False, True])
def test_distributed_data_parallel_trains_the_free_alone(tmp_path, views, in_backward):
    model, optimizer = linear(lr=0.1, momentum=0.9)
    other_model, other = linear(lr=0.1, momentum=0.9)
    masks = [HALF["weight"], torch.zeros(2).bool()]
    freeze(optimizer, HALF, in_backward=in_backward)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)
        for x in torch.randn(4, 5, 3).double():
            optimizer.zero_grad(set_to_none=False)
            parallel(x).square().sum().backward()
            optimizer.step()
            loss = other_model(x).square().sum()
            slowly(
                list(other_model.parameters()),
                other,
                [torch.autograd.grad(loss, other_model.parameters())],
                masks,
            )
    finally:
        torch.distributed.destroy_process_group()
    assert same_bits(model.parameters(), other_model.parameters())


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


MASKS = {
    "0.weight": torch.arange(12).view(4, 3) % 3 == 0,
    "0.bias": torch.tensor([True] * 4),
    "2.weight": torch.arange(8).view(2, 4) % 5 < 2,
}
KINDS = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": partial(optim.Adam, lr=0.1),
    "AdamW": partial(optim.AdamW, lr=0.1, weight_decay=0.1),
    "finite": partial(MaskedAdam, lr=0.1, finite_gradients=True),
}


def data():
    return torch.randn(4, 2, 8, 3, generator=torch.Generator().manual_seed(2)).double()


def alone(kind):
    """What one process makes of all samples; the mean over processes is that over samples."""
    model = perceptron()
    optimizer = KINDS[kind](model.named_parameters())
    freeze(optimizer, MASKS)
    for x in data():
        optimizer.zero_grad()
        model(x.flatten(0, 1)).square().mean().backward()
        optimizer.step()
    return dict(model.named_parameters())


def parallel(rank, kind, model_names, options):
    model = perceptron()
    distributed = nn.parallel.DistributedDataParallel(model, **options)
    compiled = torch.compile(distributed, backend="eager")
    named = {"bare": model, "wrapped": distributed, "compiled": compiled}[model_names]
    optimizer = KINDS[kind](named.named_parameters())
    freeze(optimizer, MASKS)
    for x in data():
        optimizer.zero_grad()
        distributed(x[rank]).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("model_names", "options"),
    [
        ("bare", {}),
        ("wrapped", {"static_graph": True}),
        ("compiled", {"find_unused_parameters": True, "gradient_as_bucket_view": True}),
    ],
)
def test_two_processes_freeze_as_one_that_has_all_samples(kind, model_names, options):
    first, second = run_on_two(parallel, kind, model_names, options)
    assert same_bits(first, second)
    start = dict(perceptron().named_parameters())
    for p, (name, q) in zip(first, alone(kind).items(), strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-10, atol=1e-12)
        mask = MASKS.get(name, torch.zeros(p.shape).bool())
        assert torch.equal(p[mask], start[name][mask])


def scheduled(rank, options, skip):
    model = perceptron()
    distributed = nn.parallel.DistributedDataParallel(model, **options)
    optimizer = optim.AdamW(distributed.named_parameters(), lr=0.1)
    scores = {name: torch.full_like(p, i) for i, (name, p) in enumerate(model.named_parameters())}
    schedule = FreezeSchedule(
        optimizer, lambda: rank_of(scores), ramp(16, t0=2, t1=3), skip_gradients=skip
    )
    for x in data():
        start = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        distributed(x[rank]).square().mean().backward()
        optimizer.step()
        schedule.step()
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True)]
    return [p.detach() for p in model.parameters()], same, model[0].bias.requires_grad


@pytest.mark.parametrize(
    ("options", "skip", "computed"),
    [({}, None, True), ({}, False, True), ({"find_unused_parameters": True}, True, False)],
)
def test_a_schedule_freezes_whole_tensors_under_distributed_data_parallel(options, skip, computed):
    (first, same, gradient), (second, *_) = run_on_two(scheduled, options, skip)
    assert same_bits(first, second)
    assert same == [True, True, False, False]
    assert gradient == computed


def sharded(rank, kind, whole):
    model = perceptron()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = KINDS[kind](model.named_parameters())
    masks = MASKS
    if not whole:
        parameters = dict(model.named_parameters())
        masks = {name: distribute_tensor(m, mesh, [Shard(0)]) for name, m in MASKS.items()}
        assert all(m.to_local().shape == parameters[n].to_local().shape for n, m in masks.items())
    freeze(optimizer, masks)
    for x in data():
        optimizer.zero_grad()
        model(x[rank]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
    for name, p in model.named_parameters():
        if name in MASKS:
            assert not p.grad.full_tensor()[MASKS[name]].any()
    state = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True)
    )
    saved = state["param_groups"][0]["frozen_masks"]
    again = KINDS[kind](model.named_parameters())
    freeze(again)
    set_optimizer_state_dict(model, again, get_optimizer_state_dict(model, optimizer))
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    again.zero_grad()
    model(data()[0][rank]).square().mean().backward()
    again.step()
    moved = {name: p.full_tensor() != before[name] for name, p in model.named_parameters()}
    return before, saved, moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False])
def test_masks_of_sharded_parameters(kind, whole):
    (first, saved, moved), (second, *_) = run_on_two(sharded, kind, whole)
    expected = alone(kind)
    start = dict(perceptron().named_parameters())
    for name, p in first.items():
        assert torch.equal(p, second[name])
        torch.testing.assert_close(p, expected[name].detach(), rtol=1e-10, atol=1e-12)
        mask = MASKS.get(name, torch.zeros(p.shape).bool())
        assert torch.equal(p[mask], start[name][mask])
        assert torch.equal(saved[name], mask)
        assert torch.equal(moved[name], ~mask)


def sharded_and_compact(rank):
    model = perceptron()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = MaskedAdam(model.named_parameters(), compact=True)
    with pytest.raises(ValueError, match=r"'0.weight' is sharded, and compact moments cannot be"):
        freeze(optimizer, MASKS)
    return "_freezing" in vars(optimizer) or "frozen_masks" in optimizer.param_groups[0]


def test_compact_moments_of_sharded_parameters_are_refused():
    assert run_on_two(sharded_and_compact) == [False, False]


def redundancy_free(rank, kind):
    model = perceptron()
    distributed = nn.parallel.DistributedDataParallel(model)
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
    parameters = dict(model.named_parameters())
    freeze(optimizer, {parameters[name]: mask for name, mask in MASKS.items()})
    path = []
    for t, x in enumerate(data()):
        if t == 2:
            optimizer.consolidate_state_dict(to=0)
            states = [optimizer.state_dict() if rank == 0 else None]
            torch.distributed.broadcast_object_list(states)
            optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
            freeze(optimizer)
            optimizer.load_state_dict(states[0])
        optimizer.zero_grad()
        distributed(x[rank]).square().mean().backward()
        optimizer.step()
        path.append([p.detach().clone() for p in model.parameters()])
    return path


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_an_optimizer_that_shares_out_its_state(kind):
    first, second = run_on_two(redundancy_free, kind)
    start = dict(perceptron().named_parameters())
    for ours, theirs in zip(first, second, strict=True):
        assert same_bits(ours, theirs)
        for p, (name, old) in zip(ours, start.items(), strict=True):
            mask = MASKS.get(name, torch.zeros(p.shape).bool())
            assert torch.equal(p == old, mask)
