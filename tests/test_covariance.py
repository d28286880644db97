"""The running covariance (2.6) against its definition, BackPACK, and the statistics that it states.

The reference takes one backward pass a sample and applies (2.6) to whole matrices in float64. What
per-sample gradients are for each kind of layer is tested with `PerSampleGradients`.
"""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import Variance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parameter_ordering.covariance import GradientCovariance, running_mean
from parameter_ordering.ensemble import stack, summed
from parameter_ordering.gradients import factors

S = 5
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


pytestmark = pytest.mark.usefixtures("double")


def perceptron():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))


def minibatch():
    return torch.randn(S, 4), torch.randint(0, 3, (S,))


def rows(model, loss_fn, x, y):
    """g_1, ..., g_S as the rows of a matrix (S, p)."""
    g = []
    for i in range(len(x)):
        model.zero_grad()
        loss_fn(model(x[i : i + 1]), y[i : i + 1]).backward()
        g.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
    model.zero_grad()
    return torch.stack(g)


def contribution(g, samples):
    """V_t of (2.6)."""
    r = g - g.mean(0)
    return torch.outer(r[0], r[0]) if samples == "first" else r.T @ r / len(r)


def flat(diagonal):
    return torch.cat([d.flatten() for d in diagonal.values()])


def train(model, covariance, steps, lr=0.1):
    """Plain descent; the contributions V_t that (2.6) should have seen."""
    V = []
    for _ in range(steps):
        x, y = minibatch()
        V.append(contribution(rows(model, F.cross_entropy, x, y), covariance.samples))
        loss = covariance.update(F.cross_entropy, x, y)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y))
        with torch.no_grad():
            for w in model.parameters():
                w -= lr * w.grad
    return V


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize(
    ("kappa", "weights"),
    [
        (running_mean, [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        (0.5, [1 / 16, 1 / 8, 1 / 4, 1 / 2]),
        (0.5, [0.5**steps for steps in range(24, 0, -1)]),
        (lambda t: 1 / (t + 1), [1 / 5, 1 / 5, 1 / 5, 1 / 5]),
    ],
    ids=["running mean", "exponential", "long", "any"],
)
@pytest.mark.parametrize("burn_in", [0, 2])
def test_windows(samples, full, kappa, weights, burn_in):
    model = perceptron()
    C = GradientCovariance(model, samples, full, kappa=kappa, burn_in=burn_in)
    V = train(model, C, len(weights) + burn_in)
    want = sum(weight * v for weight, v in zip(weights, V[burn_in:], strict=True))
    assert C.t == len(weights) + burn_in
    torch.testing.assert_close(flat(C.diagonal()), want.diagonal(), **CLOSE)
    if full:
        torch.testing.assert_close(C.matrix(), want, **CLOSE)


@pytest.mark.parametrize("full", [False, True])
def test_initial(full):
    """kappa = 1/t forgets C_0; 1/(t + 1) gives it the weight of one contribution."""
    for kappa, share in ((running_mean, 0), (lambda t: 1 / (t + 1), 1 / 4)):
        model = perceptron()
        p = sum(w.numel() for w in model.parameters())
        C_0 = torch.rand(p, p)
        initial = C_0 if full else dict(zip_parameters(model, C_0.diagonal()))
        C = GradientCovariance(model, "all", full, kappa=kappa, initial=initial)
        assert torch.equal(flat(C.diagonal()), C_0.diagonal())
        want = share * C_0 + (1 - share) * sum(train(model, C, 3)) / 3
        torch.testing.assert_close(flat(C.diagonal()), want.diagonal(), **CLOSE)
        if full:
            torch.testing.assert_close(C.matrix(), want, **CLOSE)


@pytest.mark.parametrize("full", [False, True])
def test_an_exponential_window_goes_on_for_ever(full):
    """After 300 updates the first has the weight 2^-300, which float32 cannot hold."""
    model, (x, y) = perceptron().float(), minibatch()
    once = GradientCovariance(model, "all", full)
    C = GradientCovariance(model, "all", full, kappa=0.5)
    for covariance, updates in ((once, 1), (C, 300)):
        for _ in range(updates):
            covariance.update(F.cross_entropy, x.float(), y)
    torch.testing.assert_close(flat(C.diagonal()), flat(once.diagonal()))


@pytest.mark.parametrize("samples", ["first", "all"])
def test_a_gradient_that_overflows_in_the_burn_in_is_not_counted(samples):
    model, (x, y) = perceptron(), minibatch()
    C = GradientCovariance(model, samples, burn_in=2)
    C.update(F.cross_entropy, x, y)
    C.update(F.cross_entropy, x * torch.inf, y)
    assert not flat(C.diagonal()).any()


def zip_parameters(model, values):
    sizes = [w.numel() for w in model.parameters()]
    for (name, w), part in zip(model.named_parameters(), values.split(sizes), strict=True):
        yield name, part.view(w.shape).clone()


@pytest.mark.parametrize("samples", ["first", "all"])
def test_gradient_is_that_of_the_batch_and_replaces(samples):
    model, (x, y) = perceptron(), minibatch()
    C = GradientCovariance(model, samples, parameters=["0.weight"])
    F.cross_entropy(model(x), y).backward()
    want = {name: w.grad.clone() for name, w in model.named_parameters()}
    model.zero_grad()
    for _ in range(3):
        C.update(F.cross_entropy, x, y)
        for name, w in model.named_parameters():
            assert torch.equal(w.grad, want[name])


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("full", [False, True])
def test_sum_loss(samples, full):
    model, (x, y) = perceptron(), minibatch()
    mean = GradientCovariance(model, samples, full)
    total = GradientCovariance(model, samples, full, reduction="sum")
    for _ in range(2):
        mean.update(F.cross_entropy, x, y)
        total.update(lambda o, y: F.cross_entropy(o, y, reduction="sum"), x, y)
    torch.testing.assert_close(flat(total.diagonal()), flat(mean.diagonal()), **CLOSE)


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("full", [False, True])
def test_unbiased(samples, full):
    model, (x, y) = perceptron(), minibatch()
    biased = GradientCovariance(model, samples, full)
    unbiased = GradientCovariance(model, samples, full, unbiased=True)
    for C in (biased, unbiased):
        C.update(F.cross_entropy, x, y)
    want = S / (S - 1) * flat(biased.diagonal())
    torch.testing.assert_close(flat(unbiased.diagonal()), want, **CLOSE)


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("variants", [1, 2])
@pytest.mark.parametrize("again", [False, True], ids=["by layer", "another way"])
def test_ensemble_equals_single_models(samples, full, variants, again):
    """Also where the loss uses a parameter again, so that its layer does not account for it."""
    runs = [[perceptron() for _ in range(variants)] for _ in range(3)]
    ensemble = stack([run[0] for run in runs])
    for name, w in ensemble.named_parameters():
        w.data = torch.stack(
            [torch.stack([m.get_parameter(name).detach() for m in run]) for run in runs]
        )
    x, y = torch.randn(3, 1, S, 4), torch.randint(0, 3, (3, 1, S))

    def loss_fn(model):
        def per_sample(output, y):
            if again:
                output = output * model[0].bias.unsqueeze(-2)
            y = y.expand(output.shape[:-1]).unsqueeze(-1)
            return output.logsumexp(-1) - output.gather(-1, y).squeeze(-1)

        return summed(per_sample)

    C = GradientCovariance(ensemble, samples, full, ensemble_dims=2)
    for _ in range(2):
        C.update(loss_fn(ensemble), x, y)
    another_way = {"0.bias"} if again else set()
    assert C._gradients.by_layer == C.diagonal().keys() - another_way
    for i, run in enumerate(runs):
        for j, model in enumerate(run):
            single = GradientCovariance(model, samples, full)
            for _ in range(2):
                single.update(loss_fn(model), x[i, 0], y[i, 0])
            for name, d in single.diagonal().items():
                torch.testing.assert_close(C.diagonal()[name][i, j], d, **CLOSE)
            if full:
                torch.testing.assert_close(C.matrix()[i, j], single.matrix(), **CLOSE)


def test_an_ensemble_in_blocks(monkeypatch):
    """What is done at once in the test above goes by in many blocks."""
    monkeypatch.setattr(factors, "_block", lambda like: 8)
    test_ensemble_equals_single_models("first", full=False, variants=2, again=False)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (perceptron, (4,)),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
            (2, 4, 4),
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 4, 2, stride=2), nn.Flatten(), nn.Linear(8, 3)),
            (2, 5),
        ),
        (lambda: nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(6, 3)), (2,)),
    ],
    ids=["perceptron", "conv2d", "conv1d", "embedding"],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_all_equals_backpack(build, shape, reduction):
    """BackPACK's variance is that of g_i / S if the loss is a mean."""
    model, y = build(), torch.randint(0, 3, (S,))
    x = torch.randint(0, 6, (S, *shape)) if shape == (2,) else torch.randn(S, *shape)
    C = GradientCovariance(model, "all", reduction=reduction)
    C.update(nn.CrossEntropyLoss(reduction=reduction), x, y)
    loss_fn = extend(nn.CrossEntropyLoss(reduction=reduction))
    with backpack(Variance()):
        loss_fn(extend(model)(x), y).backward()
    for name, w in model.named_parameters():
        want = w.variance * (S**2 if reduction == "mean" else 1)
        torch.testing.assert_close(C.diagonal()[name], want, **CLOSE)


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("size", [2, 3])
def test_expectation_is_that_of_one_sample_but_for_a_factor(samples, size):
    """E V_t = (1 - 1/S) C, exactly: over every minibatch that can be drawn from three objects."""
    model, (x, y) = perceptron(), minibatch()
    x, y = x[:3], y[:3]
    C = GradientCovariance(model, samples, full=True)
    for index in itertools.product(range(3), repeat=size):
        C.update(F.cross_entropy, x[list(index)], y[list(index)])
    want = contribution(rows(model, F.cross_entropy, x, y), "all")
    torch.testing.assert_close(C.matrix(), (1 - 1 / size) * want, **CLOSE)


