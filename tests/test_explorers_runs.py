"The runs explorer without a browser: pure views, every trait, what is damaged or vanishes, sizes; refresh and checks."
import asyncio
import json
import re
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from geonb.core.atomic import write_sums
from geonb.core.errors import UsageError
from geonb.core.facts import COLUMNS
from geonb.explorers.runs import RunsExplorer
from geonb.explorers.runs_table import LINES, PAGE
from geonb.explorers.runs_view import PANELS, RunsState, shipped
from shelves import finished, LABELS, partial


def words(text): return re.sub(r"<[^>]+>", " ", text)
def ids(rows): return [label[:1] for _, label, _ in rows]
def picked(explorer): return [k.split("/")[-1][0] for k in explorer._drawn.selected]
def shown(explorer): return [b.description[:1] for b in explorer.inputs["selected"].boxes if b.description]
def live(explorer, name): return next(t for t in explorer.live.data if t.name == name)


@pytest.fixture
def shelf(runs_root):
    "Four runs of a kind, one of another laboratory, an unfinished, a damaged and a foreign one."
    kept = [finished(runs_root, f"{c*10}-r1", seed=i, skill=.6 + .1*i, lr=lr, columns=("val/extra",) if c != "b" else ()) for i, (c, lr) in enumerate(zip("abcd", (.1, .2, .1, .2)))]
    finished(runs_root, "eeeeeeeeee-r1", laboratory="ternary", metric="exact A", answers=False, code="x"); partial(runs_root, "ffffffffff-r1", lr=.3); (runs_root/"pentachora"/"digits"/"holiday-r1").mkdir()
    spoilt = finished(runs_root, "9999999999-r1", seed=9); (spoilt/"manifest.json").write_text("{"); return kept


@pytest.fixture
def explorer(shelf): return RunsExplorer(examples={})


# --- the table

def test_rows_of_every_kind(explorer):
    rows = explorer.table(RunsState()); text = {label: words(line) for _, label, line in rows}
    assert len(rows) == 8 and {t.split()[0] for t in text.values()} == {"finished", "interrupted", "damaged", "foreign"}
    assert "the command that started it continues it" in text["ffffffffff-r1"] and "manifest.json in 9999999999-r1 is not readable JSON" in text["9999999999-r1"] and "holds no run of geonb" in text["holiday-r1"]
    assert "lr=0.2" in text["bbbbbbbbbb-r1"] and "test accuracy" in text["aaaaaaaaaa-r1"] and "exact A" in text["eeeeeeeeee-r1"] and "code" not in text["eeeeeeeeee-r1"]   # alone in its laboratory: nothing differs
    assert dict(explorer.readout(RunsState()))["shown"].startswith("8 (")


@pytest.mark.parametrize("filters, want", [(dict(laboratory="ternary"), "e"), (dict(status="interrupted"), "f"), (dict(text="lr=0.2"), "db"), (dict(text="LR=0.2 seed=1"), "b"), (dict(text="nothing such"), ""), (dict(status="finished", laboratory="pentachora", sort="metric"), "dcba"),
                                            (dict(status="finished", laboratory="pentachora", sort="metric", descending=False), "abcd"), (dict(status="finished", sort="run", descending=False), "abcde"), (dict(text="continues"), "f"), (dict(status="finished", metric="exact A", sort="metric"), "e")])
def test_filters_and_order(explorer, filters, want):
    got = ids(explorer.table(RunsState(**filters))); assert "".join(got)[:len(want)] == want and (filters.get("metric") or len(got) == len(want))


@pytest.mark.parametrize("column", COLUMNS)
def test_any_column_orders_and_gaps_come_last(explorer, column):
    up, down = ([explorer.shelf.at[k] for k, _, _ in explorer.table(RunsState(sort=column, descending=d))] for d in (False, True)); assert {r["key"] for r in up} == {r["key"] for r in down} and len(up) == 8
    gap = lambda r: not r["metrics"] if column == "metric" else r[dict(run="run_id").get(column, column)] in (None, "")
    for rows in (up, down): flags = [gap(r) for r in rows]; assert flags == sorted(flags)


