"""The figures of the book: the paper's two kinds, and those that say what is frozen."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from parameter_ordering.order import mean_frozen
from parameter_ordering.paper.evidence.growth import growth_ratios

_PALETTE = [
    *sns.color_palette("colorblind"),
    *sns.color_palette("dark"),
    *sns.color_palette("husl", 8),
]
_LOOK = {
    "covariance": ("proposed", 0),
    "random": ("random", 3),
    "random_shared": ("random, the same in all runs", 1),
    "random_within_tensors": ("random within each tensor", 2),
    "covariance_descending": ("printed reading, largest first", 7),
    "zero_variance": ("zero variance first, then random", 4),
    "all_samples": ("variance from all samples", 9),
    "second_moment": ("second moment", 16),
    "adam_v": ("Adam's second moment", 14),
    "mean_gradient": ("mean gradient", 12),
    "signal_to_noise": ("signal to noise", 5),
    "magnitude": ("magnitude", 15),
    "movement": ("distance from the start", 18),
    "taylor": ("first-order Taylor", 13),
    "obd": ("optimal brain damage", 19),
    "fresh_gradient": ("fresh gradient", 6),
    "fresh_within_tensors": ("random within tensors, as many as fresh gradient", 8),
    "oracle": ("oracle", 17),
    "recommended": ("recommended", 20),
    "recommended_within_tensors": ("random within tensors, as many as recommended", 21),
    "lasso": ("lasso", 22),
    "elastic_net": ("elastic net", 23),
    "dropout": ("dropout", 24),
    "variational_dropout": ("variational dropout", 25),
    "variational_relevance": ("variational relevance", 26),
    "belsley": ("Belsley", 27),
}
NAMES = {order: name for order, (name, _) in _LOOK.items()}
COLOURS = {order: _PALETTE[colour] for order, (_, colour) in _LOOK.items()}
ALPHA_MAP = "cividis"
_COMPARED = ("covariance", "random")  # by the paper; the other orders are controls
_PART = 40  # parameters, at equal steps, in the lower panels of alpha-hat


def style() -> None:
    """The common look of all figures."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "legend.frameon": False,
        }
    )


