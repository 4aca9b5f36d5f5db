"Sweeps: what is checked first, what a failure or a kill leaves, what is repeated; with the notebook's run replaced by a quick one, and once for real."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from geonb.app import execute
from geonb.app.sweep import cell_rows, cell_text, read_axis, sweep
from geonb.core.atomic import read_json
from geonb.core.errors import DataMissing, GeonbError, Interrupted, UsageError
from geonb.core.sweep import Ledger, plan_runs
from geonb.pentachora.config import TrainPentachora

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def quick(monkeypatch, tmp_path):
    "Runs that take no time: (numbers that were called, what shall go wrong {lr: error})."
    calls, wrong = [], {}
    def run(notebook, params, **kw):
        calls.append((params["lr"], params["seed"]))
        if e := wrong.get(params["lr"]): raise e
        folder = tmp_path/"bundles"/f"{params['lr']}-{params['seed']}"; folder.mkdir(parents=True, exist_ok=True)
        return dict(run_id=folder.name, path=str(folder), headline={"test accuracy": params["lr"] + params["seed"] / 100}, trained=True, problems=[])
    monkeypatch.setattr(execute, "run", run); monkeypatch.setattr("geonb.app.sweep.verify_bundle", lambda p: []); return calls, wrong


AXES = dict([read_axis("lr=0.1,0.2,0.3", TrainPentachora)])


def go(seeds=(0, 1), axes=AXES, **fixed): return sweep("train_pentachora", axes, seeds, fixed, "serial")


def test_every_cell_under_every_seed_and_nothing_twice(quick, runs_root):
    done = go(); assert quick[0] == [(lr, s) for lr in (.1, .2, .3) for s in (0, 1)] and done["repeated"] == 0 and Path(done["path"]).parent == runs_root/"sweeps"
    again = go(); assert len(quick[0]) == 6 and again["repeated"] == 6 and [r["headline"] for r in again["rows"]] == [r["headline"] for r in done["rows"]]
    cells = cell_rows(again["rows"]); assert [c["n"] for c in cells] == [2, 2, 2] and cells[1]["difference"] == pytest.approx(.1)


def test_a_failing_run_is_a_row_and_is_tried_again(quick, runs_root):
    calls, wrong = quick; wrong[.2] = GeonbError("no room"); done = go()
    assert [r["status"] for r in done["rows"]] == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2 and done["rows"][2]["error"] == "no room"
    wrong[.2] = ValueError("boom\nboom"); calls.clear(); done = go(); assert calls == [(.2, 0), (.2, 1)] and done["rows"][3]["error"] == "unexpected ValueError: boom boom"
    assert "(2 failed)" in cell_text(cell_rows(done["rows"]))
    wrong.clear(); calls.clear(); assert {r["status"] for r in go()["rows"]} == {"finished"} and len(calls) == 2


def test_a_stop_keeps_what_has_run(quick, runs_root):
    calls, wrong = quick; stop = Interrupted("stopped"); stop.exit_code = 130; wrong[.3] = stop
    with pytest.raises(Interrupted): go()
    wrong.clear(); calls.clear(); assert go()["repeated"] == 4 and calls == [(.3, 0), (.3, 1)]


def test_a_bundle_that_is_gone_or_harmed_is_made_again(quick, runs_root, monkeypatch, tmp_path):
    go(); calls = quick[0]; calls.clear(); (tmp_path/"bundles"/"0.1-1").rmdir(); monkeypatch.setattr("geonb.app.sweep.verify_bundle", lambda p: ["harmed"] if p.name == "0.3-0" else [])
    assert go()["repeated"] == 4 and calls == [(.1, 1), (.3, 0)]


@pytest.mark.parametrize("kw, kind, word", [(dict(axes=dict([read_axis("lr=0.1,7", TrainPentachora)])), UsageError, "lr=7"), (dict(dataset="nowhere"), GeonbError, "nowhere"), (dict(dataset="mnist"), DataMissing, "mnist"), (dict(epochz=3), UsageError, "did you mean 'epochs'"), (dict(lr=.1), UsageError, "set by -p and by --grid")], ids=str)
def test_all_is_checked_before_the_first_run(quick, runs_root, monkeypatch, tmp_path, kw, kind, word):
    monkeypatch.setenv("GEONB_DATA", str(tmp_path/"none")); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"none")); monkeypatch.setenv("GEONB_OFFLINE", "1")
    with pytest.raises(kind, match=word): go(**kw)
    assert quick[0] == [] and not (runs_root/"sweeps").exists()


