"The chromatic explorer without a browser: against independent arithmetic, where its answers come from, and traits driven from Python."
import base64
import io
import itertools
import json
import math
import re
import time
from dataclasses import replace

import comm
import numpy as np
import pytest
from geonb.chromatic.distances import BASES, METRICS
from geonb.chromatic.embeddings import View
from geonb.chromatic.folder import write_index, write_logits
from geonb.core.atomic import write_sums
from geonb.core.config import LABORATORIES
from geonb.core.errors import CheckFailed, DataMissing, GeonbError, UsageError
from geonb.data.images import load_images
from geonb.explorers.answers import VIEWS, Answers
from geonb.explorers.chroma import ChromaExplorer, ChromaState
from PIL import Image
from test_explorers import bundle

SETS = dict(probe=300, calib=120, test=240)


def population(S=7, C=4, seed=0, sets=SETS):
    "Random members: role -> logits [S, N, C] and labels [N]."
    r = np.random.default_rng(seed); out = {}
    for role, n in sets.items():
        y = np.arange(n) % C; z = 2 * np.eye(C)[y] + .8 * r.normal(size=(n, C)) + r.normal(size=(S, n, C)); z[:3] += .7 * r.normal(size=(n, C))
        out[role] = (2 * z).astype(np.float32), y
    return out


def named(p): return {k if not i else "labels" if k == "probe" else f"{k}_labels": v[i] for k, v in p.items() for i in (0, 1)}


def export(folder, p, configs=None, index=True, first=13):
    "The members of a population as files of a probes folder."
    folder.mkdir(parents=True)
    for role, (z, _) in p.items():
        for s, one in enumerate(z): write_logits(folder/f"{role}_logits_seed{first + s}.npz", one)
    if index: write_index(folder, "digits", "0" * 64, list("abcd"), {r: dict(ids=np.arange(len(y)) + 1000, labels=y) for r, (_, y) in p.items()}, [dict(seed=first + s, config=(configs or "x" * len(p["probe"][0]))[s]) for s in range(len(p["probe"][0]))])


def chromatic_bundle(root, run_id="0123456789-r1", p=None, started="2026-01-01T00:00:00Z"):
    "A finished bundle with what the explorer reads."
    path = bundle(root, run_id, laboratory="chromatic", started=started)
    if p is not None: export(path/"artifacts"/"probes", p)
    write_sums(path); return path


@pytest.fixture(scope="module")
def people(): return population()


@pytest.fixture(scope="module")
def explorer(people): return ChromaExplorer(named(people) | dict(seeds=range(13, 20)))


@pytest.fixture
def runs_root(tmp_path, monkeypatch):
    monkeypatch.setenv("GEONB_RUNS", str(tmp_path/"runs")); monkeypatch.setitem(LABORATORIES, "chromatic", "geonb.chromatic")
    return tmp_path/"runs"


def softmax(z): e = np.exp(z.astype(float) - z.max(-1, keepdims=True)); return e / e.sum(-1, keepdims=True)


def probabilities_at(explorer, z, calibrated): return softmax(z / (explorer.answers.temperatures()["T"][:, None, None] if calibrated else 1))


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_map_is_that_of_the_points(explorer, people, calibrated):
    p = probabilities_at(explorer, people["probe"][0], calibrated); x = p.reshape(7, -1) / math.sqrt(p[0].size); x -= x.mean(0); u, w, _ = np.linalg.svd(x, full_matrices=False)
    v = explorer.view(ChromaState("prob_mse", calibrated)); seen = np.stack([v["space"][k] for k in "xyz"], 1); want = u[:, :3] * w[:3]
    np.testing.assert_allclose(np.abs(seen), np.abs(want), atol=1e-9); np.testing.assert_allclose(v["shares"]["y"], (w[:6]**2) / (w[:6]**2).sum(), atol=1e-9)
    assert v["equal"]["y"] == [1 / 6] * 2 and np.array_equal(v["map"]["y"], v["space"]["y"]) and len(v["featureless"]["x"]) == 12


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_picture(explorer, name):
    v = explorer.view(ChromaState(name)); full = dict(explorer.readout(ChromaState(name)))
    assert full["metric"] == name and np.isfinite(v["map"]["x"]).all() and len(set(v["map"]["marker"]["color"])) == 7 and (len(v["ellipses"]["x"]) == 7 * 62) == (name != "one_minus_cka")
    assert v["map"]["marker"] == {"color": v["accuracy members"]["marker"]["color"]} and v["space"]["marker"]["color"] == v["map"]["marker"]["color"]


