"A training with a member axis against trainings of one member: the same guard, the same best epoch, the same after a kill."
from dataclasses import replace
from types import SimpleNamespace
import pytest
import torch
from geonb.chromatic.config import ChromaticDescent
from geonb.chromatic.folder import read_probes
from geonb.chromatic.member_task import MemberTask, PopulationData, Recipe, Streams, answers
from geonb.chromatic.population import Population
from geonb.chromatic.repel import JointRepulsion, PoolStream
from geonb.chromatic.stacked_task import StackedTask, member_history, train_stacked
from geonb.core.callbacks import Callback, usual_callbacks
from geonb.core.errors import GeonbError
from geonb.core.run import Workspace
from geonb.core.training import fit
from geonb.data.images import load_images

@pytest.fixture(scope="module")
def data(): return PopulationData.of(load_images("digits", size=8))

RECIPE = Recipe.of(ChromaticDescent.build(epochs=2, arch="digits4", augment="crop"))
STREAMS = [Streams.of(s, 13) for s in (13, 14, 15)]

def near(a, b):
    "Equal but for rounding, which some dozen steps amplify; counts are exact."
    return float((a - b).norm()) < 1e-2 * float(b.norm()) if a.is_floating_point() else torch.equal(a, b)

class Bad:
    "Something goes wrong in member 1 (the only one where there is one) in the steps `steps`."
    steps, how = (), "nan"
    def before_step(self, t):
        super().before_step(t)
        if t.step in self.steps and self.how == "burst": w = self.modules["net"].net.head.weight if isinstance(self, StackedTask) else self.modules["net"].head.weight; (w.data.view(3, -1)[1] if isinstance(self, StackedTask) else w.data).mul_(1e4)
        self.now = t.step
    def loss(self, batches):
        b = batches["fit"]
        if self.now in self.steps and self.how == "nan": b["x"] = b["x"].clone(); (b["x"][1] if isinstance(self, StackedTask) else b["x"]).fill_(float("nan"))
        return super().loss(batches)
class BadStack(Bad, StackedTask): pass
class BadMember(Bad, MemberTask): pass

@pytest.mark.parametrize("how, steps, counts", [("nan", (0,), (1, 0)), ("nan", (5,), (1, 0)), ("nan", (7, 8, 9), (3, 1)), ("burst", (6,), (0, 1))])
def test_a_member_s_guard_is_that_of_a_single_training(data, how, steps, counts):
    stack, one, plain = BadStack(RECIPE, data, STREAMS), BadMember(RECIPE, data, STREAMS[1]), StackedTask(RECIPE, data, STREAMS)
    for task in (stack, one): task.steps, task.how = steps, how
    t, u, v = fit(stack), fit(one), fit(plain); a, b = member_history(t.history, 1, 3), u.history
    assert [(r["skips"], r["rollbacks"]) for r in a] == [(r["skips"], r["rollbacks"]) for r in b] and (a[-1]["skips"], a[-1]["rollbacks"]) == counts
    for x, y in zip(a, b): assert x["val/loss"] == pytest.approx(y["val/loss"], rel=1e-3) and x["loss/ce"] == pytest.approx(y["loss/ce"], rel=1e-3)
    for k, p in one.modules["net"].state_dict().items(): assert near(stack.modules["net"].members()[k][1], p), k
    for k, p in plain.modules["net"].members().items(): assert torch.equal(stack.modules["net"].members()[k][[0, 2]], p[[0, 2]]), k   # the others do not notice
    assert (t.skips, t.rollbacks) == (0, 0)

class Remember(Callback):
    order = 31
    def __init__(self): self.seen = []
    def after_evaluate(self, t): self.seen.append({k: v.clone() for k, v in t.task.modules["net"].members().items()})

def test_the_best_epoch_is_each_member_s_own(data):
    r = replace(RECIPE, select="best", epochs=6, lr=2.); stack, all_ = StackedTask(r, data, STREAMS), Remember(); stack.callbacks += (all_,); t = fit(stack); chosen = []
    for s in range(3):
        rows = member_history(t.history, s, 3); top = max(x["val/accuracy"] for x in rows); chosen.append(max(e for e, x in enumerate(rows) if x["val/accuracy"] == top))
        assert [e for e, x in enumerate(rows) if x["best"]][-1] == chosen[-1]
        for k, p in stack.modules["net"].members().items(): assert torch.equal(p[s], all_.seen[chosen[-1]][k][s]), k
    assert len(set(chosen)) > 1, "an example in which all members are best in one epoch shows nothing"

