"Folders of answers as others leave them: whole, broken, mixed, foreign, hostile; and the old figures to nine digits."
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from chromatic_folders import CONFIG, artifacts, edited, plain_folder, synthetic_probes

from geonb.chromatic.distances import distance_matrix
from geonb.chromatic.folder import read_probes, write_index, write_logits, write_manifest
from geonb.chromatic.legacy import STAMP, legacy_report
from geonb.chromatic.verify import verify
from geonb.core.errors import CheckFailed, DataMissing, GeonbError, UsageError
from geonb.core.seeds import stream

P = synthetic_probes()


@pytest.fixture
def plain(tmp_path): return plain_folder(tmp_path/"plain", P)


@pytest.fixture
def whole(tmp_path): artifacts(tmp_path/"whole", P); return tmp_path/"whole"


def refused(path, kind=CheckFailed, **given):
    "The one sentence with which a folder is refused."
    with pytest.raises(kind) as e: read_probes(path, **given)
    text = str(e.value); assert "\n" not in text and str(Path(path).parent) not in text and type(e.value) is kind
    return text


# --- what is read

@pytest.mark.parametrize("ending", [".npz", ".npy", ".pt", "nested.pt"])
def test_every_kind_of_file_gives_the_same_numbers(tmp_path, ending):
    p = read_probes(plain_folder(tmp_path/"x", P, ending))
    assert (p.seeds, p.source, p.members[0], p.calib, p.index) == (P.seeds, "plain", {"seed": 13}, None, {})
    assert p.probe.dtype == np.float32 and np.array_equal(p.probe, P.probe) and np.array_equal(p.labels, P.labels)


def test_a_bundle_its_artifacts_and_its_id_are_the_same(whole, runs_root):
    from geonb.core.atomic import write_json
    p, q = read_probes(whole), read_probes(whole/"artifacts"); home = runs_root/"chromatic"/"digits"/"0123456789-r1"
    assert (p.source, q.source, p.digest, p.class_names, p.S, p.N, p.C) == ("bundle", "artifacts", q.digest, P.class_names, 5, 60, 4)
    for a, b in ((p.calib, P.calib), (p.test, P.test), (p.calib_labels, P.labels), (p.test_labels, P.labels)): assert np.array_equal(a, b)
    assert [m["host"] for m in p.members] == list("ababa") and [m["config"] for m in p.members] == [CONFIG] * 5
    from geonb.core.config import LABORATORIES
    if "chromatic" not in LABORATORIES: pytest.skip("the laboratory is not in the list yet")
    shutil.copytree(whole, home); write_json(home/"manifest.json", dict(run_id=home.name, laboratory="chromatic", dataset="digits", started="2026"))
    assert read_probes("012345").digest == p.digest and read_probes("0123456789-r1").path == home


def test_npz_and_npy_are_read_without_torch(plain):
    np.save(plain/"probe_logits_seed99.npy", P.probe[0])
    code = f"import sys; from geonb.chromatic.folder import read_probes; p = read_probes({str(plain)!r}); print(p.S, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "6 False\n"


def test_half_precision_and_doubles_are_taken_as_they_are(tmp_path):
    import torch
    for k, t in enumerate((torch.float16, torch.bfloat16)): torch.save(torch.tensor(P.probe[k]).to(t), tmp_path/f"probe_logits_seed{k}.pt")
    p = read_probes(tmp_path); assert p.probe.dtype == np.float32 and abs(p.probe - P.probe[:2]).max() < .05
    np.save(tmp_path/"probe_logits_seed2.npy", P.probe[2].astype(np.float64) + 1e-12); assert read_probes(tmp_path).probe.dtype == np.float64


def test_equal_contents_are_equal_bytes(tmp_path):
    a, b = (artifacts(tmp_path/n, P) for n in "ab")
    files = sorted(f.relative_to(a) for f in a.rglob("*") if f.is_file()); assert len(files) == 20
    assert all((a/f).read_bytes() == (b/f).read_bytes() for f in files) and b"NaN" not in (a/"manifest.json").read_bytes()
    listed = json.loads((a/"manifest.json").read_text())["files"]; assert not [f for f in listed if f.startswith("/") or "\\" in f or ".." in f]


