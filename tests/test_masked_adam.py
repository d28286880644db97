"""MaskedAdam: torch's Adam bit by bit while nothing is frozen; its options, the same in other ways.

The references are torch.optim.Adam, the same optimizer without the option, and single models in
place of an ensemble.
"""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.masked_adam import MaskedAdam

SHAPES = [(), (1,), (3, 5), (0, 2), (2, 3, 4)]
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-3, 0.1]),
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5)]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "decoupled_weight_decay": st.booleans(),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)
WAYS = st.sampled_from([{}, {"foreach": False}, {"foreach": True}, {"fused": True}])


def parameters(seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in SHAPES]


def masks(params, seed, share=0.6):
    g = torch.Generator().manual_seed(seed)
    return {p: torch.rand(p.shape, generator=g) < share for p in params}


def train(params, optimizer, seed, steps=3):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
        optimizer.step()


def moments(optimizer):
    return [
        x
        for group in optimizer.param_groups
        for p in group["params"]
        for name, x in optimizer.state[p].items()
        if name.startswith(("exp_avg", "max_exp"))
    ]


@given(OPTIONS, WAYS, st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_with_nothing_frozen_it_is_adam(options, way, compact, dtype):
    params, others = parameters(0, dtype), parameters(0, dtype)
    optimizer = MaskedAdam(params, compact=compact, **options, **way)
    other = optim.Adam(others, **options, **way)
    freeze(optimizer, masks(params, 0, share=0.0))
    for p, o in ((params, optimizer), (others, other)):
        train(p, o, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(moments(optimizer), moments(other), strict=True))


@given(OPTIONS, WAYS, st.lists(st.sampled_from(["freeze", "unfreeze", "train"]), max_size=8))
def test_compact_moves_as_it_does_whole(options, way, events):
    """Through any sequence of freezes, also before the first step."""
    params, others = parameters(0), parameters(0)
    optimizer = MaskedAdam(params, compact=True, **options, **way)
    other = MaskedAdam(others, compact=False, **options, **way)
    for seed, event in enumerate([*events, "train"]):
        for p, o in ((params, optimizer), (others, other)):
            if event == "freeze":
                freeze(o, masks(p, seed))
            elif event == "unfreeze":
                unfreeze(o)
            else:
                train(p, o, seed)
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    unfreeze(optimizer)
    unfreeze(other)
    for x, y in zip(moments(optimizer), moments(other), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@given(
    OPTIONS,
    WAYS,
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.lists(st.sampled_from(["freeze", "unfreeze", "train"]), max_size=8),
)
def test_an_infinite_moment_holds_as_a_masked_gradient_does(options, way, dtype, events):
    """Bit by bit, frozen or free, through any sequence of freezes; -0.0 too is held."""
    params, others = parameters(0, dtype), parameters(0, dtype)
    for each in (params, others):
        each[1].data.fill_(-0.0)
    optimizer = MaskedAdam(params, finite_gradients=True, **options, **way)
    other = MaskedAdam(others, **options, **way)
    for seed, event in enumerate([*events, "freeze", "train"]):
        for p, o in ((params, optimizer), (others, other)):
            if event == "freeze":
                freeze(o, masks(p, seed), in_backward=False)
            elif event == "unfreeze":
                unfreeze(o)
            else:
                train(p, o, seed)
        for p, q in zip(params, others, strict=True):
            assert torch.equal(p, q)
            assert torch.equal(p.signbit(), q.signbit())
    unfreeze(optimizer)
    unfreeze(other)
    assert all(torch.equal(x, y) for x, y in zip(moments(optimizer), moments(other), strict=True))


def test_an_infinite_moment_leaves_the_gradient_as_it_is():
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 3
    optimizer = MaskedAdam([w], finite_gradients=True)
    freeze(optimizer, {w: mask}, in_backward=False)
    w.square().sum().backward()
    optimizer.step()
    assert (w.grad == 2).all()
    assert torch.equal(w == 1, mask)
    assert torch.equal(optimizer.state[w]["exp_avg_sq"].isinf(), mask)
    freeze(optimizer, {w: mask}, in_backward=True)
    w.grad = None
    w.square().sum().backward()
    assert torch.equal(w.grad == 0, mask)
    assert not optimizer.state[w]["exp_avg_sq"].isinf().any()


@pytest.mark.parametrize("finite", [False, True])
def test_a_checkpoint_of_infinite_moments_goes_on_the_same(finite):
    params = parameters(0)
    optimizer = MaskedAdam(params, lr=0.1, finite_gradients=True)
    freeze(optimizer, masks(params, 0), in_backward=False)
    train(params, optimizer, 1)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = MaskedAdam(others)
    freeze(other, in_backward=not finite)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert any(x.isinf().any() for x in moments(other)) == finite
    train(params, optimizer, 2)
    train(others, other, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_compact_holds_what_the_documentation_counts(amsgrad, before):
    """Mask, index and moments: 1 + 4 r + 8 r bytes a parameter in float32, 4 r more for amsgrad."""
    w = nn.Parameter(torch.randn(100, 10))
    mask = torch.arange(1000).view(100, 10) < 900
    optimizer = MaskedAdam([w], compact=True, amsgrad=amsgrad)
    train([w], optimizer, 0, steps=before)
    freeze(optimizer, {w: mask})
    train([w], optimizer, 0)
    part = optimizer._freezing.parts[w]
    held = {x.data_ptr(): x.nbytes for x in vars(part).values() if isinstance(x, torch.Tensor)}
    assert sum(held.values()) == 1000 + 4 * 100
    assert sum(x.nbytes for x in moments(optimizer)) == (12 if amsgrad else 8) * 100
    assert not [p for p in optimizer.state if p is not w]
    unfreeze(optimizer)
    assert sum(x.nbytes for x in moments(optimizer)) == (12 if amsgrad else 8) * 1000


def test_a_missing_gradient_leaves_a_compact_tensor():
    w, v = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = MaskedAdam([w, v], compact=True)
    freeze(optimizer, {w: torch.arange(4) < 2, v: torch.arange(4) < 2})
    train([w, v], optimizer, 0)
    with torch.no_grad():
        w.fill_(7.0)
    w.grad, v.grad = None, torch.ones(4)
    optimizer.step()
    assert (w == 7).all()


def test_a_compact_step_that_failed_leaves_nothing_to_put_back():
    w, v = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = MaskedAdam([{"params": [w]}, {"params": [v]}], compact=True)
    freeze(optimizer, {w: torch.arange(4) < 2})
    w.grad, v.grad = torch.ones(4), torch.ones(4).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    with torch.no_grad():
        w.fill_(7.0)
    w.grad, v.grad = None, None
    optimizer.step()
    assert (w == 7).all()


@given(OPTIONS, st.booleans())
def test_checkpoints_freeze_and_bring_their_layout(options, compact):
    params = parameters(0)
    optimizer = MaskedAdam(params, compact=compact, **options)
    freeze(optimizer, masks(params, 0))
    train(params, optimizer, 1)
    for built in (False, True):
        others = [nn.Parameter(p.detach().clone()) for p in params]
        other = MaskedAdam(others, compact=built, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert other.param_groups[0]["compact"] == compact
        expected = copy.deepcopy((params, optimizer))
        train(*expected, 2)
        train(others, other, 2)
        assert all(torch.equal(p, q) for p, q in zip(others, expected[0], strict=True))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_a_checkpoint_of_adam_goes_on_in_masked_adam(kind, compact):
    params = parameters(0)
    optimizer = kind(params, lr=0.1)
    freeze(optimizer, masks(params, 0))
    train(params, optimizer, 1)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = MaskedAdam(others, compact=compact)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(params, optimizer, 2)
    train(others, other, 2)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert (sum(x.numel() for x in moments(other)) < 2 * sum(p.numel() for p in params)) == compact


def test_a_checkpoint_of_masked_adam_goes_on_in_adam():
    params = parameters(0)
    optimizer = MaskedAdam(params, lr=0.1)
    freeze(optimizer, masks(params, 0))
    train(params, optimizer, 1)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = optim.Adam(others)
    freeze(other)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(params, optimizer, 2)
    train(others, other, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_compact_moments_are_refused_by_other_optimizers():
    params = parameters(0)
    optimizer = MaskedAdam(params, compact=True)
    freeze(optimizer, masks(params, 0))
    train(params, optimizer, 0)
    other = optim.Adam(parameters(0), lr=0.5)
    freeze(other)
    with pytest.raises(ValueError, match=r"that of a MaskedAdam\(compact=True\)"):
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.5


def test_groups_may_differ_in_layout():
    w, v = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = MaskedAdam([{"params": [w], "compact": True}, {"params": [v]}], lr=0.1)
    mask = torch.arange(4) < 3
    freeze(optimizer, {w: mask, v: mask})
    train([w, v], optimizer, 0)
    assert optimizer.state[w]["exp_avg"].shape == (1,)
    assert optimizer.state[v]["exp_avg"].shape == (4,)
    late = nn.Parameter(torch.ones(4))
    optimizer.add_param_group({"params": [late]})
    train([w, v, late], optimizer, 0)
    for p, m in ((w, mask), (v, mask), (late, mask & False)):
        assert torch.equal(p != 1, ~m)


@pytest.mark.parametrize("compact", [False, True])
def test_an_ensemble_is_frozen_as_its_models_are(compact):
    """Parameters (R, V, out, in) with a mask for each model, against R x V optimizers."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(3, 5, 4, 2, dtype=torch.float64))
    mask = torch.rand(w.shape) < torch.linspace(0, 1, 5).view(1, 5, 1, 1)
    singles = [nn.Parameter(x.clone()) for x in w.detach().flatten(0, 1)]
    optimizer = MaskedAdam([("w", w)], lr=0.1, compact=compact)
    freeze(optimizer, {"w": mask})
    optimizers = [MaskedAdam([("w", x)], lr=0.1) for x in singles]
    for o, m in zip(optimizers, mask.flatten(0, 1), strict=True):
        freeze(o, {"w": m})
    for _ in range(10):
        w.grad = torch.randn_like(w)
        for x, g in zip(singles, w.grad.clone().flatten(0, 1), strict=True):
            x.grad = g
        for o in (optimizer, *optimizers):
            o.step()
    expected = torch.stack([x.detach() for x in singles]).view(w.shape)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=1e-12)


def test_infinite_moments_need_a_memory():
    with pytest.raises(ValueError, match=r"betas\[1\] is 0"):
        MaskedAdam(parameters(0), betas=(0.9, 0.0), finite_gradients=True)
    w = nn.Parameter(torch.ones(4))
    mask = torch.arange(4) < 2
    optimizer = MaskedAdam([{"params": [w], "betas": (0.9, 0.0)}], finite_gradients=True)
    freeze(optimizer, {w: mask}, in_backward=False)
    train([w], optimizer, 0)
    assert torch.equal(w == 1, mask)


def test_what_compact_cannot_do_is_refused():
    with pytest.raises(ValueError, match="not differentiable"):
        MaskedAdam(parameters(0), compact=True, differentiable=True)
    params = parameters(0)
    optimizer = MaskedAdam(params, compact=True)
    freeze(optimizer, masks(params, 0))
    torch.compiler.reset()  # it gives up on code that it has compiled a few times
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        train(params, optimizer, 0, steps=1) or step()
