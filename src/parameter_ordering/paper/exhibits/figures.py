"""The figures of the book: the paper's two kinds, and those that say what is frozen."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from parameter_ordering.order import mean_frozen
from parameter_ordering.paper.evidence.growth import growth_ratios
from parameter_ordering.paper.exhibits.style import (
    COLOURS,
    INK,
    LOOKS,
    NAMES,
    PALE,
    describe,
    line,
    number,
    style,
)

__all__ = ["ALPHA_MAP", "COLOURS", "NAMES", "style"]  # what chapters draw with

ALPHA_MAP = "cividis"
_TENSORS = ("#0072b2", "#d55e00", "#009e73", "#8b3f96", "#c48a00", "#1c6e7d")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1)), (0, (3, 1)))
_PART = 40  # parameters, at equal steps, in the lower panels of alpha-hat


def loss_figure(
    data: xr.Dataset,
    orders: Sequence[str] = ("covariance", "random"),
    *,
    log: bool = False,
    label: str = "loss",
) -> Figure:
    """Figures 1, 3, 5 and 7: loss against the share of frozen parameters, train and test.

    A thick line is the mean over runs; each run stands faintly behind it.

    Args:
        data: of :meth:`Experiment.run`.
        orders: which of its orders to draw.
        log: a logarithmic axis of the loss.
        label: what the loss is.
    """
    share = data.k / data.sizes["parameter"]
    figure, axes = _train_and_test()
    for split, axis in axes.items():
        for order in orders:
            loss = data.loss.sel(split=split, order=order)
            faint = min(0.3, 5 / data.sizes["run"])
            axis.plot(share, loss.transpose("k", "run"), color=COLOURS[order], lw=0.7, alpha=faint)
            axis.plot(share, loss.mean("run"), **line(order, lw=2.2))
    axes["train"].set_ylabel(label)
    if log:
        _log_axis(axes["train"])
    elif data.loss.min() < data.loss.max() / 2:
        axes["train"].set_ylim(bottom=0)
    _legend(figure, axes["train"])
    return describe(figure, _losses(data, orders, label))


def ratio_figure(
    data: xr.Dataset, versus: Sequence[str] = ("random", "random_within_tensors")
) -> Figure:
    """Growth of the loss in the proposed order as a ratio to that in others, at each k by itself.

    With 95 % intervals over runs; nothing where the other's growth is not well above 0.

    Args:
        data: of :meth:`Experiment.run`.
        versus: which of its orders to compare with.
    """
    figure, axes = _train_and_test()
    found: list[str] = []
    for split, axis in axes.items():
        axis.axhline(1, color=PALE, ls=":", lw=1)
        for order in versus:
            ratios = growth_ratios(data, "covariance", order, split)
            share = [k / data.sizes["parameter"] for k in ratios]
            value = [ratio.value if ratio else np.nan for ratio in ratios.values()]
            intervals = [ratio.interval() if ratio else [np.nan] * 2 for ratio in ratios.values()]
            look = line(order, label=f"to {NAMES[order]}", marker=LOOKS[order].mark)
            axis.plot(share, value, ms=4, **look)
            band: dict[str, Any] = {"color": COLOURS[order], "alpha": 0.2, "lw": 0}
            axis.fill_between(share, *np.transpose(intervals), **band)
            half = value[len(value) // 2]
            found.append(f"{split}, to {NAMES[order]}: {number(half, 0.05)}")
    axes["train"].set_ylabel("growth in the proposed order,\nas a ratio")
    axes["train"].set_ylim(bottom=min(0, axes["train"].get_ylim()[0]))
    _legend(figure, axes["train"])
    return describe(figure, f"Growth as a ratio in the middle of the axis: {'; '.join(found)}.")


def alpha_figure(data: xr.Dataset) -> Figure:
    r"""Figures 2, 4, 6 and 8: :math:`\hat\alpha(k)`, proposed and random order, all and a part.

    In each panel k runs across and parameters down, sorted by their mean rank in the order shown.
    The strip above a panel has the value of a random order in infinitely many runs, k / p.

    Args:
        data: of :meth:`Experiment.run`, with the orders ``covariance`` and ``random``.
    """
    p = data.sizes["parameter"]
    k = np.unique(np.linspace(0, p, 201).round().astype(int))
    figure, axes = plt.subplots(
        4,
        2,
        figsize=(7.4, 6.4),
        sharex=True,
        height_ratios=[0.25, 4, 0.25, 4],
        layout="constrained",
    )
    for column, order in enumerate(("covariance", "random")):
        ranks = data.ranks.sel(order=order)
        alpha = mean_frozen(ranks.values, k).numpy().T[np.argsort(ranks.mean("run").values)]
        rows = np.unique(np.linspace(0, p - 1, min(_PART, p)).round().astype(int))
        for row, shown in enumerate((alpha, alpha[rows])):
            strip, axis = axes[2 * row : 2 * row + 2, column]
            picture = {"cmap": ALPHA_MAP, "vmin": 0, "vmax": 1, "aspect": "auto"}
            picture |= {"interpolation": "nearest", "extent": (0, 1, len(shown), 0)}
            strip.imshow((k / p)[None], **picture)
            image = axis.imshow(_thinned(shown, 1000), **picture)
            what = "all parameters" if row == 0 else f"{len(rows)} of them"
            strip.set_title(f"({'abcd'[2 * row + column]}) {NAMES[order]}, {what}")
            strip.set(yticks=[0.5 * len(shown)], yticklabels=["k / p"])
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            sns.despine(ax=axis, left=True, bottom=True)
            sns.despine(ax=strip, left=True, bottom=True)
            strip.tick_params(length=0)
            if column == 0:
                axis.set_ylabel("parameters by mean rank")
    for axis in axes[-1]:
        axis.set_xlabel("frozen parameters, k / p")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label(r"$\hat\alpha(k)$, share of runs that freeze the parameter")
    _pad(figure, h_pad=0.08)
    middle = data.sizes["parameter"] // 2
    shares = [
        f"{NAMES[order]}: {number(float(_settled(data.ranks.sel(order=order).values, middle)))}"
        for order in ("covariance", "random")
    ]
    text = "With half of the parameters frozen, the share that nine in ten runs agree on"
    return describe(figure, f"{text}, {'; '.join(shares)}.")


def curve_figure(curve: xr.Dataset, early: int, late: int, *, label: str = "loss") -> Figure:
    """Loss while nothing is frozen, with the two values of t0.

    Args:
        curve: of :meth:`Experiment.learning_curve`.
        early: t0 of the early stage.
        late: t0 of the late stage.
        label: what the loss is.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.2))
    for split, dashes in (("train", "-"), ("test", "--")):
        loss = curve.loss.sel(split=split)
        axis.plot(curve.iteration, loss.mean("run"), dashes, color=INK, label=split)
        low, high = loss.min("run"), loss.max("run")
        axis.fill_between(curve.iteration, low, high, color=PALE, alpha=0.3, lw=0)
    for t0, name, colour, dashes in (
        (early, "early $t_0$", _TENSORS[0], "-"),
        (late, "late $t_0$", _TENSORS[1], "--"),
    ):
        axis.axvline(t0, color=colour, ls=dashes, lw=1.5, label=f"{name} = {t0:,}")
    axis.set(xlabel="iteration", ylabel=label, xlim=(0, int(curve.iteration[-1])))
    _log_axis(axis)
    axis.legend()
    test = curve.loss.sel(split="test").mean("run")
    first, last = (number(float(test[each])) for each in (0, -1))
    found = f"The test loss falls from {first} to {last} in {int(curve.iteration[-1]):,} iterations"
    return describe(figure, f"{found}; the early t0 is {early:,}, the late one {late:,}.")


