"Training of the operator tokenizer: what a new process says, what a killed run leaves, which rows are looked at, every quantiser with every preset."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import geonb
from geonb.core.atomic import read_json, sha256
from geonb.core.bundles import verify_bundle
from geonb.core.callbacks import Callback, usual_callbacks
from geonb.core.errors import UsageError
from geonb.core.run import Run
from geonb.core.training import Stage, Task, fit, tensors_of
from geonb.operators import OperatorTokenizer, Store, TokenizerTask, TrainOperatorVQVAE, make_dataset, prepare
from geonb.operators.generation_config import GenerateOperators
from geonb.operators.plan import played
from geonb.operators.tokenizer_bundle import opened, save, started_from, task_name
from geonb.operators.tokenizer_report import examine
from geonb.operators.tokenizer_task import Patience, Prepared, Rows

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dict(epochs=4, val_every=2, batch=32, codes=8, bootstraps=0, progress="none", checkpoint_seconds=0.0)


def silent(*_): pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "64 small operators."
    return make_dataset(GenerateOperators.build(total_samples=64, timesteps=8, realizations=2, executor="serial", progress="none", device="cpu", runs_root=str(tmp_path_factory.mktemp("data"))), report=silent)/"dataset.h5"


def run_of(data, root, callbacks=(), **given):
    "What the run notebook does, without its pictures: (bundle, task, report)."
    c = TrainOperatorVQVAE.build(**QUICK | dict(dataset=str(data), runs_root=str(root)) | given); c.check_data(); torch.manual_seed(c.seed)
    store, name = opened(c); run = Run.open(c, task_name(name), {"dataset": store.sha256}, report=silent); task = TokenizerTask(c, prepare(c, store), run.device); task.callbacks = [*task.callbacks, *callbacks]
    try: t = fit(task, run)
    except RuntimeError: run.lock.release(); raise
    report = examine(task, t, run.dataset, name); return save(run, task, report), task, report


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory): return run_of(data, tmp_path_factory.mktemp("root"))


# ---- the bundle ----

def test_a_new_process_says_the_same_tokens_and_decodes_to_the_forward_pass(bundle, data, tmp_path):
    path, task, report = bundle; held = report.tokens["test"]; code = f"""
import json, numpy as np, torch, geonb
from geonb.operators import Store
tokenizer = geonb.load({str(path)!r}); store = Store({str(data)!r}); kept = np.load({str(path/'tokens.npz')!r}); torch.set_num_threads(1)
tokens = tokenizer.tokens(store); rows = np.array({held.tolist()}); x = tokenizer.inputs.rows(store, tokenizer.model_config.needs, rows, ic=store.fields(rows))
with torch.no_grad(): forward = tokenizer.net(**x).reconstruction
print(json.dumps([bool((tokens == kept["tokens"]).all()), bool((tokenizer.tokens(store, twins=True) == kept["twin_tokens"]).all()), float((tokenizer.net.decode(torch.from_numpy(tokens[rows])) - forward).abs().max()), forward.tolist()]))
"""
    p = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True); assert p.returncode == 0, p.stderr[-2000:]
    same, twins, difference, forward = json.loads(p.stdout.splitlines()[-1]); assert same and twins and difference <= 1e-5
    assert np.abs(np.array(forward) - report.latents["reconstruction"][report.latents["part"] == 0]).max() <= 1e-5


def test_loaded_by_geonb_it_speaks_about_arrays_stores_and_single_rollouts(bundle, data):
    path, task, report = bundle; assert verify_bundle(path) == []; tokenizer, store = geonb.load(path), Store(data); assert isinstance(tokenizer, OperatorTokenizer)
    rows = report.tokens["val"]; features = {f: store.features(f, rows) for f in tokenizer.inputs.families}
    assert (tokenizer.tokens(features, store.fields(rows)) == report.tokens["tokens"][rows]).all() and (tokenizer.tokens(store, rows=rows[::-1]) == report.tokens["tokens"][rows[::-1]]).all()
    assert (tokenizer.tokens_of(played(store.plan, int(rows[0]))) == report.tokens["tokens"][rows[0]]).all()
    table = tokenizer.decode(report.tokens["tokens"][rows]); assert table.names == tokenizer.inputs.names and np.isfinite(table.values).all()
    words = tokenizer.vocabulary(); assert [(w["category"], w["level"], w["codes"]) for w in words] == [(b.category, b.level, b.codes) for b in tokenizer.model_config.books] and sorted(n for w in words if w["level"] == 0 for n in w["features"]) == sorted(table.names)
    with pytest.raises(UsageError, match="below the"): tokenizer.decode(np.full((1, len(words)), 99))


