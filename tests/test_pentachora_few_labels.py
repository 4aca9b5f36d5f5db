"Few labels and routing: no label that was held back is read, teacher and score memory survive any interruption, what nothing reads is refused."
import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import warm
from conformance import PENTACHORA, digest
from geonb.core.bundles import verify_bundle
from geonb.core.callbacks import Callback, usual_callbacks
from geonb.core.environment import prepare
from geonb.core.errors import UsageError
from geonb.core.training import fit, restore_task, task_state
from geonb.data.images import Split, load_images
from geonb.pentachora import task as room
from geonb.pentachora.config import TrainPentachora
from geonb.pentachora.pseudo_labels import RoseQueue, Teacher, distil_loss, labelled_part, rose_gate
from geonb.pentachora.routing import class_prior
from geonb.pentachora.task import PentachoraTask

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = dict(labels_per_class=3, unlabelled="rose", prior="classes", w_route=.1, w_target=.1, tau_schedule="cosine", epochs=2, progress="none", pseudo_threshold=.05)   # so low that much is taught in a few steps
ALONE = dict(unlabelled="none", pseudo_threshold=.95)


@pytest.fixture(scope="module")
def digits():
    images = load_images("digits"); return replace(images, train=images.train[np.arange(300)])   # 20 steps of 15 pictures an epoch


def trained(images, callbacks=(), **given):
    "Train without a folder; -> the task."
    config = TrainPentachora.build(**FEW | given); prepare(config.seed, 1); task = PentachoraTask(config, images); fit(task, callbacks=[*usual_callbacks(task), *callbacks]); return task


def kept(task): return warm.flat(task_state(task))


def relabelled(images, change):
    "The same pictures; `change` gets the labels of the training part and returns others."
    t = images.train; return replace(images, train=Split(t.images, change(t.labels.copy()), t.ids))


# ---- labels ----

@pytest.mark.parametrize("unlabelled", ["none", "msp", "rose"])
def test_labels_that_are_held_back_are_never_read(digits, monkeypatch, unlabelled):
    "With the labels of all other pictures shuffled, or made all equal, every weight, average, teacher and score is the same to the last bit; with two of the kept labels swapped it is not."
    given = (ALONE if unlabelled == "none" else dict(unlabelled=unlabelled)) | dict(reweight=True)
    chosen = labelled_part(digits.train.labels, 3); others = np.setdiff1d(np.arange(len(digits.train)), chosen); task = trained(digits, **given); want = kept(task)
    if unlabelled == "rose": assert task.queue.values.isfinite().sum() > 50
    monkeypatch.setattr(room, "labelled_part", lambda *a, **k: chosen)     # the choice itself goes class by class; everything after it must not look
    def shuffled(y): y[others] = np.random.default_rng(5).permutation(y[others]); return y
    def equal(y): y[others] = 7; return y
    def swapped(y): y[chosen[:2]] = y[chosen[1::-1]]; return y
    assert digits.train.labels[chosen[0]] != digits.train.labels[chosen[1]] and (shuffled(digits.train.labels.copy()) != digits.train.labels).sum() > 200
    for change in (shuffled, equal): warm.same(kept(trained(relabelled(digits, change), **given)), want)
    assert kept(trained(relabelled(digits, swapped), **given)) != want


def test_the_stream_of_unlabelled_pictures_holds_no_label(digits):
    task = PentachoraTask(TrainPentachora.build(**FEW), digits); u, b = task.streams["unlabelled"], task.streams["unlabelled"].batch(0, 0)
    assert (u.labels == -1).all() and "y" not in b and task.streams["train"].inner.n == 30 and task.counts.tolist() == [3]*10


@pytest.mark.parametrize("per_class, share", [(1, 1.), (4, 1.), (10**6, 1.), (0, .01), (0, .37)])
def test_which_labels_are_kept(per_class, share):
    y = np.random.default_rng(1).choice(5, 400, p=[.5, .3, .15, .04, .01]); have = np.bincount(y); k = labelled_part(y, per_class, share, seed=4)
    want = np.minimum(have, per_class) if per_class else np.maximum(1, np.round(share*have)); assert np.bincount(y[k]).tolist() == want.astype(int).tolist() and (np.diff(k) > 0).all()
    assert {*labelled_part(y, max(per_class - 1, 1), seed=4)} <= {*labelled_part(y, max(per_class, 1), seed=4)}


