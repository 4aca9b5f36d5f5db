"A data set of operators is the same to the last bit wherever it is computed, in whatever portions, and whatever is killed on the way."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import geonb.operators.generation as generation
from geonb.app.runs import differences
from geonb.core.errors import GeonbError
from geonb.core.executor import finished
from geonb.core.run import Run
from geonb.operators.cost import pilot_rows
from geonb.operators.generation_bundle import make_dataset, save
from geonb.operators.generation_config import GenerateOperators
from geonb.operators.generation_report import report_of
from geonb.operators.plan import Plan, played
from geonb.operators.shard_files import read_shards, write_shard
from geonb.operators.store import TIMING, Store, data_sets, merge
from geonb.operators.theta import theta_columns
from geonb.operators.validation import validate

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(total_samples=24, timesteps=8, realizations=2, executor="serial", progress="none", seed=7)
needs_dask = lambda: pytest.importorskip("distributed", reason="Dask is an optional extra: pip install 'geonb[dask]'")


def opened(tmp, **given):
    "A run of the small set in a root of its own."
    config = GenerateOperators.build(**SMALL | given | dict(runs_root=str(tmp))); config.check_data()
    return config, Run.open(config, f"{config.profile}-{config.total_samples}", {}, lambda *_: None)


def made(tmp, report=lambda *_: None, **given): return generation.generate(*opened(tmp, **given), report)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    "The small set, done in one process."
    return made(tmp_path_factory.mktemp("serial"))


def same(store, serial):
    assert store.digests.keys() == serial.store.digests.keys() and {p for p, d in store.digests.items() if d != serial.store.digests[p]} <= {TIMING}
    assert store.sha256 == serial.store.sha256 and store.path.read_bytes() != serial.store.path.read_bytes()   # the moment differs, so these are two files


# ---- where and in which portions ----

