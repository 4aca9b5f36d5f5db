"Constellations of cubes, cross-polytopes and other simplices: the whole way from a parameter to a bundle that is opened, edited and trained on."
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geonb.core.atomic import read_json
from geonb.core.environment import prepare
from geonb.core.errors import CheckFailed, UsageError
from geonb.core.run import Run
from geonb.core.training import fit
from geonb.data.images import load_images
from geonb.geometry.families import family
from geonb.geometry.simplex import amgm_gap, edge_variation, quality
from geonb.pentachora.bundle import load_bundle, save, snippet, started_from
from geonb.pentachora.config import TrainPentachora
from geonb.pentachora.constellation import BatchedPentachoronConstellation
from geonb.pentachora.editing import Edited, command
from geonb.pentachora.edits import apply_edits, read_edits
from geonb.pentachora.losses import geometry_loss, repair_geometry
from geonb.pentachora.model import ModelSpec, build_modules, equal_size, full_size
from geonb.pentachora.report import report_of
from geonb.pentachora.task import PentachoraTask

FAMILIES = ["simplex:4", "simplex:2", "cube:3", "cube:4", "cross:5"]
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dict(epochs=1, dim=10, channels=5, limit=230, norm="layer", device="cpu", progress="none")
MOVED = "dispatchers:1:6:0,0.25,0"


@pytest.fixture(scope="module")
def images(): return load_images("digits")


@pytest.fixture(scope="module")
def root(tmp_path_factory): return tmp_path_factory.mktemp("families")


def finished(root, images, **given):
    "What the notebook does -> (the bundle's folder, its report)."
    config = TrainPentachora.build(**given, runs_root=str(root)); prepare(config.seed, 1); start, origin = started_from(config, images)
    run = Run.open(config, images.name, images.provenance | origin, report=lambda s: None, **origin); task = PentachoraTask(config, images, start=start)
    report = report_of(run, task, fit(task, run))
    return save(run, task, report), report


@pytest.fixture(scope="module")
def cubes(root, images): return finished(root, images, **QUICK, geometry="cube:3", factored=True, vertex_map="gray")


# ---- the loss

@pytest.mark.parametrize("seed", range(3))
def test_on_pentachora_the_loss_is_what_it_was_before_there_were_families(seed):
    m = BatchedPentachoronConstellation(10, 56, 5, seed=seed).double(); g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (m.dispatchers, m.specialists): p += .3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    loss, parts = geometry_loss(m); x = torch.stack([m.dispatchers, m.specialists]); centre = x.mean(2); spoke = (x - centre[:, :, None]).norm(dim=-1)
    apart = (.5 - (centre[0] - centre[1]).norm(dim=-1)).relu().square().mean(); round_ = ((spoke - 1).abs() - .25).relu().square().mean()
    was = .5 * amgm_gap(x).mean() + .5 * edge_variation(x).mean() + .391 * apart + .1 * round_
    assert set(parts) == {"cm", "edge", "sep", "rad"} and torch.equal(loss, was)   # bit for bit: runs of before are repeated
    general = family("simplex:4").regulariser(x, stress=False).mean()   # the form for all families, of this one
    assert abs(.5 * general + .5 * edge_variation(x).mean() + .391 * apart + .1 * round_ - was).item() < 1e-10


@pytest.mark.parametrize("name", ["simplex:2", "cube:3", "cube:4", "cross:5", "cross:3"])
def test_the_loss_alone_brings_any_family_back_into_shape(name):
    m = BatchedPentachoronConstellation(10, 24, 2, geometry=name); g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (m.dispatchers, m.specialists): p += .12 * torch.randn(p.shape, generator=g)   # with .2 vertices of a cross:5 have changed places, and stress keeps them there: a local minimum of 0.06
    off = m.family.regulariser(m.dispatchers.double()).max().item(); adam = torch.optim.Adam([m.dispatchers, m.specialists], lr=.02)
    for _ in range(200): adam.zero_grad(); geometry_loss(m)[0].backward(); adam.step()
    assert m.family.regulariser(m.dispatchers.double()).max().item() < 5e-3 < .05 < off
    assert m.geometry()["quality"] > .99 and repair_geometry(m, torch.Generator()) == 0


