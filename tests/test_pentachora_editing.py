"A vertex moved by hand: what it does at once, what a training from it begins with, and what is refused."
import copy
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import geonb.core.config as core_config
from geonb.app import execute, runs
from geonb.app.execute import check
from geonb.core.assets import examples
from geonb.core.atomic import read_json, sha256, tree_files, write_json, write_sums
from geonb.core.bundles import verify_bundle
from geonb.core.callbacks import Callback, usual_callbacks
from geonb.core.environment import prepare
from geonb.core.errors import CheckFailed, DataMissing, UsageError
from geonb.core.run import Run
from geonb.core.training import fit
from geonb.data.images import load_images
from geonb.geometry.simplex import quality, simplex_volume
from geonb.pentachora.bundle import load_bundle, save, started_from
from geonb.pentachora.config import BROUGHT, FIXED, TrainPentachora
from geonb.pentachora.editing import EDITED, Edited, VertexEdit, apply_edits, command, compose, read_edits
from geonb.pentachora.edits import canonical
from geonb.pentachora.pseudo_labels import labelled_part
from geonb.pentachora.report import report_of
from geonb.pentachora.task import PentachoraTask
from geonb.stats.scaling import Calibration

NAME, EDIT = "train_pentachora", "dispatchers:2:4:0.10,-0.05,0,0"
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dict(epochs=1, dim=10, channels=5, limit=230, norm="layer", device="cpu", progress="none")


@pytest.fixture(scope="module")
def images(): return load_images("digits")


def opened(root, images, **given):
    "What the notebook does, up to the task."
    config = TrainPentachora.build(**given, runs_root=str(root)); prepare(config.seed, 1); start, origin = started_from(config, images)
    run = Run.open(config, images.name, images.provenance | origin, report=lambda s: None, **origin)
    return run, PentachoraTask(config, images, start=start)


def finished(root, images, **given):
    "What the notebook does -> the bundle's folder."
    run, task = opened(root, images, **given)
    return save(run, task, report_of(run, task, fit(task, run)))


@pytest.fixture(scope="module")
def root(tmp_path_factory): return tmp_path_factory.mktemp("editing")


@pytest.fixture(scope="module")
def bundle(root, images): return finished(root, images, **QUICK)


@pytest.fixture(scope="module")
def floor(root, images): return finished(root, images, **QUICK, model="linear")


@pytest.fixture(scope="module")
def tuned(root, images, bundle): return finished(root, images, start=bundle.name, vertex_edit=EDIT, epochs=2, progress="none")


def drawn(r, pairs, n):
    "Some edits, of any vertex of either stack."
    return tuple(VertexEdit(r.choice(EDITED), r.randrange(pairs), r.randrange(5), tuple(r.uniform(-2, 2) for _ in range(4))) for _ in range(n))


# ---- the text

@pytest.mark.parametrize("text, words", [
    ("", "4 fields"), (":::", "no stack"), ("dispatcher:0:0:1,0,0,0", "did you mean 'dispatchers'"), ("Dispatchers:0:0:1,0,0,0", "no stack"), ("dispatchers:0:0", "this has 3"), ("dispatchers:0:0:1,0,0,0:1", "this has 5"),
    ("dispatchers:-1:0:1,0,0,0", "the pair is a whole number from 0"), ("dispatchers:0.5:0:1,0,0,0", "the pair is"), ("dispatchers::0:1,0,0,0", "the pair is"), ("dispatchers:99999:0:1,0,0,0", "the pair is"), ("dispatchers:٣:0:1,0,0,0", "the pair is"),
    ("dispatchers:0:5:1,0,0,0", "vertices 0 to 4, not 5"), ("dispatchers:0:x:1,0,0,0", "the vertex is"), ("dispatchers:0:0:1,0,0", "this has 3"), ("dispatchers:0:0:1,0,0,0,0", "this has 5"), ("dispatchers:0:0:", "this has 0"),
    ("dispatchers:0:0:1,,0,0", "4 numbers"), ("dispatchers:0:0:a,0,0,0", "4 numbers"), ("dispatchers:0:0:1_0,0,0,0", "4 numbers"), ("dispatchers:0:0:nan,0,0,0", "finite"), ("dispatchers:0:0:-inf,0,0,0", "finite"), ("dispatchers:0:0:1e999,0,0,0", "finite"),
    ("dispatchers:0:0:11,0,0,0", "length 11"), ("dispatchers:0:0:1e308,1e308,0,0", "at most 10"), ("dispatchers:0:0:1,0,0,0;;dispatchers:0:1:1,0,0,0", "4 fields"), ("dispatchers:0:0:1,0,0,0;x", "this has 1"), ("\0", "4 fields"), (None, "4 fields"), (3, "4 fields")])