def share_figure(data: xr.Dataset, names: Mapping[str, str]) -> Figure:
    """Share of each tensor that the proposed order freezes, against that of all; every run faint.

    Args:
        data: of :meth:`Experiment.run`.
        names: what to call the tensors.
    """
    p = data.sizes["parameter"]
    k = np.linspace(0, p, 101).round().astype(int)
    figure, axis = plt.subplots(figsize=(7.4, 3.6))
    tensors = dict.fromkeys(data.tensor.values.tolist())
    halves = []
    for colour, dash, tensor in zip(_TENSORS, _DASHES, tensors, strict=False):
        ranks = data.ranks.sel(order="covariance").values[:, data.tensor.values == tensor]
        share = (ranks[None] <= k[:, None, None]).mean(-1)
        axis.plot(k / p, share, color=colour, lw=0.6, alpha=0.25)
        label = f"{names[tensor]} ({ranks.shape[1]:,})"
        axis.plot(k / p, share.mean(-1), color=colour, ls=dash, lw=2.2, label=label)
        halves.append(f"{names[tensor].replace('$', '')} {share[50].mean():.0%}")
    axis.plot([0, 1], [0, 1], ":", color=PALE, label="any random order")
    axis.set(xlabel="frozen parameters, k / p", ylabel="frozen share of the tensor")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return describe(figure, f"With half of all frozen, of each tensor: {', '.join(halves)}.")


