"""The look of all figures: one colour, line and mark an order, and SVG that follows the theme.

A figure is an SVG without a background. Its colours are those of the light theme, and a rule in it
gives each its counterpart for the dark one, so that the same file serves both, and a print. Beside
the drawing goes what a reader who does not see it needs: its description, and the numbers drawn.
"""

import colorsys
import io
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

INK, PALE = "#1f2933", "#7b8794"
SVG = "image/svg+xml"
_MOST_CELLS = 10_000
_WIDTH, _NARROW = 7.4, 3.9  # inches, the column of text on a wide screen and on a phone


class Look(NamedTuple):
    """How an order is called and drawn."""

    name: str
    colour: str
    dash: Any = "-"
    mark: str = "o"


# Okabe and Ito's colours for the orders of the paper and its controls, with dashes and marks that
# tell them apart in grey print.
LOOKS = {
    "covariance": Look("proposed", "#0072b2"),
    "random": Look("random", "#d55e00", (0, (5, 2)), "s"),
    "random_shared": Look("random, the same in all runs", "#c48a00", (0, (7, 2, 1.5, 2)), "D"),
    "random_within_tensors": Look("random within each tensor", "#009e73", (0, (1.5, 1.5)), "^"),
    "covariance_descending": Look("largest variance first", "#7a6a5f", (0, (3, 1, 1, 1)), "v"),
    "zero_variance": Look("zero variance first, then random", "#b8609a", (0, (4, 1.5)), "P"),
    "all_samples": Look("variance from all objects", "#2f9fd8", (0, (6, 1.5)), "h"),
    "first_not_centred": Look("first object, not centred", "#c05a5a", (0, (2, 2)), "1"),
    "all_not_centred": Look("all objects, not centred", "#6b8f23", (0, (5, 3)), "2"),
    "not_cleared": Look("gradients not cleared", "#7d7d00", (0, (1, 1, 4, 1)), "3"),
    "second_moment": Look("second moment", "#8b3f96", (0, (6, 1, 2, 1)), "X"),
    "adam_v": Look("Adam's second moment", "#5d6b2f", (0, (2, 1)), "*"),
    "mean_gradient": Look("mean gradient", "#a3123a", (0, (4, 2, 1, 2)), "<"),
    "signal_to_noise": Look("signal to noise", "#946b2d", (0, (3, 2)), ">"),
    "magnitude": Look("magnitude", "#5b4a8a", (0, (1, 2)), "p"),
    "movement": Look("distance from the start", "#a08c00", (0, (8, 2)), "d"),
    "taylor": Look("first-order Taylor", "#2f7f3f", (0, (2, 2, 6, 2)), "H"),
    "obd": Look("optimal brain damage", "#1c6e7d", (0, (5, 1, 1, 1, 1, 1)), "8"),
    "fresh_gradient": Look("fresh gradient", "#c2388a", "-", "D"),
    "fresh_within_tensors": Look(
        "random within tensors, as many as fresh gradient", "#8f8f8f", (0, (1, 1)), "^"
    ),
    "oracle": Look("oracle", "#3a3a3a", (0, (2, 1, 2, 1)), "s"),
    "recommended": Look("recommended", "#b3005e", "-", "*"),
    "recommended_within_tensors": Look(
        "random within tensors, as many as recommended", "#6f6f6f", (0, (1, 1.5)), "^"
    ),
    "lasso": Look("lasso", "#0b7a75", (0, (4, 1)), "o"),
    "elastic_net": Look("elastic net", "#66a182", (0, (4, 1, 1, 1)), "s"),
    "dropout": Look("dropout", "#d1495b", (0, (2, 1.5)), "v"),
    "variational_dropout": Look("variational dropout", "#6a4c93", (0, (5, 1, 2, 1)), "P"),
    "variational_relevance": Look("variational relevance", "#3d5a80", (0, (3, 1.5)), "X"),
    "belsley": Look("Belsley", "#9a6324", (0, (1, 1, 4, 1)), "D"),
}