@pytest.mark.parametrize("size", [1, 7, 64])
def test_shard_sizes(size, serial, tmp_path):
    "Portions of 1, 7 and 64 samples and twins, in an order that has nothing to do with their numbers."
    plan = serial.plan; items = np.random.default_rng(size).permutation(generation.missing(plan, tmp_path))
    for lo in range(0, len(items), size):
        some = np.sort(items[lo:lo + size]); write_shard(tmp_path/"shards", generation.simulate_extract(some[some < plan.samples], plan, some[some >= plan.samples] - plan.samples), plan.hash)
    assert len(read_shards(tmp_path/"shards", plan.hash)) == -(-len(items) // size)
    same(merge(tmp_path/"shards", tmp_path/"set.h5", plan), serial)


def test_the_file_is_in_order(serial): assert validate(serial.store.path, samples=2) == []


def test_two_processes(serial, tmp_path): same(made(tmp_path, executor="processes", workers=2, shard_seconds=.05).store, serial)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_processes(workers, serial, tmp_path): same(made(tmp_path, executor="processes", workers=workers, shard_seconds=.2).store, serial)


def test_dask_processes(serial, tmp_path):
    needs_dask(); same(made(tmp_path, executor="dask", workers=2, shard_seconds=.05).store, serial)


@pytest.mark.slow
def test_the_default_set_everywhere(tmp_path):
    "64 samples of the default sizes, five ways."
    needs_dask(); full = dict(total_samples=64, timesteps=None, realizations=None); want = made(tmp_path/"a", **full)
    for i, given in enumerate((dict(shard_seconds=1e-6), dict(executor="processes", workers=4), dict(executor="processes", workers=2, shard_seconds=.5), dict(executor="dask", workers=2))): same(made(tmp_path/f"{i}", **full, **given).store, want)


def test_two_bundles_are_compared_data_set_by_data_set(tmp_path):
    a, b, c = (make_dataset(GenerateOperators.build(**SMALL | dict(total_samples=9, runs_root=str(tmp_path/n)) | more), lambda *_: None) for n, more in (("a", {}), ("b", dict(shard_seconds=1e-6)), ("c", dict(seed=8))))
    assert differences(a, b) == [] and [d for d in differences(a, c) if d.startswith("dataset.h5: features/")] and [d for d in differences(a, c) if d.startswith("history.json: predicted_tflop differs in block")]


# ---- a scheduler and workers that were started as commands ----

@pytest.fixture
def cluster(tmp_path):
    "(address, list of worker processes): `dask scheduler` and two `dask worker`."
    needs_dask(); told, begun = tmp_path/"scheduler.json", []
    def start(*words): begun.append(subprocess.Popen([sys.executable, "-m", "dask", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(generation.__file__).parents[2])})); return begun[-1]
    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)); until = time.monotonic() + 60
    while not told.exists() or not told.read_text().rstrip().endswith("}"): assert time.monotonic() < until and begun[0].poll() is None; time.sleep(.05)
    address = json.loads(told.read_text())["address"]; assert address.startswith("tcp://127.0.0.1:")
    workers = [start("worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)) for _ in range(2)]
    yield address, workers
    for p in begun: p.kill(); p.wait()


def after(number, act, monkeypatch):
    "Do something when so many shards have been written; -> a list that is not empty when it was done."
    write, seen = generation.write_shard, []
    def counted(*a):
        out = write(*a); seen.append(out)
        if len(seen) == number: act()
        return out
    monkeypatch.setattr(generation, "write_shard", counted); return seen


def test_a_scheduler_by_its_address_and_a_worker_killed(cluster, serial, tmp_path, monkeypatch):
    "One of two workers is killed while shards are in both of them: the other one does its work too."
    address, workers = cluster; seen = after(10, workers[0].kill, monkeypatch)
    store = made(tmp_path/"runs", executor="dask", scheduler=address, shard_seconds=1e-6).store
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None and len(seen) == 26; same(store, serial)


# ---- workers that die ----

def commanded(p):
    "The command line of a process; none of one that ended since it was listed."
    try: return " ".join(p.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess): return ""


def pool_workers(): return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in commanded(p)]


def test_a_killed_worker_changes_nothing(serial, tmp_path, monkeypatch):
    "Killed while shards are in flight: the pool is built anew, and what was lost is done again."
    before, killed = {p.pid for p in pool_workers()}, []
    def kill(): p = next(p for p in pool_workers() if p.pid not in before); killed.append(p.pid); p.kill()
    after(10, kill, monkeypatch); store = made(tmp_path, executor="processes", workers=2, shard_seconds=1e-6).store
    assert len(killed) == 1 and not psutil.pid_exists(killed[0]); same(store, serial)
    names = [r["name"] for r in map(json.loads, (next(tmp_path.glob("operators/*/*.partial"))/"shards"/"shards.jsonl").read_text().splitlines())]; assert len(names) == len(set(names)) == 26   # nothing was written twice


def test_a_piece_that_kills_every_worker_is_given_up():
    with pytest.raises(GeonbError, match="worker processes died 2 times at piece 0 of 1"): list(finished(os._exit, [1], "processes", workers=1, attempts=2))


# ---- the writer dies ----

BEGIN = """
import sys
from geonb.core.run import Run
from geonb.operators.generation import generate
from geonb.operators.generation_config import GenerateOperators
if __name__ == "__main__":
    config = GenerateOperators.build(**{given!r}); generate(config, Run.open(config, "ci-24", {{}}))
"""


@pytest.mark.parametrize("executor", ["serial", pytest.param("processes", marks=pytest.mark.slow)])
def test_killed_as_a_whole_it_continues_with_what_is_missing(executor, serial, tmp_path):
    "kill -9 in the middle; the next call keeps every finished shard as it is, whatever its portions and workers, and ends with the same bits."
    given = SMALL | dict(runs_root=str(tmp_path/"runs"), executor=executor, workers=2, shard_seconds=1e-6); (tmp_path/"begin.py").write_text(BEGIN.format(given=given))
    p = subprocess.Popen([sys.executable, tmp_path/"begin.py"], stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(Path(generation.__file__).parents[2])}); until = time.monotonic() + 120
    there = lambda: sorted((tmp_path/"runs").glob("operators/ci-24/*.partial/shards/shard-*.h5"))
    while len(there()) < 11: assert p.poll() is None and time.monotonic() < until; time.sleep(.002)
    workers = psutil.Process(p.pid).children(recursive=True); p.kill(); p.wait(); psutil.wait_procs(workers, 20); assert not [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]   # no worker outlives it
    kept = {f: f.stat().st_mtime_ns for f in there()}; assert 11 <= len(kept) < 26
    config, run = opened(tmp_path/"runs", shard_seconds=.1); assert run.resumed; again = generation.generate(config, run); same(again.store, serial)
    assert {f: f.stat().st_mtime_ns for f in kept} == kept; bundle = save(run, config, report_of(again)); same(Store(bundle/"dataset.h5"), serial)
    assert not list(bundle.parent.glob("*.partial"))


def test_a_stop_is_one_sentence_that_says_how_far_it_came(serial, tmp_path, monkeypatch):
    after(12, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch); config, run = opened(tmp_path, shard_seconds=1e-6)
    with pytest.raises(GeonbError, match=r"stopped at \d+ of 24 samples; the same command continues") as e: generation.generate(config, run)
    assert e.value.exit_code == 143; run.lock.release(); same(made(tmp_path).store, serial)


# ---- a budget ----

