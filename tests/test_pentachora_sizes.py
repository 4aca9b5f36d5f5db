"Sizes, resolutions and front ends: exact counts whatever the numbers, the old model untouched, and every combination from the run notebook to the explorer."
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import conformance as suite
from geonb.app.execute import check
from geonb.app.load import load
from geonb.core.atomic import read_json
from geonb.core.assets import example
from geonb.core.bundles import verify_bundle
from geonb.data.images import load_images
from geonb.pentachora.anatomy import parameter_counts
from geonb.pentachora.config import FIXED, TrainPentachora, start_config
from geonb.pentachora.encoder import PentaFreqEncoderV2, encoder_parameters, grid_size
from geonb.pentachora.model import ModelSpec, build_modules, forward, full_size
from geonb.pentachora.pyramid import LaplacianPyramid, PyramidEncoder, pyramid_convolutions
from geonb.pentachora.sizes import SIZES

NAME = "train_pentachora"


def spec(size="S", side=28, C=10, ch=1, **more):
    return ModelSpec(class_names=[str(i) for i in range(C)], input_ch=ch, side=side, mean=[0.]*ch, std=[1.]*ch, **SIZES[size] | more)


# ---- counts ----

@settings(max_examples=25, deadline=None)
@given(C_in=st.integers(1, 4), c=st.integers(1, 9), half=st.integers(3, 40), side=st.sampled_from([28, 32, 56, 64]), proj=st.integers(0, 20), front=st.sampled_from(["raw", "dog", "strided", "pyramid"]),
       encode=st.sampled_from(["full", "lowrank"]), residual=st.booleans(), seed=st.integers(0, 2**31))
def test_any_encoder_has_the_stated_size_and_unit_latents(C_in, c, half, side, proj, front, encode, residual, seed):
    torch.manual_seed(seed); pyramid = front == "pyramid"
    m = (PyramidEncoder if pyramid else PentaFreqEncoderV2)(C_in*side**2, C_in, 2*half, 2, c, proj or None, front_end=front, encode=encode, residual=residual)
    assert sum(p.numel() for p in m.parameters()) == encoder_parameters(C_in, c, 2*half, proj, grid_size(side), encode=encode, residual=residual, convolutions=pyramid_convolutions(C_in, c, side) if pyramid else None)
    z = m(torch.randn(3, C_in, side, side)); assert z.shape == (3, proj or 2*half) and torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)
    z.square().mul(torch.arange(z.shape[1])).sum().backward(); assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


COUNTS = {("nano", 28): 71_467, ("S", 28): 278_271, ("M", 28): 1_611_983, ("L", 28): 5_131_535}

@pytest.mark.parametrize("size, side", COUNTS)
def test_the_sizes_have_these_numbers(size, side):
    "By hand, and from the modules; ten classes, grey."
    s = spec(size, side); assert full_size(s) == parameter_counts(build_modules(s))["total"] == COUNTS[size, side]


@pytest.mark.parametrize("side", [28, 64, 128])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("front", ["raw", "pyramid"])
def test_the_plain_network_is_as_large(size, side, front):
    s = spec(size, side, 8, 3, front_end=front, kind="cnn"); assert abs(parameter_counts(build_modules(s))["total"] / full_size(s) - 1) < .02


# ---- what was there before ----

def digest(modules):
    h = hashlib.sha256()
    for k in sorted(modules):
        for n, t in sorted(modules[k].state_dict().items()): h.update(n.encode()); h.update(t.numpy().tobytes())
    return h.hexdigest()


def test_the_default_is_the_seed_s_model_and_strides_change_no_weight():
    "The same numbers for the same seed, so that only what is computed from them differs."
    a, b = build_modules(spec(), 3), build_modules(spec(front_end="strided"), 3); assert digest(a) == digest(b)
    x = torch.rand(4, 1, 28, 28); z, d = (forward({k: m.eval() for k, m in ms.items()}, x)[1]["z"] for ms in (a, b)); assert not torch.equal(z, d)
    b["encoder"].load_state_dict(PentaFreqEncoderV2(front_end="dog").state_dict())


