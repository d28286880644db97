"""What the chapter on worlds shows, of made-up outcomes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from parameter_ordering.paper.evidence import worlds as evidence
from parameter_ordering.paper.exhibits import style
from parameter_ordering.paper.exhibits import worlds as exhibits
from parameter_ordering.paper.experiments import space

READINGS = list(exhibits.READINGS)
N = 16


@pytest.fixture
def rows():
    """On each data set the effect of world n is n / N - 0.5, surely; world 3 diverged on MNIST."""
    found = []
    for name in (*evidence.GROWTH, "synthetic_2"):
        for world in range(N):
            for reading in READINGS:
                key = {"world": world, "data_set": name, "reading": reading}
                value = world / N - 0.5
                effect = {"contrast": value, "low": value - 0.01, "high": value + 0.01}
                effect |= {
                    f"seen{end}": effect[of]
                    for end, of in (("", "contrast"), ("_low", "low"), ("_high", "high"))
                }
                effect |= {"error": 0.01, "spread": 0.1, "correlation": 0.7, "left": 1 - world / N}
                effect |= {"descending": -0.5, "train": value}
                diverged = name == "mnist" and world == 3
                effect = dict.fromkeys(effect, np.nan) if diverged else effect
                found.append(key | effect | {"diverged": diverged})
    return pd.DataFrame(found)


@pytest.fixture
def choices():
    table = pd.DataFrame({"lr": np.arange(N) / N, "optimizer": ["adam", "sgd"] * (N // 2)})
    return dict.fromkeys(evidence.GROWTH, table) | {"mnist": table.drop(columns="optimizer")}


def test_the_curve_is_sorted_and_the_strips_below_go_with_it(rows, choices):
    figure = exhibits.specification_figure(rows, choices)
    above, below = figure.axes[: len(evidence.GROWTH)], figure.axes[len(evidence.GROWTH) :]
    for axis, strips, name in zip(above, below, evidence.GROWTH, strict=True):
        (line,) = [each for each in axis.lines if each.get_marker() == "o"]
        worlds = [n for n in range(N) if (name, n) != ("mnist", 3)]
        np.testing.assert_allclose(line.get_ydata(), np.array(worlds) / N - 0.5)
        lr = strips.images[0].get_array()[0]
        assert (np.diff(lr) > 0).all()
    assert np.isnan(below[-1].images[0].get_array().filled(np.nan)[1]).all()
    assert "Synthetic 1, slower than random: in 8 of 16" in figure.get_label()
    assert "MNIST, the same as random: in 3 of 15" in figure.get_label()
    plt.close("all")


def test_what_was_left_is_a_point_for_each_world(rows):
    figure = exhibits.left_figure(rows)
    for axis, name in zip(figure.axes, evidence.GROWTH, strict=True):
        (points,) = [each for each in axis.lines if each.get_marker() == "o"]
        assert len(points.get_xdata()) == N - (name == "mnist")
    plt.close("all")


def test_what_is_beyond_chance_is_filled():
    table = pd.DataFrame(
        {"share": [0.6, 0.1], "error": 0.05, "chance": 0.3}, index=["lr", "minibatches"]
    )
    figure = exhibits.importance_figure({"mnist": table})
    filled, empty = [each for each in figure.axes[0].lines if each.get_marker() == "o"]
    assert filled.get_xdata().tolist() == [0.6]
    assert empty.get_xdata().tolist() == [0.1]
    assert figure.get_label() == "Beyond chance. MNIST: lr."
    plt.close("all")


def test_tables_say_what_they_are_made_of(rows):
    shares = evidence.shares(rows)
    table = exhibits.shares_table(shares).data
    assert len(table) == len(evidence.STATEMENTS)
    assert table.iloc[0].tolist() == [
        "Synthetic 1", "slower than random",
        "50% (28%–72%)", "50% / 50%",
    ]  # fmt: skip
    readings = exhibits.readings_table({each: evidence.shares(rows, each) for each in READINGS})
    assert list(readings.data.columns) == ["data", "statement", *exhibits.READINGS.values()]
    assert readings.data["as printed"].tolist() == list(exhibits.growth_shares(shares).values())
    together = evidence.together(rows)
    nearest = exhibits.nearest_table(together, 2).data
    assert len(nearest) == 2
    assert nearest.hold.tolist() == together.hold.head(2).tolist()


def test_an_effect_stands_beside_what_it_was_again(rows):
    (before, after) = rows.iloc[[0, len(READINGS)]].to_dict("records")
    table = exhibits.again_table([before], [after]).data
    assert table.found.tolist() == ["0.33 (0.32–0.34)"]
    assert table["again"].tolist() == ["0.39 (0.38–0.40)"]
    lost = exhibits.again_table([before], [after | {"diverged": True}]).data
    assert lost["again"].tolist() == ["diverged"]


def test_prose_names_what_is_beyond_chance_and_where_the_order_is_better(rows):
    table = pd.DataFrame({"share": [0.4, 0.1], "chance": 0.2}, index=["shared_weights", "lr"])
    found = exhibits.in_words(rows, {"mnist": table})
    assert found["beyond"] == "shared weights on MNIST"
    # World 8 has the effect 0; of those below it, all but the diverged one count on MNIST.
    assert (found["better synthetic_1"], found["better mnist"]) == ("50%", "47%")


def test_the_space_is_written_as_a_reader_writes_it():
    page = exhibits.space_table(space.described(style.DATA_SETS)).to_html()
    assert "shared weights" in page
    assert "Synthetic 1: 20 to 640; Boston Housing: 15 to 600" in page
