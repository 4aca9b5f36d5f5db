"Every run notebook keeps its promises: whole bundles, one sentence for what is wrong, the same result however often it was killed."
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import conformance as suite
import warm
from conformance import ROWS, digest, papermill, parameters
from geonb.app.cli import command
from geonb.app.load import load
from geonb.core.atomic import check_sums, read_json, write_sums
from geonb.core.bundles import list_runs, verify_bundle
from geonb.core.errors import CheckFailed, GeonbError
from geonb.core.run import read_history_csv

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Path(__file__).parent


def trained(test):
    "A test of what only a training has: weights, losses, epochs, a champion."
    test.trained = True; return test


def pytest_generate_tests(metafunc):
    "Every test on every row it is about."
    rows = [r for r in ROWS.values() if r.trains or not hasattr(metafunc.function, "trained")]
    if "wrong" in metafunc.fixturenames: cases = [(r, w) for r in rows for w in r.wrong]; metafunc.parametrize("row,wrong", cases, ids=[f"{r.notebook}-{w}" for r, w in cases])
    elif "row" in metafunc.fixturenames: metafunc.parametrize("row", rows, ids=[r.notebook for r in rows])


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    "The unbroken quick run of a row, with a checkpoint at every step: (bundle, what was learnt, digest)."
    done = {}
    def of(row):
        if row.notebook not in done:
            root = tmp_path_factory.mktemp("whole"); status, out = cells(row=row.notebook, root=str(root), given={"checkpoint_seconds": 0.0}, figures=True); assert status == 0 and "error" not in out, out
            done[row.notebook] = Path(out["path"]), out, digest(row, Path(out["path"]))
            assert (out["steps"], len(read_json(Path(out["path"])/"history.json"))) == (row.steps, row.epochs)
        return done[row.notebook]
    return of


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    "The default run by plain papermill, called from a folder that is not the checkout: (bundle, output, folder)."
    done = {}
    def of(row):
        if row.notebook not in done:
            cwd, root = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("root"); p = papermill(row, cwd, root=root); said = p.communicate()[0]; assert p.returncode == 0, said[-2000:]
            done[row.notebook] = row.bundles(root), said, cwd
        return done[row.notebook]
    return of


@pytest.fixture
def copy(whole, row, tmp_path):
    "A copy of the whole bundle that may be harmed."
    return Path(shutil.copytree(whole(row)[0], tmp_path/row.laboratory/row.shelf/whole(row)[0].name))


def files_of(bundle): return sorted(f.relative_to(bundle).as_posix() for f in bundle.rglob("*") if f.is_file())


# ---- the default run ----

def test_default_run_leaves_one_whole_bundle(row, delivered):
    (bundle, *more), said, cwd = delivered(row); assert more == [] and f"bundle: {bundle}" in json.dumps(json.loads((cwd/"out.ipynb").read_text()))
    for pattern in (*suite.EVERY, *(suite.TRAINED if row.trains else ()), *row.files): assert list(bundle.glob(pattern)), f"no {pattern}"
    assert verify_bundle(bundle) == [] and [p.name for p in cwd.iterdir()] == ["out.ipynb"]
    assert list(bundle.parent.glob("*.partial")) == [] and [p.name for p in bundle.parent.glob(".*")] == [".locks"]   # nothing half is left


@trained
def test_champion_is_a_verified_copy(row, delivered):
    bundle = delivered(row)[0][0]; best = bundle.parent/"best"; b = read_json(best/"best.json")
    assert b.keys() == {"run_id", "metric", "value", "n_seeds", "sha256"} and b["run_id"] == bundle.name and verify_bundle(best) == []
    assert set(files_of(best)) == {*files_of(bundle), "best.json"} and b["value"] == max(v for r in read_json(bundle/"history.json") for k, v in r.items() if k in (b["metric"], "ema/" + b["metric"]))


def test_csv_holds_what_json_holds(row, delivered):
    bundle = delivered(row)[0][0]; assert read_history_csv((bundle/"history.csv").read_text()) == read_json(bundle/"history.json") != []


@trained
def test_tensorboard_read_back_is_the_history(row, delivered):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    bundle = delivered(row)[0][0]; a = EventAccumulator(str(bundle/"tensorboard"), size_guidance={"scalars": 0}); a.Reload(); rows = read_json(bundle/"history.json")
    found = {k: {e.step: e.value for e in a.Scalars(k)} for k in a.Tags()["scalars"]}
    want = {k: {r["epoch"]: float(np.float32(r[k])) for r in rows if k in r} for k in rows[-1] if isinstance(rows[-1][k], (int, float)) and k != "epoch"}
    assert found == want and len(found) > 5