def test_one_sample_has_more_variance():
    """For normal g_i the estimate from all samples has S - 1 times less variance."""
    model, n = nn.Linear(1, 1, bias=False), 2000
    estimates = {}
    for samples in ("first", "all"):
        C = GradientCovariance(model, samples, kappa=1.0)
        estimates[samples] = []
        for _ in range(n):  # g_i is x_i
            C.update(lambda o, y: o.mean(), torch.randn(S, 1), torch.zeros(S))
            estimates[samples].append(C.diagonal()["weight"].item())
    ratio = torch.tensor(estimates["first"]).var() / torch.tensor(estimates["all"]).var()
    assert abs(ratio - (S - 1)) < 1.2


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    size=st.integers(2, 5),
    samples=st.sampled_from(["first", "all"]),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 2**32),
)
def test_diagonal_and_matrix_agree(widths, size, samples, scale, seed):
    """And a loss times c has a covariance times c^2."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers, nn.Tanh())
    x, y = torch.randn(size, widths[0]), torch.randn(size, widths[-1])
    diagonal, matrix = (GradientCovariance(model, samples, full) for full in (False, True))
    scaled = GradientCovariance(model, samples)
    for _ in range(2):
        diagonal.update(F.mse_loss, x, y)
        matrix.update(F.mse_loss, x, y)
        scaled.update(lambda o, y: scale * F.mse_loss(o, y), x, y)
    torch.testing.assert_close(flat(diagonal.diagonal()), flat(matrix.diagonal()), **CLOSE)
    torch.testing.assert_close(matrix.matrix().diagonal(), flat(matrix.diagonal()))
    want = scale**2 * flat(diagonal.diagonal())
    torch.testing.assert_close(flat(scaled.diagonal()), want, rtol=1e-8, atol=1e-10)
    assert torch.linalg.eigvalsh(matrix.matrix()).min() > -1e-10


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("full", [False, True])
def test_parameters_without_a_gradient_have_the_gradient_zero(samples, full):
    """Frozen from the start: not followed. Frozen later or not used: zero."""
    model, (x, y) = perceptron(), minibatch()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    model[0].bias.requires_grad_(False)
    C = GradientCovariance(model, samples, full)
    C.update(F.cross_entropy, x, y)
    before = C.diagonal()
    assert before.keys() == {"0.weight", "2.weight", "2.bias", "unused.weight", "unused.bias"}
    assert not before["unused.weight"].any()
    model[2].weight.requires_grad_(False)
    C.update(F.cross_entropy, x, y)
    after = C.diagonal()
    torch.testing.assert_close(after["2.weight"], before["2.weight"] / 2)
    torch.testing.assert_close(after["2.bias"], before["2.bias"])


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("full", [False, True])
def test_no_parameter_with_a_gradient(samples, full):
    model, (x, y) = perceptron(), minibatch()
    model.unused = nn.Parameter(torch.ones(2))
    C = GradientCovariance(model, samples, full, parameters=["unused"])
    C.update(F.cross_entropy, x, y)
    assert not C.diagonal()["unused"].any()


@pytest.mark.parametrize(
    "which", [["2.bias", "0.weight"], lambda name, w: name in ("0.weight", "2.bias")]
)
@pytest.mark.parametrize("samples", ["first", "all"])
def test_selection(which, samples):
    model, (x, y) = perceptron(), minibatch()
    every = GradientCovariance(model, samples, full=True)
    some = GradientCovariance(model, samples, full=True, parameters=which)
    for C in (every, some):
        C.update(F.cross_entropy, x, y)
    assert list(some.diagonal()) == ["0.weight", "2.bias"]
    index = [*range(12), *range(24, 27)]
    torch.testing.assert_close(some.matrix(), every.matrix()[index][:, index])


def test_what_is_returned_is_a_copy():
    model, (x, y) = perceptron(), minibatch()
    for full in (False, True):
        C = GradientCovariance(model, "all", full)
        C.update(F.cross_entropy, x, y)
        want = flat(C.diagonal())
        for d in C.diagonal().values():
            d.zero_()
        if full:
            C.matrix().zero_()
        assert torch.equal(flat(C.diagonal()), want)


def test_rounding_gives_no_negative_variance():
    """All samples alike: the second moment less the squared mean is rounding of either sign."""
    model = nn.Linear(30, 20).float()
    x, y = torch.randn(1, 30).float().expand(7, 30), torch.zeros(7, dtype=torch.long)
    C = GradientCovariance(model, "all")
    C.update(F.cross_entropy, x, y)
    assert min(d.min() for d in C._C.sum.values()) < 0
    assert flat(C.diagonal()).min() >= 0
    assert flat(C.diagonal()).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float(dtype):
    model, (x, y) = perceptron().to(dtype), minibatch()
    C = GradientCovariance(model, "all")
    C.update(lambda o, y: F.cross_entropy(o.float(), y), x.to(dtype), y)
    assert all(d.dtype == torch.float32 for d in C.diagonal().values())


def test_the_matrix_has_the_common_type_of_the_parameters():
    model = nn.Sequential(nn.Linear(4, 3).float(), nn.Linear(3, 3))
    assert GradientCovariance(model, full=True).matrix().dtype == torch.float64


def test_copies_are_independent():
    model, (x, y) = perceptron(), minibatch()
    C = GradientCovariance(model, "all")
    C.update(F.cross_entropy, x, y)
    for copied in (pickle.loads(pickle.dumps(C)), copy.deepcopy(C)):
        copied.update(F.cross_entropy, x[:3], y[:3])
        assert (C.t, copied.t) == (1, 2)
        assert not torch.equal(flat(C.diagonal()), flat(copied.diagonal()))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kappa", [running_mean, 0.5])
def test_saved_and_loaded_goes_on_as_if_uninterrupted(full, kappa, tmp_path):
    model, (x, y) = perceptron(), minibatch()
    C, resumed = (GradientCovariance(model, "all", full, kappa=kappa) for _ in range(2))
    for _ in range(2):
        C.update(F.cross_entropy, x, y)
    torch.save(C.state_dict(), tmp_path / "state")
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    for each in (C, resumed):
        each.update(F.cross_entropy, x[:3], y[:3])
        assert each.t == 3
    assert torch.equal(flat(C.diagonal()), flat(resumed.diagonal()))
    if full:
        assert torch.equal(C.matrix(), resumed.matrix())


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (
            {"t": 3, "scale": 1, "sum": torch.ones(27, 27)},
            "given as the full matrix: full=False takes a diag",
        ),
        ({"t": 3, "scale": 1, "sum": {"0.weight": torch.ones(3, 4)}}, r"C is for \['0.weight'\]"),
        (
            {
                "t": 3,
                "scale": 1,
                "sum": {n: torch.ones(3, 4) for n, _ in perceptron().named_parameters()},
            },
            r"'0.bias' has shape \(3, 4\)",
        ),
    ],
)
def test_another_state_is_refused_and_nothing_changed(state, match):
    C = GradientCovariance(perceptron())
    with pytest.raises(ValueError, match=match):
        C.load_state_dict(state)
    assert C.t == 0
    assert not flat(C.diagonal()).any()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"samples": "some"}, "samples='some'"),
        ({"reduction": "none"}, "reduction='none'"),
        ({"kappa": 0}, r"kappa=0: .* \(0, 1\]"),
        ({"kappa": 1.5}, r"kappa=1.5: .* \(0, 1\]"),
        ({"burn_in": -1}, "burn_in=-1"),
        ({"ensemble_dims": -1}, "ensemble_dims=-1"),
        ({"ensemble_dims": 2}, r"'0.bias' of shape \(3,\).* same for all"),
        ({"ensemble_dims": 2, "parameters": ["0.bias"]}, r"'0.bias' of shape \(3,\)"),
        ({"parameters": ["0.weight", "wrong"]}, r"unknown parameters \['wrong'\]"),
        ({"parameters": ["0.weight", "0.weight"]}, "stands twice"),
        ({"parameters": ["frozen"]}, r"\['frozen'\] have requires_grad=False"),
        ({"parameters": lambda name, w: False}, "no parameter"),
        ({"parameters": []}, "no parameter"),
        ({"initial": {"0.weight": torch.zeros(3, 4)}}, "C is for"),
        ({"initial": torch.zeros(2, 2), "full": True}, r"shape \(2, 2\), not \(27, 27\)"),
        ({"initial": torch.zeros(27, 27)}, "given as the full matrix"),
    ],
)
def test_wrong_settings(settings, match):
    model = perceptron()
    model.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    with pytest.raises(ValueError, match=match):
        GradientCovariance(model, **settings)


def test_complex_parameters_are_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="complex"):
        GradientCovariance(model)


def test_matrix_above_the_limit():
    with pytest.raises(MemoryError, match=r"1 x 27 .* takes 5,832 bytes, .* \(parameters="):
        GradientCovariance(perceptron(), full=True, memory_limit=5831)
    GradientCovariance(perceptron(), full=True, memory_limit=5832)
    ensemble = stack([perceptron(), perceptron()])
    with pytest.raises(MemoryError, match=r"2 x 27 .* takes 11,664 bytes"):
        GradientCovariance(ensemble, full=True, ensemble_dims=2, memory_limit=11663)
    with pytest.raises(ValueError, match="full=True"):
        GradientCovariance(perceptron()).matrix()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm1d(4),
        lambda: nn.BatchNorm1d(4, affine=False),
        lambda: nn.SyncBatchNorm(4),
        lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
    ],
)
def test_batch_norm_with_the_statistics_of_the_minibatch_is_refused(norm):
    model, (x, y) = nn.Sequential(norm(), perceptron()), minibatch()
    C = GradientCovariance(model)
    check_refused(C, (x, y), r"^0 is a BatchNorm .* eval\(\)")


def test_batch_norm_in_evaluation():
    norm = nn.BatchNorm1d(4)
    model, (x, y) = nn.Sequential(norm, perceptron()), minibatch()
    norm(torch.randn(20, 4))
    norm.eval()
    C = GradientCovariance(model, "all", full=True)
    C.update(F.cross_entropy, x, y)
    want = contribution(rows(model, F.cross_entropy, x, y), "all")
    torch.testing.assert_close(C.matrix(), want, **CLOSE)


@pytest.mark.parametrize("samples", ["first", "all"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_first_minibatch_that_is_not_finite_is_refused(samples, bad):
    C, (x, y) = GradientCovariance(perceptron(), samples), minibatch()
    x[2, 0] = bad
    with pytest.raises(ValueError, match=r"not finite: .* inf or NaN in x"):
        C.update(F.cross_entropy, x, y)
    assert C.t == 0
    assert not flat(C.diagonal()).any()


def check_refused(C, minibatch, match):
    """An error, after which nothing has changed."""
    x, y = minibatch
    C.model.zero_grad()
    before = [(name, w.clone()) for name, w in C.model.state_dict().items()]
    for w in C.model.parameters():
        w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match=match):
        C.update(F.cross_entropy, x, y)
    assert C.t == 0
    assert not flat(C.diagonal()).any()
    assert all((w.grad == 1).all() for w in C.model.parameters())
    for (name, want), (_, w) in zip(before, C.model.state_dict().items(), strict=True):
        assert torch.equal(w, want), name


def test_wrong_minibatches():
    x, y = minibatch()
    check_refused(GradientCovariance(perceptron()), (x[:1], y[:1]), "S = 1: .* S >= 2")
    check_refused(GradientCovariance(perceptron()), (x, y[:3]), r"\(5, 4\) and y \(3,\) .* axis 0")
    for few in ((x[0, 0], y), (x, y[0])):
        check_refused(GradientCovariance(perceptron()), few, "must have the samples on axis 0")
    for kappa in (2.0, -0.5):
        bad = GradientCovariance(perceptron(), kappa=lambda t, kappa=kappa: kappa)
        check_refused(bad, (x, y), rf"kappa\(1\) = {kappa}")
