"""An experiment: its results are those of the plain way, whatever runs beside them.

The reference trains one ``nn.Module`` at a time with ``torch.optim.Adam``, masks its gradient and
puts the frozen values back, in the orders that the results name.
"""

import functools
import json
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.experiments import data
from parameter_ordering.paper.experiments.experiment import converged
from parameter_ordering.paper.experiments.models import initialized
from parameter_ordering.paper.experiments.protocol import seeds
from parameter_ordering.paper.orders.catalogue import ORDERS
from parameter_ordering.paper.store.results import Store, results

BASIC = ("covariance", "random", "random_shared", "random_within_tensors", "covariance_descending")
TINY = {"runs": 3, "t0": 6, "iterations": 8, "S": 8, "lr": 0.01, "grid": 4}


def boston(**settings):
    return experiments.boston_housing(**TINY | {"hidden": 2} | settings)


EXPERIMENTS = {
    "boston_housing": boston,
    "synthetic_1": lambda: experiments.synthetic_1(**TINY, hidden=2, objects=40),
    "synthetic_2": lambda: experiments.synthetic_2(**TINY, objects=40),
    "synthetic_3": lambda: experiments.synthetic_3(**TINY, objects=40),
    "mnist": lambda: experiments.mnist(**TINY, hidden=2),
}


def run(experiment):
    return experiment.run(progress=False, jobs=1)


@pytest.fixture(scope="module")
def dataset():
    return run(boston())


@functools.cache
def data_of(experiment):
    return experiment.data()


def flat(tensors):
    return torch.cat([each.detach().flatten() for each in tensors])


def train_alone(experiment, number, steps, frozen=None):
    """One model, the plain way; after t0 what ``frozen`` marks stands still."""
    torch.manual_seed(seeds(experiment.seed, "weights", [number])[0])
    model, sets = initialized(experiment.build(), experiment.initial_weights), data_of(experiment)

    def fresh():
        if experiment.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), experiment.lr, experiment.momentum)
        return torch.optim.Adam(model.parameters(), lr=experiment.lr)

    optimizer, m = fresh(), len(sets.x_train)
    g = torch.Generator().manual_seed(seeds(experiment.seed, "minibatches", [number])[0])
    draw = {
        "epochs": lambda: torch.randperm(m, generator=g),
        "replacement": lambda: torch.randint(m, (m,), generator=g),
        "fixed order": lambda: torch.arange(m),
    }[experiment.minibatches]
    rows = ()
    for t in range(steps):
        if len(rows) < experiment.S:
            rows = draw()
        if t == experiment.t0 and experiment.fresh_optimizer:
            optimizer = fresh()
        batch, rows = rows[: experiment.S], rows[experiment.S :]
        optimizer.zero_grad()
        experiment.loss(model(sets.x_train[batch]), sets.y_train[batch]).mean().backward()
        before = flat(model.parameters())
        mask = torch.zeros_like(before, dtype=torch.bool)
        if t >= experiment.t0 and frozen is not None:
            mask = torch.from_numpy(frozen)
        sizes = [w.numel() for w in model.parameters()]
        for w, still in zip(model.parameters(), mask.split(sizes), strict=True):
            w.grad[still.view(w.shape)] = 0
        optimizer.step()
        after = torch.where(mask, before, flat(model.parameters()))
        torch.nn.utils.vector_to_parameters(after, model.parameters())
    return model


@torch.no_grad()
def losses(experiment, model):
    sets = data_of(experiment)
    parts = ((sets.x_train, sets.y_train), (sets.x_test, sets.y_test))
    return [experiment.loss(model(x), y).mean().item() for x, y in parts]


