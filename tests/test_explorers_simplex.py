"The simplex explorer without a browser: moved vertices against independent arithmetic, samples, gestures driven by traits, runs in a process of their own."
import itertools
import json
import math
import re
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from geonb.core.assets import example
from geonb.core.atomic import read_json
from geonb.core.errors import UsageError
from geonb.explorers.simplex import STACKS, SimplexExplorer, SimplexState
from geonb.explorers.simplex_edit import PLANES, on_pad
from geonb.explorers.simplex_figure import TRACES, class_mark
from test_explorers import HELD, bundle, trajectory

EDIT = "dispatchers:2:4:0.4,-0.3,0.2,0.1;specialists:2:0:0,0,0.25,-0.5"


@pytest.fixture(scope="module")
def real(): return SimplexExplorer(example("pentachora"))


@pytest.fixture
def live(): explorer = SimplexExplorer(example("pentachora")); explorer.widget; return explorer


def kept(explorer, **changes): return explorer.settled(replace(SimplexState(epoch=10**6, pair=2), **changes))


def frame(x):
    "Basis of the flat of five points by Gram and Schmidt, signs as the first edges have them; written anew."
    basis = []
    for v in x[1:] - x[0]:
        for b in basis: v = v - (v @ b) * b
        basis.append(v / np.linalg.norm(v))
    return np.array(basis), x.mean(0)


def volume(x): e = x[1:] - x[0]; return math.sqrt(np.linalg.det(e @ e.T)) / 24


# --- what is shown of a moved vertex

@pytest.mark.parametrize("stack", STACKS)
def test_a_moved_vertex_is_where_the_edit_says(real, stack):
    x = real.hand.stacks[stack][2].double().numpy(); basis, centre = frame(x); vertex, move = (4, [.4, -.3, .2, .1]) if stack == "dispatchers" else (0, [0, 0, .25, -.5])
    moved = x.copy(); moved[vertex] += np.array(move) @ basis
    v = real.view(kept(real, stack=stack, edits=EDIT))
    np.testing.assert_allclose(np.array([v["vertices"][k] for k in "xyz"]).T, ((moved - centre) @ basis.T)[:, :3], atol=1e-6)
    np.testing.assert_allclose(v["volume_now"]["y"], volume(moved), rtol=1e-5); assert abs(volume(moved) / volume(x) - 1) > .01
    other = [k for k in STACKS if k != stack][0]; y = real.hand.stacks[other][2].double().numpy(); w, far = (0, [0, 0, .25, -.5]) if stack == "dispatchers" else (4, [.4, -.3, .2, .1]); y[w] += np.array(far) @ frame(y)[0]
    np.testing.assert_allclose(v["centre_distance_now"]["y"], np.linalg.norm(moved.mean(0) - y.mean(0)), rtol=1e-5)
    drawn = {tuple(sorted(e)): c for e, c in zip([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2), (2, 4), (4, 1), (1, 3), (3, 0)], v["edges"]["line"]["color"][::2])}
    lengths = {(i, j): np.linalg.norm(moved[i] - moved[j]) for i, j in itertools.combinations(range(5), 2)}; mean = np.mean(list(lengths.values()))
    for e, d in lengths.items(): np.testing.assert_allclose(drawn[e], d / mean, rtol=1e-5)


def test_answers_are_those_of_the_model_with_its_weights_moved(real):
    from geonb.pentachora.bundle import load_bundle
    model = load_bundle(real.source.folder); con = model.modules["constellation"]; r = np.random.default_rng(0); moves = {(k, p, v): r.normal(size=4).round(3).tolist() for k in STACKS for p in range(4) for v in range(5)}
    bases = {(k, p): frame(getattr(con, k)[p].detach().double().numpy())[0] for k in STACKS for p in range(4)}; edits = ";".join(f"{k}:{p}:{v}:" + ",".join(map(str, m)) for (k, p, v), m in moves.items())
    with torch.no_grad():
        for (k, p, v), m in moves.items(): getattr(con, k)[p, v] += torch.tensor(np.array(m) @ bases[k, p]).float()
    p = model.predict_proba(real.heldout["thumbnails"]); before = load_bundle(real.source.folder).predict_proba(real.heldout["thumbnails"])
    assert (p.argmax(1) != before.argmax(1)).any(), "an edit this large changes an answer, or nothing is tested here"
    flipped = np.flatnonzero(p.argmax(1) != before.argmax(1)); s = kept(real, edits=edits, sample=int(flipped[0])); v = real.view(s)
    np.testing.assert_allclose(v["after"]["y"], p[s.sample], atol=1e-5); np.testing.assert_allclose(v["before"]["y"], before[s.sample], atol=1e-5)
    assert v["flipped"]["x"] == [v["samples"]["x"][i] for i in flipped]
    for i, (truth, answer) in enumerate(zip(real.labels, p.argmax(1))): assert v["samples"]["text"][i] == f"sample {i}: {truth}" + f", answered {answer}" * int(truth != answer)