def test_bundle_tells_nothing_about_this_machine(row, delivered):
    "No host name, no user, no folder of this machine; neither in texts, nor in names, nor in TensorBoard's files."
    import getpass, socket
    bundle, _, cwd = delivered(row)[0][0], *delivered(row)[1:]; private = [str(suite.ROOT), str(cwd), str(bundle.parent.parent), str(Path.home()), sys.prefix, "/tmp/", "/home/"]
    host = re.compile(rf"(?<![\w/-]){re.escape(socket.gethostname())}(?![\w/-])")
    for f in files_of(bundle):
        assert not host.search(f) and not (len(getpass.getuser()) > 3 and getpass.getuser() in f)
        if not f.startswith("plots/") and not f.endswith((".npz", ".zip", ".safetensors")):
            raw = (bundle/f).read_bytes(); text = raw.decode("utf-8", "replace"); assert [p for p in private if len(p) > 1 and p in text] == [], f
            if "tfevents" in f or f.endswith(".h5"): text = "\n".join(r.decode() for r in re.findall(rb"[\x20-\x7e]{12,}", raw))   # packed floats spell short words such as "vm" by chance; a name stands in a string
            assert not host.search(text), f


def test_card_runs_as_written(row, delivered):
    bundle = delivered(row)[0][0]; code = suite.snippets((bundle/"README.md").read_text()); assert "geonb.load" in code
    p = subprocess.run([sys.executable, "-c", code], cwd=bundle, capture_output=True, text=True); assert p.returncode == 0, p.stderr[-2000:]
    assert verify_bundle(bundle) == []   # and it has left nothing there


def test_loaded_in_a_new_process_it_says_what_was_stored(row, delivered, tmp_path):
    bundle = delivered(row)[0][0]; p = subprocess.run([sys.executable, "-c", row.reproduce, str(bundle)], cwd=tmp_path, capture_output=True, text=True); assert p.returncode == 0, p.stderr[-2000:]
    difference, n = json.loads(p.stdout.splitlines()[-1]); assert difference <= 1e-5 and n == len(next(iter(suite.arrays(bundle/row.predictions).values())))


# ---- wrong parameters ----

def test_what_is_wrong_is_one_sentence_and_leaves_nothing(row, wrong, tmp_path, record_property):
    name, value, words = row.wrong[wrong]; root, nothing = tmp_path/"root", tmp_path/"nothing"; root.mkdir(); nothing.mkdir(); begun = time.monotonic()
    p = papermill(row, tmp_path, name, value, root=root, env={"GEONB_OFFLINE": "1", "GEONB_DATA": str(nothing), "XDG_CACHE_HOME": str(nothing)}); said = p.communicate()[0]; record_property("seconds", round(time.monotonic() - begun, 1))
    last = said.strip().splitlines()[-1]; assert p.returncode == 1 and last.startswith(words[0]) and all(w in last for w in words), said[-1500:]
    assert list(root.iterdir()) == list(nothing.rglob("*.npz")) == [] and "Error" not in said.rsplit("Exception encountered", 1)[1].replace(last, "")   # no stack of calls either


# ---- kill -9 and the same command again ----

def moments(row, out, n, seed):
    "n seeded kills: inside an epoch; while a checkpoint is written; while the bundle is written; at its end; at any time."
    r = random.Random(f"{row.notebook} {seed}"); last = out.get("crown", out["calls"])
    kinds = [lambda: (["after_batch", r.randint(2, row.steps - 1)], r.choice((0.0, .2))), lambda: (["call", r.randint(20, out["finish"] - 1)], 0.0), lambda: (["call", r.randint(out["finish"] + 1, last)], 0.0),
             lambda: (["after_epoch", r.randint(1, row.epochs)], r.choice((0.0, .2, 99.0))), lambda: (["time", r.uniform(.2, out["cpu"])], r.choice((0.0, .2))), lambda: (["call", r.randint(last, out["calls"])], 0.0)]
    return [kinds[i % (3 if n <= 3 else len(kinds))]() for i in range(n)]


