"""Freezing: what is frozen keeps every bit, and the rest moves as if it were alone.

One slow reference masks each gradient, steps and puts the frozen values back by hand. The other is
the same optimizer on vectors of the free coordinates, where the rest does not exist at all.
"""

import copy
import io
import math
import pickle
import warnings
import weakref
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.frozen import parts
from parameter_ordering.frozen.parts import FrozenPart
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


@given(cases())
def test_with_nothing_frozen_nothing_changes(case):
    params, optimizer = case.build()
    others, other = case.build()
    freeze(optimizer, {p: torch.zeros_like(m) for p, m in zip(params, case.masks, strict=True)})
    train(params, optimizer, case.gradients)
    train(others, other, case.gradients)
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))


@given(cases(), st.integers(0, 3))
@settings(max_examples=300)
def test_frozen_values_keep_every_bit(case, t0):
    params, optimizer = case.build()
    others, other = case.build()
    train(params, optimizer, case.gradients[:t0])
    train(others, other, case.gradients[:t0])
    before = [p.detach().clone() for p in params]
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    poisoned = [
        [g.masked_fill(m, bad) for g, m in zip(now, case.masks, strict=True)]
        for now, bad in zip(case.gradients[t0:], [math.nan, math.inf, -math.inf] * 2, strict=False)
    ]
    train(params, optimizer, poisoned)
    slowly(others, other, case.gradients[t0:], case.masks)
    for p, b, m in zip(params, before, case.masks, strict=True):
        assert same_bits([p[m]], [b[m]])
    free = [~m for m in case.masks]
    if case.options.get("compact"):  # In another place a vector instruction may round differently.
        for p, o, f in zip(params, others, free, strict=True):
            torch.testing.assert_close(p[f], o[f], equal_nan=True)
    else:
        assert same_bits(params, others)