def test_samples_lie_where_their_latents_do(real):
    for epoch in (0, len(real.epochs) - 1):
        s = kept(real, epoch=epoch); x = real.arrays["dispatchers"][epoch, 2].astype(float); basis, centre = frame(x); z = real.heldout["latents"].astype(float); q = (z - centre) @ basis.T
        mine = real.path("dispatchers", 2)["samples"][epoch].numpy(); apart = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
        np.testing.assert_allclose(apart(mine, real.path("dispatchers", 2)["coordinates"][epoch].numpy()), apart(q, (x - centre) @ basis.T), atol=1e-5)   # whatever the turn of the frame
        outside = 1 - (q**2).sum() / ((z - centre)**2).sum(); assert f"{100 * outside:.0f} % of the samples" in dict(real.readout(s))["outside these four dimensions"]
    assert real.view(replace(s, samples=False))["samples"]["x"] == []


def test_history_is_not_edited(real):
    for epoch in (0, len(real.epochs) - 1):
        a, b = real.view(kept(real, epoch=epoch)), real.view(kept(real, epoch=epoch, edits=EDIT)); same = [k for k in TRACES if k not in ("flipped", "after", "samples")]
        assert {k: a[k] for k in same} == {k: b[k] for k in same}


def test_trails_are_where_the_vertices_were(real):
    v = real.view(s := kept(real, epoch=3, xw=40, zw=-75))
    for e in range(4):
        then = real.view(replace(s, epoch=e))["vertices"]
        for i in range(5): assert [v[f"trail {i}"][k][e] for k in "xyz"] == pytest.approx([then[k][i] for k in "xyz"], abs=1e-12)


def test_vertex_in_words(real):
    con = real.hand.model.modules["constellation"]; y = np.array(real.labels)
    with torch.no_grad(): d = con(torch.tensor(real.heldout["latents"]))[1]
    for pair, vertex in itertools.product(range(real.pairs), range(5)):
        classes = np.flatnonzero(con.vertex_codes[pair].numpy() == vertex); mine = np.isin(y, classes); words = dict(real.readout(kept(real, pair=pair, vertex=vertex)))
        assert words[f"vertex {vertex}"] == ("classes " + ", ".join(real.named(int(c)) for c in classes) if len(classes) else "no class")
        if mine.any(): assert words["routed here"].startswith(f"{int((d['vertex_probs'][:, pair].argmax(1).numpy()[mine] == vertex).sum())} of the {mine.sum()} samples")


def test_view_of_the_example_is_fast_and_small(real, capsys):
    r, spent, size = np.random.default_rng(1), [], 0
    for i in range(120):
        edits = "" if i % 2 else "dispatchers:0:1:" + ",".join(f"{x:.3f}" for x in r.uniform(-.5, .5, 4)); state = SimplexState(int(r.integers(len(real.steps))), int(r.integers(real.pairs)), STACKS[r.integers(2)], *r.uniform(-180, 180, 3), edits=edits)
        t0 = time.process_time(); view = real.view(state); spent.append(1000 * (time.process_time() - t0)); size = max(size, len(json.dumps(view)))
    with capsys.disabled(): print(f" view: median {np.median(spent):.1f} ms, p95 {np.percentile(spent, 95):.1f} ms of processor time, {size/1000:.1f} kB ", end="")   # shown, not asserted
    assert size < 300_000 and len(real.film().to_json()) < 5_000_000


# --- gestures

@pytest.mark.parametrize("plane", PLANES)
def test_a_drag_moves_in_its_plane_and_is_one_step_back(live, plane):
    live.go(pair=1, xw=35, yw=-60, zw=110); hand = live.palm; hand.plane.value = plane; start = dict(hand.pad.points[3]); r = hand.pad.xrange[1]; before = on_pad(live, live.state, plane)
    for i, done in ((1, False), (2, False), (3, True)): hand.pad.moved = dict(index=3, x=start["x"] + .1 * i * r, y=start["y"] - .05 * i * r, done=done)
    p = hand.pad.points[3]; assert (p["x"], p["y"]) == pytest.approx((start["x"] + .3 * r, start["y"] - .15 * r), abs=3e-4) and live.state.vertex == 3 and live.state.epoch == len(live.epochs)
    assert len(hand.pad.points) == 6 and hand.pad.points[5]["fixed"] and hand.pad.points[:3] == before["points"][:3] and len(hand.past) == 1
    hand.undo.click(); assert live.state.edits == "" and hand.past == [] and hand.undo.disabled and hand.pad.points[3]["x"] == pytest.approx(start["x"], abs=1e-12)


