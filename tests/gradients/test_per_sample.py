"""Per-sample gradients of every kind of model against brute force: one backward pass per sample.

Also which of the three ways each parameter goes, that nothing is left behind on the model, and
that what has no per-sample gradient is refused.
"""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parameter_ordering.gradients import factors
from parameter_ordering.gradients.per_sample import PerSampleGradients

S = 6


pytestmark = pytest.mark.usefixtures("double")


def brute_force(model, loss_fn, x, y):
    """The gradients (S, *shape) of each parameter, sample by sample; zero where there is none."""
    rows = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        loss_fn(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, w in model.named_parameters():
            rows[name].append(torch.zeros_like(w) if w.grad is None else w.grad.to_dense())
    model.zero_grad()
    return {name: torch.stack(g) for name, g in rows.items()}


def squared_error(output, y):
    """Mean over samples of a sum that weighs all outputs differently."""
    weights = torch.linspace(0.5, 1.5, output[0].numel()).view(1, *output.shape[1:])
    return (
        (weights * (output - y.view(-1, *[1] * (output.dim() - 1))) ** 2).flatten(1).sum(1).mean()
    )


def check(model, x, loss_fn=squared_error, y=None, by_layer=None):
    """All ways against brute force, twice: the first use is a trial, the next ones are not."""
    y = torch.randn(len(x)) if y is None else y
    want = brute_force(model, loss_fn, x, y)
    model.zero_grad()
    loss_fn(model(x), y).backward()
    batch = {name: w.grad for name, w in model.named_parameters()}
    model.zero_grad()
    for first_only in (False, True):
        gradients = PerSampleGradients(model, want, first_only, 0, True)
        for _ in range(2):
            loss, _, g = gradients(loss_fn, x, y)
            assert torch.allclose(loss, loss_fn(model(x), y))
            assert g.keys() == {name for name, grad in batch.items() if grad is not None}
            for name in g:
                grad = model.get_parameter(name).grad
                assert torch.equal(grad.to_dense(), batch[name].to_dense())
                torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
                if not first_only:
                    check_factor(g[name], want[name])
        if by_layer is not None:
            assert gradients.by_layer == set(by_layer)
    return gradients


def check_factor(factor, want):
    """All that a factor gives against the rows that it stands for."""
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(factor.rows(), want, **close)
    torch.testing.assert_close(factor.total(), want.sum(0), **close)
    C_0, g_S, alpha = torch.rand_like(want[0]), want.mean(0), 0.4
    C = C_0.clone()
    factor.add_all_(C, g_S, alpha)
    torch.testing.assert_close(C, C_0 + alpha * (want - g_S).square().mean(0), **close)
    C = C_0.clone()
    factor.add_first_(C, g_S, alpha)
    torch.testing.assert_close(C, C_0 + alpha * (want[0] - g_S) ** 2, **close)


LAYERS = {
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), (5,)),
    "linear, after a change in place": (
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4)),
        (5,),
    ),
    "linear, sequence": (nn.Linear(5, 4), (7, 5)),
    "linear, two axes of positions": (nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 11)),
    "conv1d, same": (nn.Conv1d(4, 6, 4, padding="same", groups=2), (4, 11)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (3, 7, 8)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 6, 6)),
    "conv2d, reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 6)),
    "conv2d, circular same": (
        nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="circular"),
        (2, 5, 6),
    ),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(27, 4),
        ),
        (1, 8, 8),
    ),
    "layer norm": (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4, eps=0.1)), (5,)),
    "layer norm, two axes": (nn.LayerNorm((3, 5)), (2, 3, 5)),
    "rms norm": (nn.RMSNorm(5, eps=1e-6), (4, 5)),
    "group norm": (nn.GroupNorm(2, 4, eps=0.1), (4, 3, 3)),
    "group norm, no positions": (nn.GroupNorm(2, 4), (4,)),
    "batch norm in evaluation": (nn.BatchNorm2d(3, eps=0.1).eval(), (3, 4, 4)),
}


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


class Lookups(nn.Module):
    """An embedding called twice."""

    def __init__(self, sparse, fail):
        super().__init__()
        self.a, self.c = nn.Embedding(4, 3, sparse=sparse), nn.Linear(3, 2)
        self.fail = fail

    def forward(self, x):
        if self.fail:
            x.sum().item()  # which vmap cannot do
        return self.c(self.a(x[:, 0]) + self.a(x[:, 1]).tanh())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_embedding_called_twice(sparse, fail):
    by_layer = {"a.weight", "c.weight", "c.bias"}
    check(Lookups(sparse, fail), torch.randint(0, 4, (S, 2)), by_layer=by_layer)


