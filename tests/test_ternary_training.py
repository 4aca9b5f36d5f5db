"Facts about ternary v5.5 that need a training: what recipes reach, what a run repeats to the last bit, which gradient goes where, what a bad batch leaves behind."
import hashlib
import math
import os
import signal
import time

import numpy as np
import pytest
import torch

import warm
from geonb.core.callbacks import Best, Callback, Guard, usual_callbacks
from geonb.core.config import RunConfig
from geonb.core.environment import prepare
from geonb.core.errors import Interrupted
from geonb.core.run import Run
from geonb.core.schedule import warmup_cosine
from geonb.core.seeds import torch_stream
from geonb.core.training import fit, task_state, tensors_of
from geonb.ternary.baselines import QuantileCodec
from geonb.ternary.config import IDLE, PRESETS, TrainTernaryV5_5
from geonb.ternary.coverage import coverage_table, reconstruction
from geonb.ternary.operations import OPERATIONS, index_of, tables
from geonb.ternary.task import Tables, TernaryTask

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = dict(subset="random:400", batch=64, epochs=4, isolation_end=1, consolidation_end=2, ultra_start=3, eval_every=2, eval_draws=1000)   # all four phases within a second
OPEN = dict(rho_min=.7, rho_mid=.7, rho_max=.7)   # permeability of phase 4 from the start
BARE = dict(rho_min=0., rho_mid=0., rho_max=0., statenet="off", balance=False, lambda_step=0., lambda3_base=0., lambda3_amp=0., beta_warmup_frac=0., a_beta_mid=.1, a_beta_end=.1, b_beta_mid=.1, b_beta_end=.1, a_temp_start=1., a_temp_end=1.,
            a_temp_boost=0., b_temp_start=1., b_temp_end=1., isolation_end=0, consolidation_end=0, ultra_start=0, epochs=12, batch=512, lr=3e-3, eval_draws=1000)   # two autoencoders that share nothing but the loop; beta 0.1 from the first step


@pytest.fixture
def strict_afterwards():
    "Puts the determinism flag back that `prepare` sets."
    was = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(was)


def task_of(**given): return TernaryTask(TrainTernaryV5_5.build(**given))


def trained(callbacks=None, **given):
    "Train; -> Trainer. Without the usual callbacks the last weights stay instead of the chosen ones."
    t = task_of(**given); prepare(given.get("seed", 0), 1, given.get("strict", False)); return fit(t, callbacks=callbacks)


def measured(t, key): return [[r[f"{key}_{p}"] for p in t.task.net.paths] for r in t.history if "val/score" in r]


def weights_sha(net):
    "SHA-256 of all weight tensors, sorted by name, one after another."
    return hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(net.state_dict().items()))).hexdigest()


class At(Callback):
    "Calls a function at an event."
    def __init__(self, event, act, order=11): self.order = order; setattr(self, event, act)


def grads_of(task): return {p: [w.grad.clone() for w in ws] for p, ws in task.own.items()}


def norm(tensors): return float(torch.stack([x.double().square().sum() for x in tensors]).sum().sqrt())


# ---- what recipes reach ----

@pytest.mark.slow
def test_two_autoencoders_without_controllers_store_every_table(record_property):
    "No injection, no controller, no alignment, beta 0.1, twelve epochs: with each of five seeds both pathways reconstruct all 19,683 tables, and still do at the end."
    found = {}
    for seed in range(5):
        begun = time.process_time(); t = trained(seed=seed, eval_every=2, **BARE); found[seed] = (measured(t, "val/exact"), round(time.process_time() - begun, 1))
    record_property("exact and CPU seconds", found); print(found)
    for seed, (exact, _) in found.items(): assert exact[-1] == [OPERATIONS, OPERATIONS], (seed, exact)


def test_two_autoencoders_without_controllers_begin_to_store_a_tenth():
    "The reduced twin: 2,000 tables, eight epochs. Pathway B, whose decoder is the wider, has nearly all; A has a tenth and gains."
    exact = measured(trained(**BARE | dict(subset="random:2000", batch=64, lr=5e-3, epochs=8, eval_every=4)), "val/exact"); assert exact[1][1] >= 1950 and exact[1][0] >= 200 > exact[0][0], exact