def kill_and_continue(row, cells, whole, tmp_path, n, seed):
    bundle, out, want = whole(row)
    for i, (kill, seconds) in enumerate(moments(row, out, n, seed)):
        root = tmp_path/f"{i}"; root.mkdir(); given = {"checkpoint_seconds": seconds}; status, _ = cells(kill, row=row.notebook, root=str(root), given=given, order=random.Random(i).choice((55, 65, 95)))
        assert status == -signal.SIGKILL or kill[0] == "time", f"{kill} came too late"
        assert all(r["status"] in ("interrupted", "finished") for r in list_runs(root))
        status, again = cells(row=row.notebook, root=str(root), given=given); assert status == 0 and "error" not in again, again
        found = row.bundles(root); assert [p.name for p in found] == [bundle.name], kill
        assert verify_bundle(found[0]) == [] and (not row.trains or verify_bundle(found[0].parent/"best") == []) and [p.name for p in found[0].parent.glob(".*")] == [".locks"], kill
        warm.same(digest(row, found[0]), want)


def test_killed_it_continues_bit_equal(row, cells, whole, tmp_path): kill_and_continue(row, cells, whole, tmp_path, 3, 0)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_continues_bit_equal(row, cells, whole, tmp_path): kill_and_continue(row, cells, whole, tmp_path, 20, 1)


def test_papermill_and_kernel_killed(row, whole, tmp_path):
    "The real thing: kernel and papermill die while checkpoints are written; the list knows; the same command ends with the same bits as a run in one process."
    root = tmp_path/"root"; root.mkdir(); more = parameters(row, checkpoint_seconds=0.0); p = papermill(row, tmp_path, *more, root=root); until = time.monotonic() + 120; folder = row.folder(root)
    while not list(folder.glob(f"*.partial/{row.underway}")):
        assert p.poll() is None and time.monotonic() < until, p.stdout.read()[-2000:]
        time.sleep(.005)
    assert [r["status"] for r in list_runs(root)] == ["running"]
    kernel = psutil.Process(p.pid).children(recursive=True); assert kernel
    for k in [*kernel, psutil.Process(p.pid)]: k.kill()
    p.wait(); psutil.wait_procs(kernel, 20); assert [r["status"] for r in list_runs(root)] == ["interrupted"]
    p = papermill(row, tmp_path, *more, root=root); said = p.communicate()[0]; assert p.returncode == 0 and "it continues" in (tmp_path/"out.ipynb").read_text(), said[-2000:]
    found, = row.bundles(root); assert found.name == whole(row)[0].name; warm.same(digest(row, found), whole(row)[2])


# ---- two writers, the list ----

def until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there(): assert time.monotonic() < end; time.sleep(.01)