def test_parameters_that_differ_within_what_is_shown(explorer):
    line = lambda **f: words(explorer.table(RunsState(**f))[0][2])
    assert "lr" not in line(text="aaaa")   # alone, it differs in nothing
    assert "lr=0.1" in line(status="finished", laboratory="pentachora", sort="run", descending=False) and "lr" not in line(text="lr=0.1 finished", sort="run", descending=False)


# --- the figure

def test_curves_are_the_histories(explorer, shelf):
    s = explorer.settled(RunsState(selected=("dddd", "a"), column="loss/total")); v = explorer.view(s)
    for i, p in enumerate((shelf[3], shelf[0])):
        h = json.loads((p/"history.json").read_text()); assert v[f"curve {i + 1}"]["x"].tolist() == [r["epoch"] for r in h] and v[f"curve {i + 1}"]["y"].tolist() == [r["loss/total"] for r in h]
    assert v["ends"] == {"x": [6., 6.], "y": [h2[-1]["loss/total"] for h2 in (json.loads((p/"history.json").read_text()) for p in (shelf[3], shelf[0]))], "text": [" 1", " 2"]} and all(not len(v[f"curve {i}"]["x"]) for i in range(3, 13))
    assert explorer.columns(s.selected)[0] == ["val/accuracy", "val/extra", "loss/total"]
    assert "val/extra" not in explorer.columns(explorer.keys(("a", "b")))[0] and explorer.problems(RunsState(selected=("a", "b"), column="val/extra")) == ["bbbbbbbbbb-r1 has no column val/extra"]


def test_confusions_are_counted(explorer, shelf):
    s = RunsState(selected=("eeee", "cccc", "aaaa"), panel="confusion"); v = explorer.view(s); share = []
    for p in (shelf[2], shelf[0]):
        z = np.load(p/"predictions_test.npz")["logits"].argmax(1); share.append(np.array([[((LABELS == i) & (z == j)).sum()/(LABELS == i).sum() for j in range(4)] for i in range(4)]))
    for i in range(2): assert np.allclose(v[f"confusion {i + 1}"]["z"], share[i], atol=1e-7) and v[f"confusion {i + 1}"]["x"] == [f"class {c}" for c in range(4)]
    said = lambda s: [a["text"] for a in explorer.dress(s)["annotations"]]; assert all("the first two with predictions of 3 ticked" in said(replace(s, panel=p))[0] for p in ("confusion", "difference")) and not any("first two" in t for t in said(replace(s, selected=("eeee", "aaaa"))))
    v = explorer.view(replace(s, panel="difference")); assert np.allclose(v["difference"]["z"], share[0] - share[1], atol=1e-7) and not len(v["confusion 1"]["z"]) and not len(v["curve 1"]["x"])


def test_a_difference_needs_the_same_samples(explorer, shelf):
    np.savez(shelf[0]/"predictions_test.npz", logits=np.eye(4)[(LABELS + 1) % 4], labels=(LABELS + 1) % 4); s = RunsState(selected=("aaaa", "bbbb"), panel="difference")
    assert not explorer.view(s)["difference"]["z"].size and "cannot be subtracted" in explorer.problems(s)[0] and "same samples" in explorer.dress(s)["annotations"][0]["text"]


def test_long_curves_are_thinned_and_end_where_they_end(runs_root):
    finished(runs_root, "aaaaaaaaaa-r1", epochs=4321); c = RunsExplorer().view(RunsState(selected=("a",), column="loss/total"))["curve 1"]; assert len(c["x"]) == 1000 and (c["x"][0], c["x"][-1]) == (1, 4321) and np.allclose(c["y"], 1/c["x"])


def test_more_than_twelve_are_said_not_drawn(runs_root):
    for i in range(14): finished(runs_root, f"{i:010d}-r1", seed=i, answers=False)
    explorer = RunsExplorer(); s = RunsState(selected=tuple(f"{i:010d}" for i in range(14))); assert sum(len(t["x"]) > 0 for k, t in explorer.view(s).items() if k.startswith("curve")) == len(LINES) == 12 and "12 of 14" in explorer.problems(s)[-1]


