"""Belsley's method, the paper's [8]."""

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from parameter_ordering.ensemble import ENSEMBLE_DIMS
from parameter_ordering.paper.orders.gauss_newton import gauss_newton_matrix
from parameter_ordering.paper.orders.posterior import nats
from parameter_ordering.paper.orders.training import Training


def belsley(trained: Training) -> dict[str, Tensor]:
    r"""The most collinear parameter first, then the most collinear of the rest, and so on.

    A Laplace approximation at w_t0: the covariance of the parameters is the inverse of
    :math:`A = m G' + I / s_0^2`, G' the Gauss-Newton matrix of the negative log likelihood over all
    training objects and :math:`s_0^2` the mean of :math:`w^2`. In full, so for few parameters only.
    What the loss does not depend on goes before all. Extra: p^2 numbers and p eigenvectors of such
    a matrix. Source: Grabovoy, Bakhteev, Strijov, Estimation of relevance for neural network
    parameters, Informatics and Applications 13(2), 2019.

    Raises:
        ValueError: for more than 500 parameters.
    """
    p = sum(w[0].numel() for w in trained.start.values())
    if p > 500:
        raise ValueError(f"Belsley's method takes the full covariance: {p} parameters are too many")
    runs = len(trained.own_seeds)
    x, y = (each.expand(runs, *each.shape[1:]) for each in (trained.x, trained.y))
    matrix = gauss_newton_matrix(trained.model, trained.loss, x, y, ENSEMBLE_DIMS)
    weights = [w.detach().flatten(1) for w in trained.model.parameters()]
    prior = torch.cat(weights, 1).square().mean(1)  # one variance a run
    likelihood = x.shape[2] * nats(trained) * matrix[:, 0].new_ones(runs, 1)
    places = []
    for G, m, s2 in zip(matrix[:, 0], likelihood[:, 0], prior, strict=True):
        G = G.double().cpu().numpy()
        order = removal(m.item() * G + np.eye(p) / s2.item(), first=np.diag(G) == 0)
        # Of the last two the shares are always equal.
        places.append(np.argsort(order).clip(max=p - 2))
    scores = torch.tensor(np.stack(places), dtype=torch.float64, device=x.device)
    sizes = [w[0].numel() for w in trained.start.values()]
    split = scores.split(sizes, 1)
    return {n: s.view(w.shape) for (n, w), s in zip(trained.start.items(), split, strict=True)}


def removal(precision: np.ndarray, first: np.ndarray | None = None) -> list[int]:
    """The order in which parameters go, from their precision (p, p), the inverse of the covariance.

    Each is divided by its scale, so that the diagonal of the precision is 1. The eigenvector with
    the smallest eigenvalue has the largest condition index; the parameter that goes is the one of
    whose variance this makes up the largest share.

    Args:
        first: (p,), which parameters go before all others.
    """
    scale = np.sqrt(np.diag(precision))
    A = precision / scale / scale[:, None]
    order = [] if first is None else np.flatnonzero(first).tolist()
    left = np.setdiff1d(np.arange(len(A)), order)
    A = A[np.ix_(left, left)]
    covariance = np.linalg.inv(A)
    while len(left):
        (smallest,), vector = eigh(A, subset_by_index=[0, 0])
        share = vector[:, 0] ** 2 / smallest / np.diag(covariance)
        gone = int(share.argmax())
        order.append(int(left[gone]))
        column = covariance[:, gone]
        covariance = covariance - np.outer(column, column) / column[gone]
        left, A, covariance = _without(gone, left), _without(gone, A), _without(gone, covariance)
    return order


def condition_indices(precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Condition indices :math:`\sqrt{\lambda_{max} / \lambda_j}` and variance proportions (j, k).

    Of the precision with its diagonal scaled to 1, ascending; the row of an index says what share
    of the variance of parameter k it makes up, and the columns add up to 1. For linear regression
    the precision is X^T X, and these are the collinearity diagnostics of Belsley, Kuh and Welsch.
    """
    scale = np.sqrt(np.diag(precision))
    values, vectors = np.linalg.eigh(precision / scale / scale[:, None])
    values, vectors = values[::-1], vectors[:, ::-1]
    parts = (vectors**2 / values).T
    return np.sqrt(values[0] / values), parts / parts.sum(0)


def _without(gone: int, array: np.ndarray) -> np.ndarray:
    for axis in range(array.ndim):
        array = np.delete(array, gone, axis)
    return array
