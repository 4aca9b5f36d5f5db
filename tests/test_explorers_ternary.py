"The ternary explorer without a browser: places, decodes and neighbours against independent arithmetic, hostile states, gestures, what is sent."
import json
import math
import time
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from comm import DummyComm
from geonb.core.artifacts import write_npz, write_weights
from geonb.core.atomic import read_json, sha256, write_json, write_sums
from geonb.core.errors import CheckFailed, DataMissing, UsageError
from geonb.explorers.coverage import CoverageExplorer, CoverageState
from geonb.explorers.decoding import tree_neighbours
from geonb.explorers.places import listed
from geonb.explorers.ternary import LAYOUTS, UNIT, TernaryExplorer, TernaryState
from geonb.ternary.bundle import load_bundle
from geonb.ternary.coverage import decoded_index
from geonb.ternary.hyperbolic import HyperbolicSpec, build_hyperbolic
from geonb.ternary.hyperbolic_report import disc
from geonb.ternary.hyperbolic_vae import HyperbolicVAE
from geonb.ternary.model import ModelSpec, build
from geonb.ternary.operations import NAMED, tables
from test_explorers import bundle, coverage


def ternary_bundle(root, kind="dual", arrays=None, paths=("A", "B"), run_id="0123456789-r1"):
    "A finished bundle with weights, of a model that was never trained."
    arrays = dict(coverage() if arrays is None else arrays)
    if kind == "hyperbolic": arrays["norm"] = np.tanh(arrays["radius"].astype(float) / 2).astype(np.float16); del arrays["kl"]; arrays = {k: a[:, :len(paths)] if a.ndim == 3 else np.array(paths) if k == "paths" else a for k, a in arrays.items()}
    path = bundle(root, run_id, arrays, "ternary"); spec = HyperbolicSpec(decoder_H=True) if kind == "hyperbolic" else ModelSpec(); net = (build_hyperbolic if kind == "hyperbolic" else build)(spec, seed=1)
    with torch.no_grad():   # an untrained projection says nothing about direction
        for p in (p for p in net.parameters() if p.ndim): p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * .05)
    described = {"kind": "hyperbolic", "paths": list(paths), **spec.model_dump(mode="json")} if kind == "hyperbolic" else spec.model_dump(mode="json")
    write_json(path/"config.json", dict(schema=1, laboratory="ternary", dataset="digits", parameters={}, data={}, model=described)); manifest = read_json(path/"manifest.json") | {"config_sha256": sha256(path/"config.json")}; write_json(path/"manifest.json", manifest)
    write_weights(path, {"model": net}, "digits", manifest["config_sha256"])
    if kind == "hyperbolic": write_npz(path/"plane.npz", **{f"xy_{p}": disc(HyperbolicVAE(spec, net, paths).embed(path=p))[0].astype(np.float32) for p in paths})
    write_sums(path); return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory): return {k: ternary_bundle(tmp_path_factory.mktemp(k), k) for k in ("dual", "hyperbolic")}


@pytest.fixture(scope="module", params=["dual", "hyperbolic"])
def pair(request, folders): return TernaryExplorer(folders[request.param]), load_bundle(folders[request.param])


