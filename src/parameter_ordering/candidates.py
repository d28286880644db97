r"""Scores made for this project, out of what Adam remembers anyway.

What does it cost to freeze w_j? The decrease that it would still have brought. Adam moves it by
:math:`\eta \hat m_j / \sqrt{\hat v_j}` a step, so the next step would lower the loss by
:math:`\eta \hat m_j^2 / \sqrt{\hat v_j}`. Two things are missing in that. The gradient turns: later
residuals are others, and how much of any residual w_j can take up is the size of its gradient at
single objects, so the noise :math:`\hat v_j - \hat m_j^2` counts as well as the signal. And
parameters stand in for one another: a feature that keeps one trained weight in a layer is learnt, a
unit or a feature that keeps none is lost, so an order that looks at each alone trains copies.
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.moments import adam_moments
from parameter_ordering.order import rank
from parameter_ordering.scores import Scores, TrainedModel, adam_v, mixture


def decrease(trained: TrainedModel, mu: float = 0.2) -> Scores:
    r""":math:`(\hat m^2 + \mu (\hat v - \hat m^2)) / \sqrt{\hat v}`, 0 where nothing came in.

    The decrease of the loss by Adam's own steps, now (:math:`\mu = 0`) and when the residuals have
    turned. Unlike the mixture itself it is no square: tensors of small gradients, which Adam's
    steps make up for, are frozen later.
    """
    mixed, square = mixture(trained, mu), adam_v(trained)
    return {name: torch.where(v > 0, mixed[name] / v.sqrt(), 0) for name, v in square.items()}


def geometric(trained: TrainedModel) -> Scores:
    r""":math:`|\hat m| \sqrt{\hat v}`: signal and capacity, multiplied.

    Half way between :math:`\hat m^2` and :math:`\hat v` on a logarithmic scale, with no constant to
    choose.
    """
    mean, square = adam_moments(trained.model, trained.optimizer)
    return {name: m.abs() * square[name].sqrt() for name, m in mean.items()}


def balanced(
    scores: Mapping[str, Tensor], gamma: float = 0.5, ensemble_dims: int = ENSEMBLE_DIMS
) -> Scores:
    r"""Scores relative to those of the same unit and of the same input.

    :math:`q_{ij} / (r_i c_j)^{\gamma / 2}` with the mean :math:`r_i` of row i of a weight matrix,
    all that goes into a unit, and :math:`c_j` of column j, all that comes out of an input. At
    :math:`\gamma = 0` nothing is changed; towards 1 every unit and every input keeps its best
    weights. A matrix of a single row keeps its order for any :math:`\gamma`, dead weights their 0.

    Args:
        scores: not negative. The first axis of a tensor is that of units, the others are inputs; a
            vector is a matrix of one column.
        gamma: from 0 to 1.
        ensemble_dims: how many leading axes tell models apart.
    """
    return {name: _balance(q, gamma, ensemble_dims) for name, q in scores.items()}


def placed(within: Mapping[str, Tensor], between: Mapping[str, Tensor]) -> Scores:
    """Each tensor's order from ``within``, and as many frozen of it as by ``between`` at every k.

    Inside a tensor the values of ``between`` are dealt out anew, the smallest to whatever has the
    smallest score in ``within``. So an order over layers and one inside them can be chosen apart.

    Args:
        within, between: scores (R, 1, ...) of the same parameters.
    """
    scores = {}
    for name, values in between.items():
        places = rank({name: within[name]}, ensemble_dims=ENSEMBLE_DIMS)[name] - 1
        dealt = values.flatten(ENSEMBLE_DIMS).sort(-1).values
        scores[name] = dealt.gather(-1, places.flatten(ENSEMBLE_DIMS)).view_as(values)
    return scores


def balanced_mixture(trained: TrainedModel, mu: float = 0.2, gamma: float = 0.5) -> Scores:
    """:func:`mixture`, balanced over units and inputs."""
    return balanced(mixture(trained, mu), gamma)


def two_level(trained: TrainedModel, gamma: float = 0.5) -> Scores:
    r"""How many of each tensor by :math:`\hat v`, which of them by :math:`\hat m^2`, balanced.

    The capacity of layers is what :math:`\hat v` measures best; inside a layer it adds little to a
    random choice, while :math:`\hat m^2` is what a linear model needs.
    """
    return placed(balanced(mixture(trained, 0.0), gamma), adam_v(trained))


def fresh(trained: TrainedModel, mu: float = 0.2) -> Scores:
    r"""The mixture with the gradient over all training objects at w_t0 in place of :math:`\hat m`.

    Adam's :math:`\hat m` averages some twenty minibatches along the way. One pass over the objects,
    accumulated in ``.grad``, gives the mean itself where the freeze happens: no memory beyond
    training's, and the time of an epoch, once. At :math:`\mu = 0` and for linear regression with
    isotropic x it is the oracle.
    """
    mean, square = adam_moments(trained.model, trained.optimizer)
    gradient = _gradient(trained)
    return {
        name: g.square() + mu * (square[name] - mean[name].square()).clamp_min(0)
        for name, g in gradient.items()
    }


def _balance(q: Tensor, gamma: float, ensemble_dims: int) -> Tensor:
    shape = q.shape[ensemble_dims:]
    units = shape[0] if shape else 1
    matrix = q.reshape(*q.shape[:ensemble_dims], units, prod(shape) // max(units, 1))
    rows, columns = (matrix.mean(axis, keepdim=True) ** (gamma / 2) for axis in (-1, -2))
    return torch.where(matrix > 0, matrix / rows / columns, 0).view_as(q)


def _gradient(trained: TrainedModel, chunk: int = 1000) -> dict[str, Tensor]:
    """The gradient of the loss over all training objects, each model's own."""
    trained.model.zero_grad()
    objects = zip(trained.x.split(chunk, ENSEMBLE_DIMS), trained.y.split(chunk, -1), strict=True)
    for x, y in objects:
        (trained.loss(trained.model(x), y).sum() / trained.x.shape[ENSEMBLE_DIMS]).backward()
    gradient = {name: w.grad.clone() for name, w in trained.model.named_parameters()}
    trained.model.zero_grad()
    return gradient


CANDIDATES: dict[str, Callable[[TrainedModel], Scores]] = {
    score.__name__: score for score in (decrease, geometric, balanced_mixture, two_level, fresh)
}
