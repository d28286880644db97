"""What C costs, by `update` and attached, as a ratio to a forward and backward pass.

Beside it: the two backward passes of the paper, for g_S and g_1; `Variance` of BackPACK; the
gradients of single samples of Opacus, squared; and `torch.func.vmap(grad)` over the minibatch. All
end with ``.grad`` of the minibatch and one step of the running mean (2.6) of the diagonal. The last
three have rounds of their own, with a backward pass to compare with: they leave the caches and the
allocator to the next as no training does.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import Variance
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.rounds import interleaved
from benchmarks.sequences import LSTM, Transformer, group_norm_cnn
from parameter_ordering.covariance import GradientCovariance

MODELS = {
    "784-10-10": lambda: _perceptron(784, 10, 10),
    "784-512-10": lambda: _perceptron(784, 512, 10),
    "784-2048-2048-10": lambda: _perceptron(784, 2048, 2048, 10),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 10),
    ),
}
# Models of trainers: how to build one, with a layer in the place of LSTM, and what it is given.
LARGER: dict[str, tuple[Callable[..., nn.Module], Callable[[int], Tensor]]] = {
    "transformer": (lambda lstm: Transformer(), lambda S: torch.randint(0, 1000, (S, 64))),
    "cnn, group norm": (lambda lstm: group_norm_cnn(), lambda S: torch.randn(S, 784)),
    "lstm": (LSTM, lambda S: torch.randint(0, 1000, (S, 64))),
}
SAMPLES = (32, 128, 512)
APART = ("BackPACK Variance", "Opacus", "torch.func.vmap(grad)")
_PAST_TESTS = 17  # the shares are tested at t = 1, 2, 4, 8, 16, 32: rarely, but not in few rounds
MEMORY = 2**31  # bytes; where gradients of single samples take more, vmap is left out


def run(quick: bool = False) -> list[dict]:
    """Rows of one way, model and S: median microseconds, and the ratio to backward alone."""
    return [
        row
        for model in MODELS
        for S in ((8,) if quick else SAMPLES)
        for row in measure(model, S, seconds=0 if quick else 20)
    ]


def measure(model: str, S: int, seconds: float) -> list[dict]:
    """The rows of one model and S, from rounds of all ways for about so many seconds."""
    torch.manual_seed(0)
    if model in LARGER:
        build, draw = LARGER[model]
        x, y = draw(S), torch.randint(0, 10, (S,))
        ways = _ways(partial(build, nn.LSTM), x, y) | _with_opacus(build, x, y)
        ways.pop("BackPACK Variance")  # it knows neither attention nor embeddings nor group norm
        if model == "lstm":
            ways.pop("torch.func.vmap(grad)", None)
    else:
        x, y = torch.randn(S, 784), torch.randint(0, 10, (S,))
        ways = _ways(MODELS[model], x, y)
    together = {name: way for name, way in ways.items() if name not in APART}
    apart = {name: way for name, way in ways.items() if name in ("backward", *APART)}
    for name in [each for each in together if each.endswith(("all", "first"))]:
        for _ in range(_PAST_TESTS if seconds else 1):
            together[name]()
    rows = {}
    for group in (together, apart):
        medians = interleaved(group, seconds / 2)
        for way, median in medians.items():
            row = {"microseconds": median * 1e6, "ratio": median / medians["backward"]}
            rows.setdefault(way, {"model": model, "S": S, "way": way, **row})
    return list(rows.values())


def _perceptron(*widths: int) -> nn.Sequential:
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _ways(build: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Each way as a function without arguments; each has a model of its own."""

    def backward() -> Callable:
        model = build()

        def step():
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()

        return step

    def update(samples: str) -> Callable:
        covariance = GradientCovariance(build(), samples)
        return lambda: covariance.update(F.cross_entropy, x, y)

    def attached(samples: str) -> Callable:
        model = build()
        covariance = GradientCovariance(model, samples)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        covariance.attach(optimizer)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    def with_step() -> Callable:
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    def with_backpack() -> Callable:
        model, loss_fn = extend(build()), extend(nn.CrossEntropyLoss())
        C, t = [torch.zeros_like(w) for w in model.parameters()], 0

        def step():
            nonlocal t
            t += 1
            model.zero_grad()
            with backpack(Variance()):
                loss_fn(model(x), y).backward()
            for c, w in zip(C, model.parameters(), strict=True):
                c.lerp_(w.variance, len(x) ** 2 / t)  # BackPACK's is of g_i / S

        return step

    def with_vmap() -> Callable:
        model = build()
        C, t = {name: torch.zeros_like(w) for name, w in model.named_parameters()}, 0

        def loss(w, x, y):
            return F.cross_entropy(functional_call(model, w, (x[None],)), y[None])

        rows = vmap(grad(loss), (None, 0, 0))

        def step():
            nonlocal t
            t += 1
            w = {name: w.detach() for name, w in model.named_parameters()}
            for name, g in rows(w, x, y).items():
                model.get_parameter(name).grad = g.mean(0)
                C[name].lerp_(g.var(0, correction=0), 1 / t)

        return step

    def twice() -> Callable:
        model = build()
        C, t = [torch.zeros_like(w) for w in model.parameters()], 0

        def step():
            nonlocal t
            t += 1
            w = list(model.parameters())
            g_1 = torch.autograd.grad(F.cross_entropy(model(x[:1]), y[:1]), w)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for c, g, v in zip(C, g_1, w, strict=True):
                c.lerp_((g - v.grad).square_(), 1 / t)

        return step

    ways = {
        "backward": backward,
        "all": lambda: update("all"),
        "first": lambda: update("first"),
        "attached, all": lambda: attached("all"),
        "attached, first": lambda: attached("first"),
        "backward and step": with_step,
        "two backward passes": twice,
        "BackPACK Variance": with_backpack,
    }
    if len(x) * sum(w.numel() for w in build().parameters()) * 4 < MEMORY:
        ways["torch.func.vmap(grad)"] = with_vmap
    return {name: way() for name, way in ways.items()}


def _with_opacus(build: Callable[..., nn.Module], x: Tensor, y: Tensor) -> dict[str, Callable]:
    """The gradients of single samples, with the layer of Opacus in the place of LSTM."""
    from opacus.grad_sample import GradSampleModule
    from opacus.layers import DPLSTM

    model, t = GradSampleModule(build(DPLSTM)), 0
    C = [torch.zeros_like(w) for w in model.parameters()]

    def step():
        nonlocal t
        t += 1
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for c, w in zip(C, model.parameters(), strict=True):
            g = w.grad_sample * len(x)
            c.lerp_(g.square_().mean(0) - w.grad.square(), 1 / t)
            w.grad_sample = None

    return {"Opacus": step}
