"Explorers without a browser: what they show against independent arithmetic, what they refuse, and traits driven from Python."
import itertools
import math
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from geonb.core.atomic import sha256, write_json, write_sums
from geonb.core.config import LABORATORIES
from geonb.core.errors import CheckFailed, DataMissing, GeonbError, UsageError
from geonb.explorers.coverage import COLOURS, CoverageExplorer, CoverageState
from geonb.explorers.simplex_figure import TRACES
from geonb.explorers.simplex import STACKS, SimplexExplorer, SimplexState, WALK, demonstration


def trajectory(T=6, P=3, D=17, seed=0):
    "Random pentachora far from the origin, and what a run keeps beside them."
    r = np.random.default_rng(seed); walk = r.normal(size=(2, 1, P, 5, D)) + np.cumsum(.2 * r.normal(size=(2, T, P, 5, D)), 1) + 10
    accuracy = np.linspace(.1, .9, T); accuracy[0] = np.nan
    return dict(epochs=np.arange(T) * 2, **dict(zip(STACKS, walk.astype(np.float32))), centre_distance=r.uniform(size=(T, P)), gate=r.uniform(size=T), lam=r.uniform(size=T), tau=r.uniform(size=T), accuracy=accuracy,
                **{f"quality_{k}": r.uniform(size=(T, P)) for k in STACKS})


@pytest.fixture(scope="module")
def arrays(): return trajectory()


@pytest.fixture(scope="module")
def explorer(arrays): return SimplexExplorer(arrays)


def four(explorer, state):
    "The vertices of a view [5, 4]: x, y, z, and w read back from the size of the dots."
    v = explorer.view(state)["vertices"]
    return np.array([v["x"], v["y"], v["z"], [(s - 24) / 6 * explorer.path(state.stack, state.pair)["reach"] for s in v["marker"]["size"]]]).T


def edges(figure): return next(t for t in figure.data if t.name == "edges")


def turn(axis, angle):
    m = np.eye(4); c, s = math.cos(angle), math.sin(angle); m[axis, axis] = m[3, 3] = c; m[axis, 3], m[3, axis] = -s, s
    return m


STATES = [SimplexState(e, p, s, *a) for (e, p, s), a in zip(itertools.product((0, 3, 5), (0, 2), STACKS), itertools.cycle([(0, 0, 0), (35, -80, 120), (-180, 5, 179)]))]


@pytest.mark.parametrize("state", STATES)
def test_view_keeps_every_distance_and_the_volume(explorer, arrays, state):
    x = arrays[state.stack][state.epoch, state.pair].astype(float); seen = four(explorer, state); v = explorer.view(state)
    apart = lambda y: np.linalg.norm(y[:, None] - y[None], axis=-1)
    np.testing.assert_allclose(apart(seen), apart(x), atol=1e-9)
    edges = x[1:] - x[0]; volume = math.sqrt(np.linalg.det(edges @ edges.T)) / 24
    np.testing.assert_allclose([abs(np.linalg.det(seen[1:] - seen[0])) / 24, v["volume_now"]["y"][0]], volume, rtol=1e-9)
    rms = math.sqrt(np.mean([np.sum((x[i] - x[j])**2) for i, j in itertools.combinations(range(5), 2)]))
    np.testing.assert_allclose(v["quality_now"]["y"][0], volume / (math.sqrt(5) / 96 * rms**4), rtol=1e-9)
    assert v["volume_now"]["x"] == v["quality_now"]["x"] == [2 * state.epoch] and v["volume"]["y"][state.epoch] == v["volume_now"]["y"][0]


@pytest.mark.parametrize("state", STATES)
def test_angles_turn_the_unturned_view(explorer, state):
    flat = four(explorer, replace(state, xw=0, yw=0, zw=0))
    R = turn(0, math.radians(state.xw)) @ turn(1, math.radians(state.yw)) @ turn(2, math.radians(state.zw))
    np.testing.assert_allclose(four(explorer, state), flat @ R.T, atol=1e-9)


