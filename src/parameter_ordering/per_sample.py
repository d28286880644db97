"""The gradient of each sample of a minibatch, beside its ordinary backward pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from parameter_ordering.factors import FACTORS, Rows

Loss = Callable[[Tensor, Tensor], Tensor]


class PerSampleGradients:
    """Runs a minibatch forward and backward, and gives the gradients g_i of its samples.

    Three ways lead to the g_i of a parameter:

    1. from the input and the output gradient of its layer, where the layer is one of `FACTORS`, alone
       owns the parameter and is called once: nothing but the ordinary backward pass;
    2. where only g_1 is asked for, by a second backward pass from the loss of the first sample
       through the same graph, so with the same dropout masks;
    3. by `torch.func.vmap` over the samples, the random numbers of the forward pass drawn again.

    The first is not taken on trust: on first use its gradients must add up to ``.grad``, and the first
    of them must be that of the second way. A parameter for which they do not (a function uses its weight
    again, its layer has the samples on another axis) goes another way from then on. Those of the third
    way must add up each time. A model or a loss that couples the samples is refused on first use.

    Parameters
    ----------
    model
        the model.
    names
        the parameters to follow, by their names in ``named_parameters()``.
    first_only
        whether only g_1 is asked for.
    ensemble_dims
        the number E of leading axes of the parameters; axis E of x and y is that of the samples.
    mean
        whether the loss is the mean over samples; if not, their sum.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        first_only: bool,
        ensemble_dims: int,
        mean: bool,
    ):
        self.model, self.first_only, self.E, self.mean = model, first_only, ensemble_dims, mean
        every = dict(model.named_parameters())
        self.parameters = {name: every[name] for name in names}
        self.layers = _layers(model, self.parameters)
        self.by_layer: set[str] | None = None  # what goes the first way, once it has been tried

    def __call__(self, loss_fn: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Rows]]:
        """The loss, and the g_i of each parameter that has a gradient; replaces ``.grad``."""
        E, S, trial = self.E, x.shape[self.E], self.by_layer is None
        scale = S if self.mean else 1
        random, leaf = _random_state(x.device), None
        if trial and x.is_floating_point():
            leaf = x.detach().requires_grad_()
            x = leaf.clone()
        with _recorded(self.layers) as calls:
            output = self.model(x)
            loss = loss_fn(output, y)
            once = {layer: call[0] for layer, call in calls.items() if len(call) == 1 and call[0]}
            reached = {name for layer in once for name in self.layers[layer].values()}
            rest = self.parameters.keys() - (set() if trial else reached & self.by_layer)
            g_1 = {}
            if torch.is_tensor(output) and output.dim() > E and output.shape[E] == S:
                if trial:
                    self._check_loss(loss_fn, output, y, scale)
                if rest and (trial or self.first_only):
                    g_1 = self._alone(loss_fn, output, y, rest, leaf)
            self.model.zero_grad()
            loss.backward()
        used = {name for name, p in self.parameters.items() if p.grad is not None}
        with torch.no_grad():
            g = {}
            for layer, call in once.items():
                g.update(self._from_layer(layer, call, S, scale))
            g = {name: g[name] for name in g.keys() & used}
            if trial:
                self.by_layer = (
                    self._confirmed(g, g_1, scale, _rounding(output.dtype)) if g_1 else set()
                )
            g = {name: g[name] for name in g.keys() & self.by_layer}
            if self.first_only:
                g.update({n: Rows(g_1[n].unsqueeze(E).to(accumulator_dtype(g_1[n])), E) for n in (g_1.keys() & used) - g.keys()})
            if rest := used - g.keys():
                with _replayed(random, x.device):
                    g.update(self._mapped(loss_fn, x.detach(), y, sorted(rest)))
                self._check_total({n: g[n] for n in rest}, scale, 0.01 if trial else 0.1)
        return loss.detach(), g

    def _from_layer(self, layer: nn.Module, call: "_Call", S: int, scale: float) -> dict[str, Rows]:
        """The first way."""
        a, d, names = call.input, call.output_grad, self.layers[layer]
        if d is None or any(t.dim() <= self.E or t.shape[self.E] != S for t in (a, d)):
            return {}
        dtype = accumulator_dtype(self.parameters[next(iter(names.values()))])
        a = a.to(dtype) if a.is_floating_point() else a
        g = FACTORS[_kind(layer)](layer, a, scale * d.to(dtype), self.E)
        return {names[local]: g[local] for local in g.keys() & names.keys()}

    def _alone(
        self, loss_fn: Loss, output: Tensor, y: Tensor, names: Iterable[str], x: Tensor | None
    ) -> dict[str, Tensor]:
        """The second way; given x, also that the other samples have no part in the first loss."""
        l_1 = loss_fn(output.narrow(self.E, 0, 1), y.narrow(self.E, 0, 1))
        w = {name: self.parameters[name] for name in names}
        inputs = [*w.values()] if x is None else [*w.values(), x]
        g = torch.autograd.grad(
            l_1, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if x is not None and g[-1].narrow(self.E, 1, x.shape[self.E] - 1).any():
            raise ValueError(
                "the model couples the samples of a minibatch: the loss of the first depends on the "
                "inputs of the others, so it has no gradient of its own; replace the layer that "
                "looks across the minibatch"
            )
        return dict(zip(w, g, strict=False))

    def _mapped(self, loss_fn: Loss, x: Tensor, y: Tensor, names: list[str]) -> dict[str, Rows]:
        """The third way."""
        E, whole = self.E, _WithLoss(self.model, loss_fn)
        w = {f"model.{name}": self.parameters[name].detach() for name in names}

        def loss_of_one(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return functional_call(whole, w, (x.unsqueeze(E), y.unsqueeze(E)))

        try:
            g = vmap(grad(loss_of_one), (None, E, E), E, randomness="different")(w, x, y)
        except Exception as error:
            error.add_note(
                f"torch.func.vmap was to give the gradients of single samples for {names}. Leave these "
                "parameters out (parameters=...), or take samples='first', which needs no vmap where "
                "the model returns one tensor."
            )
            raise
        g = {name: g[f"model.{name}"].detach() for name in names}
        return {name: Rows(rows.to(accumulator_dtype(rows)), E) for name, rows in g.items()}

    def _confirmed(self, g: dict, g_1: dict, scale: float, rounding: float) -> set[str]:
        """The parameters for which the first way gives what it should."""
        noise = self._noise(scale, rounding)

        def close(u: Tensor, v: Tensor) -> bool:
            return bool((u - v).norm() <= rounding * v.norm() + noise)

        return {
            name
            for name in g.keys() & g_1.keys()
            if close(g[name].total(), scale * batch_gradient(self.parameters[name]))
            and close(g[name].first(), g_1[name])
        }

    def _check_total(self, g: dict[str, Rows], scale: float, tolerance: float) -> None:
        """That the third way gives what adds up to ``.grad``, up to units that rounding switches."""
        for name, rows in g.items():
            tolerance = max(tolerance, _rounding(rows.g.dtype))
            error = rows.total() - scale * batch_gradient(self.parameters[name])
            if not error.norm() <= tolerance * rows.g.norm() + self._noise(scale, tolerance):
                raise RuntimeError(
                    f"the gradients of single samples for {name!r} do not add up to its gradient: a loss "
                    "that is no mean (or, with reduction='sum', no sum) over samples, a layer that couples "
                    "the samples, or a random number drawn once for the whole minibatch; change that, or "
                    "leave the parameter out (parameters=...)"
                )

    def _noise(self, scale: float, rounding: float) -> float:
        """What may be left of a gradient that vanishes, where nothing but rounding is to be seen."""
        norms = [p.grad.norm() for p in self.parameters.values() if p.grad is not None]
        return 1e-3 * rounding * scale * float(max(norms, default=0))

    def _check_loss(self, loss_fn: Loss, output: Tensor, y: Tensor, scale: float) -> None:
        """That the loss is the mean, or the sum, of the losses of single samples."""
        o, E = output.detach().requires_grad_(), self.E
        (together,) = torch.autograd.grad(loss_fn(o, y), o)
        alone = (loss_fn(o.narrow(E, i, 1), y.narrow(E, i, 1)) for i in range(o.shape[E]))
        (apart,) = torch.autograd.grad(sum(alone), o)
        if not (scale * together - apart).norm() <= _rounding(o.dtype) * apart.norm():
            reduction = "mean" if self.mean else "sum"
            raise ValueError(
                f"loss_fn is not the {reduction} over samples of a loss of single samples, as "
                f"reduction={reduction!r} says: give the other reduction, or a loss in which all samples "
                "weigh the same (class weights and ignore_index with a mean divide by what the minibatch "
                "holds)"
            )


class _WithLoss(nn.Module):
    """A model and its loss as one module: a loss that looks at the parameters sees those given."""

    def __init__(self, model: nn.Module, loss_fn: Loss):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss_fn(self.model(x), y)


class _Call:
    """What one call of a layer leaves: its input, and in the backward pass its output gradient."""

    def __init__(self, input: Tensor):
        self.input, self.output_grad = input, None

    def receive(self, output_grad: Tensor) -> None:
        self.output_grad = output_grad


@contextmanager
def _recorded(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[_Call]]]:
    """The calls of each layer; all hooks are gone afterwards."""
    calls, handles = {}, []

    def record(layer: nn.Module, args: tuple, output: Tensor) -> None:
        known = len(args) == 1 and torch.is_tensor(args[0]) and output.requires_grad
        call = _Call(args[0].detach()) if known else None
        calls.setdefault(layer, []).append(call)
        if known:
            handles.append(output.register_hook(call.receive))

    try:
        # First of all forward hooks: others may replace the output.
        handles += [layer.register_forward_hook(record, prepend=True) for layer in layers]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _kind(layer: nn.Module) -> type | None:
    return next((kind for kind in FACTORS if isinstance(layer, kind)), None)


def _layers(model: nn.Module, parameters: dict[str, Tensor]) -> dict[nn.Module, dict[str, str]]:
    """Layers of `FACTORS` with those parameters that they alone own: local name to name."""
    own = {m: dict(m.named_parameters(recurse=False)) for m in model.modules()}
    owners = Counter(id(p) for of in own.values() for p in of.values())
    names = {id(p): name for name, p in parameters.items() if owners[id(p)] == 1}
    layers = {
        m: {local: names[id(p)] for local, p in of.items() if id(p) in names}
        for m, of in own.items()
        if _kind(m)
    }
    return {m: of for m, of in layers.items() if of}


def _rounding(dtype: torch.dtype) -> float:
    """What two orders of computing may differ by, with room for TF32; structural errors are near 1."""
    return torch.finfo(dtype).eps ** 0.4


def accumulator_dtype(parameter: Tensor) -> torch.dtype:
    """A running mean in half precision would soon stop to move."""
    return torch.promote_types(parameter.dtype, torch.float32)


def batch_gradient(parameter: Tensor) -> Tensor:
    """``.grad``, dense and in the accumulator's precision."""
    g = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
    return g.detach().to(accumulator_dtype(parameter))


def _random_state(device: torch.device) -> tuple:
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), on_device


@contextmanager
def _replayed(state: tuple, device: torch.device) -> Iterator[None]:
    """Draws the random numbers that follow `state` again, then goes on where it was."""

    def set_state(state: tuple) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.get_device_module(device).set_rng_state(state[1])

    now = _random_state(device)
    set_state(state)
    try:
        yield
    finally:
        set_state(now)
