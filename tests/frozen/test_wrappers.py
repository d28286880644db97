"""Optimizers around others, and parameters written outside of a step: held still, or refused.

The small Lookahead, SAM and averaging optimizers are written as the usual ones are.
"""

import copy
from collections import defaultdict
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.masked_adam import MaskedAdam
from tests.frozen.cases import HALF, linear

schedulefree = pytest.importorskip("schedulefree")


def backward(model):
    model(torch.ones(4, 3).double()).square().sum().backward()


def once(model, optimizer):
    optimizer.zero_grad()
    backward(model)
    optimizer.step()


def moves(model, act):
    """Which weights an act moves."""
    before = model.weight.detach().clone()
    act()
    return model.weight.detach() != before


def accelerated(optimizer):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


def of_lightning(optimizer):
    pytest.importorskip("lightning")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    return LightningOptimizer(optimizer)


def of_fabric(optimizer):
    pytest.importorskip("lightning")
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)


class HandsOn(optim.Optimizer):
    """A wrapper as they are written in many places: it passes for an optimizer, and has no hook."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


KINDS = {
    "SGD": partial(optim.SGD, momentum=0.9, weight_decay=0.1),
    "AdamW": optim.AdamW,
    "compact": partial(MaskedAdam, compact=True),
}


@pytest.mark.parametrize("wrap", [accelerated, of_lightning, of_fabric, HandsOn])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapper_is_frozen_and_unfrozen_as_the_optimizer_inside(wrap, kind):
    model, optimizer = linear(KINDS[kind], lr=0.1)
    wrapped = wrap(optimizer)
    step = optimizer if wrap is of_lightning else wrapped  # a trainer gives it its strategy
    once(model, step)
    freeze(wrapped, HALF)
    for _ in range(2):
        assert torch.equal(moves(model, partial(once, model, step)), ~HALF["weight"])
    assert optimizer.state_dict()["param_groups"][0]["frozen_masks"]["weight"].any()
    unfreeze(wrapped)
    assert moves(model, partial(once, model, step)).all()
    assert "frozen_masks" not in optimizer.state_dict()["param_groups"][0]
    assert not model.weight._post_accumulate_grad_hooks
    assert "_freezing" not in vars(optimizer)
    assert "_freezing" not in vars(wrapped)


def test_what_passes_for_an_optimizer_and_has_none_inside_is_refused():
    class Hollow(optim.Optimizer):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match="Hollow'> has none of the hooks of an optimizer"):
        freeze(Hollow(), HALF)
    model, optimizer = linear(lr=0.1)
    with pytest.raises(TypeError, match=r"not a <class '.*ScheduleFreeWrapper'>"):
        freeze(schedulefree.ScheduleFreeWrapper(optimizer), HALF)
    with pytest.raises(TypeError, match="LBFGS cannot be frozen"):
        freeze(HandsOn(optim.LBFGS(model.parameters())), HALF)


SCHEDULE_FREE = [
    partial(schedulefree.AdamWScheduleFree, lr=0.1, weight_decay=0.1),
    partial(schedulefree.AdamWScheduleFree, lr=0.1, foreach=False),
    partial(schedulefree.SGDScheduleFree, lr=0.1),
    partial(schedulefree.RAdamScheduleFree, lr=0.1),
]


@pytest.mark.parametrize("kind", SCHEDULE_FREE)
@pytest.mark.parametrize("training", [True, False])
def test_schedule_free_optimizers_hold_still_between_steps_too(kind, training):
    model, optimizer = linear(kind)
    optimizer.train()
    for _ in range(5):
        once(model, optimizer)
    if not training:
        optimizer.eval()
    freeze(optimizer, HALF)
    optimizer.train()
    for act in (partial(once, model, optimizer), optimizer.eval, optimizer.train):
        assert torch.equal(moves(model, act), ~HALF["weight"])
    unfreeze(optimizer)
    assert not {"train", "eval"} & vars(optimizer).keys()


class Lookahead(optim.Optimizer):
    """Slow weights, copied back every k steps, around an optimizer; without hooks of its own."""

    def __init__(self, optimizer, k=2, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def zero_grad(self):
        self.optimizer.zero_grad()

    @torch.no_grad()
    def look(self):
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p]["slow"]
                slow.add_(p - slow, alpha=self.alpha)
                p.data.copy_(slow)

    def step(self):
        self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            self.look()


class HookedLookahead(Lookahead):
    """The same, as an optimizer whose constructor has run."""

    def __init__(self, optimizer):
        optim.Optimizer.__init__(self, optimizer.param_groups, {})
        super().__init__(optimizer)


class SAM(optim.Optimizer):
    """Two half steps around a second backward pass, with decay in the optimizer inside."""

    def __init__(self, params, kind, rho=0.5, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = kind(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.square() * p.grad + 0.01)  # no gradient at all would move this

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()

    def step(self, closure=None):
        self.first_step()
        self.second_step()


class Averaging(optim.SGD):
    """Averages beside the parameters, to be exchanged with them; also for the time of a block."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.averages = [torch.full_like(p, 7.0) for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def swap(self):
        for p, average in zip(self.param_groups[0]["params"], self.averages, strict=True):
            old = p.clone()
            p.copy_(average)
            average.copy_(old)

    @contextmanager
    def averaged(self):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        for p, average in zip(self.param_groups[0]["params"], self.averages, strict=True):
            p.data.copy_(average)
        try:
            yield
        finally:
            for p, old in zip(self.param_groups[0]["params"], before, strict=True):
                p.data.copy_(old + 1)