@pytest.mark.slow
def test_injection_leaks_unless_decoders_also_read_their_own_code(record_property):
    "Twelve epochs at permeability 0.7: without isolated terms a decoder alone knows less than a fifth of the tables, with half of the weight on them every one."
    exact = {w: measured(trained(**BARE | OPEN | dict(isolated_weight=w, eval_every=4)), "val/exact")[-1] for w in (0., .5)}; record_property("exact", exact); print(exact)
    assert min(exact[0.]) < .2*OPERATIONS and exact[.5] == [OPERATIONS, OPERATIONS], exact


def test_injection_leaks_with_few_tables_too():
    "The reduced twin: 2,000 tables, six epochs. Without isolated terms no decoder alone knows 2 % of them, with half of the weight on them each knows more than 5 %."
    exact = {w: measured(trained(**BARE | OPEN | dict(isolated_weight=w, eval_every=6, epochs=6, subset="random:2000", batch=64, lr=5e-3)), "val/exact")[-1] for w in (0., .5)}
    assert max(exact[0.]) < 40 and min(exact[.5]) > 100, exact


@pytest.mark.slow
def test_the_reproducible_preset_stores_every_table_and_samples_nearly_all(record_property, strict_afterwards):
    "One hundred epochs on one thread, strict: every table through both pathways, all four phases, permeability up to 0.7, 99 % of all tables in 195,000 draws, 84 % in 50,000."
    begun = time.process_time(); t = trained(preset="reproducible", threads=1, strict=True); cpu = time.process_time() - begun
    rows = [r for path in "AB" for r in coverage_table(t.task.net, [50_000, 195_000], ["argmax"], 1, 0) if r["path"] == path]; sampled = {(r["path"], r["n"]): r["mean"]/OPERATIONS for r in rows}
    exact = measured(t, "val/exact"); record_property("found", dict(cpu_seconds=round(cpu, 1), sampled={str(k): v for k, v in sampled.items()}, exact=exact)); print(cpu, sampled, exact)
    assert {p: r["exact"] for p, r in reconstruction(t.task.net).items()} == {"A": OPERATIONS, "B": OPERATIONS} and exact[-1] == [OPERATIONS, OPERATIONS]
    phases = [r["schedule/phase"] for r in t.history]; assert len(phases) == 100 and phases == sorted(phases) and set(phases) == {1, 2, 3, 4} and t.history[-1]["schedule/rho"] == pytest.approx(.7)
    assert min(sampled[p, 195_000] for p in "AB") >= .99 and min(sampled[p, 50_000] for p in "AB") >= .84, sampled


# ---- the same twice ----

KEYS = dict(preset="reproducible", threads=1, strict=True, epochs=5, isolation_end=1, consolidation_end=2, ultra_start=4, eval_every=2, eval_draws=1000)
SIZES = [pytest.param("random:600", id="600 tables"), pytest.param("all", id="all tables", marks=pytest.mark.slow)]


@pytest.mark.parametrize("rows", SIZES)
def test_two_strict_trainings_are_equal_to_the_last_bit(strict_afterwards, rows):
    "Equal hash of all weights and equal history; another seed has another hash."
    a, b, other = (trained(callbacks=[Guard()], **KEYS | dict(subset=rows, seed=s)) for s in (3, 3, 4)); assert weights_sha(a.task.net) == weights_sha(b.task.net) != weights_sha(other.task.net)
    assert warm.timeless(a.history) == warm.timeless(b.history)


def interrupted(config, event, number):
    "Open the run, train until the event has come so often, stop as a signal does; -> the state that was kept."
    run = Run.open(config, "v5_5-test", {}); prepare(config.seed, config.threads, config.strict)
    task = TernaryTask(config); stop = warm.Count(event, number, lambda: os.kill(os.getpid(), signal.SIGTERM), order=80)
    with pytest.raises(Interrupted): fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9) + [stop])
    run.lock.release(); return warm.flat(task_state(task))