@pytest.mark.parametrize("chosen, calibrated", itertools.product([(13,), (14, 17), (13, 15, 16, 19), tuple(range(13, 20))], [False, True]), ids=str)
def test_figures_of_the_ensemble_and_of_all_of_its_size(explorer, people, chosen, calibrated):
    z, y = people["test"]; p = probabilities_at(explorer, z, calibrated); n = np.arange(len(y))
    def figures(at):
        q = p[list(at)].mean(0); sure, hit = q.max(-1), q.argmax(-1) == y; bins = np.minimum(np.ceil(sure * 15), 15)
        return hit.mean(), -np.log(q[n, y]).mean(), sum(abs(sure[bins == b].sum() - hit[bins == b].sum()) for b in range(1, 16)) / len(y)
    v = explorer.view(ChromaState(calibrated=calibrated, selected=chosen)); every = np.array([figures(at) for at in itertools.combinations(range(7), len(chosen))])
    for i, k in enumerate(("accuracy", "NLL", "ECE")):
        np.testing.assert_allclose(v[f"{k} chosen"]["x"], [figures(s - 13 for s in chosen)[i]], atol=1e-9)
        np.testing.assert_allclose(v[f"{k} random"]["x"], [np.quantile(every[:, i], .025), every[:, i].mean(), np.quantile(every[:, i], .975)], atol=1e-9)
        np.testing.assert_allclose(v[f"{k} members"]["x"], [figures([s])[i] for s in range(7)], atol=1e-9)


def test_confusion_and_the_examples_two_members_differ_on(explorer, people):
    z, y = people["probe"]; a, b = z[4].argmax(-1), z[1].argmax(-1); v, words = explorer.view(ChromaState(one=17, other=14)), dict(explorer.readout(ChromaState(one=17, other=14)))
    want = np.zeros((4, 4), int)
    for t, i, j in zip(y, a, b): want[t, i] += 1; want[t, j] -= 1
    assert np.array_equal(v["confusion"]["z"], want) and np.array_equal(v["pair"]["x"], v["map"]["x"][[4, 1]])
    apart = [n for n in range(300) if a[n] != b[n]]; right = [sum(p[n] == y[n] for n in apart) for p in (a, b)]
    assert words["17 and 14"] == f"{len(apart)} of 300 answers differ: 17 right in {right[0]}, 14 in {right[1]}, neither in {len(apart) - sum(right)}" and words["examples"].startswith(", ".join(map(str, apart[:16])) + " and ")


def test_random_ensembles_are_drawn_when_there_are_many():
    a = named(population(14)); e, again = (Answers(**a).ensemble((0, 1, 2, 3, 4), False) for _ in range(2))
    assert (e["count"], e["exact"]) == (200, False) and all(e["figures"][k][x] == again["figures"][k][x] for k in e["figures"] for x in ("low", "mean", "high")) and e["figures"]["NLL"]["low"] < e["figures"]["NLL"]["mean"] < e["figures"]["NLL"]["high"]


def test_the_second_look_is_fast(explorer, capsys):
    looks = [ChromaState(m, c, selected=tuple(range(13, 13 + k))) for m in BASES for c in (False, True) for k in (2, 5)]; spent = []
    for look in looks: explorer.view(look)
    for look in looks: t0 = time.perf_counter(); explorer.view(look); spent.append(1000 * (time.perf_counter() - t0))
    with capsys.disabled(): print(f" chroma: median {np.median(spent):.2f} ms, p95 {np.percentile(spent, 95):.2f} ms ", end="")
    assert np.median(spent) < 40


# --- traits