def test_coordinates_undo_and_reset(live):
    hand = live.palm; live.go(vertex=2, pair=2)
    for i in range(4): hand.places[i].value = [.5, -.25, .125, -.75][i]
    assert live.shape(live.settled(live.state))["coordinates"][2].tolist() == pytest.approx([.5, -.25, .125, -.75], abs=1e-4) and len(hand.past) == 4
    text = live.state.edits; hand.places[0].value = math.nan; assert "each a finite number" in live.problem.value and hand.places[0].value == .5 and live.state.edits == text
    hand.places[0].value = 1e6; assert "leaves the simplex" in live.problem.value and hand.places[0].value == .5 and live.state.edits == text
    hand.reset.click(); assert live.state.edits == "" and live.problem.value == ""; hand.undo.click(); assert live.state.edits == text


HOSTILE = ["dispatchers", "dispatchers:0:0:1,2,3", "dispatchers:9:0:1,0,0,0", "dispatchers:0:5:1,0,0,0", "both:0:0:1,0,0,0", "dispatchers:0:0:nan,0,0,0", "dispatchers:0:0:99,0,0,0", ";;", "<script>", "dispatchers:0:0:1,0,0,0\0", "9" * 5000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: repr(t)[:30])
def test_wrong_edits_are_a_sentence_and_the_picture_stands(live, text):
    before = [t.to_plotly_json() for t in live.live.data]; live.inputs["edits"].value = text
    assert "vertex_edit=" in live.problem.value and "could not be updated" not in live.problem.value and "<script>" not in live.problem.value and [t.to_plotly_json() for t in live.live.data] == before
    with pytest.raises(UsageError): live.view(SimplexState(edits=text))
    live.palm.reset.click(); assert live.problem.value == "" and live.state.edits == ""


@pytest.mark.parametrize("edits", [None, 3, math.nan, ["dispatchers:0:0:1,0,0,0"], {}, (1, 2)], ids=repr)
def test_what_is_no_text_is_refused(real, edits):
    with pytest.raises(UsageError, match="edits="): real.view(SimplexState(edits=edits))


@pytest.mark.parametrize("moved", [dict(), dict(index=5, x=0, y=0), dict(index=-1, x=0, y=0), dict(index=0, x=None, y=0), dict(index="0", x=0, y=0), dict(index=0, x=math.inf, y=0), dict(index=True, x=0, y=0), dict(index=.5, x=0, y=0)], ids=repr)
def test_movements_of_nothing_move_nothing(live, moved):
    with warnings.catch_warnings(): warnings.simplefilter("ignore"); live.palm.pad.moved = moved   # infinity is no JSON
    assert live.state.edits == "" and live.problem.value == ""


def test_what_the_pad_chooses_and_what_is_clicked(live):
    live.palm.pad.selected = 3; assert live.state.vertex == 3; live.palm.pad.selected = 7; live.palm.pad.selected = -1; assert live.state.vertex == 3
    live.picked("vertex", [1]); live.picked("sample", [20]); live.picked("sample", []); assert (live.state.vertex, live.state.sample) == (1, 20) and "sample 20" in live.words.value and live.palm.pad.selected == 1


def test_playing_moves_the_sliders(live):
    live.turned_by.value = "yw"; live.plays["turn"].value = 95; assert live.state.yw == 95; live.plays["epoch"].value = 2; assert live.state.epoch == 2
    live.go(yw=-45, epoch=4); assert live.plays["turn"].value == -45 and live.plays["epoch"].value == 4


# --- sources that cannot be moved

def closed_sources(runs_root):
    yield SimplexExplorer(trajectory()), "open a bundle, not arrays"
    yield SimplexExplorer("demonstration"), "open a bundle, not arrays"
    yield SimplexExplorer(bundle(runs_root, arrays=trajectory(), heldout=HELD)), "describes no model"


def test_why_nothing_can_be_moved_is_said(runs_root):
    for explorer, words in closed_sources(runs_root):
        explorer.widget; assert words in explorer.palm.words.value and explorer.palm.pad.disabled and explorer.panel.go.disabled and explorer.palm.copy.text == "" and "kept" not in explorer.steps
        with pytest.raises(UsageError, match=words): explorer.go(edits="dispatchers:0:0:1,0,0,0")
        explorer.palm.pad.moved = dict(index=0, x=.1, y=.1, done=True); assert words in explorer.problem.value
        with pytest.raises(UsageError, match=words): explorer.training_command(1)
        explorer.go(epoch=1, vertex=2); assert explorer.problem.value == ""


