"""How the growth of the loss depends on the stage at which parameters are frozen."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from parameter_ordering.paper.evidence.stage import EARLY, LATE, Point, ratios
from parameter_ordering.paper.evidence.statistics import Ratio
from parameter_ordering.paper.exhibits.style import DATA_SETS, INK, NAMES, PALE, describe
from parameter_ordering.paper.exhibits.tables import markdown_table, tell

VERSUS = ("random", "random_within_tensors")
LOOKS = {
    "synthetic_1": ("#0072b2", "o"),
    "boston_housing": ("#d55e00", "s"),
    "synthetic_3": ("#009e73", "D"),
    "mnist": ("#8b3f96", "^"),
    "synthetic_2": ("#7a6a5f", "v"),
}


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
    for axis, versus, letter in zip(axes, VERSUS, "ab", strict=True):
        axis.axhline(1, color=INK, lw=0.8)
        for stage, name, side, gap in ((EARLY, "early", "left", 3), (LATE, "late", "right", -3)):
            axis.axvline(stage, color=PALE, ls=":", lw=1)
            where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axis.annotate(name, (stage, 0), xytext=(gap, 4), ha=side, **where)
        for name, every in found.items():
            drawn = {p.left: p.ratio for p in every if p.versus == versus and p.ratio}
            rows = [(left, r.value, *r.interval()) for left, r in drawn.items()]
            left, value, low, high = np.array(rows).reshape(-1, 4).T
            colour, marker = LOOKS[name]
            look = {"color": colour, "marker": marker, "ms": 4, "lw": 1.5, "capsize": 2}
            axis.errorbar(left, value, [value - low, high - value], label=DATA_SETS[name], **look)
        axis.set_title(f"({letter}) to {NAMES[versus]}")
        axis.set(xscale="log", xlabel="share of the loss still to be gained at $t_0$")
    axes[0].set(yscale="log", ylabel="growth in the proposed order,\nas a ratio", xlim=(1, 0.008))
    percent = FuncFormatter(lambda share, _: f"{share:.0%}")
    axes[0].xaxis.set(major_formatter=percent, minor_formatter=NullFormatter())
    axes[0].yaxis.set(major_formatter=FuncFormatter("{:g}".format), minor_formatter=NullFormatter())
    axes[0].set(xticks=[0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01], yticks=[0.1, 0.2, 0.5, 1, 2])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    told = summary(found)
    text = f"Early the ratio to random lies below 1 on {told['better early']}"
    text += f" and above on {told['worse early']}; late below on {told['better late']}"
    return describe(figure, f"{text} and above on {told['worse late']}.")


def stage_table(found: Mapping[str, list[Point]]) -> str:
    """The same in numbers, as Markdown: one row a stage, to random and to random within tensors."""
    columns = {
        (name, versus): {point.left: tell(point.ratio) for point in every if point.versus == versus}
        for name, every in found.items()
        for versus in VERSUS
    }
    frame = pd.DataFrame({pair: each for pair, each in columns.items() if each})
    frame.index = pd.Index([f"{left:.0%}" for left in frame.index], name="left")
    frame.columns = [f"{DATA_SETS[name]}, to {NAMES[versus]}" for name, versus in frame.columns]
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
    *first, last = [DATA_SETS[name] for name in names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last
