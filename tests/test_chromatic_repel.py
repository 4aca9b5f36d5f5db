"Repelled descent on the digits laboratory: what the term does to weights, to batches, to a population."
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from geonb.chromatic.config import ChromaticDescent
from geonb.chromatic.ensembles import mixtures
from geonb.chromatic.member_task import MemberTask, PopulationData, Recipe, Streams, answers
from geonb.chromatic.networks import make_net
from geonb.chromatic.population import Population
from geonb.chromatic.repel import FORMS, Anchors, JointRepulsion, PoolStream, Repulsion, repulsion, waves
from geonb.chromatic.repel_study import repelled_members
from geonb.chromatic.splits import Splits, make_splits
from geonb.chromatic.stacked import Stacked
from geonb.stats.temperature import log_softmax
from geonb.core.errors import CheckFailed
from geonb.core.run import Workspace
from geonb.core.seeds import stream
from geonb.core.training import fit
from geonb.data.images import Split, load_images

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(arch="digits", epochs=20, batch=64, lr=.1, momentum=.9, weight_decay=5e-4, schedule="constant", augment="none", precision="fp32", select="last")
SHORT = replace(RECIPE, epochs=3)


@pytest.fixture(scope="module")
def lab():
    "300 digits to learn from, 500 in the pool, 997 to be asked about; calib only has to be there, nothing is chosen."
    d = load_images("digits", size=8); x, y = (np.concatenate([getattr(p, k) for p in d.splits.values()]) for k in ("images", "labels"))
    fit_at, pool, probe = np.split(stream(12345, "digits lab").permutation(len(x)), [300, 800])
    return PopulationData(x, Split(x[probe[:1]], y[probe[:1]]), Splits(probe, probe[:64], pool, fit_at, y), [0.], [1.], list("0123456789"), "digits")


def pool_of(data, seed=13, **k): return PoolStream(data.images, data.splits, data.mean, data.std, seed, **k)
def anchors_of(data, A=2): return Anchors.from_logits([answers(make_net("digits", 1, seed=100 + a), data.held("pool")).numpy() for a in range(A)])
def trained(data, repel=None, recipe=SHORT, seed=13): task = MemberTask(recipe, data, Streams.of(seed, 13), repel, trace=1); return task, fit(task).history
def tensors(task): return {**task.modules["net"].state_dict(), **{f"momentum {i}": s["momentum_buffer"] for i, s in enumerate(task.optimisers["sgd"].state.values())}}
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def figures(data, nets):
    "Mean squared distance of all pairs, mean single accuracy, accuracy of the ensemble, on the probe."
    held = data.held("probe"); L = log_softmax(np.stack([answers(n, held).numpy() for n in nets])); p = np.exp(L); i, j = np.triu_indices(len(p), 1); y = np.asarray(held.labels)
    return np.array([((p[i] - p[j]) ** 2).mean(), (p.argmax(-1) == y).mean(), (mixtures(L, [range(len(L))])[0].argmax(-1) == y).mean()])


# --- the term and its gradient

def test_weight_zero_is_the_unrepelled_run_to_the_last_bit(lab):
    plain, history = trained(lab)
    again, same = trained(lab, Repulsion(anchors_of(lab), .012, 0., 0, 1, pool=pool_of(lab)))
    pushed, other = trained(lab, Repulsion(anchors_of(lab), .012, .1, 0, 1, pool=pool_of(lab)))
    assert equal(tensors(plain), tensors(again)) and not equal(tensors(plain), tensors(pushed))
    assert [r["loss/ce"] for r in history] == [r["loss/ce"] for r in same] and not any("loss/repel" in r for r in same)
    assert all(0 < r["loss/repel"] < 1 and r["weighted/repel"] == pytest.approx(.1 * r["loss/repel"]) for r in other)


def test_warmup_is_unrepelled_to_the_last_bit(lab):
    "The repulsion has a stream of its own: until it acts, order and weights are those of a run without it."
    _, plain = trained(lab); _, late = trained(lab, Repulsion(anchors_of(lab), .012, .1, 2, 1, pool=pool_of(lab)))
    assert [r["loss/ce"] for r in plain[:2]] == [r["loss/ce"] for r in late[:2]] and plain[2]["loss/ce"] != late[2]["loss/ce"] and [("loss/repel" in r) for r in late] == [False, False, True]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_a_step_along_the_negative_gradient_leads_away(lab, form, seed):
    net = make_net("digits", 1, seed=seed).train(); anchors = anchors_of(lab, 3); r = Repulsion(anchors, .5, .1, 0, 1, form, pool=pool_of(lab, seed)); x = lab.held("fit").eval_batches(64).__next__()["x"]
    _, R = r.forward(net, x, 0, 0, 1); before = r.delta.clone(); R.backward(); grads = [p.grad for p in net.parameters()]
    assert 0 < R < 1 and all(g is not None for g in grads) and sum(g.abs().max() > 1e-7 for g in grads) >= 5
    assert not anchors.p.requires_grad and anchors.p.grad is None and not r.delta.requires_grad
    with torch.no_grad():
        for p, g in zip(net.parameters(), grads): p -= .05 * g / torch.cat([g.ravel() for g in grads]).norm()
    _, less = r.forward(net, x, 0, 0, 1); assert less < R and r.delta.mean() > before.mean()