@given(cases(ELEMENTWISE, [torch.float64]), st.integers(0, 3))
def test_free_values_move_as_if_the_rest_did_not_exist(case, t0):
    params, optimizer = case.build()
    alone, other = case.build([v[~m] for v, m in zip(case.values, case.masks, strict=True)])
    train(params, optimizer, case.gradients[:t0])
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    train(params, optimizer, case.gradients[t0:])
    free = [[g[~m] for g, m in zip(now, case.masks, strict=True)] for now in case.gradients]
    train(alone, other, free)
    for p, q, m in zip(params, alone, case.masks, strict=True):
        torch.testing.assert_close(p[~m], q, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_values_freeze(kind, dtype):
    w = nn.Parameter(torch.randn(7, dtype=dtype))
    mask = torch.arange(7) < 4
    optimizer = kind([w], lr=0.1, weight_decay=0.1)
    train([w], optimizer, [[torch.randn(7, dtype=dtype)] for _ in range(2)])
    before = w.detach().clone()
    freeze(optimizer, {w: mask})
    train([w], optimizer, [[torch.randn(7, dtype=dtype)] for _ in range(3)])
    assert same_bits([w[mask]], [before[mask]])
    assert (w != before)[~mask].all()


def test_a_gradient_of_another_type_is_masked():
    w = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    w.grad_dtype = torch.float32
    mask = torch.arange(8).view(4, 2) < 3
    optimizer = optim.SGD([w], lr=0.5)
    freeze(optimizer, {w: mask})
    w.float().square().sum().backward()
    assert w.grad.dtype == torch.float32
    assert torch.equal(w.grad == 0, mask)
    optimizer.step()
    assert torch.equal(w == 1, mask)


class PassedOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g.detach(), g


# Autograd gives a and b one gradient in memory, or parts of one.
SHARING = {
    "view": lambda a, b: a.view(2, 3) + b.view(2, 3),
    "unsqueeze": lambda a, b: a[None] + b[None],
    "t": lambda a, b: a.t() + b.t(),
    "unflatten": lambda a, b: a.unflatten(0, (2, 3)) + b.unflatten(0, (2, 3)),
    "stack": lambda a, b: torch.stack([a, b]).sum(0),
    "cat": lambda a, b: torch.cat([a, b])[2:8],
    "detach": PassedOn.apply,
    "none": lambda a, b: a + b,
}
KINDS = {
    "SGD": partial(optim.SGD, momentum=0.9, weight_decay=0.1),
    "Adam": optim.Adam,
    "MaskedAdam": MaskedAdam,
    "compact": partial(MaskedAdam, compact=True),
    "finite": partial(MaskedAdam, finite_gradients=True),
}


@given(
    st.sampled_from(sorted(SHARING)),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_gradients_that_share_memory_are_masked_apart(name, kind, in_backward, swapped, both):
    x, *values = torch.randn(3, 6, dtype=torch.float64)
    expression, build = SHARING[name], KINDS[kind]
    masks = [torch.arange(6) < 4, (torch.arange(6) > 2) & both]
    params, others = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    optimizer, other = build(params, lr=0.1), build(others, lr=0.1)
    freeze(optimizer, dict(zip(params, masks, strict=True)), in_backward=in_backward)
    for _ in range(3):
        optimizer.zero_grad()
        losses = [
            (expression(*(pair[::-1] if swapped else pair)).reshape(-1) * x).square().sum()
            for pair in (params, others)
        ]
        losses[0].backward()
        optimizer.step()
        slowly(others, other, [torch.autograd.grad(losses[1], others)], masks)
    torch.testing.assert_close(params, others, rtol=1e-10, atol=1e-12)


def test_memory_is_taken_for_shared_where_torch_cannot_tell(monkeypatch):
    monkeypatch.setattr(parts, "_use_count", None)
    p = nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([p], lr=0.1)
    freeze(optimizer, {p: torch.tensor([True, False, False])})
    p.grad = given = torch.ones(3)
    p.sum().backward()
    assert p.grad.tolist() == [0, 2, 2]
    assert given.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "gradient",
    [torch.ones(1).expand(4, 3), torch.ones(6).unfold(0, 3, 1), torch.ones(4, 1).expand(4, 3)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_expanded_gradient_is_masked(gradient, kind):
    w = nn.Parameter(torch.ones(4, 3))
    mask = torch.arange(12).view(4, 3) % 5 < 2
    optimizer = KINDS[kind]([w], lr=0.1)
    freeze(optimizer, {w: mask})
    w.grad = copy.deepcopy(gradient)  # the only owner of its memory
    optimizer.step()
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_gradient_of_its_own_is_masked_in_place(kind):
    w = nn.Parameter(torch.ones(4))
    optimizer = kind([w], lr=0.1)
    freeze(optimizer, {w: torch.arange(4) < 2})
    addresses = set()
    w.register_hook(lambda g: addresses.add(g.data_ptr()))
    (2 * w).sum().backward()
    addresses.add(w.grad.data_ptr())
    optimizer.step()
    assert addresses == {w.grad.data_ptr()}


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


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, partial(MaskedAdam, compact=True)])
def test_any_memory_layout_freezes(kind):
    values = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    w = nn.Parameter(values.clone())
    mask = torch.rand(2, 3, 4, 5) < 0.5
    optimizer = kind([w], lr=0.1)
    freeze(optimizer, {w: mask})
    train([w], optimizer, [[torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0)] for _ in range(3)])
    assert same_bits([w[mask]], [values[mask]])
    assert (w != values)[~mask].all()


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD, partial(MaskedAdam, compact=True)])
def test_a_frozen_gradient_does_not_count_in_a_clipped_norm(kind):
    """Against a model whose parameters are a constant and a vector of free coordinates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    masks = {name: torch.rand(w.shape) < 0.6 for name, w in model.named_parameters()}
    base = {name: w.detach().clone() for name, w in model.named_parameters()}
    free = {name: nn.Parameter(w[~masks[name]]) for name, w in base.items()}
    optimizer = kind(model.named_parameters(), lr=0.1, weight_decay=0.01)
    other = kind(free.items(), lr=0.1, weight_decay=0.01)
    freeze(optimizer, masks)
    for _ in range(10):
        x = torch.randn(2, 16, 4, dtype=torch.float64)
        optimizer.zero_grad()
        other.zero_grad()
        for half in x:  # Gradients of two backward passes add up.
            model(half).square().mean().backward()
            whole = {name: w.masked_scatter(~masks[name], free[name]) for name, w in base.items()}
            torch.func.functional_call(model, whole, half).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(free.values(), 0.1).item(), rel=1e-10)
        optimizer.step()
        other.step()
    for name, w in model.named_parameters():
        torch.testing.assert_close(w[~masks[name]], free[name], rtol=1e-10, atol=1e-12)
        assert same_bits([w[masks[name]]], [base[name][masks[name]]])


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{"fused": True}, {"fused": False}, {"compact": True}])
def test_a_frozen_inf_does_not_stop_a_grad_scaler(options, unscale):
    model, optimizer = linear(MaskedAdam, lr=0.1, **options)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    infinite = torch.ones(2, 3, dtype=torch.float64).masked_fill(HALF["weight"], math.inf)
    scaler.scale((model.weight * infinite).sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0
    assert torch.equal(model.weight != before, ~HALF["weight"])


def test_gradients_can_be_masked_by_the_step_alone():
    model, optimizer = linear(lr=0.1, momentum=0.9)
    freeze(optimizer, HALF, in_backward=False)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()
    optimizer.step()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    freeze(optimizer)  # as it is
    optimizer.zero_grad()
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()
    freeze(optimizer, in_backward=True)
    optimizer.zero_grad()
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])


@pytest.mark.parametrize("frozen_first", [False, True])
def test_a_step_in_the_backward_pass_freezes(frozen_first):
    model, optimizer = linear(lr=0.1, momentum=0.9)
    before = model.weight.detach().clone()

    def step(p):
        optimizer.step()
        optimizer.zero_grad()

    if frozen_first:
        freeze(optimizer, HALF)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    if not frozen_first:
        freeze(optimizer, HALF)
    for _ in range(3):
        model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, MaskedAdam])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_closure_may_make_the_gradient(kind, by_hand):
    model, optimizer = linear(kind, lr=0.1)
    other_model, other = linear(kind, lr=0.1)
    for each in (optimizer, other):
        freeze(each, HALF)
    x = torch.randn(4, 3).double()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if by_hand:
            model.weight.grad, model.bias.grad = torch.autograd.grad(loss, model.parameters())
        else:
            loss.backward()
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
        other.zero_grad()
        other_loss = other_model(x).square().mean()
        other_loss.backward()
        other.step()
        assert loss == other_loss
    assert same_bits(model.parameters(), other_model.parameters())


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, partial(MaskedAdam, compact=True)])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_step_may_take_arguments_of_its_own(kind, by_name):
    class Scaled(getattr(kind, "func", kind)):
        def step(self, closure=None, *, scale=1.0):
            self.scale = scale
            return super().step(closure)

    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = Scaled([w], lr=0.1, **getattr(kind, "keywords", {}))
    freeze(optimizer, {w: mask})

    def closure():
        w.grad = torch.ones(4)
        return 3.0

    assert optimizer.step(scale=2.0) is None
    assert optimizer.scale == 2.0
    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure, scale=4.0)
    assert loss == 3.0
    assert optimizer.scale == (1.0 if by_name else 4.0)
    assert torch.equal(w.grad == 0, mask)
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_step_may_do_more_than_that_of_its_class(kind):
    """Its own step and the one that it calls are both hooked, once a plain one has been built."""

    class Decaying(kind):
        fail = False

        @torch.no_grad()
        def step(self, closure=None):
            for decay in (0.9, 0.8):
                [p] = self.param_groups[0]["params"]
                p.mul_(decay)
                super().step(closure)
                if self.fail:
                    raise FloatingPointError
                p.mul_(decay)

    kind([nn.Parameter(torch.ones(1))])
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = Decaying([w], lr=0.1)
    freeze(optimizer, {w: mask})
    w.grad = torch.ones(4)
    for value, failures in ((1.0, 0), (1.0, 6), (2.0, 6)):
        optimizer.fail = True
        for _ in range(failures):
            with pytest.raises(FloatingPointError):
                optimizer.step()
        optimizer.fail = False
        with torch.no_grad():
            w.fill_(value)  # What is frozen may be set by hand, also after steps that failed.
        for _ in range(3):
            optimizer.step()
            assert torch.equal(w == value, mask)


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_a_later_hook_may_change_the_gradient(kind):
    model, optimizer = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()

    def decay(optimizer, args, kwargs):
        model.weight.grad += model.weight.detach()

    hook = optimizer.register_step_pre_hook(decay)
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    hook.remove()
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_decay_may_come_and_go(kind):
    model, optimizer = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    before = model.weight.detach().clone()
    for decay in (0.0, 0.5, 0.0):
        optimizer.param_groups[0]["weight_decay"] = decay
        for _ in range(3):
            model.weight.grad = torch.randn(2, 3).double()
            optimizer.step()
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize(
    "kind", [optim.Adam, optim.AdamW, MaskedAdam, partial(MaskedAdam, finite_gradients=True)]
)
def test_decay_that_has_gone_costs_no_copy(kind, monkeypatch):
    model, optimizer = linear(kind, lr=0.1, weight_decay=0.1)
    freeze(optimizer, HALF, in_backward=False)
    gradients = [[torch.ones(2, 3).double()]]
    train([model.weight], optimizer, gradients)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    monkeypatch.setattr(FrozenPart, "_save", None)
    train([model.weight], optimizer, gradients)


def test_decay_that_has_gone_leaves_no_moment_behind():
    """Not even where autograd needs the moments, so that they are not forgotten."""
    w = torch.ones(3).requires_grad_().clone()
    mask = torch.tensor([True, False, True])
    optimizer = MaskedAdam([w], lr=0.1, weight_decay=0.1, differentiable=True)
    freeze(optimizer, {w: mask})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that w.grad is read though w is no leaf.
        for decay in (0.1, 0.0, 0.0):
            optimizer.param_groups[0]["weight_decay"] = decay
            train([w], optimizer, [[torch.ones(3)]])
    assert torch.equal(w == 1, mask)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(optim.lr_scheduler.StepLR, step_size=2),
        partial(optim.lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=6),
    ],
)
def test_schedulers_go_on(scheduler):
    def steps(by_hand):
        torch.manual_seed(1)
        w = nn.Parameter(torch.randn(5))
        mask = torch.arange(5) < 3
        optimizer = optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.1)
        schedule = scheduler(optimizer)
        if not by_hand:
            freeze(optimizer, {w: mask})
        for _ in range(5):
            gradient = [[torch.randn(5)]]
            if by_hand:
                slowly([w], optimizer, gradient, [mask])
            else:
                train([w], optimizer, gradient)
            schedule.step()
        return w

    assert same_bits([steps(by_hand=True)], [steps(by_hand=False)])


def test_a_group_that_comes_later_trains_until_it_is_frozen():
    model, optimizer = linear(lr=0.1, weight_decay=0.1)
    freeze(optimizer, HALF)
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("late", late)]})
    before = model.weight.detach().clone()
    train([model.weight, late], optimizer, [[torch.ones(2, 3).double(), torch.ones(2)]])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    assert (late != 1).all()
    now = late.detach().clone()
    freeze(optimizer, {"late": torch.tensor([True, False])})
    train([model.weight, late], optimizer, [[torch.ones(2, 3).double(), torch.ones(2)]])
    assert torch.equal(late != now, torch.tensor([False, True]))
    assert (model.weight != before).all()


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (optim.SGD, 2),
        (optim.Adam, 2),
        (partial(optim.Adam, amsgrad=True), 1),  # a second is more than torch can differentiate
        (optim.RMSprop, 2),
    ],
)
def test_autograd_sees_the_freeze(kind, steps):
    mask = torch.tensor([True, False, True])

    def step(w, *gradients):
        w = w.clone()
        optimizer = kind([w], lr=0.1, weight_decay=0.1, differentiable=True)
        freeze(optimizer, {w: mask})
        for g in gradients:
            w.grad = g
            optimizer.step()
        return w

    torch.manual_seed(0)
    inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(1 + steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that w.grad is read though w is no leaf.
        assert torch.autograd.gradcheck(step, inputs)
        assert same_bits([step(*inputs)[mask]], [inputs[0][mask]])


@pytest.mark.filterwarnings("ignore:Using backward")
def test_autograd_sees_a_masked_gradient():
    w = nn.Parameter(torch.randn(4, dtype=torch.float64))
    mask = torch.arange(4) < 2
    optimizer = optim.SGD([w])
    freeze(optimizer, {w: mask})
    (w**3).sum().backward(create_graph=True)
    [hessian] = torch.autograd.grad(w.grad.sum(), [w])
    w.grad = None  # breaks the cycle that torch warns of
    torch.testing.assert_close(hessian, (6 * w).masked_fill(mask, 0))


@pytest.mark.parametrize(
    ("kind", "in_backward"),
    [
        (optim.Adam, True),
        (optim.SGD, True),
        (partial(MaskedAdam, finite_gradients=True), False),
    ],
)
def test_a_compiled_step_freezes(kind, in_backward):
    w = nn.Parameter(torch.randn(5))
    mask = torch.arange(5) < 3
    optimizer = kind([w], lr=0.1, weight_decay=0.1)
    before = w.detach().clone()
    other = nn.Parameter(before.clone())
    freeze(optimizer, {w: mask}, in_backward=in_backward)
    gradients = [[torch.randn(5)] for _ in range(3)]
    step = compiled(optimizer)
    for now in gradients:
        w.grad = now[0].clone()
        step()
    slowly([other], kind([other], lr=0.1, weight_decay=0.1), gradients, [mask])
    assert same_bits([w[mask]], [before[mask]])
    torch.testing.assert_close(w, other)


@pytest.mark.parametrize(
    ("options", "in_graph"),
    [
        ({}, False),
        ({"differentiable": True}, False),
        ({"foreach": False}, True),
        ({"lr": torch.tensor(0.1), "foreach": False}, True),
        pytest.param({"capturable": True, "foreach": False}, False, marks=needs_cuda),
        pytest.param({"capturable": True, "foreach": True}, False, marks=needs_cuda),
    ],
)
@pytest.mark.parametrize(
    "kind", [optim.Adam, optim.AdamW, MaskedAdam, partial(MaskedAdam, finite_gradients=True)]
)
def test_a_learning_rate_may_start_at_zero(kind, options, in_graph):
    """Some ways of torch's Adam divide by it: 0 / 0 for moments of zero."""
    w = torch.ones(5, device="cuda" if options.get("capturable") else "cpu")
    mask = torch.arange(5, device=w.device) < 3
    options = {"lr": 0.1, "weight_decay": 0.0} | copy.deepcopy(options)
    optimizer = kind([w], **options)
    warm_up = optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 3)
    freeze(optimizer, {w: mask}, in_backward=False)
    step = compiled(optimizer) if in_graph else optimizer.step
    for t in range(3):
        w.grad = torch.ones_like(w)
        step()
        warm_up.step()
        assert torch.equal(w == 1, mask | (t == 0))


