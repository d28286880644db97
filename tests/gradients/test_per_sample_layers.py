"""Layers by their rules against one backward pass a sample."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from parameter_ordering.gradients import factors
from parameter_ordering.gradients.per_sample import PerSampleGradients
from tests.gradients.per_sample import (
    LAYERS,
    NOISES,
    ChannelsFirst,
    First,
    Listed,
    Lookups,
    Noisy,
    OfEnsemble,
    OfList,
    OfNoSample,
    OfSequences,
    Pair,
    Reshaped,
    S,
    Split,
    brute_force,
    check,
    check_factor,
    patched,
    squared_error,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_go_the_first_way(name):
    model, shape = copy.deepcopy(LAYERS[name][0]).double(), LAYERS[name][1]
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.1 * torch.randn_like(w))
    check(model, torch.randn(S, *shape), by_layer=[n for n, _ in model.named_parameters()])


@pytest.mark.parametrize("name", ["linear", "linear, sequence", "conv1d", "conv2d, depthwise"])
def test_blocks(name, monkeypatch):
    """What is done at once in the tests above goes by in many blocks."""
    monkeypatch.setattr(factors, "_block", lambda like: 8)
    test_layers_go_the_first_way(name)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"sparse": True}, {"max_norm": 1.0}])
def test_embedding(shape, options):
    model = nn.Embedding(4, 3, **options)
    x = torch.randint(0, 4, (S, *shape))
    model(x)  # max_norm shortens the weight where it is looked up
    check(model, x, by_layer=["weight"])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_embedding_called_twice(sparse, fail):
    by_layer = {"a.weight", "c.weight", "c.bias"}
    check(Lookups(sparse, fail), torch.randint(0, 4, (S, 2)), by_layer=by_layer)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 2, batch_first=True), First()), (4, 3)),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (3, 4)),
        (lambda: nn.ConvTranspose2d(2, 3, 3), (2, 3, 3)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), (3,)),
    ],
    ids=["lstm", "transformer", "transposed convolution", "weight norm"],
)
def test_layers_without_factors_go_another_way(build, shape):
    gradients = check(build(), torch.randn(S, *shape))
    assert gradients.by_layer < set(gradients.parameters)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: ChannelsFirst(3), (3, 4, 2)),
        (lambda: nn.Sequential(Pair(4, 3), First()), (4,)),
        (lambda: Reshaped(4, 4), (4,)),
        (patched, (4,)),
        (lambda: nn.Sequential(Split(), OfList(4, 3)), (4,)),
    ],
    ids=["axis", "tuple", "shape", "patched", "list"],
)
def test_a_layer_with_a_forward_of_its_own_has_no_rule(build, shape):
    check(build(), torch.randn(S, *shape), by_layer=set())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_modules_go_another_way():
    model = nn.Sequential(torch.jit.script(Listed()), nn.Tanh(), nn.Linear(3, 2))
    check(model, torch.randn(S, 4), by_layer={"2.weight", "2.bias"})


@pytest.mark.parametrize(
    ("build", "shape"), [(lambda: OfEnsemble(3), (3,)), (lambda: OfSequences(3, 4), (5, 3))]
)
def test_an_ensemble_of_layers_without_factors(build, shape):
    model, x = build(), torch.randn(2, S, *shape)

    def loss_fn(output, y):
        return output.pow(2).mean(1).sum()

    gradients = PerSampleGradients(model, ["weight", "bias"], False, 1, True)
    _, _, g = gradients(loss_fn, x, x)
    for i in range(S):
        model.zero_grad()
        loss_fn(model(x[:, i : i + 1]), x).backward()
        torch.testing.assert_close(g["weight"].rows()[:, i], model.weight.grad)


def test_layers_without_an_axis_of_samples():
    check(OfNoSample(), torch.randn(S, S), by_layer=set())


def test_a_hook_of_all_modules_may_change_what_ours_sees():
    def pair(layer, args, output):
        return (output, None) if isinstance(layer, nn.Linear) else None

    hook = nn.modules.module.register_module_forward_hook(pair)
    try:
        check(nn.Sequential(nn.Linear(4, 3), First()), torch.randn(S, 4))
    finally:
        hook.remove()


def test_a_forward_that_changes_later():
    model, x, y = nn.Linear(4, 4), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), False, 0, True)
    gradients(squared_error, x, y)
    model.forward = partial(Reshaped.forward, model)
    want = brute_force(model, squared_error, x, y)
    _, _, g = gradients(squared_error, x, y)
    for name in want:
        check_factor(g[name], want[name])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("first_only", [False, True])
def test_random_layers_keep_the_masks_of_the_batch(noise, first_only):
    model, x, y = Noisy(NOISES[noise]), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for seed in range(3):
        # The same graph for all samples: their losses apart, then each backward pass.
        torch.manual_seed(seed)
        output, want = model(x), {name: [] for name, _ in model.named_parameters()}
        after = torch.get_rng_state()
        for i in range(S):
            model.zero_grad()
            loss_i = squared_error(output[i : i + 1], y[i : i + 1])
            loss_i.backward(retain_graph=True)
            for name, w in model.named_parameters():
                want[name].append(w.grad)
        model.zero_grad()
        torch.manual_seed(seed)
        _, _, g = gradients(squared_error, x, y)
        assert torch.equal(torch.get_rng_state(), after)
        assert gradients.by_layer == {"a.weight", "a.bias", "c.weight", "c.bias"}
        for name in want:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], torch.stack(want[name]))


def test_an_output_without_an_axis_of_samples():
    def loss_fn(output, y):
        return squared_error(output.view(len(y), -1), y)

    model = nn.Sequential(nn.Linear(4, 2), nn.Flatten(0))
    check(model, torch.randn(S, 4), loss_fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    """By layer in any type; the accumulator is float32 at least."""
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(S, 20), torch.randn(S)
    with torch.no_grad():  # what the types can hold
        for w in model.parameters():
            w.copy_(w.to(dtype))
    x, y = x.to(dtype).double(), y.to(dtype).double()
    want = brute_force(model, squared_error, x, y)
    gradients = PerSampleGradients(model.to(dtype), want, False, 0, True)
    _, g_S, g = gradients(squared_error, x.to(dtype), y.to(dtype))
    assert gradients.by_layer == want.keys()
    for name in want:
        assert g_S[name].dtype == g[name].rows().dtype == torch.float32
        error = (g[name].rows() - want[name]).norm() / want[name].norm()
        assert error < 10 * torch.finfo(dtype).eps


def test_autocast():
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)).float()
    x, y = torch.randn(S, 20).float(), torch.randn(S).float()
    want = brute_force(model, squared_error, x, y)
    gradients = PerSampleGradients(model, want, False, 0, True)

    def loss_fn(output, y):
        return squared_error(output.float(), y)

    with torch.autocast("cpu", torch.bfloat16):
        _, _, g = gradients(loss_fn, x, y)
    assert gradients.by_layer == want.keys()
    for name in want:
        assert (g[name].rows() - want[name]).norm() / want[name].norm() < 0.05