class Kill(Callback):
    order = 99
    def __init__(self, step): self.step = step
    def after_batch(self, t):
        if t.step == self.step: raise KeyboardInterrupt

@pytest.mark.parametrize("step", [4, 12, 17])
def test_a_killed_stack_continues_bit_for_bit(data, tmp_path, step):
    make = lambda: StackedTask(replace(RECIPE, select="best", epochs=3), data, STREAMS, JointRepulsion(PoolStream(data.images, data.splits, data.mean, data.std, 13, 16), lam=.3, warmup=1, ramp=1)); whole = make(); t = fit(whole)
    first, space = make(), Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(first, space, callbacks=usual_callbacks(first, space, "none", 0) + [Kill(step)])
    second = make(); u = fit(second, space, checkpoint_seconds=1e9); plain = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert plain(t.history) == plain(u.history) and "loss/repel/members" in t.history[1]
    for k, p in whole.modules["net"].members().items(): assert torch.equal(p, second.modules["net"].members()[k])
    assert all(torch.equal(a, b) for a, b in zip(whole.trace, second.trace)) and whole.repel.h == second.repel.h

def told(): seen = []; return SimpleNamespace(style="none", seen=seen, one=lambda n, r: seen.append(r["member"]))

def test_one_hopeless_member_costs_only_itself(data, tmp_path, monkeypatch):
    c = ChromaticDescent.build(seeds=3, epochs=2, engine="stacked", arch="digits4"); p, q = Population(Workspace(tmp_path), c, data), told()
    loss = StackedTask.loss
    def broken(self, batches): b = batches["fit"]; b["x"] = b["x"].clone(); b["x"][1] = float("inf"); return loss(self, batches)
    monkeypatch.setattr(StackedTask, "loss", broken)
    with pytest.raises(GeonbError, match="seed 14 went back more than 5 times and was given up, the others are finished; lower lr"): train_stacked(p, q)
    assert q.seen == [13, 15] and p.missing() == [14] and (tmp_path/"diagnostics.json").is_file()

def test_members_that_are_there_are_not_trained_again(data, tmp_path):
    c = ChromaticDescent.build(seeds=3, epochs=1, engine="stacked", arch="digits4"); p, q = Population(Workspace(tmp_path), c, data), told(); train_stacked(p, q); done = {s: (p.folder(s)/"done.json").read_bytes() for s in p.seeds}
    more = Population(Workspace(tmp_path), c.model_copy(update=dict(seeds=5)), data); more.hash = p.hash; assert more.missing() == [16, 17]; q = told(); train_stacked(more, q)
    assert q.seen == [16, 17] and more.missing() == [] and all((p.folder(s)/"done.json").read_bytes() == d for s, d in done.items())

def test_bf16(data):
    t = fit(StackedTask(replace(RECIPE, precision="bf16", epochs=1), data, STREAMS)); u = fit(StackedTask(replace(RECIPE, epochs=1), data, STREAMS))
    assert t.history[0]["loss/ce"] == pytest.approx(u.history[0]["loss/ce"], rel=.02) and t.history[0]["loss/ce"] != u.history[0]["loss/ce"]

def test_a_population_that_repels_jointly_is_a_stack(data, tmp_path):
    c = ChromaticDescent.build(seeds=3, epochs=3, arch="digits4", repel=True, repel_mode="joint", repel_warmup=1, repel_ramp=1, repel_h=.02, repel_lambda=.3); p = Population(Workspace(tmp_path/"a"), c, data).train("none")
    assert p.engine["engine"] == "stacked" and p.missing() == [] and all(0 < r["final"]["loss/repel"] <= 1 for r in p.records) and "loss/repel" not in p.histories[13][0]
    probes = read_probes(p.export(tmp_path/"artifacts")); assert probes.seeds == (13, 14, 15) and [len(r["members/val/accuracy"]) for r in p.history()] == [3, 3, 3]
    for z, net in zip(probes.probe, p.nets()): assert (z == answers(net, data.held("probe")).numpy()).all()
    (p.folder(14)/"done.json").unlink(); before = (p.folder(14)/"export"/"model.safetensors").read_bytes(); again = Population(Workspace(tmp_path/"a"), c, data).train("none"); assert again.missing() == [] and before == (p.folder(14)/"export"/"model.safetensors").read_bytes()
