"""Look inside: what the script is given are the frozen shares and losses of the data."""

import json

import numpy as np
import pytest
import xarray as xr
from bs4 import BeautifulSoup

from parameter_ordering.paper.exhibits.look_inside import look_inside, numbers

UNITS, RUNS = 2, 3


@pytest.fixture
def data():
    p, k = UNITS * 784 + 5, [0, 700, 1573]
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permuted(np.tile(np.arange(1, p + 1), (RUNS, 1)), axis=1)] * 2)
    return xr.Dataset(
        {
            "ranks": (("order", "run", "parameter"), ranks),
            "loss": (("split", "order", "run", "k"), rng.random((2, 2, RUNS, 3))),
        },
        coords={
            "order": ["covariance", "random"],
            "split": ["train", "test"],
            "k": k,
            "tensor": ("parameter", ["0.weight"] * (UNITS * 784) + ["0.bias"] * 5),
        },
    )


def test_shares_of_a_pixel_by_hand(data):
    table = numbers(data)
    shares = table["orders"]["proposed"]["shares"]
    assert [len(each) for each in shares] == [784] * 6
    for pixel in (0, 400, 783):
        frozen = data.ranks.values[0, :, [pixel, 784 + pixel]] <= 700  # units, runs
        assert int(shares[1][pixel], 36) == round(35 * frozen[:, 0].mean())
        assert int(shares[4][pixel], 36) == round(35 * frozen.mean())
    assert set(shares[0]) == {"0"}


def test_losses_are_of_the_first_run_and_of_the_mean(data):
    one, mean = numbers(data)["orders"]["random"]["loss"]
    loss = data.loss.sel(order="random", split="test")
    np.testing.assert_allclose(one[0], loss.isel(run=0), rtol=1e-3)
    np.testing.assert_allclose(mean[0], loss.mean("run"), rtol=1e-3)


def test_the_page_holds_data_and_a_still_picture(data):
    page = BeautifulSoup(look_inside(data).html, "html.parser")
    assert json.loads(page.script.string)["runs"] == RUNS
    image = page.select_one("noscript > figure > img")
    assert len(image["alt"]) > 40
    assert image["src"].startswith("data:image/png;base64,")
