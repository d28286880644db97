"""The runs of the book: those that judge the claims, and those with other settings and orders."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from parameter_ordering.paper import experiments
from parameter_ordering.paper.evidence.stage import EARLY, LATE, STAGES, reached
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.experiments.step_cost import StepCost
from parameter_ordering.paper.experiments.table_1 import Synthetic2, Synthetic3
from parameter_ordering.paper.store.results import NotStored, only_stored, results

PAIR = ("covariance", "random")
NAMES = ("synthetic_1", "boston_housing", "synthetic_3", "mnist")
EXPERIMENTS = (*NAMES, "synthetic_2")
LINEAR = (Synthetic2, Synthetic3)
CURVE_SEED, CURVE_RUNS = 0, 10
NARROW_AND_WIDE = {"boston_housing": (5, 80), "mnist": (3, 30)}
COMPARED = (
    "random",
    "covariance",
    "all_samples",
    "second_moment",
    "adam_v",
    "mean_gradient",
    "signal_to_noise",
    "magnitude",
    "movement",
    "taylor",
    "obd",
    "fresh_gradient",
    "recommended",
    "zero_variance",
    "random_shared",
    "random_within_tensors",
    "fresh_within_tensors",
    "recommended_within_tensors",
    "covariance_descending",
    "dropout",
    "variational_dropout",
    "variational_relevance",
)
# Orders that some experiments only have.
ALSO_COMPARED = {
    "lasso": ("synthetic_3", "synthetic_2"),
    "elastic_net": ("synthetic_3",),
    "belsley": ("boston_housing", "synthetic_3", "synthetic_2"),
    "oracle": ("synthetic_3",),
}
COMPARED_LATE = (
    "random",
    "covariance",
    "second_moment",
    "obd",
    "fresh_gradient",
    "recommended",
    "recommended_within_tensors",
)
OWN_DATA = {"own_data": True}
FEW_TOGETHER = {"shard": 5}  # so many orders of so many runs would not stay in the caches
# Not used in any development of an order. What is known of them are learning curves and the random
# order on these seeds: they give t0, and a set whose random order costs too little is left out.
CONFIRMED_ON = ("diabetes", "digits")
DEVELOPMENT = OWN_DATA | {"seed": 3000, "data_seed": 3000, "horizon": 4000}
Cases = dict[tuple[str, str], xr.Dataset]


def learning(experiment: Experiment) -> Experiment:
    """Whose learning curve t0 is read off: few runs, on a seed that judges nothing.

    What is no matter of the curve is the same for all, so that none is computed twice.
    """
    plain = {"own_data": False, "shared_weights": False, "orders": PAIR, "stages": ()}
    plain |= {"t0": 1, "iterations": 0, "grid": 2}
    few = min(CURVE_RUNS, experiment.runs)
    return experiment.replace(seed=CURVE_SEED, runs=few, **plain)


def at(experiment: Experiment, shares: Sequence[float]) -> tuple[int, ...]:
    """The iterations at which these shares are left, or one more than that of the share before."""
    curve, found = results(learning(experiment), "learning_curve"), list[int]()
    for share in shares:
        found.append(max(reached(curve, share), found[-1] + 1 if found else 1))
    return tuple(found)


def early_and_late(experiment: Experiment, curve: xr.Dataset | None = None) -> Experiment:
    """The experiment frozen at its own t0 and at the late stage, in one training.

    Args:
        experiment: at the early t0.
        curve: its learning curve, if it is at hand.
    """
    curve = results(learning(experiment), "learning_curve") if curve is None else curve
    late = max(experiment.t0 + 1, reached(curve, LATE))
    return experiment.replace(stages=(experiment.t0, late))


def shared(experiment: Experiment) -> Experiment:
    """The experiment with the same initial weights in all runs."""
    return experiment.replace(shared_weights=True, orders=PAIR, grid=(experiment.grid + 1) // 2)


def one_data_set(**settings) -> Cases:
    """As in the paper: 25 runs on one data set, by experiment and stage, "early" or "late".

    Args:
        settings: of all experiments, where they are not to be the book's.
    """
    cases: Cases = {}
    for name in EXPERIMENTS:
        experiment = getattr(experiments, name)(**settings)
        cases |= _by_stage(name, results(early_and_late(experiment)))
    for name, widths in NARROW_AND_WIDE.items():
        pair = {"orders": PAIR} | settings
        nets = [getattr(experiments, name)(hidden=hidden, **pair) for hidden in widths]
        # Narrow nets take longer. Each net is frozen at the stages of its own learning curve.
        nets = [net.replace(horizon=2 * net.horizon) for net in nets]
        nets = [net.replace(t0=at(net, [EARLY])[0]) for net in nets]
        cases |= _by_stage(f"{name}_width", _side_by_side(nets, widths))
    cases["mnist_cost", "early"] = results(StepCost())
    return cases


def new_data(**settings) -> Cases:
    """Beyond the paper: 25 runs on new seeds, each with a data set or split of its own."""
    cases: Cases = {}
    for name in EXPERIMENTS:
        experiment = early_and_late(getattr(experiments, name)(**settings))
        fresh: dict = OWN_DATA | {"seed": 11, "data_seed": 1000}
        fresh["orders"] = (*PAIR, "covariance_descending")
        cases |= _by_stage(name, results(experiment.replace(**fresh)))
    return cases


def by_stage(**settings) -> dict[str, xr.Dataset]:
    """The whole way of a training: results with a dimension ``left``, the stages of the figure."""
    found = {}
    for name in EXPERIMENTS:
        experiment = getattr(experiments, name)(**({"runs": 10, "grid": 5, "seed": 12} | settings))
        orders = PAIR if isinstance(experiment, LINEAR) else (*PAIR, "random_within_tensors")
        data = results(experiment.replace(orders=orders, stages=at(experiment, STAGES)))
        found[name] = data.assign_coords(left=("t0", list(STAGES))).swap_dims(t0="left")
    return found


def untouched(name: str, **settings) -> Experiment:
    """All orders of one experiment, on seeds that were not used to choose among orders.

    Each run has a data set or split of its own.
    """
    also = tuple(order for order, names in ALSO_COMPARED.items() if name in names)
    fresh: dict = OWN_DATA | FEW_TOGETHER | {"seed": 5, "data_seed": 500, "grid": 6}
    fresh["orders"] = COMPARED + also
    return getattr(experiments, name)(**(fresh | settings))


def compared(**settings) -> dict[str, xr.Dataset]:
    """All orders on the paper's data sets and on those that were kept for this."""
    return {name: results(untouched(name, **settings)) for name in (*EXPERIMENTS, *CONFIRMED_ON)}


