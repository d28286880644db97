"""Masks in an optimizer: kept as they are, saved with it, refused by name where they are wrong."""

import copy
import re

import pytest
import torch
from torch import nn, optim

from parameter_ordering.freezing import freeze

HALF = {"weight": torch.tensor([[True, False, True], [False, True, False]])}


def linear(kind=optim.SGD, **options):
    model = nn.Linear(3, 2)
    return model, kind(model.named_parameters(), **options)


def test_masks_stay_bool_in_a_checkpoint():
    w = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = optim.SGD([w])
    mask = torch.tensor([True, False, True])
    freeze(optimizer, {w: mask})
    other = optim.SGD([nn.Parameter(torch.ones(3, dtype=torch.float16))])
    freeze(other)
    other.load_state_dict(optimizer.state_dict())
    [saved] = other.state_dict()["param_groups"][0]["frozen_masks"].values()
    assert saved.dtype == torch.bool
    assert torch.equal(saved, mask)


def test_a_checkpoint_whose_masks_do_not_fit_is_refused():
    _, optimizer = linear(lr=0.1)
    freeze(optimizer, HALF)
    checkpoint = optimizer.state_dict()
    masks = {"weight": torch.ones(3, 2).bool(), "bias": torch.zeros(2).bool()}
    checkpoint["param_groups"][0] |= {"lr": 9.0, "frozen_masks": masks}
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 2\), the parameter \(2, 3\)"):
        optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(optimizer.param_groups[0]["frozen_masks"]["weight"], HALF["weight"])


WRONG = [
    (
        {"weight": torch.ones(3, 2).bool()},
        ValueError,
        "mask of parameter 'weight' has shape (3, 2), the parameter (2, 3)",
    ),
    ({"weight": torch.tensor(True)}, ValueError, "has shape (), the parameter (2, 3)"),
    (
        {"weight": torch.ones(2, 3)},
        TypeError,
        "mask of parameter 'weight' must be a tensor of torch.bool, not torch.float32",
    ),
    (
        {"bias": [True, False]},
        TypeError,
        "mask of parameter 'bias' must be a tensor of torch.bool, not <class 'list'>",
    ),
    ({"wieght": torch.ones(2, 3).bool()}, ValueError, "no parameter 'wieght'; it has weight, bias"),
    ({3: torch.ones(2, 3).bool()}, ValueError, "no parameter 3"),
    (
        {nn.Parameter(torch.ones(2)): torch.ones(2).bool()},
        ValueError,
        "does not have this parameter",
    ),
    (torch.ones(2, 3).bool(), TypeError, "must map names or parameters to tensors"),
]


@pytest.mark.parametrize(("mask", "error", "message"), WRONG)
def test_a_wrong_mask_is_named_and_changes_nothing(mask, error, message):
    model, optimizer = linear(optim.Adam, lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    freeze(optimizer, HALF)
    if isinstance(mask, dict):  # What is right in it must not be taken over either.
        mask = {"bias": torch.ones(2).bool()} | mask
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(error, match=re.escape(message)):
        freeze(optimizer, mask)
    assert optimizer.param_groups[0]["frozen_masks"].keys() == {"weight"}
    assert torch.equal(optimizer.param_groups[0]["frozen_masks"]["weight"], HALF["weight"])
    torch.testing.assert_close(optimizer.state_dict()["state"], moments, rtol=0, atol=0)


def test_a_wrong_mask_leaves_an_optimizer_without_hooks():
    _, optimizer = linear(lr=0.1)
    _, fresh = linear(lr=0.1)
    with pytest.raises(ValueError, match="no parameter"):
        freeze(optimizer, {"nobody": torch.tensor(True)})
    assert optimizer.__dict__.keys() == fresh.__dict__.keys()


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_mask_of_integers_is_refused(kind):
    """They have no gradient and so stand still, but a hook for it cannot be registered either."""
    count, w = nn.Parameter(torch.arange(3), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = kind([("w", w), ("count", count)], lr=0.1)
    mask = torch.tensor([True, False, False])
    with pytest.raises(TypeError, match=r"'count' is of torch.int64, .*: it needs no mask"):
        freeze(optimizer, {"w": mask, "count": mask})
    assert not hasattr(optimizer, "_freezing")
    assert not w._post_accumulate_grad_hooks


def test_names_must_be_known_and_single():
    model, unnamed = nn.Linear(3, 2), None
    unnamed = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"has no names, so not 'weight': build it from model.named"
    ):
        freeze(unnamed, HALF)
    with pytest.raises(ValueError, match=r"of parameter 0 has shape \(2,\)"):
        freeze(unnamed, {model.weight: torch.ones(2).bool()})
    other = nn.Linear(3, 2)
    groups = [{"params": list(m.named_parameters())} for m in (model, other)]
    twice = optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match="2 parameters named 'weight': key the mask by the"):
        freeze(twice, HALF)
    freeze(twice, {other.weight: HALF["weight"]})
    named = optim.SGD(model.named_parameters(), lr=0.1)
    with pytest.raises(ValueError, match="'weight' stands twice"):
        freeze(named, HALF | {model.weight: HALF["weight"]})
