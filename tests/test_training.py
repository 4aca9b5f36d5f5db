"`fit` is general: four miniature tasks survive kills, bad numbers, signals and damaged checkpoints, to the last bit."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import miniatures as mini
from warm import Warm, same
from geonb.core.callbacks import Callback, Guard, usual_callbacks
from geonb.core.errors import GeonbError
from geonb.core.executor import fit_population
from geonb.core.run import Workspace
from geonb.core.training import Stage, fit, task_state, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY = [*mini.TASKS, "population"]
HERE = Path(__file__).parent


class Trained(Warm):
    "The warm process that forks a child for every training."
    def __init__(self, folder): super().__init__(HERE/"miniatures.py", folder); self.wanted = {}
    def __call__(self, what, path, kill=None, **more): return super().__call__(kill, what=what, path=str(path), **more)
    def want(self, what):
        "The unbroken training, done once: its digest, and how many durable system calls it took."
        if what not in self.wanted:
            status, out = self(what, self.folder/what); assert status == 0; self.wanted[what] = out
        return self.wanted[what]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    t = Trained(tmp_path_factory.mktemp("trained")); yield t
    t.close()


def length(what, digest):
    "(steps, epochs) of the unbroken training; patience may end a stage early, so they are read off it."
    return (54, 9) if what == "population" else (digest["/counters/1"], digest["/counters/2"])