OTHER = {
    "sgd": {"optimizer": "sgd", "lr": 1e-4},
    "momentum that starts anew": {"optimizer": "sgd", "lr": 1e-4, "fresh_optimizer": True},
    "Adam that starts anew": {"fresh_optimizer": True},
    "replacement": {"minibatches": "replacement"},
    "fixed order": {"minibatches": "fixed order", "S": 70},  # 354 objects: more than one epoch
    "kaiming normal": {"initial_weights": "kaiming normal"},
    "xavier uniform": {"initial_weights": "xavier uniform"},
    "normal": {"initial_weights": "normal"},
    "features as they are": {"standardized": False},
}
for name, settings in OTHER.items():
    EXPERIMENTS[name] = functools.partial(boston, **settings)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_losses_are_those_of_the_plain_way(name):
    experiment = EXPERIMENTS[name]()
    ds = run(experiment.replace(orders=("covariance", "random")))
    for order in ds.order.values:
        for number in range(experiment.runs):
            for k in ds.k.values:
                frozen = ds.ranks.sel(order=order, run=number).values <= k
                steps = experiment.t0 + experiment.iterations
                expected = losses(experiment, train_alone(experiment, number, steps, frozen))
                ours = ds.loss.sel(order=order, run=number, k=k)
                np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_what_is_kept_of_t0(dataset):
    experiment = boston()
    sets = data_of(experiment)
    for number in range(experiment.runs):
        of_run = dataset.sel(run=number)
        start, model = (train_alone(experiment, number, steps) for steps in (0, experiment.t0))
        np.testing.assert_array_equal(of_run.w0, flat(start.parameters()))
        np.testing.assert_allclose(of_run.w, flat(model.parameters()), rtol=1e-4, atol=1e-6)
        for kept, at in (("start_variance", start), ("exact_variance", model)):
            gradients = []
            for x, y in zip(sets.x_train, sets.y_train, strict=True):
                at.zero_grad()
                experiment.loss(at(x[None]), y[None]).mean().backward()
                gradients.append(flat(w.grad for w in at.parameters()))
            variance = torch.stack(gradients).var(0, correction=0)
            np.testing.assert_allclose(of_run[kept], variance, rtol=1e-3, atol=1e-3)


def test_every_stage_of_one_training_is_a_training_of_its_own():
    stages = (2, 6, 60)
    together = run(boston(stages=stages))
    assert together.t0.values.tolist() == list(stages)
    for t0 in stages:
        alone = run(boston(t0=t0)).drop_attrs()
        xr.testing.assert_identical(together.sel(t0=t0, drop=True).drop_attrs(), alone)


def test_the_loss_at_the_start(dataset):
    for number in range(3):
        start = losses(boston(), train_alone(boston(), number, 0))
        np.testing.assert_allclose(dataset.start_loss.sel(run=number), start, rtol=1e-5)


def test_the_parameters_are_labelled(dataset):
    names = [name for name, w in boston().build().named_parameters() for _ in range(w.numel())]
    assert dataset.tensor.values.tolist() == names
    for name in set(names):
        places = dataset.place[dataset.tensor == name]
        assert places.values.tolist() == [*range(names.count(name))]


def test_with_nothing_frozen_the_order_is_of_no_account(dataset):
    free = dataset.loss.sel(k=0).transpose("order", ...).values
    np.testing.assert_array_equal(free, np.broadcast_to(free[0], free.shape))


def test_with_all_frozen_the_loss_stays_that_of_t0(dataset):
    p = boston().p
    at_t0 = run(boston(iterations=0)).loss.sel(k=p)
    xr.testing.assert_equal(dataset.loss.sel(k=p), at_t0)
    free = run(boston(iterations=0)).loss.sel(k=0).drop_vars("k")
    xr.testing.assert_allclose(at_t0.drop_vars("k"), free, rtol=1e-6)
    assert (dataset.loss.sel(split="train", k=0) < at_t0.sel(split="train")).all()


def test_every_order_ranks_all_parameters():
    experiment = experiments.synthetic_3(**TINY | {"iterations": 0}, objects=40, orders=[*ORDERS])
    ranks = run(experiment).ranks
    everyone = np.arange(1, experiment.p + 1)
    assert (np.sort(ranks, -1) == everyone).all()