def test_a_budget_lowers_the_number_of_samples_and_nothing_else(tmp_path, monkeypatch):
    "The number is printed, and a run that is taken up again keeps it without another pilot."
    said = []; given = dict(total_samples=5000, budget_minutes=.04); config, run = opened(tmp_path, **given)
    monkeypatch.setattr(generation, "complete", lambda *a: (_ for _ in ()).throw(KeyError("enough")))
    with pytest.raises(KeyError): generation.generate(config, run, said.append)
    plan, cost = generation.settled(run); line, = [s for s in said if "budget" in s]; assert f"pays for {plan.samples:,} samples" in line and "lowered from 5,000" in line
    seconds = cost.seconds(plan) * 1.1; assert 1 <= plan.samples < 500 and .5 * 60 * .04 - 1.5 < seconds.sum() < 60 * .04 and (plan.sizes.timesteps, plan.sizes.grid, len(plan.twin_ids)) == (8, 16, round(plan.samples / 10))
    monkeypatch.undo(); run.lock.release(); monkeypatch.setattr(generation, "pilot", None); config, run = opened(tmp_path, **given); said.clear(); again = generation.generate(config, run, said.append)
    assert again.store.samples == plan.samples and said == [] and again.store.path.parent == run.partial
    want = made(tmp_path/"other", total_samples=plan.samples) if monkeypatch.undo() is None else None; np.testing.assert_array_equal(again.store.features("summary"), want.store.features("summary"))   # the first samples of the design, as if no more had been asked for


# ---- what leaves a worker ----

PEAK = """
import resource, sys, pickle
from geonb.operators.generation import simulate_extract
from geonb.operators.cost import pilot_rows
from geonb.operators.plan import Plan, planned_columns
plan = Plan(samples=400, grid=64, timesteps=64, realizations=2, families="initial"); cheap = sorted(pilot_rows(planned_columns(plan)["metadata/predicted_flop"], 400)[:{n}].tolist()); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
simulate_extract(cheap[:1], plan); one = peak(); more = simulate_extract(cheap, plan); print(one, peak(), len(pickle.dumps(more)) / 2**20)
"""


def test_memory_of_a_worker_is_bounded():
    "Six rollouts of 6.3 MB each in one shard need no more memory than one."
    n, frames = 6, 2 * 64 * 3 * 64 * 64 * 4 / 2**20; p = subprocess.run([sys.executable, "-c", PEAK.format(n=n)], capture_output=True, text=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(Path(generation.__file__).parents[2])}); assert p.returncode == 0, p.stderr[-1000:]
    one, many, sent = map(float, p.stdout.split()); assert many - one < 1.5 * frames < n * frames / 3, (one, many); assert sent < n * .1 and sent < frames / 8


def test_no_array_of_a_shard_holds_a_trajectory(serial):
    plan = serial.plan; arrays = generation.simulate_extract([0, 1], plan, [plan.twin_ids[0]]).arrays; sets = data_sets(plan); s = plan.sizes
    assert {p: a.shape[1:] for p, a in arrays.items()} == {p: sets[p].shape[1:] for p in arrays} and not [p for p, a in arrays.items() if a.shape[1:] == (s.realizations, s.timesteps, 3, s.grid, s.grid)]


# ---- what is not finite ----

def test_a_rollout_that_is_not_finite_keeps_its_place(tmp_path, monkeypatch):
    play = generation.played
    def spoilt(plan, sample, twin=False, device="cpu"):
        r = play(plan, sample, twin, device)
        if sample != 5: return r
        bad = r.frames.clone(); bad[0, 3:] = np.inf; return type(r)(bad, 1, r.weight_seed, r.field)
    monkeypatch.setattr(generation, "played", spoilt); config, run = opened(tmp_path); got = generation.generate(config, run); store = got.store
    assert np.flatnonzero(~store.ok).tolist() == [5] and np.isnan(store.features("summary", [5])).all() and np.isnan(store.features("temporal", [5])).all() and np.isfinite(store.features("initial")).all()
    assert np.isnan(store.features("summary", store.ok)).sum() == 30 * 23 and np.isfinite(store.features("temporal", store.ok)).all() and generation.generate(config, run).store.sha256 == store.sha256
    assert validate(store.path, samples=0) == []


# ---- costs ----

def spearman_of_costs(plan, n=30, times=3):
    "Predicted operations and the least processor seconds of several rollouts, of operators all over the design."
    from scipy.stats import spearmanr
    c = theta_columns(plan.points, plan.space); flop = plan.sizes.flop(c["num_layers"], c["base_channels"], c["kernel_size"]); rows = pilot_rows(flop, n); took = []
    for i in rows:
        def once(): begun = time.thread_time(); played(plan, int(i)); return time.thread_time() - begun
        took.append(min(once() for _ in range(times)))
    return spearmanr(flop[rows], took).statistic


@pytest.mark.slow
def test_predicted_operations_order_the_seconds(): assert spearman_of_costs(Plan("cpu30", samples=300, realizations=3, timesteps=32), times=2) > .95


def test_predicted_operations_order_the_seconds_of_a_few(): assert spearman_of_costs(Plan("cpu30", samples=300, realizations=1, timesteps=8), 8) > .8