def test_report_leads_with_named_features_and_ends_with_the_published_figures(bundle):
    r = read_json(bundle[0]/"report.json"); assert list(r)[:3] == ["state", "headline", "reconstruction"] and list(r)[-1] == "published" and r["state"] == "finished"
    assert {"r2", "low", "high", "bits", "perplexity", "topo_e2e", "twins", "product_quantisation"} <= r["headline"].keys() and {"pearson", "low", "high"} <= r["headline"]["topo_e2e"].keys()
    assert {"mean", "product quantisation", "random codebook", "shuffled tokens", "ridge from theta", "k-means, K codes", "k-means, K^3 codes"} <= {n["name"] for n in r["nulls"]} and r["probes"].keys() == {"initial field", "update policy", "noise regime", "layers"}
    shuffled = next(n for n in r["nulls"] if n["name"] == "shuffled tokens"); assert shuffled["r2"] < r["headline"]["r2"]


# ---- killed and continued ----

class Dies(Callback):
    "Ends the training in the middle of an epoch, as a bug would."
    order = 99
    def __init__(self, step): self.step = step
    def after_batch(self, t):
        if t.step == self.step: raise RuntimeError("killed")


def test_history_and_report_lie_there_after_every_validation_and_the_rest_is_bit_equal(data, bundle, tmp_path):
    with pytest.raises(RuntimeError, match="killed"): run_of(data, tmp_path, [Dies(5)])   # two steps an epoch: in the third
    partial, = tmp_path.glob("operators/*/*.partial"); rows, live = read_json(partial/"history.json"), read_json(partial/"report.json")
    assert [r["epoch"] for r in rows] == [1, 2] and (live["state"], live["epoch"], live["best_epoch"]) == ("training", 2, 2) and live["validation"]["val/loss"] == rows[1]["val/loss"]
    again, task, _ = run_of(data, tmp_path); whole, other, _ = bundle; assert again.name == whole.name and not partial.exists()
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(task).values(), tensors_of(other).values()))
    timeless = lambda p: [{k: v for k, v in r.items() if k != "seconds"} for r in read_json(p/"history.json")]
    assert timeless(again) == timeless(whole) and read_json(again/"report.json") == read_json(whole/"report.json") and (again/"tokens.npz").read_bytes() == (whole/"tokens.npz").read_bytes()


# ---- when it stops ----

class Scripted(Task):
    "A task whose validation error is a script."
    def __init__(self, curve, val_every, patience, min_delta):
        super().__init__(); self.curve, self.val_every, self.now, self.stages = curve, val_every, 0, (Stage("train", len(curve)),)
        self.modules["m"] = torch.nn.Linear(1, 1); self.optimisers["o"] = torch.optim.SGD(self.modules["m"].parameters(), lr=0.); self.streams["train"] = Rows({"x": torch.zeros(2, 1)}, 2, 0); self.callbacks = [Patience("val/error", patience, min_delta)]
    def loss(self, batches): return {"nothing": self.modules["m"](batches["train"]["x"]).square().mean()}
    def on_epoch(self, t): self.now = t.total_epoch + 1
    def evaluate(self): return {"val/error": self.curve[self.now - 1]} if self.now % self.val_every == 0 else {}


@pytest.mark.parametrize("val_every,patience,stops", [(1, 10, 17), (5, 10, 20), (1, 12, 19), (5, 12, 25), (5, 0, 60), (1, 50, 57), (5, 55, 60)])
def test_patience_counts_epochs(val_every, patience, stops):
    "The error falls until epoch 7, then by less than counts as a gain."
    assert len(fit(Scripted([1/min(e, 7) - 1e-6*e for e in range(1, 61)], val_every, patience, 1e-4)).history) == stops


def test_patience_survives_a_restart(tmp_path):
    from geonb.core.run import Workspace
    curve = [1/min(e, 7) for e in range(1, 61)]; make = lambda: Scripted(curve, 1, 10, 1e-4); task = make()
    with pytest.raises(RuntimeError, match="killed"): fit(task, Workspace(tmp_path), [*usual_callbacks(task, Workspace(tmp_path), checkpoint_seconds=0.0), Dies(12)])
    assert len(fit(make(), Workspace(tmp_path), checkpoint_seconds=0.0).history) == 17


# ---- which rows, which keys ----

def test_test_rows_are_read_once_and_only_after_training(data, tmp_path, monkeypatch):
    seen, rows = [], Prepared.rows; trained = []
    def noted(self, which, twins=False):
        if not twins and np.isin(which, self.splits["test"]).any(): seen.append(("after" if trained else "before", sorted(np.intersect1d(which, self.splits["test"]))))
        return rows(self, which, twins)
    monkeypatch.setattr(Prepared, "rows", noted); c = TrainOperatorVQVAE.build(**QUICK | dict(dataset=str(data), epochs=2)); store = opened(c)[0]
    task = TokenizerTask(c, prepare(c, store)); t = fit(task); assert seen == []; trained.append(1); examine(task, t, "x")
    assert {when for when, _ in seen} == {"after"} and len(seen) == 2   # for the figures, and for tokens.npz, which holds every operator


@pytest.mark.parametrize("given,words", [(dict(epocs=3), "unknown parameter 'epocs'"), (dict(quantizer="lfq", decay=.9), "decay=0.9 would do nothing with quantizer='lfq'"), (dict(preset="baseline", mad_sigma=3.), "mad_sigma=3.0 would do nothing with preset='baseline'"),
                                         (dict(dataset="nothing-r1"), "no run or bundle 'nothing-r1'"), (dict(start="nothing-r1"), "no run or bundle 'nothing-r1'")])
