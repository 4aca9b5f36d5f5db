"Ternary v5.11 trained: what direct, tree and the published recipes reach, repeat and leave behind."
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import conformance as suite
import warm
from geonb.app.load import load
from geonb.core.callbacks import Callback, Guard, usual_callbacks
from geonb.core.environment import prepare
from geonb.core.errors import CheckFailed, DataMissing, Interrupted, UsageError
from geonb.core.run import Run
from geonb.core.training import fit, task_state
from geonb.ternary import bundle as dual_bundle
from geonb.ternary.config import TrainTernaryV5_5
from geonb.ternary.hyperbolic_bundle import save, started_from, task_name
from geonb.ternary.hyperbolic_config import NEEDS_START, PRESETS, TrainTernaryV5_11
from geonb.ternary.hyperbolic_report import examine
from geonb.ternary import hyperbolic_report
from geonb.ternary.hyperbolic_task import LEVEL, make_task, split_levels
from geonb.ternary.operations import OPERATIONS
from geonb.ternary.report import measure as measure_dual
from geonb.ternary.task import TernaryTask

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = -0.8320502954116228   # of Spearman's rho on all operations, without ties
FEW = {"direct": dict(ae_epochs=2, epochs=3, holdout=.9, batch=150, eval_every=2, measure_tree=False), "tree": dict(recipe="tree", epochs=3, polish_epochs=2, holdout=.9, batch=150, eval_every=2, measure_tree=False),
       "pairs": dict(recipe="pairs", groups=200, epochs=3, polish_epochs=1, eval_every=2, measure_tree=False),
       "advanced": dict(recipe="advanced", epochs=2, eval_every=1, measure_tree=False), "kfac": dict(ae_epochs=1, epochs=2, holdout=.9, batch=300, eval_every=1, measure_tree=False, use_kfac=True)}
BIN = Path(sys.executable).parent


def config(**given): return TrainTernaryV5_11.build(**dict(progress="none") | given)


def trained(state=None, **given):
    c = config(**given); prepare(c.seed, 1, False); task = make_task(c, start=state); return fit(task)


class Stop(Callback):
    "Ends a training as a signal would, after a number of steps."
    order = 89
    def __init__(self, step): self.at = step
    def after_batch(self, t):
        if t.step == self.at: next(c for c in t.callbacks if type(c).__name__ == "Saver").signal = 15


@pytest.fixture(scope="module")
def dual_run(tmp_path_factory):
    "A small finished bundle of v5.5 to start from."
    root = tmp_path_factory.mktemp("start"); c = TrainTernaryV5_5.build(subset="random:1500", epochs=2, isolation_end=0, consolidation_end=1, ultra_start=1, batch=150, eval_every=1, eval_draws=1000, progress="none", runs_root=str(root))
    run = Run.open(c, "v5_5", {}, report=lambda s: None); task = TernaryTask(c); t = fit(task, run)
    return dual_bundle.save(run, task, measure_dual(task, t))


# ---- repeats, and goes on where it was stopped ----

@pytest.mark.parametrize("kind, step", [("direct", 11), ("direct", 28), ("direct", 41), ("tree", 20), ("tree", 45), ("pairs", 12), ("pairs", 45), ("kfac", 11)])
def test_stopped_and_taken_up_it_ends_the_same(kind, step, runs_root):
    "Inside the first stage, at the very border of two stages, inside the second: weights, history and film are those of an unbroken run."
    c = config(**FEW[kind], runs_root=str(runs_root)); straight = trained(**FEW[kind]); assert step < straight.step
    run, task = Run.open(c, task_name(c), {}, report=lambda s: None), make_task(c)
    with pytest.raises(Interrupted): fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9) + [Stop(step)])
    run.lock.release(); run, task = Run.open(c, task_name(c), {}, report=lambda s: None), make_task(c); assert run.resumed
    try: t = fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9))
    finally: run.lock.release()
    warm.same(warm.flat(task_state(t.task)), warm.flat(task_state(straight.task))); assert warm.timeless(t.history) == warm.timeless(straight.history)
    a, b = (x.task.film.arrays(x.task) for x in (t, straight)); assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("recipe", ["homeostasis", "homeostatic_rich", "max_hierarchy"])