def test_the_supervised_run_sees_the_same_labelled_batches(digits):
    a, b = (PentachoraTask(TrainPentachora.build(**FEW | u), digits).streams["train"] for u in (ALONE, dict(unlabelled="msp"))); assert a.steps == b.steps == 20
    for e, i in ((0, 0), (0, 19), (1, 7)): assert all(torch.equal(a.batch(e, i)[k], b.batch(e, i)[k]) for k in "xy")
    x = torch.cat([a.batch(0, i)["x"] for i in range(20)]); assert len(x.flatten(1).unique(dim=0)) == len(x)   # every time it comes round a picture is moved anew


def test_all_labels_and_no_wish_leave_the_run_as_it_was(digits):
    "No teacher, one stream, no gradient through the diagnostics, the temperature learned."
    task = PentachoraTask(TrainPentachora.build(), digits); con = task.modules["constellation"]
    assert [*task.streams] == ["train"] and task.teacher is task.queue is None and con.detach_diag and con.log_tau_r.requires_grad and not con.prior.any() and task.state() == {"repaired": 0, "reweighting": None}


# ---- interruption ----

@pytest.mark.parametrize("given", [FEW | dict(erase=.2), FEW | dict(unlabelled="msp", prior="zero", reweight=True, precision="bf16"), FEW | dict(unlabelled="msp", model="cnn", prior="zero", w_route=0., w_target=0., tau_schedule="learned")], ids=["rose", "msp", "floor"])
def test_killed_it_continues_bit_equal(cells, tmp_path, given):
    given = given | dict(limit=300, checkpoint_seconds=0.); (tmp_path/"a").mkdir(); (tmp_path/"b").mkdir()
    run = lambda root, end=None: cells(end, row="train_pentachora", root=str(tmp_path/root), given=given) if end else cells(row="train_pentachora", root=str(tmp_path/root), given=given)
    status, out = run("a"); assert status == 0 and "error" not in out, out
    assert run("b", ["after_batch", 27])[0] == -9
    status, again = run("b"); assert status == 0 and "error" not in again, again
    whole, cut = Path(out["path"]), Path(again["path"]); warm.same(digest(PENTACHORA, cut), digest(PENTACHORA, whole), 50)
    bundle = whole; assert verify_bundle(bundle) == [] and len(list((bundle/"weights").iterdir())) == (1 if given.get("model") == "cnn" else 3)   # the teacher is no part of the model
    assert "The labels of 3 training pictures of each class were used" in (bundle/"README.md").read_text() and "validation pictures" in (bundle/"README.md").read_text()


class Poison(Callback):
    "Makes the gradient of one step infinite, or the weights after it."
    order = 1
    def __init__(self, step, after): self.step, self.after, self.before, self.seen = step, after, None, []
    def before_step(self, t):
        if t.step == self.step: self.before = copy.deepcopy(t.task.state())
        if t.step == self.step + 1 and not self.seen: self.seen.append(warm.flat(t.task.state()))
    def after_backward(self, t):
        if t.step == self.step and not self.after: t.loss = t.loss*math.inf
    def after_step(self, t):
        if t.step == self.step and self.after: next(t.task.modules["encoder"].parameters()).data.fill_(math.nan)


def test_a_refused_step_teaches_the_teacher_nothing(digits):
    p = Poison(9, False); task = trained(digits, [p]); assert p.seen == [warm.flat(p.before)] and p.before["teacher"]["n"] == 9 and p.before["queue"]["place"].sum() >= 0 and task.teacher.n == 39