def test_a_tetrahedrons_quality_is_not_a_cubes():
    "What a simplex measure says of a cube: all is flat. The family's own says: regular."
    m = BatchedPentachoronConstellation(8, 16, 3, geometry="cube:3")
    assert quality(m.dispatchers).max() < 1e-3 and m.family.quality(m.dispatchers).min() > .999 and repair_geometry(m, torch.Generator()) == 0
    before = m.dispatchers.detach().clone()
    with torch.no_grad(): m.dispatchers[1] -= (m.dispatchers[1] @ (axis := m.family.frame(m.dispatchers[1])[1][2].float()))[:, None] * axis   # one cube pressed flat
    assert repair_geometry(m, torch.Generator().manual_seed(0)) == 1 and torch.equal(m.dispatchers[0], before[0]) and m.family.quality(m.dispatchers)[1] > 0


# ---- size

@pytest.mark.parametrize("classes, pairs", [(10, 5), (8, 5), (47, 24)])
@pytest.mark.parametrize("name, factored", [("simplex:2", False), ("simplex:9", False), ("cube:3", False), ("cube:3", True), ("cube:4", False), ("cube:4", True), ("cross:5", False)])
def test_families_compare_at_equal_size(classes, pairs, name, factored):
    spec = ModelSpec(class_names=[str(i) for i in range(classes)], input_ch=1, side=28, mean=[.1], std=[.3], pairs=pairs); fair = equal_size(spec.model_copy(update=dict(geometry=name, factored=factored)))
    count = sum(p.numel() for m in build_modules(fair).values() for p in m.parameters())
    assert count == full_size(fair) and abs(count / full_size(spec) - 1) < .02 and fair.hidden >= 32 and fair.dim % fair.heads == 0


def test_equal_size_can_be_declined_or_impossible(images):
    from geonb.pentachora.task import model_spec
    wide, equal = (model_spec(TrainPentachora.build(geometry="cube:4", equal_size=e), images) for e in (False, True))
    assert (wide.dim, wide.hidden) == (56, 128) and full_size(wide) > 1.02 * full_size(equal)
    with pytest.raises(UsageError, match="equal_size=false"): model_spec(TrainPentachora.build(geometry="cube:10"), images)
    assert model_spec(TrainPentachora.build(geometry="cube:6", factored=True, equal_size=False), images).hidden == 128


# ---- the whole way

@pytest.mark.parametrize("given", [dict(geometry="cube:4"), dict(geometry="cross:5", vertex_map="shared", reweight=True)] + [pytest.param(dict(geometry=g, factored=f), marks=pytest.mark.slow) for g, f in (("simplex:9", False), ("cube:3", False), ("cube:4", True), ("cross:3", False), ("simplex:1", False), ("cube:1", True))])
def test_a_run_of_a_family_is_kept_and_opened(root, images, given):
    bundle, report = finished(root, images, **QUICK, **given); model = load_bundle(bundle); con = model.modules["constellation"]; V = family(given["geometry"]).n_vertices
    assert (model.spec.geometry, model.spec.factored) == (given["geometry"], given.get("factored", False)) and con.dispatchers.shape[1] == V
    assert np.abs(model.logits(images.test.images) - report.logits).max() < 1e-5
    path = dict(np.load(bundle/"trajectory.npz")); assert path["dispatchers"].shape[2] == V and (path["quality_dispatchers"] > .5).all()
    d = read_json(bundle/"diagnostics.json"); assert np.shape(d["usage"]["vertex_mean"]) == (con.dispatchers.shape[0], V) and .5 < d["geometry"]["quality_mean"] <= 1
    assert all(.5 < r["geometry/quality"] <= 1 and r["model/repaired"] == 0 for r in read_json(bundle/"history.json"))
    assert f"geometry='{given['geometry']}'" in (bundle/"README.md").read_text()


