"The examples that ship: real runs, sound, small, and in every installation."
import json
import re
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import assets
import check
import numpy as np
import pytest
from conftest import ROOT
from geonb.core.artifacts import read_npz
from geonb.core.assets import EXAMPLES, example, example_of, examples, is_example, lean
from geonb.core.atomic import read_json, tree_files
from geonb.core.bundles import verify_bundle
from geonb.core.errors import DataMissing

each = pytest.mark.parametrize("name", EXAMPLES)

@each
def test_each_is_a_sound_run_of_its_laboratory(name):
    path = example(name); row = next(r for r in examples() if r["path"] == str(path))
    assert verify_bundle(path) == [] and is_example(path) and row["status"] == "finished" and row["laboratory"] == EXAMPLES[name] and row["metrics"]
    assert read_json(path/"manifest.json")["environment"]["git_dirty"] is False


def test_they_fit_into_the_room_there_is():
    sizes = {n: sum((example(n)/f).stat().st_size for f in tree_files(example(n))) for n in EXAMPLES}
    print({n: f"{b/1e6:.2f} MB" for n, b in sizes.items()}); assert sum(sizes.values()) <= assets.ROOM == 5_000_000
    assert sorted(p.name for p in (ROOT/"geonb"/"assets").iterdir()) == sorted(EXAMPLES), "nothing else lies there"


@each
def test_each_was_made_by_the_recipe_that_stands_here(name):
    from geonb.app.execute import bundle_parameters, config
    notebook, chosen = assets.RECIPES[name]; kept = bundle_parameters(example(name), EXAMPLES[name])
    assert {k: kept[k] for k in chosen} == chosen and (kept["seed"], kept["device"], kept["threads"]) == (0, "cpu", 1)
    filled = config(notebook, kept).model_dump(mode="json")   # today's parameters still take them: `geonb run --from` works
    if name == "operators": chosen = chosen | {"dataset": kept["dataset"]}
    assert {k: v for k, v in config(notebook, dict(device="cpu", threads=1, **chosen)).model_dump(mode="json").items() if k in kept} == {k: filled[k] for k in kept}


@each
def test_no_machine_is_named(name):
    host = socket.gethostname(); words = [rb"(?<![\w.])/(?:work|home|root|Users|tmp|var|opt)/", re.escape(str(Path.home())).encode() + rb"/"] + ([re.escape(host).encode()] if len(host) > 6 else [])
    for f in tree_files(example(name)): assert not [w for w in words if re.search(w, (example(name)/f).read_bytes())], f


# --- each opens with its laboratory, and says what it said when it was made

def test_pentachora_answers_as_it_did():
    import geonb
    from geonb.pentachora.report import read
    path = example("pentachora"); model, held, report = geonb.load(path), read_npz(path/"heldout.npz"), read(path)
    assert np.array_equal(model.predict(held["thumbnails"]), held["predicted"]) and (held["predicted"] == held["labels"]).mean() > .95
    film = report.trajectory; assert len(film["epochs"]) == len(report.history) + 1 and film["accuracy"][-1] > .95 > .93 > film["accuracy"][1]


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n.startswith("ternary")])
def test_ternary_decodes_as_it_did(name):
    import geonb
    from geonb.ternary import hyperbolic_report, report as euclidean
    from geonb.ternary.operations import OPERATIONS
    path = example(name); model = geonb.load(path); report = (hyperbolic_report if "v5_11" in name else euclidean).read(path); film = report.trajectory
    for p in film["paths"]:
        predicted = report.reconstruction[f"predicted_{p}"]; some = np.arange(0, OPERATIONS, 97)
        assert np.array_equal(model.predict(some, p), predicted[some])
    right = (film["wrong"] == 0).mean(-1); assert len(film["epoch"]) >= 4 and film["wrong"].shape[-1] == OPERATIONS and film["trained"].all()
    assert (right[0] < .02).all() and (right[-1] > right[1]).any() and right[-1].max() > .99