# --- what is refused

def test_nothing_there_is_data_missing(tmp_path):
    assert "no run or bundle 'nowhere'" in refused("nowhere", DataMissing)
    assert "holds no probe_logits_seed" in refused(tmp_path, DataMissing)
    (tmp_path/"artifacts"/"probes").mkdir(parents=True); assert "holds no probe_logits_seed" in refused(tmp_path, DataMissing)
    for name in ("", "\0", "  "): assert "an empty run name" in refused(name, UsageError)
    (tmp_path/"f.npz").write_text("x"); assert "f.npz is a file: name the folder" in refused(tmp_path/"f.npz", UsageError)


class Hostile:
    "A pickle that leaves a mark when it runs."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (open, (self.mark, "w"))


@pytest.mark.parametrize("kind", ["raw", "zip", "npy", "npz"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, kind):
    mark, folder = tmp_path/"mark", plain_folder(tmp_path/"x", P); evil = pickle.dumps(Hostile(str(mark)), 2); f = folder/f"probe_logits_seed99{dict(raw='.pt', zip='.pt').get(kind, f'.{kind}')}"
    if kind == "raw": f.write_bytes(evil)
    elif kind == "zip":
        with zipfile.ZipFile(f, "w") as z: z.writestr("archive/data.pkl", evil); z.writestr("archive/version", "3")
    else: dict(npy=np.save, npz=np.savez)[kind](f, np.array([Hostile(str(mark))], dtype=object), allow_pickle=True)
    assert "probe_logits_seed99" in refused(folder) and not mark.exists()
    pickle.loads(evil).close(); assert mark.exists()   # it is one


@pytest.mark.parametrize("array, word", [
    (P.probe[0, :50], "has 50 x 4 logits, probe_logits_seed13.npz 60 x 4"), (P.probe[0, :, :3], "has 60 x 3 logits"), (P.probe[0, 0], "logits are numbers [N, C], got float32 [4]"), (P.probe[:2], "got float32 [2, 60, 4]"),
    (P.probe[0, :, :1], "logits are numbers [N, C]"), (P.probe[0, :0], "logits are numbers [N, C], got float32 [0, 4]"), (P.labels[:, None] * np.ones(4, int), "logits are numbers [N, C], got int64"), (P.probe[0] + 1j, "got complex"),
    (np.where(P.probe[0] > 2, np.nan, P.probe[0]), "logits are not finite"), (np.full((60, 4), np.inf), "240 of 240 logits are not finite")])
def test_arrays_that_do_not_fit(plain, array, word):
    np.savez(plain/"probe_logits_seed99.npz", logits=array)
    said = refused(plain); assert "probe_logits_seed99.npz" in said and word in said


def test_an_npz_without_logits_and_one_with_two(plain):
    np.savez(plain/"probe_logits_seed99.npz", something=P.probe[0]); assert "probe_logits_seed99.npz holds no arrays that could be its logits" in refused(plain)
    np.savez(plain/"probe_logits_seed99.npz", probe=P.probe[0], test=P.test[0]); assert "holds 2 arrays that could be its logits ('probe', 'test')" in refused(plain)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".pt"])