def test_a_bundle_older_than_the_parameters_means_their_defaults(tmp_path):
    "The example that ships has none of them: it loads, and may be started from; what contradicts its defaults is refused."
    bundle = example("pentachora"); young = {"resolution", "size", "encode", "residual"}; kept = read_json(bundle/"config.json")
    if young & {*kept["parameters"]}: pytest.skip("the example was trained anew")
    was = start_config(str(bundle))["parameters"]; assert {k: was[k] for k in young} == dict(resolution=28, size="S", encode="full", residual=False) and {*FIXED} <= {*was}
    config = TrainPentachora.build(start=str(bundle)); assert (config.size, config.dim, config.encode) == ("S", kept["parameters"]["dim"], "full")
    assert (load(bundle).predict(load_images("digits").test.images[:5])).shape == (5,)
    for name, value in dict(resolution=64, size="M", encode="lowrank", residual=True, front_end="pyramid").items():
        code, said = check(NAME, {"start": str(bundle), name: value}); assert code == 2 and said.startswith(f"{name}=") and "contradicts start" in said, said


# ---- the words ----

@pytest.mark.parametrize("given, words", [
    ({"size": "XL"}, "one of 'nano', 'S', 'M', 'L'"), ({"size": "s"}, "one of 'nano', 'S', 'M', 'L'"), ({"size": None}, "size=None"), ({"size": ["S"]}, "one of"), ({"resolution": 32}, "one of 28, 64, 128"), ({"resolution": "big"}, "one of 28, 64, 128"),
    ({"encode": "low"}, "one of 'full', 'lowrank' or null"), ({"residual": "maybe"}, "true or false or null"), ({"front_end": "fast"}, "'strided'"), ({"size": "nano", "dim": 33}, "dim=33 is not a multiple of heads=2"), ({"size": "M", "heads": 5}, "dim=128 is not a multiple of heads=5")])
def test_what_is_none_is_refused_in_one_sentence(given, words):
    code, said = check(NAME, given); assert code == 2 and words in said and "\n" not in said, said


def test_a_size_fills_in_what_was_not_given():
    for size, row in SIZES.items():
        for given in ({}, {"dim": None}, {"encode": "null", "heads": "null"}): c = TrainPentachora.build(size=size, **given); assert {k: getattr(c, k) for k in row} == row
    c = TrainPentachora.build(size="M", dim=96, residual=False); assert (c.dim, c.heads, c.channels, c.encode, c.residual) == (96, 4, 32, "full", False)
    again = TrainPentachora.build(**TrainPentachora.build(size="L", encode="lowrank").model_dump()); assert again == TrainPentachora.build(size="L", encode="lowrank")
    assert TrainPentachora.build(residual="true").residual is True


def test_a_medmnist_set_is_looked_for_in_the_size_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("GEONB_DATA", str(tmp_path)); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, said = check(NAME, {"dataset": "bloodmnist", "resolution": 64}); assert code == 4 and "bloodmnist_64.npz" in said and "--size 64" in said, said
    code, said = check(NAME, {"dataset": "bloodmnist"}); assert code == 4 and "bloodmnist.npz" in said, said


# ---- from the notebook to the explorer ----

def notebook(cells, root, **given):
    "The run notebook's cells in a fork, with the size's width; -> the bundle."
    root.mkdir(exist_ok=True); status, out = cells(row=NAME, root=str(root), given=dict(epochs=1, limit=230, dim=None, channels=None) | given); assert status == 0 and "error" not in out, out
    bundle = Path(out["path"]); assert verify_bundle(bundle) == [] and verify_bundle(bundle.parent/"best") == []
    return bundle