def test_what_is_no_edit_is_refused_in_a_sentence(text, words):
    with pytest.raises(UsageError, match="^vertex_edit=") as e: read_edits(text)
    assert words in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 300


def test_equal_edits_have_one_text():
    r = random.Random(1)
    for _ in range(200):
        edits = drawn(r, 5, r.randrange(1, 6)); shuffled = list(edits); r.shuffle(shuffled); text = ";".join(map(str, edits))
        assert read_edits(text) == edits and compose(edits) == compose(shuffled) == compose(read_edits(canonical(text))) and canonical(canonical(text)) == canonical(text)
    assert canonical("dispatchers:0:0:0.1,0,0,0;dispatchers:0:0:0.2,0,0,0") == canonical(" dispatchers:00:0:.3, 0,-0,0e5 ;") == "dispatchers:0:0:0.3,0,0,0"
    assert canonical("dispatchers:0:0:1,0,0,0;dispatchers:0:0:-1,0,0,0") is None


# ---- at once

def test_figures_are_those_of_the_whole_model_with_the_weights_moved(bundle):
    edited, held, r = Edited(bundle), dict(np.load(bundle/"heldout.npz")), random.Random(2); largest = 0
    assert np.array_equal(edited.figures()["predicted"], held["predicted"])
    for n in (1, 1, 2, 5, 12):
        edits = drawn(r, edited.pairs, n); f = edited.figures(edits); whole = load_bundle(bundle); apply_edits(whole.modules["constellation"], edits); d = whole.diagnose(held["thumbnails"]); p = whole.predict_proba(held["thumbnails"])
        assert np.abs(f["probabilities"] - p).max() < 1e-6 and f["probabilities"].dtype == np.float32 and f["probabilities"].shape == (len(held["labels"]), 10)
        assert abs(f["nll"] + np.log(p[np.arange(len(p)), held["labels"]]).mean()) < 1e-5 and abs(f["accuracy"] - (f["predicted"] == held["labels"]).mean()) < 1e-12
        assert abs(f["routing_entropy"] - d["routing_entropy"].mean()) < 1e-5 and np.abs(f["gate"] - d["gate"].mean(0)).max() < 1e-5
        for k in EDITED:
            x = getattr(whole.modules["constellation"], k).detach().double()
            assert np.allclose(f["volume"][k], simplex_volume(x), atol=1e-9) and np.allclose(f["quality"][k], quality(x), atol=1e-9)
        assert f["flipped"].tolist() == np.flatnonzero(f["predicted"] != held["predicted"]).tolist() and np.array_equal(f["before"]["predicted"], held["predicted"])
        largest = max(largest, np.abs(p - f["before"]["probabilities"]).max())
    assert largest > .01, "edits of this size should be seen in the answers"


def test_a_vertex_moves_in_its_own_four_dimensions_and_no_other_moves(bundle):
    edited = Edited(bundle); coordinates, basis, centre = edited.frame("specialists", 1)
    assert torch.allclose(basis @ basis.mT, torch.eye(4, dtype=torch.float64), atol=1e-12)
    moved = apply_edits(edited.stacks, [VertexEdit("specialists", 1, 3, (.5, -.25, 0., 1.))])
    want = coordinates.clone(); want[3] += torch.tensor([.5, -.25, 0., 1.])
    assert torch.allclose((moved["specialists"][1].double() - centre) @ basis.mT, want, atol=1e-6) and torch.allclose(want @ basis + centre, moved["specialists"][1].double(), atol=1e-6)
    assert (moved["specialists"] != edited.stacks["specialists"]).any(-1).nonzero().tolist() == [[1, 3]] and torch.equal(moved["dispatchers"], edited.stacks["dispatchers"])