@pytest.mark.parametrize("rows, event, number", [("random:1000", "after_epoch", 3), ("random:1000", "after_batch", 5), pytest.param("all", "after_epoch", 3, marks=pytest.mark.slow)], ids=["between epochs", "inside an epoch", "all tables"])
def test_three_epochs_and_two_more_are_five(runs_root, strict_afterwards, rows, event, number):
    "A run that was stopped and taken up by a new task ends with the weights, controllers, film and history of one that was not, also when it was stopped inside an epoch without evaluation."
    config, ends = TrainTernaryV5_5.build(**KEYS | dict(subset=rows, runs_root=str(runs_root), progress="none")), []; task = TernaryTask(config); look = At("after_epoch", lambda t: ends.append((t.total_epoch, weights_sha(t.task.net))))
    prepare(config.seed, 1, True); straight = fit(task, callbacks=usual_callbacks(task) + [look]); want = ends[-1]; kept, found = interrupted(config, event, number), {}; ends.clear()
    run, task = Run.open(config, "v5_5-test", {}), TernaryTask(config); assert run.resumed
    try: t = fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9) + [look, At("before_fit", lambda t: found.update(warm.flat(task_state(t.task))))])
    finally: run.lock.release()
    warm.same(found, kept); assert ends[-1] == want and want[0] == 5 and len(ends) < 5   # the last weights; `fit` ends with the chosen ones
    assert weights_sha(t.task.net) == weights_sha(straight.task.net) and warm.timeless(t.history) == warm.timeless(straight.history)
    warm.same(warm.flat(task_state(t.task)), warm.flat(task_state(straight.task))); assert t.task.now == straight.task.now
    a, b = (x.task.film.arrays(x.task) for x in (t, straight)); assert all(np.array_equal(a[k], b[k]) for k in a) and list(a["epoch"]) == [0, 2, 4, 5]


@pytest.mark.parametrize("more", [{}, dict(model="plain"), dict(holdout=.2, select="loss")], ids=["default", "plain", "chosen by loss"])
def test_looking_more_often_changes_no_weight(more):
    "Evaluated after every epoch or only at the end: the last weights are the same bits. (As published the ratio of both samplers moves the pathway weights, so there it may.)"
    a, b = (trained(callbacks=[Guard()], **FEW | dict(eval_every=k, subset="random:200") | more) for k in (1, 4)); assert len(measured(a, "val/exact")) == 4 and len(measured(b, "val/exact")) == 1
    assert weights_sha(a.task.net) == weights_sha(b.task.net)


# ---- parameters ----

class Recorded:
    "A config that remembers what was asked of it."
    def __init__(self, config): self.__dict__.update(config=config, asked=set())
    def __getattr__(self, name): self.asked.add(name); return getattr(self.config, name)


ELSEWHERE = {"preset", "start"}   # filled in by the config itself; given to the task as a module
SWITCHED = {"prior_draws": "prior_weight", "prior_order": "prior_weight"}   # means nothing while that weight is 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_a_preset_is_read(preset):
    "A short training asks for every parameter that is not None, and for none of the other mode's."
    config = TrainTernaryV5_5.build(preset=preset, **FEW); asked = Recorded(config); fit(TernaryTask(asked))
    own = {k for k in TrainTernaryV5_5.model_fields if getattr(config, k) is not None} - (RunConfig.model_fields.keys() - {"seed"}) - ELSEWHERE
    idle = {k for k, switch in SWITCHED.items() if not getattr(config, switch)}; assert PRESETS[preset].keys() - own == set()
    assert own - asked.asked == idle & own


BASE = dict(subset="random:200", batch=64, epochs=6, isolation_end=1, consolidation_end=3, ultra_start=5, cycle_period=8, eval_every=6, eval_draws=1000, lr=4e-3, clip=1., gate_low=.1, gate_high=10., balance_clamp=1.05)
TURNED = {"corrected": dict(latent_dim=12, subset="random:201", order="big", holdout=.3, model="plain", seed=7, epochs=7, isolation_end=2, consolidation_end=2, ultra_start=4, rho_min=.2, rho_mid=.4, rho_max=.6, gate_low=9., gate_high=.11, cycle_period=5,
                            a_beta_mid=.3, a_beta_end=.5, a_temp_start=.8, a_temp_end=.9, a_temp_boost=.4, b_beta_mid=.3, b_beta_end=.5, b_temp_start=.7, b_temp_end=.8, beta_warmup_frac=.5, free_bits=.2, b_entropy_weight=.5, b_repulsion_weight=.1,
                            isolated_weight=.2, repulsion_sigma=4., repulsion_rows=16, prior_weight=.1, prior_draws=64, prior_order=.5, lambda_init=.8, lambda_min=.7, lambda_max=.7, lambda_step=.1, lambda3_base=.4, lambda3_amp=.05, balance=False, balance_clamp=1.,
                            balance_ema=.5, statenet="off", lr_scale=.5, lambda_scale=.1, batch=40, lr=3e-3, weight_decay=1., clip=.1, lr_schedule="steps", warmup_frac=.5, final_frac=.9),
          "faithful": dict(beta_schedule="original", b_temp_phase4=.5, holdout=.3, rho_min=.2, rho_mid=.4, rho_max=.6, gate_low=9., gate_high=.11, cycle_period=5, a_temp_start=.8, a_temp_end=.5, a_temp_boost=.2, b_temp_start=.7, b_entropy_weight=.5, b_repulsion_weight=.1,
                           beta_warmup_frac=.5, free_bits=.1, repulsion_sigma=4., lambda_init=.8, lambda_min=.7, lambda_max=.7, lambda_step=.1, lambda3_base=.4, lambda3_amp=.05, balance=False, balance_clamp=1., statenet="off", lr_scale=.5, lambda_scale=.1,
                           isolation_end=2, consolidation_end=2, ultra_start=4, epochs=7, batch=40, lr=3e-3, weight_decay=1., clip=.1, lr_schedule="cosine")}


