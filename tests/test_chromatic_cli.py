"geonb chromatic as a person or a script meets it: answers, refusals, exit codes, and what is written where."
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from chromatic_folders import CONFIG, artifacts, edited, plain_folder, synthetic_probes
from test_cli import everything, one_sentence

from geonb.chromatic.folder import read_probes, write_manifest
from geonb.core.atomic import read_json

P = synthetic_probes(); QUICK = dict(analyze="--bootstraps 20 --reps 49 --metrics prob_mse,zero_one", test="--reps 49 --metrics prob_mse,zero_one", ensemble="--bootstraps 20 --reps 49", embed="", verify="")
each = pytest.mark.parametrize("command", QUICK)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working folder with a whole population and a plain one."
    artifacts(tmp_path/"whole", P); plain_folder(tmp_path/"plain", P, "nested.pt"); monkeypatch.chdir(tmp_path); return tmp_path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    "A population with all its reports."
    from geonb.chromatic.analysis import write_artifacts
    a = artifacts(tmp_path_factory.mktemp("reported")/"run", P, distances=())
    write_artifacts(a, read_probes(a), dict(dataset="made here"), ["prob_mse", "zero_one", "bhattacharyya_T1"], ["prob_mse"], reps=49, bootstraps=20); return a.parent


def strict(text): return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in JSON"))


# --- answers

@each
def test_a_whole_population_is_answered_in_text_and_json_and_nothing_is_written(cli, here, runs_root, command):
    before = everything(here); args = ["chromatic", command, "whole", *QUICK[command].split()]
    code, out, err = cli(*args); assert (code, err) == (0, "") and len(out) > 5, err
    code, out, err = cli(*args, "--json"); assert (code, err) == (0, "") and out.count("\n") == 1 and strict(out)
    assert everything(here) == before and everything(runs_root) == []


def test_a_plain_folder_of_pt_files_is_answered_too(cli, here):
    for command, more in dict(analyze="", test="", embed="", verify="", ensemble="--evaluate-on probe --calibrate-on probe").items():
        code, out, err = cli("chromatic", command, here/"plain", *QUICK[command].split(), *more.split(), "--json"); assert (code, err) == (0, ""), err
        found = strict(out); assert command != "analyze" or sorted(found["metrics"]) == ["prob_mse_T1", "zero_one"]
    code, out, _ = cli("chromatic", "test", here/"plain", "--reps", 49, "--nulls", "A1,A3"); assert code == 0 and "cannot be decided" in out and "prob_mse_T1" in out


def test_the_command_says_what_the_library_says(cli, here):
    from geonb.chromatic.analysis import analysis, artifact_tests, ensemble_report
    p = read_probes("whole"); said = lambda *a: strict(cli("chromatic", *a, "--seed", 3, "--json")[1]); same = lambda x: json.loads(json.dumps(x))
    assert said("analyze", "whole", *QUICK["analyze"].split()) == same(analysis(p, ["prob_mse", "zero_one"], 20, 3, 49))
    assert said("test", "whole", "--metrics", "prob_mse", "--reps", 49, "--nulls", "A3,A4") == same(artifact_tests(p, ["prob_mse"], ["A3", "A4"], reps=49, seed=3))
    assert said("ensemble", "whole", *QUICK["ensemble"].split(), "--combine", "logits", "--calibrated") == same(ensemble_report(p, "logits", True, bootstraps=20, reps=49, seed=3))
    assert said("embed", "whole")["maps"]["prob_mse_cal"]["coords"] == analysis(p, ["prob_mse"], 0, 3, 9)["metrics"]["prob_mse_cal"]["coords"]


def test_temperatures_from_the_probe_are_marked(cli, here):
    out = cli("chromatic", "analyze", "whole", *QUICK["analyze"].split(), "--calibrate-on", "probe"); assert "TEMPERATURES FITTED ON THE PROBE" in out[1]
    assert strict(cli("chromatic", "test", "plain", *QUICK["test"].split(), "--calibrate-on", "probe", "--json")[1])["source"]["calibrate_on"] == "probe"


