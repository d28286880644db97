"""Small inputs that have gone wrong, here or elsewhere, each of a kind."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.gradients.layers import register_rule

S = 6
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:RNN module weights"),
]
both = pytest.mark.parametrize("samples", ["first", "all"])
ways = pytest.mark.parametrize("way", ["attached", "updated"])


def follow(C, model, way, batches, loss_fn=F.mse_loss, lr=0.0):
    """C over some minibatches, at a learning rate of zero unless said."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if way == "attached":
        C.attach(optimizer)
    for x, y in batches:
        optimizer.zero_grad()
        if way == "attached":
            loss_fn(model(x), y).backward()
        else:
            C.update(loss_fn, x, y)
        optimizer.step()


def rows(model, loss_fn, x, y):
    """g_i by name, for shares that flow through the rows of the output, one backward pass each."""
    w = dict(model.named_parameters())
    output = model(x)
    leaf = output.detach().requires_grad_()
    (d,) = torch.autograd.grad(loss_fn(leaf, y), leaf)
    found = []
    for i in range(len(d)):
        one = torch.zeros_like(d)
        one[i] = d[i]
        found.append(torch.autograd.grad(output, [*w.values()], one, retain_graph=True))
    return {n: len(d) * torch.stack(s) for n, s in zip(w, zip(*found, strict=True), strict=True)}


def by_rows(model, loss_fn, x, y, first=False):
    """V_t of these."""
    deviations = ((n, (g - g.mean(0)).square()) for n, g in rows(model, loss_fn, x, y).items())
    return {name: r[0] if first else r.mean(0) for name, r in deviations}


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
        for w in self.parameters():
            nn.init.ones_(w)

    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        return self.b(self.a(x[order])[order.argsort()])


ZEROS = torch.zeros(3, 1, dtype=torch.double)
SORTED = torch.tensor([[4, 1], [2, 0], [1, 1]], dtype=torch.double), ZEROS
MIXED = torch.tensor([[1, 1], [4, 1], [2, 0]], dtype=torch.double), ZEROS


@ways
def test_a_model_that_sorts_has_the_first_sample_or_none(way):
    model = Sorting()
    C = GradientCovariance(model, kappa=1.0)
    follow(C, model, way, [SORTED, MIXED])
    torch.testing.assert_close(C.diagonal()["a.weight"], torch.tensor([[1600 / 9, 4 / 9]]), **CLOSE)
    torch.testing.assert_close(C.diagonal()["b.weight"], torch.tensor([[196.0]]), **CLOSE)


@ways
@pytest.mark.parametrize("before", range(4))
def test_a_model_that_sorts_in_the_full_matrix(way, before):
    """Whichever minibatch it is on which they move."""
    model = Sorting()
    C = GradientCovariance(model, "all", full=True, kappa=1.0)
    follow(C, model, way, [SORTED] * before + [MIXED])
    assert abs(C.matrix()[0, 2] - 317.33) < 0.01


class Lengths(nn.Module):
    """Sorts by length, embeds, runs a GRU, and undoes the sorting."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        order = (x > 0).sum(1).argsort(descending=True)
        states, _ = self.gru(self.embedding(x[order]))
        return self.head(states[:, -1])[order.argsort()]


class Routed(nn.Module):
    """Two experts; each has a buffer for all rows, which it fills from the top."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x):
        gate, out = self.gate(x), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            (rows,) = (gate.argmax(1) == e).nonzero(as_tuple=True)
            buffer = x.new_zeros(x.shape).index_copy(0, torch.arange(len(rows)), x[rows])
            some = expert(buffer)[: len(rows)] * gate.softmax(1)[rows, e].unsqueeze(1)
            out = out.index_add(0, rows, some)
        return out


