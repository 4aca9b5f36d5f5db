"The store of operators: what a kill leaves, what a flipped bit does, what is refused and how it is named, what plain h5py reads."
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from geonb.core.errors import CheckFailed
from geonb.operators import shard_files
from geonb.operators import store as store_module
from geonb.operators.extraction import extract_features
from geonb.operators.generation import simulate_extract
from geonb.operators.plan import Plan, described, planned_columns, played
from geonb.operators.registry import PATHS
from geonb.operators.shard_files import MANIFEST, ShardResult, append_line, read_shards, write_shard
from geonb.operators.store import Store, data_sets, merge, open_store, replay, seal_problem
from geonb.operators.validation import describe, validate

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = Plan(samples=70, root_seed=3, timesteps=8, twin_ids=tuple(range(0, 70, 9)))   # its shards are made up


def made_up(plan, ids, twin_ids=()): return _made_up(plan, tuple(ids), tuple(twin_ids))

@lru_cache(None)
def _made_up(plan, ids, twin_ids):
    "Rows of the right shapes that only depend on the sample's number."
    known = planned_columns(plan, [0]); sets = {p: d for p, d in data_sets(plan).items() if p not in known and p != "twins/ids"}
    def row(p, d, i): return np.zeros((), "u1") if p.endswith("status") else np.random.default_rng([i, len(p)]).standard_normal(d.shape[1:]).astype(d.dtype)
    a = {p: np.array([row(p, d, i) for i in (twin_ids if p.startswith("twins/") else ids)], d.dtype) for p, d in sets.items()}
    a = {p: x for p, x in a.items() if len(x)} | ({"twins/ids": np.array(twin_ids)} if len(twin_ids) else {})
    return ShardResult(np.array(ids, np.int64), a, 1., {"ok": len(ids), "non-finite": 0})


def holds(row, plan):
    "Whether a shard that is listed holds what was written."
    due = made_up(plan, row["ids"].tolist(), row["twin_ids"].tolist())
    with h5py.File(row["path"]) as f: return all(np.array_equal(f[p][()], x) for p, x in due.arrays.items())


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "The made-up set: (folder of its shards, its file)."
    folder = tmp_path_factory.mktemp("wide")
    for k in range(0, 70, 10): write_shard(folder/"shards", made_up(WIDE, range(k, k + 10), [i for i in WIDE.twin_ids if k <= i < k + 10]), WIDE.hash)
    return folder/"shards", merge(folder/"shards", folder/"wide.h5", WIDE)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A real set of 10 operators."
    folder = tmp_path_factory.mktemp("small"); plan = Plan(samples=10, root_seed=7, timesteps=10, twin_ids=(2, 5))
    write_shard(folder/"shards", simulate_extract(range(10), plan, plan.twin_ids), plan.hash)
    return merge(folder/"shards", folder/"small.h5", plan)


def in_a_child(work):
    "Fork, do some work, end without tidying up: (pid, what it announces)."
    out, inn = os.pipe(); pid = os.fork()
    if pid == 0:
        try: work(lambda text: os.write(inn, f"{text}\n".encode()))
        finally: os._exit(0)
    os.close(inn); return pid, out

def announced(out):
    with os.fdopen(out, "rb") as f: return f.read().decode().split("\n")[:-1]


# --- kills

def dying(work, file, line):
    "Do some work and die before the so-many-th line of a module is executed; whether it came so far."
    left = [line]
    def step(frame, event, arg):
        if frame.f_code.co_filename != file: return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
        return step
    pid = os.fork()
    if pid == 0:
        sys.settrace(step)
        try: work()
        finally: os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_writer_may_die_before_any_line(tmp_path):
    first, second = made_up(WIDE, [0, 5]), made_up(WIDE, [1, 2], [9])
    write_shard(tmp_path, first, WIDE.hash); base = {p.name: p.read_bytes() for p in tmp_path.iterdir()}; seen = set()
    for line in range(200):
        for p in tmp_path.iterdir(): p.unlink()
        for name, content in base.items(): (tmp_path/name).write_bytes(content)
        died = dying(lambda: write_shard(tmp_path, second, WIDE.hash), shard_files.__file__, line); found = read_shards(tmp_path, WIDE.hash)
        assert len(found) in (1, 2) and all(holds(r, WIDE) for r in found.values()) and [0, 5] in [r["ids"].tolist() for r in found.values()], line
        write_shard(tmp_path, second, WIDE.hash); assert len(read_shards(tmp_path, WIDE.hash)) == 2, line
        seen.add(len(found))
        if not died: break
    assert seen == {1, 2} and line > 20   # it died before and after the shard was finished