def test_edges_join_the_vertices_and_carry_their_relative_length(explorer, arrays):
    v = explorer.view(state := SimplexState(4, 1, "specialists", 10, 20, 30)); x = arrays["specialists"][4, 1].astype(float)
    lengths = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in itertools.combinations(range(5), 2)}; mean = np.mean(list(lengths.values()))
    drawn = [tuple(sorted(e)) for e in zip(WALK[::2], WALK[1::2])]
    assert sorted(drawn) == sorted(lengths)
    for k in "xyz": assert v["edges"][k] == [v["vertices"][k][i] for i in WALK]
    np.testing.assert_allclose(v["edges"]["line"]["color"], np.repeat([lengths[e] / mean for e in drawn], 2), rtol=1e-9)
    assert explorer.view(state) == v, "the same state gives the same view"


def test_nothing_turns_between_epochs(explorer):
    frames = [four(explorer, SimplexState(i)) for i in range(6)]
    for a, b in itertools.pairwise(frames):
        common = a.T @ b   # no rotation brings b nearer to a exactly when this is symmetric and has no negative eigenvalue
        np.testing.assert_allclose(common, common.T, atol=1e-9); assert np.linalg.eigvalsh(common).min() > 0


def test_view_is_fast(capsys):
    big = SimplexExplorer(trajectory(60, 28, 56)); r = np.random.default_rng(1); spent, size = [], 0
    for _ in range(200):
        state = SimplexState(int(r.integers(60)), int(r.integers(28)), STACKS[r.integers(2)], *r.uniform(-180, 180, 3))
        t0 = time.perf_counter(); view = big.view(state); spent.append(1000 * (time.perf_counter() - t0)); size = max(size, len(repr(view)))
    with capsys.disabled(): print(f" view: median {np.median(spent):.1f} ms, p95 {np.percentile(spent, 95):.1f} ms, {size/1000:.1f} kB ", end="")   # shown, not asserted: seconds belong to the machine
    assert size < 300_000


# --- what is refused, and what is clamped

BAD = [dict(epoch=math.nan), dict(epoch="3"), dict(epoch=None), dict(epoch=1.5), dict(epoch=True), dict(pair=math.nan), dict(pair=[0]), dict(stack="both"), dict(stack=None), dict(stack=3),
       dict(xw=math.nan), dict(yw=math.inf), dict(zw="90"), dict(xw=None), dict(yw=1e300), dict(zw=10**400)]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_hostile_state_is_one_sentence_and_the_picture_stands(explorer, bad):
    explorer.go(epoch=2, pair=1, stack="specialists", xw=30)
    before, state = [t.to_plotly_json() for t in explorer.live.data], explorer.state
    with pytest.raises(UsageError) as e: explorer.go(**bad)
    assert next(iter(bad)) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UsageError): explorer.view(SimplexState(**bad))
    assert [t.to_plotly_json() for t in explorer.live.data] == before and explorer.state == state


@pytest.mark.parametrize("far, near", [(dict(epoch=10**6), dict(epoch=5)), (dict(epoch=-1), dict(epoch=0)), (dict(pair=math.inf), dict(pair=2)), (dict(xw=725), dict(xw=5)), (dict(zw=-190.), dict(zw=170)), (dict(epoch=np.int64(3)), dict(epoch=3)), (dict(pair=10**400), dict(pair=2))], ids=str)
def test_out_of_range_is_taken_to_the_nearest(explorer, far, near): assert explorer.view(SimplexState(**far)) == explorer.view(SimplexState(**near))


def test_unknown_part_of_the_state(explorer):
    with pytest.raises(UsageError, match="epochs is no part"): explorer.go(epochs=3)
    with pytest.raises(UsageError, match="SimplexState"): explorer.view({"epoch": 3})


# --- the shell, without a browser

def test_traits_move_the_one_figure(arrays):
    explorer = SimplexExplorer(arrays); explorer.widget; figure = explorer.live
    for name, value in dict(epoch=4, pair=2, stack="specialists", xw=45, yw=-60, zw=180).items():
        explorer.inputs[name].value = value
        assert getattr(explorer.state, name) == value and explorer.live is figure
        want = explorer.view(explorer.state)
        for trace in figure.data:
            for k, v in want[trace.name].items(): assert (list(trace[k]) == v) if k not in ("line", "marker") else all(list(trace[k][i]) == w for i, w in v.items()), (name, trace.name, k)
    assert "specialist 2 of 3" in explorer.words.value and "validation accuracy" in explorer.words.value
    for name, value in dict(epoch=99, stack="both", pair="x").items():
        with pytest.raises(Exception): explorer.inputs[name].value = value   # traitlets' own refusal
    assert explorer.state == SimplexState(4, 2, "specialists", 45, -60, 180)