def switched(base, turned):
    "Both together, without what of `base` a part that is now off would never read: that would be refused."
    given = base | turned; idle = {k for (switch, off), keys in IDLE.items() if given.get(switch) == off for k in keys}
    return {k: v for k, v in given.items() if k not in idle or k in turned}


@pytest.mark.slow
@pytest.mark.parametrize("mode", TURNED)
def test_every_parameter_moves_the_weights(mode):
    "Each parameter turned for itself ends a short training in other weights. (The range of the repulsion is wide here; at 0.5 the term is some 1e-8.)"
    base = BASE | (dict(prior_weight=.2, repulsion_sigma=5.) if mode == "corrected" else dict(preset="faithful", repulsion_sigma=5.)); sha = lambda **k: weights_sha(trained(callbacks=[Guard()], **switched(base, k)).task.net); usual = sha()
    same = {k for k, v in TURNED[mode].items() if sha(**{k: v}) == usual}; assert not same, same
    left = {k for k in TrainTernaryV5_5.model_fields if getattr(TrainTernaryV5_5.build(**base), k) is not None} - RunConfig.model_fields.keys() - TURNED["corrected"].keys() - TURNED[mode].keys()
    assert left == {"preset", "mode", "eval_every", "eval_draws", "select", "patience"}


# ---- held-out tables ----

def test_held_out_tables_are_in_no_batch_and_not_in_the_score(monkeypatch):
    "Over all epochs exactly the training part is seen; a model that is wrong on the held-out tables alone has a full score and a held-out share of 0."
    seen, clean = [], Tables.batch
    def batch(self, epoch, i): b = clean(self, epoch, i); seen.append(index_of(b["x"].numpy().astype(np.int8))); return b
    monkeypatch.setattr(Tables, "batch", batch); t = trained(**FEW | dict(holdout=.1)); task = t.task; rows, held = np.concatenate(seen), task.parts["test"]
    assert len(held) == 40 and not np.isin(rows, held).any() and set(rows) == set(task.parts["train"]) and len(rows) == 4*360
    found = reconstruction(task.net); best = max((r for r in t.history if "val/score" in r), key=lambda r: r["val/score"])
    for p in "AB":
        right = found[p]["wrong_positions"] == 0; assert best[f"val/exact_{p}"] == right[task.parts["train"]].sum() and best[f"val/heldout_{p}"] == pytest.approx(right[held].mean())
    class Wrong(QuantileCodec):
        def encode(self, x):
            bad = torch.as_tensor(np.isin(index_of(x.numpy().astype(np.int8)), held)); return super().encode(torch.where(bad[:, None], torch.tensor(tables(task.parts["train"][:1])).float(), x))
    task.net, task.dual = Wrong(), False; row = task.measured(); assert (row["val/exact_A"], row["val/heldout_A"], int(row["val/score"])) == (360, 0., 360)


@pytest.mark.slow
def test_tables_never_trained_on_are_reconstructed(record_property):
    "A tenth of the tables is held out: both pathways reconstruct at least 99 % of it, reported beside the trained tables and not among them."
    t = trained(holdout=.1); exact, held = measured(t, "val/exact"), measured(t, "val/heldout"); record_property("held-out", held[-1]); print(exact[-1], held[-1])
    assert max(map(max, exact)) <= OPERATIONS - 1968 and min(held[-1]) >= .99
    found = reconstruction(t.task.net, tables(t.task.parts["test"])); assert min(found[p]["fraction"] for p in "AB") >= .99 and len(t.task.parts["test"]) == 1968