class Shuffling(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        order = torch.randperm(len(x))
        parts = torch.stack([self.a(x)[int(i)] for i in order])
        return self.b(parts.tanh()[order.argsort()])


class Matrix(nn.Module):
    """A permutation as a product."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        P = torch.eye(len(x))[x[:, 0].argsort()]
        return self.b(P.T @ self.a(P @ x).tanh())


MOVING = {
    "lengths": (Lengths, lambda: torch.randint(0, 7, (S, 5)) * (torch.rand(S, 5) < 0.6)),
    "routed": (Routed, lambda: torch.randn(S, 4)),
    "matrix": (Matrix, lambda: torch.randn(S, 4)),
}


@both
@ways
@pytest.mark.parametrize("name", MOVING)
def test_samples_that_move_inside(name, way, samples):
    build, draw = MOVING[name]
    model = build()
    want, batches = {n: 0.0 for n, _ in model.named_parameters()}, []
    for _ in range(4):
        x = draw()
        y = torch.randn(model(x).shape)
        batches.append((x, y))
        for n, V in by_rows(model, F.mse_loss, x, y, samples == "first").items():
            want[n] = want[n] + V / 4
    C = GradientCovariance(model, samples)
    follow(C, model, way, batches)
    for n, have in C.diagonal().items():
        torch.testing.assert_close(have, want[n], **CLOSE)


@ways
@both
def test_a_shuffle_inside_is_right_or_refused(way, samples):
    model = Shuffling()
    x, y = torch.randn(S, 4), torch.randn(S, 2)
    C = GradientCovariance(model, samples)
    try:
        follow(C, model, way, [(x, y)] * 3)
    except RuntimeError:
        assert C.t < 3
        return
    want = by_rows(model, F.mse_loss, x, y, samples == "first")
    for n, have in C.diagonal().items():
        torch.testing.assert_close(have, want[n], **CLOSE)


@ways
@both
def test_an_ignored_token_that_comes_later(way, samples):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5))

    def loss_fn(output, y):
        return F.cross_entropy(output.flatten(0, 1), y.flatten(), ignore_index=-100)

    x, y = torch.randint(0, 7, (2, S, 3)), torch.randint(0, 5, (2, S, 3))
    y[1, 0, 1:] = y[1, 3] = -100
    want = [by_rows(model, loss_fn, *each, samples == "first") for each in zip(x, y, strict=True)]
    C = GradientCovariance(model, samples)
    follow(C, model, way, zip(x, y, strict=True), loss_fn)
    for name, have in C.diagonal().items():
        torch.testing.assert_close(have, (want[0][name] + want[1][name]) / 2, **CLOSE)


def test_an_embedding_that_counts_in_the_minibatch_is_refused():
    model = nn.Sequential(nn.Embedding(3, 1, scale_grad_by_freq=True))
    with pytest.raises(ValueError, match="0 has scale_grad_by_freq=True"):
        GradientCovariance(model)


def test_a_loss_with_parameters_has_its_gradient_replaced():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, y):
            return self.scale * F.mse_loss(output, y)

    model, loss_fn = nn.Linear(3, 1), Loss()
    C = GradientCovariance(model)
    x, y = torch.randn(S, 3), torch.randn(S, 1)
    gradients = []
    for _ in range(3):
        C.update(loss_fn, x, y)
        gradients.append(loss_fn.scale.grad.item())
    assert gradients == [F.mse_loss(model(x), y).item()] * 3


def test_a_gradient_of_somebody_else_is_not_thrown_away():
    model = nn.Linear(3, 1)
    C, (x, y) = GradientCovariance(model), (torch.randn(S, 3), torch.randn(S, 1))
    F.mse_loss(model(x), y).backward()
    before = model.weight.grad.clone()
    with pytest.raises(ValueError, match="to accumulate, use attach"):
        C.update(F.mse_loss, x, y)
    assert torch.equal(model.weight.grad, before)
    assert C.t == 0
    model.zero_grad()
    C.update(F.mse_loss, x, y)
    C.update(F.mse_loss, x, y)  # what an update has left may be replaced


class Outputs(nn.Module):
    """Gives what is asked for: a pair, a dict, or its own loss."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, y=None):
        states, last = self.gru(x)
        logits = self.head(states[:, -1])
        if self.kind == "pair":
            return logits, last
        loss = None if y is None else F.cross_entropy(logits, y)
        return {"loss": loss, "logits": logits}


@both
@pytest.mark.parametrize("kind", ["pair", "dict", "loss"])
def test_any_output_and_any_minibatch(kind, samples):
    model, y = Outputs(kind), torch.randint(0, 2, (S,))
    x = torch.randn(S, 5, 3)
    given = {"x": x, "y": y} if kind == "loss" else (x,) if kind == "dict" else x

    def loss_fn(output, y):
        if kind == "loss":
            return output["loss"]
        logits = output[0] if kind == "pair" else output["logits"]
        return F.cross_entropy(logits, torch.tensor(y))

    C = GradientCovariance(model, samples)
    for _ in range(3):
        C.update(loss_fn, given, y.tolist())

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model

        def forward(self, x):
            output = self.inside(x)
            return output[0] if kind == "pair" else output["logits"]

    want = by_rows(Logits(), F.cross_entropy, x, y, samples == "first")
    for name, have in C.diagonal().items():
        torch.testing.assert_close(have, want["inside." + name], **CLOSE)


def test_a_squeeze_is_named():
    model = nn.Linear(3, 1)
    C = GradientCovariance(model)

    def loss_fn(output, y):
        return F.binary_cross_entropy_with_logits(output.squeeze(), y)

    with pytest.raises(ValueError, match=r"S = 1: .*squeeze\(\)"):
        C.update(loss_fn, torch.randn(S, 3), torch.rand(S))
    assert C.t == 0


@both
@pytest.mark.parametrize("way", ["attached", "updated"])
def test_a_scaler_is_taken_out(way, samples):
    model, scaler = nn.Linear(3, 2), torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = [(torch.randn(S, 3), torch.randn(S, 2)) for _ in range(3)]
    C, plain = GradientCovariance(model, samples), GradientCovariance(model, samples)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    follow(plain, model, "updated", batches)
    if way == "attached":
        C.attach(optimizer, scaler)
    for n, (x, y) in enumerate(batches):
        for bad in (True, False) if n == 1 else (False,):
            optimizer.zero_grad()
            if way == "attached":
                scaler.scale(F.mse_loss(model(x * (torch.inf if bad else 1)), y)).backward()
            elif not bad:
                C.update(F.mse_loss, x, y, scaler=scaler)
            else:
                continue
            scaler.step(optimizer)
            scaler.update()
    assert C.t == 3
    for have, want in zip(C.diagonal().values(), plain.diagonal().values(), strict=True):
        torch.testing.assert_close(have, want, **CLOSE)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "fused adam"])