def listed(root, capsys, monkeypatch):
    "What `geonb runs list --json` says."
    monkeypatch.setenv("GEONB_RUNS", str(root)); capsys.readouterr(); assert command(["runs", "list", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_writers_and_what_the_list_says(row, cells, whole, tmp_path, capsys, monkeypatch):
    "The second is told the first one's process number; the first is unharmed; the lock of a killed one is free."
    bundle, _, want = whole(row); command_ = dict(row=row.notebook, root=str(tmp_path), given={"checkpoint_seconds": 0.0})
    first = cells.start(**command_, hold=5); until(lambda: Path(f"{first.file}.held").exists())
    line, = listed(tmp_path, capsys, monkeypatch); assert (line["status"], line["run_id"]) == ("running", bundle.name)
    status, second = cells(**command_); assert status == 0 and second["error"] == "GeonbError" and "\n" not in second["message"] and f"(pid {first.pid})" in second["message"]
    assert command(["runs", "rm", bundle.name, "--yes"]) == 1   # nor is it taken away from under it
    first.kill(); first.wait()
    line, = listed(tmp_path, capsys, monkeypatch); assert (line["status"], line["metrics"]) == ("interrupted", {})
    third = cells.start(**command_, hold=5); until(lambda: Path(f"{third.file}.held").exists())
    assert "error" in cells(**command_)[1]; Path(f"{third.file}.go").touch(); status, out = third.wait(); assert status == 0 and "error" not in out, out
    line, = listed(tmp_path, capsys, monkeypatch); assert line["status"] == "finished" and line["metrics"]
    warm.same(digest(row, row.bundles(tmp_path)[0]), want)


def test_a_killed_writers_half_bundle_is_no_run(row, cells, whole, tmp_path, capsys, monkeypatch):
    "Dead just before the bundle gets its name, when every file of it is there: interrupted, not finished; and the half is swept away by the next call."
    bundle, out, _ = whole(row); status, _ = cells(["call", out["sums"] + 6], row=row.notebook, root=str(tmp_path), given={"checkpoint_seconds": 0.0}); assert status == -signal.SIGKILL
    half, = row.folder(tmp_path).glob(f".{bundle.name}.*"); assert (half/"SHA256SUMS").exists() and check_sums(half) == []
    line, = listed(tmp_path, capsys, monkeypatch); assert (line["run_id"], line["status"]) == (bundle.name, "interrupted")
    status, again = cells(row=row.notebook, root=str(tmp_path), given={"checkpoint_seconds": 0.0}); assert (again["steps"], Path(again["path"]).name) == (0, bundle.name) and not half.exists()


# ---- bad numbers ----

@trained
@pytest.mark.parametrize("kind", ["input", "gradient", "loss", "parameter"])
def test_one_nan_is_survived(row, cells, tmp_path, kind):
    at = row.steps//row.trainings - 3; status, out = cells(row=row.notebook, root=str(tmp_path), spoil=[kind, [at]]); assert status == 0 and "error" not in out, out
    bundle, = row.bundles(tmp_path); last = read_json(bundle/"history.json")[-1]; counters = read_json(bundle/"manifest.json")["counters"]
    assert (last["skips"], last["rollbacks"]) == (counters["skips"], counters["rollbacks"]) == ((0, row.trainings) if kind == "parameter" else (row.trainings, 0))
    assert verify_bundle(bundle) == [] and np.isfinite(last["loss/total"])   # `verify` refuses weights that are not finite
    assert all(np.isfinite(a).all() for a in suite.arrays(bundle/row.predictions).values() if a.dtype.kind == "f")


@trained
def test_a_lasting_nan_ends_in_one_sentence(row, cells, tmp_path):
    status, out = cells(row=row.notebook, root=str(tmp_path), spoil=["loss", list(range(4, 999))]); assert (status, out["error"], out["code"]) == (0, "GeonbError", 1)
    assert "diverged" in out["message"] and "\n" not in out["message"] and row.bundles(tmp_path) == [p for p in row.folder(tmp_path).glob("*.partial")]
    told = read_json(next(row.folder(tmp_path).glob("*.partial"))/"diagnostics.json"); assert "nan" in told["terms"].values() and told["step"] > 4
    assert [r["status"] for r in list_runs(tmp_path)] == ["interrupted"]


# ---- damage ----

def refused(bundle, name, capsys):
    "`verify` ends with 3 and `load` raises, both naming the file."
    capsys.readouterr(); code = command(["runs", "verify", str(bundle)]); told = capsys.readouterr(); assert code == 3 and name in told.out + told.err, (name, told)
    with pytest.raises(CheckFailed) as e: load(bundle)
    assert name in str(e.value) and "\n" not in str(e.value)


def test_one_flipped_bit_in_any_file_is_refused(row, copy, capsys):
    r = random.Random(0)
    for f in files_of(copy):
        sound = (copy/f).read_bytes(); harmed = bytearray(sound); at = r.randrange(len(sound)); harmed[at] ^= 1 << r.randrange(8); (copy/f).write_bytes(harmed)
        refused(copy, "" if f == "SHA256SUMS" else f, capsys); (copy/f).write_bytes(sound)
    assert verify_bundle(copy) == []


@pytest.mark.parametrize("harm", ["truncated", "emptied", "removed", "swapped", "added", "linked"])
def test_truncated_missing_swapped_and_foreign_files_are_refused(row, copy, harm, capsys, tmp_path):
    a, b = [*sorted(copy.rglob("*.safetensors")), *sorted(copy.glob("*.npz")), *sorted(copy.glob("*.h5"))][:2]; name = a.relative_to(copy).as_posix(); sound = a.read_bytes()
    if harm == "truncated": a.write_bytes(sound[:-1])
    elif harm == "emptied": a.write_bytes(b"")
    elif harm == "removed": a.unlink()
    elif harm == "swapped": a.write_bytes(b.read_bytes()); b.write_bytes(sound); name = min(name, b.relative_to(copy).as_posix())   # the first of the two is named
    elif harm == "added": more = a.with_name(f"more{a.suffix}"); name = more.relative_to(copy).as_posix(); more.write_bytes(sound)
    elif harm == "linked": a.unlink(); (tmp_path/"outside").write_bytes(sound); a.symlink_to(tmp_path/"outside"); name = a.name
    refused(copy, name, capsys)


def test_files_of_another_run_are_refused_although_their_sums_were_made_to_fit(row, cells, copy, tmp_path, capsys):
    status, out = cells(row=row.notebook, root=str(tmp_path/"."), given={"seed": 5, "checkpoint_seconds": 99.0}); assert status == 0; other = Path(out["path"])
    name = [*sorted(copy.rglob("*.safetensors")), *sorted(copy.glob("*.h5"))][0].relative_to(copy).as_posix()
    for f in (name, "config.json"):
        sound = (copy/f).read_bytes(); shutil.copy(other/f, copy/f); write_sums(copy); refused(copy, f, capsys); (copy/f).write_bytes(sound); write_sums(copy)
    assert verify_bundle(copy) == []


# ---- again, fresh, identity ----

def test_a_second_call_trains_nothing_and_fresh_begins_anew(row, cells, whole, tmp_path):
    bundle, _, want = whole(row); root = bundle.parent.parent.parent; files = {f: (bundle/f).stat().st_mtime_ns for f in files_of(bundle)}
    status, out = cells(row=row.notebook, root=str(root)); assert status == 0 and (out["steps"], out["path"]) == (0, str(bundle)) and "nothing is trained" in out["said"]
    assert files == {f: (bundle/f).stat().st_mtime_ns for f in files_of(bundle)} and row.bundles(root) == [bundle]
    shutil.copytree(root, tmp_path/"root"); status, out = cells(row=row.notebook, root=str(tmp_path/"root"), given={"fresh": True}); assert status == 0 and out["steps"] == row.steps
    assert Path(out["path"]).name == bundle.name.replace("-r1", "-r2"); warm.same(digest(row, Path(out["path"])), want)


def test_a_second_call_shows_a_damaged_bundle_to_nobody(row, cells, copy, tmp_path):
    f = next(iter((*copy.rglob("*.safetensors"), *copy.glob("*.h5")))); f.write_bytes(f.read_bytes()[:-1])
    status, out = cells(row=row.notebook, root=str(tmp_path)); assert out["error"] == "CheckFailed" and f.name in out["message"] and "fresh=true" in out["message"]


def run_id(row, tmp_path, cells, **given):
    "The name a run would get; it is killed after its first step."
    root = tmp_path/f"{len(list(tmp_path.iterdir()))}"; root.mkdir(); cells(["after_batch", 1], row=row.notebook, root=str(root), given=given, order=95)
    return next(row.folder(Path(given.get("runs_root", root))).glob("*-r1.partial")).name.removesuffix(".partial")


def test_what_makes_a_run_another_run(row, cells, whole, tmp_path):
    name = whole(row)[0].name; elsewhere = tmp_path/"x"; elsewhere.mkdir()
    assert run_id(row, tmp_path, cells, progress="lines", checkpoint_seconds=7.5, runs_root=str(elsewhere)) == name
    others = {k: run_id(row, tmp_path, cells, **{k: v}) for k, v in row.other.items()}; assert len({name, *others.values()}) == len(others) + 1, others


@trained
def test_how_it_is_watched_and_evaluated_changes_no_weight(row, cells, whole, tmp_path):
    "Other checkpoints, printed lines, and evaluation in batches of 100."
    bundle, _, want = whole(row); status, out = cells(row=row.notebook, root=str(tmp_path), given={"progress": "lines", "checkpoint_seconds": 99.0}, eval_batch=100); assert status == 0 and row.says in out["said"]
    warm.same(warm.flat(suite.weights(Path(out["path"]))), warm.flat(suite.weights(bundle)), 40)
    assert read_json(Path(out["path"])/"manifest.json")["chosen"]["epoch"] == read_json(bundle/"manifest.json")["chosen"]["epoch"]


# ---- the champion ----

@trained
def test_champion_changes_only_for_a_better_one_and_in_one_step(row, cells, whole, tmp_path):
    "Killed at every moment of the replacement: the old one or the new one, each whole."
    bundle = whole(row)[0]; metric, value, mode = read_json(bundle/"manifest.json")["champion"]; better = {"max": 1, "min": -1}[mode]*.01
    def shelf(n): to = tmp_path/n/"lab"/"set"; to.mkdir(parents=True); [shutil.copytree(bundle, to/f"{bundle.name[:-1]}{i}") for i in (1, 2)]; return to
    to = shelf("whole"); a, b = sorted(to.iterdir()); crown = lambda x, v, kill=None: cells(kill, root=str(tmp_path), crown=[str(x), metric, v, mode])
    assert "error" not in crown(a, value)[1]; before = {f: (to/"best"/f).read_bytes() for f in files_of(to/"best")}
    for v in (value, value - better): crown(b, v); assert {f: (to/"best"/f).read_bytes() for f in files_of(to/"best")} == before
    shutil.copytree(to, tmp_path/"old"/"lab"/"set"); _, out = crown(b, value + better); assert read_json(to/"best"/"best.json")["run_id"] == b.name and verify_bundle(to/"best") == []
    seen = set()
    for n in random.Random(0).sample(range(1, out["calls"] + 1), min(out["calls"], 12)):
        here = tmp_path/f"k{n}"/"lab"/"set"; shutil.copytree(tmp_path/"old"/"lab"/"set", here); assert crown(here/b.name, value + better, ["call", n])[0] == -signal.SIGKILL
        best = here/"best" if (here/"best").exists() else here/".best.old"; assert check_sums(best) == []; seen.add(read_json(best/"best.json")["run_id"])
        assert "error" not in crown(here/b.name, value + better)[1] and read_json(here/"best"/"best.json")["run_id"] == b.name and verify_bundle(here/"best") == []
    assert seen <= {a.name, b.name}


# ---- no room ----

@pytest.fixture
def small_disk(tmp_path):
    "A file system of a given size, where this user may mount one."
    mounted = []
    def of(kib):
        d = tmp_path/f"disk{len(mounted)}"; d.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "geonb", str(d)], capture_output=True).returncode: pytest.skip("this user may not mount a small file system")
        mounted.append(d); return d
    yield of
    for d in mounted: subprocess.run(["umount", "-l", str(d)], check=True)


