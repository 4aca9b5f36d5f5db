"What a cell cannot show of the analysis: that records hold for any data, depend on the data and the seed alone, and that the report is made of them."
import copy
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from geonb.chromatic.analysis import analysis, artifact_tests, ensemble_report, read_reports, write_artifacts
from geonb.chromatic.distances import distance_matrix
from geonb.chromatic.figures import report_figures
from geonb.chromatic.folder import Probes, read_probes, write_index, write_logits
from geonb.chromatic.records import material
from geonb.chromatic.report import SECTIONS, report_markdown
from geonb.stats.temperature import fit_temperatures
from geonb.core.errors import UsageError
from geonb.core.seeds import stream

FEW = dict(metrics=["prob_mse", "zero_one", "js_T1"], bootstraps=40, reps=99)
TESTS = dict(metrics=["prob_mse", "js_cal"], reps=199, others=99)


def answers(seed, index, S, n, C, shift, group, untied):
    "Logits of S members, some of which share a part of what is else their own."
    r = stream(seed, "analysis test", index); y = np.tile(np.arange(C), -(-n // C))[:n]; r.shuffle(y); own = r.normal(size=(S, n, C))
    own[group] = (1 - shift ** 2) ** .5 * own[group] + shift * r.normal(size=(n, C))
    return (1.7 * (1.2 * np.eye(C)[y] + (.5 - .5 * untied) * r.normal(size=(n, C)) + own)).astype(np.float32), y.astype(np.int64)


def population(seed=0, S=10, N=160, C=4, shift=0., hosts=None, untied=0., **more):
    hosts = ["a", "b"] * S if hosts is None else hosts; group = np.array([h == "b" for h in hosts[:S]]); sets = [answers(seed, k, S, n, C, shift, group, untied) for k, n in enumerate((N, 120, 200))]
    members = tuple(dict(seed=s, host=hosts[s], device="cpu", threads=1, worker=0, queue=s, config="c" * 64, streams=dict(init=s, order=s)) for s in range(S))
    (p, y), (c, u), (t, v) = sets
    return Probes(tuple(range(S)), p, y, c, u, t, v, index=dict(dataset="made up", split="5" * 64), members=members, files={"probe_index.json": "e" * 64}, **more)


def records(p, **kw): return dict(analysis=analysis(p, **FEW, **kw), artifact_tests=artifact_tests(p, **TESTS, **kw), ensemble=ensemble_report(p, sizes=[1, 2], reps=99, bootstraps=50) if p.S > 1 else ensemble_report(p))


def walk(x, at=""):
    "Every dict in a record, with its place."
    if isinstance(x, dict):
        yield at, x
        for k, v in x.items(): yield from walk(v, f"{at}/{k}")
    elif isinstance(x, list):
        for i, v in enumerate(x): yield from walk(v, f"{at}/{i}")


def bare(p, *names): return replace(p, **{k: None for n in names for k in (n, "labels" if n == "probe" else f"{n}_labels") if k != "probe"})


# --- any data

CASES = dict(whole=lambda p: p, no_labels=lambda p: replace(p, labels=None), no_calib=lambda p: bare(p, "calib"), no_test=lambda p: bare(p, "test"), logits_only=lambda p: bare(p, "calib", "test", "probe"), test_unlabelled=lambda p: replace(p, test_labels=None),
             copies=lambda p: replace(p, probe=np.repeat(p.probe[:1], p.S, 0)), two_kinds=lambda p: replace(p, probe=np.concatenate([np.repeat(p.probe[:1], 4, 0), np.repeat(p.probe[1:2], p.S - 4, 0)])), constant=lambda p: replace(p, probe=np.concatenate([0 * p.probe[:1] + 1, p.probe[1:]])),
             failed_fit=lambda p: replace(p, calib=np.concatenate([-p.calib[:1], p.calib[1:]])), one_class=lambda p: replace(p, labels=0 * p.labels), nothing_logged=lambda p: replace(p, members=(), index={}, files={}), huge=lambda p: replace(p, probe=p.probe * 300, calib=p.calib, test=p.test * 300))

@pytest.mark.parametrize("case", CASES)
def test_records_are_json_without_nan_whatever_is_missing(case, tmp_path):
    p = CASES[case](population(S=6, N=80)); r = records(p); text = json.dumps(r, allow_nan=False)
    for section in SECTIONS: assert f"## {section}\n" in report_markdown(json.loads(text))
    report_figures(r); write_artifacts(tmp_path, p, **(FEW | dict(reps=19, bootstraps=20)))
    assert report_markdown(read_reports(tmp_path)) == (tmp_path/"reports"/"REPORT.md").read_text()


@pytest.mark.parametrize("S", [1, 2, 3, 4, 5])
def test_few_members_are_told_what_they_lack(S):
    r = records(population(S=S)); json.dumps(r, allow_nan=False); text = report_markdown(r); t, e = r["artifact_tests"], r["ensemble"]
    assert (t["primary"]["rejected"] is None) == (S < 4) and bool(t["rows"]) == (S >= 4) and e["available"] == (S >= 2)
    if S < 4: assert f"the nulls need 4 members or more, and there are {S}" in text
    if 2 <= S < 4: assert "permuting members needs 4 of them" in text
    if S == 1: assert "an ensemble needs 2 members, and there is 1" in text and "one member has no distance to another" in text
    assert (r["analysis"]["axes"] is None) == (S < 5)


def test_what_is_missing_stands_where_the_figure_would_be():
    r = records(bare(population(), "calib")); text = report_markdown(r)
    assert r["analysis"]["main"] == "zero_one" and r["artifact_tests"]["primary"]["rejected"] is None
    assert "cannot be decided: no temperature was fitted, because there are no calib logits" in text and "Not evaluated: no temperature was fitted" in text
    p = population(); r = records(replace(p, calib=np.concatenate([-p.calib[:1], p.calib[1:]])))
    assert "seed 0 ended at the limit 20, which is a failed fit" in r["analysis"]["left_out"]["prob_mse_cal"] and r["artifact_tests"]["primary"]["rejected"] is None
    r = records(bare(p, "calib").on_probe()); assert "PROBE" in report_markdown(r) and r["analysis"]["source"]["calibrate_on"] == "probe" and r["ensemble"]["available"]


# --- nothing but the data and the seed

def shuffled(p, seed=1):
    "The same answers, the examples of every set in another order."
    rng = stream(seed, "shuffle"); out = {}
    for z, y in (("probe", "labels"), ("calib", "calib_labels"), ("test", "test_labels")): k = rng.permutation(getattr(p, z).shape[1]); out |= {z: getattr(p, z)[:, k], y: getattr(p, y)[k]}
    return replace(p, **out)


def test_a_shared_order_of_examples_and_labels_changes_nothing():
    p = population(shift=.6); q = shuffled(p); assert not np.array_equal(p.probe, q.probe)
    assert records(p) == records(q)                                                              # bootstraps and draws included, not only to 1e-9
    for m in ("prob_mse_cal", "sym_kl_cal", "zero_one", "one_minus_cka"): assert abs(distance_matrix(p.probe, m, fit_temperatures(p.calib, p.calib_labels)) - material(q).distance(m)).max() < 1e-9
    torn = replace(p, labels=shuffled(p).labels); assert records(torn)["artifact_tests"]["facts"] != records(p)["artifact_tests"]["facts"]      # labels that are torn off do


def test_another_seed_moves_draws_and_nothing_else():
    p = population(); a, b = analysis(p, **FEW), analysis(p, **FEW, seed=1); w = a["metrics"]["prob_mse_cal"], b["metrics"]["prob_mse_cal"]
    assert w[0]["mds"] == w[1]["mds"] and w[0]["sha256"] == w[1]["sha256"] and w[0]["bootstrap"]["evr2"]["observed"] == w[1]["bootstrap"]["evr2"]["observed"] and w[0]["bootstrap"]["evr2"]["low"] != w[1]["bootstrap"]["evr2"]["low"]
    assert records(p) == records(p)


@contextmanager
def threads(workers):
    with ThreadPoolExecutor(workers) as ex: ex.capacity = lambda: workers; yield ex

@pytest.mark.parametrize("workers", [2, 5])
def test_records_do_not_depend_on_workers_reduced(workers, monkeypatch):
    "Threads in place of processes: the same pieces, without the price of starting them."
    p = population(); alone = records(p); monkeypatch.setattr("geonb.core.executor.process_pool", threads); monkeypatch.setattr("geonb.chromatic.analysis.HOME", 0)
    assert records(p, executor="processes", workers=workers) == alone

@pytest.mark.slow
def test_records_do_not_depend_on_workers(monkeypatch):
    monkeypatch.setattr("geonb.chromatic.analysis.HOME", 0); p = population(); assert records(p, executor="processes", workers=2) == records(p)


# --- what is asked for must be there

def test_sets_that_do_not_fit_are_one_sentence():
    p = population(); short = replace(p, probe=p.probe[:, :90], labels=p.labels[:90])
    for call, words in ((lambda: analysis(replace(p, probe=[*p.probe[:-1], p.probe[-1, :90]])), "the same examples and 2 or more classes for every member"), (lambda: artifact_tests(p, ["js_T1"], reps=9, against=short), "two trainings are compared on the same examples and classes, got 160 x 4 and 90 x 4"),
                        (lambda: analysis(replace(p, labels=p.labels[:90])), "probe logits of 160 examples need 160 labels, got 90"), (lambda: artifact_tests(p, reps=9, against=replace(p, labels=0 * p.labels)), "and these have others"), (lambda: ensemble_report(p, sizes=[2, 11]), "an ensemble of 11 members cannot be formed from 10"),
                        (lambda: analysis(p, ["prob_mse_call"]), "did you mean 'prob_mse_cal'"), (lambda: artifact_tests(p, nulls=["A33"]), "null 'A33' is not known"), (lambda: analysis(replace(p, calib=p.calib[:4])), "calib and probe logits are of the same members and classes")):
        with pytest.raises(UsageError) as e: call()
        assert words in str(e.value) and "\n" not in str(e.value)


# --- tests

def test_a_planted_batch_is_flagged_and_a_random_one_is_not():
    p = population(5, S=12, shift=.8, hosts=list("aaaaaaaabbbb")); t = artifact_tests(p, **TESTS); host = next(r for r in t["batch"] if r["factor"] == "host")
    assert host["p"] < .01 and t["primary"]["rejected"] and "a batch effect explains structure" in t["words"] and "host (share" in t["words"]
    calm = artifact_tests(population(5, S=12, hosts=list("abababababab")), **TESTS); host = next(r for r in calm["batch"] if r["factor"] == "host")
    assert host["p"] > .05 and not calm["primary"]["rejected"] and "is not rejected" in calm["words"].replace("are not", "is not")


def test_every_p_comes_with_what_it_is_made_of():
    p = population(); r = records(p) | dict(again=artifact_tests(p, ["prob_mse"], ["A3"], reps=99, against=population(5))); seen = 0
    for at, d in walk(r):
        if not isinstance(d.get("p"), float): continue
        seen += 1; assert 0 < d["p"] <= 1 and d["R"] >= 99 and isinstance(d["seed"] if "seed" in d else r["ensemble"]["seed"], int), at
        assert isinstance(d["mean"], float) and isinstance(d["sd"], float) and any(isinstance(d.get(k), float) for k in ("observed", "r", "F")), at
        if d.get("p_holm") is not None: assert d["p_holm"] >= d["p"], at
    assert seen > 40
    rest = sorted((x for x in r["artifact_tests"]["rows"] if x["p_holm"] is not None), key=lambda x: x["p"]); assert all(a["p_holm"] <= b["p_holm"] for a, b in zip(rest, rest[1:])) and all(x["p_holm"] is None for x in r["artifact_tests"]["rows"] if x["primary"])


def test_power_is_planned_for_the_cloud_that_was_measured():
    t = artifact_tests(population(), ["prob_mse"], ["A3", "A4"], reps=99, power=2); assert {r["S"] for r in t["power"]} == {8, 10, 12, 16, 24} and t["power_replicates"] == 2 and t["facts"]["prob_mse_cal A3"]["dimension"] > 25
    assert "2 simulated clouds in each line" in report_markdown(dict(artifact_tests=t))


def test_another_training_is_matched_by_seed():
    p = population(7, shift=.9, hosts=list("aaaaaabbbb")); q = population(8, shift=.9, hosts=list("aaaaaabbbb")); a = artifact_tests(p, ["prob_mse"], ["A3"], reps=199, against=q)["against"]
    turned = replace(q, seeds=q.seeds[::-1], probe=q.probe[::-1], calib=q.calib[::-1], test=q.test[::-1], members=q.members[::-1]); b = artifact_tests(p, ["prob_mse"], ["A3"], reps=199, against=turned)["against"]
    assert a[0]["r"] == pytest.approx(b[0]["r"]) and a[0]["r"] > .5 and a[0]["p"] < .05
    wrong = replace(q, seeds=q.seeds[::-1]); assert artifact_tests(p, ["prob_mse"], ["A3"], reps=199, against=wrong)["against"][0]["r"] < a[0]["r"] - .3
    part = artifact_tests(p, ["prob_mse"], ["A3"], reps=99, against=dict(fewer=replace(q, seeds=tuple(range(6, 16)))))["against"]; assert part[0]["reason"] == "4 members have the same seed in both, and 5 are needed"


@pytest.mark.parametrize("low,words", [(.99, "many images"), (.7, "in part"), (.4, "too few to fix the picture")])
def test_stability_is_told_by_its_size(low, words):
    r = records(population()); r["analysis"]["metrics"]["prob_mse_cal"]["bootstrap"] |= dict(procrustes_r=dict(low=low, high=1., observed=None, se=.1), chance_r=dict(observed=.3, high=.5)); assert words in report_markdown(r)


# --- files and text

def bundle(folder, p):
    "The artifacts of a population, as a run leaves them."
    box = folder/"artifacts"/"probes"
    for k, s in enumerate(p.seeds):
        for role, z in (("probe", p.probe), ("calib", p.calib), ("test", p.test)): write_logits(box/f"{role}_logits_seed{s}.npz", z[k])
    ids = lambda y: dict(ids=list(range(len(y))), labels=y)
    write_index(box, "made up", "5" * 64, list("abcd"), dict(probe=ids(p.labels), calib=ids(p.calib_labels), test=ids(p.test_labels)), [dict(m) for m in p.members]); (folder/"artifacts"/"split.json").write_text(json.dumps(dict(sha256="5" * 64)))
    return folder


def test_artifacts_are_sound_and_their_report_is_made_of_them(tmp_path):
    from geonb.chromatic.verify import verify
    b = bundle(tmp_path/"b", population(S=6)); p = read_probes(b); made = write_artifacts(b/"artifacts", p, dict(dataset="made up", select="last"), **FEW); assert verify(b) == []
    text = (b/"artifacts"/"reports"/"REPORT.md").read_bytes(); assert report_markdown(read_reports(b/"artifacts")).encode() == text and report_markdown(made).encode() == text
    files = {f.relative_to(b).as_posix(): f.read_bytes() for f in b.rglob("*") if f.is_file()}; write_artifacts(b/"artifacts", read_probes(b), dict(dataset="made up", select="last"), **FEW)
    assert {f.relative_to(b).as_posix(): f.read_bytes() for f in b.rglob("*") if f.is_file()} == files
    assert str(tmp_path) not in "".join(f.read_text() for f in b.rglob("*") if f.suffix in (".json", ".md", ".txt"))
    other = bundle(tmp_path/"c", population(9, S=6)); write_artifacts(other/"artifacts", read_probes(other), **FEW); (b/"artifacts"/"reports"/"analysis.json").write_bytes((other/"artifacts"/"reports"/"analysis.json").read_bytes())
    assert any("analysis.json is stale" in s for s in verify(b))


def test_each_figure_of_the_report_comes_from_a_record():
    r = records(population(S=12, shift=.7, hosts=list("aaaaaaaabbbb"))); text = report_markdown(r); assert text == report_markdown(json.loads(json.dumps(r, sort_keys=True)))
    for change in (lambda q: q["analysis"]["metrics"]["prob_mse_cal"]["mds"].update(t1=77.7), lambda q: q["artifact_tests"]["rows"][0].update(p=.777), lambda q: q["ensemble"]["four_ways"][0].update(accuracy=.777), lambda q: q["ensemble"]["comparison"][0].update(low=.777), lambda q: q["artifact_tests"].update(words="77.7 words")):
        q = copy.deepcopy(r); change(q); assert "77.7" not in text and ".777" not in text; assert (new := report_markdown(q)) != text and ("77.7" in new or ".777" in new)