@pytest.mark.parametrize("clips", [False, True])
def test_a_scaler_that_nobody_gave_is_noticed(optimizer, clips):
    model, scaler = nn.Linear(3, 2), torch.amp.GradScaler("cpu")
    optimizer = {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
        "adam": lambda w: torch.optim.Adam(w),
        "fused adam": lambda w: torch.optim.Adam(w, fused=True),
    }[optimizer](model.parameters())
    before = model.weight.detach().clone()
    C = GradientCovariance(model)
    C.attach(optimizer)
    scaler.scale(F.mse_loss(model(torch.randn(S, 3)), torch.randn(S, 2))).backward()
    if clips:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with pytest.warns(UserWarning, match=r"times smaller.*scaler=scaler"):
            scaler.step(optimizer)
    else:
        with pytest.raises(RuntimeError, match="scaler=scaler"):
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(torch.randn(S, 3)), torch.randn(S, 2))).backward()
        with pytest.raises(RuntimeError, match="scaler=scaler"):  # nor is the next step taken
            scaler.step(optimizer)
        assert torch.equal(model.weight, before)
        assert C.t == 0


def test_an_average_by_hand_is_told_to_divide_the_losses():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    C = GradientCovariance(model)
    C.attach(optimizer)
    for _ in range(4):
        F.mse_loss(model(torch.randn(S, 3)), torch.randn(S, 2)).backward()
    for w in model.parameters():
        w.grad /= 4
    with pytest.raises(RuntimeError, match=r"divided by 4 .* divide their losses"):
        optimizer.step()
    assert C.t == 0