def test_view_is_pure_and_figure_shows_it(explorer):
    for panel in PANELS:
        s = explorer.settled(RunsState(selected=("a", "b"), panel=panel)); one, two = explorer.view(s), explorer.view(s); fig = explorer.figure(s)
        for t in fig.data:
            for k in ("x", "y"): assert np.array_equal(np.asarray(one[t.name][k]), np.asarray(two[t.name][k])) and np.array_equal(np.asarray(getattr(t, k) if getattr(t, k) is not None else []), np.asarray(one[t.name][k]))
        assert set(one) == {t.name for t in fig.data} and explorer.settled(s) == s
    assert len({explorer.picture(RunsState(selected=("a", "b"), panel=p)) for p in PANELS}) == 3 and explorer.film().data[0].name == "curve 1" and not explorer.film().frames


# --- the shell, driven by traits

def test_every_control(explorer):
    explorer.widget; c = explorer.inputs; rows = c["selected"]; assert picked(explorer) == ["d", "c", "b"] and shown(explorer) == [x[:1] for _, x, _ in explorer.table(explorer._drawn)]
    c["laboratory"].value = "ternary"; assert shown(explorer) == ["e"]; c["laboratory"].value = "all"; c["status"].value = "finished"; assert len(shown(explorer)) == 5; c["dataset"].value = "digits"; assert len(shown(explorer)) == 5
    c["text"].value = "lr=0.2"; assert shown(explorer) == ["d", "b"]; rows.boxes[1].value = False; assert picked(explorer) == ["d", "c"]; c["text"].value = ""; assert picked(explorer) == ["d", "c"]   # c was ticked while hidden
    c["sort"].value = "metric"; c["descending"].value = False; assert shown(explorer)[:2] != ["d", "c"]; c["metric"].value = "exact A"; assert shown(explorer)[0] == "e"; c["metric"].value = "first"
    c["column"].value = "val/extra"; assert np.allclose(live(explorer, "curve 1").y, [e + 3 for e in range(1, 7)]); assert "val/extra" in c["column"].options
    c["panel"].value = "difference"; assert np.asarray(live(explorer, "difference").z).shape == (4, 4) and explorer.live.layout.xaxis4.visible and not explorer.live.layout.xaxis.visible; c["panel"].value = "curves"; assert explorer.live.layout.xaxis.visible
    rows.headings["seed"].click(); assert (explorer._drawn.sort, explorer._drawn.descending) == ("seed", False); rows.headings["seed"].click(); assert explorer._drawn.descending and explorer.problem.value == ""
    explorer.buttons["none"].click(); assert explorer._drawn.selected == () and not any(b.value for b in rows.boxes) and list(c["column"].options) == [""]
    for t in explorer.live.data: want = explorer.view(explorer._drawn)[t.name]; assert np.array_equal(np.asarray(t.x if t.x is not None else []), np.asarray(want["x"]))


def test_pages(runs_root):
    for i in range(2*PAGE + 3): finished(runs_root, f"{i:010d}-r1", seed=i, answers=False, lr=i % 2)
    explorer = RunsExplorer(); explorer.widget; c = explorer.inputs; assert [o[0] for o in c["page"].options] == ["1 of 3", "2 of 3", "3 of 3"]
    c["page"].value = 2; assert len([b for b in c["selected"].boxes if b.description]) == 3; c["text"].value = "lr=0"; assert (explorer._drawn.page, [o[0] for o in c["page"].options]) == (0, ["1 of 2", "2 of 2"])   # a filter begins at the first page
    assert explorer.settled(RunsState(page=99)).page == 2 and explorer.go(page=1, text="")._drawn.page == 1 and len(explorer.inputs["page"].options) == 3


