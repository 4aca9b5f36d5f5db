"`geonb ternary …` as a person or a script meets it: exit codes, JSON, files that are whole, refusals of one sentence."
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geonb.app import cli as face
from geonb.app.terminal import complete_ternary
from geonb.core.bundles import verify_bundle
from geonb.core.run import Run
from geonb.core.training import fit
from geonb.ternary.bundle import save, task_name
from geonb.ternary.config import TrainTernaryV5_5
from geonb.ternary.dual import DualPathwayVAE
from geonb.ternary.report import measure
from geonb.ternary.task import TernaryTask

ALL = 19_683
QUICK = ["--n", "1000", "--decode", "argmax", "--trials", "1"]
HELP = {"evaluate": ("percent", "tables of 19,683", "draws"), "analyze": ("nats", "entries", "19,683"), "benchmark": ("rows/s", "MiB", "tables"), "compare": ("tables", "%", "nats", "rows/s", "exit 2")}


def by_hand():
    "A dual network that stores every table: signed copies through the encoder, thresholds in the decoders."
    net = DualPathwayVAE()
    def copy(layer, rows):
        "Set a linear layer: {output: {input: weight}}."
        layer.weight.zero_(); layer.bias.zero_()
        for o, w in rows.items():
            for i, v in w.items(): layer.weight[o, i] = v
    split = {o: {o // 2: 1. if o % 2 == 0 else -1.} for o in range(18)}     # +x and -x of nine values, of which ReLU keeps one
    same, joined = {o: {o: 1.} for o in range(18)}, {o: {2 * o: 2., 2 * o + 1: -2.} for o in range(9)}
    logits = {3 * k + c: {2 * k: (c - 1.), 2 * k + 1: (1. - c)} for k in range(9) for c in range(3)}
    with torch.no_grad():
        for enc in (net.encoder_A, net.encoder_B):
            copy(enc.encoder[0], split); copy(enc.encoder[2], same); copy(enc.encoder[4], same); copy(enc.fc_mu, joined); copy(enc.fc_logvar, {}); enc.fc_logvar.bias.fill_(-4.)
        copy(net.decoder_A.decoder[0], split); copy(net.decoder_A.decoder[2], same); copy(net.decoder_A.decoder[4], logits); net.decoder_A.decoder[4].bias[1::3] = 1.
        b = net.decoder_B; copy(b.fc_in, split); copy(b.fc_out, logits); b.fc_out.bias[1::3] = 1.
        for r in (b.residual1, b.residual2): copy(r.block[0], {}); copy(r.block[2], {})
    return net


def bundle(root, start=None, **k):
    "A finished run of one epoch whose weights hardly move."
    c = TrainTernaryV5_5.build(**dict(subset="random:64", epochs=1, isolation_end=0, consolidation_end=0, ultra_start=0, batch=64, lr=1e-9, weight_decay=0., eval_draws=1000, statenet="off", balance=False, progress="none", runs_root=str(root)) | k)
    run = Run.open(c, task_name(c), {"made": "here"}, report=lambda _: None); task = TernaryTask(c, start=start)
    return save(run, task, measure(task, fit(task, run), run.dataset))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "(runs root, bundle that reconstructs everything, bundle that reconstructs next to nothing)."
    root = tmp_path_factory.mktemp("ternary-runs")
    return root, bundle(root, by_hand()), bundle(root, seed=1)


@pytest.fixture
def shelf(made, runs_root):
    "Copies of both in this test's own runs root: (perfect, weak)."
    shutil.copytree(made[0], runs_root, dirs_exist_ok=True)
    return tuple(runs_root/b.relative_to(made[0]) for b in made[1:])


@pytest.fixture
def cli(cli):
    "Call `geonb ternary` in this process: (exit code, standard output, error stream)."
    return lambda *args: cli("ternary", *args)


def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err
def everything(folder): return sorted((str(p), p.stat().st_mtime_ns) for p in Path(folder).rglob("*"))


# --- help

@pytest.mark.parametrize("name", HELP)
def test_help_names_the_units(cli, name):
    code, out, err = cli(name, "--help"); assert (code, err) == (0, "")
    for word in (*HELP[name], "--json"): assert word in " ".join(out.split()), word


def test_run_ids_are_completed_for_this_laboratory_only(shelf, runs_root):
    other = runs_root/"pentachora"/"digits"/"0123456789-r1"; other.mkdir(parents=True); (other/"manifest.json").write_text(json.dumps(dict(run_id=other.name, laboratory="pentachora", dataset="digits", started="")))
    assert sorted(complete_ternary("")) == sorted(p.name for p in shelf)
    assert complete_ternary(shelf[0].name[:4]) == [shelf[0].name]


# --- evaluate

def test_required_reconstruction_decides_the_exit_code(cli, shelf, tmp_path):
    perfect, weak = shelf; out = tmp_path/"e.json"
    code, said, err = cli("evaluate", perfect.name, *QUICK, "--require-exact", "100", "--json", "--out", out); assert (code, err) == (0, "")
    r = json.loads(said); assert json.loads(out.read_text()) == r
    for p in "AB":
        one = r["reconstruction"][p]; assert (one["isolated"]["exact"], one["isolated"]["trained"]["n"], one["isolated"]["never_trained"]["exact"]) == (ALL, 64, ALL - 64)
        assert one["coupled"]["exact"] == ALL and r["collapsed"][p] is False
    code, said, err = cli("evaluate", weak, *QUICK, "--require-exact", "50", "--json", "--out", out)
    assert code == 3 and one_sentence(err) and "50 % exact reconstruction is required" in err
    r = json.loads(said); assert r["reconstruction"]["A"]["isolated"]["exact"] <= 5 and json.loads(out.read_text()) == r, "the result is printed and written all the same"
    least = 100*min(r["reconstruction"][p]["isolated"]["exact"] for p in "AB")/ALL
    for required, code in ((least - 1e-4, 0), (least + 1e-4, 3)): assert cli("evaluate", weak, *QUICK, "--require-exact", max(0, required))[0] == code, "each pathway, in percent of all tables"
    code, said, err = cli("evaluate", weak, *QUICK, "--require-exact", "0"); assert (code, err) == (0, "") and "COLLAPSED: A (KL" in said and "isolated" in said and "coupled, rho 0.7" in said


def test_trials_and_seeds_are_honoured(cli, shelf):
    say = lambda *a: json.loads(cli("evaluate", shelf[0], "--n", "500,1000", "--json", *a)[1])
    a, b, c = say("--trials", "3"), say("--trials", "1"), say("--trials", "1", "--seed", "7")
    firsts = lambda r: [x["values"][0] for x in r["sampling"]]; assert firsts(a) == firsts(b) != firsts(c)
    random = [*a["sampling"], *a["effective"].values(), *a["union"]]; assert {len(x["values"]) for x in random} == {3}
    assert [(x["path"], x["rule"], x["n"]) for x in a["sampling"]] == [(p, r, n) for p in "AB" for r in ("argmax", "categorical") for n in (500, 1000)]
    assert all(0 < x["values"][0] <= x["n"] and abs(x["ideal"] - ALL*(1 - (1 - 1/ALL)**x["n"])) < 1e-6 and abs(x["ratio"] - x["mean"]/x["ideal"]) < 1e-12 for x in a["sampling"])


def test_missing_operations_are_listed(cli, shelf, tmp_path):
    f = tmp_path/"missing.csv"; code, said, _ = cli("evaluate", shelf[1], *QUICK, "--list-missing", f, "--json"); assert code == 0
    r = json.loads(said); assert "missing" not in r; rows = list(csv.DictReader(f.open()))
    for p in "AB":
        lost = [x for x in rows if (x["pathway"], x["test"]) == (p, "reconstruction")]; assert len(lost) == ALL - r["reconstruction"][p]["isolated"]["exact"]
        undrawn = [x for x in rows if (x["pathway"], x["test"]) == (p, "sampling")]; assert len(undrawn) == ALL - next(x for x in r["sampling"] if x["path"] == p)["values"][0]
    for x in rows[::997]: assert sum((int(t) + 1)*3**k for k, t in enumerate(x["table"].split())) == int(x["index"])


# --- analyze

def test_analysis_writes_coordinates_and_pictures(cli, shelf, tmp_path):
    d = tmp_path/"plots"; code, said, err = cli("analyze", shelf[0], "--plots", d, "--rows", "300", "--json"); assert (code, err) == (0, "")
    r = json.loads(said); assert sorted(p.name for p in d.iterdir()) == ["pca.csv", "pca.png", "valuation.png"]
    rows = list(csv.DictReader((d/"pca.csv").open())); assert len(rows) == 600 and {x["pathway"] for x in rows} == {"A", "B"} and all((d/f).read_bytes()[:4] == b"\x89PNG" for f in ("pca.png", "valuation.png"))
    assert r["latent"]["A"]["neighbour"]["share_1"] == 1 and list(r["valuation"]["A"]) == ["-1", "0", "+1"] and "rows" not in r
    assert r["valuation"]["A"]["-1"]["radius"] == pytest.approx(r["valuation"]["A"]["+1"]["radius"]), "a copy of the table knows no valuation"
    assert [k for k in r if "score" in k] == ["legacy_resolution_score"]
    code, said, _ = cli("analyze", shelf[0], "--plots", d, "--rows", "100"); assert code == 0 and len((d/"pca.csv").read_text().splitlines()) == 201 and "Spearman" in said
    assert verify_bundle(shelf[0]) == []


# --- benchmark

def test_benchmark_holds_exactly_its_trials_and_names_every_baseline(cli, shelf, tmp_path):
    f = tmp_path/"b.json"; code, said, err = cli("benchmark", shelf[0], "--n", "1000", "--trials", "3", "--decode", "categorical", "--out", f, "--json"); assert (code, err) == (0, "")
    r = json.loads(f.read_text()); assert json.loads(said) == r
    for e in (r, *r["baselines"].values()): assert {len(x["values"]) for x in (*e["sampling"], *e["effective"].values(), *e.get("union", []))} == {3}
    assert {len(x["values"]) for x in (*r["speed"]["decode"].values(), r["speed"]["reconstruction"])} == {3} and r["speed"]["peak_memory_mib"] > 50
    assert set(r["baselines"]) | set(r["absent"]) == {"untrained", "collapsed", "quantile_codec", "faithful_schedule", "plain_vae"} and "preset faithful" in r["absent"]["faithful_schedule"]
    assert r["baselines"]["quantile_codec"]["reconstruction"]["A"]["isolated"]["exact"] == ALL and all(r["baselines"]["collapsed"]["collapsed"].values())
    sums = dict(reversed(line.split("  ")) for line in (shelf[0]/"SHA256SUMS").read_text().splitlines())
    assert {f"weights/{k}": v for k, v in r["metadata"]["weights_sha256"].items()} == {k: v for k, v in sums.items() if k.startswith("weights/")} and r["metadata"]["config_sha256"] == sums["config.json"]
    assert {"geonb", "torch", "threads"} <= set(r["metadata"]["environment"])


def test_further_bundles_take_their_place(cli, shelf, runs_root):
    plain = bundle(runs_root, model="plain"); code, said, _ = cli("benchmark", shelf[0], "--with", plain, "--with", shelf[1], *QUICK, "--json", "--no-baselines"); assert code == 0
    r = json.loads(said); assert list(r["baselines"]) == ["plain_vae"] and list(r["further"]) == [shelf[1].name] and r["absent"] == {}
    code, said, err = cli("benchmark", shelf[0], "--with", shelf[1], "--with", shelf[1], *QUICK); assert code == 2 and one_sentence(err) and "given twice" in err and said == ""


# --- compare

@pytest.fixture(scope="module")
def two(made, tmp_path_factory):
    "Benchmarks of both bundles, measured alike; only read."
    folder = tmp_path_factory.mktemp("benchmarks"); files = folder/"a.json", folder/"b.json"
    for f, b in zip(files, made[1:]): assert face.command(["ternary", "benchmark", str(b), "--n", "1000", "--trials", "2", "--decode", "argmax", "--no-baselines", "--out", str(f)]) == 0
    return files


def test_like_files_are_compared(cli, two, tmp_path):
    md = tmp_path/"c.md"; code, said, err = cli("compare", *two, "--markdown", md, "--json"); assert (code, err) == (0, "")
    r = json.loads(said); rows = {(x["metric"], x["path"]): x for x in r["rows"]}; assert r["names"] == ["a", "b"] and r["collapsed"] == [[], ["A", "B"]]
    x = rows["exact, isolated", "A"]; assert x["values"][0] == ALL and x["differences"][0]["difference"] == x["values"][1] - ALL
    assert {p for m, p in rows if m == "exact, coupled"} == {p for m, p in rows if m == "exact, isolated"} == {"A", "B"}
    d = rows["coverage", "A"]["differences"][0]; assert d["low"] < d["difference"] < d["high"] and "b (COLLAPSED: A, B)" in md.read_text()
    code, said, _ = cli("compare", *two); assert code == 0 and "b − a" in said and "COLLAPSED" in said


def test_runs_are_compared_like_files(cli, shelf, two, tmp_path):
    of_files = json.loads(cli("compare", *two, "--json")[1]); keyed = lambda r: {(x["metric"], x["path"], x["n"]): x["values"] for x in r["rows"] if x["unit"] != "rows/s"}
    code, said, err = cli("compare", two[0], shelf[1], "--json"); assert (code, err) == (0, "") and (r := json.loads(said))["names"] == ["a", shelf[1].name]
    assert r["settings"] == of_files["settings"] and keyed(r) == keyed(of_files), "a run is measured in the way of the file beside it"
    code, said, err = cli("compare", two[0], "no-such-run"); assert (code, said) == (4, "") and one_sentence(err) and "geonb runs list" in err
    empty = tmp_path/"empty"; empty.mkdir(); code, said, err = cli("compare", two[0], empty); assert code in (2, 3) and said == "" and one_sentence(err)


def test_unlike_files_are_refused(cli, shelf, two, tmp_path):
    for n in (50_000, 195_000): assert cli("benchmark", shelf[0], "--n", n, "--decode", "argmax", "--trials", "1", "--no-baselines", "--out", tmp_path/f"{n}.json")[0] == 0
    one, md = json.loads(two[0].read_text()), tmp_path/"c.md"; md.write_text("kept")
    for name, change in {"rule": {"settings": one["settings"] | {"decode": ["categorical"]}}, "rho": {"settings": one["settings"] | {"rho": .5}}, "path": {"paths": ["A"]}}.items(): (tmp_path/f"{name}.json").write_text(json.dumps({**one, **change}))
    for a, b, sentence in ((tmp_path/"50000.json", "195000", "numbers of draws differ (50000 against 195000)"), (two[0], "50000", "numbers of draws differ (1000 against 50000)"), (two[0], "rule", "decoding rules differ (argmax against categorical)"),
                           (two[0], "rho", "permeabilities of the coupled path differ (0.7 against 0.5)"), (two[0], "path", "pathways differ (A, B against A)")):
        code, said, err = cli("compare", a, tmp_path/f"{b}.json", "--markdown", md); assert (code, said) == (2, "") and one_sentence(err) and sentence in err
    assert md.read_text() == "kept"
    fewer = {**one, "settings": one["settings"] | {"trials": 3}}; (tmp_path/"trials.json").write_text(json.dumps(fewer)); assert "numbers of trials differ (2 against 3)" in cli("compare", two[0], tmp_path/"trials.json")[2]
    (tmp_path/"more").mkdir(); shutil.copy(two[1], tmp_path/"more"/"a.json"); assert f"{tmp_path/'more'/'a.json'} (COLLAPSED" in cli("compare", two[0], tmp_path/"more"/"a.json")[1], "files of one name are told apart"


@pytest.mark.parametrize("text, code, sentence", [(None, 4, "there is no file"), ("{", 3, "is not readable JSON"), ("[" * 100_000, 3, "x.json"), ("[]", 2, "is no benchmark"), ('{"kind": "ternary evaluation"}', 2, "is no benchmark"), ('{"a": NaN}', 3, "not finite"), ('{"a": 1e999}', 3, "not finite"),
                                                  ('{"kind": "ternary benchmark", "schema": 1}', 3, "is not whole"), ("\udcff", 3, "is not readable JSON")])
def test_what_is_no_benchmark_is_one_sentence(cli, two, tmp_path, text, code, sentence):
    f = tmp_path/"x.json"
    if text is not None: f.write_bytes(text.encode("utf-8", "surrogateescape"))
    got, said, err = cli("compare", two[0], f); assert (got, said) == (code, "") and one_sentence(err) and sentence in err


def test_a_benchmark_that_is_not_whole_is_found(cli, two, tmp_path):
    whole = json.loads(two[0].read_text())
    for k in ("kl", "effective", "reconstruction", "collapsed", "settings", "paths", "metadata"):
        for value in (None, 3, [], {}):
            f = tmp_path/"x.json"; f.write_text(json.dumps({**whole, k: value}))
            if (k, value) == ("metadata", {}): continue   # nothing that is compared
            for pair in ((two[0], f), (f, two[0]), (f, f)): code, said, err = cli("compare", *pair); assert code in (2, 3) and said == "" and one_sentence(err), (k, value, code, err)


# --- what is wrong with a bundle

def test_bundles_that_cannot_be_measured(cli, shelf, runs_root, tmp_path):
    out = tmp_path/"o.json"; out.write_text("kept")
    code, said, err = cli("evaluate", "no-such-run", "--out", out); assert (code, said) == (4, "") and one_sentence(err) and "no run or bundle" in err
    weights = next((shelf[0]/"weights").iterdir()); data = bytearray(weights.read_bytes()); data[-1] ^= 1; weights.write_bytes(data)
    for command in ("evaluate", "analyze", "benchmark"):
        code, said, err = cli(command, shelf[0], "--out", out); assert (code, said) == (3, "") and one_sentence(err) and weights.name in err
    (cut := runs_root/"ternary"/"v5_5"/"0123456789-r1.partial").mkdir(parents=True); code, _, err = cli("evaluate", cut); assert code == 3 and "not finished" in err
    assert cli("benchmark", shelf[1], "--with", "nope", *QUICK, "--out", out)[0] == 4 and out.read_text() == "kept"
    assert cli("evaluate", "")[0] == 2


def test_the_bundle_of_another_laboratory_is_refused(cli, runs_root):
    from safetensors.torch import save_file
    from geonb.pentachora.config import TrainPentachora
    run = Run.open(TrainPentachora.build(runs_root=str(runs_root)), "digits", {}, report=lambda _: None)
    def write(folder): (folder/"weights").mkdir(); save_file({"w": torch.zeros(1)}, folder/"weights"/"x.safetensors", {"config_sha256": run.config_sha256})
    other = run.finish(write, [{"epoch": 1, "seconds": 1.}], {"kind": "line"}, {})
    for command in ("evaluate", "analyze", "benchmark"):
        code, said, err = cli(command, other); assert (code, said) == (2, "") and one_sentence(err) and "is a bundle of the laboratory 'pentachora', not of 'ternary'" in err


# --- what is wrong with a request

@pytest.mark.parametrize("args, sentence", [
    (["evaluate", "x", "--n", "50k"], "whole numbers separated by commas"), (["evaluate", "x", "--n", "0"], "from 1 to 10,000,000"), (["evaluate", "x", "--n", "99999999999"], "from 1 to 10,000,000"), (["evaluate", "x", "--n", ""], "whole numbers"),
    (["evaluate", "x", "--decode", "argmx"], "did you mean 'argmax'"), (["evaluate", "x", "--decode", ","], "at least one decoding rule"), (["evaluate", "x", "--trials", "0"], "number of trials"), (["evaluate", "x", "--trials", "many"], "--trials"),
    (["evaluate", "x", "--seed", "-1"], "a seed"), (["evaluate", "x", "--rho", "1.5"], "permeability"), (["evaluate", "x", "--rho", "nan"], "permeability"), (["evaluate", "x", "--require-exact", "101"], "percentage"), (["evaluate", "x", "--require-exact", "nan"], "percentage"),
    (["analyze", "x", "--rows", "0"], "from 1 to 19,683"), (["analyze", "x", "--rows", "some"], "whole numbers"), (["analyze", "x", "--rows", "1,2"], "one whole number"), (["compare", "x"], "two benchmarks or more"), (["evaluate"], "BUNDLE"), (["evaluate", "x", "--unknown"], "--unknown")])
def test_a_wrong_request_is_two(cli, args, sentence):
    code, said, err = cli(*args); assert (code, said) == (2, "") and one_sentence(err) and sentence in err, err
    code, said, err = cli(*args, "--json"); assert code == 2 and json.loads(said)["exit_code"] == 2


def test_files_are_whole_or_not_there(cli, shelf, tmp_path, monkeypatch):
    out = tmp_path/"o.json"; out.write_text("kept"); before = everything(tmp_path)
    for where, sentence in ((tmp_path/"none"/"o.json", "there is no folder"), (tmp_path, "is a folder"), (shelf[0]/"o.json", "lies in a bundle"), (shelf[0]/"weights"/"o.json", "lies in a bundle"), (tmp_path/("x" * 300), "--out")):
        code, said, err = cli("evaluate", shelf[0], *QUICK, "--out", where); assert (code, said) == (2, "") and one_sentence(err) and sentence in err
    code, _, err = cli("evaluate", shelf[0], *QUICK, "--out", out, "--list-missing", tmp_path/"."/"o.json"); assert code == 2 and "would overwrite" in err
    code, _, err = cli("compare", out, out, "--markdown", out); assert code == 2 and "would overwrite" in err
    for where in (out, shelf[0]/"x", tmp_path/"no"/"x"): assert cli("analyze", shelf[0], "--plots", where)[0] == 2
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    code, said, err = cli("evaluate", shelf[0], *QUICK, "--out", out); assert code == 1 and one_sentence(err) and "No space left" in err and "Traceback" not in said
    assert everything(tmp_path) == before and verify_bundle(shelf[0]) == []


# --- the guide

@pytest.mark.slow   # a kernel of its own; nbdev_test runs the same page without a bundle
def test_the_guide_measures_a_given_run(shelf, root, tmp_path):
    out = tmp_path/"out.ipynb"
    def guide(*parameters): return subprocess.run([str(Path(sys.executable).parent/"papermill"), str(root/"nbs"/"guides"/"evaluate_ternary.ipynb"), str(out), *parameters], capture_output=True, text=True, cwd=tmp_path)
    done = guide("-p", "bundle", shelf[0].name, "-p", "other", str(shelf[1]), "-p", "n", "1000", "-p", "trials", "1", "-p", "rows", "200"); assert done.returncode == 0, done.stderr[-2000:]
    text = out.read_text(); assert f"{shelf[1].name} (COLLAPSED: A, B)" in text and "19,683  100.000 %" in text
    done = guide("-p", "bundel", "x"); assert done.returncode == 1 and "did you mean 'bundle'" in done.stderr.strip().splitlines()[-1]