@pytest.mark.parametrize("kind", [Lookahead, HookedLookahead])
@pytest.mark.parametrize("inside", KINDS)
def test_lookahead_holds_still(kind, inside):
    model, optimizer = linear(KINDS[inside], lr=0.1)
    looking = kind(optimizer)
    for _ in range(3):
        once(model, looking)
    freeze(looking, HALF)
    for _ in range(4):
        assert torch.equal(moves(model, partial(once, model, looking)), ~HALF["weight"])
    assert torch.equal(moves(model, looking.look), ~HALF["weight"])
    unfreeze(looking)
    assert not {"step", "look"} & vars(looking).keys()
    assert moves(model, partial(once, model, looking)).all()


@pytest.mark.parametrize("scheduled_first", [True, False])
def test_a_scheduler_may_stand_before_the_step_that_is_guarded(scheduled_first):
    model, optimizer = linear(lr=0.1)
    looking = Lookahead(optimizer)
    looking.defaults = {}
    if not scheduled_first:
        freeze(looking, HALF)
    schedule = optim.lr_scheduler.StepLR(looking, 1, gamma=0.5)
    if scheduled_first:
        freeze(looking, HALF)
    for t in range(2):
        assert torch.equal(moves(model, partial(once, model, looking)), ~HALF["weight"])
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5 ** (t + 1)
    assert looking._opt_called
    unfreeze(looking)
    assert moves(model, partial(once, model, looking)).all()
    assert hasattr(looking.step, "_wrapped_by_lr_sched")


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_sharpness_aware_half_steps_hold_still(kind):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = SAM(model.named_parameters(), kind, lr=0.1, weight_decay=0.1)
    once(model, optimizer)
    freeze(optimizer, HALF)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model)
        assert torch.equal(moves(model, optimizer.first_step), ~HALF["weight"])
        backward(model)
        assert torch.equal(moves(model, optimizer.second_step), ~HALF["weight"])
    assert torch.equal(moves(model, partial(once, model, optimizer)), ~HALF["weight"])
    unfreeze(optimizer)
    assert moves(model, partial(once, model, optimizer)).all()


def test_exchanged_averages_leave_what_is_frozen():
    model, optimizer = linear(Averaging, lr=0.1)
    freeze(optimizer, HALF)
    assert torch.equal(moves(model, optimizer.swap), ~HALF["weight"])
    before = model.weight.detach().clone()
    with optimizer.averaged():
        assert torch.equal(model.weight != before, ~HALF["weight"])
    assert torch.equal(model.weight == before, HALF["weight"])
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert torch.equal(model.weight == before, HALF["weight"])


@pytest.mark.parametrize("average", [None, optim.swa_utils.get_ema_multi_avg_fn(0.9)])
def test_averages_that_begin_after_the_freeze_have_the_same_bits(average):
    model, optimizer = linear(optim.AdamW, lr=0.1)
    freeze(optimizer, HALF)
    averages = optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
    for _ in range(4):
        once(model, optimizer)
        averages.update_parameters(model)
    same = averages.module.weight == model.weight
    assert torch.equal(same, HALF["weight"])


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (2,)])
def test_the_mask_of_a_replaced_parameter_is_refused(shape):
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    new = nn.Parameter(torch.ones(shape))
    optimizer.param_groups[0]["params"][0] = new
    state = copy.copy(optimizer.param_groups[0]["frozen_masks"])
    new.grad = torch.ones(shape)
    with pytest.raises(RuntimeError, match=r"'weight' has been replaced .* freeze\(optimizer\)"):
        optimizer.step()
    assert (new == 1).all()
    match = rf"'weight' has shape \(2, 3\), the parameter \({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=match):
        freeze(optimizer)
    assert optimizer.param_groups[0]["frozen_masks"] == state
    unfreeze(optimizer)
    optimizer.step()
    assert (new != 1).all()


def test_a_replaced_parameter_of_the_same_shape_takes_the_mask_over():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    new = nn.Parameter(torch.ones(2, 3))
    optimizer.param_groups[0]["params"][0] = new
    freeze(optimizer)
    new.grad = torch.ones(2, 3)
    optimizer.step()
    assert torch.equal(new == 1, HALF["weight"])


def finetuning():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    class Finetuning(callbacks.BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module)

        def finetune_function(self, module, epoch, optimizer):
            self.make_trainable(module)
            named = [(f"0.{name}", p) for name, p in module.named_parameters()]
            optimizer.add_param_group({"params": named, "lr": 0.01})

    return Finetuning()


@pytest.mark.parametrize("named", [False, True])
def test_lightning_adds_a_group_that_trains_until_it_is_frozen(named):
    """Its own method knows no names, and so goes with an optimizer that knows none."""
    callback = finetuning()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    callback.freeze_before_training(model[0])
    head = [(f"1.{name}", p) for name, p in model[1].named_parameters()]
    optimizer = optim.AdamW(head if named else model[1].parameters(), lr=0.1)
    freeze(optimizer, {model[1].weight: HALF["weight"]})
    once(model, optimizer)
    if named:
        callback.finetune_function(model[0], 1, optimizer)
    else:
        callback.unfreeze_and_add_param_group(model[0], optimizer)
    assert torch.equal(moves(model[1], partial(once, model, optimizer)), ~HALF["weight"])
    assert moves(model[0], partial(once, model, optimizer)).all()
    mask = torch.eye(3).bool()
    freeze(optimizer, {model[0].weight: mask}, add=True)
    assert torch.equal(moves(model[0], partial(once, model, optimizer)), ~mask)
    assert torch.equal(moves(model[1], partial(once, model, optimizer)), ~HALF["weight"])