# ---- where gradients go ----

@pytest.mark.parametrize("given", [{}, dict(isolated_weight=0.), dict(prior_weight=.2), dict(preset="faithful")], ids=["default", "coupled only", "prior term", "faithful"])
def test_a_pathway_learns_nothing_from_the_other_ones_loss(given):
    "With injection on, the loss of A reaches every weight of A and none of B, and the reverse, although each reads the other's code; alignment reaches the encoders alone, as published nothing."
    task = task_of(**FEW | given); task.now.update(rho=.6, tau_A=.9, tau_B=.8, beta_A=.3, beta_B=.3); b = task.streams["train"].batch(0, 0)
    terms, _ = task.terms_of(b, torch_stream(0, "here")); weight = task.weigh(); reach = lambda loss, q: torch.autograd.grad(loss, task.own[q], retain_graph=True, allow_unused=True)
    alone = dict(task.now); task.now["rho"] = 0.; apart, _ = task.terms_of(b, torch_stream(0, "here")); task.now = alone
    for p, q in ("AB", "BA"):
        loss = sum(v*weight[k] for k, v in terms.items() if k.endswith(f"_{p}")); assert apart[f"ce_{p}"] != terms[f"ce_{p}"] and {f"ce_{p}", f"kl_{p}"} <= terms.keys()
        assert all(g is None or not g.any() for g in reach(loss, q)) and all(g is not None and g.any() for g in reach(loss, p))
    if given.get("preset") == "faithful": assert not terms["alignment"].requires_grad; return
    names = {n: g for n, g in zip(names_of(task), reach(terms["alignment"], "A") + reach(terms["alignment"], "B"))}; assert {n.split(".")[0] for n, g in names.items() if g is not None and g.any()} == {"encoder_A", "encoder_B"}


def names_of(task): return [n for p in "AB" for n, _ in task.net.named_parameters() if n.split(".")[0].endswith(f"_{p}")]


def by_hand(t):
    "Gradients of this step's loss, from a second forward pass with the same noise."
    task = t.task; terms, _ = task.terms_of(t.batches["train"], torch_stream(task.config.seed, "noise", t.step)); own = [w for ws in task.own.values() for w in ws]
    g = torch.autograd.grad(sum(v*task.weights.get(k, 1.) for k, v in terms.items()), own, allow_unused=True); n = len(task.own["A"])
    return {"A": g[:n], "B": g[n:]}


def steps_seen(**given):
    "For each step: gradients by hand, gradients in place, norms as told, balance after."
    seen = []
    def look(t): seen.append((by_hand(t), grads_of(t.task), {p: float(v) for p, v in t.norms.items()}, t.task.balance.state(), dict(t.task.weights)))
    fit(task_of(**given), callbacks=[At("after_backward", look)]); return seen


def test_each_pathway_is_clipped_for_itself_after_it_was_measured():
    "The norms told are those of a gradient by hand; a pathway above the bound is scaled to it, the other one keeps its gradient; the balance hears the norm without weight and scale."
    given = FEW | dict(epochs=1, isolation_end=0, ultra_start=0, consolidation_end=0); first = steps_seen(**given)[0][2]; clip = math.sqrt(first["A"]*first["B"]); seen = steps_seen(**given, clip=clip)
    ema = {"A": 1., "B": 1.}; clipped = []
    for hand, there, told, balance, weight in seen:
        for p in "AB":
            n = norm(hand[p]); f = min(1., clip/n); assert told[p] == pytest.approx(n, rel=1e-4); ema[p] = .9*ema[p] + .1*n/weight[f"ce_{p}"]
            for g, h in zip(there[p], hand[p]): torch.testing.assert_close(g, f*h, rtol=1e-3, atol=1e-5*n)
        clipped.append(tuple(norm(hand[p]) > clip for p in "AB")); assert [balance["ema_a"], balance["ema_b"]] == pytest.approx([ema["A"], ema["B"]], rel=1e-4)
    assert clipped[0] in ((True, False), (False, True)), clipped


