"""Parameters that several layers, or functions, use, now or later; what else a model does."""

import copy

import pytest
import torch
from torch import nn

from parameter_ordering.gradients.per_sample import PerSampleGradients
from tests.gradients.per_sample import (
    SPECTRAL,
    Average,
    Changing,
    Checkpointed,
    Gated,
    Hooked,
    Keyword,
    Late,
    LateAxis,
    Own,
    Reused,
    S,
    Tied,
    Transposed,
    Twice,
    brute_force,
    check,
    check_factor,
    shared_module,
    shared_name,
    squared_error,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    ("kind", "by_layer"),
    [
        (Tied, {"a.weight", "a.bias", "b.bias", "c.weight", "c.bias"}),
        (Twice, {"a.weight", "a.bias", "c.weight", "c.bias"}),
        (Reused, {"a.bias", "c.weight", "c.bias"}),
        (Own, {"c.weight", "c.bias"}),
        (Keyword, {"a.weight", "a.bias", "c.weight", "c.bias"}),
        (Hooked, {"a.weight", "a.bias", "c.weight", "c.bias"}),
        (Checkpointed, {"a.weight", "a.bias", "c.weight", "c.bias"}),
    ],
)
def test_what_no_layer_alone_accounts_for_goes_another_way(kind, by_layer):
    check(kind(), torch.randn(S, 4), by_layer=by_layer)


def test_a_weight_used_again_for_other_samples_only():
    check(Gated(), Gated.x.double(), by_layer={"a.bias", "c.weight", "c.bias"})


@pytest.mark.parametrize("build", [shared_module, shared_name, Tied])
def test_what_has_several_names_stays_the_same_object(build):
    model = build()
    before = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    check(model, torch.randn(S, 4))
    after = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    assert after == before


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", [*SPECTRAL, "average"])
def test_state_is_that_of_one_run_of_the_model(kind, first_only):
    if kind == "average":
        model, x = Average(), torch.randn(S, 4)
    else:
        layer, shape = SPECTRAL[kind]
        layer = nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer).double())
        model, x = nn.Sequential(layer, nn.Tanh()), torch.randn(S, *shape)
    twin, y = copy.deepcopy(model), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for _ in range(3):
        gradients(squared_error, x, y)
        twin(x)
        for have, want in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(have, want)
        if kind == "average":
            assert model.count == twin.count
            assert torch.equal(model.kept, twin.kept)


@pytest.mark.parametrize("more", ["again", "shared"])
@pytest.mark.parametrize("first_only", [False, True])
def test_use_that_changes_later(more, first_only):
    model, x, y = Changing(more), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for model.told in (False, True, True, False):
        want = brute_force(model, squared_error, x, y)
        _, _, g = gradients(squared_error, x, y)
        for name in g:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])


@pytest.mark.parametrize("part", ["lstm", "again"])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_a_part_that_is_taken_up_later(part, first_only):
    model, x, y = Late(part), torch.randn(S, 3, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for model.told in (False, True, False, True):
        want = brute_force(model, squared_error, x, y)
        _, g_S, g = gradients(squared_error, x, y)
        assert g.keys() == g_S.keys()
        assert gradients.by_layer == {"a.weight", "a.bias", "c.weight", "c.bias"}
        for name in g:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])


@pytest.mark.parametrize("first_only", [False, True])
def test_samples_that_move_to_another_axis_later(first_only):
    model, x, y = LateAxis(), torch.randn(S, 3, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for model.told in (False, True, False):
        want = brute_force(model, squared_error, x, y)
        _, _, g = gradients(squared_error, x, y)
        for name in g:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)


def test_samples_on_another_axis_go_another_way():
    by_layer = {"a.weight", "a.bias", "c.weight", "c.bias"}
    check(Transposed(), torch.randn(S, S, 3), by_layer=by_layer)


@pytest.mark.parametrize("before", [0, 1])
def test_parameters_that_stop_training(before):
    model, x, y = Twice(), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), True, 0, True)
    for _ in range(before):
        gradients(squared_error, x, y)
    model.a.weight.register_post_accumulate_grad_hook(lambda w: None)
    model.a.requires_grad_(False)
    model.c.bias.requires_grad_(False)
    _, _, g = gradients(squared_error, x, y)
    assert g.keys() == {"c.weight"}
    assert model.a.weight.grad is None