def test_the_snippet_of_a_cards_loads_its_parts(cubes, monkeypatch):
    bundle, _ = cubes; model = load_bundle(bundle); code = snippet(model.spec, "digits"); monkeypatch.chdir(bundle); names = {}
    assert "geometry='cube:3', factored=True" in code
    exec(code, names)
    mine, its = names["constellation"].state_dict(), model.modules["constellation"].state_dict(); assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in its)
    z = F.normalize(torch.randn(4, model.spec.dim), dim=1); assert torch.equal(names["constellation"].eval()(z)[0], model.modules["constellation"](z)[0])


def test_training_goes_on_from_an_edited_cube(root, images, cubes):
    bundle, _ = cubes; edited = Edited(bundle); f = edited.figures(MOVED)
    assert len(f["quality"]["dispatchers"]) == 5 and f["quality"]["dispatchers"][1] < f["before"]["quality"]["dispatchers"][1] and f["nll"] != f["before"]["nll"]
    coordinates, basis, centre = edited.frame("dispatchers", 1); assert coordinates.shape == (8, 3) and basis.shape == (3, 10)
    line = command(bundle, MOVED, runs_root=str(root), epochs=1); assert MOVED in line and bundle.name in line
    on, _ = finished(root, images, start=bundle.name, vertex_edit=" dispatchers:01:6:0,.25,0;", epochs=1, progress="none"); began = np.load(on/"trajectory.npz")["dispatchers"][0]
    moved = apply_edits(edited.stacks, read_edits(MOVED, family("cube:3")), family("cube:3"))
    assert np.array_equal(began, moved["dispatchers"].numpy()) and load_bundle(on).spec.geometry == "cube:3" and read_json(on/"config.json")["parameters"]["vertex_edit"] == MOVED


@pytest.mark.parametrize("given, words", [
    (dict(vertex_edit="dispatchers:1:8:0,1,0"), "cube:3 has the vertices 0 to 7, not 8"), (dict(vertex_edit="dispatchers:1:4:0.1,0,0,0"), "has 3 numbers, this has 4"), (dict(geometry="cube:4"), "contradicts start"), (dict(factored=False), "contradicts start"), (dict(equal_size=False), "contradicts start")])
def test_what_does_not_fit_a_cube_is_refused(root, cubes, given, words):
    with pytest.raises(UsageError) as e: TrainPentachora.build(start=cubes[0].name, runs_root=str(root), **given)
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("given, words", [(dict(geometry="simplex:04"), "such as simplex:4"), (dict(geometry="cube:11"), "more than 1,024 vertices"), (dict(geometry="cross:60"), "dim=56 is too small"), (dict(geometry="cross:5", factored=True), "bits of a cube"),
                                          (dict(geometry="cross:4", vertex_map="gray"), "edges of a cube"), (dict(geometry="cube:3", model="cnn"), "has no constellation"), (dict(geometry=4), "geometry=4")])
def test_shapes_that_cannot_be_are_refused(given, words):
    with pytest.raises(UsageError) as e: TrainPentachora.build(**given)
    assert words in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 300


def test_a_bundle_from_before_the_families_means_pentachora():
    from geonb.core.assets import example
    path = example("pentachora"); model = load_bundle(path); spec = ModelSpec.read({k: v for k, v in model.spec.model_dump().items() if k not in ("geometry", "factored", "hidden")})
    assert spec == model.spec and model.modules["constellation"].family.name == "simplex:4"
    assert TrainPentachora.build(start=str(path)).geometry == "simplex:4"


def test_the_explorer_of_pentachora_says_what_it_does_not_draw(cubes):
    from geonb.explorers.trajectory import open_pentachora
    with pytest.raises((UsageError, CheckFailed)) as e: open_pentachora(str(cubes[0]))
    assert "cube:3" in str(e.value) and "\n" not in str(e.value)


def test_a_sweep_goes_over_families():
    from geonb.app.sweep import read_axis
    assert read_axis("geometry=simplex:4,cube:3,cross:5", TrainPentachora) == ("geometry", [(g, {"geometry": g}) for g in ("simplex:4", "cube:3", "cross:5")])
    for _, p in read_axis("geometry=simplex:4,cube:3,cross:5", TrainPentachora)[1]: assert TrainPentachora.build(**p).equal_size
