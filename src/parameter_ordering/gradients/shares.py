"""The shares of the samples in the gradient of a minibatch, from what its layers leave."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parameter_ordering.gradients import places
from parameter_ordering.gradients.again import Again
from parameter_ordering.gradients.coupling import batch_norms, check_batch_norms, rounding
from parameter_ordering.gradients.factors import Rows, Sum
from parameter_ordering.gradients.layers import (
    factors,
    has_rule,
    sample_axis,
    units,
    works_on_positions,
)
from parameter_ordering.gradients.recorder import Call, Edges, Pass, Recorder, inner, silent
from parameter_ordering.gradients.recurrent import has_recurrence, recurrent
from parameter_ordering.gradients.running import accumulator_dtype
from parameter_ordering.gradients.steps import Steps

Take = Callable[[str, Rows], None]


class Shares:
    r"""Finds the shares :math:`s_i` in the gradient of each parameter, at each backward pass.

    Backpropagation is linear in the gradient at the output, so the gradient of a minibatch is a sum
    of shares, :math:`s_1 + ... + s_S`, where :math:`s_i` is what flows through the rows of sample i.
    They come

    1. from the input and the output gradient of a layer that has a rule (:mod:`.layers`);
    2. from a layer without one, differentiated again by itself (:mod:`.again`);
    3. where these do not add up to the gradient, or a layer has the rows of other samples, from the
       whole model, differentiated again.

    What uses a parameter several times gives several terms, which are added up.

    Args:
        model: the model.
        parameters: the parameters to follow, by name.
        first_only: whether s_1 alone is asked for.
        axis: that of the samples in the first input of the model, and of its outputs.
        ensemble: whether this axis follows those of an ensemble, where only linear layers have a
            rule.

    Attributes:
        S: samples in the last backward pass.
        error: what is wrong with it, or None.
        another_way: parameters that are not left to their own layer, with the module that is
            differentiated again for them.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        first_only: bool,
        axis: int,
        ensemble: bool,
    ):
        self.model, self.parameters, self.first_only = inner(model), parameters, first_only
        self.axis, self.E = axis, axis if ensemble else 0
        self.ensemble = ensemble
        self.S: int | None = None
        self.error: str | None = None
        self.distributed = isinstance(model, DistributedDataParallel)
        self.another_way: dict[str, nn.Module] = {}
        self._dtypes = {name: accumulator_dtype(w) for name, w in parameters.items()}
        self._again = Again()
        self._axes: dict[nn.Module, int] = {}
        self._tested: set[int] = set()
        self._passes = 0
        self._right: set[str] = set()  # parameters by a rule that have passed a test
        self._batch_norms = batch_norms(self.model)
        self._generator = torch.Generator().manual_seed(0)
        self._find_units()
        self.recorder: Recorder | None = None
        self._take: Take | None = None
        self._steps: Steps | None = None
        self._clear()

    def start(self, steps: Steps | None = None) -> None:
        """Put the hooks on the layers; ``steps`` tells when a backward pass ends, if nobody does."""
        self._steps = steps
        self.recorder = Recorder(
            self.model, self._again_of_layers(), self.axis, self._forward, self._arrived
        )

    def stop(self) -> None:
        """Take them off."""
        if self.recorder is not None:
            self.recorder.remove()
        self.recorder = None
        self._clear()

    def forget(self) -> None:
        """The backward pass has left no gradient."""
        assert self.recorder is not None
        self.recorder.differentiating(None)
        self._clear()

    def stream(self, take: Take | None) -> None:
        """Hand over shares as soon as they are whole, not at the end of the backward pass."""
        self._take = take

    @property
    def by_rule(self) -> set[str]:
        """The parameters whose shares have been found right as a rule gives them."""
        ruled = [names for layer, names in self._units.items() if self._has_rule(layer)]
        return {name for names in ruled for name in names} & self._right

    def _find_units(self) -> None:
        self._units = units(self.model, self.parameters, self.another_way)
        self._owners = Counter(name for names in self._units.values() for name in names)

    def _again_of_layers(self) -> dict[nn.Module, bool]:
        return {layer: not self._has_rule(layer) for layer in self._units}

    def _has_rule(self, layer: nn.Module) -> bool:
        return has_rule(layer, self.ensemble) and all(self._units[layer].values())

    def _clear(self) -> None:
        self._terms: dict[str, list[Rows]] = {}
        self._later: dict[Call, list[str]] = {}
        self._streamed: set[str] = set()
        self._passes_seen: dict[int, Pass] = {}
        self._edges: tuple[Edges, Edges] = ({}, {})

    # A forward pass.

    def _forward(self, within: Pass, outputs: Edges, edges: Edges) -> None:
        check_batch_norms(self._batch_norms.items())
        if self._steps is not None:
            self._steps.forward()
        self.distributed |= getattr(DistributedDataParallel, "_active_ddp_module", None) is not None
        self._edges = ({}, {})
        if within.S is None:
            return
        if self.ensemble:
            within.signature, suspicious = hash((within.S, *within.calls.values())), False
        else:
            within.signature, suspicious = places.graph(within, outputs, edges)
        due = (self._passes & (self._passes - 1)) == 0
        within.tested = due or within.signature not in self._tested
        if (within.tested or suspicious) and not self.ensemble:
            within.weights = torch.rand(within.S, generator=self._generator) + 0.5
            own = set(outputs.values())  # where the layer's output is that of the model
            self._edges = outputs, {key: e for key, e in edges.items() if e not in own}

    # The backward pass.

    def _arrived(self, call: Call, k: int, d: Tensor) -> None:
        within = call.within
        if not within.arrived:
            within.arrived = True
            self._passes_seen[id(within)] = within
            assert self.recorder is not None
            self.recorder.differentiating(within)
            if self._steps is not None:
                self._steps.begin()
                self._steps.exact |= within.tested
        call.gradients[k] = d
        within.tolerance = max(within.tolerance, rounding(d.dtype))
        if within.weights is not None and within.S is not None:
            self._weigh(call, k, d)
        if call is within.root or call.layer not in self._units:
            return
        if call.layer in within.faults or within.S is None:
            return
        if self._has_rule(call.layer) and call.outputs == 1 and call.input() is not None:
            self._by_rule(call, d)
        else:
            self._later[call] = list(self._units[call.layer])

    def _weigh(self, call: Call, k: int, d: Tensor) -> None:
        within, (outputs, edges) = call.within, self._edges
        try:
            if call is within.root:
                if (call, k) in outputs:
                    with silent():
                        w = {n: w for n, w in self.parameters.items() if w.requires_grad}
                        w = w if within.tested else {}
                        places.weigh(within, (call, k), d, outputs, edges, w, self.axis)
            elif (call, k) in edges:
                axis = places.axis_of(within, (call, k), d, self._candidates(call, d))
                own = sample_axis(call.layer, d)
                if axis is None and own not in (None, self.axis):
                    within.faults[call.layer] = self._other_axis(own, d.shape[own], within)
                elif axis is None:
                    within.faults[call.layer] = "it has the samples in other places than the loss"
                elif self._axes.setdefault(call.layer, axis) != axis:
                    within.faults[call.layer] = "its samples are on one axis now, on another before"
        except RuntimeError:  # what forbids a second backward pass, as reentrant checkpointing
            within.weights = None
            within.sums.clear()

    def _candidates(self, call: Call, d: Tensor) -> list[int]:
        own = sample_axis(call.layer, d)
        return [own] if own is not None else list(dict.fromkeys((self.axis, 0, 1)))

    def _axis(self, call: Call, tensors: list[Tensor]) -> int | None:
        """The axis of the samples in what a layer was given and gave."""
        S, own = call.within.S, sample_axis(call.layer, tensors[0])
        known = self._axes.get(call.layer)
        candidates = [own] if own is not None else [known] if known is not None else []
        for axis in candidates or dict.fromkeys((self.axis, 0, 1)):
            if all(t.dim() > axis and t.shape[axis] == S for t in tensors):
                return axis
        if own is not None:
            found = tensors[0].shape[own]
            call.within.faults[call.layer] = self._other_axis(own, found, call.within)
        return None

    def _other_axis(self, own: int, found: int, within: Pass) -> str:
        return (
            f"it has its samples on axis {own}, {found} of them, where the model has {within.S} on "
            f"axis {self.axis}: give it batch_first=True, or tell where the samples are by batch_dim="
        )

    def _by_rule(self, call: Call, d: Tensor) -> None:
        a, layer, within = call.input(), call.layer, call.within
        assert a is not None
        axis = self._axis(call, [a, d])
        if axis is None and works_on_positions(layer) and self._axes.get(layer) == 0:
            if a.shape[0] % within.S == d.shape[0] % within.S == 0:  # rows of a sample side by side
                a, d = (t.unflatten(0, (within.S, -1)) for t in (a, d))
                axis = 0
        if axis is None:
            within.faults.setdefault(layer, "it has no axis of the samples")
            return
        if not self.ensemble and axis:
            a, d = a.movedim(axis, 0), d.movedim(axis, 0)
        E = self.E
        if self.first_only and not within.tested:  # a test needs all
            a, d = a.narrow(E, 0, 1), d.narrow(E, 0, 1)
            if self._take is not None:  # what is kept until the step holds no more than it needs
                a, d = a.clone(), d.clone()
        names = self._units[layer]
        dtype = self._dtypes[next(iter(names))]
        a = a.to(dtype) if a.is_floating_point() else a
        try:
            call.check_unchanged()
            found = factors(layer, a, d.to(dtype), self.ensemble, E)
        except RuntimeError as error:
            within.faults[layer] = str(error)
            return
        for name, local in names.items():
            if local in found:
                self._term(name, found[local], within, layer)
            else:
                self._later.setdefault(call, []).append(name)

    def _term(self, name: str, rows: Rows, within: Pass, layer: nn.Module) -> None:
        alone = self._owners[name] == 1 and within.calls[layer] == 1
        if alone and self._take is not None and not within.tested and name not in self._terms:
            self._streamed.add(name)
            self._take(name, rows)
        else:
            self._terms.setdefault(name, []).append(rows)

    # The end of the backward pass.

    def finish(self, gradients: dict[str, Tensor]) -> dict[str, Rows]:
        """The shares that have not been handed over, by name, each with scale 1.

        Args:
            gradients: what the backward pass has added to the gradient of each parameter; those
                alone that have any.
        """
        assert self.recorder is not None
        passes = list(self._passes_seen.values())
        self.error = None
        try:
            within = self._only(passes)
            self.S = within.S
            self._repeat(within)
            if not within.tested or _finite(gradients):
                bad = self._bad(within, gradients)
                if bad:
                    self._from_root(within, bad, gradients)
                self._tested.add(within.signature)
                self._passes += 1
            return {name: _sum(terms) for name, terms in self._terms.items()}
        except _Fault as fault:
            self.error = str(fault)
            return {}
        finally:
            self.recorder.differentiating(None)
            self._clear()

    def _only(self, passes: list[Pass]) -> Pass:
        for within in passes:
            for layer, why in within.faults.items():
                if within.root is None:
                    raise _Fault(f"{self._name(layer)}: {why}")
        if len(passes) != 1:
            raise _Fault(
                f"the model was called {len(passes)} times for one backward pass: which rows are "
                "of the same sample is not known; call backward() after each, or give the model "
                "all samples at once"
            )
        if passes[0].S is None:
            raise _Fault(f"no input of the model has an axis {self.axis} of samples")
        return passes[0]

    def _repeat(self, within: Pass) -> None:
        """Layers without a rule, differentiated again."""
        for call, names in self._later.items():
            d = list(call.gradients.values())
            axis = self._axis(call, [t for t in d if t.dim()] or d)
            if axis is None:
                within.faults.setdefault(call.layer, "it has no axis of the samples")
                continue
            try:
                if has_recurrence(call) and all(self._units[call.layer].values()):
                    self._recur(call, within)
                else:
                    self._rerun(call, names, axis, within)
            except RuntimeError as error:
                within.faults[call.layer] = f"it cannot be differentiated again: {error}"

    def _recur(self, call: Call, within: Pass) -> None:
        call.check_unchanged()
        names = self._units[call.layer]
        first = self.first_only and not within.tested
        with silent():
            found = recurrent(call, first, self._dtypes[next(iter(names))])
        for name, local in names.items():
            self._term(name, found[local], within, call.layer)

    def _rerun(self, call: Call, names: list[str], axis: int, within: Pass) -> None:
        assert self.recorder is not None
        call.check_unchanged()
        chosen = {name: self.parameters[name] for name in names}
        first = self.first_only and not within.tested
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with silent(), torch.no_grad():
            for part in self._again.shares(call, chosen, axis, first, within.tested):
                for name, s in part.items():
                    found[name].append(s.to(self._dtypes[name]))
        for name, parts in found.items():
            s = torch.cat(parts)
            s = s.movedim(0, self.E) if self.ensemble else s
            self._term(name, Rows(s, self.E), within, call.layer)

    def _bad(self, within: Pass, gradients: dict[str, Tensor]) -> list[str]:
        """The parameters whose shares are not what they should be."""
        bad = {n for layer in within.faults for n in self._units.get(layer, ())} & gradients.keys()
        bad |= gradients.keys() - self._terms.keys() - self._streamed
        if within.tested:
            noise = _noise(gradients, within)
            for name in gradients.keys() - bad - self._streamed:
                if not self._adds_up(name, gradients[name], noise, within):
                    bad.add(name)
                elif float(_dense(gradients[name]).norm()) > 2 * noise:
                    self._right.add(name)
        return [name for name in self.parameters if name in bad]

    def _adds_up(self, name: str, gradient: Tensor, noise: float, within: Pass) -> bool:
        """Also when each is weighted by a random number, where that is known."""
        rows = _sum(self._terms[name])
        pairs = [(rows.total(), _dense(gradient))]
        if name in within.sums and within.weights is not None:
            pairs.append((rows.weighted(within.weights).total(), within.sums[name]))
        size = max(float(t.norm()) for pair in pairs for t in pair)
        return all(
            float((have - want).norm()) <= within.tolerance * size + noise for have, want in pairs
        )

    def _from_root(self, within: Pass, names: list[str], gradients: dict[str, Tensor]) -> None:
        """The last way, for this pass; the next takes it at once, from the module around."""
        axis_faults = [(m, why) for m, why in within.faults.items() if "batch_dim=" in why]
        for layer, why in axis_faults:
            raise _Fault(f"{self._name(layer)}: {why}")
        if streamed := self._streamed & set(names):
            raise _Fault(f"the shares of {sorted(streamed)} do not add up")
        for name in names:
            self._terms.pop(name, None)
            self.another_way[name] = self.model
        root, why = within.root, "; ".join(
            f"{self._name(layer)}: {why}" for layer, why in within.faults.items()
        )
        try:
            if root is None:
                raise RuntimeError("the model itself was not called")
            within.tested = True
            self._rerun(root, names, self.axis, within)
        except RuntimeError as error:
            raise _Fault(_unreached(names, f"{why}; {error}" if why else str(error))) from None
        finally:
            self._find_units()
            if self.recorder is not None:
                self.recorder.install(self._again_of_layers())
        noise = _noise(gradients, within)
        wrong = [n for n in names if not self._adds_up(n, gradients[n], noise, within)]
        if wrong:
            raise _Fault(_unreached(wrong, why))

    def _name(self, layer: nn.Module) -> str:
        name = next((n for n, m in self.model.named_modules() if m is layer), "")
        return f"{name or 'the model'} ({type(layer).__name__})"