class Tied(nn.Module):
    """One weight in two layers, and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.a(self.a(x).tanh()).tanh())


class Reused(Twice):
    """A weight that a function uses again: no hook of the layer can see it."""

    def forward(self, x):
        return self.c(F.linear(self.a(x).tanh(), self.a.weight))


class Own(nn.Module):
    """A parameter outside of any layer, one without axes, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(()))
        self.unused, self.c = nn.Linear(3, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.scale * self.c(x) + self.offset


class Keyword(Twice):
    def forward(self, x):
        return self.c(input=self.a(x))


class Transposed(nn.Module):
    """A layer with the samples on its second axis, which is as long as the first."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.c(self.a(x.transpose(0, 1)).tanh().transpose(0, 1))


class Checkpointed(Twice):
    """Its layer is called again in the backward pass."""

    def forward(self, x):
        return self.c(torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=False).tanh())


class Hooked(Twice):
    """A layer whose output a hook replaces."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda layer, args, output: output.sin())

    def forward(self, x):
        return self.c(self.a(x))


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


class Gated(Twice):
    """Uses a weight again, but not for the first sample of `x`."""

    x = torch.tensor([[-1.0], [1.0]]).repeat(S // 2, 4) * torch.rand(S, 4).add(0.1)

    def forward(self, x):
        return self.c(self.a(x).tanh() + (x[:, :1] > 0) * F.linear(x, self.a.weight))


def test_a_weight_used_again_for_other_samples_only():
    check(Gated(), Gated.x.double(), by_layer={"a.bias", "c.weight", "c.bias"})


class Changing(Tied):
    """Calls a layer again, and one that shares its weight, once it is told to."""

    def __init__(self, more):
        super().__init__()
        self.more, self.told = more, False

    def forward(self, x):
        x = self.a(x).tanh()
        if self.told and self.more == "again":
            x = self.a(x)
        if self.told and self.more == "shared":
            x = self.b(x)
        return self.c(x)


def shared_module():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def shared_name():
    layer = nn.Linear(4, 4, bias=False)
    layer.again = layer.weight
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize("build", [shared_module, shared_name, Tied])
def test_what_has_several_names_stays_the_same_object(build):
    model = build()
    before = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    check(model, torch.randn(S, 4))
    after = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    assert after == before


class Average(Twice):
    """Assigns a buffer, and keeps an activation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, x):
        self.calls.add_(1)
        self.count += 1
        self.kept = self.a(self.a(x).tanh())
        self.average = 0.9 * self.average + self.kept.detach().mean(0)
        return self.c(self.kept)


SPECTRAL = {
    "linear": (nn.Linear(4, 4), (4,)),
    "linear, sequence": (nn.Linear(4, 4), (3, 4)),
    "conv2d": (nn.Conv2d(4, 4, 2), (4, 3, 3)),
}


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


class Late(Twice):
    """Takes up a part that neither the first way nor `vmap` can do, once it is told to."""

    def __init__(self, part):
        super().__init__()
        self.part, self.told = part, False
        if part == "lstm":
            self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        x = x.tanh() if self.told and x.sum().item() > 1e9 else x
        if self.told and self.part == "lstm":
            x = self.lstm(x)[0]
        x = self.a(x)
        if self.told and self.part == "again":
            x = self.a(x)
        return self.c(x)


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


class LateAxis(Twice):
    """Moves the samples of a layer to another axis once it is told to; `vmap` fails."""

    told = False

    def forward(self, x):
        if not self.told:
            return self.c(self.a(x))
        return self.c(self.a(x.movedim(0, 1)).movedim(1, 0)) if x.sum().item() < 1e9 else x


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


class ChannelsFirst(nn.LayerNorm):
    """Normalises axis 1, as in ConvNeXt."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


class Reshaped(nn.Linear):
    def forward(self, x):
        return nn.Linear.forward(self, x).unflatten(1, (2, -1))


class OfList(nn.Linear):
    def forward(self, xs):
        return sum(super(OfList, self).forward(x) for x in xs)


class Split(nn.Module):
    def forward(self, x):
        return [x, x.sin()]


def patched():
    layer = nn.Linear(4, 4)
    layer.forward = partial(Reshaped.forward, layer)
    return layer


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


class Listed(nn.Module):
    """Scripted, its list is a module without a forward."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_modules_go_another_way():
    model = nn.Sequential(torch.jit.script(Listed()), nn.Tanh(), nn.Linear(3, 2))
    check(model, torch.randn(S, 4), by_layer={"2.weight", "2.bias"})


class OfEnsemble(nn.LayerNorm):
    """R = 2 of them: weight and bias (2, n)."""

    def __init__(self, n):
        super().__init__((2, n))

    def forward(self, x):
        x = F.layer_norm(x, x.shape[-1:])
        return self.weight.unsqueeze(1) * x + self.bias.unsqueeze(1)


class OfSequences(nn.Linear):
    """R = 2 of them, on inputs (R, S, T, n): weight (2, m, n)."""

    def __init__(self, n, m):
        super().__init__(n, m)
        self.weight, self.bias = nn.Parameter(torch.rand(2, m, n)), nn.Parameter(torch.rand(2, m))

    def forward(self, x):
        return x @ self.weight.mT.unsqueeze(1) + self.bias.view(2, 1, 1, -1)


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


class OfNoSample(nn.Module):
    """Layers whose input is one for all samples, and as long as there are samples."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(S, S), nn.Conv2d(S, S, 1)

    def forward(self, x):
        return x * self.linear(torch.ones(S)) + x * self.conv(torch.ones(S, 1, 1)).flatten()


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


class First(nn.Module):
    def forward(self, outputs):
        return outputs[0]


class Noisy(nn.Module):
    """Random numbers in between; `weight` has no layer."""

    def __init__(self, noise):
        super().__init__()
        self.a, self.c, self.weight = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.rand(8))
        self.noise = noise

    def forward(self, x):
        return self.c(self.noise(self.weight * self.noise(self.a(x))))


NOISES = {
    "dropout": nn.Dropout(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "normal": lambda x: x * torch.randn_like(x),
    "uniform": lambda x: x + torch.rand_like(x),
    "one number for all samples": lambda x: x * torch.randn(()),
}


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


@pytest.mark.parametrize("first_only", [False, True])
def test_structured_output(first_only):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x):
            return {"mean": self.a(x), "positions": x.flatten()}

    def loss_fn(output, y):
        return squared_error(output["mean"], y)

    model, x, y = Two(), torch.randn(S, 4), torch.randn(S)
    want = brute_force(model, loss_fn, x, y)
    gradients = PerSampleGradients(model, want, first_only, 0, True)
    for _ in range(2):
        _, _, g = gradients(loss_fn, x, y)
        for name in want:
            check_factor(g[name], want[name])
    assert gradients.by_layer == {"a.weight", "a.bias"}


def test_an_output_without_an_axis_of_samples():
    def loss_fn(output, y):
        return squared_error(output.view(len(y), -1), y)

    model = nn.Sequential(nn.Linear(4, 2), nn.Flatten(0))
    check(model, torch.randn(S, 4), loss_fn)


@pytest.mark.parametrize("kind", [Own, Twice])
def test_penalty_on_the_parameters(kind):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)

    def loss_fn(output, y):
        return squared_error(output, y) + model.c.weight.square().sum()

    check(model, x, loss_fn, y)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", [Own, Twice])
