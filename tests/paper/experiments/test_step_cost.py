"""What a step costs is timed with the shares of the parameters frozen that the results name."""

from parameter_ordering import experiments
from parameter_ordering.paper.experiments import step_cost
from parameter_ordering.paper.experiments.step_cost import StepCost


def test_every_share_is_frozen_and_timed_in_every_round(monkeypatch):
    frozen, freeze = [], step_cost.freeze

    def noted(optimizer, mask):
        frozen.append(sum(int(each.sum()) for each in mask.values()))
        freeze(optimizer, mask)

    monkeypatch.setattr(step_cost, "freeze", noted)
    seconds = StepCost(runs=3, steps=2).run(progress=False).seconds
    p = experiments.mnist().p
    assert seconds.dims == ("run", "k")
    assert seconds.run.values.tolist() == [0, 1, 2]
    assert seconds.k.values.tolist() == [0, *frozen] == [0, p // 2, round(0.9 * p), round(0.99 * p)]
    assert (seconds > 0).all()