def test_an_error_of_a_callback_is_shown_and_goes_away(arrays, monkeypatch):
    explorer = SimplexExplorer(arrays); explorer.widget; before = list(edges(explorer.live).x)
    with monkeypatch.context() as m:
        m.setattr(SimplexExplorer, "readout", lambda *_: 1 / 0); explorer.inputs["epoch"].value = 3
    assert "ZeroDivisionError" in explorer.problem.value and list(edges(explorer.live).x) == before
    explorer.inputs["epoch"].value = 4
    assert explorer.problem.value == "" and list(edges(explorer.live).x) == explorer.view(explorer.state)["edges"]["x"] != before


def test_display_has_a_live_widget_and_a_still(arrays, monkeypatch):
    explorer = SimplexExplorer(arrays)
    monkeypatch.delenv("IN_TEST", raising=False); assert set(explorer._repr_mimebundle_()) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    monkeypatch.setenv("IN_TEST", "1"); assert set(explorer._repr_mimebundle_()) == {"image/png", "text/plain"}


def test_stills_differ_by_state(explorer):
    assert explorer.picture(SimplexState(0)).startswith(b"\x89PNG") and len({explorer.picture(SimplexState(e, xw=a)) for e in (0, 5) for a in (0, 40)}) == 4
    film = explorer.film(SimplexState(pair=1)); assert [f.name for f in film.frames] == ["0", "2", "4", "6", "8", "10"]
    assert list(film.frames[3].data[list(film.frames[3].traces).index(TRACES.index("edges"))].x) == explorer.view(SimplexState(3, 1))["edges"]["x"]


@pytest.mark.parametrize("T, P", [(1, 1), (2, 1)])
def test_shortest_trajectories(T, P):
    explorer = SimplexExplorer(demonstration(2) if T == 2 else {k: a[:1] for k, a in demonstration(2).items()})
    explorer.go(epoch=T); assert explorer.state.epoch == T - 1 and explorer.picture(explorer.state)


def test_all_vertices_at_one_point():
    explorer = SimplexExplorer(dict(epochs=np.arange(2), **{k: np.ones((2, 1, 5, 6), np.float32) for k in STACKS}))
    view = explorer.go(epoch=1).view(explorer.state)
    assert view["volume"]["y"] == view["quality"]["y"] == [0, 0] and all(math.isfinite(c) for k in "xyz" for c in view["edges"][k]) and explorer.picture()


# --- bundles

def bundle(root, run_id="0123456789-r1", arrays=None, laboratory="pentachora", started="2026-01-01T00:00:00Z", heldout=None):
    "A finished bundle with nothing in it but what the explorer and the checks read."
    path = root/laboratory/"digits"/run_id; path.mkdir(parents=True)
    write_json(path/"config.json", dict(laboratory=laboratory)); write_json(path/"history.json", []); (path/"history.csv").write_text("")
    write_json(path/"manifest.json", dict(run_id=run_id, laboratory=laboratory, dataset="digits", seed=3, started=started, headline={}, config_sha256=sha256(path/"config.json")))
    if arrays is not None: np.savez_compressed(path/"trajectory.npz", **arrays)
    if heldout is not None: np.savez_compressed(path/"heldout.npz", **heldout)
    write_sums(path); return path


HELD = dict(latents=np.zeros((8, 17), np.float32), labels=np.arange(8), predicted=np.array([0, 1, 2, 3, 4, 5, 0, 0]), thumbnails=np.zeros((8, 8, 8, 1), np.uint8))


def test_finished_bundle_by_folder_by_id_and_as_the_newest(runs_root, arrays):
    assert SimplexExplorer().title.startswith("example: digits, seed 0, run ")
    old = bundle(runs_root, arrays=arrays, heldout=HELD); bundle(runs_root, "aaaaaaaaaa-r1", trajectory(seed=1), started="2026-02-01T00:00:00Z"); bundle(runs_root, "bbbbbbbbbb-r1", started="2026-03-01T00:00:00Z")
    by_folder, by_id, newest = SimplexExplorer(old), SimplexExplorer("01234"), SimplexExplorer()
    assert by_folder.title == by_id.title == "digits, seed 3, run 0123456789-r1" and "aaaaaaaaaa-r1" in newest.title
    at = lambda e: {k: e.view(SimplexState(3))[k] for k in ("edges", "volume", "quality_now")}
    assert at(by_folder) == at(SimplexExplorer(arrays)) != at(newest)
    assert dict(by_folder.readout(SimplexState()))["held out"] == "0.750 of 8 right at the end"


