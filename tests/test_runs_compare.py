"Runs side by side, from Python and on the command line: figures by hand, what may not be compared, what a difference means."
import json
import shutil

import numpy as np
import pytest
from scipy.stats import binom

import geonb
from geonb.core.atomic import write_json, write_sums
from geonb.core.errors import CheckFailed, DataMissing, UsageError
from geonb.core.facts import Shelf
from geonb.explorers.comparison import compare, confusion, kept_interval, read_answers, read_history
from shelves import finished, LABELS, partial


def logits(path): return np.load(path/"predictions_test.npz")["logits"]
def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err


@pytest.fixture
def three(runs_root): return [finished(runs_root, "aaaaaaaaaa-r1", lr=.1), finished(runs_root, "bbbbbbbbbb-r1", skill=.9, lr=.2), finished(runs_root, "cccccccccc-r1", seed=1, lr=.1)]


# --- the comparison

def test_figures_are_those_counted_by_hand(three):
    found = compare(*three); right = [logits(p).argmax(1) == LABELS for p in three]
    for t, r in zip(found.test, right[1:]):
        only, other = int((r & ~right[0]).sum()), int((~r & right[0]).sum()); k = min(only, other); p = min(1., 2*binom.cdf(k, only + other, .5))
        assert (t["n"], t["only_a"], t["only_b"]) == (300, only, other) and abs(t["difference"] - (r.mean() - right[0].mean())) < 1e-12 and abs(t["p"] - p) < 1e-9 and t["low"] < t["difference"] < t["high"]
    assert sorted(t["p_holm"] for t in found.test) == sorted([min(1, 2*min(t["p"] for t in found.test)), max(max(t["p"] for t in found.test), min(1, 2*min(t["p"] for t in found.test)))])
    assert found.parameters == dict(lr=[.1, .2, .1]) and found.last["loss/total"] == [1/6, 1/6, 1/6 + .1] and found.surroundings == {}
    for m, r in zip(found.metrics["test accuracy"], right): assert m == dict(value=float(r.mean()), low=float(r.mean()) - .05, high=float(r.mean()) + .05)


def test_members_answer_by_their_mean_probability(runs_root):
    a = finished(runs_root, "aaaaaaaaaa-r1", members=5, laboratory="chromatic"); z = logits(a).astype(float); p = np.exp(z)/np.exp(z).sum(-1, keepdims=True); want = p.mean(0).argmax(-1)
    got = read_answers(a/"predictions_test.npz"); assert got["members"] == 5 and (got["predicted"] == want).all()
    C = confusion(got); assert C.sum() == 300 and all(C[i, j] == ((LABELS == i) & (want == j)).sum() for i in range(4) for j in range(4))


@pytest.mark.parametrize("other, words, paired", [
    (dict(seed=1), "seed alone", True), (dict(lr=.2), "one seed each", True), (dict(seed=1, lr=.2), "cannot tell the effect", True), (dict(dataset="mnist"), "the data sets differ (digits, mnist): a difference between figures means nothing", False),
    (dict(data={"files": "x"}), "one name and different contents", False), (dict(started="2026-01-09T00:00:00Z"), "the same seed and parameters", True), (dict(labels=(LABELS + 1) % 4), "the same seed and parameters", None), (dict(answers=False), "the same seed", None)])
def test_what_a_difference_means_is_said(runs_root, other, words, paired):
    found = compare(finished(runs_root, "aaaaaaaaaa-r1", **dict(lr=.1)), finished(runs_root, "bbbbbbbbbb-r1", skill=.7, **(dict(lr=.1) | other)))
    assert any(words in s for s in found.remarks), found.remarks
    assert ("n" in found.test[0]) == bool(paired) and (paired or "no paired difference" in found.answers()[0])


def test_it_shows_itself(three):
    found = compare(*three); text, page = repr(found), found._repr_html_()
    for word in ("lr", "0.2", "test accuracy", "val/accuracy", "after Holm", "same 300 test samples"): assert word in text and word in page
    plain = found.as_dict(); assert json.loads(json.dumps(plain, allow_nan=False)) == plain and plain["kind"] == "comparison of runs"
    nasty = finished(three[0].parents[2], "dddddddddd-r1", note="<script>alert(1)</script>"); assert "<script>" not in compare(three[0], nasty)._repr_html_()


def test_intervals_are_of_the_very_number():
    test = dict(accuracy=.9, accuracy_low=.8, accuracy_high=.95, f1=.5, f1_low=.6, f1_high=.7, n=3)
    assert [kept_interval(v, test) for v in (.9, .5, .8000001, 3, None)] == [(.8, .95), None, None, None, None] and kept_interval(.9, "no dict") is None


# --- what is refused

def test_what_cannot_be_compared(cli, three, runs_root):
    half, ternary, odd = partial(runs_root, "ffffffffff-r1"), finished(runs_root, "eeeeeeeeee-r1", laboratory="ternary"), finished(runs_root, "dddddddddd-r1", metric="samples")
    spoilt = finished(runs_root, "9999999999-r1"); (spoilt/"history.csv").write_text("x")
    for args, code, words in [([three[0]], 2, "two runs or more, got 1"), ([], 2, "Missing argument"), ([three[0], "aaaaaaaaaa-r1"], 2, "more than once"), ([three[0], half], 2, "is interrupted"), ([three[0], ternary], 2, "different laboratories (pentachora, ternary)"),
                              ([three[0], odd], 2, "no figure in common"), ([three[0], spoilt], 3, "history.csv does not match"), ([three[0], "0123"], 4, "no run or bundle"), ([three[0], ""], 2, "an empty run name"), ([three[0], runs_root], 3, "SHA256SUMS is missing")]:
        status, out, err = cli("runs", "compare", *args); assert (status, out) == (code, "") and one_sentence(err) and words in err, err
        status, out, err = cli("runs", "compare", *args, "--json"); assert status == code and json.loads(out)["exit_code"] == code
    for kind, names in ((UsageError, (three[0],)), (CheckFailed, (three[0], spoilt)), (DataMissing, ("0123", three[0]))):
        with pytest.raises(kind): geonb.compare(*names)