def test_sum_over_samples(kind, first_only):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)

    def loss_fn(output, y):
        return len(output) * squared_error(output, y)

    want = brute_force(model, squared_error, x, y)
    gradients = PerSampleGradients(model, want, first_only, 0, mean=False)
    for _ in range(2):
        _, g_S, g = gradients(loss_fn, x, y)
        for name in g:
            torch.testing.assert_close(g_S[name], want[name].mean(0), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(model.get_parameter(name).grad, S * g_S[name])
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])


def clear(w):
    w.grad.zero_()


def take(w):
    w.grad = None


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", [Own, Twice, Tied])
@pytest.mark.parametrize("change", [clear, take])
def test_gradients_that_a_hook_changes_are_seen_as_they_were(change, kind, first_only):
    model, x, y = kind(), torch.randn(S, 4), torch.randn(S)
    want = brute_force(model, squared_error, x, y)
    used = [name for name, rows in want.items() if rows.any()]
    gradients = PerSampleGradients(model, want, first_only, 0, True)
    for w in model.parameters():
        w.register_post_accumulate_grad_hook(change)
    for _ in range(2):
        _, g_S, g = gradients(squared_error, x, y)
        for name in used:
            torch.testing.assert_close(g_S[name], want[name].mean(0), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            left = model.get_parameter(name).grad
            assert left is None if change is take else not left.any()


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
def test_an_input_that_requires_a_gradient_has_it(leaf, first_only):
    model, y = Twice(), torch.randn(S)
    below = torch.randn(S, 4, requires_grad=True)
    x = below if leaf else below.sin()
    (want,) = torch.autograd.grad(squared_error(model(x), y), below, retain_graph=True)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for _ in range(3):
        below.grad = None
        gradients(squared_error, below if leaf else below.sin(), y)
        torch.testing.assert_close(below.grad, want)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_sum_that_is_said_to_be_a_mean_is_refused(first_only):
    model, x, y = nn.Linear(3, 4), torch.randn(S, 3), torch.arange(S) % 4
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="loss_fn is not the mean over samples but their sum"):
        gradients(lambda o, y: F.cross_entropy(o, y, reduction="sum"), x, y)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("loss_fn", ["weights", "ignore", "pairs"])