def first_layer_figure(data: xr.Dataset) -> Figure:
    """The proposed order of the weights of each hidden unit as a 28 x 28 image, in the first run.

    Args:
        data: of :meth:`Experiment.run` on MNIST.
    """
    images = _of_units(data)
    figure, axes = plt.subplots(2, 5, figsize=(7.4, 3.3))
    for unit, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        shown = axis.imshow(image, cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"unit {unit + 1}", fontsize="small", loc="center")
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("rank / p: dark is frozen first")
    rim, centre = (number(each) for each in rim_and_centre(data))
    return describe(figure, f"Mean rank / p of the upper rim {rim}, of the centre {centre}.")


def rim_and_centre(data: xr.Dataset) -> tuple[float, float]:
    """Mean rank / p of the weights of the upper rim, and of the centre, in the first run."""
    images = _of_units(data)
    return float(images[:, 0].mean()), float(images[:, 14, 14].mean())


def _of_units(data: xr.Dataset) -> np.ndarray:
    """Rank / p of each pixel's weight in the first run, (units, 28, 28)."""
    ranks = data.ranks.sel(order="covariance").values[0, data.tensor.values == "0.weight"]
    return np.asarray(ranks.reshape(-1, 28, 28) / data.sizes["parameter"])


def weight_figure(data: xr.Dataset) -> Figure:
    """Mean rank of each feature of a linear model against the true and the trained weight.

    Args:
        data: of :meth:`Experiment.run` on a linear model.
    """
    ranks = data.ranks.sel(order="covariance") / data.sizes["parameter"]
    look = {"fmt": "o", "ms": 3, "lw": 0.5, "alpha": 0.7, "color": COLOURS["covariance"]}
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.4), sharey=True)
    x = (np.abs(data.w_true), np.abs(data.w).mean("run"))
    labels = ("true weight, $|w_j|$", "trained weight at $t_0$, mean $|w_j|$")
    for axis, values, label, letter in zip(axes, x, labels, "ab", strict=True):
        axis.errorbar(values, ranks.mean("run"), ranks.std("run"), **look)
        axis.axhline(0.5, color=PALE, ls=":", lw=1)
        axis.set(title=f"({letter})", xlabel=label, ylim=(0, 1))
    axes[0].set_ylabel("rank / p, mean and spread over runs")
    found = [number(float(np.corrcoef(values, ranks.mean("run"))[0, 1]), 0.05) for values in x]
    text = (
        "Correlation of the mean rank with the size of the true weight {}, of the trained one {}."
    )
    return describe(figure, text.format(*found))


def _train_and_test() -> tuple[Figure, dict[str, Axes]]:
    """Two panels that share the axis of the loss, each with the share of frozen parameters."""
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.8), sharey=True)
    axes = dict(zip(("train", "test"), panels, strict=True))
    for (split, axis), letter in zip(axes.items(), "ab", strict=True):
        axis.set(title=f"({letter}) {split}", xlabel="frozen parameters, k / p", xlim=(0, 1))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    _pad(figure, w_pad=0.15)
    return figure, axes


def _legend(figure: Figure, axis: Axes) -> None:
    """The names of the lines, below the panels."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < 24 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3)


def _losses(data: xr.Dataset, orders: Sequence[str], label: str) -> str:
    """The mean test loss at both ends and in the middle, in words."""
    mean = data.loss.sel(split="test").mean("run")
    first, last = (number(float(mean.sel(order=orders[0])[each])) for each in (0, -1))
    half = mean.isel(k=mean.sizes["k"] // 2)
    values = [f"{NAMES[order]} {number(float(half.sel(order=order)))}" for order in orders]
    share = float(half.k) / data.sizes["parameter"]
    return (
        f"Test {label}: {first} with nothing frozen, {last} with everything; "
        f"with {share:.0%} frozen: {', '.join(values)}."
    )


def _settled(ranks: np.ndarray, k: int) -> float:
    """Share of the parameters that nine runs in ten freeze, or that nine in ten leave."""
    frozen = (ranks <= k).mean(0)
    return float(((frozen >= 0.9) | (frozen <= 0.1)).mean())


def _pad(figure: Figure, **pads: float) -> None:
    """Put more room between the panels."""
    engine: Any = figure.get_layout_engine()
    engine.set(**pads)


def _log_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, each the mean of its neighbours."""
    return np.stack([part.mean(0) for part in np.array_split(rows, min(most, len(rows)))])