def test_the_command(cli, three):
    code, out, err = cli("runs", "compare", "aaaa", "bbbb", three[2]); assert (code, err) == (0, "") and out.rstrip("\n") == repr(compare(*three))
    code, out, err = cli("runs", "compare", *three, "--json"); found = json.loads(out); assert code == 0 and [r["run_id"][0] for r in found["runs"]] == ["a", "b", "c"] and found["parameters"] == dict(lr=[.1, .2, .1]) and found["test"][0]["n"] == 300
    assert geonb.compare(*geonb.runs()).last == compare(*three[::-1]).last   # rows of the list, newest first


# --- what a run keeps

@pytest.mark.parametrize("arrays, words", [(dict(labels=LABELS), "lacks logits"), (dict(logits=np.zeros((300, 4))), "lacks labels"), (dict(logits=np.zeros((300, 4)), labels=LABELS[:9]), "N labels are needed"), (dict(logits=np.zeros((300, 2)), labels=LABELS), "classes there are not"),
                                           (dict(logits=np.full((300, 4), np.inf), labels=LABELS), "not finite"), (dict(logits=np.array(["x"]), labels=LABELS), "N labels are needed"), (dict(logits=np.zeros((0, 4)), labels=LABELS[:0]), "N labels are needed")])
def test_answers_of_another_shape(three, arrays, words):
    np.savez(three[1]/"predictions_test.npz", **arrays)
    with pytest.raises(CheckFailed, match=words): read_answers(three[1]/"predictions_test.npz")
    write_sums(three[1]); assert words in compare(*three[:2]).test[0]["why"]   # one run's odd file does not take the rest of the comparison away


def test_curves_are_numbers_only(tmp_path):
    (tmp_path/"history.json").write_text('[{"epoch": 1, "a": NaN, "b": true, "c": "x", "d": 1, "val/z": 2}, {"epoch": 2, "a": 3.5, "d": null, "loss/total": 1e999}, {"epoch": 3}]')
    found = read_history(tmp_path/"history.json"); assert {k: [v.tolist() for v in xy] for k, xy in found.items()} == {"val/z": [[1], [2]], "a": [[2], [3.5]], "d": [[1], [1]]} and list(found)[0] == "val/z"


# --- the list

def test_the_list_from_python(three, runs_root):
    partial(runs_root, "ffffffffff-r1", lr=.5); (runs_root/"pentachora"/"digits"/"bad-r1").mkdir(); (runs_root/"pentachora"/"digits"/"holiday").mkdir(); (runs_root/"alchemy"/"gold").mkdir(parents=True); shutil.copytree(three[0], runs_root/"pentachora"/"digits"/"best")
    finished(runs_root, "0000000000-r1", laboratory="alchemy")
    rows = geonb.runs(); status = {r["run_id"]: r["status"] for r in rows}; assert status == {"aaaaaaaaaa-r1": "finished", "bbbbbbbbbb-r1": "finished", "cccccccccc-r1": "finished", "ffffffffff-r1": "interrupted", "bad-r1": "foreign", "holiday": "foreign", "0000000000-r1": "foreign"}
    assert all(r["why"] for r in rows if r["status"] != "finished") and "alchemy" in rows[-1]["why"] + "".join(r["why"] for r in rows)
    assert [r["run_id"][0] for r in geonb.runs(status="finished", sort="metric")] == ["b", *sorted("ac", key=lambda c: -next(r["metrics"]["test accuracy"] for r in rows if r["run_id"][0] == c))]
    assert "lr=0.2" in repr(rows) and "2 min" in repr(rows) and "<table" in rows._repr_html_() and "no runs yet" in repr(geonb.runs(runs_root/"nowhere"))


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"run_id": 1, "laboratory": "pentachora", "dataset": "digits", "started": "x"}', '{"run_id": "x", "laboratory": "pentachora", "dataset": "digits", "started": "x", "headline": []}', "", "\0", "[" * 100000])
def test_a_manifest_of_others_is_a_row(three, cli, runs_root, text):
    (three[1]/"manifest.json").write_text(text); row = next(r for r in geonb.runs() if "bbbb" in r["path"]); assert row["status"] == "damaged" and "manifest.json" in row["why"] and "\n" not in row["why"]
    assert cli("runs", "list")[0] == 0
    (three[1]/"manifest.json").unlink(); (three[1]/"manifest.json").mkdir(); assert next(r for r in geonb.runs() if "bbbb" in r["path"])["status"] == "damaged"


def test_the_shelf_reads_again_what_changed(three, runs_root, monkeypatch):
    shelf = Shelf(); reads = []
    from geonb.core import facts
    real = facts.read_row; monkeypatch.setattr(facts, "read_row", lambda path, example="": reads.append(path) or real(path, example))
    assert shelf.refresh() == dict(new=[], gone=[], changed=[]) and reads == []
    write_json(three[1]/"config.json", dict(parameters=dict(lr=.7))); shelf.refresh(); assert reads == [three[1]] and shelf.at["pentachora/digits/bbbbbbbbbb-r1"]["parameters"] == dict(lr=.7)
    shutil.rmtree(three[0]); partial(runs_root, "ffffffffff-r1"); assert shelf.refresh() == dict(new=["pentachora/digits/ffffffffff-r1.partial"], gone=["pentachora/digits/aaaaaaaaaa-r1"], changed=[])