def by_hand(index):
    "Place in the tree, step by step."
    x = y = 0.
    for k in range(9):
        angle = math.radians((210, 90, 330)[index // 3**k % 3]); x += math.cos(angle) / 2**(k + 1); y += math.sin(angle) / 2**(k + 1)
    return x, y


@pytest.mark.parametrize("colour", ["wrong positions", "correct", "radius", "valuation"])
def test_all_pictures_show_the_same_values(pair, colour):
    explorer, _ = pair; flat = {}
    for layout in LAYOUTS:
        s = TernaryState(3, "B", colour, layout); v = explorer.view(s); raster = np.array(v["map"]["z"])
        flat[layout] = raster[tuple(np.array(explorer.places("map", "B")[:, ::-1].T, int))] if layout == "map" else v["points"]["marker"]["color"]
        assert (len(v["points"]["x"]), raster.size) == ((0, 19683) if layout == "map" else (19683, 0))
    plain = CoverageExplorer(explorer.arrays).view(CoverageState(3, "B", colour))["map"]["z"]
    for a in flat.values(): np.testing.assert_allclose(a, flat["map"], atol=1e-4); np.testing.assert_allclose(a[explorer.grid], plain, atol=1e-4)


def test_places(pair):
    explorer, _ = pair; some = np.arange(0, 19683, 271)
    np.testing.assert_allclose(explorer.places("tree", "A")[some] / UNIT, [by_hand(int(i)) for i in some], atol=1 / UNIT)
    if explorer.decoder.ball:
        z = explorer.decoder.codes["B"].double().numpy(); np.testing.assert_allclose(np.linalg.norm(explorer.places("disc", "B") / UNIT, axis=1), np.linalg.norm(z, axis=1), atol=2 / UNIT)
        assert not np.array_equal(explorer.places("disc", "A"), explorer.places("disc", "B"))
    else: assert np.array_equal(explorer.places("disc", "A"), explorer.places("disc", "B")) and explorer.places("disc", "A")[0].tolist() == [0, 0]


def test_the_disc_says_whose_places_it_shows(tmp_path):
    folder = ternary_bundle(tmp_path, "hyperbolic", coverage(4)); manifest = read_json(folder/"manifest.json"); epoch = np.load(folder/"trajectory.npz")["epoch"].tolist()
    write_json(folder/"manifest.json", manifest | dict(chosen=dict(epoch=epoch[2]))); write_sums(folder); explorer = TernaryExplorer(folder)
    said = lambda **k: dict(explorer.readout(TernaryState(path="B", **{"layout": "disc"} | k))).get("the disc", "")
    assert said(epoch=2) == "" and said(epoch=0, layout="tree") == "" and said(epoch=1).startswith(f"shows the places of the kept model, epoch {epoch[2]}:") and said(epoch=1).endswith(f"epoch {epoch[1]}")


@pytest.mark.parametrize("index", [0, 15633, 19682, 4711])
def test_decodes_are_those_of_the_laboratory(pair, index):
    explorer, model = pair; state = TernaryState(operation=str(index), path="B", x=430, y=-777); there = explorer.pushed(state); z = there["latent"]
    assert [int(explorer.decoder.read[p][index]) for p in "AB"] == [int(model.predict([index], path=p)[0]) for p in "AB"]
    direct = model.net.decode_hyp("B", z) if explorer.decoder.ball else model.net.decode("B", z)
    assert there["read"] == int(decoded_index(direct)[0]) and f"decodes to</span> {there['read']} " in explorer.panel(state)["words"]
    axes, reach = explorer.decoder.frames["B"]; own = (model.embed([index], "B") if explorer.decoder.ball else model.encode(torch.as_tensor(tables(index)).float())["B"][0])[0].double().numpy()
    want = own + .43 * reach * axes[0] - .777 * reach * axes[1]; norm = np.linalg.norm(want)
    if not explorer.decoder.ball or norm < .99: np.testing.assert_allclose(z[0].numpy(), want, atol=2e-5)
    assert explorer.pushed(replace(state, x=0, y=0))["read"] == int(explorer.decoder.read["B"][index])


def test_neighbours_are_those_of_brute_force(pair):
    explorer, model = pair
    for i in (0, 15633, 8001):
        z = explorer.decoder.codes["A"].double().numpy()
        if explorer.decoder.ball: gap = 1 - (z**2).sum(1); d = np.arccosh(np.maximum(1 + 2 * ((z - z[i])**2).sum(1) / gap / gap[i], 1))
        else: d = np.linalg.norm(z - z[i], axis=1)
        order = sorted((j for j in range(19683) if j != i), key=lambda j: d[j])[:8]; found = explorer.decoder.neighbours(i, "A")
        np.testing.assert_allclose([x for _, x in found], d[order], rtol=1e-4, atol=1e-5); assert len({j for j, _ in found} & set(order)) >= 7   # two of them may be equally far
        agree = lambda j: next(k for k in range(9) if (j - i) % 3**(k + 1))
        assert tree_neighbours(i) == [(j, agree(j)) for j in sorted((j for j in range(19683) if j != i), key=lambda j: (-agree(j), j))[:8]]
        at = explorer.places("tree", "A"); v = explorer.view(TernaryState(operation=str(i), layout="tree")); assert (v["3-adic neighbours"]["x"] == at[[j for j, _ in tree_neighbours(i)], 0]).all() and v["operation"]["y"].tolist() == [at[i, 1]]


def crossings(polygon, x, y):
    "Even-odd rule, edge by edge."
    inside = np.zeros(len(x), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0)):
        if y0 != y1: inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lasso_lists_what_lies_in_its_polygon(pair, layout):
    explorer, _ = pair; explorer.go(layout=layout, chosen="", path="B"); at = explorer.places(layout, "B").astype(float); low, high = at.min(0), at.max(0)
    corners = low + (high - low) * np.array([[.101, .052], [.83, .211], [.507, .949], [.31, .4], [.05, .77]])
    explorer.lassoed([dict(type="path", path="M" + "L".join(f"{x!r},{y!r}" for x, y in corners.tolist()) + "Z")])
    want = np.flatnonzero(crossings(corners, *at.T)); np.testing.assert_array_equal(explorer.chosen, want); assert 100 < len(want) and explorer.inputs["chosen"].value == " ".join(map(str, want))
    assert dict(explorer.readout(explorer.state))["listed"].startswith(f"{len(want):,} of 19,683") and explorer.live.layout.selections in (None, ())
    other = LAYOUTS[(LAYOUTS.index(layout) + 1) % 3]; explorer.go(layout=other); trace, = explorer.live.select_traces(dict(name="listed"))
    np.testing.assert_array_equal(np.stack([trace.x, trace.y], 1), explorer.places(other, "B")[want])                                           # the list outlives the picture
    explorer.lassoed([dict(type="rect", x0=1e6, x1=2e6, y0=0, y1=1)]); np.testing.assert_array_equal(explorer.chosen, want); assert "no operation lies in there" in explorer.problem.value
    explorer.lassoed([dict(type="rect", xref="x2", yref="y2", x0=0, x1=9, y0=0, y1=9e9)]); np.testing.assert_array_equal(explorer.chosen, want)


HOSTILE = [dict(layout="globe"), dict(layout=None), dict(operation=""), dict(operation="19683"), dict(operation="-1"), dict(operation="+0-+0-+0"), dict(operation=None), dict(operation=math.nan), dict(operation=True), dict(pick="stare"), dict(pick=0), dict(x=math.nan), dict(x=.5), dict(y="3"),
           dict(y=True), dict(y=None), dict(chosen="x"), dict(chosen="19683"), dict(chosen="5 mod 80"), dict(chosen=None), dict(chosen=[1, 2]), dict(epoch=math.nan), dict(path="C"), dict(colour="red"), dict(operation="0" * 5000), dict(chosen="9" * 5000)]


@pytest.mark.parametrize("bad", HOSTILE, ids=lambda b: str(b)[:40])
def test_hostile_state_is_one_sentence_and_the_picture_stands(pair, bad):
    explorer, _ = pair; explorer.go(epoch=2, path="B", layout="tree", operation="77", x=10, chosen="5 7"); before, state, card = explorer.live.to_json(), explorer.state, explorer.card.value
    with pytest.raises(UsageError) as e: explorer.go(**bad)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600 and explorer.live.to_json() == before and explorer.state == state and explorer.card.value == card


def test_far_values_are_taken_to_the_end(pair):
    explorer, _ = pair; s = explorer.settled(TernaryState(epoch=99, x=10**9, y=-10**9)); assert (s.epoch, s.x, s.y) == (4, 1000, -1000)
    if explorer.decoder.ball: assert float(explorer.pushed(s)["latent"].norm()) < 1


def test_traits_from_python(pair):
    explorer, _ = pair; explorer.go(epoch=0, path="A", layout="map", operation="min", x=0, y=0, chosen="", pick="hover", colour="correct"); figure = explorer.live
    for name, value in dict(epoch=4, path="B", colour="radius", layout="disc", operation="+0-+0-+0-", pick="click", x=50, y=-60, chosen="5 mod 729, 3").items():
        explorer.inputs[name].value = value; want = explorer.view(explorer.state); assert explorer.live is figure and explorer.problem.value == ""
        for t in figure.data:
            for k in "xy": assert t.name == "map" or np.array_equal(getattr(t, k), want[t.name][k]), (name, t.name)
    assert np.array_equal(figure.data[2].marker.color, explorer.values(explorer.settled(explorer.state))) and len(explorer.chosen) == 28
    explorer.inputs["operation"].value = "max"; assert (explorer.state.x, explorer.state.y) == (0, 0) and explorer.pad.points[0]["x"] == 0   # another operation begins at its own latent
    explorer.inputs["operation"].value = "nonsense"; assert "no operation is called" in explorer.problem.value and f"<b>{NAMED['max']}</b>" in explorer.card.value
    explorer.inputs["operation"].value = "0"; assert explorer.problem.value == ""


def test_gestures(pair):
    explorer, _ = pair; explorer.go(layout="map", operation="0", pick="hover", x=0, y=0); at = explorer.places("map", "A")
    explorer.pointed("map", [at[4711][::-1].tolist()]); assert explorer.state.operation == "4711"
    explorer.go(x=30); explorer.pointed("map", [at[4711][::-1].tolist()], True); assert (explorer.state.operation, explorer.state.pick, explorer.state.x) == ("4711", "click", 30)   # a click on the same keeps all
    explorer.pointed("points", [8]); assert explorer.state.operation == "4711"; explorer.pointed("points", [8], True); assert (explorer.state.operation, explorer.state.x) == ("8", 0); explorer.pointed("points", [])
    explorer.pad.moved = dict(index=0, x=123.4, y=-56.7, done=False); assert (explorer.state.x, explorer.state.y) == (123, -57) and "pushed by</span> 123, -57" in explorer.said.value
    explorer.pad.moved = dict(index=3, x=9., y=9., done=True); explorer.pad.moved = dict(index=0, x=math.nan, y=0., done=True); assert explorer.state.x == 123
    assert [p.get("fixed", False) for p in explorer.pad.points] == [False] + [True] * 8 and explorer.pad.image.startswith("data:image/png")


class Counted(DummyComm):
    sent = 0
    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys): Counted.sent += len(json.dumps(data, default=str)) + sum(memoryview(b).nbytes for b in buffers or [])