@pytest.mark.parametrize("form", FORMS)
def test_the_term_lies_between_0_and_1_and_its_pull_ends_far_away(form):
    g = torch.Generator().manual_seed(1)
    for scale in (.01, 1, 30):
        p = (scale * torch.randn(40, 10, generator=g)).softmax(-1); a = (scale * torch.randn(5, 40, 10, generator=g)).softmax(-1); R, delta = repulsion(p, a, .012, form); assert 0 <= R <= 1 and (delta >= 0).all()
    def pull(t):   # along the line from one certain answer to another
        p = torch.tensor([[1. - t, t]], requires_grad=True); R, _ = repulsion(p, torch.tensor([[[1., 0.]]]), .05, form); return torch.autograd.grad(R, p)[0].norm().item()
    assert pull(1.) < 1e-5 * pull(.2) and pull(0.) == 0 and repulsion(torch.eye(3), torch.eye(3)[None], .012, form)[0] == 1
    if form == "hinge": assert pull(1.) == 0 and repulsion(torch.tensor([[0., 1.]]), torch.tensor([[[1., 0.]]]), 2., form)[0].item() == pytest.approx(.5)   # 1 - delta / h, delta 1


def test_repulsion_on_the_fit_images_asks_the_anchors_again(lab):
    nets = [make_net("digits", 1, seed=100 + a) for a in range(2)]; r = Repulsion(Anchors(None, nets), .05, .1, 0, 1, on="fit"); kept = [copy.deepcopy(n.state_dict()) for n in r.anchors.nets]
    task, history = trained(lab, r, replace(SHORT, augment="crop")); assert all(0 < row["loss/repel"] < 1 for row in history) and all(equal(k, n.state_dict()) for k, n in zip(kept, r.anchors.nets))
    plain, _ = trained(lab, None, replace(SHORT, augment="crop")); none, _ = trained(lab, Repulsion(Anchors(None, nets), .05, 0., 0, 1, on="fit"), replace(SHORT, augment="crop"))
    assert equal(tensors(plain), tensors(none)) and not equal(tensors(plain), tensors(task)) and all(p.grad is None for n in r.anchors.nets for p in n.parameters())


# --- the pool

def test_nothing_but_the_pool_gets_into_the_sampler():
    labels = np.tile(np.arange(10), 90); s = make_splits(labels); images = np.zeros((900, 8, 8, 1), np.uint8); whole = PoolStream(images, s, [0.], [1.])
    for role in ("probe", "calib", "fit"):
        for at in (getattr(s, role)[:1], np.r_[s.pool, getattr(s, role)[5]]):
            with pytest.raises(CheckFailed, match=f"none of the role 'pool': it is {role}"): PoolStream(images, s, [0.], [1.], positions=at)
    with pytest.raises(CheckFailed, match="picture 900 is none of the role 'pool'"): PoolStream(images, s, [0.], [1.], positions=np.r_[s.pool, 900])   # past the training pool: a test image
    whole.positions = np.where(np.arange(len(s.pool)) == 7, s.probe[0], s.pool)   # slipped in later
    hit = next(i for i in range(100) if 7 in whole.rows(0, i))
    with pytest.raises(CheckFailed, match="it is probe"): whole.batch(0, hit)


def test_labels_and_pictures_of_other_roles_cannot_matter(lab):
    s = lab.splits; labels, images = s.labels.copy(), lab.images.copy(); rng = stream(0, "elsewhere"); labels[s.pool] = rng.permutation(labels[s.pool]); images[s.probe] = rng.permutation(images[s.probe])
    other = replace(lab, images=images, splits=replace(s, labels=labels)); a, _ = trained(lab, Repulsion(anchors_of(lab), .012, .1, 0, 1, pool=pool_of(lab))); b, _ = trained(other, Repulsion(anchors_of(lab), .012, .1, 0, 1, pool=pool_of(other)))
    assert equal(tensors(a), tensors(b))


def test_every_row_of_the_table_is_of_the_picture_it_is_read_for(lab):
    pool = pool_of(lab, batch=64); net = make_net("digits", 1, seed=5); table = Anchors.from_logits(answers(net, lab.held("pool")).numpy()[None])
    for i in (0, 3, 9):
        b = pool.batch(1, i)
        with torch.no_grad(): R, delta = repulsion(net.eval()(b["x"]).softmax(-1), table.rows(b["index"]), .01)
        assert delta.item() < 1e-12 and R == 1 and len(b["index"].unique()) == 64