def test_of_other_losses_the_shares_are_taken(loss_fn, first_only):
    """S times what flows through the row of a sample."""
    model, x, y = nn.Linear(3, 4), torch.randn(S, 3), torch.arange(S) % 4
    loss_fn = {
        "weights": lambda o, y: F.cross_entropy(o, y, weight=torch.arange(1.0, 5.0)),
        "ignore": lambda o, y: F.cross_entropy(o, y, ignore_index=0),
        "pairs": lambda o, y: (o[:, 1] - y - o[:, 1].mean()).square().mean(),
    }[loss_fn]
    output = model(x)
    (d,) = torch.autograd.grad(loss_fn(output, y), output)
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)
    for _ in range(3):
        _, g_S, g = gradients(loss_fn, x, y)
        want = S * d.unsqueeze(2) * x.unsqueeze(1)
        torch.testing.assert_close(g["weight"].first(), want[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(g_S["weight"], want.mean(0), rtol=1e-10, atol=1e-10)


class Across(nn.Module):
    """Looks across the minibatch, after what `before` makes of it."""

    def __init__(self, before):
        super().__init__()
        self.before, self.c = before, nn.Linear(3, 2)

    def forward(self, x):
        x = self.before(x)
        return self.c(x - x.mean(0))


@pytest.mark.parametrize("first_only", [False, True])
def test_models_that_couple_the_samples_are_refused(first_only):
    model = Across(nn.Linear(3, 3))
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    with pytest.raises(ValueError, match="couples the samples"):
        gradients(squared_error, torch.randn(S, 3), torch.randn(S))
    assert model.c.weight.grad is None


class ZeroHead(Twice):
    """No gradient, or next to none, reaches beyond the last layer before its first step.

    The layer before it is used again.
    """

    def __init__(self, weight):
        super().__init__()
        nn.init.constant_(self.c.weight, weight)

    def forward(self, x):
        return self.c(F.linear(self.a(x).tanh(), self.a.weight))


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("S", [2, 6])
@pytest.mark.parametrize("weight", [0.0, 1e-12])
def test_a_gradient_that_is_zero_at_first_is_put_to_the_test_later(weight, S, first_only):
    model, x, y = ZeroHead(weight), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, dict(model.named_parameters()), first_only, 0, True)
    for lr in (0.0, 0.1, 0.1, 0.1):
        want = brute_force(model, squared_error, x, y)
        _, _, g = gradients(squared_error, x, y)
        reached = want["a.weight"].norm() > 1e-6
        tested = {"c.weight", "c.bias"} | ({"a.bias"} if reached else set())
        assert gradients.by_layer == tested
        for name in want:
            torch.testing.assert_close(g[name].first(), want[name][0], rtol=1e-10, atol=1e-10)
            if not first_only:
                check_factor(g[name], want[name])
        with torch.no_grad():
            for w in model.parameters():
                w -= lr * w.grad


@pytest.mark.parametrize("first_only", [False, True])
def test_a_gradient_that_vanishes_in_the_mean_only(first_only):
    """Two samples with opposite gradients are no ground to take a way untested."""
    model = Reused()
    model.a.bias.requires_grad_(False)
    x = torch.randn(1, 4) * torch.tensor([[1.0], [-1.0]])
    nn.init.zeros_(model.a.bias)

    def loss_fn(output, y):
        return output.sum(1).mean()

    want = brute_force(model, loss_fn, x, x)["a.weight"]
    gradients = PerSampleGradients(model, ["a.weight"], first_only, 0, True)
    _, _, g = gradients(loss_fn, x, x)
    torch.testing.assert_close(g["a.weight"].first(), want[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structured", [False, True])
def test_what_rounding_leaves_of_a_gradient_that_vanishes_is_no_ground_to_refuse(structured):
    x = torch.randn(S, 3, 4)
    x[-1] = -x[:-1].sum(0)

    def loss_fn(output, y):
        return (output["mean"] if structured else output).flatten(1).sum(1).mean()

    if structured:
        model, by_layer = Structured(), set()
        model.c.bias = None
    else:
        model, by_layer = nn.Linear(4, 2), {"weight", "bias"}
    check(model, x, loss_fn, by_layer=by_layer)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_loss_that_no_gradient_shows_at_first_is_refused_later(first_only):
    model, x, y = nn.Embedding(4, 3), torch.randint(0, 4, (S,)), torch.randn(S)
    nn.init.zeros_(model.weight)
    gradients = PerSampleGradients(model, ["weight"], first_only, 0, True)

    def loss_fn(output, y):
        return output.square().sum()

    gradients(loss_fn, x, y)
    nn.init.normal_(model.weight)
    with pytest.raises(ValueError, match="not the mean over samples"):
        gradients(loss_fn, x, y)


@pytest.mark.parametrize("first_only", [False, True])
def test_a_coupling_that_no_gradient_shows_at_first_is_refused_later(first_only):
    model, x, y = Across(nn.Linear(3, 3)), torch.randn(S, 3), torch.randn(S)
    nn.init.zeros_(model.c.weight)
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    gradients(squared_error, x, y)
    gradients(squared_error, x, y)
    nn.init.normal_(model.c.weight)
    with pytest.raises(ValueError, match="couples the samples"):
        gradients(squared_error, x, y)


class Structured(nn.Module):
    """Has no tensor as its output; looks across the minibatch once it is told to."""

    told = False

    def __init__(self):
        super().__init__()
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return {"mean": self.c(x - x.mean(0) if self.told else x)}


@pytest.mark.parametrize("first_only", [False, True])
def test_behind_a_structured_output_shares_are_those_of_the_rows_of_the_layer(first_only):
    model, x, y = Structured(), torch.randn(S, 4), torch.randn(S)
    gradients = PerSampleGradients(model, ["c.weight"], first_only, 0, True)
    for model.told in (False, True):
        rows = x - x.mean(0) if model.told else x
        want = brute_force(model.c, squared_error, rows, y)["weight"]
        _, _, g = gradients(lambda output, y: squared_error(output["mean"], y), x, y)
        torch.testing.assert_close(g["c.weight"].first(), want[0], rtol=1e-10, atol=1e-10)


def traces(model):
    hooks = [key for key in vars(model) if "hooks" in key]
    return [(m, key, dict(vars(m)[key])) for m in model.modules() for key in hooks]


class Kept(Twice):
    """Keeps an activation, and fails when told to."""

    fail = False

    def forward(self, x):
        self.kept = self.a(x)
        if self.fail:
            raise KeyError("asked for")
        return self.c(self.kept)


@pytest.mark.parametrize("fail", ["model", "loss", "backward", None])
def test_hooks_leave_no_trace(fail):
    model, x, y = Kept(), torch.randn(S, 4), torch.randn(S)
    before, training = traces(model), model.training
    gradients = PerSampleGradients(model, ["a.weight", "c.weight"], False, 0, True)

    def loss_fn(output, y):
        if fail == "loss":
            raise KeyError("asked for")
        if fail == "backward":
            output.register_hook(lambda d: {}["asked for"])
        return squared_error(output, y)

    model.fail = fail == "model"
    if fail:
        with pytest.raises(KeyError, match="asked for"):
            gradients(loss_fn, x, y)
    else:
        gradients(loss_fn, x, y)
    assert traces(model) == before
    assert model.training == training
    assert not model.kept._backward_hooks
    assert not any(w._backward_hooks for w in model.parameters())
    assert not x.requires_grad


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