def test_a_key_that_is_unknown_or_unread_writes_nothing(given, words, tmp_path):
    with pytest.raises(geonb.core.errors.GeonbError) as e: TrainOperatorVQVAE.build(runs_root=str(tmp_path/"runs"), **given).check_data()
    assert words in str(e.value) and "\n" not in str(e.value) and list(tmp_path.iterdir()) == []


def test_isolated_families_share_no_category(data):
    for isolated in ("initial", "initial,temporal"):
        c = TrainOperatorVQVAE.build(**QUICK | dict(dataset=str(data), isolated_families=isolated)); d = prepare(c, opened(c)[0]); kinds = [{d.inputs.preprocessor.families[i] for i in g} for g in d.model.categories]
        for f in isolated.split(","): assert {f} in kinds and all(k == {f} or f not in k for k in kinds)


# ---- from another tokenizer ----

def test_a_start_gives_weights_codebooks_and_columns_and_its_checksum_is_part_of_the_run(bundle, data, tmp_path):
    path, task, _ = bundle; frozen = dict(start=str(path), dataset=str(data), runs_root=str(tmp_path), epochs=1, val_every=1, batch=32, progress="none", fresh=True); store = Store(data)
    c = TrainOperatorVQVAE.build(**frozen); c.check_data(); tokenizer, origin = started_from(c); assert origin == {"start": sha256(path/"weights"/"model.safetensors")}
    d = prepare(c, store, tokenizer); begun = TokenizerTask(c, d, start=tokenizer); assert d.inputs.names == task.data.inputs.names and d.model.categories == task.data.model.categories
    before = {k: v.clone() for k, v in begun.net.state_dict().items()}; assert before.keys() == task.net.state_dict().keys() and all(torch.equal(v.cpu(), task.net.state_dict()[k].cpu()) for k, v in before.items())   # codebooks are buffers of it
    begun.on_start({}); assert all(torch.equal(v, before[k]) for k, v in begun.net.state_dict().items())   # no codebook is started anew
    fit(begun); assert any(not torch.equal(v, before[k]) for k, v in begun.net.state_dict().items())
    ids = [Run.open(c, "x", {"dataset": store.sha256, **o}, report=silent) for o in (origin, {"start": "0"*64})]; [r.lock.release() for r in ids]; assert ids[0].run_id != ids[1].run_id
    assert all(TrainOperatorVQVAE.build(start="x", quantizer=q).start == "x" for q in ("rvq", "fsq", "lfq", "simvq"))   # what a start brings is not asked for
    with pytest.raises(UsageError, match="codes=8 would do nothing with start="): TrainOperatorVQVAE.build(**frozen, codes=8)
    other = make_dataset(GenerateOperators.build(total_samples=12, timesteps=9, realizations=2, executor="serial", progress="none", device="cpu", runs_root=str(tmp_path)), report=silent)/"dataset.h5"
    with pytest.raises(UsageError, match="has 9 frames of 16×16 pixels, and the tokenizer to start from reads 8 of 16×16"): prepare(c, Store(other), tokenizer)


# ---- every kind ----

def every(test): return pytest.mark.parametrize("preset", ["sound", "baseline"])(pytest.mark.parametrize("quantizer", ["vq", "rvq", "fsq", "lfq", "simvq"])(test))
def given_for(quantizer, preset): return dict(quantizer=quantizer, preset=preset, epochs=3, val_every=1, codes=8) | (dict(embedding=32, hidden=48) if preset == "baseline" else {})


@every
def test_every_quantiser_trains_with_every_preset(quantizer, preset, data):
    c = TrainOperatorVQVAE.build(**QUICK | dict(dataset=str(data)) | given_for(quantizer, preset)); torch.manual_seed(0); task = TokenizerTask(c, prepare(c, opened(c)[0])); h = fit(task).history; x = task.data.part("val")
    assert h[-1]["loss/total"] < h[0]["loss/total"] and h[-1]["rollbacks"] == h[-1]["skips"] == 0 and all(np.isfinite(r["val/loss"]) for r in h)
    tokens = task.net.tokens(**x); assert tokens.shape == (len(x["x"]), len(task.net.config.books)) and len(tokens.unique()) > 1
    with torch.no_grad(): assert (task.net.decode(tokens) - task.net(**x).reconstruction).abs().max() <= 1e-5


@pytest.mark.slow
@every
def test_every_quantisers_bundle_speaks_after_loading(quantizer, preset, data, tmp_path):
    path, task, report = run_of(data, tmp_path, **given_for(quantizer, preset)); assert np.isfinite(report.report["headline"]["r2"])
    tokenizer = geonb.load(path); assert (tokenizer.tokens(Store(data)) == report.tokens["tokens"]).all() and tokenizer.model_config.quantizer == quantizer