def compared_late(**settings) -> dict[str, xr.Dataset]:
    """Some orders at the late stage, on seeds of their own; fewer runs, few k."""
    cases = {}
    for name in EXPERIMENTS:
        experiment = getattr(experiments, name)(**settings)
        fewer = {"seed": 4, "data_seed": 300, "runs": min(15, experiment.runs)}
        fewer |= {"grid": min(5, experiment.grid), "orders": COMPARED_LATE}
        (late,) = at(experiment, [LATE])
        cases[name] = results(experiment.replace(t0=late, **(OWN_DATA | fewer)))
    return cases


def undecided(**settings) -> xr.Dataset:
    """The random order on Breast Cancer, where freezing costs too little to compare orders."""
    return results(untouched("breast_cancer", orders=("random",), **settings))


def stored(folder: Path) -> dict[str, xr.Dataset]:
    """All results of the book with a loss against k, read from the store in ``folder``.

    Raises:
        NotStored: some are not there, or not by the sources of now; the chapters are named.
    """
    of_chapters: dict[str, Callable[[], dict[str, xr.Dataset]]]
    of_chapters = {f"experiments/{name}": partial(_experiment, name) for name in EXPERIMENTS}
    of_chapters |= {"claims": _claims, "stages": _stages, "orders": _orders}
    found: dict[str, xr.Dataset] = {}
    missing = []
    with only_stored(folder):
        for chapter, cases in of_chapters.items():
            try:
                found |= cases()
            except NotStored:
                missing.append(f"chapters/{chapter}")
    if missing:
        raise NotStored(
            "there are no results by the sources and settings of now for "
            f"{', '.join(missing)}; run: parameter-ordering execute {' '.join(missing)}"
        )
    return found


def _experiment(name: str) -> dict[str, xr.Dataset]:
    experiment = getattr(experiments, name)()
    return {
        **_named(_by_stage(name, results(early_and_late(experiment)))),
        f"{name}, shared weights": results(shared(experiment)),
    }


def _claims() -> dict[str, xr.Dataset]:
    widths = {each: data for each, data in one_data_set().items() if "width" in data.dims}
    cases = {}
    for (name, stage), data in widths.items():
        for width in data.width.values:
            cases[f"{name} {width}, {stage}"] = data.sel(width=width, drop=True)
    fresh = _named(new_data())
    return cases | {f"{case}, new data": data for case, data in fresh.items()}


def _stages() -> dict[str, xr.Dataset]:
    return {
        f"{name}, {left:.0%} left": data.sel(left=left, drop=True)
        for name, data in by_stage().items()
        for left in data.left.values
    }


def _orders() -> dict[str, xr.Dataset]:
    early = {f"{name}, all orders": data for name, data in compared().items()}
    late = {f"{name}, late, orders": data for name, data in compared_late().items()}
    return early | late | {"breast_cancer, random order": undecided()}


def _by_stage(name: str, data: xr.Dataset) -> Cases:
    """Results at the early and the late stage; the early ones with the late weights beside."""
    early, late = (data.isel(t0=place, drop=True) for place in (0, 1))
    if "w" in data:
        early = early.assign(w_late=late.w)
    return {(name, "early"): early, (name, "late"): late}


def _named(cases: Cases) -> dict[str, xr.Dataset]:
    return {f"{name}, {stage}": data for (name, stage), data in cases.items()}


def _side_by_side(nets, widths) -> xr.Dataset:
    """Results of nets of several widths along a dimension ``width``; k is a share of each p."""
    found = []
    for net in nets:
        data = results(early_and_late(net))[["loss"]].drop_vars("t0")
        found.append(data.assign_coords(k=np.linspace(0, 1, data.sizes["k"])))
    return xr.concat(found, xr.Variable("width", list(widths)), combine_attrs="drop_conflicts")