HOSTILE = [("text", "x"*999), ("selected", 7), ("selected", ("zzz",)), ("selected", ("pentachora/digits/gone",)), ("selected", (None,)), ("selected", float("nan"))]

@pytest.mark.parametrize("name, value", HOSTILE)
def test_hostile_traits_leave_the_picture(explorer, name, value):
    explorer.widget; before = (explorer._drawn, live(explorer, "curve 1").y.tolist()); explorer.inputs[name].value = value
    assert "geonb-problem" in explorer.problem.value and (explorer._drawn, live(explorer, "curve 1").y.tolist()) == before
    explorer.inputs["panel"].value = "confusion" if name != "selected" else explorer.inputs["panel"].value
    explorer.go(text="", selected=("aaaa",)); assert explorer.problem.value == "" and picked(explorer) == ["a"]


@pytest.mark.parametrize("bad", [dict(page=float("nan")), dict(page="1"), dict(sort="size"), dict(descending="yes"), dict(metric="none such"), dict(panel=3), dict(column="val/acuracy"), dict(column=1), dict(selected="aaaa"), dict(selected=("",)), dict(laboratory="x"), dict(dataset=None), dict(status=[]), dict(text=None)])
def test_hostile_states_are_one_sentence(explorer, bad):
    s = replace(RunsState(selected=("aaaa",)), **bad)
    for f in (explorer.view, explorer.table, explorer.readout, explorer.side_by_side, explorer.dress, explorer.problems):
        with pytest.raises(UsageError) as e: f(s)
        assert "\n" not in str(e.value) and len(str(e.value)) < 400
    with pytest.raises(UsageError): explorer.view("no state")
    with pytest.raises(UsageError, match="no part of the state"): explorer.go(colour=1)


# --- what changes on the disk

def test_a_run_that_vanishes_is_a_sentence(explorer, shelf):
    explorer.widget; shutil.rmtree(shelf[2]); explorer.inputs["column"].value = "loss/total"
    assert "cccccccccc-r1: history.json of cccccccccc-r1 is not there, nor is its folder any more" in explorer.problem.value and len(live(explorer, "curve 1").x) == 6 and not len(live(explorer, "curve 2").x) and len(live(explorer, "curve 3").x) == 6 and "different contents" not in explorer.facts.value
    explorer.buttons["refresh"].click(); assert "cccccccccc-r1 is not there any more and was unticked" in explorer.problem.value and "1 gone" in explorer.news.value and picked(explorer) == ["d", "b"] and "c" not in shown(explorer)


@pytest.mark.parametrize("content, words", [(b"", "not readable JSON"), (b"{}", "no list of rows"), (b"[1, 2]", "no list of rows"), (b"\xff\xfe", "not readable JSON")])
def test_a_history_that_is_damaged_meanwhile(explorer, shelf, content, words):
    explorer.widget; (shelf[3]/"history.json").write_bytes(content); explorer.inputs["column"].value = "loss/total"; assert words in explorer.problem.value and len(live(explorer, "curve 2").x) == 6 and not len(live(explorer, "curve 1").x)


def test_refresh_finds_new_finished_and_interrupted_runs(explorer, runs_root):
    explorer.widget; half = runs_root/"pentachora"/"digits"/"ffffffffff-r1.partial"; shutil.rmtree(half); finished(runs_root, "ffffffffff-r1", seed=11); partial(runs_root, "0000000000-r1", laboratory="operators", dataset="new-data"); finished(runs_root, "9999999999-r2", seed=3)
    explorer.buttons["refresh"].click(); assert "3 new" in explorer.news.value and "1 gone" in explorer.news.value and "operators" in explorer.inputs["laboratory"].options and "new-data" in explorer.inputs["dataset"].options
    assert {r["run_id"]: r["status"] for r in explorer.shelf.rows}["ffffffffff-r1"] == "finished" and picked(explorer) == ["d", "c", "b"]
    explorer.inputs["laboratory"].value = "operators"; shutil.rmtree(runs_root/"operators"); explorer.buttons["refresh"].click(); assert explorer.inputs["laboratory"].value == "all" and len(shown(explorer)) > 1   # a filter for what is gone falls away