def test_what_a_change_sends(folders, capsys):
    worst = {}
    for kind, folder in folders.items():
        with patch("comm.create_comm", Counted):
            explorer = TernaryExplorer(folder); explorer.widget
            for change in [dict(layout="tree"), dict(layout="disc"), dict(epoch=2), dict(colour="radius"), dict(path="B"), dict(operation="77"), dict(x=50), dict(chosen="0 mod 1"), dict(layout="tree"), dict(layout="map"), dict(layout="disc", epoch=4), dict(path="A", colour="correct"), dict(chosen="")]:
                Counted.sent = 0; explorer.go(**change); key = ", ".join(change); worst[key] = max(worst.get(key, 0), Counted.sent); assert 0 < Counted.sent < 300_000, change
    with capsys.disabled(): print(" sent, kB:", {k: round(v / 1000, 1) for k, v in worst.items()}, end=" ")
    assert worst["x"] < 3000 and worst["epoch"] < 100_000


def test_views_of_many_states_and_what_they_take(folders, capsys):   # milliseconds are shown, not asserted: they belong to the machine
    for kind, folder in folders.items():
        explorer = TernaryExplorer(folder); spent = {"view": [], "panel": []}; traces = {t.name for t in explorer.figure(TernaryState()).data}
        for i in range(120):
            s = TernaryState(i % 5, "AB"[i % 2], list(explorer.colours)[i % 5], LAYOUTS[i % 3], str(131 * i), x=i, chosen="5 mod 81")
            got = {}
            for k in spent: t0 = time.process_time(); got[k] = getattr(explorer, k)(s); spent[k].append(1000 * (time.process_time() - t0))
            assert set(got["view"]) == traces and repr(got["view"]) == repr(explorer.view(s)), s   # nothing of an earlier state is left in it
        with capsys.disabled(): print("", kind, {k: f"median {np.median(v):.1f}, p95 {np.percentile(v, 95):.1f} ms" for k, v in spent.items()}, end="")