def test_a_step_taken_back_takes_the_teacher_back(digits):
    "To the snapshot of the first step: teacher and memory are those of before it."
    p = Poison(9, True); task = trained(digits, [p]); state = task.teacher.state(); assert task.teacher.n == 30 and all(v.isfinite().all() for v in state["tensors"].values())
    assert p.seen and p.seen[0] == warm.flat(PentachoraTask(task.config, digits).state())


def test_state_comes_back_into_another_task(digits):
    a = trained(digits); b = PentachoraTask(a.config, digits); restore_task(b, task_state(a)); assert kept(a) == kept(b)
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0)); assert torch.equal(a.teacher(x)[0], b.teacher(x)[0])


# ---- gates and losses ----

def test_gates_count_what_they_say(digits):
    "MSP keeps exactly the pictures that the teacher is sure of; ROSE a part of them, none below its class's quantile."
    task = trained(digits); u = task.streams["unlabelled"].batch(0, 0); low, middle = task.queue.limits(.2); before = task.queue.state()["values"].clone(); assert low.isfinite().any()
    seen, d = task.teacher(u["x"]); p = seen.softmax(-1); sure, y = p.max(-1).values >= .05, p.argmax(-1); w = rose_gate(d["rose"], y, sure, task.queue)
    assert ((w > 0) == (sure & (d["rose"] >= low[y]))).all() and 0 < sure.sum() and w.max() <= 2 and not torch.equal(task.queue.values.nan_to_num(9), before.nan_to_num(9))
    known = middle[y].isfinite(); assert torch.allclose(w[known], (2*torch.sigmoid(10*(d["rose"] - middle[y]))*(sure & (d["rose"] >= low[y])))[known], atol=1e-6)


def test_the_memory_keeps_the_last_scores():
    r = np.random.default_rng(0); queue, want = RoseQueue(3, 8, 4), {c: [] for c in range(3)}
    for n in (0, 1, 5, 30, 3, 11):
        y, v = r.integers(3, size=n), r.normal(size=n).astype(np.float32); queue.push(torch.tensor(y, dtype=torch.int64), torch.tensor(v))
        for c in range(3): want[c] = [*want[c], *v[y == c]][-8:]
        for c in range(3): got = queue.values[c]; assert sorted(got[~got.isnan()].tolist()) == pytest.approx(sorted(map(float, want[c])))
        low, middle = queue.limits(.3)
        for c in range(3):
            if len(want[c]) >= 4: assert low[c].item() == pytest.approx(np.quantile(want[c], .3), abs=1e-6) and middle[c].item() == pytest.approx(np.median(want[c]), abs=1e-6)
            else: assert low[c] == -math.inf and middle[c].isnan()


def test_teacher_is_the_debiased_average():
    m = {"m": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))}; t, seen = Teacher(m, .8), []
    for i in range(6):
        for v in m["m"].state_dict().values(): v.add_(i)
        t.follow(m); seen.append({k: v.clone().double() for k, v in m["m"].state_dict().items()})
    w = np.array([.8**(5 - i) for i in range(6)]); w /= w.sum(); got = t.modules["m"].state_dict()
    for k, v in got.items(): assert torch.allclose(v.double(), sum(a*s[k] for a, s in zip(w, seen)), atol=1e-5) if v.is_floating_point() else v == seen[-1][k], k
    assert not t.modules["m"].training and not any(p.requires_grad for p in t.modules["m"].parameters())


def test_distillation_wants_both_distributions():
    g = torch.Generator().manual_seed(0); a, b = torch.randn(2, 7, 4, generator=g); p, q = torch.randn(2, 7, 3, 5, generator=g).softmax(-1)
    rows = distil_loss(a, b, p, q, reduction="none"); one, two = distil_loss(a, b, reduction="none"), distil_loss(b, b, p, q, reduction="none"); assert torch.allclose(rows, one + two, atol=1e-5) and (one > 0).all() and (two > 0).all()
    w = torch.rand(7, generator=g); assert torch.allclose(distil_loss(a, b, p, q, w), (w*rows).mean())