def moments(what, n, whole, seed):
    "n seeded kills: in an epoch, at its end (before or after its rows and its checkpoint), while files are written, at any time."
    r = random.Random(f"{what} {seed}"); (steps, epochs), calls = length(what, whole["digest"]), whole["calls"]
    kinds = [lambda: ["after_batch", r.randint(2, steps - 1)], lambda: ["after_epoch", r.randint(1, epochs - 1)], lambda: ["call", r.randint(calls//10, calls - 1)], lambda: ["time", r.uniform(.05, .3)]]
    return [(kinds[i % (3 if n <= 3 else 4)](), r.choice((55, 65, 95))) for i in range(n)]


def kill_and_continue(trained, tmp_path, what, n, seed, again=False):
    whole = trained.want(what)
    for i, (kill, order) in enumerate(moments(what, n, whole, seed)):
        path = tmp_path/f"{i}"; seconds = (0, 0, .05)[i//3 % 3]
        status, _ = trained(what, path, kill, order=order, seconds=seconds); assert status == -signal.SIGKILL or kill[0] == "time" or seconds, f"{kill} came too late"
        if again: trained(what, path, ["call", 40 + i], seconds=seconds)   # and once more, soon after it has continued
        status, out = trained(what, path, seconds=seconds); assert status == 0
        same(out["digest"], whole["digest"])


@pytest.mark.parametrize("what", EVERY)
def test_killed_anywhere_it_continues_bit_equal(trained, tmp_path, what): kill_and_continue(trained, tmp_path, what, 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", EVERY)
def test_killed_anywhere_and_again_it_continues_bit_equal(trained, tmp_path, what): kill_and_continue(trained, tmp_path, what, 20, 1, again=True)


def test_the_unbroken_runs_do_what_the_tests_rely_on(trained):
    "Patience ends the first stage early, the second runs whole; codes die and are reset; the controller moves the weights."
    t = fit(mini.Stages(), callbacks=usual_callbacks(mini.Stages()))
    names = [r["stage"] for r in t.history]; assert 2 < names.count("whole") < 12 and names[-3:] == ["head"]*3 and names.count("head") == 3
    assert not any(p.requires_grad for p in t.task.modules["trunk"].parameters()) and set(t.task.optimisers) == {"head"}
    frozen = [k for k in tensors_of(t.task) if k.startswith("trunk/")]; assert len(frozen) == 9   # 6 parameters, 3 batch statistics
    q = fit(mini.Quantiser(), callbacks=()).task; assert q.resets > 0 and int(q.modules["book"].used.sum()) == 30*16
    p = fit(mini.Pathways(), callbacks=()); assert p.task.weights["left"] != 1 and p.task.target["seen"] == 30
    assert all({"norm/left", "norm/right", "norm/control"} <= r.keys() for r in p.history) and p.history[-1]["weighted/agree"] == pytest.approx(p.history[-1]["loss/agree"])
    assert p.history[0]["weighted/agree"] == 0 < p.history[0]["loss/agree"]


def test_a_frozen_trunk_stays_as_it_was():
    "In the second stage neither its parameters nor its batch statistics move; in the first they do."
    seen = {}
    class Look(Callback):
        def after_epoch(self, t): seen[t.total_epoch] = mini.flat({k: v for k, v in tensors_of(t.task).items() if k.startswith("trunk/")})
    t = fit(mini.Stages(), callbacks=[Look(), *usual_callbacks(mini.Stages())]); first = len(t.history) - 3   # whole epochs
    assert seen[first] == seen[first + 1] == seen[first + 3] and all(seen[1][k] != seen[2][k] for k in seen[1])


def test_clipping_is_per_pathway():
    "After the clip the right pathway's gradient norm is at most 0.05, while the left one's may be ten times that."
    norms = []
    class Look(Callback):
        def after_backward(self, t): norms.append([float(torch.stack([p.grad.norm() for p in t.task.modules[k].parameters()]).norm()) for k in ("left", "right")])
    fit(mini.Pathways(), callbacks=[Look()]); left, right = np.array(norms).T
    assert right.max() <= .05 + 1e-6 and .05 < left.max() <= .5 + 1e-6


# ---- bad numbers ----

MAKE = {"pathways": mini.Pathways, "quantiser": mini.Quantiser, "stages": mini.Stages, "population": lambda: mini.Member(3)}
WIDTH = {"pathways": 6, "quantiser": 6, "stages": 5, "population": 6}   # steps of an epoch


class Watch(Callback):
    "Remembers the whole state before every step, and after every step that was refused or taken back compares."
    order = 99
    def __init__(self, guard): self.guard, self.before, self.undone, self.returned, self.skips, self.rollbacks = guard, {}, 0, 0, 0, 0
    def before_start(self, t): self.before[t.step] = mini.flat(task_state(t.task))
    def then(self, t, step): "The state before a step, but for the weight that the present epoch's schedule sets."; was = self.before[step]; return was | ({"/weights/agree": min(1., .25*t.epoch)} if "/weights/agree" in was else {})
    def before_step(self, t):
        now = mini.flat(task_state(t.task)); t.task.now = t.step
        if t.rollbacks > self.rollbacks: assert now == self.then(t, self.taken); self.rollbacks += 1; self.returned += 1   # taken back when a snapshot was due
        self.before.setdefault(t.step, now); self.taken = self.guard.taken
    def after_batch(self, t):
        now = mini.flat(task_state(t.task))
        if t.rollbacks > self.rollbacks: assert now == self.then(t, self.guard.taken); self.returned += 1
        elif t.skips > self.skips:
            keep = lambda s: {k: v for k, v in s.items() if not k.startswith("/random")}   # dropout has drawn; everything else is as it was
            assert keep(now) == keep(self.before[t.step - 1]); self.undone += 1
        self.skips, self.rollbacks = t.skips, t.rollbacks


class Now(Callback):
    def before_step(self, t): t.task.now = t.step


class Spoil(Callback):
    "Puts a NaN into a parameter behind the optimiser's step, or into an optimiser's state behind the batch."
    def __init__(self, kind, at): self.at, self.order = at, 5; setattr(self, {"parameter": "after_step", "optimiser": "after_batch"}[kind], getattr(self, kind))
    def parameter(self, t):
        if t.step in self.at: next(p for p in optimised(t)).data.view(-1)[0] = float("nan")
    def optimiser(self, t):
        if t.step - 1 in self.at:
            s = next(iter(t.task.optimisers.values())).state[next(optimised(t))]; s.get("exp_avg", s.get("momentum_buffer")).view(-1)[0] = float("nan")


def optimised(t): return iter(next(iter(t.task.optimisers.values())).param_groups[0]["params"])


def spoiled(task, what, kind, at, monkeypatch):
    "The extra callbacks, if any, that put a NaN of this kind into the steps `at`."
    task.now = -1; nan = float("nan"); width = WIDTH[what]
    if kind == "input":
        clean = mini.Clouds.batch
        def batch(self, epoch, i):
            b = clean(self, epoch, i)
            if epoch*width + i in at: b["x"][0, 0] = nan
            return b
        monkeypatch.setattr(mini.Clouds, "batch", batch)
    elif kind == "term":
        loss = task.loss
        def bad(batches): out = loss(batches); k = next(iter(out)); out[k] = out[k]*(nan if task.now in at else 1); return out
        task.loss = bad
    elif kind == "gradient":
        p = list(task.modules.values())[0][0].weight; p.register_hook(lambda g: g*nan if task.now in at else None)
    return [Spoil(kind, at)] if kind in ("parameter", "optimiser") else []


def guarded(task, extra, run=None, every=7):
    calls = usual_callbacks(task, run); guard = next(c for c in calls if isinstance(c, Guard)); guard.every = every; watch = Watch(guard)
    return calls + [watch, *extra], watch


@pytest.mark.parametrize("kind", ["input", "gradient", "term", "parameter", "optimiser"])
@pytest.mark.parametrize("what", EVERY)
def test_one_nan_is_survived_and_everything_put_back(what, kind, monkeypatch):
    task = MAKE[what](); calls, watch = guarded(task, spoiled(task, what, kind, {9}, monkeypatch)); t = fit(task, callbacks=calls)
    if kind in ("parameter", "optimiser"): assert (t.skips, t.rollbacks, watch.returned) == (0, 1, 1)
    else: assert (t.skips, t.rollbacks, watch.undone) == (1, 0, 1)
    assert all(bool(torch.isfinite(v).all()) for v in tensors_of(task).values() if v.is_floating_point())
    assert t.history[-1]["skips"] == t.skips and t.history[-1]["rollbacks"] == t.rollbacks and np.isfinite(t.history[-1]["loss/total"])


@pytest.mark.parametrize("what", EVERY)
def test_three_in_a_row_roll_back(what, monkeypatch):
    task = MAKE[what](); calls, watch = guarded(task, spoiled(task, what, "input", {9, 10, 11}, monkeypatch)); t = fit(task, callbacks=calls)
    assert (t.skips, t.rollbacks, watch.undone, watch.returned) == (3, 1, 2, 1)


@pytest.mark.parametrize("what", EVERY)
def test_moments_that_went_bad_are_seen_before_they_are_kept(what, monkeypatch):
    "The NaN arrives in the optimiser just before a snapshot is due: the snapshot before it is kept, not one with the NaN in it."
    task = MAKE[what](); calls, watch = guarded(task, spoiled(task, what, "optimiser", {13}, monkeypatch), every=7); t = fit(task, callbacks=calls)
    assert (t.skips, t.rollbacks, watch.returned) == (0, 1, 1) and all(np.isfinite(r["loss/total"]) for r in t.history)


@pytest.mark.parametrize("kind", ["term", "parameter"])
@pytest.mark.parametrize("what", EVERY)
def test_a_lasting_nan_ends_the_run_and_says_where(what, kind, monkeypatch, tmp_path):
    task = MAKE[what]()
    if what == "population": task.stages = (Stage("train", 5),)
    calls, watch = guarded(task, spoiled(task, what, kind, set(range(4, 999)), monkeypatch), Workspace(tmp_path))
    with pytest.raises(GeonbError, match="diverged") as e: fit(task, Workspace(tmp_path), calls)
    told = json.loads((tmp_path/"diagnostics.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    skips, step = (18, 4 + 17) if kind == "term" else (0, 4 + 5)   # six rollbacks: of three steps each, or of one
    assert e.value.exit_code == 1 and "\n" not in str(e.value) and told["step"] == step and watch.skips in (skips, skips - 1)
    assert "nan" in (told["terms"] if kind == "term" else told["largest"]).values()


def test_a_bad_first_batch_does_not_start_the_codebook(monkeypatch):
    "The start waits for the first batch that counts, also when three bad ones roll back."
    for bad in ({0}, {0, 1, 2}):
        with monkeypatch.context() as m:
            task = mini.Quantiser(); extra = spoiled(task, "quantiser", "input", bad, m); t = fit(task, callbacks=usual_callbacks(task) + extra)
        assert t.skips == len(bad) and bool(torch.isfinite(task.modules["book"].codes).all()) and np.isfinite(t.history[0]["loss/total"])


def test_nan_and_kill_together(trained, tmp_path, monkeypatch):
    "A guard that has skipped and rolled back continues after a stop as if there had been none."
    def run(path, stop=None):
        with monkeypatch.context() as m:
            task = mini.Quantiser(); ws = Workspace(path); extra = spoiled(task, "quantiser", "term", {8, 14, 15, 16}, m); calls, watch = guarded(task, extra, ws)
            next(c for c in calls if type(c).__name__ == "Saver").seconds = 0
            class Stop(Callback):
                order = 999
                def after_batch(self, t):
                    if t.step == stop: raise InterruptedError
            calls[calls.index(watch)] = Now()   # a continued run has not seen the state before the stop
            return fit(task, ws, [*calls, Stop()])
    whole = run(tmp_path/"whole"); assert (whole.skips, whole.rollbacks) == (4, 1)
    for stop in (9, 16, 17, 18):
        with pytest.raises(InterruptedError): run(tmp_path/f"{stop}", stop)
        same(mini.digest(run(tmp_path/f"{stop}")), mini.digest(whole))


# ---- evaluation, stages ----

@pytest.mark.parametrize("what", EVERY)
def test_evaluating_more_often_changes_nothing(what):
    "Evaluations between the steps, which draw from torch's stream, leave the training equal to the last bit."
    plain = MAKE[what](); a = fit(plain, callbacks=usual_callbacks(plain)); task = MAKE[what](); evaluate = task.evaluate   # making it seeds torch
    def drawing(): torch.rand(7); torch.nn.functional.dropout(torch.ones(5)); return evaluate()
    task.evaluate = drawing
    class Often(Callback):
        def after_batch(self, t): t.evaluated()
        def after_epoch(self, t): t.evaluated()
    b = fit(task, callbacks=usual_callbacks(task) + [Often()])
    drop = lambda d: {k: v for k, v in d.items() if not k.startswith("/callbacks/Often")}
    same(drop(mini.digest(b)), mini.digest(a))


def test_after_training_modules_are_in_eval_mode_also_when_nothing_was_left_to_train(tmp_path):
    for _ in range(2):
        t = fit(mini.Member(3), Workspace(tmp_path)); assert not any(m.training for m in t.task.modules["net"].modules())


def test_a_new_stage_has_the_whole_patience():
    class Two(mini.Member):
        stages, patience, ema_decay = (Stage("a", 9), Stage("b", 9)), 2, 0.0
        def evaluate(self): self.asked = getattr(self, "asked", 0) + 1; return {"val/accuracy": {1: 1.0}.get(self.asked, 0.0)}   # never better than the first
    t = fit(two := Two(3), callbacks=usual_callbacks(two)); assert [r["stage"] for r in t.history] == ["a"]*3 + ["b"]*2


# ---- signals, damage, disk ----

@pytest.mark.parametrize("name,code", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("what", ["pathways", "quantiser", "stages"])
def test_a_signal_stops_in_order(trained, tmp_path, what, name, code):
    status, out = trained(what, tmp_path/"run", [name, 17], seconds=99)
    assert status == 0 and (out["error"], out["code"]) == ("Interrupted", code) and "\n" not in out["message"] and "step 17" in out["message"]
    assert [n for n, _ in Workspace(tmp_path/"run").checkpoints.numbered()] == [17]
    same(trained(what, tmp_path/"run", seconds=99)[1]["digest"], trained.want(what)["digest"])


def test_a_second_interrupt_stops_at_once(trained, tmp_path):
    status, out = trained("pathways", tmp_path/"run", ["twice", 17], seconds=99); assert status == 0 and out["error"] == "KeyboardInterrupt"
    assert Workspace(tmp_path/"run").checkpoints.numbered() == []
    same(trained("pathways", tmp_path/"run")[1]["digest"], trained.want("pathways")["digest"])


def flip(folder): f = folder/"state.safetensors"; b = bytearray(f.read_bytes()); b[len(b)//2] ^= 1; f.write_bytes(b)
def truncate(folder): f = folder/"state.safetensors"; os.truncate(f, f.stat().st_size//2)
def empty(folder): shutil.rmtree(folder); folder.mkdir()
def textless(folder): (folder/"state.json").unlink()
def unsummed(folder): (folder/"SHA256SUMS").write_bytes(b"\xff\x00")


@pytest.mark.parametrize("harm", [flip, truncate, empty, textless, unsummed])
def test_a_damaged_checkpoint_falls_back(trained, tmp_path, harm):
    assert trained("quantiser", tmp_path/"run", ["after_batch", 20])[0] == -9
    (newest, folder), (before, _) = Workspace(tmp_path/"run").checkpoints.numbered(); assert (newest, before) == (20, 19)
    harm(folder); kept = Workspace(tmp_path/"run").checkpoints; assert kept.latest()["trainer"]["step"] == 19 and len(kept.damaged) == 1 and "000000020" in kept.damaged[0]
    same(trained("quantiser", tmp_path/"run")[1]["digest"], trained.want("quantiser")["digest"])


def test_with_every_checkpoint_damaged_it_begins_anew(trained, tmp_path):
    trained("stages", tmp_path/"run", ["after_batch", 20])
    for _, folder in Workspace(tmp_path/"run").checkpoints.numbered(): flip(folder)
    same(trained("stages", tmp_path/"run")[1]["digest"], trained.want("stages")["digest"])


def test_a_full_disk_is_said_and_the_checkpoint_before_it_is_whole(trained, tmp_path):
    "The operating system refuses every file that grows beyond a kilobyte, from the 14th step on."
    status, out = trained("pathways", tmp_path/"run", ["full", 14])
    assert status == 0 and out["error"] == "GeonbError" and out["code"] == 1 and "checkpoint of step 14" in out["message"] and "\n" not in out["message"] and "large" in out["message"]
    kept = Workspace(tmp_path/"run").checkpoints; assert kept.latest()["trainer"]["step"] == 13 and kept.damaged == [] and [n for n, _ in kept.numbered()] == [13, 12]
    assert [p.name for p in (tmp_path/"run"/"checkpoints").iterdir() if p.name.startswith(".")] == []   # no half file is left
    same(trained("pathways", tmp_path/"run")[1]["digest"], trained.want("pathways")["digest"])


@pytest.mark.parametrize("number,words", [(28, "No space left"), (30, "Read-only file system")])
def test_a_folder_that_takes_nothing_is_said(tmp_path, monkeypatch, number, words):
    import tempfile
    real = tempfile.mkdtemp; left = [3]
    def refuse(*a, **k):
        left[0] -= 1
        if left[0] < 0: raise OSError(number, os.strerror(number))
        return real(*a, **k)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(GeonbError, match=words) as e: fit(mini.Member(3), Workspace(tmp_path), checkpoint_seconds=0)
    assert "step 4" in str(e.value) and Workspace(tmp_path).checkpoints.latest()["trainer"]["step"] == 3


# ---- TensorBoard ----

def scalars(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    a = EventAccumulator(str(path/"tensorboard"), size_guidance={"scalars": 0}); a.Reload()
    return {k: [(e.step, e.value) for e in a.Scalars(k)] for k in a.Tags()["scalars"]}


def test_tensorboard_has_every_epoch_once_also_after_a_kill(trained, tmp_path):
    "Killed behind the rows of epoch 3 and before its checkpoint: epoch 3 is written again, and read once."
    path = tmp_path/"run"; assert trained("pathways", path, ["after_epoch", 3], order=65, seconds=0)[0] == -9
    assert [s for s, _ in scalars(path)["val/error"]] == [1, 2, 3]
    time.sleep(1.1); assert trained("pathways", path)[0] == 0   # event files are ordered by their second
    rows = json.loads((path/"history.json").read_text()); found = scalars(path); assert [r["epoch"] for r in rows] == [1, 2, 3, 4, 5]
    for k in ("loss/left", "norm/right", "val/error", "ema/val/error", "lr/left", "skips"):
        assert found[k] == [(r["epoch"], float(np.float32(r[k]))) for r in rows]


# ---- populations ----

def population(path, make=mini.Member, **kw): ws = Workspace(path); return mini.population_digest(fit_population(make, mini.MEMBERS, ws, checkpoint_seconds=0, **kw), path)


def test_a_member_is_the_same_alone(trained, tmp_path):
    t = fit(mini.Member(4), Workspace(tmp_path), checkpoint_seconds=0); kept = Workspace(tmp_path).checkpoints.latest()
    kept["trainer"]["history"] = mini.timeless(kept["trainer"]["history"]); del kept["trainer"]["seconds"]
    alone = mini.flat({"row": {"member": 4, "history": mini.timeless(t.history), "step": t.step, "skips": 0, "rollbacks": 0}, "kept": kept})
    same(alone, {k.removeprefix("/4"): v for k, v in trained.want("population")["digest"].items() if k.startswith("/4/")})


def test_processes_equal_serial(trained, tmp_path): same(population(tmp_path, executor="processes", workers=2), trained.want("population")["digest"])


def test_dask_equals_serial(trained, tmp_path):
    pytest.importorskip("distributed", reason="Dask is an optional extra: pip install 'geonb[dask]'")
    same(population(tmp_path, executor="dask", workers=2), trained.want("population")["digest"])


PARENT = "import sys; sys.path.insert(0, {here!r})\nif __name__ == '__main__':\n import miniatures as m\n from geonb.core.run import Workspace\n from geonb.core.executor import fit_population\n fit_population(m.Sleepy, m.MEMBERS, Workspace({path!r}), 'processes', workers=2, checkpoint_seconds=0)\n"


def killed_half_way(tmp_path):
    "A population on two worker processes whose parent is killed when both have begun; -> its workers."
    import psutil
    script = tmp_path/"parent.py"; script.write_text(PARENT.format(here=str(HERE), path=str(tmp_path/"run")))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL); until = time.monotonic() + 60
    while not all(list((tmp_path/"run"/"members"/f"{m}"/"checkpoints").glob("0*")) for m in mini.MEMBERS[:2]):
        assert time.monotonic() < until and parent.poll() is None; time.sleep(.05)
    workers = psutil.Process(parent.pid).children(recursive=True); parent.kill(); parent.wait(); return workers


def test_a_killed_population_continues(trained, tmp_path):
    import psutil
    for w in killed_half_way(tmp_path):
        try: w.kill(); w.wait(5)
        except psutil.NoSuchProcess: pass
    done = [len(list((tmp_path/"run"/"members").glob(f"{m}/checkpoints/0*18"))) for m in mini.MEMBERS]; assert 0 in done
    same(population(tmp_path/"run", executor="processes", workers=2), trained.want("population")["digest"])


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path):
    "Else a second call would train the same members beside the orphans of the first."
    import psutil
    workers = killed_half_way(tmp_path); _, alive = psutil.wait_procs(workers, timeout=2)
    alive = [w for w in alive if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]   # ended, and not yet collected by this machine's first process
    for w in alive: w.kill()
    assert alive == []
