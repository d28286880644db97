"""Models and comparisons for the tests of the gradients of single samples."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from parameter_ordering.gradients.per_sample import PerSampleGradients

S = 6


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


class Gated(Twice):
    """Uses a weight again, but not for the first sample of `x`."""

    x = torch.tensor([[-1.0], [1.0]]).repeat(S // 2, 4) * torch.rand(S, 4).add(0.1)

    def forward(self, x):
        return self.c(self.a(x).tanh() + (x[:, :1] > 0) * F.linear(x, self.a.weight))


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


class LateAxis(Twice):
    """Moves the samples of a layer to another axis once it is told to; `vmap` fails."""

    told = False

    def forward(self, x):
        if not self.told:
            return self.c(self.a(x))
        return self.c(self.a(x.movedim(0, 1)).movedim(1, 0)) if x.sum().item() < 1e9 else x


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


class Listed(nn.Module):
    """Scripted, its list is a module without a forward."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


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


class OfNoSample(nn.Module):
    """Layers whose input is one for all samples, and as long as there are samples."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(S, S), nn.Conv2d(S, S, 1)

    def forward(self, x):
        return x * self.linear(torch.ones(S)) + x * self.conv(torch.ones(S, 1, 1)).flatten()


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


def clear(w):
    w.grad.zero_()


def take(w):
    w.grad = None


class Across(nn.Module):
    """Looks across the minibatch, after what `before` makes of it."""

    def __init__(self, before):
        super().__init__()
        self.before, self.c = before, nn.Linear(3, 2)

    def forward(self, x):
        x = self.before(x)
        return self.c(x - x.mean(0))


class ZeroHead(Twice):
    """No gradient, or next to none, reaches beyond the last layer before its first step.

    The layer before it is used again.
    """

    def __init__(self, weight):
        super().__init__()
        nn.init.constant_(self.c.weight, weight)

    def forward(self, x):
        return self.c(F.linear(self.a(x).tanh(), self.a.weight))


class Structured(nn.Module):
    """Has no tensor as its output; looks across the minibatch once it is told to."""

    told = False

    def __init__(self):
        super().__init__()
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return {"mean": self.c(x - x.mean(0) if self.told else x)}


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