@needs_cuda
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.NAdam, optim.RMSprop])
def test_a_captured_step_freezes(kind):
    w = nn.Parameter(torch.randn(5, device="cuda"))
    mask = torch.arange(5, device="cuda") < 3
    optimizer = kind([w], lr=0.1, weight_decay=0.1, capturable=True)
    freeze(optimizer, {w: mask})
    w.grad = torch.randn_like(w)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = w.detach().clone()
    for _ in range(3):
        w.grad.normal_()
        graph.replay()
    assert torch.equal(w != before, ~mask)


@given(cases(ELEMENTWISE))
def test_freezing_again_is_unfreezing_and_freezing(case):
    params, optimizer = case.build()
    others, other = case.build()
    first = [~m for m in case.masks]
    for p, o in ((params, optimizer), (others, other)):
        freeze(o, dict(zip(p, first, strict=True)))
        train(p, o, case.gradients[:3])
    unfreeze(other)
    before = [p.detach().clone() for p in params]
    for p, o in ((params, optimizer), (others, other)):
        freeze(o, dict(zip(p, case.masks, strict=True)))
        train(p, o, case.gradients[3:])
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))
    for p, b, m in zip(params, before, case.masks, strict=True):
        assert same_bits([p[m]], [b[m]])


def test_freezing_again_masks_gradients_by_the_new_mask_alone():
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    freeze(optimizer, {"weight": ~HALF["weight"]})
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, ~HALF["weight"])