def test_film_and_stills(pair):
    explorer, _ = pair
    for layout in LAYOUTS:
        s = TernaryState(4, "B", "radius", layout, chosen="5 mod 81"); film = explorer.film(s, most=3); frame = film.frames[1]; names = [t.name for t in film.data]; assert [f.name for f in film.frames] == ["0", "8", "16"] and len(film.to_json()) < 5e6
        cloud = frame.data[0]; shown = cloud.z if layout == "map" else cloud.marker.color; want = explorer.values(replace(s, epoch=2)); np.testing.assert_allclose(shown, want[explorer.grid] if layout == "map" else want, atol=.006)
        assert names[frame.traces[0]] == ("map" if layout == "map" else "points") and [names[i] for i in frame.traces[1:]] == ["A now", "B now"]
    assert len({explorer.picture(TernaryState(e, layout=l)) for e in (0, 4) for l in LAYOUTS}) == 6


def test_a_run_with_one_pathway_reads_the_other_from_its_mean(tmp_path):
    folder = ternary_bundle(tmp_path, "hyperbolic", paths=("B",)); explorer, model = TernaryExplorer(folder), load_bundle(folder)
    x = torch.as_tensor(tables(77)).float(); mean = decoded_index(model.net.decode("A", model.net.encode(x)["A"][0]))
    card = explorer.panel(TernaryState(path="B", operation="77"))["card"]; assert f"A, from its Euclidean mean, reads</span> {int(mean[0])} " in card and f"B reads</span> {int(model.predict([77])[0])} " in card
    with pytest.raises(UsageError, match="path='A' is not allowed"): explorer.view(TernaryState())


def test_without_a_model_and_with_damage(tmp_path, runs_root):
    bare = TernaryExplorer(coverage()); bare.go(layout="disc", operation="5", chosen="1 2"); assert bare.pad is None and "no model" in bare.card.value and bare.pushed(bare.state) == {} and len(bare.view(bare.state)["latent neighbours"]["x"]) == 0
    folder = ternary_bundle(tmp_path); weights = next((folder/"weights").glob("*.safetensors")); weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckFailed) as e: TernaryExplorer(folder)
    assert "\n" not in str(e.value); write_sums(folder)
    with pytest.raises(CheckFailed) as e: TernaryExplorer(folder)
    assert "\n" not in str(e.value)
    ball = ternary_bundle(tmp_path/"ball", "hyperbolic"); (ball/"plane.npz").unlink(); write_sums(ball)
    with pytest.raises(DataMissing, match="plane.npz"): TernaryExplorer(ball)
    with pytest.raises(DataMissing): TernaryExplorer("nothing")
    assert listed("").size == 0