def test_a_damaged_file_is_refused_or_unchanged(tmp_path, ending):
    "Cut anywhere: refused. A flipped bit: refused where the format can know, never an exception of another kind."
    folder = plain_folder(tmp_path/"x", P, ending); f = folder/f"probe_logits_seed13{ending}"; raw = f.read_bytes(); rng = stream(0, "damage", len(ending))
    for n in (0, 1, 40, len(raw) // 2, len(raw) - 1): f.write_bytes(raw[:n]); assert f.name in refused(folder)
    for at in [*range(0, 200, 3), *rng.integers(0, len(raw), 40)]:   # headers lie in front
        one = bytearray(raw); one[at] ^= 1 << int(rng.integers(8)); f.write_bytes(one)
        try: assert read_probes(folder).S == 5
        except GeonbError as e: assert e.exit_code == 3 and "\n" not in str(e)


def test_one_member_and_two_of_a_seed(tmp_path):
    folder = plain_folder(tmp_path/"x", synthetic_probes(1)); assert "holds 1 member: 2 or more are needed" in refused(folder) and read_probes(folder, least=1).S == 1
    np.save(folder/"probe_logits_seed013.npy", P.probe[0]); assert "seed 13 is there twice: probe_logits_seed013.npy and probe_logits_seed13.npz" in refused(folder)


def test_calibration_logits_of_some_members_only(whole):
    for s in (13, 14): (whole/"artifacts"/"probes"/f"calib_logits_seed{s}.npz").unlink()
    assert "calib_logits_seed13.npz is missing, and probe_index.json lists it (and 1 more problems)" in refused(whole)
    edited(whole/"artifacts"/"probes"/"probe_index.json", lambda x: [m["files"].pop(f"calib_logits_seed{m['seed']}.npz") for m in x["members"][:2]])
    assert "calib logits are there for 3 of 5 members; calib_logits_seed13 is missing" in refused(whole)


@pytest.mark.parametrize("labels, kind, word", [
    (P.labels[:-1], CheckFailed, "59 probe labels do not fit 60 examples"), (P.labels + 1, CheckFailed, "probe labels has labels from 0 to 4: 0 to 3 is allowed"), (-P.labels, CheckFailed, "from -3 to 0"), (P.labels / 1, CheckFailed, "labels must be integers"),
    ("nowhere.npy", DataMissing, "there is no file of labels nowhere.npy"), ("labels.csv", UsageError, "labels are read from .npz, .npy, .pt"), ("cut.npz", CheckFailed, "cut.npz is not a readable npz file")])
def test_labels_that_do_not_fit(plain, labels, kind, word):
    if isinstance(labels, str): (plain/"cut.npz").write_bytes(b"PK\x03\x04"); labels = plain/labels
    assert word in refused(plain, kind, labels=labels)


def test_labels_from_many_places(tmp_path):
    import torch
    folder = plain_folder(tmp_path/"x", P, labels=False); assert read_probes(folder).labels is None and read_probes(folder).digest != P.digest
    torch.save({"labels": torch.tensor(P.labels)}, folder/"labels.pt"); a = read_probes(folder); assert np.array_equal(a.labels, P.labels)
    for s in P.seeds: np.save(folder/f"calib_logits_seed{s}.npy", P.calib[s - 13])
    np.save(folder/"calib_labels.npy", P.labels[:, None]); assert np.array_equal(read_probes(folder).calib_labels, P.labels)
    np.savez(tmp_path/"three.npz", probe=P.labels[::-1], calib=P.labels, test=P.labels); b = read_probes(folder, labels=tmp_path/"three.npz"); assert np.array_equal(b.labels, P.labels[::-1]) and b.digest != a.digest


@pytest.mark.parametrize("change, word", [
    (lambda x: x.clear(), "not of schema 1"), (lambda x: x.update(schema=2), "not of schema 1"), (lambda x: x.update(members={}), "not of schema 1"), (lambda x: x["members"][0].update(seed="13"), "not of schema 1"), (lambda x: x.update(probe=[]), "not of schema 1"),
    (lambda x: x["members"].append(x["members"][0]), "lists seed 13 twice"), (lambda x: x["members"].pop(), "belongs to no member"), (lambda x: x["members"][0]["files"].pop("probe_logits_seed13.npz"), "belongs to no member"),
    (lambda x: x["members"][2]["files"].update({"../../../etc/passwd": "0" * 64}), "passwd is missing"), (lambda x: x.update(split="6" * 64), "split.json is of another split"), (lambda x: x.update(class_names=["a"]), "names 1 classes, and the logits have 4"),
    (lambda x: x["members"][4].update(config="d" * 64), "mixes 2 configurations: seeds 13, 14, 15, 16 with cccccccc; seed 17 with dddddddd"), (lambda x: x["probe"].update(labels=[0] * 59), "59 probe labels do not fit"), (lambda x: x["probe"].update(labels=[.5] * 60), "labels must be integers")])
def test_an_index_that_does_not_fit(whole, change, word):
    edited(whole/"artifacts"/"probes"/"probe_index.json", change)
    assert word in refused(whole)


def test_an_index_that_is_no_json(whole):
    (whole/"artifacts"/"probes"/"probe_index.json").write_text("{"); assert "probe_index.json in probes is not readable JSON" in refused(whole)


def test_mixed_members_are_compared_on_request(tmp_path):
    a = artifacts(tmp_path/"x", P, [CONFIG] * 3 + ["d" * 64] * 2); assert "mixes 2 configurations" in refused(a) and read_probes(a, allow_mixed=True).S == 5
    assert any("mixes 2" in s for s in verify(a)) and verify(a, allow_mixed=True) == []


# --- verify

def test_a_sound_population_is_sound(whole, plain):
    assert verify(whole) == verify(whole/"artifacts") == verify(plain) == []


def test_everything_foreign_is_named(whole, tmp_path):
    "A probe file of another run, a changed split, a mixed configuration, a matrix that does not follow, a file nobody listed."
    other = artifacts(tmp_path/"other", synthetic_probes(seed=1)); a = whole/"artifacts"; keep = tmp_path/"keep"; shutil.copytree(whole, keep)
    def said(change, again=False):
        shutil.rmtree(whole); shutil.copytree(keep, whole); change()
        if again: write_manifest(a, "made here")
        found = verify(whole); assert found and all("\n" not in s for s in found); return found
    index = json.loads((a/"probes"/"probe_index.json").read_text())
    for again in (False, True): assert any(s.startswith("probe_logits_seed14.npz is not the file that was exported") for s in said(lambda: shutil.copy(other/"probes"/"probe_logits_seed14.npz", a/"probes"), again))
    assert said(lambda: edited(a/"split.json", lambda x: x.update(sha256="6" * 64)), True) == ["split.json is of another split (666666666666) than probe_index.json (555555555555)"]
    assert said(lambda: edited(a/"split.json", lambda x: x["calib"].reverse()), True) == ["split.json has other calib positions than probe_index.json"]
    assert said(lambda: edited(a/"split.json", lambda x: x["calib"].reverse()))[1] == "split.json is not the file that manifest.json lists"
    assert any("mixes 2 configurations" in s for s in said(lambda: edited(a/"probes"/"probe_index.json", lambda x: x["members"][1].update(config="e" * 64)), True))
    def forged(): shutil.copy(other/"probes"/"probe_logits_seed14.npz", a/"probes"); write_index(a/"probes", "made here", index["split"], None, {r: index[r] for r in ("probe", "calib", "test")}, index["members"])
    assert any("distance_prob_mse_T1.npy is stale: it was computed from another" in s for s in said(forged, True))
    def blind(): forged(); edited(a/"embeddings"/"distance_prob_mse_T1.json", lambda x: x.update(inputs=read_probes(a).files))
    assert said(blind, True) == ["embeddings/distance_prob_mse_T1.npy does not follow from the probe logits"]
    assert said(lambda: (a/"embeddings"/"distance_prob_mse_T1.json").unlink(), True) == ["embeddings/distance_prob_mse_T1.npy does not say what it was computed from"]
    assert said(lambda: (a/"notes.txt").write_text("x")) == ["notes.txt is not listed in manifest.json"]
    assert "SHA256SUMS is missing" in said(lambda: (whole/"manifest.json").write_text("{}"))[0]


def nodes(x, at=()):
    "Every place in a JSON document."
    yield at
    for k, v in x.items() if isinstance(x, dict) else enumerate(x[:3]) if isinstance(x, list) else (): yield from nodes(v, (*at, k))


def test_no_json_of_another_kind_is_more_than_a_sentence(tmp_path):
    "Any value anywhere replaced by one of another type: found wanting or not, and never an exception of another kind."
    from geonb.chromatic.analysis import write_artifacts
    a = artifacts(tmp_path/"x", P, distances=()); write_artifacts(a, read_probes(a), None, ["prob_mse"], ["prob_mse"], nulls=["A3"], reps=9, bootstraps=0); rng = stream(0, "json damage"); assert verify(a) == []
    for f in ("probes/probe_index.json", "split.json", "manifest.json", "embeddings/distance_prob_mse_cal.json", "reports/analysis.json", "summary.json"):
        raw = (a/f).read_text(); places = list(nodes(json.loads(raw)))
        for n in rng.integers(len(places), size=12):
            found = json.loads(raw); at, value = places[n], [None, [], {}, "x", -1, True, [[1], [2, 3]], [{}]][rng.integers(8)]; inner = found
            for k in at[:-1]: inner = inner[k]
            if at: inner[at[-1]] = value
            else: found = value
            (a/f).write_text(json.dumps(found)); bad = verify(a); assert isinstance(bad, list) and all("\n" not in s for s in bad)
            assert bad or found == json.loads(raw) or f == "manifest.json", (f, at, value)   # the manifest sees every change but its own
            try: read_probes(a)
            except GeonbError as e: assert e.exit_code == 3
        (a/f).write_text(raw)


# --- the old figures

def stored(): return json.loads(Path(__file__).with_name("legacy_palette.json").read_text())


def test_the_old_figures_come_out_to_nine_digits():
    "The matrix was made for this test: those of the original report are not available."
    s = stored(); r = legacy_report(np.array(s["squared_distances"]))
    for key, got in dict(evr1=r["shares"]["evr1"], evr2=r["shares"]["evr2"], stability=r["stability"]["mean"], p=r["pair_shuffle"]["p"], null_mean=r["pair_shuffle"]["mean"], sound_evr2=r["sound"]["evr2"]).items(): assert abs(got - s[key]) < 1e-9, key
    assert r["shares"]["negative_eigenvalues"] == s["negative_eigenvalues"] == 1 and .45 < s["evr2"] < .5 and s["stability"] > .9999 and .05 < s["p"] < .06
    assert {r["stamp"], *(r[k]["stamp"] for k in ("shares", "stability", "pair_shuffle", "coords"))} == {STAMP} == {"legacy, double-squared"} and "stamp" not in r["sound"]


def test_the_old_figures_by_hand():
    "The same from the formulas, without the library's scaling, nulls, or Procrustes fit."
    s = stored(); D = np.array(s["squared_distances"]); S = len(D); H = np.eye(S) - 1 / S; i, j = np.triu_indices(S, 1)
    def axes(d):
        w, v = np.linalg.eigh(-.5 * H @ d ** 2 @ H); return w[::-1], v[:, ::-1][:, :2] * np.sqrt(w[::-1][:2])
    def share(w): return w[:2].sum() / w[w > 0].sum()
    w, X = axes(D); assert abs(share(w) - s["evr2"]) < 1e-9 and abs(w[0] / w[w > 0].sum() - s["evr1"]) < 1e-9
    agreement = []
    for k in range(20):
        e = np.zeros((S, S)); e[i, j] = np.maximum(D[i, j] + .01 * D[i, j].std() * stream(0, "legacy noise", k).standard_normal(66), 0); Y = axes(e + e.T)[1]
        agreement.append(np.linalg.svd((X / np.linalg.norm(X)).T @ (Y / np.linalg.norm(Y)))[1].sum())
    assert abs(np.mean(agreement) - s["stability"]) < 1e-9
    above = 0
    for chunk in range(3):
        deals = stream(0, "null A0", chunk).permuted(np.broadcast_to(D[i, j] ** 2, (100, 66)), axis=1)
        for deal in deals: e = np.zeros((S, S)); e[i, j] = deal; v = np.linalg.eigvalsh(-.5 * H @ (e + e.T) @ H)[::-1]; above += share(v) >= share(w)
    assert abs((1 + above) / 301 - s["p"]) < 1e-9


def test_the_old_metric_is_the_uncalibrated_one():
    r = legacy_report(P); D = distance_matrix(P.probe, "logit_mse"); assert r["seeds"] == [13, 14, 15, 16, 17] and r["metric"] == "logit_mse, uncalibrated"
    assert r["shares"] == legacy_report(D)["shares"] and json.loads(json.dumps(r, allow_nan=False)) == r