def test_a_mask_is_copied():
    model, optimizer = linear(lr=0.1)
    mask = {"weight": HALF["weight"].clone()}
    freeze(optimizer, mask)
    mask["weight"].fill_(True)
    freeze(optimizer)
    before = model.weight.detach().clone()
    train([model.weight], optimizer, [[torch.ones(2, 3).double()]])
    assert torch.equal(model.weight != before, ~HALF["weight"])


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_unfreeze_leaves_no_trace(kind):
    model, optimizer = linear(kind, lr=0.1)
    _, fresh = linear(kind, lr=0.1)
    freeze(optimizer, HALF)
    unfreeze(optimizer)
    assert not any(each.peek()[0] is optimizer for each in list(weakref.finalize._registry))
    assert optimizer.__dict__.keys() == fresh.__dict__.keys()
    assert optimizer.param_groups[0].keys() == fresh.param_groups[0].keys()
    assert not [hooks for name, hooks in vars(optimizer).items() if "hooks" in name and hooks]
    assert not model.weight._post_accumulate_grad_hooks
    before = model.weight.detach().clone()
    model(torch.ones(1, 3).double()).sum().backward()
    optimizer.step()
    assert (model.weight != before).all()
    unfreeze(optimizer)


def test_hooks_on_parameters_go_with_the_optimizer():
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    del optimizer
    model(torch.ones(1, 3).double()).sum().backward()
    assert (model.weight.grad == 1).all()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [optim.Adam, MaskedAdam, partial(MaskedAdam, compact=True)])
