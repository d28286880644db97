"""Which losses and models are taken for ones that treat each sample by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parameter_ordering.gradients.coupling import check_loss, check_model


def minibatch(S):
    torch.manual_seed(0)
    return torch.randn(S, 4), torch.arange(S) % 4


@pytest.mark.parametrize("S", [2, 5, 64, 65, 300])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_means_and_sums(S, reduction):
    output, y = minibatch(S)
    loss_fn, mean = nn.CrossEntropyLoss(reduction=reduction), reduction == "mean"
    check_loss(loss_fn, output, y, 0, mean)
    with pytest.raises(ValueError, match="give the other reduction="):
        check_loss(loss_fn, output, y, 0, not mean)


@pytest.mark.parametrize("S", [5, 300])
@pytest.mark.parametrize("settings", [{"weight": torch.arange(1.0, 5.0)}, {"ignore_index": 3}])
def test_weights_that_depend_on_the_minibatch(S, settings):
    """Neither a mean nor a sum over samples, and nothing that their shares could not say."""
    output, y = minibatch(S)
    check_loss(nn.CrossEntropyLoss(**settings), output, y, 0, mean=True)
    with pytest.raises(ValueError, match="give the other reduction="):
        check_loss(nn.CrossEntropyLoss(reduction="sum", **settings), output, y, 0, mean=True)


def test_a_loss_that_squeezes_the_samples_away():
    output, y = torch.randn(5, 1), torch.rand(5)
    with pytest.raises(ValueError, match=r"S = 1: .*squeeze\(\)"):
        check_loss(
            lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(), y), output, y, 0, True
        )


def test_samples_on_a_later_axis():
    """An ensemble of two: the loss is summed over models, and a mean over samples."""
    output, y = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    check_loss(lambda o, y: (o - y).square().mean((1, 2)).sum(), output, y, 1, mean=True)
    with pytest.raises(ValueError, match="not the mean over samples"):
        check_loss(lambda o, y: (o - y).square().sum(), output, y, 1, mean=True)


def test_a_loss_that_one_sample_does_not_have():
    """A mean over pairs: for one sample 0 / 0."""
    output, y = minibatch(5)

    def loss_fn(o, y):
        return (o.unsqueeze(1) - o).square().sum() / torch.tensor(len(o) * (len(o) - 1))

    check_loss(loss_fn, output, y, 0, mean=True)


@pytest.mark.parametrize(
    ("model", "couples"),
    [
        (nn.LayerNorm(4), False),
        (nn.BatchNorm1d(4), True),
        (lambda x: x - x.mean(0), True),
        (lambda x: x.cumsum(0), False),  # the first does not see the others
        (lambda x: x.flip(0).cumsum(0).flip(0), True),
        (lambda x: x.roll(1, 0), True),
    ],
)
def test_models(model, couples):
    x, y = minibatch(5)
    x.requires_grad_()
    if couples:
        with pytest.raises(ValueError, match="the model couples the samples"):
            check_model(F.cross_entropy, model(x), y, x, 0)
    else:
        check_model(F.cross_entropy, model(x), y, x, 0)


def test_what_has_no_gradient_is_not_seen():
    """A loss at its least, and a model that gives zero whatever comes in: undecided."""
    x, y = minibatch(5)
    x.requires_grad_()
    assert check_loss(nn.CrossEntropyLoss(), x, y, 0, mean=True)
    assert not check_loss(lambda o, y: (0 * o).sum(), x, y, 0, mean=True)
    assert check_model(F.cross_entropy, x.sin(), y, x, 0)
    assert check_model(F.cross_entropy, x.detach().requires_grad_(), y, x, 0)  # nor ever will be
    assert not check_model(F.cross_entropy, 0 * (x - x.mean(0)), y, x, 0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_named(bad):
    x, y = minibatch(5)
    leaf, worse = x.clone().requires_grad_(), x.clone()
    worse[2, 0] = bad
    with pytest.raises(ValueError, match="the loss of the minibatch is not finite"):
        check_loss(F.cross_entropy, worse, y, 0, mean=True)
    with pytest.raises(ValueError, match="respect to the output is not finite"):
        check_loss(lambda o, y: (o - o.detach()).abs().sqrt().sum(), x, y, 0, mean=False)
    with pytest.raises(ValueError, match="respect to x is not finite"):
        check_model(F.cross_entropy, (leaf - leaf.detach()).abs().sqrt(), y, leaf, 0)


def test_an_infinite_output_may_have_a_finite_loss():
    """As that of a class which a mask excludes."""
    x, y = minibatch(5)
    x = x.masked_fill((torch.arange(4) == 1) & (y != 1).unsqueeze(1), -float("inf"))
    assert check_loss(F.cross_entropy, x, y, 0, mean=True)
