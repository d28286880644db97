"""Lasso and elastic net, the paper's [3] and [4], for linear models."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, enet_path, lasso_path
from sklearn.svm import l1_min_c
from torch import Tensor

from parameter_ordering.paper.orders.training import Training

Path = Callable[[np.ndarray, np.ndarray], np.ndarray]
_RELAXED = np.geomspace(1.2, 20, 6)  # how much less than what admits nothing; each takes a training


def lasso(trained: Training) -> dict[str, Tensor]:
    r"""How early a feature enters the path of the l1 penalty; what never enters is frozen first.

    Linear models only. Squared error: the path of ``sklearn.linear_model.lasso_path``, 100
    penalties down to a thousandth of that which admits nothing. Two classes: l1 logistic
    regression, 6 penalties down to a twentieth. Of features that enter at one step, the one with
    the larger weight counts as the earlier. Extra: a p x p matrix, and some tens of passes over the
    data; no gradients. Source: Tibshirani, Regression shrinkage and selection via the lasso, JRSS B
    58(1), 1996.
    """
    return _entries(trained, _lasso_path if trained.gaussian else _logistic_path)


def elastic_net(trained: Training) -> dict[str, Tensor]:
    """The same with half of the penalty on squares; linear regression only.

    The path of ``sklearn.linear_model.enet_path``. Extra: as :func:`lasso`. Source: Zou, Hastie,
    Regularization and variable selection via the elastic net, JRSS B 67(2), 2005.
    """
    if not trained.gaussian:
        raise ValueError("the path of the elastic net is for a squared error: take lasso instead")
    return _entries(trained, lambda x, y: enet_path(x, y, l1_ratio=0.5)[1])


def _lasso_path(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return lasso_path(x, y)[1]


def _logistic_path(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    least = l1_min_c(x, y, loss="log", fit_intercept=False)
    weights = []
    for C in least * _RELAXED:
        model = LogisticRegression(
            C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-3, random_state=0
        )
        weights.append(model.fit(x, y).coef_[0])
    return np.stack(weights, -1)


def entry(path: np.ndarray) -> np.ndarray:
    """For each row of weights (n, penalties), largest penalty first: how early it is not 0.

    The number of penalties at which it is not 0 from its entry on; as a fraction, between 0 and 1,
    its size there compared with the others'. 0 for what never enters.

    >>> entry(np.array([[0.0, 0.0, 0.0], [0.0, -3.0, -4.0], [0.0, 1.0, 2.0]]))
    array([0.  , 1.75, 1.25])
    """
    inside = path != 0
    first, enters = inside.argmax(1), inside.any(1)
    size = np.abs(path[np.arange(len(path)), first])
    of_step = np.bincount(first, size * enters, path.shape[1])[first]
    share = np.divide(size, of_step, out=np.zeros_like(size), where=of_step > 0)
    return np.where(enters, path.shape[1] - 1 - first + share, 0.0)


def _entries(trained: Training, path: Path) -> dict[str, Tensor]:
    if len(trained.start) != 1:
        raise ValueError("features enter the path of a linear model; this one has layers")
    ((name, w),) = trained.start.items()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for x, y in zip(trained.x[:, 0], trained.y[:, 0], strict=True):
            try:
                weights = path(*(each.cpu().numpy().astype(np.float64) for each in (x, y)))
            except ConvergenceWarning as warning:
                raise RuntimeError(f"the path has not converged: {warning}") from warning
            found.append(entry(weights))
    scores = torch.from_numpy(np.stack(found)).to(w.device)
    return {name: scores[:, None, None].expand(w.shape).contiguous()}