# --- checks

def test_verify_says_what_is_wrong(explorer, shelf):
    explorer.widget; explorer.go(selected=("aaaa", "bbbb", "ffff", "holiday", "9999")); raw = (shelf[1]/"history.csv").read_bytes(); (shelf[1]/"history.csv").write_bytes(raw + b" ")
    explorer.buttons["selected"].click(); said = words(explorer.verdict.value); assert {k.split("/")[-1]: v for k, v in explorer.checked.items()} == {"aaaaaaaaaa-r1": [], "bbbbbbbbbb-r1": ["history.csv does not match its SHA-256"], "ffffffffff-r1.partial": ["the run is not finished"], "holiday-r1": ["SHA256SUMS is missing or unreadable"], "9999999999-r1": ["manifest.json does not match its SHA-256"]}
    assert "5 checked, 4 not in order" in said and "aaaaaaaaaa-r1: sound" in said
    shutil.rmtree(shelf[0]); explorer.buttons["selected"].click(); assert explorer.checked["pentachora/digits/aaaaaaaaaa-r1"] == ["the folder is not there any more"]
    explorer.go(text="lr=0.1"); explorer.buttons["shown"].click(); assert set(explorer.checked) == {f"pentachora/digits/{c*10}-r1" for c in "ac"}
    explorer.buttons["none"].click(); explorer.buttons["selected"].click(); assert "nothing is selected" in explorer.problem.value


def test_a_check_runs_beside_the_page_and_can_be_stopped(explorer, monkeypatch):
    from geonb.explorers import runs as room
    explorer.widget; seen, gate = [], threading.Semaphore(0)
    async def live():
        monkeypatch.setattr(room, "verify_run", lambda p: [] if gate.acquire(timeout=30) else ["nobody let it go on"])
        explorer.verify(tuple(explorer.shelf.at)); await asyncio.sleep(.01); assert not explorer.checked   # the loop turns while the first bundle is being read, which would otherwise end as not let go
        seen.append(words(explorer.verdict.value)); assert explorer.buttons["stop"].layout.display is None
        gate.release(2)
        while len(explorer.checked) < 2: await asyncio.sleep(.01)
        explorer.buttons["stop"].click(); gate.release(8); await asyncio.wait([explorer._task]); assert 2 <= len(explorer.checked) < 8 and not any(explorer.checked.values()) and explorer.buttons["stop"].layout.display == "none"
        monkeypatch.setattr(room, "verify_run", lambda p: 1/0); explorer.verify(); await explorer._task; assert "ended early (ZeroDivisionError" in explorer.problem.value
    asyncio.run(live()); assert "checking 1 of 8" in seen[0]


# --- nothing yet, and others' words

def test_before_the_first_run_the_examples_are_listed(runs_root, tmp_path):
    example = finished(tmp_path, "aaaaaaaaaa-r1"); explorer = RunsExplorer(examples=dict(pentachora=example)); row = words(explorer.table(explorer.first())[0][2])
    assert "example" in row and "example: pentachora" in row and dict(explorer.readout(explorer.first()))["examples that ship, no run yet"] == "1" and len(explorer.view(explorer.first())["curve 1"]["x"]) == 6 and repr(explorer) == "RunsExplorer(1 example)"
    explorer.widget; explorer.verify(); assert "example/pentachora: sound" in words(explorer.verdict.value)
    finished(runs_root, "bbbbbbbbbb-r1"); explorer.refresh(); assert [r["run_id"] for r in explorer.shelf.rows] == ["bbbbbbbbbb-r1"] and not explorer.examples
    assert {r["example"] for r in RunsExplorer(runs_root/"empty").shelf.rows} == set(shipped()) and all(p.is_dir() for p in shipped().values())