def test_covariance_freezes_the_smallest_variance_first(dataset):
    for number in dataset.run:
        ranks, variance = dataset.ranks.sel(order="covariance"), dataset.variance
        in_order = variance.sel(run=number)[np.argsort(ranks.sel(run=number).values)]
        assert (np.diff(in_order) >= 0).all()


def test_covariance_descending_is_the_reverse(dataset):
    up, down = (dataset.ranks.sel(order=name) for name in ("covariance", "covariance_descending"))
    assert (up.values + down.values == boston().p + 1).all()


def test_a_random_order_is_drawn_for_each_run_and_a_shared_one_once(dataset):
    own, shared = (dataset.ranks.sel(order=name).values for name in ("random", "random_shared"))
    assert len(np.unique(own, axis=0)) == len(own)
    assert len(np.unique(shared, axis=0)) == 1
    assert (own != shared).any(1).all()


def test_random_within_tensors_freezes_as_many_of_each(dataset):
    like = dataset.ranks.sel(order="covariance")
    ours = dataset.ranks.sel(order="random_within_tensors")
    for name in np.unique(dataset.tensor):
        of_tensor = dataset.tensor == name
        for k in range(boston().p + 1):
            counts = [(ranks[:, of_tensor] <= k).sum("parameter") for ranks in (ours, like)]
            xr.testing.assert_equal(*(each.drop_vars("order") for each in counts))
    assert (ours.values != like.values).any(1).all()


def test_the_same_seed_gives_the_same_bits(dataset):
    xr.testing.assert_identical(run(boston()), dataset)


@pytest.mark.parametrize("change", [{"seed": 1}, {"data_seed": 1}], ids=str)
def test_another_seed_gives_other_results(dataset, change):
    other = run(boston(**change))
    assert (other.loss != dataset.loss).all()


def test_a_seed_of_data_moves_no_weights(dataset):
    np.testing.assert_array_equal(run(boston(data_seed=1)).w0, dataset.w0)


@pytest.mark.parametrize("change", [{"runs": 7}, {"shard": 1}, {"shard": 2}], ids=str)
def test_a_run_does_not_depend_on_how_many_go_together(dataset, change):
    other = run(boston(**change)).sel(run=dataset.run)
    np.testing.assert_array_equal(other.w0, dataset.w0)
    # Nothing but rounding may differ: products of another size are summed in another order.
    for name in ("w", "variance", "loss"):
        np.testing.assert_allclose(other[name], dataset[name], rtol=1e-4, atol=1e-5)
    drawn = ["random", "random_shared"]
    xr.testing.assert_equal(other.ranks.sel(order=drawn), dataset.ranks.sel(order=drawn))


def test_weights_can_be_shared(dataset):
    shared = run(boston(shared_weights=True))
    assert len(np.unique(dataset.w0, axis=0)) == 3
    np.testing.assert_array_equal(shared.w0, np.tile(dataset.w0[0], (3, 1)))
    assert len(np.unique(shared.w, axis=0)) == 3
    xr.testing.assert_allclose(shared.loss.sel(run=0), dataset.loss.sel(run=0), rtol=1e-5)


def test_each_run_can_have_its_own_data():
    own = run(experiments.synthetic_3(**TINY, objects=40, own_data=True, data_seed=5))
    for number in range(3):
        drawn = data.synthetic_regression(40, data_seed=5 + number)
        np.testing.assert_array_equal(own.w_true.sel(run=number), drawn.w)
        one = run(experiments.synthetic_3(**TINY, objects=40, data_seed=5 + number))
        np.testing.assert_allclose(own.loss.sel(run=number), one.loss.sel(run=number), rtol=1e-4)


def test_saved_and_loaded_are_equal(dataset, tmp_path):
    store = Store(tmp_path)
    for _ in ("computed", "read"):
        kept = results(boston(), store=store, progress=False, jobs=1)
        xr.testing.assert_identical(kept, dataset)


def test_the_settings_stand_in_the_results(dataset):
    provenance = json.loads(dataset.attrs["provenance"])
    settings = provenance["settings"]
    assert boston(**settings) == boston()
    assert provenance["data"]["sha256"] == boston().data().checksum
    assert provenance["versions"]["torch"] == version("torch")