def comes_back(bundle, side, monkeypatch):
    "Loaded, it predicts what was kept; the card's lines run; the explorer draws it."
    test = load_images("digits", size=side).test; model = load(bundle); assert np.abs(model.logits(test.images) - suite.arrays(bundle/"predictions_test.npz")["logits"]).max() <= 1e-5
    monkeypatch.chdir(bundle); exec(suite.snippets(Path("README.md").read_text()), {}); assert verify_bundle(bundle) == []
    return model


WAYS = {"nano": dict(size="nano"), "lowrank": dict(encode="lowrank", residual=True), "strided": dict(front_end="strided"), "pyramid": dict(front_end="pyramid"), "linear, pyramid": dict(model="linear", front_end="pyramid", size="nano"), "bf16": dict(front_end="pyramid", precision="bf16", strict=True),
        "64": dict(size="nano", resolution=64), "64, linear": dict(size="nano", resolution=64, model="linear"), "64, cnn": dict(size="nano", resolution=64, model="cnn")}

@pytest.mark.parametrize("given", WAYS.values(), ids=WAYS)
def test_every_way_runs_verifies_and_comes_back(cells, tmp_path, monkeypatch, given):
    bundle = notebook(cells, tmp_path/"root", **given); p = read_json(bundle/"config.json")["parameters"]; assert p.items() >= given.items() and p.items() >= {k: v for k, v in SIZES[p["size"]].items() if k not in given}.items()
    side = given.get("resolution", 28); model = comes_back(bundle, side, monkeypatch); assert f"8×8 pixels, resized to {side}×{side}" in (bundle/"README.md").read_text()
    assert ("`size=nano`" in (bundle/"README.md").read_text()) == (p["size"] == "nano")
    assert read_json(bundle/"manifest.json")["parameters"]["total"] == parameter_counts(model.modules)["total"] and (model.spec.kind == "linear" or abs(full_size(model.spec) / parameter_counts(model.modules)["total"] - 1) < .02)


def test_a_start_brings_its_size_and_the_explorer_draws_it(cells, tmp_path, monkeypatch):
    from geonb.explorers.simplex import SimplexExplorer
    root = tmp_path/"root"; bundle = notebook(cells, root, size="nano", resolution=64, front_end="pyramid", dim=36, model="constellation")
    held = suite.arrays(bundle/"heldout.npz"); assert held["thumbnails"].shape[1:] == (28, 28, 1)
    explorer = SimplexExplorer(bundle); assert len(explorer.picture(explorer.opening())) > 1000
    config = TrainPentachora.build(start=str(bundle), runs_root=str(root)); assert (config.size, config.resolution, config.dim, config.channels, config.front_end, config.encode) == ("nano", 64, 36, 6, "pyramid", "lowrank")
    assert TrainPentachora.build(start=str(bundle), runs_root=str(root), dim=None, size="nano").dim == 36
    more = notebook(cells, root, start=bundle.name, epochs=1, vertex_edit="dispatchers:1:2:0.1,0,0,0"); assert read_json(more/"manifest.json")["start"]["run_id"] == bundle.name; comes_back(more, 64, monkeypatch)
    assert "contradicts start" in check(NAME, {"start": str(bundle), "runs_root": str(root), "resolution": 28})[1]


@pytest.mark.slow
@pytest.mark.parametrize("given", [dict(size="M", resolution=64), dict(size="L"), dict(size="S", resolution=128, front_end="strided", limit=120)], ids=["M at 64", "L", "S at 128"])
def test_the_large_ones_run_too(cells, tmp_path, monkeypatch, given):
    comes_back(notebook(cells, tmp_path/"root", **given), given.get("resolution", 28), monkeypatch)


def test_levels_add_up_in_half_precision_too():
    x = torch.rand(2, 3, 64, 64); pyramid = LaplacianPyramid(64)
    assert (pyramid.collapse(pyramid(x.double())) - x).abs().max() < 1e-6 and (pyramid.collapse(pyramid(x.bfloat16())).float() - x).abs().max() < .03
