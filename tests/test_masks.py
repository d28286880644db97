"""Masks by module, name, pattern and rows; added to those that stand; shared out to optimizers."""

import re

import pytest
import torch
from torch import nn, optim

from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.granularity import to_parameters
from parameter_ordering.masks import mask_of
from parameter_ordering.skipping import skip_gradients


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})


def names(model):
    return [name for name, _ in model.named_parameters()]


BODY = ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]
HEAD = ["head.weight", "head.bias"]
WHICH = {
    "a module": (lambda m: [m["body"]], BODY),
    "a module's name": (lambda m: ["body"], BODY),
    "a parameter": (lambda m: [m["head"].bias], ["head.bias"]),
    "a name": (lambda m: ["head.bias"], ["head.bias"]),
    "a pattern": (lambda m: ["*.bias"], ["body.0.bias", "body.2.bias", "head.bias"]),
    "classes of letters": (lambda m: ["body.[02].w*"], ["body.0.weight", "body.2.weight"]),
    "all": (lambda m: [m], BODY + HEAD),
    "several": (lambda m: ["head.bias", m["body"], "body.0.*"], [*BODY, "head.bias"]),
}
WRAPS = {
    "bare": lambda m: m,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "parallel": lambda m: nn.ModuleDict({"module": m}),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("case", WHICH)
def test_what_is_named_is_masked_whole(case, wrap):
    model = network()
    which, expected = WHICH[case]
    wrapped = WRAPS[wrap](model)
    mask = mask_of(wrapped, *which(model))
    parameters = dict(wrapped.named_parameters())
    prefix = {"bare": "", "compiled": "_orig_mod.", "parallel": "module."}[wrap]
    assert sorted(mask) == sorted(prefix + name for name in expected)
    for name, each in mask.items():
        assert each.shape == parameters[name].shape
        assert each.dtype == torch.bool
        assert each.all()
    freeze(optim.SGD(wrapped.named_parameters(), lr=0.1), mask)


def test_rows_and_columns_are_broadcast():
    model = network()
    rows, columns = torch.tensor([[True], [False]]), torch.tensor([False, True, True, False])
    mask = mask_of(model, {"head.weight": rows}, {model["head"].weight: columns}, "head.bias")
    assert torch.equal(mask["head.weight"], rows | columns)
    assert mask["head.bias"].all()
    assert mask["head.weight"].is_contiguous()
    both = mask_of(model, {"*.weight": torch.tensor(True), "body.2.*": columns})
    assert torch.equal(both["body.2.bias"], columns)
    assert both["body.2.weight"].all()


WRONG = [
    ("neck", ValueError, "'neck' names no parameter of the model; it has body.0.weight,"),
    (nn.Linear(1, 1), ValueError, "this Linear names no parameter of the model"),
    (
        {"head.weight": torch.tensor([True, False, True])},
        ValueError,
        "shape (3,) cannot be broadcast to 'head.weight', which has (2, 4): rows of a matrix",
    ),
    ({"head.bias": torch.ones(2)}, TypeError, "'head.bias' must be a tensor of torch.bool, not"),
    ({"head.bias": True}, TypeError, "torch.bool, not <class 'bool'>"),
]


@pytest.mark.parametrize(("which", "error", "message"), WRONG)
def test_what_is_not_there_or_does_not_fit_is_refused(which, error, message):
    with pytest.raises(error, match=re.escape(message)):
        mask_of(network(), which)


def standing(optimizer):
    return {
        name: mask
        for group in optimizer.param_groups
        for name, mask in group["frozen_masks"].items()
    }


def step(model, *optimizers):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model["head"](model["body"](torch.randn(8, 3))).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return {name: p != before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_masks_are_added_to_those_that_stand(kind):
    model = network()
    optimizer = kind(model.named_parameters(), lr=0.1)
    rows = torch.tensor([[True], [False]])
    freeze(optimizer, mask_of(model, {"head.weight": rows}, "body.0"))
    step(model, optimizer)
    columns = torch.tensor([True, False, False, False])
    freeze(optimizer, mask_of(model, {"head.weight": columns}, "head.bias"), add=True)
    moved = step(model, optimizer)
    assert torch.equal(moved["head.weight"], ~(rows | columns))
    still = [name for name in names(model) if not moved[name].any()]
    assert still == ["body.0.weight", "body.0.bias", "head.bias"]
    freeze(optimizer, mask_of(model, "head"))
    assert sorted(standing(optimizer)) == sorted(HEAD)
    freeze(optimizer, {}, add=True)
    assert sorted(standing(optimizer)) == sorted(HEAD)
    freeze(optimizer, {})
    assert not standing(optimizer)


def test_one_mask_is_shared_out_to_several_optimizers():
    model = network()
    named = list(model.named_parameters())
    optimizers = [optim.AdamW(named[:4], lr=0.1), optim.SGD(named[4:], lr=0.1)]
    freeze(optimizers, mask_of(model, "*.weight"))
    moved = step(model, *optimizers)
    assert [name for name in moved if moved[name].any()] == [n for n in moved if "bias" in n]
    with pytest.raises(ValueError, match="no parameter 'neck'; it has body"):
        freeze(optimizers, {"neck": torch.ones(1).bool(), "head.bias": torch.ones(2).bool()})
    with pytest.raises(ValueError, match=r"'head.bias' has shape"):
        freeze(optimizers, {"body.0.bias": torch.ones(4).bool(), "head.bias": torch.ones(3).bool()})
    assert [sorted(standing(o)) for o in optimizers] == [
        ["body.0.weight", "body.2.weight"],
        ["head.weight"],
    ]
    unfreeze(optimizers)
    assert all(each.all() for each in step(model, *optimizers).values())


def test_the_same_names_in_several_optimizers_are_told_apart_by_the_parameters():
    models = [nn.Linear(2, 1), nn.Linear(2, 1)]
    optimizers = [optim.SGD(model.named_parameters(), lr=0.1) for model in models]
    with pytest.raises(ValueError, match="2 parameters named 'weight': key the mask by the"):
        freeze(optimizers, {"weight": torch.ones(1, 2).bool()})
    freeze(optimizers, {models[1].weight: torch.ones(1, 2).bool()})
    assert [list(standing(o)) for o in optimizers] == [[], ["weight"]]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_with_and_without_wrappers_are_the_same(prefix):
    model = network()
    inside = [(prefix + name, p) for name, p in model.named_parameters()]
    mask = mask_of(model, "head")
    wrapped = {prefix + name: each for name, each in mask.items()}
    for named, given in ((model.named_parameters(), wrapped), (inside, mask), (inside, wrapped)):
        optimizer = optim.SGD(named, lr=0.1)
        freeze(optimizer, given)
        moved = step(model, optimizer)
        assert [name for name in moved if not moved[name].any()] == HEAD
        unfreeze(optimizer)
    assert list(to_parameters(mask, dict(inside))) == list(wrapped)
    with skip_gradients(inside, mask):
        assert [name for name, p in inside if not p.requires_grad] == list(wrapped)


def test_a_name_that_wrappers_make_ambiguous_goes_by_its_letters():
    model = nn.ModuleDict({"module": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1)})
    model.weight = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD(model.named_parameters(), lr=0.1)
    freeze(optimizer, {"module.weight": torch.ones(1, 1).bool()})
    assert list(standing(optimizer)) == ["module.weight"]
    freeze(optimizer, {"weight": torch.ones(1).bool()})
    assert list(standing(optimizer)) == ["weight"]
    with pytest.raises(ValueError, match=r"2 parameters named '_orig_mod.weight'"):
        freeze(optimizer, {"_orig_mod.weight": torch.ones(1).bool()})
