"""How the growth of the loss depends on the stage at which parameters are frozen."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from parameter_ordering.paper.evidence.stage import EARLY, LATE, Point, ratios
from parameter_ordering.paper.evidence.statistics import Ratio
from parameter_ordering.paper.exhibits.chapter_tables import markdown_table, tell
from parameter_ordering.paper.exhibits.figures import NAMES

VERSUS = ("random", "random_within_tensors")
_MARKERS = "osD^v"


def points(results: Mapping[str, xr.Dataset]) -> dict[str, list[Point]]:
    """The points of each data set; a model of one tensor has no order of tensors to copy."""
    found = {}
    for name, data in results.items():
        one_tensor = len(set(data.tensor.values.tolist())) == 1
        found[name] = list(ratios(data, VERSUS[:1] if one_tensor else VERSUS))
    return found


def stage_figure(found: Mapping[str, list[Point]]) -> Figure:
    """One line a data set, from the start of training on the left to its end on the right.

    With 95 % intervals, one by one. Nothing stands where the other order's growth is not well
    above 0; dotted lines are the early and the late stage.

    Args:
        found: of :func:`points`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True, sharey=True)
    colours = sns.color_palette("colorblind", len(found))
    for axis, versus, letter in zip(axes, VERSUS, "ab", strict=True):
        axis.axhline(1, color="0.5", lw=1)
        for stage, name in ((EARLY, "early"), (LATE, "late")):
            axis.axvline(stage, color="0.5", ls=":", lw=1)
            axis.annotate(name, (stage, 1), xycoords=("data", "axes fraction"), ha="center")
        for (name, every), colour, marker in zip(found.items(), colours, _MARKERS, strict=False):
            drawn = {p.left: p.ratio for p in every if p.versus == versus and p.ratio}
            rows = [(left, r.value, *r.interval()) for left, r in drawn.items()]
            left, value, low, high = np.array(rows).reshape(-1, 4).T
            look = {"color": colour, "marker": marker, "ms": 4, "lw": 1.5, "capsize": 2}
            axis.errorbar(left, value, [value - low, high - value], label=_name(name), **look)
        axis.set_title(f"({letter}) to {NAMES[versus]}")
        axis.set(xscale="log", xlabel="share of the loss still to be gained at $t_0$")
    axes[0].set(yscale="log", ylabel="growth in the proposed order,\nas a ratio", xlim=(1, 0.008))
    percent = FuncFormatter(lambda share, _: f"{share:.0%}")
    axes[0].xaxis.set(major_formatter=percent, minor_formatter=NullFormatter())
    axes[0].yaxis.set(major_formatter=FuncFormatter("{:g}".format), minor_formatter=NullFormatter())
    axes[0].set(xticks=[0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01], yticks=[0.1, 0.2, 0.5, 1, 2])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def stage_table(found: Mapping[str, list[Point]]) -> str:
    """The same in numbers, as Markdown: one row a stage, to random and to random within tensors."""
    columns = {
        (name, versus): {point.left: tell(point.ratio) for point in every if point.versus == versus}
        for name, every in found.items()
        for versus in VERSUS
    }
    frame = pd.DataFrame({pair: each for pair, each in columns.items() if each})
    frame.index = pd.Index([f"{left:.0%}" for left in frame.index], name="left")
    frame.columns = [f"{_name(name)}, to {NAMES[versus]}" for name, versus in frame.columns]
    return markdown_table(frame)


def summary(found: Mapping[str, list[Point]]) -> dict[str, str]:
    """For prose: the data sets whose ratio to random is clear of 1, and whose ratio crosses 1."""
    sides = {
        name: {point.left: _side(point.ratio) for point in every if point.versus == "random"}
        for name, every in found.items()
    }
    told = {}
    for stage, left in (("early", EARLY), ("late", LATE)):
        for word, side in (("better", -1), ("worse", 1), ("neither", 0)):
            told[f"{word} {stage}"] = _listed(name for name in found if sides[name][left] == side)
    told["crosses"] = _listed(name for name in found if {-1, 1} <= {*sides[name].values()})
    return told


def _side(ratio: Ratio | None) -> int:
    """-1 below 1, 1 above, 0 if the interval holds 1 or there is no ratio."""
    if ratio is None:
        return 0
    low, high = ratio.interval()
    return -1 if high < 1 else int(low > 1)


def _listed(names: Iterable[str]) -> str:
    *first, last = [_name(name) for name in names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def _name(experiment: str) -> str:
    return experiment.replace("_", " ").capitalize().replace("Mnist", "MNIST")