def test_traits_move_the_one_figure(people, monkeypatch):
    explorer = ChromaExplorer(named(people) | dict(seeds=range(13, 20))); explorer.widget; figure = explorer.live; traces = lambda: {t.name: t for t in figure.data}
    for name, value in dict(metric="sym_kl", calibrated=False, ellipses=False, selected=(13, 19), one=15, other=18).items():
        explorer.inputs[name].value = value; want = explorer.view(explorer.state); got = traces()
        assert getattr(explorer.state, name) == value and explorer.live is figure and explorer.problem.value == ""
        for t, w in want.items():
            for k in set(w) & set("xyz"): np.testing.assert_array_equal(np.asarray(got[t][k]), np.asarray(w[k]), err_msg=f"{t}.{k}")
        assert list(got["map"].selectedpoints) == want["map"]["selectedpoints"] and list(got["space"].marker.color) == want["space"]["marker"]["color"]
    assert "sym_kl_T1" in explorer.words.value and figure.layout.annotations[4].text == "15 minus 18" and figure.layout.annotations[3].text.startswith("2 chosen")
    with monkeypatch.context() as m:
        m.setattr(ChromaExplorer, "view", lambda *_: 1 / 0); explorer.inputs["metric"].value = "js"
    assert "ZeroDivisionError" in explorer.problem.value and np.array_equal(traces()["map"].x, want["map"]["x"])
    explorer.inputs["metric"].value = "prob_mse"; assert explorer.problem.value == ""
    monkeypatch.delenv("IN_TEST", raising=False); assert set(explorer._repr_mimebundle_()) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


@pytest.mark.parametrize("name, value, word", [("selected", (), "empty"), ("selected", math.nan, "selected="), ("selected", (13, 99), "no member"), ("selected", "13", "selected="), ("selected", ([],), "no member"), ("selected", None, ""), ("other", 13, "both 13"), ("selected", (math.nan,), "no member"), ("plane", "t-SNE", "needs 10")], ids=str)
def test_a_hostile_trait_leaves_the_picture_standing_with_a_sentence(people, name, value, word):
    explorer = ChromaExplorer(named(people) | dict(seeds=range(13, 20))); explorer.widget; explorer.go(selected=(14, 15)); before = explorer.live.to_json()
    explorer.inputs[name].value = value
    if not word: return   # None: all members
    assert word in explorer.problem.value and "\n" not in explorer.problem.value and explorer.live.to_json() == before and explorer._repr_mimebundle_()["image/png"]
    explorer.inputs[name].value = {"selected": (14, 15), "other": 14, "plane": "MDS"}[name]; assert explorer.problem.value == "" and explorer.live.to_json() == before


@pytest.mark.parametrize("name", ["metric", "calibrated", "one", "plane"])
@pytest.mark.parametrize("value", ["red", math.nan, 99, None, [1]], ids=str)
def test_a_hostile_choice_of_a_menu_changes_nothing(people, name, value):
    explorer = ChromaExplorer(named(people) | dict(seeds=range(13, 20))); before = explorer.widget and explorer.live.to_json(); state = explorer.state
    try: explorer.inputs[name].value = value
    except Exception as e: assert type(e).__name__ == "TraitError"   # traitlets' own refusal
    assert explorer.live.to_json() == before and (value is None or explorer.state == state)   # None empties a menu
    if value is not None:
        with pytest.raises(UsageError) as e: explorer.go(**{name: value})
        assert name in str(e.value) and "\n" not in str(e.value) and explorer.live.to_json() == before


def test_a_lasso_a_click_and_a_double_click_from_the_page(people):
    explorer = ChromaExplorer(named(people) | dict(seeds=range(13, 20))); explorer.widget; at = [t.name for t in explorer.live.data].index("map")
    def page(event, points, trace=at): explorer.live._js2py_pointsCallback = dict(event_type=event, points=dict(trace_indexes=[trace] * len(points), point_indexes=points, xs=[0] * len(points), ys=[0] * len(points)), selector=None, device_state=None)
    x, y = (np.asarray(explorer.live.data[at][k]) for k in "xy")
    def lasso(*seeds, **more): explorer.live._js2py_relayout = dict(source_view_id="page", relayout_data=dict(selections=[dict(type="path", xref="x", yref="y", path="M" + "L".join(f"{x[s - 13] + a},{y[s - 13] + b}" for a, b in [(-1e-6, -1e-6), (1e-6, -1e-6), (1e-6, 1e-6), (-1e-6, 1e-6)]) + "Z") | more for s in seeds]))
    lasso(15, 18); assert explorer.state.selected == (15, 18)
    page("plotly_click", [3]); assert (explorer.state.one, explorer.state.other) == (14, 16); page("plotly_click", [6], at + 1); assert (explorer.state.one, explorer.state.other) == (16, 19)
    page("plotly_selected", []); lasso(14, xref="x2", yref="y2"); assert explorer.state.selected == (15, 18) and "no member" in explorer.problem.value and list(explorer.live.data[at].selectedpoints) == [2, 5]
    explorer.clicks.value = "chooses"; page("plotly_click", [0]); assert explorer.state.selected == (13, 15, 18) and explorer.problem.value == ""
    page("plotly_deselect", []); assert explorer.state.selected == tuple(range(13, 20)) and all(b.value for b in explorer.inputs["selected"].boxes.values())
    page("plotly_deselect", []); assert list(explorer.live.data[at].selectedpoints) == list(range(7))