def test_two_sweeps_of_one_plan_do_not_write_at_once(quick, runs_root):
    from geonb.core.atomic import WriterLock
    done = go(); lock = WriterLock(Path(done["path"])/".lock").acquire()
    try:
        with pytest.raises(GeonbError, match="this sweep is being written by another process"): go()
    finally: lock.release()


# --- the command

def test_the_command(quick, runs_root, cli):
    code, out, err = cli("sweep", "train_pentachora", "--grid", "lr=0.1,0.2", "--seeds", "0:2", "-p", "epochs", "1", "--executor", "serial", "--json"); said = json.loads(out)
    assert code == 0 and said["cells"][1]["difference"] == pytest.approx(.1) and "[4/4] lr=0.2 seed=1: test accuracy 0.2100" in err
    assert {f.name for f in Path(said["path"]).iterdir()} >= {"plan.json", "runs.jsonl", *said["files"]} and read_json(Path(said["path"])/"table.json")["cells"] == said["cells"]
    quick[1][.2] = GeonbError("no room"); code, out, err = cli("sweep", "train_pentachora", "--grid", "lr=0.1,0.2", "--seeds", "0:3", "--executor", "serial"); assert code == 1 and "3 of 6 runs failed; the first: no room" in err and "(3 failed)" in out
    code, out, err = cli("sweep", "train_pentachora", "--grid", "lr=0.1,0.2", "--seeds", "0:3", "--check"); assert code == 0 and out.startswith("ok train_pentachora: 6 runs, 2 cells of 3 seeds")


@pytest.mark.parametrize("args, word", [(["--grid", "lr"], "name=value"), (["--grid", "lr=0.1", "--grid", "lr=0.2"], "given twice"), (["--seeds", "x"], "--seeds 'x'"), (["--grid", "lrr=1"], "did you mean 'lr'"), (["-p", "seed", "3"], "-p seed"),
                                        (["--scheduler", "tcp://h:1"], "--executor processes"), (["--executor", "threads"], "executor='threads'"), (["--metric", "tset accuracy", "--executor", "serial", "-p", "lr", "0.1"], "did you mean")], ids=str)
def test_wrong_words_are_one_sentence(quick, runs_root, cli, args, word):
    code, out, err = cli("sweep", "train_pentachora", *args); assert code == 2 and word in err and "Traceback" not in err and len(err.strip().splitlines()) == (1 if "--metric" not in args else len(err.strip().splitlines()))


# --- for real

def begin(root, *more, **kw):
    return subprocess.Popen([sys.executable, "-c", "from geonb.app.cli import main; main()", "sweep", "train_pentachora", "--grid", "model=constellation,linear", "--seeds", "0:2", "-p", "epochs", "1", "-p", "limit", "300", "--workers", "2", *more],
                            env=os.environ | {"GEONB_RUNS": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)


@pytest.mark.slow
def test_killed_it_goes_on_and_repeats_no_finished_run(runs_root):
    p = begin(runs_root); lines = next((runs_root/"sweeps").glob("*/runs.jsonl"), None) if (runs_root/"sweeps").is_dir() else None; until = time.monotonic() + 300
    while not (lines := next(iter((runs_root/"sweeps").glob("*/runs.jsonl")), None) if (runs_root/"sweeps").is_dir() else None): assert p.poll() is None and time.monotonic() < until; time.sleep(.05)
    os.killpg(p.pid, signal.SIGKILL); p.wait(); p.stdout.close(); p.stderr.close(); kept = lines.read_bytes(); done = {Path(json.loads(l)["path"]): Path(json.loads(l)["path"], "manifest.json").stat().st_mtime_ns for l in kept.splitlines()}; assert 1 <= len(done) < 4
    q = begin(runs_root, "--json"); out, err = q.communicate(timeout=500); said = json.loads(out); assert q.returncode == 0 and said["repeated"] == len(done) and len(said["rows"]) == 4 and f"{len(done)} of 4 runs are there already" in err
    assert {p: Path(p, "manifest.json").stat().st_mtime_ns for p in done} == done and lines.read_bytes().startswith(kept) and len({r["run_id"] for r in said["rows"]}) == 4
    rows = {(r["cell"]["model"], r["seed"]): r["headline"] for r in said["rows"]}; alone = execute.run("train_pentachora", {"model": "linear", "seed": 1, "epochs": 1, "limit": 300, "runs_root": str(runs_root/"alone")}, env={"OMP_NUM_THREADS": "1"})
    assert alone["headline"] == rows["linear", 1]   # what a run gives does not depend on its company