def test_another_training_is_compared(cli, here):
    artifacts(here/"again", synthetic_probes(seed=2)); artifacts(here/"longer", synthetic_probes(examples=80)); args = ("chromatic", "test", "whole", *QUICK["test"].split(), "--nulls", "A3,A6", "--against")
    found = strict(cli(*args, "again", "--json")[1])["against"]; assert {(r["against"], r["kind"], r["members"]) for r in found} == {("again", "raw", 5), ("again", "radii removed", 5)} and all(0 < r["p"] <= 1 for r in found)
    assert "A6 again prob_mse_cal raw: r = " in cli(*args, "again")[1]
    code, out, err = cli(*args, "longer"); assert (code, out) == (2, "") and "the same examples" in err
    assert cli(*args, "nowhere")[0] == 4


def test_the_old_figures_come_stamped(cli, here):
    from geonb.chromatic.legacy import legacy_report
    for command in ("analyze", "test"):
        assert strict(cli("chromatic", command, "whole", *QUICK[command].split(), "--legacy", "--json")[1])["legacy"] == legacy_report(read_probes("whole"))
        assert "[legacy, double-squared]" in cli("chromatic", command, "whole", *QUICK[command].split(), "--legacy")[1]
    old, new = (strict(cli("chromatic", "embed", "whole", *more, "--json")[1])["maps"]["prob_mse_cal"]["mds"] for more in (["--legacy"], [])); assert (old["stamp"], new["stamp"]) == ("legacy, double-squared", "") and old["evr2"] != new["evr2"]


def test_views_are_refused_for_few_members_unless_forced(cli, here):
    code, out, err = cli("chromatic", "embed", "whole", "--views", "tsne"); assert (code, out) == (2, "") and one_sentence(err) and "it needs 10, or --force" in err
    view = strict(cli("chromatic", "embed", "whole", "--views", "tsne", "--force", "--json")[1])["maps"]["prob_mse_cal"]["views"]["tsne"]; assert np.shape(view["coords"]) == (5, 2) and "no number of it may enter a test" in view["note"]


def test_power_is_simulated_at_the_observed_dimension(cli, here, monkeypatch):
    import geonb.chromatic.inference as inference
    from geonb.app.chromatic import planted
    from geonb.chromatic.nulls import prepared_distances
    from geonb.core.errors import CheckFailed
    asked = []; monkeypatch.setattr(inference, "power_curves", lambda d, **k: asked.append((d, k["sizes"])) or [dict(S=12, members=3, share=.1, A3=.5, A4=.4, both=.3)])
    args = ("chromatic", "analyze", "whole", *QUICK["analyze"].split(), "--power"); code, out, err = cli(*args); assert (code, err) == (0, ""), err
    assert cli("chromatic", "embed", "whole", "--out", "made")[0] == 0
    d = prepared_distances("A3", np.load("made/embeddings/distance_prob_mse_cal.npy"))["facts"]["dimension"]; assert asked == [(pytest.approx(d), (5, 8, 12, 16, 24))] and "12 members, 3 of which share 10 % of the trace: found in 30 % of 100" in out
    assert cli(*args, "--out", "powered")[0] == 0 and read_json("powered/reports/power.json")["dimension"] == pytest.approx(d)
    x = np.random.default_rng(0).normal(size=(9, 3)); flat = SimpleNamespace(S=9, distance=lambda name: ((x[:, None] - x) ** 2).sum(-1))
    with pytest.raises(CheckFailed, match="more than 25 dimensions"): planted(flat, dict(main="zero_one"), 0)
    with pytest.raises(CheckFailed, match="4 members or more, and there are 3"): planted(SimpleNamespace(S=3), dict(main="zero_one"), 0)


# --- wrong usage and missing data