# --- where the answers come from

def test_a_run_by_folder_by_id_and_as_the_newest(runs_root, people):
    other = population(seed=1); old = chromatic_bundle(runs_root, p=people); chromatic_bundle(runs_root, "aaaaaaaaaa-r1", other, "2026-02-01T00:00:00Z"); chromatic_bundle(runs_root, "bbbbbbbbbb-r1", None, "2026-03-01T00:00:00Z")
    by_folder, by_id, newest = ChromaExplorer(old), ChromaExplorer("01234"), ChromaExplorer()
    assert by_folder.title == by_id.title == "digits, 7 members, run 0123456789-r1" and "aaaaaaaaaa-r1" in newest.title and by_folder.seeds == tuple(range(13, 20)) and by_folder.answers.classes == tuple("abcd")
    want = ChromaExplorer(named(people) | dict(seeds=range(13, 20))).view(ChromaState()); got = by_folder.view(ChromaState())
    assert np.allclose(got["map"]["x"], want["map"]["x"], atol=1e-12) and got["NLL chosen"] == want["NLL chosen"] and not np.allclose(newest.view(ChromaState())["map"]["x"], want["map"]["x"])
    assert dict(by_folder.readout(ChromaState()))["examples"].startswith("10") and min(by_folder.answers.ids) == 1000


def test_a_folder_of_logits_without_anything_else(tmp_path, people):
    export(tmp_path/"plain", {"probe": people["probe"]}, index=False); explorer = ChromaExplorer(str(tmp_path/"plain")); words = dict(explorer.readout(explorer.first()))
    assert explorer.title == "probe logits in plain" and not explorer.first().calibrated and words["no figures"] == "no set has labels" and words["13 and 14"].endswith("answers differ") and explorer.picture()
    with pytest.raises(UsageError, match="no labelled examples"): explorer.view(ChromaState(calibrated=True))
    np.save(tmp_path/"plain"/"labels.npy", people["probe"][1]); labelled = ChromaExplorer(tmp_path/"plain"); words = dict(labelled.readout(labelled.first()))
    assert labelled.first().calibrated and words["calibrated on"] == "the probe itself" and words["measured on"] == "300 probe examples"


def test_what_is_no_source_is_one_sentence(runs_root, people, tmp_path):
    bare, foreign = chromatic_bundle(runs_root, "dddddddddd-r1"), bundle(runs_root, "cccccccccc-r1"); mixed = tmp_path/"mixed"; export(mixed, people, "xxxyxxx"); (tmp_path/"empty").mkdir(); spoilt = chromatic_bundle(runs_root, "eeeeeeeeee-r1", people)
    file = next((spoilt/"artifacts"/"probes").glob("probe_logits*")); file.write_bytes(file.read_bytes()[:-9])
    for source, kind, words in [("nothing", DataMissing, "no run or bundle"), (foreign, UsageError, "laboratory pentachora"), (bare, DataMissing, "probe_logits"), (mixed, CheckFailed, "mixes 2 configurations"), (tmp_path/"empty", DataMissing, "probe_logits"),
                                (3, UsageError, "int holds no answers"), ({"logits": 1}, UsageError, "probe among them"), (np.zeros((2, 5, 3)), UsageError, "3 members"), (spoilt, CheckFailed, "SHA256|probe_logits|checksum"), ("a\0b", UsageError, "run name"), (" ", UsageError, "run name")]:
        with pytest.raises(GeonbError, match=words) as e: ChromaExplorer(source)
        assert isinstance(e.value, kind) and "\n" not in str(e.value)
    assert ChromaExplorer(mixed, allow_mixed=True).answers.S == 7