def test_as_published_both_pathways_are_clipped_together_and_measured_afterwards():
    "One factor for all gradients, from their joint norm; the norms told are those after it, and the balance hears them with weight and scale."
    seen = steps_seen(preset="faithful", **FEW | dict(epochs=1), clip=1.); ema = {"A": 1., "B": 1.}
    for hand, there, told, balance, _ in seen:
        f = min(1., 1./norm(hand["A"] + hand["B"])); assert math.hypot(told["A"], told["B"]) <= 1 + 1e-4
        for p in "AB":
            assert told[p] == pytest.approx(f*norm(hand[p]), rel=1e-3); ema[p] = .95*ema[p] + .05*told[p]   # both begin at 1, which counts as balanced
            for g, h in zip(there[p], hand[p]): torch.testing.assert_close(g, f*h, rtol=1e-3, atol=1e-5)
        assert [balance["ema_a"], balance["ema_b"]] == pytest.approx([ema["A"], ema["B"]], rel=1e-4)
    assert any(norm(h["A"] + h["B"]) > 1 for h, *_ in seen)


# ---- as published ----

OLD = dict(preset="faithful", subset="random:160", batch=64, epochs=36, isolation_end=4, consolidation_end=12, ultra_start=34, cycle_period=5, eval_every=12, eval_draws=1000, patience=0)


@pytest.mark.parametrize("more", [{}, dict(beta_schedule="original", free_bits=0., gate_low=.05, gate_high=20., statenet="off", balance=False)], ids=["second setting", "first setting"])
def test_as_published_every_schedule_follows_its_formula(more):
    "Permeability, temperatures, beta, pathway weights, alignment weight and learning rate in the history are those of the published formulas, written down here once more."
    t = trained(**OLD | more); c = t.task.config; flag, label, l1, l2 = False, 1, .7, .7; clamp = lambda x, low, high: min(high, max(low, x)); kinds = set()
    for e, row in enumerate(t.history):
        s = {k.split("/")[1]: v for k, v in row.items() if k.startswith("schedule/")}; d = [row[f"statenet/d{i}"] for i in range(4)]; r = t.history[e - 1]["balance/ratio"] if e else 1.; flag = c.gate_low < r < c.gate_high
        label = 1 if e < 4 else 2 if e < 12 else 4 if e >= 34 else 3 if flag else label; kinds.add((label, flag)); base = 1 - .7*e/36
        assert s["phase"] == label and s["rho"] == pytest.approx(.1 if e < 4 else .1 + .2*(e - 4)/8 if e < 12 else .7 if e >= 34 else .3 + .4*min(1, (e - 12)/80) if flag else .3)
        assert s["tau_A"] == pytest.approx(max(.1, base + (.1*base if e < 34 else .5)*math.cos(2*math.pi*(e % 5)/5))) and s["tau_B"] == pytest.approx(.3 if e >= 34 else .9 - .7*max(0, e - 30)/36)
        if more: assert [s["beta_A"], s["beta_B"]] == pytest.approx([.6 + .4*e/36, math.sin(.785)*(.6 + .4*e/36)])
        else: assert [s["beta_A"], s["beta_B"]] == pytest.approx([.3*e/4, 0.] if e < 4 else [.3 + .5*(e - 4)/32, math.sin(.785)*(.3 + .5*(e - 4)/32)])
        if e:
            cover = next((x["val/sampled_B"]/x["val/sampled_A"] for x in reversed(t.history[:e]) if "val/score" in x), 1.); up, down = (1, -1) if r < .8 else (-1, 1) if r > 1.2 else (0, 0); l1, l2 = l1 + .02*up, l2 + .02*down
            if not up and flag: f = 1.05 if cover > 1.5 else .95 if cover < .67 else 1.; l1, l2 = l1*f, l2*(2 - f)
            l1, l2 = clamp(l1, .5, .95), clamp(l2, .5, .95)
        l1, l2 = clamp(l1 + .01*d[1], .5, .95), clamp(l2 + .01*d[2], .5, .95); assert [s["lambda1"], s["lambda2"]] == pytest.approx([l1, l2]) and s["lambda3"] == pytest.approx(clamp(.3 - .15*math.sin(2*math.pi*(e % 5)/5) + .01*d[3], .15, .75))
        assert row["lr/adamw"] == pytest.approx(1e-3*(1 + .05*d[0])) and row["balance/g_A"] == pytest.approx(clamp(row["balance/ratio"], .5, 2) if c.balance else 1.) and row["balance/g_B"] == pytest.approx(1/row["balance/g_A"])
    assert any(d != 0 for d in (row["statenet/d1"] for row in t.history)) == (not more) and {1, 2, 4} <= {k for k, _ in kinds} and (not more or (3, True) in kinds), kinds