def test_edits_of_one_simplex_are_read_in_the_frame_it_had(bundle):
    edited = Edited(bundle); a, b = VertexEdit("dispatchers", 0, 0, (2., 0., 1., 0.)), VertexEdit("dispatchers", 0, 1, (0., -1., 0., 2.))
    both, one, other = (apply_edits(edited.stacks, e)["dispatchers"][0] for e in ((a, b), (a,), (b,)))
    assert torch.equal(both[0], one[0]) and torch.equal(both[1], other[1]) and torch.equal(both[2:], edited.stacks["dispatchers"][0, 2:])


def test_asking_changes_nothing(bundle):
    digests = {f: sha256(bundle/f) for f in tree_files(bundle)}; edited = Edited(bundle); first = edited.figures()
    moved = edited.figures(EDIT + ";specialists:0:0:3,0,0,0"); again = edited.figures()
    assert not np.array_equal(moved["probabilities"], first["probabilities"]) and np.array_equal(again["probabilities"], first["probabilities"]) and not len(again["flipped"])
    assert digests == {f: sha256(bundle/f) for f in tree_files(bundle)}


def test_what_an_answer_costs():
    "Printed, not asserted: 512 latents, the model's usual size."
    from geonb.pentachora.constellation import BatchedPentachoronConstellation
    edited = Edited.__new__(Edited); edited.constellation = BatchedPentachoronConstellation(10, 56).eval(); edited.family = edited.constellation.family; edited.model = SimpleNamespace(calibration=Calibration()); edited.stacks = {k: getattr(edited.constellation, k).detach().clone() for k in EDITED}
    edited.latents, edited.labels = torch.nn.functional.normalize(torch.randn(512, 56, generator=torch.Generator().manual_seed(0)), dim=-1), np.zeros(512, int); spent = []
    for i in range(25): t = time.process_time(); f = edited.figures([VertexEdit("dispatchers", 2, 4, (.1*i, .2, 0., .1))]); spent.append(1e3*(time.process_time() - t))
    print(f"\n512 latents: median {np.median(spent):.1f} ms, p95 {np.quantile(spent, .95):.1f} ms of processor time")
    assert f["probabilities"].shape == (512, 10) and np.allclose(f["probabilities"].sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("spoil, words", [
    (lambda h: h.pop("latents"), "holds no latents of width 10"), (lambda h: h.update(latents=h["latents"][:, :4]), "holds no latents of width 10"), (lambda h: h.update(labels=h["labels"][:3]), "with a label each"),
    (lambda h: h.update(latents=h["latents"]*np.nan), "not finite"), (lambda h: h.update(labels=h["labels"] + 10), "labels that are no class")])
def test_held_out_samples_that_do_not_belong_are_refused(bundle, tmp_path, spoil, words):
    mine = tmp_path/bundle.name; shutil.copytree(bundle, mine); held = dict(np.load(mine/"heldout.npz")); spoil(held); np.savez(mine/"heldout.npz", **held); write_sums(mine)
    with pytest.raises(CheckFailed, match=words): Edited(mine)


def test_a_floor_has_no_vertices(floor):
    with pytest.raises(UsageError, match="holds a linear model, which has no simplices"): Edited(floor)


# ---- training from it

def test_training_begins_with_the_start_and_its_moved_vertex(root, images, bundle):
    run, task = opened(root, images, start=bundle.name, vertex_edit=EDIT, epochs=2, seed=9, progress="none"); was = load_bundle(bundle).modules; run.lock.release()
    apply_edits(was["constellation"], read_edits(EDIT))
    for k, m in task.modules.items():
        for name, x in m.state_dict().items(): assert torch.equal(x, was[k].state_dict()[name]), (k, name)
    con = task.modules["constellation"]; assert torch.equal(con.class_mask, was["constellation"].class_mask) and torch.equal(con.members, was["constellation"].members)   # codes of the start, not of this seed
    assert all(not o.state for o in task.optimisers.values())


def test_epoch_0_of_the_recorded_path_is_the_edited_start(bundle, tuned):
    path, edited = dict(np.load(tuned/"trajectory.npz")), Edited(bundle); moved = apply_edits(edited.stacks, read_edits(EDIT))
    assert path["epochs"].tolist() == [0, 1, 2]
    for k in EDITED: assert np.array_equal(path[k][0], moved[k].numpy()) and not np.array_equal(path[k][1], path[k][0])


def test_papers_tell_the_start_and_the_edit(bundle, tuned):
    config, manifest = read_json(tuned/"config.json"), read_json(tuned/"manifest.json"); text = "dispatchers:2:4:0.1,-0.05,0,0"
    assert (config["parameters"]["start"], config["parameters"]["vertex_edit"]) == (bundle.name, text)
    assert manifest["start"] == {"run_id": bundle.name, "weights_sha256": config["data"]["start"], "vertex_edit": text}
    assert f"Training began with the weights of run `{bundle.name}`, after vertices had been moved by hand: `{text}`; optimisers, warm-up and the ramp of the geometry term began anew." in (tuned/"README.md").read_text()
    assert "start" not in read_json(bundle/"manifest.json") and "Training began" not in (bundle/"README.md").read_text() and verify_bundle(tuned) == []
    assert str(tuned.parent.parent) not in (tuned/"config.json").read_text() + (tuned/"manifest.json").read_text()


def test_data_and_model_are_the_start_s_where_not_given(root, bundle):
    config, was = TrainPentachora.build(start=str(bundle), runs_root=str(root)), read_json(bundle/"config.json")["parameters"]
    assert {k: getattr(config, k) for k in BROUGHT} == {k: was[k] for k in BROUGHT} and (config.dim, config.limit, config.norm, config.epochs) == (10, 230, "layer", 8)
    other = TrainPentachora.build(start=str(bundle), limit=100, augment="none", w_dual=0., runs_root=str(root)); assert (other.limit, other.augment, other.dim, other.w_dual) == (100, "none", 10, 0.)
    assert TrainPentachora.build(start=bundle.name, pairs=5, dataset="Digits", dim=10, runs_root=str(root)).pairs == 5     # the same thing said otherwise


OTHERS = dict(dataset="mnist", geometry="cube:3", factored=True, equal_size=False, resolution=64, model="cnn", size="nano", dim=56, heads=5, channels=12, encode="lowrank", residual=True, front_end="dog", norm="batch", geom_scale=1., edge_kernels_all_channels=False, pairs=6, vertex_map="shared")

@pytest.mark.parametrize("name", FIXED)
def test_what_contradicts_the_start_is_refused(root, bundle, name):
    code, said = check(NAME, {"start": bundle.name, "runs_root": str(root), name: OTHERS[name]})
    assert code == 2 and said.startswith(f"{name}=") and f"contradicts start='{bundle.name}'" in said and "leave" in said, said


@pytest.fixture(scope="module")
def few(root, bundle):
    "A run like `bundle`, told that it kept three labels of each class by seed 5."
    path = root/"few"/bundle.name; shutil.copytree(bundle, path); altered(path, {"config.json": lambda c: c["parameters"].update(labels_per_class=3, seed=5)}); return path


@pytest.mark.parametrize("start, given, words", [
    ("few", {}, "seed=0 with labels_per_class=3 keeps the labels of other pictures"), ("few", {"seed": 4}, "trained with seed=5: pass seed=5"), ("few", {"seed": 5}, None), ("few", {"seed": 5, "labels_per_class": 4}, None), ("few", {"labels_per_class": 0}, None),
    ("few", {"seed": 5, "limit": 200}, "limit=200 with labels_per_class=3 keeps"), ("few", {"seed": 5, "labels_per_class": 2}, "labels_per_class=2 cannot start from"), ("few", {"seed": 5, "labels_per_class": 0, "label_share": .5}, "label_share=0.5 cannot start from"),
    ("bundle", {}, None), ("bundle", {"seed": 3}, None), ("bundle", {"labels_per_class": 3}, "has learnt other labels (labels_per_class=0, label_share=1.0): leave out labels_per_class"), ("bundle", {"label_share": .1}, "label_share=0.1 cannot start from")])
def test_few_labels_do_not_start_from_weights_that_know_others(root, bundle, few, start, given, words):
    code, said = check(NAME, {"start": str({"few": few, "bundle": bundle}[start]), "runs_root": str(root)} | given)
    assert code == (2 if words else 0) and (words or "") in said and "\n" not in said, said


def test_the_labels_a_start_may_know_are_among_those_of_the_run(images):
    "What the sentence rests on: same seed, no more labels, none but its own; another seed, others."
    y = images.train.labels; own = {n: {*labelled_part(y, n, 1., 5).tolist()} for n in (3, 4)}
    assert own[3] < own[4] and not {*labelled_part(y, 3, 1., 0).tolist()} <= own[4] and {*labelled_part(y, 0, .1, 5).tolist()} < {*labelled_part(y, 0, .2, 5).tolist()}


@pytest.mark.parametrize("given, code, words", [
    ({"vertex_edit": EDIT}, 2, "pass start too"), ({"vertex_edit": "dispatchers:0:0:1,0,0,0;dispatchers:0:0:-1,0,0,0"}, 2, "pass start too"), ({"vertex_edit": EDIT, "start": "null"}, 2, "pass start too"), ({"vertex_edit": 3}, 2, "vertex_edit=3"),
    ({"start": "RUN", "vertex_edit": "dispatchers:5:0:1,0,0,0"}, 2, "the model has 5 pairs, 0 to 4"), ({"start": "RUN", "vertex_edit": "dispatchers:0:5:1,0,0,0"}, 2, "0 to 4, not 5"), ({"start": "RUN", "vertex_edit": "dispatchers:0:0:99,0,0,0"}, 2, "at most 10"),
    ({"start": "RUN", "vertex_edit": "dispatchers:0:0:9,0,0,0;dispatchers:0:0:9,0,0,0"}, 2, "length 18"), ({"start": "FLOOR", "vertex_edit": EDIT}, 2, "would move nothing"), ({"start": "FLOOR"}, 0, "ok"), ({"start": "RUN", "vertex_edit": EDIT}, 0, "ok"),
    ({"start": "nothing-r1"}, 4, "no run or bundle 'nothing-r1'"), ({"start": ""}, 2, "start=''"), ({"start": "x"*1001}, 2, "start='xxx"), ({"start": "\ud800"}, 2, "start="), ({"start": "RUN", "epochs": 0}, 2, "epochs=0"), ({"start": "RUN", "runs_root": 3}, 2, "runs_root=3")])
def test_check_says_what_is_wrong(root, bundle, floor, given, code, words):
    given = {"runs_root": str(root)} | {k: {"RUN": bundle.name, "FLOOR": str(floor)}.get(v, v) if k == "start" else v for k, v in given.items()}
    got, said = check(NAME, given); assert got == code and words in said and "\n" not in said, said


def altered(folder, how):
    "A copy whose config.json or manifest.json was changed, sealed again."
    for name, change in how.items(): tree = read_json(folder/name); change(tree); write_json(folder/name, tree)
    digest = sha256(folder/"config.json")
    for f in (folder/"weights").glob("*.safetensors"): save_file(load_file(f), f, metadata={"config_sha256": digest})
    manifest = read_json(folder/"manifest.json"); manifest["config_sha256"] = digest; write_json(folder/"manifest.json", manifest); write_sums(folder)


@pytest.mark.parametrize("how, code, words", [
    (lambda p: (p/"SHA256SUMS").unlink(), 3, "is refused"), (lambda p: (p/"manifest.json").unlink(), 2, "holds no finished bundle"), (lambda p: (p/"weights"/"encoder_digits.safetensors").write_bytes(b"x"), 3, "encoder_digits.safetensors"),
    (lambda p: altered(p, {"config.json": lambda c: c.update(laboratory="ternary")}), 2, "is a bundle of the laboratory 'ternary'"), (lambda p: altered(p, {"config.json": lambda c: c.update(parameters=[])}), 3, "describes no run of this laboratory"),
    (lambda p: altered(p, {"config.json": lambda c: c["model"].update(class_names=3)}), 3, "describes no run of this laboratory")])
def test_a_start_that_is_none_is_refused(bundle, tmp_path, how, code, words):
    mine = tmp_path/bundle.name; shutil.copytree(bundle, mine); how(mine)
    got, said = check(NAME, {"start": str(mine), "vertex_edit": EDIT}); assert got == code and words in said and "\n" not in said, said


def test_other_pictures_under_the_same_name_are_refused(root, images, bundle):
    config = TrainPentachora.build(start=bundle.name, runs_root=str(root)); other = copy.copy(images); other.__dict__.pop("statistics", None); other.train = copy.copy(images.train); other.train.images = images.train.images//2
    with pytest.raises(UsageError, match="was trained on other pictures than dataset='digits' is now: mean is"): started_from(config, other)


def test_a_file_that_is_known_by_name_only_has_to_be_passed(root, bundle, tmp_path):
    mine = tmp_path/bundle.name; shutil.copytree(bundle, mine); altered(mine, {"config.json": lambda c: c["parameters"].update(dataset="cells.npz")})
    code, said = check(NAME, {"start": str(mine)}); assert code == 4 and "pass dataset with its path" in said, said
    shutil.copy(bundle/"heldout.npz", tmp_path/"cells.npz"); assert check(NAME, {"start": str(mine), "dataset": str(tmp_path/"cells.npz")})[0] == 0
    assert "contradicts start" in check(NAME, {"start": str(mine), "dataset": str(tmp_path/"other.npz")})[1]


def test_start_and_edit_are_part_of_the_identity_however_they_are_spelt(root, images, bundle, tuned, monkeypatch):
    monkeypatch.chdir(root.parent)
    def key(**given):
        config = TrainPentachora.build(epochs=2, progress="none", runs_root=str(root), **given); origin = started_from(config, images)[1]
        return core_config.identity(config, dataset=images.name, data=images.provenance | origin, device="cpu", **origin)[:10]
    starts = (bundle.name, bundle.name[:7], str(bundle), f"{bundle}{os.sep}", os.path.relpath(bundle)); edits = (EDIT, "dispatchers:2:4:.1,-5e-2,0,0;", "dispatchers:2:4:0.1,0,0,0;dispatchers:2:4:0,-0.05,0,0", EDIT + ";specialists:0:0:0,0,0,0")
    assert {key(start=s, vertex_edit=EDIT) for s in starts} | {key(start=bundle.name, vertex_edit=e) for e in edits} == {tuned.name.split("-")[0]}
    given = [dict(start=bundle.name), dict(start=bundle.name, vertex_edit="dispatchers:2:4:0.1,-0.05,0,0.001"), dict(start=bundle.name, vertex_edit="specialists:2:4:0.1,-0.05,0,0"), dict(start=str(tuned), vertex_edit=EDIT), dict(dim=10, channels=5, limit=230, norm="layer")]
    assert len({key(**g) for g in given} | {tuned.name.split("-")[0]}) == 6
    assert finished(root, images, start=str(bundle), vertex_edit="dispatchers:2:4:.1,-.05,0,0", epochs=2, progress="none") == tuned     # the same run, finished already


class Cut(Callback):
    "The power goes after so many steps."
    order = 99
    def __init__(self, steps): self.left = steps
    def after_batch(self, t):
        self.left -= 1
        if not self.left: raise KeyboardInterrupt


def test_a_run_that_was_cut_continues_bit_for_bit(root, images, bundle, tuned, tmp_path):
    shelf = tmp_path/"pentachora"/"digits"; shelf.mkdir(parents=True); shutil.copytree(bundle, shelf/bundle.name); given = dict(start=bundle.name, vertex_edit=EDIT, epochs=2, progress="none", checkpoint_seconds=0.)
    run, task = opened(tmp_path, images, **given)
    with pytest.raises(KeyboardInterrupt): fit(task, run, callbacks=[*usual_callbacks(task, run, "none", 0.), Cut(9)])
    run.lock.release(); again, task = opened(tmp_path, images, **given); assert again.resumed and again.run_id == tuned.name
    t = fit(task, again)
    out = save(again, task, report_of(again, task, t)); assert runs.differences(tuned, out) == []


# ---- the notebook

def injected(monkeypatch, names): monkeypatch.setattr("geonb.pentachora.config.injected_names", lambda: list(names)); monkeypatch.setattr(core_config, "injected_names", lambda: list(names))


def test_in_a_notebook_a_default_that_nobody_passed_is_not_given(root, bundle, monkeypatch):
    cell = json.loads((Path(__file__).parent.parent/"nbs"/f"{NAME}.ipynb").read_text()); source = next("".join(c["source"]) for c in cell["cells"] if "parameters" in c["metadata"].get("tags", [])); space = {}; exec(source, space)
    assert {k for k in space if not k.startswith("__")} == {*TrainPentachora.model_fields} and {k: space[k] for k in TrainPentachora.model_fields} == {k: f.default for k, f in TrainPentachora.model_fields.items()}
    injected(monkeypatch, []); space |= {"start": bundle.name, "runs_root": str(root)}; want = TrainPentachora.build(start=bundle.name, runs_root=str(root))
    assert TrainPentachora.from_notebook(space) == want
    injected(monkeypatch, ["start", "runs_root", "epochs"]); assert TrainPentachora.from_notebook({**space, "epochs": 3}).epochs == 3
    injected(monkeypatch, TrainPentachora.model_fields); assert TrainPentachora.from_notebook(space) == want      # the notebook's own cell is the last one
    injected(monkeypatch, ["start", "dim"])
    with pytest.raises(UsageError, match="dim=56 contradicts start="): TrainPentachora.from_notebook({**space, "dim": 56})     # passed, though it is the default
    injected(monkeypatch, ["start"])
    with pytest.raises(UsageError, match="dim=20 contradicts start="): TrainPentachora.from_notebook({**space, "dim": 20})     # typed into the cell
    injected(monkeypatch, ["strat"])
    with pytest.raises(UsageError, match="unknown parameter 'strat'"): TrainPentachora.from_notebook(space)


def test_the_command_names_what_a_run_needs(root, bundle):
    line = command(bundle, EDIT, epochs=3, runs_root=str(root)); words = shlex.split(line)
    assert words[:3] == ["papermill", "nbs/train_pentachora.ipynb", "out.ipynb"] and words[3::3] == ["-p"]*4
    given = {k: execute.parse_value(v) for k, v in zip(words[4::3], words[5::3])}
    assert given == {"start": bundle.name, "vertex_edit": "dispatchers:2:4:0.1,-0.05,0,0", "epochs": 3, "runs_root": str(root)} and check(NAME, given)[0] == 0
    assert str(bundle.resolve()) in command(bundle) and "vertex_edit" not in command(bundle)
    with pytest.raises(UsageError, match="unknown parameter 'epoch'"): command(bundle, epoch=3)
    with pytest.raises(UsageError, match="^vertex_edit="): command(bundle, "dispatchers:0:0:1,0,0")


def test_a_repetition_finds_the_start_where_the_run_lies(root, bundle, tuned, tmp_path):
    about = (read_json(tuned/"config.json"), read_json(tuned/"manifest.json"))
    assert runs.leaned_on(tuned, *about) == {"start": str(bundle.resolve())}
    alone = tmp_path/"pentachora"/"digits"/tuned.name; shutil.copytree(tuned, alone)
    with pytest.raises(DataMissing, match=f"was made with start='{bundle.name}', and there is no such run beside it"): runs.leaned_on(alone, *about)
    assert runs.leaned_on(alone, *about, root) == {"start": str(bundle.resolve())}     # or below the root that was asked about
    if shipped := next((r for r in examples() if r["laboratory"] == "pentachora"), None):
        assert runs.leaned_on(alone, {"parameters": {"start": "some/where/pentachora"}}, {"start": {"run_id": shipped["run_id"]}}) == {"start": shipped["path"]}


@pytest.mark.slow
def test_both_commands_make_one_run_and_it_comes_out_the_same_again(root, bundle, tmp_path):
    shelf = tmp_path/"pentachora"/"digits"; shelf.mkdir(parents=True); shutil.copytree(bundle, shelf/bundle.name); given = dict(start=bundle.name, vertex_edit=EDIT, epochs=1, runs_root=str(tmp_path), progress="none")
    made = execute.run(NAME, given); assert made["trained"] and made["problems"] == []
    given |= {"start": str(shelf/bundle.name), "vertex_edit": "dispatchers:2:4:.1,-5e-2,0,0;"}     # the same said otherwise
    done = subprocess.run([Path(sys.executable).parent/"papermill", "nbs/train_pentachora.ipynb", tmp_path/"out.ipynb", *(w for k, v in given.items() for w in ("-p", k, str(v))), "--no-progress-bar", "--log-output"], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and f"run {made['run_id']} is finished already" in done.stdout + done.stderr, done.stderr[-2000:]
    assert runs.rerun(made["run_id"], tmp_path) == []