class _Fault(Exception):
    """Why a backward pass gives no shares."""


def _unreached(names: list[str], why: str) -> str:
    return (
        f"the shares of the samples do not add up to the gradient of {names}: the loss uses these "
        "parameters itself, or something couples the samples, or a layer works on them in a way "
        "that its hooks do not see; change that, or leave them out (parameters=...)"
        + (f" ({why})" if why else "")
    )


def check_layers(model: nn.Module) -> None:
    """That no layer looks at the whole minibatch in a way that is known beforehand."""
    for name, layer in model.named_modules():
        if getattr(layer, "scale_grad_by_freq", False):
            raise ValueError(
                f"{name or 'the model'} has scale_grad_by_freq=True, which divides by counts of the "
                "whole minibatch: no sample has a gradient of its own then"
            )


def _sum(terms: list[Rows]) -> Rows:
    return terms[0] if len(terms) == 1 else Sum(terms)


def _dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g


def _finite(gradients: dict[str, Tensor]) -> bool:
    """What is not finite, as before a GradScaler has found its scale, proves nothing."""
    return all(bool(_dense(g).isfinite().all()) for g in gradients.values())


def _noise(gradients: dict[str, Tensor], within: Pass) -> float:
    """What rounding may leave of a gradient that vanishes, measured by the largest."""
    norms = (float(_dense(g).norm()) for g in gradients.values())
    return 1e-3 * within.tolerance * max(norms, default=0.0)
