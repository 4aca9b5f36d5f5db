"Calibration and strangers: what is fitted on validation only, what a bundle keeps, and what a reader may do with it."
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

import geonb
from geonb.core.assets import example
from geonb.core.atomic import read_json
from geonb.core.environment import prepare
from geonb.core.errors import CheckFailed, UsageError
from geonb.core.run import Run
from geonb.core.seeds import stream
from geonb.core.training import fit
from geonb.data.images import load_images
from geonb.pentachora import report as r
from geonb.pentachora.bundle import load_bundle, save
from geonb.pentachora.config import TrainPentachora
from geonb.pentachora.model import Classifier, ModelSpec, build_modules
from geonb.pentachora.ood import SPOILS, STRANGERS, ood_report, ood_scores, ood_table, spoiled, strangers
from geonb.pentachora.task import PentachoraTask
from geonb.stats.calibration import classwise_ece, ece, nll
from geonb.stats.scaling import METHODS, Calibration, calibration_figures, fit_calibration, fit_method
from geonb.stats.temperature import fit_temperature

QUICK = dict(epochs=2, dim=10, channels=5, limit=230, device="cpu", progress="none")


def drawn(n, C, seed, loud=1.):
    "Logits and labels of a classifier that is right about its own probabilities when loud is 1."
    g = stream(seed, "drawn"); p = g.dirichlet(np.full(C, .7), n).clip(1e-9); y = (p.cumsum(1) < g.random((n, 1))).sum(1).clip(0, C - 1)
    return loud * np.log(p), y


def test_ece_of_four_samples_by_hand():
    p, y = np.array([[.9, .1], [.8, .2], [.6, .4], [.3, .7]]), np.array([0, 1, 0, 1])
    assert ece(p, y) == pytest.approx((.1 + .8 + .4 + .3) / 4)   # four bins of one sample each
    assert calibration_figures(p, y)["ece"] == ece(p, y) and calibration_figures(p, y)["classwise_ece"] == classwise_ece(p, y) == pytest.approx(.4)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(20, 200), C=st.integers(2, 6), seed=st.integers(0, 10**6), loud=st.floats(.2, 8))
def test_a_temperature_keeps_the_answer_and_never_raises_the_validation_nll(n, C, seed, loud):
    z, y = drawn(n, C, seed, loud); c = fit_calibration(z, y, "temperature")
    assert c.method in ("identity", "temperature") and (c.probs(z).argmax(1) == z.argmax(1)).all()
    assert nll(c.probs(z), y) <= nll(Calibration().probs(z), y) + 1e-12
    if c.method == "temperature": assert c.temperature == fit_temperature(z, y).value
    else: assert c.record["why"]


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_method_that_loses_on_held_out_answers_is_left_out(method):
    outcomes = [fit_calibration(*drawn(30, 3, s), method) for s in range(8)]
    for c in outcomes:
        if "nll_held_out" not in c.record: continue   # its temperature ended at a limit
        h = c.record["nll_held_out"]; assert (c.method == method) == (h[method] < h["identity"])
        if c.method == "identity": assert method in c.record["why"]
    assert {c.method for c in outcomes} >= {"identity"}   # thirty honest answers: now and then nothing helps
    assert fit_calibration(*drawn(300, 3, 1, 4.), method).method == method   # four times too loud: everything does


def test_a_confused_speaker_needs_more_than_a_temperature():
    z, y = drawn(1500, 4, 3); z = z @ np.array([[1, .7, 0, 0], [.7, 1, 0, 0], [0, 0, 2., 0], [0, 0, 0, .5]]).T + [0, 1, 0, -1]
    first, last = slice(0, 750), slice(750, None); got = {m: nll(fit_method(z[first], y[first], m, .1).probs(z[last]), y[last]) for m in METHODS}
    assert got["dirichlet"] < got["vector"] < got["temperature"] < got["identity"]


@pytest.mark.parametrize("how, words", [(dict(method="platt"), "names its method"), (dict(method="temperature", temperature=-1.), "above 0"), (dict(method="temperature", temperature="x"), "something else than numbers"),
                                        (dict(method="vector", weight=[1., 2.], bias=[0., 0., 0.]), "shape [3]"), (dict(method="dirichlet", weight=np.eye(3).tolist(), bias=[0., math.nan, 0.]), "finite"), ([], "names its method")])