@pytest.mark.parametrize("factor", [1.0, 0.3, 0.01])
def test_clipping_is_no_scaler(factor):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    C = GradientCovariance(model)
    C.attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(model(torch.randn(S, 3)), torch.randn(S, 2)).backward()
            for w in model.parameters():
                w.grad *= factor
            optimizer.step()
    assert C.t == 3


@both
@ways
@pytest.mark.parametrize("times", [4, S])
def test_time_first(times, way, samples):
    model = nn.Sequential(nn.GRU(3, 2))
    model.append(nn.Identity())
    model.forward = lambda x: model[0](x)[0]
    x, y = torch.randn(times, S, 3), torch.randn(times, S, 2)
    C = GradientCovariance(model, samples)
    with pytest.raises((RuntimeError, ValueError), match=r"batch_dim="):
        follow(C, model, way, [(x, y)])
    assert C.t == 0
    C.detach()
    model.zero_grad()
    C = GradientCovariance(model, samples, batch_dim=1)
    follow(C, model, way, [(x, y)])
    twin = nn.GRU(3, 2, batch_first=True)
    twin.load_state_dict(model[0].state_dict())
    whole = nn.Sequential(twin)
    whole.forward = lambda x: whole[0](x)[0]
    want = by_rows(whole, F.mse_loss, x.transpose(0, 1), y.transpose(0, 1), samples == "first")
    for name, have in C.diagonal().items():
        torch.testing.assert_close(have, want[name], **CLOSE)


class Positions(nn.Module):
    """Adds positions that are the same for all samples, and checkpoints a layer after them."""

    def __init__(self):
        super().__init__()
        self.places, self.a, self.b = nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = x + self.places(torch.arange(3)[None])
        return checkpoint(lambda x: self.b(self.a(x).tanh().square()), x, use_reentrant=False)


@both
@ways
def test_a_checkpoint_in_what_is_differentiated_again(way, samples):
    model, x, y = Positions(), torch.randn(S, 3, 4), torch.randn(S, 3, 2)
    C = GradientCovariance(model, samples)
    follow(C, model, way, [(x, y)] * 3)
    want = by_rows(model, F.mse_loss, x, y, samples == "first")
    for name, have in C.diagonal().items():
        torch.testing.assert_close(have, want[name], **CLOSE)


@ways
def test_one_sample_is_refused_or_counted(way):
    model = nn.Linear(3, 2)
    batches = [(torch.randn(S, 3), torch.randn(S, 2)), (torch.randn(1, 3), torch.randn(1, 2))]
    C = GradientCovariance(model)
    with pytest.raises(ValueError, match="S = 1"):
        follow(C, model, way, batches)
    assert C.t == 1
    C.detach()
    model.zero_grad()
    before = C.diagonal()["weight"]
    counting = GradientCovariance(model, one_sample="count")
    follow(counting, model, way, batches)
    assert counting.t == 2
    torch.testing.assert_close(counting.diagonal()["weight"], before / 2, **CLOSE)


def test_a_rule_of_ones_own_is_one_line():
    calls = []

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3))

        def forward(self, x):
            return self.scale * x

    register_rule(Scale, lambda layer, a, d: calls.append(1) or {"scale": a * d})
    model = nn.Sequential(Scale())
    x, y = torch.randn(S, 3), torch.randn(S, 3)
    C = GradientCovariance(model, "all")
    C.update(F.mse_loss, x, y)
    assert calls
    want = by_rows(model, F.mse_loss, x, y)
    torch.testing.assert_close(C.diagonal()["0.scale"], want["0.scale"], **CLOSE)


