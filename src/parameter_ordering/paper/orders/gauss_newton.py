"""The Gauss-Newton matrix, exactly: its diagonal, or for few parameters the whole."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from parameter_ordering.covariance import GradientCovariance

_CHUNK = 1000


def gauss_newton(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ensemble_dims: int = 0,
) -> dict[str, Tensor]:
    r"""diag(G), :math:`G = \frac{1}{m} \sum_i J_i^T H_i J_i`, of the mean loss.

    :math:`J_i` is the derivative of the output (K,) at object i by the parameters and :math:`H_i`
    the Hessian of the loss by the output: G is the Hessian of the loss without the curvature of the
    model, for cross entropy Fisher's information. With :math:`H_i = \sum_k r_{ik} r_{ik}^T` the
    diagonal is the mean square of the gradients of :math:`r_{ik}^T h(w, x_i)`, summed over k:
    K passes over the objects, and no sampling.

    Args:
        model: with all parameters of shape (\*E, ...), E the axes of the ensemble.
        loss: of the output (\*E, m, K) and y, for each object: (\*E, m); convex in the output.
        x: all objects, (\*E, m, ...).
        y: their answers, (\*E, m) or what broadcasts to it.
        ensemble_dims: how many axes E there are.

    Returns:
        The diagonal by parameter name, each of the shape of its parameter. ``.grad`` is cleared.

    Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient descent,
    Neural Computation 14, 2002; the factors r as in Dangel, Kunstner, Hennig, BackPACK, ICLR 2020.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> def squared_error(output, y):
    ...     return (output[..., 0] - y).square()
    >>> gauss_newton(model, squared_error, x, torch.zeros(2))  # 2 x^2, mean over objects
    {'weight': tensor([[10.0000,  4.0000]])}
    """
    total = {name: torch.zeros_like(w).detach() for name, w in model.named_parameters()}
    for squares, share in _projections(model, loss, x, y, ensemble_dims, full=False):
        for name, variance in squares.diagonal().items():
            mean = model.get_parameter(name).grad
            assert mean is not None
            total[name].add_(variance + mean.square(), alpha=share)
    model.zero_grad()
    return total


def gauss_newton_matrix(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ensemble_dims: int = 0,
) -> Tensor:
    r"""The whole of G, (\*E, p, p), the parameters flattened one after the other."""
    total = torch.zeros(())
    for products, share in _projections(model, loss, x, y, ensemble_dims, full=True):
        gradients = [w.grad for w in model.parameters() if w.grad is not None]
        mean = torch.cat([g.flatten(ensemble_dims) for g in gradients], ensemble_dims)
        total = total + share * (products.matrix() + mean.unsqueeze(-1) * mean.unsqueeze(-2))
    model.zero_grad()
    return total


def _projections(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ensemble_dims: int,
    full: bool,
) -> Iterator[tuple[GradientCovariance, float]]:
    """The covariance of the gradients of r^T h, whose mean is in ``.grad``, and its weight."""
    m = x.shape[ensemble_dims]
    pieces = -(-m // _CHUNK)
    for objects, answers in zip(
        x.tensor_split(pieces, ensemble_dims), y.tensor_split(pieces, -1), strict=True
    ):
        with torch.no_grad():
            output = model(objects)
        for factor in _factors(loss, output, answers).unbind(-1):
            model.zero_grad()
            squares = GradientCovariance(model, "all", full=full, ensemble_dims=ensemble_dims)
            squares.update(_projected, objects, factor)
            yield squares, objects.shape[ensemble_dims] / m


def _projected(output: Tensor, factor: Tensor) -> Tensor:
    return (output * factor).sum(-1).mean(-1).sum()


def _factors(loss: Callable, output: Tensor, y: Tensor) -> Tensor:
    """Matrices (..., K, K) whose columns r give the Hessian of the loss by the output."""
    output = output.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(output, y).sum(), output, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), output, retain_graph=True)[0] for g in gradient.unbind(-1)]
    values, vectors = torch.linalg.eigh(torch.stack(rows, -1))
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