def test_a_learning_curve_is_training_with_nothing_frozen():
    experiment = boston(horizon=14, window=20)
    curve = experiment.learning_curve(progress=False)
    assert curve.iteration.values.tolist() == [*range(0, 15, 2)]
    for number in range(experiment.runs):
        for t in (0, 2, 14):
            expected = losses(experiment, train_alone(experiment, number, t))
            ours = curve.loss.sel(run=number, iteration=t)
            np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_a_short_window_has_every_iteration_in_the_curve():
    curve = boston(runs=1, horizon=3, window=5).learning_curve(progress=False)
    assert curve.iteration.values.tolist() == [0, 1, 2, 3]


def falling(loss):
    """A learning curve with this test loss at 0, 10, 20, ..., in two runs that differ about it."""
    loss = np.stack([loss + 0.5, loss - 0.5])
    return xr.Dataset(
        {"loss": (("split", "run", "iteration"), [np.zeros_like(loss), loss])},
        {"split": ["train", "test"], "iteration": 10 * np.arange(loss.shape[1])},
    )


def test_the_rule_takes_the_first_flat_window():
    curve = falling(np.array([100, 50, 25, 20, 19.5, 19.5, 19.5]))
    assert converged(curve, window=20, tolerance=0.05) == 30
    assert converged(curve, window=20, tolerance=0.3) == 20
    assert converged(curve, window=10, tolerance=0.05) == 30
    with pytest.raises(ValueError, match=r"falls by 1% in 30 iterations.*longer horizon"):
        converged(curve, window=30, tolerance=0.01)


def test_the_rule_asks_for_less_than_the_tolerance_and_never_takes_the_start():
    assert converged(falling(np.array([8, 4, 2, 2])), window=10, tolerance=0.5) == 20
    assert converged(falling(np.array([2, 2, 2])), window=10, tolerance=0.5) == 10


def test_divergence_is_named_before_the_freeze():
    with pytest.raises(
        FloatingPointError,
        match=r"^boston_housing, run \d: the loss is (inf|nan) at iteration \d+; take a smaller lr",
    ):
        run(boston(lr=1e30))


def test_divergence_is_named_after_the_freeze(monkeypatch):
    experiment = boston(orders=("random", "covariance"))
    # Nothing frozen, the interior k of the first order, the second k of the second.
    variant = 1 + (experiment.grid - 2) + 1
    steps = 0

    def explodes(output, target):
        """A squared error, infinite for one model from its fourth iteration on."""
        nonlocal steps
        error = (output.squeeze(-1) - target).square().clone()
        steps += output.shape[1] > 1
        if steps >= 4:
            error[1, variant, 3] = torch.inf
        return error

    monkeypatch.setattr(type(experiment), "loss", staticmethod(explodes))
    with pytest.raises(
        FloatingPointError,
        match=r"^boston_housing, run 1, order covariance, k = 21: the loss is inf at iteration 10;",
    ):
        run(experiment)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"S": 1}, ValueError, "S\n.*greater than or equal to 2.*input_value=1,"),
        *(
            ({name: 0}, ValueError, f"{name}\n.*greater than 0.*input_value=0")
            for name in ("t0", "runs", "shard", "window", "horizon", "lr", "hidden")
        ),
        *(
            ({name: -1}, ValueError, f"{name}\n.*greater than or equal to 0.*input_value=-1")
            for name in ("iterations", "seed", "data_seed", "momentum")
        ),
        ({"grid": 1}, ValueError, "grid\n.*greater than or equal to 2.*input_value=1"),
        ({"lr": float("nan")}, ValueError, "lr\n.*finite.*input_value=nan"),
        ({"lr": float("inf")}, ValueError, "lr\n.*finite.*input_value=inf"),
        ({"kappa": "1/s"}, ValueError, "kappa must be .* got '1/s'"),
        ({"orders": ("covarance",)}, ValueError, "unknown order 'covarance'; known are covariance"),
        ({"orders": ()}, ValueError, "orders must be distinct and at least one"),
        ({"orders": ("random", "random")}, ValueError, "orders must be distinct"),
        ({"orders": "random"}, ValueError, "orders\n.*valid tuple.*input_value='random'"),
        ({"stages": (5, 3)}, ValueError, r"stages must ascend, got \(5, 3\)"),
        ({"optimizer": "sdg"}, ValueError, "optimizer\n.*'adam' or 'sgd'.*input_value='sdg'"),
        ({"minibatches": "bag"}, ValueError, "minibatches\n.*'epochs', 'replacement' or 'fixed"),
        ({"runs": 2.5}, ValueError, "runs\n.*valid integer.*input_value=2.5"),
        ({"runs": "3"}, ValueError, "runs\n.*valid integer.*input_value='3'"),
        ({"runs": True}, ValueError, "runs\n.*valid integer.*input_value=True"),
        ({"shared_weights": 1}, ValueError, "shared_weights\n.*valid boolean.*input_value=1"),
        (
            {"iteratoins": 5},
            TypeError,
            "BostonHousing has no setting 'iteratoins'; it has runs,",
        ),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        boston(**settings)
    good = {name: value for name, value in settings.items() if name in asdict(boston())}
    if good:
        with pytest.raises(error, match=message):
            replace(boston(), **good)