class _Looks(dict[str, Look]):
    """Those above; an order that has no look of its own is dotted in ink, under its own name."""

    def __missing__(self, order: str) -> Look:
        return Look(order.replace("_", " "), INK, (0, (1, 3)), ".")


class _Part(dict[str, str]):
    """One part of the looks, by order."""

    def __init__(self, part: str) -> None:
        super().__init__({order: getattr(look, part) for order, look in LOOKS.items()})
        self._part = part

    def __missing__(self, order: str) -> str:
        return str(getattr(LOOKS[order], self._part))


LOOKS = _Looks(LOOKS)
NAMES, COLOURS = _Part("name"), _Part("colour")
DATA_SETS = {
    "synthetic_1": "Synthetic 1",
    "synthetic_2": "Synthetic 2",
    "synthetic_3": "Synthetic 3",
    "boston_housing": "Boston Housing",
    "mnist": "MNIST",
    "diabetes": "Diabetes",
    "digits": "Digits",
    "breast_cancer": "Breast Cancer",
    "mnist_cost": "MNIST",
}


def data_set(name: str) -> str:
    """A data set as a reader writes it."""
    return DATA_SETS.get(name, name.replace("_", " "))


def line(order: str, **other: Any) -> dict[str, Any]:
    """Colour, dashes and name of an order, for :meth:`matplotlib.axes.Axes.plot`."""
    look = LOOKS[order]
    return {"color": look.colour, "ls": look.dash, "label": look.name, **other}