def test_a_calibration_that_is_none_is_refused(how, words):
    with pytest.raises(CheckFailed, match=r".*") as e: Calibration.read(how, 3)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_spoiled_copies_and_strangers_are_different_things():
    assert not {*SPOILS} & {*STRANGERS}
    x = load_images("digits").val.images
    for k in SPOILS: assert (spoiled(x, k) == spoiled(x, k)).all() and (spoiled(x, k) != spoiled(x, k, 1)).any() or k == "coarse"
    assert all((spoiled(x, a) != strangers(x, b)).any((1, 2, 3)).all() for a in SPOILS for b in STRANGERS)


# --- runs -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def images(): return load_images("digits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    "Two short runs that differ in what follows training, and a floor: (task, report, bundle)."
    root, out = tmp_path_factory.mktemp("calibration"), {}
    for name, given in dict(default={}, other=dict(calibration="dirichlet", ood="synth"), cnn=dict(model="cnn", calibration="identity", ood="none")).items():
        config = TrainPentachora(**QUICK, runs_root=str(root), **given); run = Run.open(config, images.name, images.provenance, report=lambda s: None)
        prepare(config.seed, 1, False); task = PentachoraTask(config, images); report = r.measure(task, fit(task, run)); out[name] = task, report, save(run, task, report)
    return out


def test_calibration_changes_no_weight(trained):
    one, other = ({f.name: load_file(f) for f in sorted((trained[k][2]/"weights").glob("*"))} for k in ("default", "other"))
    assert one.keys() == other.keys() and all((one[f][k] == other[f][k]).all() for f in one for k in one[f])


def test_a_bundle_keeps_its_calibration_and_probabilities_follow(trained, images):
    x, y = images.test.images, images.test.labels
    for name, (task, report, bundle) in trained.items():
        tree = read_json(bundle/"calibration.json"); model = geonb.load(bundle); val = model.logits(images.val.images)
        asked = {"other": "dirichlet", "cnn": "identity"}.get(name, "temperature"); assert tree["asked"] == asked and tree["method"] in ("identity", asked) and tree["n"] == len(images.val)
        again = fit_calibration(val, images.val.labels, asked)   # of validation answers and nothing else
        assert again.method == tree["method"] and np.abs(again.probs(val) - model.calibration.probs(val)).max() < 1e-3
        p = model.predict_proba(x); assert np.abs(p - Calibration.read(tree).probs(model.logits(x))).max() < 1e-12 and (model.predict(x) == p.argmax(1)).all()
        c = report.diagnostics["calibration"]; assert c["before"]["ece"] == pytest.approx(report.diagnostics["classification"]["ece"]) and c["after"]["nll"] == pytest.approx(nll(p, y), abs=1e-5)
        assert r.read(bundle).diagnostics == report.diagnostics and r.read(bundle).calibration.as_json() == report.calibration.as_json() == tree
    assert trained["default"][1].calibration.method == "temperature", "this run was chosen because a temperature helps it"


def test_every_score_is_in_the_report_with_msp_as_the_bar(trained):
    ood = trained["default"][1].diagnostics["ood"]
    assert {*STRANGERS} <= {*ood["pairs"]} and set(trained["other"][1].diagnostics["ood"]["pairs"]) == {*STRANGERS, "synth"} and "ood" not in trained["cnn"][1].diagnostics
    for pair in ood["pairs"].values():
        assert list(pair["scores"]) == ["msp", "energy", "routing_entropy", "rose", "probe_rose", "pair_disagreement", "prenorm", "combined"]
        for name, s in pair["scores"].items():
            assert all(0 <= s[k] <= 1 for k in ("auroc", "aupr", "fpr95")) and ("over_msp" in s) == (name != "msp")
            if name != "msp": d, low, high = s["over_msp"]; assert low <= d <= high and d == pytest.approx(s["auroc"] - pair["scores"]["msp"]["auroc"])


