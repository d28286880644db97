r"""Scores that an order can be made of: the parameter with the lowest is frozen first.

Each scorer takes a :class:`Training` and gives a tensor for each parameter, of its shape; where
the model is an ensemble, each of its models is scored alone. What it needs beyond training with
Adam is said as *extra*: numbers kept, and time for each iteration up to t0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from parameter_ordering.ensemble import ENSEMBLE_DIMS, summed
from parameter_ordering.moments import adam_moments
from parameter_ordering.paper.orders.gauss_newton import gauss_newton
from parameter_ordering.paper.orders.training import Training
from parameter_ordering.scores import scores

Scores = dict[str, Tensor]


def covariance(trained: Training) -> Scores:
    """The paper's: variance of the gradient at one object, from the first sample (2.6).

    Extra: p numbers; one elementwise pass, since the backward pass has the factors of the gradient.
    """
    return trained.covariance.diagonal()


def all_samples(trained: Training) -> Scores:
    """The same variance, from all objects of each minibatch; S - 1 times less noise.

    Extra: p numbers; about one more product for each weight, a third of a backward pass.
    """
    assert trained.all_samples is not None
    return trained.all_samples.diagonal()


def zero_variance(trained: Training) -> Scores:
    """0 where the gradient never varied, 1 elsewhere: dead weights first, the rest by lot.

    A control, not a proposal. Extra: as :func:`covariance`.
    """
    return {name: (c > 0).to(c.dtype) for name, c in trained.covariance.diagonal().items()}


def second_moment(trained: Training) -> Scores:
    r"""Mean square of the minibatch gradient, not centred: :math:`C_{jj} / S + (E g_j)^2`.

    Extra: p numbers; one elementwise pass.
    """
    return {name: square.clone() for name, square in trained.moments.square.items()}


def adam_v(trained: Training) -> Scores:
    r"""Adam's :math:`\hat v_t`: the second moment of about the last 1000 iterations.

    Extra: none. Source: Kingma, Ba, 2015.
    """
    return adam_moments(trained.model, trained.optimizer).square


def mean_gradient(trained: Training) -> Scores:
    r"""Square of the mean gradient, Adam's :math:`\hat m_t^2`, of about the last 10 iterations.

    To first order the decrease of the loss by one step of gradient descent in that coordinate.
    Extra: none.
    """
    mean = adam_moments(trained.model, trained.optimizer).mean
    return {name: m.square() for name, m in mean.items()}


def signal_to_noise(trained: Training) -> Scores:
    r""":math:`\hat m^2 / \hat v`, the square of the step that Adam takes next; 0 where both are 0.

    In the same order as :math:`\hat m^2 / (\hat v - \hat m^2)`. Extra: none.
    """
    mean, square = adam_moments(trained.model, trained.optimizer)
    return {name: _divide(m.square(), square[name]) for name, m in mean.items()}


def magnitude(trained: Training) -> Scores:
    """|w|, as in magnitude pruning. Extra: none.

    Source: Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural
    networks, NIPS 2015.
    """
    return {name: w.detach().abs() for name, w in trained.model.named_parameters()}


def movement(trained: Training) -> Scores:
    """Distance from the start, |w - w_0|: what has not moved is frozen first.

    Extra: p numbers, w_0; no time. Source: Zhou, Lan, Liu, Yosinski, Deconstructing lottery
    tickets: zeros, signs, and the supermask, NeurIPS 2019, there called movement.
    """
    parameters = trained.model.named_parameters()
    return {name: (w.detach() - trained.start[name]).abs() for name, w in parameters}


def taylor(trained: Training) -> Scores:
    r"""|w g|, the change of the loss, to first order, if w were set to 0; g is :math:`\hat m_t`.

    Extra: none. Source: Molchanov, Tyree, Karras, Aila, Kautz, Pruning convolutional neural
    networks for resource efficient inference, ICLR 2017, for single weights.
    """
    mean = adam_moments(trained.model, trained.optimizer).mean
    return {name: (w.detach() * mean[name]).abs() for name, w in trained.model.named_parameters()}


def obd(trained: Training) -> Scores:
    r""":math:`\frac{1}{2} h w^2`, the growth of the loss, to second order, if w were set to 0.

    h is the diagonal of the Gauss-Newton matrix at w_t0 over all training objects, exactly, and not
    the empirical Fisher matrix. Needs an ensemble (R, 1, ...). Extra: p numbers, once, and K passes
    over the training objects at t0; nothing before. Source: LeCun, Denker, Solla, Optimal brain
    damage, NIPS 1989.
    """
    runs = len(next(trained.model.parameters()))
    x, y = (each.expand(runs, *each.shape[1:]) for each in (trained.x, trained.y))
    h = gauss_newton(trained.model, trained.loss, x, y, ENSEMBLE_DIMS)
    return {name: h[name] * w.detach().square() / 2 for name, w in trained.model.named_parameters()}


def fresh_gradient(trained: Training, mu: float = 0.05) -> Scores:
    r""":math:`\bar g^2 + \mu (\hat v - \hat m^2)`: what freezing costs now, and may cost later.

    :math:`\bar g` is the gradient over all training objects at w_t0, so :math:`\bar g^2` is to
    first order the decrease of the loss that is given up; for linear regression with isotropic x
    and :math:`\mu = 0` the order is the oracle's. The gradient turns as others train, and how much
    of later residuals w can take up is seen in its noise. This project's proposal, and its
    :math:`\mu`; see the chapter on the orders compared for where it fails.

    Extra: no memory, the gradient is accumulated where ``.grad`` is; one pass over the training
    objects, once.
    """
    return _ours(trained, saturating=False, mu=mu)


def recommended(trained: Training) -> Scores:
    r"""Fresh gradient; for a cross entropy, which saturates, times :math:`|w|`.

    What the public function :func:`parameter_ordering.scores` gives. Extra: as fresh gradient.
    """
    return _ours(trained, saturating=not trained.gaussian)


def oracle(trained: Training) -> Scores:
    r""":math:`(w - w_*)^2`: for linear regression with isotropic x, what freezing costs.

    No order that goes by the data can grow slower, see :func:`~.theory.growth`.
    Needs an ensemble (R, 1, ...) of linear models, and the truth.
    """
    parameters = dict(trained.model.named_parameters())
    if trained.w_true is None or len(parameters) != 1:
        raise ValueError("the oracle is for linear models of synthetic data, whose w is known")
    ((name, w),) = parameters.items()
    return {name: (w.detach() - trained.w_true[:, None, None]).square()}


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0)


def _ours(trained: Training, saturating: bool, mu: float = 0.05, chunk: int = 1000) -> Scores:
    """The public scores, of each model, from all training objects."""
    assert isinstance(trained.optimizer, torch.optim.Adam)
    return scores(
        trained.model,
        trained.optimizer,
        summed(trained.loss),
        zip(trained.x.split(chunk, ENSEMBLE_DIMS), trained.y.split(chunk, -1), strict=True),
        saturating=saturating,
        mu=mu,
        ensemble_dims=ENSEMBLE_DIMS,
    )


SCORES: dict[str, Callable[[Training], Scores]] = {
    score.__name__: score
    for score in (
        covariance,
        all_samples,
        zero_variance,
        second_moment,
        adam_v,
        mean_gradient,
        signal_to_noise,
        magnitude,
        movement,
        taylor,
        obd,
        fresh_gradient,
        recommended,
        oracle,
    )
}