def test_as_published_the_loss_on_validation_tables_chooses_and_ends_the_run():
    "It is told after every epoch, its lowest value names the epoch that is kept, and training stops when it has not fallen for as long as patience says."
    t = trained(**OLD | dict(patience=4, lr=1e-7)); loss = [r["val/loss"] for r in t.history]; best = int(np.argmin(loss)) + 1; assert len(loss) == best + 4 < 36
    kept = next(c for c in t.callbacks if isinstance(c, Best)); assert (kept.metric, kept.mode, kept.epoch) == ("val/loss", "min", best) and [r["epoch"] for r in t.history if r["best"]][-1] == best


def test_the_loss_on_validation_tables_by_hand():
    "Weighted terms of the posterior means, injected as in training, without balancing scales."
    t = trained(callbacks=[], **OLD | dict(epochs=13, ultra_start=13)); task, n = t.task, t.task.net; x, y = task.val.x, task.val.y; assert set(index_of(x.numpy().astype(np.int8))) == set(task.parts["val"]) and len(task.parts["test"]) == 16; row = t.history[-1]; s = {k.split("/")[1]: v for k, v in row.items() if k.startswith("schedule/")}
    with torch.no_grad():
        (ma, va), (mb, vb) = (n.encode(x)[p] for p in "AB"); rho = s["rho"]; total = 0.; hist = lambda z: float(np.mean([entropy(np.histogram(z[:, j].double().numpy(), 50, (-3, 3))[0]) for j in range(16)]))
        for p, mu, lv, other, lam, beta in (("A", ma, va, mb, s["lambda1"], s["beta_A"]), ("B", mb, vb, ma, s["lambda2"], s["beta_B"])):
            logp = n.decode(p, (1 - rho)*mu + rho*other).log_softmax(-1); ce = -logp.gather(-1, y[..., None]).sum()/len(y); kl = (.5*(mu**2 + lv.exp() - 1 - lv)).clamp_min(.5).sum()/len(y); more = 0.
            if p == "B":
                q = logp.exp().mean(0); pairs = [math.exp(-float(((mu[i] - mu[j])**2).sum())/.25) for i in range(len(mu)) for j in range(len(mu)) if i != j]; more = .05*float((q*(q + 1e-10).log()).sum()) + .01*sum(pairs)/len(pairs)
            total += lam*float(ce + beta*kl + more)
    assert row["val/loss"] == pytest.approx(total + s["lambda3"]*abs(hist(ma) - hist(mb)), rel=1e-4) and len(x) == 16


def entropy(counts): p = counts[counts > 0]/counts.sum(); return -(p*np.log(p)).sum()


def test_free_bits_are_a_floor_of_eight_nats():
    "Half a nat for each of sixteen elements; without it the same first epoch has a KL far below."
    floor, free = (trained(**OLD | dict(epochs=3, isolation_end=1, consolidation_end=2, ultra_start=2, free_bits=f)).history for f in (.5, 0.))
    assert all(r[f"loss/kl_{p}"] >= 8 - 1e-5 for r in floor for p in "AB") and all(free[0][f"loss/kl_{p}"] < 4 for p in "AB")


# ---- StateNet ----

def test_frozen_statenet_is_never_reached_by_a_gradient():
    "It is asked and answers, but its ten tensors stay the same bits and no backward pass comes by."
    task = task_of(**FEW | dict(statenet="frozen")); own = dict(task.net.state_net.named_parameters()); first, came = {n: v.detach().clone() for n, v in own.items()}, []
    for n, v in own.items(): v.register_hook(lambda g, n=n: came.append(n))
    t = fit(task, callbacks=[At("after_backward", lambda t: came.extend(n for n, v in own.items() if v.grad is not None))])
    assert len(own) == 10 and came == [] and all(torch.equal(v, first[n]) for n, v in own.items()) and len({r["statenet/d0"] for r in t.history}) == 4