@pytest.mark.parametrize("args, sentence", [
    ("analyze whole --metric prob_mze", "did you mean 'prob_mse'"), ("test whole --metrics zero_oen", "did you mean 'zero_one'"), ("embed whole --metrics jss_T1", "did you mean 'js_T1'"), ("test whole --nulls A33", "there is no null 'A33'"), ("test whole --nulls A7", "A7 changes nothing"),
    ("test whole --nulls A6", "name it with --against"), ("test whole --reps 0", "--reps 0 is not allowed"), ("analyze whole --seed -1", "--seed -1"), ("analyze whole --bootstraps -1", "--bootstraps -1"), ("analyze whole --report", "with --out"), ("ensemble whole --combine probabilitys", "did you mean 'probabilities'"),
    ("ensemble whole --evaluate-on tset", "did you mean 'test'"), ("embed whole --views tnse", "did you mean 'tsne'"), ("test whole --calibrate-on prob", "did you mean 'probe'"), ("analyze", "Missing argument"), ("analyse whole", "Did you mean 'analyze'"), ("verify whole --labels x.npy", "No such option"),
    ("analyze whole --labels labels.csv", "labels are read from"), ("analyze ''", "an empty run name"), ("analyze plain/labels.npy", "is a file: name the folder"), ("test whole --executor proceses", "did you mean 'processes'"), ("embed whole --metrics ,", "names no distance")])
def test_a_mistake_is_one_sentence_and_two(cli, here, args, sentence):
    import shlex
    code, out, err = cli("chromatic", *shlex.split(args)); assert (code, out) == (2, "") and one_sentence(err) and sentence in err, err


@each
def test_a_folder_that_is_not_there_is_four(cli, here, command):
    code, out, err = cli("chromatic", command, "nowhere"); assert (code, out) == (4, "") and one_sentence(err) and "nowhere" in err
    (here/"empty").mkdir(); code, out, err = cli("chromatic", command, "empty", "--json"); assert code == 4 and strict(out)["exit_code"] == 4


def test_what_the_folder_lacks_is_four(cli, here):
    for f in (here/"plain").glob("labels*"): f.unlink()
    for args, sentence in (("analyze plain --metrics prob_mse_cal", "there is prob_mse_T1"), ("test plain --metrics js_cal", "cannot be computed"), ("ensemble plain", "--evaluate-on probe"), ("analyze plain --labels no.npy", "there is no file of labels no.npy")):
        code, out, err = cli("chromatic", *args.split()); assert (code, out) == (4, "") and one_sentence(err) and sentence in err, err
    np.save("y.npy", P.labels); code, out, err = cli("chromatic", "analyze", "plain", "--metrics", "prob_mse_cal", "--labels", "y.npy", "--calibrate-on", "probe", "--bootstraps", 0); assert (code, err) == (0, "") and "prob_mse_cal" in out
    assert cli("chromatic", "analyze", "plain", "--calibrate-on", "probe")[0] == 2


# --- what is wanting

def poison(f): "A pickle that would run a command."; f.write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")


DAMAGE = dict(
    nan=(lambda d: np.savez(d/"probe_logits_seed99.npz", logits=np.full((60, 4), np.nan)), "240 of 240 logits are not finite"), shape=(lambda d: np.savez(d/"probe_logits_seed99.npz", logits=P.probe[0, :7]), "60 x 4"),
    truncated=(lambda d: (d/"probe_logits_seed99.npz").write_bytes(b"PK\x03\x04 and no more"), "probe_logits_seed99.npz is not a readable npz file"), hostile=(lambda d: poison(d/"probe_logits_seed99.pt"), "probe_logits_seed99.pt"),
    twice=(lambda d: np.save(d/"probe_logits_seed013.npy", P.probe[0]), "seed 13 is there twice"), labels=(lambda d: np.save(d/"labels.npy", P.labels[:9]), "9 probe labels do not fit 60 examples"), one=(lambda d: [f.unlink() for f in sorted(d.glob("probe*"))[1:]], "holds 1 member"))


@each
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_three_and_one_sentence(cli, here, command, damage):
    change, sentence = DAMAGE[damage]; change(here/"plain"); code, out, err = cli("chromatic", command, "plain")
    if (command, damage) == ("verify", "one"): assert (code, err) == (0, ""); return   # one member is little, and nothing is wrong with it
    assert code == 3 and one_sentence(err) and sentence in err and (out == "" or command == "verify"), err
    assert not (here/"ran").exists()


