"""A figure that answers: which pixels' weights are frozen at each k, beside the loss, on MNIST.

The numbers go into the page as text, a digit for each pixel: the share of its weights that are
frozen, in 35 steps. ``theme/static/look.js`` draws them; without a script there is a still picture.
"""

import base64
import io
from string import ascii_lowercase, digits
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from parameter_ordering.paper.exhibits.markup import Html, interactive
from parameter_ordering.paper.exhibits.style import LOOKS

_STEPS = digits + ascii_lowercase[:26]
_SIDE = 28
_TENSOR = "0.weight"
_COLOURS = 36
_CAPTION = "How many weights of a pixel are among the first half of all parameters, none to all"


def look_inside(data: xr.Dataset) -> Html:
    """The interactive figure.

    Args:
        data: of :meth:`Experiment.run` on MNIST.
    """
    table = numbers(data)
    still = _still(table)
    alt = (
        "A square of 28 by 28 pixels: bright where most weights of a pixel are frozen in the "
        "proposed order with half of all parameters frozen. The rim is bright, the middle dark."
    )
    image = f'<img src="data:image/png;base64,{still}" alt="{alt}" width="280" height="280"/>'
    figure = f"<figure>{image}<figcaption>{_CAPTION}</figcaption></figure>"
    return interactive("data-look", table, f"<noscript>{figure}</noscript>")


def numbers(data: xr.Dataset) -> dict[str, Any]:
    """What the script needs: k, p, and for each order frozen shares and losses.

    Shares and losses are those of the first run, then the mean over runs.
    """
    orders = {}
    for order in data.order.values.tolist():
        ranks = data.ranks.sel(order=order).values[:, data.tensor.values == _TENSOR]
        ranks = ranks.reshape(len(ranks), -1, _SIDE**2)  # runs, units, pixels
        frozen = [(ranks <= k).mean(1) for k in data.k.values]
        loss = data.loss.sel(order=order)
        orders[LOOKS[order].name] = {
            "colour": LOOKS[order].colour,
            "dash": LOOKS[order].dash[1] if isinstance(LOOKS[order].dash, tuple) else [],
            "shares": [_packed(each) for part in (0, slice(None)) for each in _of(frozen, part)],
            "loss": [
                [[float(f"{v:.4g}") for v in curve.sel(split=split).values] for split in _SPLITS]
                for curve in (loss.isel(run=0), loss.mean("run"))
            ],
        }
    palette = plt.get_cmap("cividis")(np.linspace(0, 1, _COLOURS))
    return {
        "k": data.k.values.tolist(),
        "p": data.sizes["parameter"],
        "runs": data.sizes["run"],
        "palette": [[round(255 * channel) for channel in colour[:3]] for colour in palette],
        "orders": orders,
    }


_SPLITS = ("test", "train")


def _of(frozen: list[np.ndarray], runs: Any) -> list[np.ndarray]:
    return [np.atleast_2d(each[runs]).mean(0) for each in frozen]


def _packed(shares: np.ndarray) -> str:
    steps = (shares * (len(_STEPS) - 1)).round().astype(int)
    return "".join(_STEPS[step] for step in steps)


def _still(table: dict[str, Any]) -> str:
    """The picture of the mean over runs at half of the ks, as PNG in base64."""
    shares = next(iter(table["orders"].values()))["shares"]
    packed = shares[len(table["k"]) + len(table["k"]) // 2]
    image = np.array([_STEPS.index(each) for each in packed]).reshape(_SIDE, _SIDE)
    file = io.BytesIO()
    plt.imsave(file, np.kron(image, np.ones((10, 10))), cmap="cividis", vmin=0, vmax=35)
    return base64.b64encode(file.getvalue()).decode()