def test_a_writer_may_be_killed_at_any_moment(tmp_path):
    todo, rng, kept = [made_up(WIDE, [i, i + 1]) for i in range(0, 70, 2)], random.Random(0), set()
    started = time.perf_counter(); write_shard(tmp_path, todo[0], WIDE.hash); each = time.perf_counter() - started
    for _ in range(15):
        def work(tell):
            there = {int(r["ids"][0]) for r in read_shards(tmp_path, WIDE.hash).values()}; left = [r for r in todo if r.ids[0] not in there]; tell("begins")
            for r in left: tell(write_shard(tmp_path, r, WIDE.hash).name)
        pid, out = in_a_child(work); os.read(out, len("begins\n")); time.sleep(rng.uniform(0, 3) * each); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        kept |= set(announced(out)); found = read_shards(tmp_path, WIDE.hash)
        assert kept <= set(found) and all(holds(r, WIDE) for r in found.values())
    assert 3 < len(kept) and len(list(tmp_path.glob(".shard*"))) <= 1   # one leftover at most, however often it died


def test_a_merge_may_die_before_any_line(wide, tmp_path):
    folder, good = wide; path = tmp_path/"x.h5"; outcomes = set()
    for line in range(0, 5000, 97):
        path.unlink(missing_ok=True); died = dying(lambda: merge(folder, path, WIDE), store_module.__file__, line)
        assert not path.exists() or seal_problem(path) == "" and Store(path).sha256 == good.sha256, line
        outcomes.add(path.exists())
        if not died: break
    assert outcomes == {False, True} and not died


def test_a_merge_may_be_killed_at_any_moment(wide, tmp_path):
    folder, good = wide; path, rng = tmp_path/"x.h5", random.Random(1); started = time.perf_counter(); merge(folder, path, WIDE); took = time.perf_counter() - started
    for i in range(12):
        if i == 6: path.unlink()                                                                     # from here on there is no old file
        pid, out = in_a_child(lambda tell: merge(folder, path, WIDE)); time.sleep(rng.uniform(.1, 1.3) * took); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); os.close(out)
        assert path.exists() or i >= 6
        if path.exists(): assert seal_problem(path) == "" and Store(path).sha256 == good.sha256
        assert len(read_shards(folder, WIDE.hash)) == 7
    assert merge(folder, path, WIDE).sha256 == good.sha256 and [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_a_killed_extraction_goes_on(small, tmp_path):
    whole = extract_features(small, "initial,temporal", tmp_path/"whole.h5"); steps = []
    pid, out = in_a_child(lambda tell: extract_features(small, "initial,temporal", tmp_path/"x.h5", shard_seconds=.2, report=lambda *a: tell(a)))
    os.read(out, 1); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); os.close(out)
    assert not (tmp_path/"x.h5").exists()
    made = extract_features(small, "initial,temporal", tmp_path/"x.h5", shard_seconds=.2, report=lambda *a: steps.append(a))
    assert made.sha256 == whole.sha256 and 1 < steps[0][0] and len(steps) < 12 and sorted(p.name for p in tmp_path.iterdir()) == ["whole.h5", "x.h5"]


# --- bits