def test_adam_forgets_moments_but_not_the_iteration(kind, decay):
    """The first update of what trains again has the length that the documentation states."""
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    mask = torch.tensor([True, True, False, False])
    optimizer = kind([w], lr=0.1, eps=1e-30, weight_decay=decay)
    constant = [torch.full((4,), 3.0, dtype=torch.float64)]
    train([w], optimizer, [constant] * 5)
    freeze(optimizer, {w: mask})
    train([w], optimizer, [constant] * 4)
    unfreeze(optimizer)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[w][moment] == 0, mask)
    before = w.detach().clone()
    train([w], optimizer, [constant])
    moved = before - w.detach()
    t = 10
    length = (1 - 0.9) / math.sqrt(1 - 0.999) * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    assert moved[mask] == pytest.approx([0.1 * length] * 2, rel=1e-9)
    if not decay:
        assert moved[~mask] == pytest.approx([0.1] * 2, rel=1e-9)


def test_other_state_follows_its_own_rule_with_zero_gradient():
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    gradient = [torch.tensor([2.0, 2.0], dtype=torch.float64)]
    for optimizer, key, expected in (
        (optim.SGD([w], lr=0.1, momentum=0.5), "momentum_buffer", 2 * 0.5**3),
        (optim.Adagrad([w], lr=0.1), "sum", 4.0),
        (optim.RMSprop([w], lr=0.1, alpha=0.5), "square_avg", 2 * 0.5**3),
    ):
        train([w], optimizer, [gradient])
        freeze(optimizer, {w: torch.tensor([True, False])})
        train([w], optimizer, [gradient] * 3)
        unfreeze(optimizer)
        assert optimizer.state[w][key][0] == expected