def test_words_of_others_are_no_markup(people):
    explorer = ChromaExplorer(named(people) | dict(seeds=["<b>1</b>", *range(6)], ids=["<i>", *range(299)])); explorer.widget
    assert "<b>1" not in explorer.words.value and "<i>" not in explorer.words.value and "<b>" not in json.dumps(explorer.dress(explorer.state)["annotations"]) and explorer.state.one == "<b>1</b>"


def test_stills_differ_and_the_film_walks_through_the_metrics(explorer):
    assert len({explorer.picture(ChromaState(m, selected=s)) for m in ("js", "zero_one") for s in ((13,), (14, 15))}) == 4
    film = explorer.film(ChromaState("js", True, False)); assert [f.name for f in film.frames] == [m for m in METRICS if not m.endswith("_T1")]
    i = list(film.frames[4].traces).index([t.name for t in film.data].index("map")); assert film.frames[4].name == "js_cal" and np.array_equal(film.frames[4].data[i].x, explorer.view(ChromaState("js_cal"))["map"]["x"])


# --- maps to look at, examples, what is sent

@pytest.fixture(scope="module")
def crowd(): return ChromaExplorer(named(population(12)) | dict(seeds=range(13, 25)))


def test_a_view_moves_the_map_and_nothing_else(crowd, monkeypatch):
    monkeypatch.setitem(VIEWS, "UMAP", lambda D2: View("UMAP", np.arange(24.).reshape(12, 2) ** 1.5, dict(neighbours=11)))   # the real one compiles itself for half a minute; its own tests are in test_chromatic_views
    flat, tsne, umap = (crowd.view(ChromaState("js", plane=k)) for k in VIEWS); d = lambda v: np.linalg.norm((p := np.stack([v["map"]["x"], v["map"]["y"]], 1))[:, None] - p, axis=2)
    np.testing.assert_allclose(d(umap), (lambda p: np.linalg.norm(p[:, None] - p, axis=2))(np.arange(24.).reshape(12, 2) ** 1.5), atol=1e-9)
    for v in (tsne, umap):
        assert not len(v["ellipses"]["x"]) and not np.allclose(v["map"]["x"], flat["map"]["x"]) and np.array_equal(v["pair"]["x"], v["map"]["x"][:2]) and v["map"]["marker"] == flat["map"]["marker"]
        assert all(np.array_equal(v[t][k], flat[t][k]) for t in flat if t not in ("ellipses", "pair", "map") for k in set("xyz") & set(flat[t]))
    words, dress = dict(crowd.readout(ChromaState("js", plane="t-SNE"))), crowd.dress(ChromaState("js", plane="t-SNE"))
    assert "no evidence" in words["t-SNE is a view"] and "perplexity 3.7" in words["t-SNE is a view"] and "no evidence" in dress["annotations"][0]["text"] and not dress["xaxis"]["showticklabels"] and crowd.picture(ChromaState("js", plane="t-SNE"))
    assert np.array_equal(crowd.view(ChromaState("js", plane="t-SNE"))["map"]["x"], tsne["map"]["x"])   # computed once


def test_views_of_few_or_unknown_are_one_sentence(explorer, crowd):
    for one, plane, word in ((explorer, "t-SNE", "of 7 members"), (explorer, "UMAP", "needs 10"), (crowd, "PCA", "MDS, t-SNE, UMAP"), (crowd, math.nan, "plane="), (crowd, ["MDS"], "plane=")):
        with pytest.raises(UsageError, match=word) as e: one.view(ChromaState(plane=plane))
        assert "\n" not in str(e.value)
    copies = ChromaExplorer(np.repeat(population(1)["probe"][0], 10, 0)); assert np.isfinite(copies.view(ChromaState(plane="t-SNE"))["map"]["x"]).all()


def test_what_takes_long_is_announced_and_what_fails_is_said(people):
    explorer = ChromaExplorer(named(population(12)) | dict(seeds=range(13, 25))); explorer.widget; said = []; explorer.problem.observe(lambda c: said.append(c["new"]), "value")
    explorer.inputs["plane"].value = "t-SNE"; assert any("computing t-SNE…" in v for v in said) and explorer.problem.value == "" and explorer._drawn.plane == "t-SNE"
    said.clear(); explorer.inputs["plane"].value = "MDS"; explorer.inputs["plane"].value = "t-SNE"; assert not said
    with pytest.MonkeyPatch.context() as m: m.setitem(VIEWS, "UMAP", lambda D2: 1 / 0); explorer.inputs["plane"].value = "UMAP"
    assert "ZeroDivisionError" in explorer.problem.value and explorer._drawn.plane == "t-SNE"