# --- modes

@pytest.mark.parametrize("mode, wave", [("sequential", 1), ("wave", 1), ("wave", 3), ("wave", 20), ("joint", 1)])
@pytest.mark.parametrize("h", [None, .01])
def test_each_member_comes_once_and_after_those_it_is_repelled_from(mode, wave, h):
    for n in (1, 2, 7):
        rows = waves(range(13, 13 + n), mode, wave, h, 4); assert sorted(sum(rows, [])) == list(range(13, 13 + n)) and all(rows)
        if mode != "joint": assert h is not None or len(rows[0]) >= min(2, n); assert all(len(r) <= (wave if mode == "wave" else 1) for r in rows[1:])
    assert waves(range(7), "sequential", h=.01) == waves(range(7), "wave", 1, .01)


def test_joint_repulsion_gives_each_member_the_gradient_it_would_have_alone(lab):
    "On a stacked network, against one network at a time with the others as constants."
    nets = [make_net("digits", 1, seed=s).train() for s in range(3)]; x = torch.stack([pool_of(lab, s, batch=16).batch(0, 0)["x"] for s in range(3)]); joint = JointRepulsion(pool_of(lab), .05, .1, 0, 1)
    stack = Stacked([copy.deepcopy(n) for n in nets]).train(); z, U = joint.forward(stack, x, 0, 0, 1); U.backward(); b = joint.pool.batch(0, 0); assert z.shape == (3, 16, 10)
    with torch.no_grad(): said = torch.stack([copy.deepcopy(n)(torch.cat([x[s], b["x"]]))[16:].softmax(-1) for s, n in enumerate(nets)])
    total = []
    for s, n in enumerate(nets): R, _ = repulsion(n(torch.cat([x[s], b["x"]]))[16:].softmax(-1), said[[t for t in range(3) if t != s]], .05); R.backward(); total.append(R.item())
    assert U.item() == pytest.approx(sum(total) / 2, rel=1e-4)
    stacked = dict(stack.net.named_parameters()); assert stacked.keys() == dict(nets[0].named_parameters()).keys()
    for s, n in enumerate(nets):
        for k, p in n.named_parameters(): assert (stack.apart(stacked[k].grad)[s].reshape(p.shape) - p.grad).abs().max() < 1e-4 * max(1e-4, p.grad.abs().max()), (s, k)


# --- populations

def test_rows_of_a_population_are_repelled_from_all_rows_before(tmp_path):
    "Whole runs: the first row is unrepelled, and the members of a row do not see each other."
    data = PopulationData.of(load_images("digits", size=8))
    def run(name, **k):
        c = ChromaticDescent.build(arch="digits4", seeds=4, epochs=2, engine="loop", **k); p = Population(Workspace(tmp_path/name), c, data).train("none")
        return p, dict(zip(sorted(p.seeds), p.nets()))
    how = dict(repel=True, repel_warmup=1, repel_ramp=1, repel_lambda=.3); same = lambda a, b, s: equal(a[s].state_dict(), b[s].state_dict())
    _, plain = run("plain"); one, turn = run("one", repel_mode="sequential", **how); two, pairs = run("two", repel_mode="wave", repel_wave=2, **how); order = sum(one.rows(), [])
    assert [len(r) for r in one.rows()] == [2, 1, 1] and [len(r) for r in two.rows()] == [2, 2] and order == sum(two.rows(), [])
    assert [same(turn, plain, s) for s in order] == [same(pairs, plain, s) for s in order] == [True, True, False, False]
    assert [same(turn, pairs, s) for s in order] == [True, True, True, False]   # the fourth is not repelled from the third, which is trained beside it


def both(lab, seeds):
    "Figures without and with repulsion."
    base = repelled_members(lab, RECIPE, seeds, 0., .012, warmup=4, ramp=4)["nets"]
    return np.array([figures(lab, base.values()), figures(lab, repelled_members(lab, RECIPE, seeds, .1, .012, warmup=4, ramp=4, known=base)["nets"].values())])


def sound(found, seeds):
    (d0, single0, together0), (d1, single1, _) = found
    assert single0 > .85 and together0 > single0 + .02, seeds
    assert d1 >= 1.25 * d0 and single0 - single1 < .08, seeds


def test_digits_laboratory_with_three_members(lab): sound(both(lab, range(20, 23)), "20 to 22")


@pytest.mark.slow
def test_digits_laboratory(lab):
    "At a constant rate the last step decides much, and the distance within five members varies by half of itself: four populations are averaged."
    found = np.array([both(lab, range(a, a + 5)) for a in (13, 0, 20, 30)]); sound(found.mean(0), "four times five")
    for pair in found: assert pair[0, 1] > .85 and pair[0, 2] > pair[0, 1] + .02 and pair[0, 1] - pair[1, 1] < .08
