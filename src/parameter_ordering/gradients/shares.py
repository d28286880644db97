"""The shares of the samples in the gradient of a minibatch, from what its layers leave."""

from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parameter_ordering.gradients.again import Again
from parameter_ordering.gradients.coupling import batch_norms, check_batch_norms, rounding
from parameter_ordering.gradients.factors import Rows
from parameter_ordering.gradients.faults import Fault, name_of, only, unreached
from parameter_ordering.gradients.layers import factors, has_rule, units
from parameter_ordering.gradients.processes import in_data_parallel
from parameter_ordering.gradients.proof import (
    adds_up,
    dense,
    finite,
    noise_of,
    together,
)
from parameter_ordering.gradients.recorder import Call, Edges, Pass, Recorder, inner, silent
from parameter_ordering.gradients.recurrent import has_recurrence, recurrent
from parameter_ordering.gradients.running import accumulator_dtype
from parameter_ordering.gradients.steps import Steps
from parameter_ordering.gradients.trials import Trials

Take = Callable[[str, Rows], None]


class Shares:
    r"""Finds the shares :math:`s_i` in the gradient of each parameter, at each backward pass.

    Backpropagation is linear in the gradient at the output, so the gradient of a minibatch is a
    sum of shares, :math:`s_1 + ... + s_S`, where :math:`s_i` is what flows through the rows of
    sample i. They come

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
        self._trials = Trials(axis, ensemble)
        self._axes = self._trials.axes
        self._right: set[str] = set()  # parameters by a rule that have passed a test
        self._batch_norms = batch_norms(self.model)
        self._find_units()
        self.recorder: Recorder | None = None
        self._take: Take | None = None
        self._steps: Steps | None = None
        self._clear()

    def start(self, steps: Steps | None = None) -> None:
        """Put the hooks on the layers; ``steps`` tells when a backward pass has ended."""
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
        self._trials.forget()

    # A forward pass.

    def _forward(self, within: Pass, outputs: Edges, edges: Edges) -> None:
        check_batch_norms(self._batch_norms.items())
        if self._steps is not None:
            self._steps.forward()
        self.distributed |= in_data_parallel()
        self._trials.begin(within, outputs, edges)

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
            self._trials.weigh(call, k, d, self.parameters)
        if call is within.root or call.layer not in self._units:
            return
        if call.layer in within.faults or within.S is None:
            return
        if self._has_rule(call.layer) and call.outputs == 1 and call.input() is not None:
            self._by_rule(call, d)
        else:
            self._later[call] = list(self._units[call.layer])

    def _by_rule(self, call: Call, d: Tensor) -> None:
        a, layer, within = call.input(), call.layer, call.within
        assert a is not None
        axis = self._axes.of(call, [a, d])
        if axis is None and self._axes.side_by_side(call, [a, d]):
            a, d = (t.unflatten(0, (within.S or 1, -1)) for t in (a, d))
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
            within = only(passes, self.axis, self.model)
            self.S = within.S
            self._repeat(within)
            if not within.tested or finite(gradients):
                bad = self._bad(within, gradients)
                if bad:
                    self._from_root(within, bad, gradients)
                self._trials.passed(within)
            return {name: together(terms) for name, terms in self._terms.items()}
        except Fault as fault:
            self.error = str(fault)
            return {}
        finally:
            self.recorder.differentiating(None)
            self._clear()

    def _repeat(self, within: Pass) -> None:
        """Layers without a rule, differentiated again."""
        for call, names in self._later.items():
            d = {k: t for k, t in call.gradients.items() if t.dim()} or call.gradients
            axis = self._axes.of(call, [*d.values()], d)
            if axis is None:
                within.faults.setdefault(call.layer, "it has no axis of the samples")
                continue
            try:
                self._rerun(call, names, axis, within)
            except RuntimeError as error:
                within.faults[call.layer] = f"it cannot be differentiated again: {error}"

    def _rerun(self, call: Call, names: list[str], axis: int, within: Pass) -> None:
        """The terms of one call, from the layer differentiated again."""
        call.check_unchanged()
        local = self._units.get(call.layer, {})
        first = self.first_only and not within.tested
        with silent():
            if has_recurrence(call) and all(local.get(name) for name in names):
                found = recurrent(call, first, self._dtypes[names[0]])
                rows = {name: found[local[name]] for name in names}
            else:
                w = {name: self.parameters[name] for name in names}
                rows = self._again.rows(call, w, axis, self.E, first, within.tested)
        for name, each in rows.items():
            self._term(name, each, within, call.layer)

    def _bad(self, within: Pass, gradients: dict[str, Tensor]) -> list[str]:
        """The parameters whose shares are not what they should be."""
        bad = {n for layer in within.faults for n in self._units.get(layer, ())} & gradients.keys()
        bad |= gradients.keys() - self._terms.keys() - self._streamed
        if within.tested:
            noise = noise_of(gradients, within)
            for name in gradients.keys() - bad - self._streamed:
                if not adds_up(name, self._terms[name], gradients[name], noise, within):
                    bad.add(name)
                elif float(within.sums.get(name, dense(gradients[name])).norm()) > 2 * noise:
                    self._right.add(name)
        return [name for name in self.parameters if name in bad]

    def _from_root(self, within: Pass, names: list[str], gradients: dict[str, Tensor]) -> None:
        """The last way, for this pass; the next takes it at once, from the module around."""
        for layer, why in within.faults.items():
            if "batch_dim=" in why:
                raise Fault(f"{name_of(self.model, layer)}: {why}")
        if streamed := self._streamed & set(names):
            raise Fault(f"the shares of {sorted(streamed)} do not add up")
        for name in names:
            self._terms.pop(name, None)
            self.another_way[name] = self.model
        root, faults = within.root, within.faults.items()
        why = "; ".join(f"{name_of(self.model, layer)}: {why}" for layer, why in faults)
        try:
            if root is None:
                raise RuntimeError("the model itself was not called")
            within.tested = True
            self._rerun(root, names, self.axis, within)
        except RuntimeError as error:
            raise Fault(unreached(names, f"{why}; {error}" if why else str(error))) from None
        finally:
            self._find_units()
            if self.recorder is not None:
                self.recorder.install(self._again_of_layers())
        noise = noise_of(gradients, within)
        wrong = [n for n in names if not adds_up(n, self._terms[n], gradients[n], noise, within)]
        if wrong:
            raise Fault(unreached(wrong, why))
