"What a cell cannot show of the controls of equal cost: a stop changes nothing, costs are those of the networks themselves, and an average of one is that one."
import numpy as np
import pytest
import torch
from geonb.chromatic.config import ChromaticDescent
from geonb.chromatic.controls import CONTROLS, SnapshotTask, control, control_rows, cyclic, equal_parameters, shown, spent, views
from geonb.chromatic.member_task import MemberTask, PopulationData, Recipe, Streams
from geonb.chromatic.networks import mac_count, parameter_count
from geonb.core.callbacks import Callback, usual_callbacks
from geonb.core.errors import UsageError
from geonb.core.run import Workspace
from geonb.core.training import fit
from geonb.data.images import load_images


@pytest.fixture(scope="module")
def data(): return PopulationData.of(load_images("digits", size=8))


@pytest.fixture(scope="module")
def recipe(): return Recipe.of(ChromaticDescent.build(epochs=2))


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_stop_between_cycles_changes_no_snapshot(data, recipe, tmp_path, epoch):
    class Stop(Callback):
        order = 999
        def after_epoch(self, t):
            if len(t.history) == epoch: raise InterruptedError
    def run(path, *more):
        task = SnapshotTask(cyclic(recipe, 3), data, Streams.of(13, 13)); ws = Workspace(path); calls = usual_callbacks(task, ws, "none", 0.); fit(task, ws, [*calls, *more]); return task
    whole = run(tmp_path/"whole")
    with pytest.raises(InterruptedError): run(tmp_path/"cut", Stop())
    again = run(tmp_path/"cut")
    assert len(whole.snapshots) == len(again.snapshots) == 3 and len(again.trace) == 6
    for a, b in zip(whole.snapshots, again.snapshots): assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(whole.snapshots[0]["head.weight"], whole.snapshots[1]["head.weight"])


def test_costs_are_those_of_the_networks(data, recipe):
    task = MemberTask(recipe, data, Streams.of(13, 13)); seen = []; task.modules["net"].register_forward_pre_hook(lambda m, x: seen.append(len(x[0])) if m.training else None); fit(task)
    assert spent(recipe, data) == sum(seen) * mac_count(recipe.arch, 8, 1, 10)
    S = 3; made = {n: control(n, recipe, data, S) for n in ("member", *CONTROLS)}; one = made["member"]
    assert (made["longer"].trained, made["snapshots"].trained, made["views"].trained) == (S * one.trained, S * one.trained, one.trained)
    assert (made["longer"].asked, made["snapshots"].asked, made["views"].asked) == (one.asked, S * one.asked, S * one.asked)
    assert {n: len(c.test) for n, c in made.items()} == dict(member=1, longer=1, wider=1, snapshots=S, views=S) and made["wider"].parameters == parameter_count(equal_parameters("digits", S, 1), 1)
    rows = {r["name"]: r for r in control_rows(list(made.values()), data)}
    y = data.role("test").labels; assert rows["member"]["accuracy"] == pytest.approx((one.test[0].argmax(1) == y).mean()) and rows["longer"]["trained"] == S
    p = np.exp(made["views"].test - np.logaddexp.reduce(made["views"].test, -1, keepdims=True)).mean(0); assert rows["views"]["nll"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-6)


@pytest.mark.parametrize("family, widths", [("tiny", (1, 8, 16)), ("small", (2, 16)), ("digits", (4, 16))])
def test_no_width_is_nearer(family, widths):
    for w in widths:
        for S in (1, 2, 7):
            arch = equal_parameters(f"{family}{w}", S); k, want = int(arch.removeprefix(family)), S * parameter_count(f"{family}{w}")
            assert all(abs(parameter_count(f"{family}{k + d}") - want) >= abs(parameter_count(arch) - want) for d in (-1, 1) if k + d > 0)


def test_views_are_different_pictures(data):
    held = data.held("test"); places = views(9, 8, False); assert len(set(places)) == 9 and places[0] == (0, 0, 0)
    pictures = [shown(held, v).images for v in places]; assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i]) and len(views(18, 8, True)) == 18
    with pytest.raises(UsageError, match="1 to 18"): views(19, 8, True)
    assert held.images is data.held("test").images or torch.equal(held.images, data.held("test").images)