def spoil_truncated(p): p.write_bytes(p.read_bytes()[:len(p.read_bytes()) // 2])
def spoil_flipped(p): b = bytearray(p.read_bytes()); b[len(b) // 2] ^= 1; p.write_bytes(bytes(b))
def spoil_text(p): p.write_text("not a zip file")
def spoil_empty(p): p.write_bytes(b"")
def spoil_plain_npy(p):
    with p.open("wb") as f: np.save(f, np.zeros(3))
def spoil_pickle(p): np.savez(p, epochs=np.array([{"a": 1}], dtype=object), dispatchers=np.zeros(1), specialists=np.zeros(1))
def spoil_other_zip(p):
    with zipfile.ZipFile(p, "w") as z: z.writestr("epochs.npy", b"\x93NUMPY\x01\x00\xff\xff")
def spoil_nan(p): a = trajectory(); a["specialists"][2, 1, 0, 0] = np.nan; np.savez(p, **a)


SPOIL = [f for k, f in globals().copy().items() if k.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda f: f.__name__[6:])
@pytest.mark.parametrize("resum", [False, True], ids=["sums kept", "sums renewed"])
def test_spoilt_trajectory_is_one_sentence_that_names_it(runs_root, arrays, spoil, resum):
    path = bundle(runs_root, arrays=arrays); spoil(path/"trajectory.npz")
    if resum: write_sums(path)
    with pytest.raises(CheckFailed) as e: SimplexExplorer(path)
    assert "trajectory.npz" in str(e.value) and "\n" not in str(e.value)


def test_unfinished_foreign_incomplete_and_missing_bundles(runs_root, arrays, tmp_path, monkeypatch):
    monkeypatch.setitem(LABORATORIES, "ternary", "geonb.ternary")
    path = bundle(runs_root, arrays=arrays); partial = path.rename(path.with_name(path.name+".partial")); write_json(partial/"run.json", dict(run_id=path.name, laboratory="pentachora", dataset="digits", started="2026", parameters={}))
    foreign, bare, bad = bundle(runs_root, "cccccccccc-r1", arrays, "ternary"), bundle(runs_root, "dddddddddd-r1"), bundle(runs_root, "eeeeeeeeee-r1", arrays, heldout={**HELD, "labels": np.arange(7)})
    empty = tmp_path/"empty"; empty.mkdir()
    for source, kind, words in [(partial, UsageError, "interrupted"), (foreign, UsageError, "ternary"), (bare, DataMissing, "no file trajectory.npz"), (bad, CheckFailed, "one label and one prediction"),
                                (empty, CheckFailed, "SHA256SUMS"), ("nothing", DataMissing, "no run or bundle"), (tmp_path/"no.npz", DataMissing, "no.npz"), (3, UsageError, "int is no trajectory"), ("a\0b", UsageError, "run name")]:
        with pytest.raises(GeonbError, match=words) as e: SimplexExplorer(source)
        assert type(e.value) is kind and "\n" not in str(e.value) and e.value._render_traceback_() == [f"{kind.__name__}: {e.value}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplex", "ternary", "chromatic"])
def test_papermill_with_a_wrong_bundle_ends_in_the_sentence(root, tmp_path, name):
    done = subprocess.run([sys.executable, "-m", "papermill", str(root/"nbs"/"explorers"/f"{name}.ipynb"), str(tmp_path/"out.ipynb"), "-p", "bundle", "nothing"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("DataMissing: no run or bundle 'nothing'")


# --- coverage: every ternary operation on one map

def coverage(E=5, P=("A", "B"), seed=0):
    "Random coverage of a run, with a few operations never trained on."
    r = np.random.default_rng(seed); n = (E, len(P), 3**9)
    return dict(epoch=np.arange(E) * 4, paths=np.array(P), wrong=r.integers(0, 10, n).astype(np.uint8), radius=r.uniform(0, 8, n).astype(np.float16), kl=r.uniform(0, 2800, n).astype(np.float16), trained=r.uniform(size=3**9) < .9)


@pytest.fixture(scope="module")
def covered(): return coverage()


@pytest.fixture(scope="module")
def map_explorer(covered): return CoverageExplorer(covered)


def place(index):
    "Cell of an operation, from its digits one by one: even positions to the column, odd to the row, the first most significant."
    digits = [index // 3**k % 3 for k in range(9)]
    return int("".join(map(str, digits[1::2])), 3), int("".join(map(str, digits[0::2])), 3)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("epoch, path", [(0, "A"), (3, "B"), (4, "A")])
def test_each_cell_of_the_map_shows_its_operation(map_explorer, covered, epoch, path, colour):
    z = map_explorer.view(CoverageState(epoch, path, colour))["map"]["z"]; at = epoch, "AB".index(path); _, steps, low, high = map_explorer.scale(CoverageState(epoch, path, colour))
    power = lambda i: next((k for k in range(9) if i % 3**(k + 1)), 9)
    want = {"wrong positions": lambda i: covered["wrong"][*at, i], "correct": lambda i: covered["wrong"][*at, i] == 0, "radius": lambda i: covered["radius"][*at, i], "KL": lambda i: covered["kl"][*at, i], "valuation": power}[colour]
    assert z.shape == (81, 243) and .985 < ((low <= z) & (z <= high)).mean() <= 1 and (not steps or (low <= z.min() and z.max() <= high))
    for i in [0, 1, 3, 9841, 19682, *range(5, 3**9, 97)]: assert z[place(i)] == want(i)


def test_counts_and_words_of_the_map(map_explorer, covered):
    v, words = map_explorer.view(CoverageState(3)), dict(map_explorer.readout(CoverageState(3, "B")))
    right = [[sum(1 for w in covered["wrong"][e, p].tolist() if not w) for e in range(5)] for p in (0, 1)]
    assert [v["A"]["y"], v["B"]["y"]] == right and v["A"]["x"] == [0, 4, 8, 12, 16] and v["B now"] == {"x": [12], "y": [right[1][3]]}
    held = [i for i in range(3**9) if not covered["trained"][i]]
    assert words["never trained on, right in B"] == f"{sum(covered['wrong'][3, 1, i] == 0 for i in held):,} of {len(held):,}" and words["right in A"].startswith(f"{right[0][3]:,} of 19,683")
    text = map_explorer.figure().data[0].text
    assert text[place(15633)].startswith("15633, ----00-0+, min") and all(("never trained on" in text[place(i)]) == (i in held) for i in range(0, 3**9, 501))
    assert "never" not in " ".join(dict(CoverageExplorer(coverage() | {"trained": np.ones(3**9, bool)}).readout(CoverageState())))


def test_map_is_fast(capsys):
    big = CoverageExplorer(coverage(60)); spent = []
    for i in range(100):
        t0 = time.perf_counter(); big.view(CoverageState(i % 60, "AB"[i % 2], list(COLOURS)[i % 5])); spent.append(1000 * (time.perf_counter() - t0))
    with capsys.disabled(): print(f" map: median {np.median(spent):.1f} ms, p95 {np.percentile(spent, 95):.1f} ms ", end="")
    assert np.median(spent) < 40


@pytest.mark.parametrize("bad", [dict(epoch=math.nan), dict(epoch="3"), dict(epoch=True), dict(path="C"), dict(path=None), dict(path=0), dict(colour="red"), dict(colour=["KL"])], ids=str)
def test_hostile_state_of_the_map_is_one_sentence_and_the_picture_stands(map_explorer, bad):
    map_explorer.go(epoch=2, path="B", colour="KL"); before, state = map_explorer.live.to_json(), map_explorer.state
    with pytest.raises(UsageError) as e: map_explorer.go(**bad)
    assert next(iter(bad)) in str(e.value) and "not allowed" in str(e.value) and "\n" not in str(e.value) and map_explorer.live.to_json() == before and map_explorer.state == state
    with pytest.raises(UsageError, match="SimplexState is no state: give a CoverageState"): map_explorer.view(SimplexState())


def test_traits_move_the_one_map(covered, monkeypatch):
    explorer = CoverageExplorer(covered); explorer.widget; figure = explorer.live
    for name, value in dict(epoch=4, path="B", colour="radius").items():
        explorer.inputs[name].value = value; want = explorer.view(explorer.state)
        assert getattr(explorer.state, name) == value and explorer.live is figure and np.array_equal(figure.data[0].z, want["map"]["z"]) and [list(t.y) for t in figure.data[1:]] == [w["y"] for w in list(want.values())[1:]]
    assert figure.layout.coloraxis.cmax == pytest.approx(np.percentile(covered["radius"][4, 1].astype(float), 99.5)) and "pathway</span> B" in explorer.words.value
    with monkeypatch.context() as m:
        m.setattr(CoverageExplorer, "view", lambda *_: 1 / 0); explorer.inputs["epoch"].value = 3
    assert "ZeroDivisionError" in explorer.problem.value and np.array_equal(figure.data[0].z, want["map"]["z"])
    explorer.inputs["colour"].value = "correct"; assert explorer.problem.value == "" and set(np.unique(figure.data[0].z)) == {0, 1}
    monkeypatch.setenv("IN_TEST", "1"); assert set(explorer._repr_mimebundle_()) == {"image/png", "text/plain"}


def test_stills_and_film_of_the_map(map_explorer):
    assert len({map_explorer.picture(CoverageState(e, p)) for e in (0, 4) for p in "AB"}) == 4
    film = map_explorer.film(CoverageState(4, "B", "KL"), most=3); assert [f.name for f in film.frames] == ["0", "8", "16"] and film.layout.sliders[0].active == 2
    np.testing.assert_allclose(film.frames[1].data[0].z, map_explorer.view(CoverageState(2, "B", "KL"))["map"]["z"], atol=1e-3)
    assert film.frames[1].layout.coloraxis.cmax == pytest.approx(map_explorer.scale(CoverageState(2, "B", "KL"))[3]) and list(film.frames[1].traces) == [0, 3, 4] and film.frames[1].data[2].y == tuple(map_explorer.view(CoverageState(2))["B now"]["y"])


@pytest.mark.parametrize("E, P", [(1, ("only",)), (2, ("A", "B", "C"))], ids=str)
def test_smallest_and_other_pathways(E, P):
    explorer = CoverageExplorer({k: a for k, a in coverage(E, P).items() if k != "trained"})
    assert explorer.state == CoverageState(0, P[0]) and explorer.go(epoch=99, path=P[-1]).state == CoverageState(E - 1, P[-1]) and explorer.picture() and explorer.film().frames


def test_all_right_from_the_start():
    a = coverage(2); explorer = CoverageExplorer(a | {k: np.zeros_like(a[k]) for k in ("wrong", "radius", "kl")})
    assert explorer.view(CoverageState())["A now"]["y"] == [3**9] and all(explorer.go(colour=c).picture(explorer.state) for c in COLOURS)


def test_ternary_bundles(runs_root, covered, monkeypatch):
    assert CoverageExplorer().title.startswith("example: v5_5, seed 0, run ")
    with monkeypatch.context() as m:   # where the package came without its examples
        m.setattr("geonb.core.assets.shelf", lambda: runs_root); m.setattr("geonb.explorers.coverage.short_training", lambda: covered); assert CoverageExplorer().title == "a short training on 2,000 operations, not a run"
    path = bundle(runs_root, arrays=covered, laboratory="ternary"); foreign = bundle(runs_root, "cccccccccc-r1", trajectory(), started="2026-02-01T00:00:00Z")
    newest = CoverageExplorer(); assert newest.title == CoverageExplorer(path).title == CoverageExplorer("01234").title == "digits, seed 3, run 0123456789-r1"
    assert np.array_equal(newest.view(CoverageState(3))["map"]["z"], CoverageExplorer(covered).view(CoverageState(3))["map"]["z"])
    with pytest.raises(UsageError, match="laboratory pentachora: this explorer shows ternary runs"): CoverageExplorer(foreign)
    with pytest.raises(UsageError, match="int is no trajectory"): CoverageExplorer(3)
    for change, word in [(dict(wrong=covered["wrong"][:, :1]), "wrong must be integers of shape"), (dict(kl=np.full_like(covered["kl"], np.inf)), "not finite"), (dict(paths=np.array([{}])), "not a readable npz")]:
        np.savez(path/"trajectory.npz", **{**covered, **change}); write_sums(path)
        with pytest.raises(CheckFailed, match=word) as e: CoverageExplorer(path)
        assert "trajectory.npz" in str(e.value) and "\n" not in str(e.value)