def test_classes_can_be_told_apart():
    def light(c): return sum(w * (v / 12.92 if v <= .03928 else ((v + .055) / 1.055)**2.4) for w, v in zip((.2126, .7152, .0722), (int(c[i:i + 2], 16) / 255 for i in (1, 3, 5))))
    assert len({class_mark(c) for c in range(10)}) == 10
    for colour, _ in map(class_mark, range(6)): assert min((1.05) / (light(colour) + .05), (light(colour) + .05) / (light("#111111") + .05)) > 1.9, colour   # beside white and beside JupyterLab's dark


def test_no_script_asks_another_server():
    from geonb.explorers.drag import DragPad
    from geonb.explorers.simplex_hand import CopyLine
    for one in (DragPad, CopyLine): assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|import\s|fetch\(|XMLHttp", one._esm + one._css)


# --- runs

def in_place_of_geonb(code): return [sys.executable, "-c", code]


def wait(explorer): explorer.panel.training.reader.join(120); assert not explorer.panel.training.busy


def test_a_trained_run_is_opened_and_the_original_is_found_again(live, monkeypatch):
    live.go(pair=3, edits=EDIT); before, figure = live.state, live.live; assert live.training_command(2)[-11:-4] == ["start", live.palm.copy.text.split("-p start ")[1].split(" ")[0], "-p", "vertex_edit", EDIT, "-p", "epochs"]
    other = example("pentachora")   # in place of what a run would leave
    monkeypatch.setattr(type(live), "training_command", lambda self, epochs: in_place_of_geonb(f"print('epoch 1/{epochs} · loss 2', flush=True); print('epoch {epochs}/{epochs}'); print('bundle: {other}'); print('verify: ok')")); live.panel.command = live.training_command
    live.panel.epochs.value = 4; assert "-p epochs 4" in live.palm.copy.text; live.panel.go.click(); wait(live)
    assert live.panel.bar.value == live.panel.bar.max == 4 and live.menu.value == f"trained: {other.name}" and live.state == live.settled(live.opening()) and live.state.edits == "" and live.live is figure and live.problem.value == ""
    live.menu.value = "original"; assert live.state == before and [list(t.x) for t in live.live.data if t.name == "vertices"] == [live.view(before)["vertices"]["x"]]; assert not live.panel.go.disabled and live.panel.cancel.disabled


@pytest.mark.parametrize("code, words", [("raise SystemExit('geonb: there is no such data')", "geonb: there is no such data"), ("import os; os._exit(3)", "ended with code 3 and said nothing"), ("print('bundle: /nowhere'); print('verify: ok')", "nowhere")])
def test_what_goes_wrong_with_a_run_is_said(live, code, words):
    live.panel.command = lambda epochs: in_place_of_geonb(code); live.panel.go.click(); wait(live)
    assert words in live.panel.line.value + live.problem.value and not live.panel.go.disabled and live.menu.value == "original"; live.go(pair=1)


def test_a_run_can_be_cancelled(live):
    live.panel.command = lambda epochs: in_place_of_geonb("import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: (print('run saved at epoch 1'), sys.exit(130))); print('epoch 1/9', flush=True); time.sleep(60)")
    live.panel.go.click(); end = time.monotonic() + 60
    while "epoch 1/9" not in live.panel.line.value and time.monotonic() < end: time.sleep(.05)
    assert live.panel.go.disabled; live.go(pair=2); live.panel.cancel.click(); wait(live); assert "can be taken up by the same command: run saved at epoch 1" in live.panel.line.value and not live.panel.go.disabled


@pytest.mark.slow
def test_a_real_run_is_cancelled_and_taken_up(live, runs_root, monkeypatch):
    live.go(pair=1, edits="specialists:1:2:0,0.5,0,0"); live.panel.epochs.value = 400; heard = []; monkeypatch.setattr(live.panel, "hear", lambda line, old=live.panel.hear: (heard.append(line), old(line)))
    live.panel.go.click(); end = time.monotonic() + 240
    while not any(x.startswith("epoch 1/") for x in heard) and live.panel.training.busy and time.monotonic() < end: time.sleep(.1)
    assert any(x.startswith("epoch 1/") for x in heard), heard; live.panel.cancel.click(); live.panel.training.reader.join(120)
    assert "can be taken up by the same command" in live.panel.line.value, live.panel.line.value
    partial, = (runs_root/"pentachora"/"digits").glob("*.partial"); assert read_json(partial/"run.json")["parameters"]["vertex_edit"] == "specialists:1:2:0,0.5,0,0"