def test_examples_on_which_two_differ(explorer, people):
    z, y = people["probe"]; p = probabilities_at(explorer, z, True); a, b = p[4].argmax(-1), p[1].argmax(-1); groups = explorer.answers.disagreements(4, 1, True, most=3)
    want = {"one right": a == y, "other right": b == y, "neither right": (a != y) & (b != y)}
    for k, group in groups.items():
        these = sorted(np.flatnonzero((a != b) & want[k]), key=lambda n: -min(p[4, n].max(), p[1, n].max())); assert group["count"] == len(these) and [e["at"] for e in group["examples"]] == these[:3]
        for e in group["examples"]: assert e["truth"] == y[e["at"]] and e["answers"] == (a[e["at"]], b[e["at"]]) and np.allclose(e["sure"], (p[4, e["at"]].max(), p[1, e["at"]].max()), atol=1e-9)
    assert sum(g["count"] for g in groups.values()) == (a != b).sum()


def test_pictures_come_from_the_set_that_a_run_names(tmp_path, runs_root):
    d = load_images("digits", 8); x, y, ids = (np.concatenate([getattr(s, k) for s in (d.train, d.val)]) for k in ("images", "labels", "ids")); o = np.argsort(ids); at = np.arange(5, 405, 2); x, y = x[o][at], y[o][at]
    r = np.random.default_rng(0); z = (3 * np.eye(10)[y] + 2 * r.normal(size=(5, len(y), 10))).astype(np.float32)
    def folder(name, ids, dataset="digits"):
        f = tmp_path/name; f.mkdir()
        for s, one in enumerate(z): write_logits(f/f"probe_logits_seed{s}.npz", one)
        write_index(f, dataset, "0" * 64, list("0123456789"), {"probe": dict(ids=ids, labels=y)}, [dict(seed=s, config="x") for s in range(5)]); return ChromaExplorer(f)
    explorer = folder("right", at); page = explorer.examples(explorer.first()); shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(u)))) for u in re.findall(r"base64,([^\"]+)", page)]
    named_ids = [int(v) for v in re.findall(r"no\. (\d+)", page)]; assert len(shown) == len(named_ids) > 5 and all(np.array_equal(p, x[at.tolist().index(n), ..., 0]) for p, n in zip(shown, named_ids)) and len(page) < 300_000
    for other, word in ((folder("shifted", at + 1), "not the set"), (folder("unknown", at, "no such set"), "no pictures")):
        page = other.examples(other.first()); assert "<img" not in page and word in page and "<figcaption>" in page


def test_the_channel_opens_with_everything_and_an_update_is_small(people, monkeypatch):
    sent = []
    class Wire(comm.base_comm.BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys): sent.append((msg_type, self.comm_id, data or {}, len(json.dumps(data or {}, default=str)) + sum(len(memoryview(b).tobytes()) for b in buffers or [])))
    monkeypatch.setattr(comm, "create_comm", lambda *args, **kwargs: Wire(*args, **kwargs)); explorer = ChromaExplorer(named(people) | dict(seeds=range(13, 20))); explorer.widget; me = explorer.live.comm.comm_id
    mine = [(kind, data) for kind, to, data, _ in sent if to == me]; assert [kind for kind, _ in mine] == ["comm_open"] and [t["name"] for t in mine[0][1]["state"]["_widget_data"]] == list(explorer.view(explorer.state))
    sent.clear(); explorer.inputs["metric"].value = "js"; kb = sum(size for *_, size in sent) / 1000; assert 1 < kb < 300, kb
    state = explorer.live.get_state(); assert np.array_equal(explorer.live.data[2].x, explorer.view(explorer.state)["map"]["x"]) and "js" in state["_widget_layout"]["annotations"][0]["text"]   # for a page that is loaded again


def test_the_film_fits_on_a_page(explorer): assert len(explorer.film().to_json()) < 5_000_000