def test_a_prior_from_class_mass_routes_like_the_labels(digits):
    task = PentachoraTask(TrainPentachora.build(label_share=.5, prior="classes"), digits); con = task.modules["constellation"]; counts = task.counts + 1.
    routed = con.prior.detach().masked_fill(~con.active, -math.inf).softmax(-1).numpy(); mass = (con.class_mask.numpy()*counts).sum(-1); assert np.allclose(routed, mass/mass.sum(1, keepdims=True), atol=1e-6)
    assert (class_prior([[1, 1]], [3, 4])[0] == 0).all()   # a single vertex in use knows nothing


def test_a_cooling_temperature_is_set_and_not_learned(digits):
    taus = []
    class Watch(Callback):
        order = 60
        def after_batch(self, t): taus.append(t.task.modules["constellation"].tau_r.item())
    task = trained(digits, [Watch()]); con = task.modules["constellation"]; n = len(taus)
    assert taus == pytest.approx([.1 + .9*.5*(1 + math.cos(math.pi*i/(n - 1))) for i in range(n)], abs=1e-5) and not any(p is con.log_tau_r for g in task.optimisers["adamw"].param_groups for p in g["params"])


def test_routing_terms_reach_the_vertices(digits):
    "With routing terms alone the gradient arrives at vertices and encoder."
    task = PentachoraTask(TrainPentachora.build(**FEW | dict(w_dual=0., w_rose=0., w_geometry=0., w_probe=0.) | ALONE), digits); task.train_mode(); terms = task.loss({k: s.batch(0, 0) for k, s in task.streams.items()})
    assert {*terms} == {"ce", "route", "target"}; (terms["route"] + terms["target"]).backward(); con = task.modules["constellation"]
    assert con.dispatchers.grad.norm() > 0 and con.prior.grad.norm() > 0 and max(p.grad.norm() for p in task.modules["encoder"].parameters() if p.grad is not None) > 0 and all(p.grad is None or p.grad.isfinite().all() for m in task.modules.values() for p in m.parameters())


# ---- what is refused ----

@pytest.mark.parametrize("given, words", [
    (dict(unlabelled="msp"), "pass labels_per_class or label_share"), (dict(labels_per_class=3, label_share=.5), "both say how many labels"), (dict(labels_per_class=3, w_distil=0.), "not read with unlabelled='none'"),
    (dict(labels_per_class=3, unlabelled="msp", rose_quantile=.1), "pass unlabelled='rose'"), (dict(labels_per_class=3, unlabelled="rose", model="linear"), "pass unlabelled='msp'"), (dict(label_share=.1, unlabelled="msp", w_distil=0., w_unlabelled=0.), "teaches nothing"),
    (dict(model="cnn", prior="classes"), "has no routing"), (dict(labels_per_class=3, unlabelled="msp", model="linear", w_route=.1), "has no routing"), (dict(label_share=0.), "label_share=0.0"), (dict(unlabelled="both"), "'none', 'msp', 'rose'")])
def test_what_nothing_would_read_is_refused(given, words):
    with pytest.raises(UsageError, match=".") as e: TrainPentachora.build(**given)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_no_picture_without_a_label_is_left(digits):
    with pytest.raises(UsageError, match="keep their labels"): PentachoraTask(TrainPentachora.build(labels_per_class=10**6, unlabelled="msp"), digits)


# ---- what it brings ----

@pytest.mark.slow   # in fewer epochs the teacher is sure of too few pictures to teach anything; what it does with them is tested above
@pytest.mark.parametrize("per_class, epochs", [(5, 25)])
def test_unlabelled_pictures_help(per_class, epochs, record_property):
    "Digits, one seed: more is right on the test part with the other pictures than without them."
    images = load_images("digits"); right = {}
    for how in ("none", "msp", "rose"):
        task = trained(images, labels_per_class=per_class, unlabelled=how, pseudo_threshold=.95, epochs=epochs, prior="zero", w_route=0., w_target=0., tau_schedule="learned"); out = task.collect(task.test); right[how] = float((out["logits"].argmax(1) == out["labels"]).mean())
    record_property("accuracy", right); print(right); assert min(right["msp"], right["rose"]) > right["none"], right