@each
def test_mixed_configurations_are_three_unless_allowed(cli, here, command):
    artifacts(here/"mixed", P, [CONFIG] * 3 + ["d" * 64] * 2); args = ("chromatic", command, "mixed", *QUICK[command].split())
    code, out, err = cli(*args); assert code == 3 and one_sentence(err) and "mixes 2 configurations" in err and "probe_index.json" in err
    assert cli(*args, "--allow-mixed")[0] == 0


# --- verify

def test_verify_names_what_is_foreign(cli, reported, tmp_path):
    "One probe file of another run, a stale report, a changed split, a mixed configuration, a text written by hand."
    other = artifacts(tmp_path/"other", synthetic_probes(seed=5)); assert cli("chromatic", "verify", reported)[:2] == (0, f"{reported.name}: ok\n")
    def stale(a):
        from geonb.chromatic.analysis import write_artifacts
        q = read_probes(other); write_artifacts(tmp_path/"fresh", q, None, ["prob_mse"], ["prob_mse"], reps=9, bootstraps=0); shutil.copy(tmp_path/"fresh"/"reports"/"artifact_tests.json", a/"reports")
    changes = dict(replaced=(lambda a: shutil.copy(other/"probes"/"probe_logits_seed15.npz", a/"probes"), "probe_logits_seed15.npz"), stale=(stale, "reports/artifact_tests.json is stale"), split=(lambda a: edited(a/"split.json", lambda x: x.update(sha256="7" * 64)), "split.json"),
                   mixed=(lambda a: edited(a/"probes"/"probe_index.json", lambda x: x["members"][0].update(config="d" * 64)), "probe_index.json mixes 2 configurations"), by_hand=(lambda a: (a/"reports"/"REPORT.md").write_text((a/"reports"/"REPORT.md").read_text().replace("0.", "0.9", 1)), "reports/REPORT.md is not the text"),
                   figures=(lambda a: edited(a/"reports"/"analysis.json", lambda x: x["metrics"]["prob_mse_cal"].update(sha256="0" * 64)), "reports/analysis.json does not speak of"))
    for name, (change, word) in changes.items():
        copy = tmp_path/name; shutil.copytree(reported, copy); change(copy/"artifacts"); write_manifest(copy/"artifacts", "a forger")   # so that the manifest alone cannot tell
        code, out, err = cli("chromatic", "verify", copy); assert code == 3 and one_sentence(err) and any(word in line for line in out.splitlines()), (name, out, err)
        code, out, _ = cli("chromatic", "verify", copy, "--json"); found = strict(out); assert code == 3 and found["ok"] is False and any(word in s for s in found["problems"])


def test_the_words_of_an_older_geonb_are_no_fault(cli, reported, tmp_path):
    copy = tmp_path/"old"; shutil.copytree(reported, copy); report = copy/"artifacts"/"reports"/"REPORT.md"; report.write_text(report.read_text().replace("## ", "## The ")); write_manifest(copy/"artifacts", "x")
    assert "REPORT.md is not the text" in cli("chromatic", "verify", copy)[2]
    edited(copy/"artifacts"/"manifest.json", lambda m: m.update(code="0" * 64)); assert cli("chromatic", "verify", copy)[0] == 0
    report.write_text("x"); assert "reports/REPORT.md is not the file that manifest.json lists" in cli("chromatic", "verify", copy)[2]


# --- what is written

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("command, wanted", [
    ("analyze", ["embeddings/distance_prob_mse_cal.json", "embeddings/distance_prob_mse_cal.npy", "embeddings/distance_zero_one.json", "embeddings/distance_zero_one.npy", "embeddings/mds_prob_mse_cal.npy", "embeddings/mds_zero_one.npy", "manifest.json", "reports/analysis.json"]),
    ("test", ["manifest.json", "reports/artifact_tests.json"]), ("ensemble", ["manifest.json", "reports/ensemble.json", "reports/ensemble.txt"]),
    ("embed", ["embeddings/distance_prob_mse_cal.json", "embeddings/distance_prob_mse_cal.npy", "embeddings/mds_prob_mse_cal.npy", "embeddings/mds_prob_mse_cal.png", "manifest.json", "reports/embedding.json"])])