def loss_figure(
    data: xr.Dataset,
    orders: Sequence[str] = ("covariance", "random"),
    *,
    log: bool = False,
    label: str = "loss",
) -> Figure:
    """Figures 1, 3, 5 and 7: loss against the share of frozen parameters, train and test.

    A thick line is the mean over runs, dashed for controls; each run stands faintly behind it.

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
            look = {"color": COLOURS[order], "ls": "-" if order in _COMPARED else "--", "lw": 2.2}
            axis.plot(share, loss.mean("run"), label=NAMES[order], **look)
    axes["train"].set_ylabel(label)
    if log:
        _log_axis(axes["train"])
    elif data.loss.min() < data.loss.max() / 2:
        axes["train"].set_ylim(bottom=0)
    figure.legend(*axes["train"].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


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
    for split, axis in axes.items():
        axis.axhline(1, color="0.5", ls=":", lw=1)
        for order in versus:
            ratios = growth_ratios(data, "covariance", order, split)
            share = [k / data.sizes["parameter"] for k in ratios]
            value = [ratio.value if ratio else np.nan for ratio in ratios.values()]
            intervals = [ratio.interval() if ratio else [np.nan] * 2 for ratio in ratios.values()]
            look = {"color": COLOURS[order]}
            axis.plot(share, value, "o-", ms=3, label=f"to {NAMES[order]}", **look)
            axis.fill_between(share, *np.transpose(intervals), alpha=0.2, lw=0, **look)
    axes["train"].set_ylabel("growth in the proposed order,\nas a ratio")
    axes["train"].set_ylim(bottom=min(0, axes["train"].get_ylim()[0]))
    figure.legend(*axes["train"].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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
        4, 2, figsize=(9, 7), sharex=True, height_ratios=[0.25, 4, 0.25, 4], layout="constrained"
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
    figure.get_layout_engine().set(h_pad=0.08)
    return figure


def curve_figure(curve: xr.Dataset, early: int, late: int, *, label: str = "loss") -> Figure:
    """Loss while nothing is frozen, with the two values of t0.

    Args:
        curve: of :meth:`Experiment.learning_curve`.
        early: t0 of the paper's figure.
        late: t0 that the rule gives.
        label: what the loss is.
    """
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for split, dashes in (("train", "-"), ("test", "--")):
        loss = curve.loss.sel(split=split)
        axis.plot(curve.iteration, loss.mean("run"), dashes, color="0.2", label=split)
        low, high = loss.min("run"), loss.max("run")
        axis.fill_between(curve.iteration, low, high, color="0.6", alpha=0.3, lw=0)
    for t0, name, colour in (
        (early, "early $t_0$", _PALETTE[0]),
        (late, "late $t_0$", _PALETTE[3]),
    ):
        axis.axvline(t0, color=colour, lw=1.5, label=f"{name} = {t0:,}")
    axis.set(xlabel="iteration", ylabel=label, xlim=(0, int(curve.iteration[-1])))
    _log_axis(axis)
    axis.legend()
    return figure


def share_figure(data: xr.Dataset, names: Mapping[str, str]) -> Figure:
    """Share of each tensor that the proposed order freezes, against that of all; every run faint.

    Args:
        data: of :meth:`Experiment.run`.
        names: what to call the tensors.
    """
    p = data.sizes["parameter"]
    k = np.linspace(0, p, 101).round().astype(int)
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for colour, tensor in zip(_PALETTE, dict.fromkeys(data.tensor.values.tolist()), strict=False):
        ranks = data.ranks.sel(order="covariance").values[:, data.tensor.values == tensor]
        share = (ranks[None] <= k[:, None, None]).mean(-1)
        axis.plot(k / p, share, color=colour, lw=0.6, alpha=0.25)
        label = f"{names[tensor]} ({ranks.shape[1]:,})"
        axis.plot(k / p, share.mean(-1), color=colour, lw=2.2, label=label)
    axis.plot([0, 1], [0, 1], ":", color="0.5", label="any random order")
    axis.set(xlabel="frozen parameters, k / p", ylabel="frozen share of the tensor")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def first_layer_figure(data: xr.Dataset) -> Figure:
    """The proposed order of the weights of each hidden unit as a 28 x 28 image, in the first run.

    Args:
        data: of :meth:`Experiment.run` on MNIST.
    """
    ranks = data.ranks.sel(order="covariance").values[0, data.tensor.values == "0.weight"]
    images = ranks.reshape(-1, 28, 28) / data.sizes["parameter"]
    figure, axes = plt.subplots(2, 5, figsize=(9, 4))
    for unit, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        shown = axis.imshow(image, cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"unit {unit + 1}", fontsize="small", loc="center")
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("rank / p: dark is frozen first")
    return figure


def weight_figure(data: xr.Dataset) -> Figure:
    """Mean rank of each feature of a linear model against the true and the trained weight.

    Args:
        data: of :meth:`Experiment.run` on a linear model.
    """
    ranks = data.ranks.sel(order="covariance") / data.sizes["parameter"]
    look = {"fmt": "o", "ms": 3, "lw": 0.5, "alpha": 0.7, "color": COLOURS["covariance"]}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    x = (np.abs(data.w_true), np.abs(data.w).mean("run"))
    labels = ("true weight, $|w_j|$", "trained weight at $t_0$, mean $|w_j|$")
    for axis, values, label, letter in zip(axes, x, labels, "ab", strict=True):
        axis.errorbar(values, ranks.mean("run"), ranks.std("run"), **look)
        axis.axhline(0.5, color="0.5", ls=":", lw=1)
        axis.set(title=f"({letter})", xlabel=label, ylim=(0, 1))
    axes[0].set_ylabel("rank / p, mean and spread over runs")
    return figure


def _train_and_test() -> tuple[Figure, dict[str, Axes]]:
    """Two panels that share the axis of the loss, each with the share of frozen parameters."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    axes = dict(zip(("train", "test"), panels, strict=True))
    for (split, axis), letter in zip(axes.items(), "ab", strict=True):
        axis.set(title=f"({letter}) {split}", xlabel="frozen parameters, k / p", xlim=(0, 1))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    figure.get_layout_engine().set(w_pad=0.15)
    return figure, axes


def _log_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, each the mean of its neighbours."""
    return np.stack([part.mean(0) for part in np.array_split(rows, min(most, len(rows)))])