def on_disk(folder): return sum(-(-f.stat().st_size//4096)*4 for f in folder.rglob("*") if f.is_file())   # KiB in whole pages


@pytest.mark.parametrize("moment,share", [("checkpoint", 0), pytest.param("checkpoint", .5, marks=pytest.mark.slow), ("bundle", .5), pytest.param("bundle", .1, marks=pytest.mark.slow), pytest.param("bundle", .6, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_with_room_it_continues(row, cells, whole, small_disk, tmp_path, moment, share):
    "The disk ends while a checkpoint is written, or while the bundle is: no half bundle, and afterwards the same result."
    bundle, out, want = whole(row); given = {"checkpoint_seconds": 99.0}; free = tmp_path/"free"; free.mkdir()
    assert cells(["finish", 1], row=row.notebook, root=str(free), given=given)[0] == -signal.SIGKILL
    partial = on_disk(free); new = on_disk(bundle) - on_disk(bundle/"plots") if row.trains else sum(-(-f.stat().st_size//4096)*4 for f in bundle.iterdir() if f.suffix != ".h5" and f.is_file())   # the figures are stand-ins of a few bytes here; a data set is only given a second name
    size = 24 + share*partial if moment == "checkpoint" else partial + share*new
    disk = small_disk(int(size)); status, out = cells(row=row.notebook, root=str(disk), given=given); assert (status, out.get("error"), out.get("code")) == (0, "GeonbError", 1), out
    assert "No space left" in out["message"] and "\n" not in out["message"] and (moment == "checkpoint" or "the bundle of run" in out["message"]) and [r["status"] for r in list_runs(disk)] in ([], ["interrupted"]), out
    assert [p.name for p in row.bundles(disk) if not p.name.endswith(".partial")] == []
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True); status, out = cells(row=row.notebook, root=str(disk), given=given); assert status == 0 and "error" not in out, out
    warm.same(digest(row, row.bundles(disk)[0]), want)


def test_a_root_that_cannot_be_written_is_one_sentence(row, cells, tmp_path):
    (tmp_path/"file").write_text("not a folder"); status, out = cells(row=row.notebook, root=str(tmp_path), given={"runs_root": str(tmp_path/"file"/"runs")})
    assert (status, out["error"], out["code"]) == (0, "GeonbError", 1) and "cannot write runs below" in out["message"] and "\n" not in out["message"] and out["steps"] == 0


def test_a_disk_that_is_read_only_is_one_sentence(row, cells, small_disk):
    disk = small_disk(1000); subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True); status, out = cells(row=row.notebook, root=str(disk))
    assert (status, out["error"], out["code"], out["steps"]) == (0, "GeonbError", 1, 0) and "Read-only file system" in out["message"] and "\n" not in out["message"]