def test_nothing_at_all(runs_root):
    explorer = RunsExplorer(examples={}); explorer.widget; assert explorer._drawn.selected == () and "no run" in words(explorer.inputs["selected"].children[-1].value) and explorer.picture() and explorer.problem.value == "" and explorer.table(RunsState()) == []
    explorer.buttons["selected"].click(); assert "nothing is selected" in explorer.problem.value


def test_words_of_others_are_no_markup(runs_root):
    p = finished(runs_root, "aaaaaaaaaa-r1", note="<img src=x onerror=alert(1)>", dataset="digits"); q = finished(runs_root, "bbbbbbbbbb-r1", seed=1, note="<script>", metric="<b>m</b>")
    m = json.loads((q/"manifest.json").read_text()); m["run_id"] = "<i>q</i>-r1"; m["seed"] = "<u>"; (q/"manifest.json").write_text(json.dumps(m)); write_sums(q); explorer = RunsExplorer(); s = explorer.settled(RunsState(selected=tuple(explorer.shelf.at)))
    for text in (explorer.side_by_side(s), json.dumps(explorer.dress(s)["annotations"]), *(line for _, _, line in explorer.table(s)), *(t["hovertemplate"] for k, t in explorer.view(s).items() if k.startswith("curve"))):
        for tag in ("<img", "<script", "<b>m", "<i>q", "<u>"): assert tag not in text
    assert p.is_dir()


def test_no_path_of_this_machine_is_shown(explorer, runs_root):
    s = explorer.first(); everything = explorer.side_by_side(s) + json.dumps(explorer.dress(s)) + "".join(line for _, _, line in explorer.table(s)) + str(explorer.readout(s)) + "".join(explorer.problems(s)) + repr(explorer); assert str(runs_root) not in everything


# --- speed and size

def shelf_of(root, n):
    for i in range(n): finished(root, f"{i:010x}-r1", seed=i, epochs=40, answers=i % 10 == 0, laboratory=("pentachora", "ternary", "chromatic")[i % 3], lr=.1*(i % 5), depth=i % 3, width=8*i)
    return RunsExplorer(root, {})


def measure(n, tmp_path, rounds):
    explorer = shelf_of(tmp_path, n); chosen = tuple(explorer.shelf.at)[:12]; start = time.process_time(); explorer.shelf.refresh(); again = time.process_time() - start; spent, sent = [], []
    for i in range(rounds):
        s = RunsState(selected=chosen[:1 + i % 12], panel=PANELS[i % 3], page=i % 4, sort=list(COLUMNS)[i % 8], text=("", f"seed={i}")[i % 2]); start = time.process_time(); v = explorer.view(s); table, rest = explorer.table(s), (explorer.readout(s), explorer.side_by_side(s), explorer.dress(s)); spent.append(time.process_time() - start)
        sent.append(sum(x.nbytes if hasattr(x, "nbytes") else len(str(x)) for t in v.values() for x in t.values()) + sum(len(line) for _, _, line in table) + len(str(rest)))
    print(f"{n} runs: refresh {1000*again:.0f} ms; update of everything p95 {1000*np.percentile(spent, 95):.1f} ms; at most {max(sent)/1e3:.0f} kB"); assert max(sent) < 300e3


@pytest.mark.slow
def test_three_hundred_runs(tmp_path): measure(300, tmp_path, 200)

def test_sixty_runs(tmp_path): measure(60, tmp_path, 48)


def test_the_largest_update_is_small(runs_root):
    for i in range(12): finished(runs_root, f"{i:010d}-r1", seed=i, epochs=3000, labels=np.arange(600) % 62, **{f"parameter_{k}": i*k for k in range(60)})
    explorer = RunsExplorer(); s = explorer.settled(RunsState(selected=tuple(f"{i:010d}" for i in range(12))))
    for panel in PANELS:
        v = explorer.view(replace(s, panel=panel)); size = sum(x.nbytes if hasattr(x, "nbytes") else len(str(x)) for t in v.values() for x in t.values()) + sum(len(line) for _, _, line in explorer.table(s)) + len(explorer.side_by_side(s)); print(f"{panel}: {size/1e3:.0f} kB"); assert size < 300e3