def test_an_unknown_experiment_is_named():
    with pytest.raises(AttributeError, match="boston_hosing"):
        experiments.boston_hosing()


BAD_DATA = {
    "S above the number of objects": (
        {"S": 355},
        {},
        ValueError,
        "S = 355: there are 354 training objects",
    ),
    "NaN": (
        {},
        {"x_test": torch.full((152, 13), torch.nan)},
        ValueError,
        "x_test has 1976 NaN or inf",
    ),
    "targets of a wrong shape": ({}, {"y_train": torch.zeros(354, 1)}, ValueError, "y_train"),
    "targets of a wrong type": ({}, {"y_train": torch.zeros(354).bool()}, TypeError, "y_train"),
}


@pytest.mark.parametrize(
    ("settings", "change", "error", "message"), BAD_DATA.values(), ids=BAD_DATA
)
@pytest.mark.parametrize("method", ["run", "learning_curve"])
def test_bad_data_are_named_before_anything_runs(
    monkeypatch, method, settings, change, error, message
):
    experiment, good = boston(**settings), boston().data()
    monkeypatch.setattr(type(experiment), "data", lambda self: replace(good, **change))
    monkeypatch.setattr(type(experiment), "build", lambda self: pytest.fail("it ran"))
    with pytest.raises(error, match=message):
        getattr(experiment, method)(progress=False)


def test_targets_that_do_not_fit_the_loss_are_named(monkeypatch):
    experiment, good = boston(), boston().data()
    classes = {part: getattr(good, part).long() for part in ("y_train", "y_test")}
    monkeypatch.setattr(type(experiment), "data", lambda self: replace(good, **classes))
    with pytest.raises(TypeError, match=r"target has type torch\.int64: it must be floating point"):
        run(experiment)


def test_the_full_mnist_is_asked_for_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"download=True, or take source='subset'"):
        run(experiments.mnist(**TINY, mnist_source="full"))


def test_a_damaged_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "SHA256SUMS").write_text("")
    (tmp_path / "boston_housing.csv").write_text("damaged")
    monkeypatch.setattr(data, "_FOLDER", tmp_path)
    with pytest.raises(OSError, match=r"boston_housing\.csv is damaged"):
        run(boston())


def test_a_progress_bar_shows_loss_and_time_left(capsys):
    boston(runs=1, t0=60, iterations=60).run(progress=True, jobs=1)
    shown = capsys.readouterr().err
    assert "boston_housing" in shown
    assert "120/120" in shown
    assert "loss=" in shown
    assert "<" in shown  # between the time that passed and the time that is left