def test_out_is_a_new_folder_with_a_manifest(cli, here, command, wanted):
    args = ("chromatic", command, "whole", *QUICK[command].split(), "--out", "made"); code, out, err = cli(*args); assert (code, err) == (0, ""), err
    assert files(here/"made") == wanted and sorted(os.listdir(here)) == ["made", "plain", "whole"]
    listed = read_json(here/"made"/"manifest.json")["files"]; assert set(listed) == set(wanted) - {"manifest.json"}
    for f in listed.values(): assert f["producer"].startswith(f"geonb chromatic {command}") and f["config"] == CONFIG and f["inputs"] == read_probes("whole").files
    assert cli("chromatic", "verify", "made")[0] == 0
    (here/"made"/"reports").joinpath("x.txt").write_text("x"); assert "reports/x.txt is not listed" in cli("chromatic", "verify", "made")[2]
    before = everything(here); code, out, err = cli(*args); assert (code, out) == (2, "") and "exists already: name a new folder" in err and everything(here) == before


def test_the_whole_report_is_written_on_request(cli, here):
    code, out, err = cli("chromatic", "analyze", "whole", *QUICK["analyze"].split(), "--report", "--legacy", "--out", "made"); assert (code, err) == (0, ""), err
    assert {"reports/REPORT.md", "reports/ensemble.json", "reports/artifact_tests.json", "reports/legacy.json", "summary.json"} <= set(files(here/"made"))


def test_the_report_has_the_comparison_with_another_training(cli, here):
    artifacts(here/"again", synthetic_probes(seed=2)); args = ("chromatic", "analyze", "whole", *QUICK["analyze"].split(), "--against", "again")
    code, out, err = cli(*args, "--report", "--out", "made"); assert (code, err) == (0, ""), err
    text = (here/"made"/"reports"/"REPORT.md").read_text(); assert "A6, another training of the same seeds" in text and "| again |" in text and "the same arrangement is not known" not in text
    code, out, err = cli(*args); assert (code, out) == (2, "") and one_sentence(err) and "--report" in err


@pytest.mark.parametrize("out, sentence", [("whole/x", "never written into"), ("whole/artifacts/reports/x", "never written into"), ("sealed/x", "never written into"), ("plain/x", "never written into"), ("nowhere/x", "there is no folder"), ("plain", "exists already"), ("x\0", "null byte"), ("y" * 300, "no folder name")])
def test_nothing_is_written_into_a_bundle_or_nowhere(cli, here, out, sentence):
    (here/"sealed").mkdir(); (here/"sealed"/"SHA256SUMS").write_text(""); before = everything(here)
    code, said, err = cli("chromatic", "embed", "plain" if out.startswith("plain") else "whole", "--out", out); assert (code, said) == (2, "") and one_sentence(err) and sentence in err, err
    assert everything(here) == before


def test_a_link_into_a_bundle_is_seen_through(cli, here):
    (here/"link").symlink_to(here/"whole"/"artifacts"); code, _, err = cli("chromatic", "embed", "plain", "--out", "link/x"); assert code == 2 and "never written into" in err


def test_a_failure_half_way_leaves_nothing(cli, here, monkeypatch):
    import geonb.chromatic.folder as folder
    from geonb.core.errors import CheckFailed
    def fail(*a, **k): raise CheckFailed("the disk is tired")
    monkeypatch.setattr(folder, "write_manifest", fail); before = sorted(os.listdir(here))
    code, out, err = cli("chromatic", "embed", "whole", "--out", "made"); assert (code, out, err) == (3, "", "geonb: the disk is tired\n") and sorted(os.listdir(here)) == before
