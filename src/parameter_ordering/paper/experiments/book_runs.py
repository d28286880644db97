"""The runs of the book: those that judge the claims, and those with other settings and orders."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments.experiment import Experiment, converged
from parameter_ordering.paper.experiments.step_cost import StepCost
from parameter_ordering.paper.store.results import NotStored, only_stored, results

PAIR = ("covariance", "random")
NAMES = ("synthetic_1", "boston_housing", "synthetic_3", "mnist")
EXPERIMENTS = (*NAMES, "synthetic_2")
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
# A data set for each run takes memory, so few of these are trained together.
OWN_DATA = {"own_data": True, "shard": 5}
# Not used in any development of an order. What is known of them are learning curves and the random
# order on these seeds: they give t0, and a set whose random order costs too little is left out.
CONFIRMED_ON = ("diabetes", "digits")
DEVELOPMENT = OWN_DATA | {"seed": 3000, "data_seed": 3000, "window": 250, "horizon": 4000}
# One setting at a time is varied, those of FACTORS by a factor. The book's own value is among them.
VARIED = {
    "t0": (0.25, 1, 4),
    "lr": (3e-4, 1e-3, 3e-3),
    "S": (8, 32, 128),
    "objects": (0.25, 1, 4),
    "hidden": (0.25, 1, 4),
    "shared_weights": (False, True),
    "kappa": ("1/t", "1/(t+1)", "0.01"),
}
FACTORS = ("t0", "objects", "hidden")
Cases = dict[tuple[str, str], xr.Dataset]


def late(experiment: Experiment, orders: tuple[str, ...] = (*PAIR, "random_shared")) -> Experiment:
    """The experiment at the t0 that the rule gives, see :func:`converged`."""
    curve = results(experiment, "learning_curve")
    t0 = converged(curve, experiment.window, experiment.tolerance)
    return experiment.replace(t0=t0, orders=orders)


def shared(experiment: Experiment) -> Experiment:
    """The experiment with the same initial weights in all runs."""
    return experiment.replace(shared_weights=True, orders=PAIR)


def one_data_set(**settings) -> Cases:
    """As in the paper: 25 runs on one data set, by experiment and t0, "early" or "rule".

    Args:
        settings: of all experiments, where they are not to be the book's.
    """
    cases = {}
    for name in NAMES:
        experiment = getattr(experiments, name)(**settings)
        cases[name, "early"] = results(experiment)
        cases[name, "rule"] = results(late(experiment))
    for name, widths in NARROW_AND_WIDE.items():
        pair = {"orders": PAIR, "grid": 11} | settings
        nets = [getattr(experiments, name)(hidden=hidden, **pair) for hidden in widths]
        nets = [net.replace(horizon=2 * net.horizon) for net in nets]  # narrow nets take longer
        for t0, variant in (("early", lambda net: net), ("rule", lambda net: late(net, PAIR))):
            cases[f"{name}_width", t0] = _side_by_side(nets, widths, variant)
    cases["mnist_cost", "early"] = results(StepCost())
    return cases


def new_data(**settings) -> Cases:
    """Beyond the paper: 25 runs on new seeds, each with a data set or split of its own."""
    cases = {}
    for name in NAMES:
        experiment = getattr(experiments, name)(**settings)
        fresh = OWN_DATA | {"seed": 1, "data_seed": 1}
        early = experiment.replace(orders=(*PAIR, "covariance_descending"), **fresh)
        cases[name, "early"] = results(early)
        cases[name, "rule"] = results(late(experiment, PAIR).replace(**fresh))
    return cases


def varied(**settings) -> Iterator[tuple[str, str, object, Experiment]]:
    """Experiment, setting, value, and the experiment with that value; ten runs, few k."""
    few = {"runs": 10, "grid": 6, "orders": (*PAIR, "random_within_tensors")} | settings
    for name in NAMES:
        base = getattr(experiments, name)(**few)
        for setting, values in VARIED.items():
            if not hasattr(base, setting):
                continue
            for value in values:
                if setting in FACTORS:
                    value = max(1, round(value * getattr(base, setting)))
                yield name, setting, value, base.replace(**{setting: value})


def untouched(name: str, **settings) -> Experiment:
    """All orders of one experiment, on seeds that were not used to choose among orders.

    Each run has a data set or split of its own.
    """
    also = tuple(order for order, names in ALSO_COMPARED.items() if name in names)
    fresh = OWN_DATA | {"seed": 3, "data_seed": 200, "grid": 9, "orders": COMPARED + also}
    return getattr(experiments, name)(**(fresh | settings))


def compared(**settings) -> dict[str, xr.Dataset]:
    """All orders on the paper's data sets and on those that were kept for this."""
    return {name: results(untouched(name, **settings)) for name in (*EXPERIMENTS, *CONFIRMED_ON)}


def compared_late(**settings) -> dict[str, xr.Dataset]:
    """Some orders at the t0 that the rule gives, on seeds of their own; fewer runs, few k."""
    cases = {}
    for name in EXPERIMENTS:
        experiment = late(getattr(experiments, name)(**settings), COMPARED_LATE)
        fewer = {"seed": 4, "data_seed": 300, "runs": min(15, experiment.runs)}
        fewer["grid"] = min(5, experiment.grid)
        cases[name] = results(experiment.replace(**(OWN_DATA | fewer)))
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
    of_chapters |= {"claims": _claims, "orders": _orders}
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
        f"{name}, early": results(experiment),
        f"{name}, rule": results(late(experiment)),
        f"{name}, shared weights": results(shared(experiment)),
    }


def _claims() -> dict[str, xr.Dataset]:
    cases = {}
    for (name, t0), data in one_data_set().items():
        for width in data.get("width", ()):
            cases[f"{name} {int(width)}, {t0}"] = data.sel(width=width, drop=True)
    fresh = new_data().items()
    return cases | {f"{name}, {t0}, new data": data for (name, t0), data in fresh}


def _orders() -> dict[str, xr.Dataset]:
    early = {f"{name}, all orders": data for name, data in compared().items()}
    late = {f"{name}, rule, orders": data for name, data in compared_late().items()}
    return early | late | {"breast_cancer, random order": undecided()}


def _side_by_side(nets, widths, variant) -> xr.Dataset:
    """Results of nets of several widths along a dimension ``width``; k is a share of each p."""
    found = []
    for net in nets:
        data = results(variant(net))[["loss"]]
        found.append(data.assign_coords(k=np.linspace(0, 1, data.sizes["k"])))
    return xr.concat(found, xr.Variable("width", list(widths)), combine_attrs="drop_conflicts")