def test_a_flipped_bit_anywhere_is_found(small, tmp_path):
    raw, rng, p = small.path.read_bytes(), random.Random(2), tmp_path/"x.h5"
    for at in [*range(0, 512, 7), *(rng.randrange(len(raw)) for _ in range(120)), len(raw) - 1]:
        b = bytearray(raw); b[at] ^= 1 << rng.randrange(8); p.write_bytes(b); assert seal_problem(p), at
    for at in [*(rng.randrange(len(raw)) for _ in range(10)), 3, 20, 600]:
        b = bytearray(raw); b[at] ^= 1 << rng.randrange(8); p.write_bytes(b); assert validate(p, 0), at
    for cut in (0, 1, 511, 512, 513, len(raw) // 2, len(raw) - 1):
        p.write_bytes(raw[:cut]); assert validate(p, 0), cut
        with pytest.raises(CheckFailed): Store(p)
    p.write_bytes(raw + b"\0"); assert "another length" in validate(p, 0)[-1]


def test_a_chunk_is_checked_when_it_is_read(small, tmp_path):
    with h5py.File(small.path) as f: chunk = f[PATHS["temporal"]].id.read_direct_chunk((0, 0, 0))[1]
    raw = bytearray(small.path.read_bytes()); at = bytes(raw).index(chunk); raw[at + len(chunk) // 2] ^= 1
    p = tmp_path/"x.h5"; p.write_bytes(raw); s = Store(p)
    with pytest.raises(CheckFailed, match="features/temporal/features of x.h5 is damaged"): s.features("temporal")
    assert s.features("initial").shape == (10, 14)


def test_a_damaged_shard_is_not_read(tmp_path):
    a, b = (write_shard(tmp_path, made_up(WIDE, ids), WIDE.hash) for ids in ([0, 1], [2, 3])); raw, rng = a.read_bytes(), random.Random(3)
    for _ in range(60):
        x = bytearray(raw); x[rng.randrange(len(raw))] ^= 1 << rng.randrange(8); a.write_bytes(x); assert list(read_shards(tmp_path, WIDE.hash)) == [b.name]
    a.write_bytes(raw); lines = (tmp_path/MANIFEST).read_bytes()
    for _ in range(200):                                                                              # a flipped bit of the manifest hides a shard, or changes what it took, and never what it holds
        x = bytearray(lines); x[rng.randrange(len(lines))] ^= 1 << rng.randrange(8); (tmp_path/MANIFEST).write_bytes(x)
        assert all(holds(r, WIDE) for r in read_shards(tmp_path, WIDE.hash).values())
    (tmp_path/MANIFEST).write_bytes(lines); append_line(tmp_path/MANIFEST, {"name": "../../x.h5", "ids": [0]}); assert len(read_shards(tmp_path, WIDE.hash)) == 2
    a.unlink(); assert list(read_shards(tmp_path, WIDE.hash)) == [b.name]


# --- refusals

def missing(f): del f["inputs/fields"]
def nan(f): f["inputs/fields"][4, 1, 2, 3] = np.nan
def registry(f): r = json.loads(f["features/summary"].attrs["feature_registry"]); g = next(iter(r.values())); a, b = list(g)[:2]; g[a], g[b] = g[b], g[a]; f["features/summary"].attrs["feature_registry"] = json.dumps(r)
def names(f): f[PATHS["initial"]].attrs["feature_names"] = json.dumps(["x"] * 14)
def shorter(f): x = f["parameters/params"][:5]; del f["parameters/params"]; f["parameters/params"] = x

@pytest.mark.parametrize("change, sentence", [(missing, "the data set inputs/fields is missing"), (nan, "inputs/fields holds NaN where there may be none: 1 numbers, the first in row 4"), (registry, "column 0 of summary is"),
                                              (names, "the feature_names of initial are not those of its registry"), (shorter, "parameters/params is f4 [5, 12], and the plan asks for f4 [10, 12]")])
def test_what_is_wrong_is_three_and_named(small, tmp_path, cli, change, sentence):
    p = tmp_path/"x.h5"; shutil.copy(small.path, p)
    with h5py.File(p, "r+") as f: change(f)
    code, out, err = cli("operators", "validate", p); assert code == 3 and sentence in err and err.startswith("geonb: x.h5 is not in order: ") and err.count("\n") == 1
    code, out, _ = cli("operators", "validate", p, "--json"); assert code == 3 and sentence in json.loads(out)["problems"][0] and json.loads(out)["ok"] is False


def test_what_is_right_is_zero(small, cli, tmp_path):
    code, out, err = cli("operators", "validate", small.path, "--check-samples", 10); assert (code, out, err) == (0, "small.h5: ok\n", "")
    assert cli("operators", "validate", tmp_path/"none.h5")[0] == 4 and cli("operators", "validate", small.path, "--check-samples", "-1")[0] == 2
    (tmp_path/"text.h5").write_text("no data"); assert cli("operators", "validate", tmp_path/"text.h5")[0] == 3 and cli("operators", "info", tmp_path/"text.h5")[0] == 3
    assert cli("operators", "extract", small.path, "--families", "initial,temporl", "-o", tmp_path/"x.h5")[0] == 2 and not (tmp_path/"x.h5").exists()


def test_a_merge_needs_every_sample(tmp_path):
    write_shard(tmp_path/"s", made_up(WIDE, range(69), WIDE.twin_ids), WIDE.hash)
    with pytest.raises(CheckFailed, match="1 of 70 samples are in no finished shard, the first of them is 69"): merge(tmp_path/"s", tmp_path/"x.h5", WIDE)
    other = replace(WIDE, grid=8); write_shard(tmp_path/"o", made_up(WIDE, range(70), WIDE.twin_ids), other.hash)
    with pytest.raises(CheckFailed, match=r"inputs/fields of shard .* has rows of shape \[3, 16, 16\] where the plan asks for \[3, 8, 8\]"): merge(tmp_path/"o", tmp_path/"x.h5", other)
    assert not (tmp_path/"x.h5").exists()


# --- what is kept

def test_plain_h5py_reads_the_documented_layout(small):
    code = """import h5py, json, sys
f = h5py.File(sys.argv[1]); a = {}
f.visititems(lambda n, d: a.update({n: [str(d.dtype), list(d.shape), d.compression, d.compression_opts, d.shuffle, d.fletcher32, list(d.chunks)]}) if isinstance(d, h5py.Dataset) else None)
print(json.dumps([a, sorted(f["metadata"].attrs), f["metadata/ic_types"].asstr()[0], 'geonb' in sys.modules]))"""
    sets, attrs, ic, ours = json.loads(subprocess.run([sys.executable, "-c", code, str(small.path)], capture_output=True, text=True, check=True).stdout)
    assert not ours and ic == small.ic_types[0]
    for path, dtype, shape in (("parameters/params", "float32", [10, 12]), ("inputs/fields", "float32", [10, 3, 16, 16]), ("features/initial/aggregated/features", "float32", [10, 14]), ("features/summary/per_trajectory/features", "float32", [10, 3, 120]),
                               ("features/summary/aggregated/features", "float32", [10, 360]), ("features/summary/aggregated/metadata/extraction_time", "float64", [10]), ("features/temporal/features", "float32", [10, 10, 63]),
                               ("features/architecture/aggregated/features", "float32", [10, 12]), ("metadata/grid_sizes", "int32", [10]), ("metadata/weight_seed", "uint64", [10]), ("metadata/predicted_flop", "float64", [10]), ("metadata/status", "uint8", [10])):
        assert sets[path] == [dtype, shape, "gzip", 4, True, True, [min(32, 10), *shape[1:]]], path
    assert sets["twins/ids"][:2] == ["int64", [2]] and sets["twins/features/temporal/features"][1] == [2, 10, 63] and sets["metadata/noise_regimes"][:2] == ["object", [10]]
    assert set(attrs) >= set("creation_date version grid_size num_realizations num_timesteps num_parameter_sets track_ic_metadata config sampling_metrics root_seed code_version precision".split())


@pytest.mark.parametrize("samples", [12, pytest.param(64, marks=pytest.mark.slow)])
def test_census_of_missing_numbers(tmp_path, samples):
    for asked in (False, True):
        plan = Plan(samples=samples, root_seed=7, timesteps=None if samples == 64 else 12, operator_sensitivity=asked, twin_ids=(1,)); write_shard(tmp_path/f"{asked}", simulate_extract(range(samples), plan, (1,)), plan.hash)
        s = merge(tmp_path/f"{asked}", tmp_path/f"{asked}.h5", plan); d = describe(s.path)
        assert d["nan"] == dict(initial=0, summary=0 if asked else 30 * samples, temporal=0, architecture=0) and d["status"] == {"ok": samples, "non-finite": 0} and validate(s.path, 1) == []
        assert d["data_sets"]["inputs/fields"]["nan"] == 0 and d["data_sets"]["twins/features/summary/aggregated/features"]["nan"] == (0 if asked else 30)
    columns = np.flatnonzero(np.isnan(Store(tmp_path/"False.h5").features("summary")).all(0)); assert columns.tolist() == [*range(110, 120), *range(230, 240), *range(350, 360)]


@pytest.mark.parametrize("sizes", [[1] * 70, [7] * 10, [70], [64, 6]], ids=str)
def test_shards_of_any_size_make_the_same_content(wide, tmp_path, sizes, monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK", 1)                                                     # 32 rows at a time: three blocks
    order = np.random.default_rng(sum(sizes) + len(sizes)).permutation(70).tolist(); parts = [sorted(order[sum(sizes[:k]):sum(sizes[:k + 1])]) for k in range(len(sizes))]
    for ids in parts: write_shard(tmp_path/"s", made_up(WIDE, ids, [i for i in WIDE.twin_ids if i in ids]), WIDE.hash)
    s = merge(tmp_path/"s", tmp_path/"x.h5", WIDE, "2001-02-03T00:00:00Z"); assert s.sha256 == wide[1].sha256 and s.digests == wide[1].digests
    due = made_up(WIDE, range(70), WIDE.twin_ids).arrays
    for path, rows in due.items(): assert np.array_equal(s.read(path), rows), path


def test_rows_in_any_order(wide):
    s, rng = pickle.loads(pickle.dumps(wide[1])), np.random.default_rng(0); x, t = s.features("temporal"), s.features("summary", twins=True)
    for rows in ([3], [69, 0, 3, 3], slice(5, 60, 7), slice(None), [], -1, np.arange(70)[::-1], rng.permutation(70)[:50], rng.random(70) < .1, np.zeros(70, bool), np.array([-1, -70])):
        assert np.array_equal(s.features("temporal", rows), x[np.asarray(rows, int) if isinstance(rows, list) else rows])
    assert np.array_equal(s.features("summary", [1, 0], twins=True), t[[1, 0]]) and np.array_equal(s.fields([2], twins=True)[0], s.fields()[s.twin_ids[2]])
    assert s.ok.all() and len(s) == 70 and s.config["samples"] == 70 and open_store(str(s.path)).sha256 == s.sha256


def test_another_process_replays_the_same_bits(small, tmp_path):
    code = "import sys, numpy as np; from geonb.operators.store import *; s = Store(sys.argv[1]); np.savez(sys.argv[2], a=replay(s, 3).frames.numpy(), b=replay(s, 5, twin=True).frames.numpy())"
    subprocess.run([sys.executable, "-c", code, str(small.path), str(tmp_path/"x.npz")], check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    with np.load(tmp_path/"x.npz") as z: assert np.array_equal(z["a"], played(small.plan, 3).frames.numpy()) and np.array_equal(z["b"], played(small.plan, 5, twin=True).frames.numpy())
    for i in range(10):
        r = replay(small, i); assert np.array_equal(r.field.numpy(), small.fields([i])[0]) and r.weight_seed == small.read("metadata/weight_seed", [i])[0]
        for p, row in described(small.plan, i, r).items(): assert np.array_equal(row, small.read(p, [i])[0], equal_nan=True), (i, p)