def test_learning_statenet_stays_within_its_bounds():
    "Corrections lie in (-1, 1); with a rate at the upper bound, wide scales and narrow bounds the clamps are reached and hold; its weights move, and a pathway gets no gradient from them."
    task = task_of(**FEW | dict(epochs=8, ultra_start=8, lr=.01, lr_scale=.9, lambda_scale=.9, lambda_min=.68, lambda_max=.72, lambda3_base=.2)); first, rates = {n: v.clone() for n, v in task.net.state_net.state_dict().items()}, []
    t = fit(task, callbacks=[Guard(), At("after_step", lambda t: rates.append((t.stage_step, t.stage_steps, t.task.optimisers["adamw"].param_groups[0]["lr"], t.task.now["d"][0])))])
    d = np.array([[r[f"statenet/d{i}"] for i in range(4)] for r in t.history]); l12 = np.array([[r["schedule/lambda1"], r["schedule/lambda2"]] for r in t.history]); l3 = np.array([r["schedule/lambda3"] for r in t.history])
    assert (abs(d) < 1).all() and len(np.unique(d[:, 0])) == 8 and l12.min() >= .68 and l12.max() <= .72 and {.68, .72} & set(l12.ravel()) and l3.min() >= .15 and l3.max() <= .75
    rate = np.array([r[2] for r in rates]); assert rate.min() >= 1e-6 and rate.max() <= .01 and sum(not torch.equal(v, first[n]) for n, v in task.net.state_net.state_dict().items()) == 10
    told = [min(.01, max(1e-6, warmup_cosine(i, n, .01, .05, .01)*(1 + .9*d0))) for i, n, _, d0 in rates if i % 7]; assert [r[2] for r in rates if r[0] % 7] == pytest.approx(told)   # the first step of an epoch has the correction of the epoch before


# ---- the control ----

def test_one_plain_autoencoder_trains_through_the_same_task():
    "Its cross-entropy falls and more tables come back; nothing of two pathways is in its history."
    t = trained(model="plain", **FEW | dict(epochs=12, ultra_start=12, eval_every=6)); ce, exact = [r["loss/ce_A"] for r in t.history], measured(t, "val/exact"); assert ce[-1] < .5*ce[0] < .5*NINE and exact[-1][0] > exact[0][0]
    assert not [k for r in t.history for k in r if k.startswith(("balance/", "statenet/")) or k.endswith("_B") and not k.startswith("schedule/") or "alignment" in k or "coupled" in k] and t.task.net.paths == ("A",)
    assert all(r["schedule/rho"] == 0 for r in t.history)


NINE = 9*math.log(3) + .1   # cross-entropy of knowing nothing


# ---- a bad batch ----

def states(steps, poisoned, monkeypatch, **given):
    "Train, with a NaN in the step `steps[0]` if so told; -> (Trainer, the state before those steps' events, the state after each of them)."
    clean, before, after, task = Tables.batch, {}, {}, task_of(**FEW | dict(subset="random:200", eval_every=4) | given)
    keep = lambda: {k: v for k, v in warm.flat({k: v for k, v in task_state(task).items() if k in ("tensors", "optimisers", "own")}).items() if not k.endswith("/lr")}   # the rate is set anew in every step
    def batch(self, epoch, i):
        b, step = clean(self, epoch, i), epoch*self.steps + i
        if self is task.streams["train"] and step in steps:
            before[step] = keep()
            if poisoned: b["x"][0, 0] = float("nan")
        return b
    def look(t):
        if t.step - 1 in steps: after[t.step - 1] = keep()
    with monkeypatch.context() as m: m.setattr(Tables, "batch", batch); t = fit(task, callbacks=usual_callbacks(task) + [At("after_batch", look, order=95)])
    return t, before, after


@pytest.mark.parametrize("given", [{}, dict(preset="faithful"), dict(model="plain")], ids=["default", "faithful", "plain"])
def test_a_nan_in_a_batch_leaves_no_trace(monkeypatch, given):
    "Inside an epoch, in the first step of one (where StateNet looks) and in the very first: weights, moments, balance, latch, pathway weights and corrections stay as an unpoisoned training has them before that step; the run ends with finite numbers."
    steps = task_of(**FEW | given | dict(subset="random:200")).streams["train"].steps; places = (2*steps + 1, 2*steps, 0); _, whole, moved = states(places, False, monkeypatch, **given)
    for at in places:
        t, before, after = states((at,), True, monkeypatch, **given); assert (t.skips, t.rollbacks) == (1, 0)
        warm.same(before[at], whole[at], 10); warm.same(after[at], whole[at], 10); assert moved[at] != whole[at]
        assert all(bool(torch.isfinite(v).all()) for v in tensors_of(t.task).values()) and all(math.isfinite(v) for r in t.history for v in r.values() if isinstance(v, float)) and len(t.history) == 4