def test_operators_are_told_as_they_were():
    import geonb
    from geonb.operators.dashboards import dashboard_data
    from geonb.operators.plan import played
    from geonb.operators.tokenizer_bundle import plan_of
    from geonb.operators.tokenizer_report import read
    path = example("operators"); tokenizer, kept, plan = geonb.load(path), read_npz(path/"tokens.npz")["tokens"], plan_of(path)[0]
    again = np.stack([tokenizer.tokens_of(played(plan, i)) for i in range(0, len(kept), len(kept)//4)])   # rolled out again from the bundle alone
    assert (again == kept[::len(kept)//4]).mean() > .95 and len(kept) == plan.samples == assets.OPERATORS[1]["total_samples"]
    assert read(path).report["headline"]["r2"] and set(dashboard_data(path)) == {"engineering", "topological", "semantic"}


def test_chromatic_members_answer_as_they_did():
    import geonb
    from geonb.chromatic.analysis import read_reports
    from geonb.chromatic.folder import read_probes
    from geonb.data.images import load_images
    path = example("chromatic"); ensemble, probes, report = geonb.load(path), read_probes(path), read_reports(path/"artifacts")
    images = load_images("digits", size=ensemble.spec.side).test; assert len(ensemble) == len(probes.seeds) == 12
    np.testing.assert_allclose(ensemble.logits(images.images), probes.test, rtol=1e-3, atol=1e-3); assert np.array_equal(images.labels, probes.test_labels)
    right = (probes.test.argmax(-1) == images.labels).mean(1); assert (right > .6).all() and (ensemble.predict(images.images) == images.labels).mean() > right.max() and report["ensemble"]


# --- when it is not there, and what leaner means

def test_an_example_that_is_missing_is_one_sentence(tmp_path, monkeypatch):
    from geonb.explorers.shell import open_arrays
    monkeypatch.setattr("geonb.core.assets.shelf", lambda: tmp_path)
    with pytest.raises(DataMissing, match=r"^the example 'pentachora' did not come with this installation: `make assets` in a checkout of geonb makes it$"): example("pentachora")
    assert example_of("ternary") is None and examples() == [] and open_arrays(None, "ternary", None, tmp_path) == (None, "", None)


def test_an_explorer_without_a_run_opens_on_one(runs_root):
    from geonb.explorers.shell import open_arrays
    arrays, title, folder = open_arrays(None, "pentachora", lambda a, what: a)
    assert folder == example("pentachora") and title == f"example: digits, seed 0, run {read_json(folder/'manifest.json')['run_id']}" and "dispatchers" in arrays
    assert open_arrays(None, "ternary", lambda a, what: a)[2] == example_of("ternary") == example("ternary_v5_5")


@each
def test_a_damaged_example_is_refused(name, tmp_path):
    import shutil
    import geonb
    from geonb.core.errors import CheckFailed
    copy = Path(shutil.copytree(example(name), tmp_path/name)); f = max((copy/f for f in tree_files(copy)), key=lambda f: f.stat().st_size)
    data = bytearray(f.read_bytes()); data[len(data)//2] ^= 1; f.write_bytes(data)
    with pytest.raises(CheckFailed, match=re.escape(f.name)): geonb.load(copy)


@each
def test_what_was_left_out_is_said_and_nothing_else_was(name):
    said = read_json(example(name)/"manifest.json")["lean"]; there = tree_files(example(name))
    assert set(said["left_out"]) == {"plots", "tensorboard", "tensorboard.zip", *assets.BESIDE.get(name, ())} and not [f for f in there if f.split("/")[0] in said["left_out"]]
    for f in said["packed_by_lzma"]:
        with zipfile.ZipFile(example(name)/f) as z: assert {i.compress_type for i in z.infolist()} == {zipfile.ZIP_LZMA}
    for f in there:
        if f.endswith(".npz"): assert read_npz(example(name)/f)


def test_leaner_is_the_same_to_the_bit(tmp_path):
    "What has been through once changes no more, whatever it goes through again."
    again = lean(example("pentachora"), tmp_path/"again")
    assert {f: (again/f).read_bytes() for f in tree_files(again) if f not in ("manifest.json", "SHA256SUMS")} == {f: (example("pentachora")/f).read_bytes() for f in tree_files(again) if f not in ("manifest.json", "SHA256SUMS")}


# --- in every installation

def test_git_converts_no_line_ending_of_them():
    said = subprocess.run(["git", "check-attr", "text", "geonb/assets/pentachora/history.csv", "geonb/core/assets.py"], cwd=ROOT, capture_output=True, text=True).stdout
    if said: assert said.splitlines() == ["geonb/assets/pentachora/history.csv: text: unset", "geonb/core/assets.py: text: unspecified"]


@pytest.mark.slow
def test_wheel_and_source_archive_carry_them(tmp_path):
    tree = check.copy_tree(ROOT, tmp_path/"tree"); build = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"   # it takes sys.argv for its own
    out = tmp_path/"dist"; out.mkdir(); done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=tree, capture_output=True, text=True); assert done.returncode == 0, done.stderr[-2000:]
    wanted = {f"geonb/assets/{n}/{f}": (example(n)/f).read_bytes() for n in EXAMPLES for f in tree_files(example(n))}
    with zipfile.ZipFile(next(out.glob("*.whl"))) as z:
        assert {n: z.read(n) for n in z.namelist() if n.startswith("geonb/assets/")} == wanted; z.extractall(tmp_path/"installed")
    with tarfile.open(next(out.glob("*.tar.gz"))) as t:
        assert {m.name.split("/", 1)[1]: t.extractfile(m).read() for m in t.getmembers() if m.isfile() and "/geonb/assets/" in m.name} == wanted
    ask = "from geonb.core.assets import *; from geonb.core.bundles import verify_bundle; import json; print(json.dumps([[str(example(n)), verify_bundle(example(n))] for n in EXAMPLES]))"
    said = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(tmp_path/"installed")}, capture_output=True, text=True); assert said.returncode == 0, said.stderr[-2000:]
    assert json.loads(said.stdout) == [[str(tmp_path/"installed"/"geonb"/"assets"/n), []] for n in EXAMPLES]