def test_a_published_recipe_goes_on_the_same(recipe, dual_run, runs_root):
    "With dropout, with an optimiser that is rebuilt every epoch, with an encoder that trains."
    few = dict(recipe=recipe, epochs=2, eval_every=1, measure_tree=False, start=str(dual_run)); c = config(**few, runs_root=str(runs_root)); state, origin = started_from(c); straight = trained(state, **few); step = straight.step*3//4
    run, task = Run.open(c, task_name(c), origin, report=lambda s: None, **origin), make_task(c, start=state)
    with pytest.raises(Interrupted): fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9) + [Stop(step)])
    run.lock.release(); torch.manual_seed(99); run, task = Run.open(c, task_name(c), origin, report=lambda s: None, **origin), make_task(c, start=state)
    try: t = fit(task, run, callbacks=usual_callbacks(task, run, "none", 1e9))
    finally: run.lock.release()
    assert all(torch.equal(a, b) for a, b in zip(t.task.net.state_dict().values(), straight.task.net.state_dict().values())) and warm.timeless(t.history) == warm.timeless(straight.history)


@pytest.mark.parametrize("kind", ["direct", "tree", "pairs"])
def test_looking_more_often_changes_no_weight(kind):
    def last(every): c = config(**FEW[kind] | dict(eval_every=every)); prepare(0, 1, False); task = make_task(c); fit(task, callbacks=[Guard()]); return task.net.state_dict()
    a, b = last(1), last(99); assert all(torch.equal(a[k], b[k]) for k in a)


# ---- what reaches what ----

def test_held_out_operations_reach_neither_gradient_nor_choice(monkeypatch):
    "No batch of any stage has one; with other held-out tables declared exact the same epoch is kept."
    from geonb.ternary.rows import LevelledTables
    seen, clean = [], LevelledTables.batch
    def batch(self, e, i): b = clean(self, e, i); seen.append(b["index"].numpy()); return b
    monkeypatch.setattr(LevelledTables, "batch", batch); t = trained(**FEW["direct"]); held = t.task.parts["test"]
    rows = np.unique(np.concatenate(seen)); assert not np.isin(rows, held).any() and np.isin(np.flatnonzero(LEVEL >= 7), rows).all() and len(rows) == OPERATIONS - len(held)
    row = {k: v for k, v in t.history[-1].items() if k.startswith("val/")}
    assert t.task.score(row) == t.task.score({k: v for k, v in row.items() if "heldout" not in k}) == row["val/score"]


def test_the_limit_of_the_published_split():
    from geonb.geometry.padic import spearman_limit
    test = split_levels(.2)["test"]; counts = np.bincount(LEVEL[test]); assert counts.tolist() == [2624, 874, 291, 97, 32, 10, 3] and spearman_limit(counts) == pytest.approx(-.8313602, abs=5e-8)


def test_what_rests_rests():
    t = trained(**FEW["direct"]); mine = t.task.net.state_dict(); fresh = make_task(config(**FEW["direct"])).net.state_dict()
    assert all(torch.equal(mine[k], fresh[k]) for k in mine if k.startswith("projection.proj_A"))   # nobody's: A stays Euclidean
    t = trained(**FEW["tree"]); mine, fresh = t.task.net.state_dict(), make_task(config(**FEW["tree"])).net.state_dict()
    assert all(torch.equal(mine[k], fresh[k]) == k.startswith(("encoder_A", "decoder_A", "projection.proj_A", "encoder_B.fc_logvar")) or "isp_c" in k for k in mine)


def test_a_reduced_direct_run_orders_levels_and_reads_back():
    "Seven epochs on everything: the order of levels is nearly at its limit, the width there, the tables coming. The full figures have a slow test."
    t = trained(ae_epochs=2, epochs=5, eval_every=7, measure_tree=False); row = t.history[-1]
    assert row["val/exact_B"] > .6*OPERATIONS and LIMIT - 1e-3 < row["val/rho_B"] < -.83 and row["val/gamma_B"] < -.999 and row["val/floor_B"] > .005 and row["val/rich_B"] > .01