def through_checkpoint(pair, case):
    file = io.BytesIO()
    params, optimizer = pair
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    params, optimizer = case.build(checkpoint["params"])
    freeze(optimizer)
    optimizer.load_state_dict(checkpoint["optimizer"])
    return params, optimizer


def through_copy(pair, case):
    return copy.deepcopy(pair)


def through_pickle(pair, case):
    data = pickle.dumps(pair)
    assert b"parameter_ordering.freezing" in data  # so a process that loads it imports the freeze
    return pickle.loads(data)


@given(
    cases(),
    st.sampled_from([through_checkpoint, through_copy, through_pickle]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_interrupted_and_resumed_is_uninterrupted(case, through, before, after):
    if through is through_checkpoint and case.kind in (optim.ASGD, optim.NAdam):
        # torch casts scalars in the state of these, on loading, to the type of the parameters.
        assume(case.values[0].dtype == torch.float32)
    params, optimizer = case.build()
    train(params, optimizer, case.gradients[:before])
    freeze(optimizer, dict(zip(params, case.masks, strict=True)))
    train(params, optimizer, case.gradients[before : before + after])
    others, other = through((params, optimizer), case)
    train(others, other, case.gradients[before + after :])
    train(params, optimizer, case.gradients[before + after :])
    assert same_bits(params, others)
    assert same_bits(state_of(optimizer), state_of(other))


@pytest.mark.parametrize("through", [through_copy, through_pickle])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_copy_masks_gradients_where_its_original_does(through, in_backward):
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = optim.SGD([w], lr=0.1)
    freeze(optimizer, {w: mask}, in_backward=in_backward)
    [v], other = through(([w], optimizer), None)
    v.sum().backward()
    assert torch.equal(v.grad == 0, mask & in_backward)
    other.step()
    assert torch.equal(v == 1, mask)


def test_unfreeze_drops_masks_that_were_loaded_without_freeze():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    _, other = linear(lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    unfreeze(other)
    assert "frozen_masks" not in other.param_groups[0]


def test_masks_loaded_without_freeze_warn_at_the_step():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    other_model, other = linear(lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    other_model(torch.ones(1, 3).double()).sum().backward()
    with pytest.warns(UserWarning, match=r"freezes nothing: call freeze\(optimizer\)") as caught:
        other.step()
    assert caught[0].filename == __file__
    before = other_model.weight.detach().clone()
    freeze(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.step()
    assert torch.equal(other_model.weight != before, ~HALF["weight"])
    other.load_state_dict(optimizer.state_dict())
    unfreeze(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.step()


def test_a_checkpoint_without_masks_leaves_the_freeze():
    _, old = linear(lr=0.5)
    model, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    checkpoint = old.state_dict()
    optimizer.load_state_dict(checkpoint)
    assert "frozen_masks" not in checkpoint["param_groups"][0]
    before = model.weight.detach().clone()
    train([model.weight], optimizer, [[torch.ones(2, 3).double()]])
    assert torch.equal(model.weight != before, ~HALF["weight"])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_parameter_that_needs_no_gradient_may_be_frozen():
    model, optimizer = linear(lr=0.1, weight_decay=0.1)
    model.weight.requires_grad_(False)
    before = model.weight.clone()
    freeze(optimizer, HALF)
    model(torch.ones(1, 3).double()).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert not model.weight.requires_grad
    model.weight.requires_grad_(True)
    model(torch.ones(1, 3).double()).sum().backward()
    assert torch.equal(model.weight.grad == 0, HALF["weight"])


def test_sparse_gradients_and_optimizers_that_cannot_freeze_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    mask = {"weight": torch.tensor([[True, False]] * 4)}
    with pytest.raises(TypeError, match="SparseAdam cannot be frozen: it takes sparse gradients"):
        freeze(optim.SparseAdam(table.named_parameters()), mask)
    with pytest.raises(TypeError, match="LBFGS cannot be frozen: its line search"):
        freeze(optim.LBFGS(table.parameters()))
    with pytest.raises(TypeError, match=r"an optimizer of torch, not a <class '.*Embedding'>"):
        freeze(table, mask)
    optimizer = optim.SGD(table.named_parameters(), lr=0.1)
    freeze(optimizer, mask)
    with pytest.raises(RuntimeError, match=r"'weight' is sparse, .* sparse=False"):
        table(torch.tensor([1])).sum().backward()