def style() -> None:
    """Draw from here on as the book does; in a notebook, as SVG."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
            "axes.edgecolor": PALE,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "axes.unicode_minus": True,
            "figure.constrained_layout.use": True,
            "figure.dpi": 96,
            "figure.figsize": (_WIDTH, 3.6),
            "legend.frameon": False,
            "path.simplify_threshold": 0.3,
            "svg.fonttype": "path",
            "svg.hashsalt": "parameter-ordering",
        }
    )
    _show_as_svg()


def number(value: float, error: float | None = None) -> str:
    """A number as a reader writes it: a true minus, and the digits that its error leaves.

    >>> number(-0.0658, 0.02), number(1234.5), number(0.5), number(1.29e-65)
    ('−0.07', '1,234', '0.5', '1.3 × 10⁻⁶⁵')

    Args:
        value: what to write.
        error: standard error or half the width of an interval; it decides the decimals. By default
            a quarter of the value stands for it, which leaves one or two significant digits.
    """
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "−∞"[value > 0 :]
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        digits, power = f"{value:.1e}".split("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{digits} × 10{raised}".replace("-", "−")
    scale = error if error and np.isfinite(error) and error > 0 else size / 4
    decimals = int(np.clip(-np.floor(np.log10(scale or 1)), 0, 5))
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def with_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """A value and its interval, with the digits that the interval leaves.

    >>> with_interval(0.4274, 0.352, 0.541)
    ('0.43', '0.35 to 0.54')
    """
    error = (high - low) / 4
    return number(value, error), f"{number(low, error)} to {number(high, error)}"


def describe(figure: Figure, text: str) -> Figure:
    """Say with numbers what a figure shows, for readers who do not see it."""
    figure.set_label(text)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG that follows the theme of the page that shows it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for n, clip in enumerate(re.findall(r'<clipPath id="(\w+)"', text)):
        text = text.replace(clip, f"clip{n}")  # matplotlib names them by their place in memory
    head, end, rest = text.partition("</style>")
    return f"{head}\n{_dark_rules(rest)}{end}{rest}"


def _dark_rules(drawing: str) -> str:
    """Each colour of a drawing, and what takes its place in the dark theme."""
    found = sorted(set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", drawing)))
    rules = (f'[style*="{p}: {c}"]{{{p}:{in_the_dark(c)}!important}}' for p, c in found)
    return f"@media (prefers-color-scheme: dark){{{''.join(rules)}}}"


def in_the_dark(colour: str) -> str:
    """The counterpart of a colour on a dark page: greys change sides, other hues get lighter.

    >>> in_the_dark("#000000"), in_the_dark("#ffffff"), in_the_dark("#0072b2")
    ('#ebebeb', '#1f1f1f', '#2fb4ff')
    """
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    high, low = max(to_rgb(colour)), min(to_rgb(colour))
    if high - low < 0.15:
        grey = 0.92 - 0.8 * light
        return str(to_hex((grey, grey, grey)))
    return str(to_hex(colorsys.hls_to_rgb(hue, max(light, 0.592), saturation)))


def drawn(figure: Figure) -> str:
    """The numbers of the lines and small images of a figure, as CSV."""
    rows = [row for n, axis in enumerate(figure.axes, 1) for row in _drawn(n, axis)]
    return pd.DataFrame(rows, columns=["panel", "what", "x", "y", "value"]).to_csv(index=False)


def _drawn(n: int, axis: Axes) -> Iterable[tuple[Any, ...]]:
    panel = axis.get_title(loc="left") or axis.get_title() or str(n)
    for each in axis.get_lines():
        name = str(each.get_label())
        x, y = (np.atleast_1d(np.asarray(values)) for values in each.get_data(orig=True))
        if x.dtype.kind in "fiu" and y.dtype.kind in "fiu" and len(x) == len(y):
            name = "one run" if name.startswith("_") else name
            for pair in zip(x, y, strict=True):
                yield (panel, name, *(f"{value:.6g}" for value in pair), "")
    for image in axis.get_images():
        values = np.asarray(image.get_array())
        if values.ndim == 2 and values.size <= _MOST_CELLS:
            for (row, column), value in np.ndenumerate(values):
                yield panel, "image", column, row, f"{value:.6g}"


def narrow(figure: Figure) -> str:
    """The figure for a phone: panels of one row below each other, others closer together.

    What is tall, as a list of many lines is, keeps its height. The figure stays so.
    """
    panels = [axis for axis in figure.axes if axis.get_subplotspec()]
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]  # they go along
    grids = [spec.get_geometry() for axis in panels if (spec := axis.get_subplotspec())]
    width, height = figure.get_size_inches()
    lower = 1 if height > 0.8 * width else 0.72
    for legend in list(figure.legends):
        texts = [text.get_text() for text in legend.get_texts()]
        title = legend.get_title().get_text()
        legend.remove()
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": 1, "handlelength": 3}
        handles = [each for each in legend.legend_handles if each is not None]
        figure.legend(handles, texts, title=title, **where)
    if len(grids) + len(bars) == len(figure.axes) and all(rows == 1 for rows, *_ in grids):
        grid = GridSpec(len(panels), 1, figure=figure)
        for place, axis in enumerate(panels):
            axis.set_subplotspec(grid[place])
            axis.yaxis.set_tick_params(labelleft=True)
            axis.set_ylabel(axis.get_ylabel() or panels[0].get_ylabel())
        extra = sum(0.2 * len(legend.get_texts()) for legend in figure.legends)
        figure.set_size_inches(_NARROW, lower * height * len(panels) + extra)
    else:
        figure.set_size_inches(1.35 * _NARROW, height)
    return svg(figure)


def _show_as_svg() -> None:
    """Give notebooks the SVG with its description and numbers, in place of a PNG."""
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.config import InlineBackend
    except ImportError:
        return
    shell: Any = get_ipython()
    if shell:
        InlineBackend.instance(parent=shell).figure_formats = set()  # it sets up itself, later
        shell.display_formatter.mimebundle_formatter.for_type(Figure, _bundle)


def _bundle(figure: Figure, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    about = {"alt": str(figure.get_label()), "csv": drawn(figure)}
    return {SVG: svg(figure)}, {SVG: {**about, "narrow": narrow(figure)}}
