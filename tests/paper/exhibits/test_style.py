"""The look of figures: orders are told apart, drawings follow the theme, numbers read well."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from parameter_ordering.paper.exhibits.style import (
    LOOKS,
    describe,
    drawn,
    in_the_dark,
    narrow,
    number,
    style,
    svg,
)
from parameter_ordering.paper.orders.catalogue import ORDERS


@pytest.fixture
def figure():
    style()
    figure, axes = plt.subplots(1, 2)
    axes[0].plot([0, 1], [2, 3], color="#0072b2", label="proposed")
    axes[1].set_title("(b)")
    axes[1].imshow([[0.0, 1.0]])
    yield figure
    plt.close(figure)


def luminance(colour):
    """Relative luminance, as the guidelines for accessible pages define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_order_has_a_look_of_its_own():
    assert LOOKS.keys() == ORDERS.keys()
    assert len({look.name for look in LOOKS.values()}) == len(LOOKS)
    assert len({(look.colour, str(look.dash), look.mark) for look in LOOKS.values()}) == len(LOOKS)
    compared = list(LOOKS.values())[:5]  # in one figure of every chapter
    assert len({str(look.dash) for look in compared}) == len({x.mark for x in compared}) == 5


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_lines_stand_out_from_either_page(look):
    assert contrast(look.colour, "#ffffff") > 2.4
    assert contrast(in_the_dark(look.colour), "#121212") > 3


def test_a_drawing_has_no_background_and_a_dark_side(figure):
    text = svg(figure)
    assert "#ffffff" not in text
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text))
    assert "#0072b2" in colours
    rules = text[: text.index("</style>")]
    assert all(f": {colour}" in rules for colour in colours)
    assert svg(figure) == text


def test_panels_of_a_row_stand_below_each_other_on_a_phone(figure):
    wide = svg(figure)
    small = narrow(figure)
    width, height = (
        float(re.search(rf'{side}="([\d.]+)pt"', small)[1]) for side in ("width", "height")
    )
    assert width < height
    assert width < float(re.search(r'width="([\d.]+)pt"', wide)[1])


def test_a_colour_bar_goes_along_with_its_panel():
    figure, (left, _) = plt.subplots(1, 2, figsize=(7.4, 3), layout="constrained")
    figure.colorbar(left.imshow([[0, 1]]), ax=left)
    narrow(figure)
    above, below, bar = (axis.get_position() for axis in figure.axes)
    assert min(above.y0, bar.y0) > below.y1
    assert bar.x0 > above.x1


def test_a_list_of_many_lines_keeps_its_height_on_a_phone():
    tall, _ = plt.subplots(figsize=(7.4, 7))
    narrow(tall)
    assert tall.get_size_inches().tolist() == [3.9, 7]


def test_the_numbers_of_a_figure(figure, tmp_path):
    (tmp_path / "figure.csv").write_text(drawn(figure))
    table = pd.read_csv(tmp_path / "figure.csv")
    assert table[table.what == "proposed"][["x", "y"]].values.tolist() == [[0, 2], [1, 3]]
    assert table[table.what == "image"].value.tolist() == [0, 1]
    assert set(table.panel.astype(str)) == {"1", "(b)"}


def test_a_description_stays_with_the_figure(figure):
    assert describe(figure, "Two panels.").get_label() == "Two panels."


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.0658, 0.0021, "−0.066"),
        (-0.0658, None, "−0.07"),
        (502.3, 12, "502"),
        (0.0, 0.1, "0.0"),
        (-0.0001, 0.1, "0.0"),
        (float("nan"), 1, "–"),
        (float("inf"), None, "∞"),
        (-float("inf"), None, "−∞"),
        (1.29e-65, None, "1.3 × 10⁻⁶⁵"),
        (12345.6, 100, "12,346"),
    ],
)
def test_numbers_as_a_reader_writes_them(value, error, text):
    assert number(value, error) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e3))
def test_a_number_is_within_its_error(value, error):
    text = number(value, error)
    assert "-" not in text
    if "10" not in text and abs(value) > 1e-3:
        assert abs(float(text.replace("−", "-").replace(",", "")) - value) <= max(error, 1)
