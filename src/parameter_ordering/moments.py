"""Moments of the minibatch gradient: those that Adam keeps, and their running mean."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parameter_ordering.gradients.recorder import Recorder, inner
from parameter_ordering.gradients.selected import check_whole
from parameter_ordering.gradients.steps import Steps

__all__ = ["GradientMoments", "Moments", "adam_moments"]


class Moments(NamedTuple):
    """Estimates of the mean of the minibatch gradient and of its square, by parameter name."""

    mean: dict[str, Tensor]
    square: dict[str, Tensor]


def adam_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    r"""Adam's :math:`\hat m_t` and :math:`\hat v_t`, with its correction of the start.

    Raises:
        ValueError: the optimizer has no moments of a parameter yet.

    Source: Kingma, Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1.
    """
    betas = {w: group.get("betas") for group in optimizer.param_groups for w in group["params"]}
    moments = Moments({}, {})
    for name, w in model.named_parameters():
        state = optimizer.state.get(w, {})
        if "exp_avg" not in state:
            raise ValueError(
                f"the optimizer has no moments of {name!r}: train it before it is scored"
            )
        pairs = zip(moments, ("exp_avg", "exp_avg_sq"), betas[w] or (), strict=True)
        for kept, key, beta in pairs:
            kept[name] = state[key] / (1 - beta ** float(state["step"]))
    return moments


class GradientMoments:
    r"""Running means of the minibatch gradient :math:`g_S` and of its square, over all iterations.

    :math:`\frac{1}{t} \sum_s g_{S,s}` and :math:`\frac{1}{t} \sum_s g_{S,s}^2`: not centred,
    unlike (2.6), and not forgetting, unlike Adam's. Two numbers for each parameter. With
    minibatches of one sample the second is the diagonal of the empirical Fisher matrix, as EWC
    takes it; with larger ones it is smaller, by up to S, since the mean is taken before the square.

    Args:
        model: its parameters are followed.

    Attributes:
        t: the number of gradients so far.
        mean: of the gradient, by parameter name.
        square: the mean of its square. Under ``DistributedDataParallel`` both are the same in each
            process, as the gradients are.

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 114,
    2017, for the use of the second.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> moments = GradientMoments(model)
    >>> for x in (1.0, 3.0):
    ...     model.zero_grad()
    ...     model(torch.tensor([[x]])).sum().backward()
    ...     moments.update()
    >>> moments.mean["weight"].item(), moments.square["weight"].item()
    (2.0, 5.0)
    """

    def __init__(self, model: nn.Module):
        self.model, self.t = model, 0
        self.mean = {name: torch.zeros_like(w).detach() for name, w in model.named_parameters()}
        self.square = {name: torch.zeros_like(each) for name, each in self.mean.items()}
        self._steps: Steps | None = None
        self._recorder: Recorder | None = None

    def update(self) -> None:
        """Take in the gradient that stands in ``.grad``; none counts as zero."""
        self._add({n: w.grad for n, w in self.model.named_parameters() if w.grad is not None}, 1)

    def attach(self, optimizer: Any, scaler: Any = None) -> None:
        """Take in the gradient of each step of ``optimizer``, before it is clipped.

        Arguments, errors, and what counts as a step are those of
        :meth:`GradientCovariance.attach`; training has the same bits as without.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> moments = GradientMoments(model)
        >>> moments.attach(optimizer)
        >>> for x in (1.0, 3.0):
        ...     optimizer.zero_grad()
        ...     model(torch.tensor([[x]])).sum().backward()
        ...     optimizer.step()
        >>> moments.square["weight"].item()
        5.0
        >>> moments.detach()
        """
        if self._steps is not None:
            raise RuntimeError("the moments follow an optimizer already: call detach() before")
        trained = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        check_whole(trained)
        steps = self._steps = Steps(trained, optimizer, scaler, self._add)
        self._recorder = Recorder(
            inner(self.model), {}, 0, lambda *_: steps.forward(), lambda *_: steps.begin()
        )

    def detach(self) -> None:
        """Follow no longer: all hooks are gone, the means stay."""
        if self._steps is not None and self._recorder is not None:
            self._steps.remove()
            self._recorder.remove()
        self._steps = self._recorder = None

    def state_dict(self) -> dict[str, Any]:
        """t and the two means, which are not copied."""
        return {"t": self.t, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: if it is of other parameters, or of other shapes. Nothing has changed then.
        """
        for own, key in ((self.mean, "mean"), (self.square, "square")):
            given = {name: each.shape for name, each in state_dict[key].items()}
            if given != {name: each.shape for name, each in own.items()}:
                raise ValueError(f"the {key} is of other parameters, or of other shapes: {given}")
        for own, key in ((self.mean, "mean"), (self.square, "square")):
            for name, each in own.items():
                each.copy_(state_dict[key][name])
        self.t = int(state_dict["t"])

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached."""
        return vars(self) | {"_steps": None, "_recorder": None}

    @torch.no_grad()
    def _add(self, g: Mapping[str, Tensor], scale: float) -> None:
        self.t += 1
        for name, mean in self.mean.items():
            square = self.square[name]
            square.mul_(1 - 1 / self.t)
            if name in g:
                each = g[name] if scale == 1 else g[name] / scale
                mean.lerp_(each, 1 / self.t)
                square.addcmul_(each, each, value=1 / self.t)
            else:
                mean.mul_(1 - 1 / self.t)