def test_detached_there_is_no_trace():
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 2, batch_first=True))
    optimizer = torch.optim.Adam(model.parameters())

    def traces():
        hooks = [k for k in vars(model) if "hooks" in k]
        on = [(m, k, len(vars(m)[k])) for m in model.modules() for k in hooks]
        return (
            on,
            [w._backward_hooks for w in model.parameters()],
            len(optimizer._optimizer_step_pre_hooks),
        )

    before = traces()
    C = GradientCovariance(model)
    C.attach(optimizer)
    with pytest.raises(RuntimeError, match="already"):
        C.attach(optimizer)
    with pytest.raises(RuntimeError, match="detach"):
        C.update(F.mse_loss, torch.randn(S, 3), torch.randn(S))
    C.detach()
    C.detach()
    after = traces()
    assert after[0] == before[0]
    assert not any(after[1])
    assert after[2] == before[2]


def test_copies_are_not_attached():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    C = GradientCovariance(model)
    C.attach(optimizer)
    x, y = torch.randn(S, 3), torch.randn(S, 2)
    for twin, other in (copy.deepcopy((model, C)), pickle.loads(pickle.dumps((model, C)))):
        F.mse_loss(twin(x), y).backward()
        assert other.t == C.t == 0
        other.detach()
        twin.zero_grad()
        other.update(F.mse_loss, x, y)
        assert (other.t, C.t) == (1, 0)


def test_state_goes_on_attached():
    batches = [(torch.randn(S, 3), torch.randn(S, 2)) for _ in range(4)]
    model = nn.Linear(3, 2)
    C, first = GradientCovariance(model, "all"), GradientCovariance(model, "all")
    follow(C, model, "attached", batches)
    follow(first, model, "attached", batches[:2])
    second = GradientCovariance(model, "all")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    follow(second, model, "attached", batches[2:])
    for have, want in zip(second.diagonal().values(), C.diagonal().values(), strict=True):
        assert torch.equal(have, want)


def test_two_follow_one_training():
    """And a gradient of the input, which somebody asks for in between, is nothing to either."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [(torch.randn(S, 3), torch.randn(S, 2)) for _ in range(4)]
    several = {samples: GradientCovariance(model, samples) for samples in ("first", "all")}
    for C in several.values():
        C.attach(optimizer)
    for x, y in batches:
        optimizer.zero_grad()
        x = x.clone().requires_grad_()
        loss = F.mse_loss(model(x), y)
        torch.autograd.grad(loss, x, retain_graph=True)
        torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        loss.backward()
        optimizer.step()
    for samples, C in several.items():
        assert C.t == 4
        C.detach()
        alone = GradientCovariance(model, samples)
        follow(alone, model, "updated", batches)
        for have, want in zip(C.diagonal().values(), alone.diagonal().values(), strict=True):
            torch.testing.assert_close(have, want, **CLOSE)


def test_what_cannot_be_followed_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    C = GradientCovariance(model)
    with pytest.raises(ValueError, match=r"does not train \['1.weight', '1.bias'\]"):
        C.attach(torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(TypeError, match="LBFGS"):
        C.attach(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match="not a <class 'int'>"):
        C.attach(3)
    C.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_shares_that_do_not_add_up_stop_the_step_and_nothing_has_moved():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    C = GradientCovariance(model)
    C.attach(optimizer)
    before = model.weight.detach().clone()
    x, y = torch.randn(S, 3), torch.randn(S, 2)
    (F.mse_loss(model(x), y) + model.weight.square().sum()).backward()
    with pytest.raises(RuntimeError, match=r"do not add up to the gradient of \['weight'\]"):
        optimizer.step()
    assert torch.equal(model.weight, before)
    assert not optimizer.state
    assert C.t == 0
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    assert C.t == 1


def test_a_gradient_that_is_never_cleared_is_an_error():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    C = GradientCovariance(model)
    C.attach(optimizer)
    x, y = torch.randn(S, 3), torch.randn(S, 2)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    F.mse_loss(model(x), y).backward()
    with pytest.raises(RuntimeError, match="zero_grad"):
        optimizer.step()
    assert C.t == 1