# ---- the published figures ----

def reached(m, coverage=1.):
    assert m["coverage_hyp"] >= coverage and m["rho"] <= LIMIT + 5e-8 and m["violations"] == 0 and m["gamma"] == -1 and m["floor"] >= .005 and m["min_gap"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_direct_reaches_every_figure_on_one_encoder(preset):
    t = trained(preset=preset, measure_tree=False); m = examine(t.task, t)["B"]; reached(m); assert m["richness"]["hyperbolic_unweighted"] >= .0120


@pytest.mark.slow
def test_tables_never_seen_are_read_back_from_their_points():
    t = trained(preset="full", holdout=.2, measure_tree=False); r = examine(t.task, t).diagnostics["encoders"]["B"]; m = r["heldout"]
    assert m["coverage_hyp"] >= .999 and m["rho"] == pytest.approx(m["rho_limit"], abs=1e-4); reached(r["trained"] | {"rho": LIMIT if r["trained"]["rho"] <= r["trained"]["rho_limit"] + 5e-8 else 0})


@pytest.mark.slow
def test_tree_is_hierarchy_and_tree_at_once():
    t = trained(recipe="tree", preset="full"); m = examine(t.task, t)["B"]; reached(m); assert m["tree"]["pearson"] >= .97 and m["tree"]["mAP"] >= .99 and m["min_gap"] > .02


@pytest.mark.slow
def test_pairs_find_such_a_tree_by_themselves():
    t = trained(recipe="pairs", preset="full"); m = examine(t.task, t)["B"]; reached(m); assert m["tree"]["pearson"] >= .95 and m["tree"]["mAP"] >= .95


def test_the_advanced_recipe_reports_its_pieces():
    "The tropical report stands in the diagnostics of this recipe and of no other, as plain numbers."
    import json
    t = trained(**FEW["advanced"]); r = examine(t.task, t); d = r.diagnostics["tropical"]
    assert json.loads(json.dumps(d, allow_nan=False)) == d and d["widths"] == [256, 128, 64] and len(d["trit_borders"]) == 9 and [x["valuation"] for x in d["levels"]] == list(range(10))
    assert len(hyperbolic_report.tropical_figure(r).axes) == 3
    d = trained(**FEW["direct"]); assert "tropical" not in examine(d.task, d).diagnostics


# ---- starts ----

def test_a_missing_start_is_exit_4_with_the_command_that_makes_one(runs_root):
    for recipe in NEEDS_START:
        with pytest.raises(DataMissing, match="geonb run train_ternary_v5_5"): config(recipe=recipe).check_data()
    p = subprocess.run([BIN/"geonb", "run", "train_ternary_v5_11", "--check", "-p", "recipe", "homeostatic_rich"], capture_output=True, text=True); assert p.returncode == 4 and "geonb run train_ternary_v5_5" in p.stderr and len(p.stderr.strip().splitlines()) == 1
    config(recipe="advanced").check_data(); assert list(runs_root.iterdir()) == []


def test_a_start_that_does_not_fit_is_refused(dual_run, tmp_path):
    c = TrainTernaryV5_5.build(subset="random:300", model="plain", epochs=1, isolation_end=0, consolidation_end=0, ultra_start=0, batch=100, eval_draws=1000, progress="none", runs_root=str(tmp_path))
    run = Run.open(c, "v5_5", {}, report=lambda s: None); task = TernaryTask(c); t = fit(task, run); plain = dual_bundle.save(run, task, measure_dual(task, t))
    with pytest.raises(UsageError, match="no two encoders of width 16"): config(recipe="v5_11", start=str(plain)).check_data()
    with pytest.raises(UsageError, match="give one of the two"): config(start=str(dual_run), holdout=.2)
    state, origin = started_from(config(recipe="v5_11", start=str(dual_run))); assert len(origin["start"]) == 64 and "decoder_B.fc_in.weight" in state
    f = next(dual_run.glob("weights/*")); sound = f.read_bytes(); f.write_bytes(sound[:-1])
    try:
        with pytest.raises(CheckFailed, match=f.name): config(recipe="v5_11", start=str(dual_run)).check_data()
    finally: f.write_bytes(sound)


@pytest.mark.parametrize("recipe", [*NEEDS_START, "advanced"])
def test_published_recipes_run_from_a_bundle_to_a_bundle(recipe, dual_run, runs_root):
    c = config(recipe=recipe, epochs=2, eval_every=1, measure_tree=False, runs_root=str(runs_root), **{} if recipe == "advanced" else dict(start=str(dual_run))); state, origin = started_from(c); prepare(0, 1, False)
    run = Run.open(c, task_name(c), origin, report=lambda s: None, **origin); task = make_task(c, start=state); t = fit(task, run); report = examine(task, t, run.dataset); bundle = save(run, task, report)
    assert bundle.parent.name == f"v5_11-{recipe}" and report.paths == ("A", "B") and set(report.diagnostics["encoders"]["A"]) == {"all"}
    model = load(bundle); assert model.paths == ("A", "B") and all(np.array_equal(model.predict(path=p), report.reconstruction[f"predicted_{p}"]) for p in "AB")
    if recipe != "advanced":   # decoder A rests, and so does encoder A but for the recipe that trains it: what v5.5 could, this can
        assert torch.equal(model.net.decoder_A.decoder[0].weight, state["decoder_A.decoder.0.weight"]) and torch.equal(model.net.encoder_A.fc_mu.weight, state["encoder_A.fc_mu.weight"]) == (recipe != "max_hierarchy")


def test_a_hyperbolic_start_brings_its_head(runs_root):
    c = config(**FEW["direct"], runs_root=str(runs_root)); run = Run.open(c, task_name(c), {}, report=lambda s: None); task = make_task(c); t = fit(task, run); first = save(run, task, examine(task, t, run.dataset))
    more = config(start=first.name, runs_root=str(runs_root), ae_epochs=0, epochs=1, eval_every=1, measure_tree=False); more.check_data(); state, origin = started_from(more); task = make_task(more, start=state)
    assert "decoder_H" in task.taken and len(task.stages) == 1 and all(torch.equal(v, state[k]) for k, v in task.net.state_dict().items())
    t = fit(task); assert t.history[0]["loss/ce"] < 1.
    with pytest.raises(UsageError, match="holds a hyperbolic model"): dual_bundle.started_from(TrainTernaryV5_5.build(start=first.name, runs_root=str(runs_root)))


# ---- what a parameter does ----

def test_every_parameter_is_read_or_refused():
    "Each key of a recipe's presets is looked at by its training; every other one is refused when given."
    class Recording:
        def __init__(self, c): self.__dict__.update(c=c, seen=set())
        def __getattr__(self, k): self.seen.add(k); return getattr(self.c, k)
    machine = {"recipe", "preset", "start", "runs_root", "device", "threads", "strict", "progress", "checkpoint_seconds", "fresh"}
    for kind in ("direct", "tree", "pairs", "advanced"):
        c = config(**FEW[kind]); spy = Recording(c); task = make_task(spy); t = fit(task); examine(task, t)
        assert {k for k, v in c.model_dump().items() if v is not None} - machine - spy.seen == set(), kind
    for recipe in PRESETS:
        for k in {k for p in PRESETS.values() for k in p["full"]} - set(PRESETS[recipe]["full"]):
            value = next(p["full"][k] for p in PRESETS.values() if k in p["full"])
            with pytest.raises(UsageError, match=f"{k}=.*would do nothing in recipe='{recipe}'"): config(recipe=recipe, **{k: value})


def test_what_measures_samplers_refuses_a_model_without_a_prior(runs_root):
    "`geonb ternary evaluate` of a hyperbolic bundle: one sentence and exit 2."
    c = config(**FEW["direct"] | dict(ae_epochs=0, epochs=1), runs_root=str(runs_root)); run = Run.open(c, task_name(c), {}, report=lambda s: None); task = make_task(c); t = fit(task, run); bundle = save(run, task, examine(task, t, run.dataset))
    p = subprocess.run([BIN/"geonb", "ternary", "evaluate", str(bundle)], capture_output=True, text=True); assert p.returncode == 2 and "hyperbolic model" in p.stderr and len(p.stderr.strip().splitlines()) == 1