def test_the_combination_sees_no_test_picture_and_no_stranger(trained, images):
    task, report, bundle = trained["default"]; model = load_bundle(bundle); seen = []
    def diagnose(x): seen.append(x); return model.diagnose(x)
    one = ood_report(diagnose, images.val.images, images.test.images, most=100)
    fitted_on = seen[1 + len(SPOILS)]   # known, four spoiled, then validation
    other = ood_report(model.diagnose, images.val.images, 255 - images.test.images, {"odd": images.test.images}, most=100)
    assert one["combination"] == other["combination"] and one["pairs"]["uniform"] != other["pairs"]["uniform"]
    assert one["combination"] != ood_report(model.diagnose, images.test.images, images.test.images, most=100)["combination"] and fitted_on.shape[0] <= 100


def test_three_lines_on_a_loaded_model(trained, images):
    model = geonb.load(trained["other"][2]); before = model.predict_proba(images.test.images)
    found = model.calibrate(images.val.images, images.val.labels, "best")
    assert found is model.calibration and (found.method == "identity") == np.allclose(model.predict_proba(images.test.images), before)
    scores = model.ood(images.test.images[:5]); assert set(scores) == {"msp", "energy", "routing_entropy", "rose", "probe_rose", "pair_disagreement", "prenorm"} and all(v.shape == (5,) for v in scores.values())
    c = read_json(trained["other"][2]/"diagnostics.json")["ood"]["combination"]; assert ood_scores(model.diagnose(images.test.images[:5]), c)["combined"].shape == (5,)


def test_the_card_tells_it(trained):
    text = (trained["default"][2]/"README.md").read_text()
    assert "as the model says it | calibrated" in text and "| uniform | " in text and "Calibration: temperature, T = " in text
    assert "Nothing was measured on strangers." in (trained["cnn"][2]/"README.md").read_text()


def test_a_bundle_from_before_is_read_and_shown():
    bundle = example("pentachora"); model = geonb.load(bundle); assert model.calibration.method in METHODS
    report = r.read(bundle)
    for f in (r.reliability_figure, r.ood_figure): assert f(report).axes
    assert r.calibration_section(report) and r.ood_section(report)


def test_figures_of_both_kinds(trained):
    report = trained["default"][1]; a, b = r.reliability_figure(report).axes
    shown = {line.get_label(): line.get_xdata() for line in a.lines if "ECE" in line.get_label()}; assert len(shown) == 2 and all(len(x) for x in shown.values())
    labels = [t.get_text() for t in r.ood_figure(report).axes[0].get_yticklabels()]; assert labels == [*report.diagnostics["ood"]["pairs"]]


@pytest.mark.parametrize("given, words", [(dict(calibration="platt"), "one of 'identity', 'temperature', 'vector', 'dirichlet', 'best'"), (dict(ood=";"), "auto, none, or names and paths"), (dict(ood="auto;mnist"), "auto, none, or names and paths")])
def test_parameters_are_refused_in_a_sentence(given, words):
    with pytest.raises(UsageError) as e: TrainPentachora.build(**given)
    assert words in str(e.value)


@pytest.mark.parametrize("ood, words", [("digits", "strangers have to come from another one"), ("synth;digitz", "did you mean 'digits'"), ("no/such.npz", "there is no file or folder")])
def test_strangers_that_cannot_be_had_are_named_before_a_run_begins(ood, words):
    with pytest.raises(Exception) as e: TrainPentachora.build(ood=ood).check_data()
    assert words in str(e.value) and "ood=" in str(e.value)


def test_strangers_through_a_floor_without_latents():
    spec = ModelSpec(kind="cnn", class_names=["a", "b"], input_ch=3, side=28, mean=[.5] * 3, std=[.2] * 3); model = Classifier(spec, build_modules(spec))
    x = stream(0, "colour").integers(0, 256, (30, 28, 28, 3)).astype(np.uint8); report = ood_report(model.diagnose, x, x[:20])
    assert set(report["pairs"]) == {*STRANGERS} and json.loads(json.dumps(report, allow_nan=False)) == report and "| textures | " in ood_table(report) and list(report["pairs"]["uniform"]["scores"]) == ["msp", "energy", "combined"]
