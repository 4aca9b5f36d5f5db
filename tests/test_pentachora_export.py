"Exported graphs: what they answer elsewhere, what they refuse, what they leave behind."
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from geonb.core.artifacts import read_npz
from geonb.core.assets import example
from geonb.core.errors import CheckFailed
from geonb.pentachora import export as room
from geonb.pentachora.bundle import load_bundle
from geonb.pentachora.model import Classifier, ModelSpec, build_modules
from geonb.stats.scaling import Calibration

PICTURES = dict(class_names=[f"c{i}" for i in range(7)], input_ch=1, side=28, mean=[.3], std=[.3], dim=10, channels=5)
ALONE = """import sys
sys.modules["geonb"] = None   # an import of it fails
import numpy as np
images = dict(np.load(sys.argv[2])); out = {}
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    s = onnxruntime.InferenceSession(sys.argv[1]); names = [o.name for o in s.get_outputs()]
    ask = lambda x: dict(zip(names, s.run(names, {"images": x})))
    assert "torch" not in sys.modules
else:
    import torch
    m = torch.export.load(sys.argv[1]).module()
    ask = lambda x: {k: v.detach().numpy() for k, v in m(torch.from_numpy(x)).items()}
for b, x in images.items(): out |= {f"{k}/{b}": v for k, v in ask(x).items()}
np.savez(sys.argv[3], **out)
"""


def fresh(seed=0, calibration=None, **kwargs):
    "A model with weights of its seed, whose norms and correction are not at their neutral values."
    spec = ModelSpec(**{**PICTURES, **kwargs}); modules = build_modules(spec, seed); g = torch.Generator().manual_seed(seed)
    for m in modules.values():
        for name, t in m.state_dict().items():
            if t.is_floating_point() and (t == t.flatten()[0]).all() and t.ndim and "adjacency" not in name: t.add_(.1*torch.rand(t.shape, generator=g))
    return Classifier(spec, modules, calibration)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    "The example that ships in every form: name -> (file, what was found)."
    folder = tmp_path_factory.mktemp("exported"); made = {}; program = room.traced(room.ImageGraph(load_bundle(example("pentachora"))))   # traced once: that is what takes long
    monkeypatch = pytest.MonkeyPatch(); monkeypatch.setattr(room, "traced", lambda graph: program)
    for name, form, int8 in (("torch", "torch", False), ("onnx", "onnx", False), ("int8", "onnx", True)): made[name] = room.export_bundle(example("pentachora"), folder/f"{name}{room.ENDINGS[form]}", form, int8)
    monkeypatch.undo(); assert sorted(os.listdir(folder)) == ["int8.onnx", "onnx.onnx", "torch.pt2"]
    return made


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_elsewhere_it_answers_as_here(digits, tmp_path, name):
    "A process that cannot import geonb asks 1, 7 and 64 pictures."
    shown = read_npz(example("pentachora")/"heldout.npz")["thumbnails"]; model = load_bundle(example("pentachora"))
    asked = {str(b): np.ascontiguousarray(shown[-b:].transpose(0, 3, 1, 2)/np.float32(255)) for b in (1, 7, 64)}
    np.savez(tmp_path/"in.npz", **asked); done = subprocess.run([sys.executable, "-c", ALONE, digits[name]["file"], tmp_path/"in.npz", tmp_path/"out.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = read_npz(tmp_path/"out.npz")
    for b in (1, 7, 64):
        want = model.diagnose(shown[-b:]) | {"probabilities": model.predict_proba(shown[-b:])}
        for k in ("logits", "probabilities", "routing_entropy", "rose"):
            assert got[f"{k}/{b}"].shape == want[k].shape and got[f"{k}/{b}"].dtype == np.float32
            np.testing.assert_allclose(got[f"{k}/{b}"], want[k], rtol=1e-5, atol=1e-5)
    assert len(got) == 12


def test_the_file_says_what_it_is(digits):
    for name in digits:
        about = room.open_export(digits[name]["file"]).about; m = json.loads((example("pentachora")/"manifest.json").read_text())
        assert about["run_id"] == m["run_id"] and about["class_names"] == [str(i) for i in range(10)] and about["calibration"] == "identity"
        assert about["images"] == {"shape": ["batch", 1, 28, 28], "type": "float32", "range": [0, 1]} and about["outputs"]["rose"] == ["batch"] and about["int8"] == (name == "int8")


def test_eight_bits_are_the_linear_layers(digits):
    "As right as before on the held-out pictures, smaller; every linear layer and nothing else."
    import onnx
    found = digits["int8"]; right = {k: v["right"] for k, v in found["compared"].items()}; n = found["held_out"]
    assert n == 359 and right["eager"] == right["fp32"] > .9*n and right["int8"] >= right["fp32"] - 3
    assert found["bytes_of"]["int8"] < .6*found["bytes_of"]["fp32"] and found["bytes"] == found["bytes_of"]["int8"]
    ops = [node.op_type for node in onnx.load(found["file"]).graph.node]; plain = [node.op_type for node in onnx.load(digits["onnx"]["file"]).graph.node]
    graph = room.ImageGraph(load_bundle(example("pentachora"))); linear = sum(isinstance(m, torch.nn.Linear) for m in graph.modules()) + 1   # and the joint projection of attention, which is no module
    assert ops.count("MatMulInteger") == found["int8_products"] == linear and ops.count("Conv") == plain.count("Conv") > 0 and "ConvInteger" not in ops


# --- other models

def both(model, folder, forms=("torch", "onnx"), **kwargs):
    "Export, ask again what was not asked by the check, return the answers."
    x = np.random.default_rng(1).random((3, model.spec.input_ch, model.spec.side, model.spec.side), dtype=np.float32); want = model.diagnose(x)
    want["probabilities"] = model.predict_proba(x)
    for form in forms:
        made = room.export_model(model, folder/f"m{room.ENDINGS[form]}", form, **kwargs); got = room.open_export(made["file"])(x)
        for k in got: np.testing.assert_allclose(got[k], want[k], rtol=1e-5, atol=1e-5)
    return got


@pytest.mark.parametrize("calibration", [{"method": "identity"}, {"method": "temperature", "temperature": 1.7}, {"method": "vector", "weight": [1., 2, .5, 1, 1, 3, 1], "bias": [0., 1, 0, -2, 0, 0, .5]},
                                         {"method": "dirichlet", "weight": (np.eye(7)*1.5 - .1).tolist(), "bias": [0., 1, 0, -2, 0, 0, .5]}], ids=lambda c: c["method"])
def test_a_floor_with_its_calibration(tmp_path, calibration):
    model = fresh(kind="cnn", input_ch=3, mean=[.3]*3, std=[.3]*3, calibration=calibration); x = np.random.default_rng(1).random((3, 3, 28, 28), dtype=np.float32)
    got = both(model, tmp_path); assert list(got) == ["logits", "probabilities"]
    np.testing.assert_allclose(got["probabilities"], Calibration.read(calibration, 7).probs(model.logits(x)), atol=1e-5)
    plain = Calibration().probs(model.logits(x)); assert (np.abs(plain - got["probabilities"]).max() > 1e-2) == (calibration["method"] != "identity")   # it does something


def test_calibration_stays_in_32_bits(tmp_path):
    "Its matrix is a linear layer too; in 8 bits it would move every probability."
    import onnx
    calibration = {"method": "dirichlet", "weight": (np.eye(7)*1.5 - .1).tolist(), "bias": [0.]*7}; made = room.export_model(fresh(kind="cnn", calibration=calibration), tmp_path/"m.onnx", "onnx", int8=True)
    kept = [n for n in onnx.load(made["file"]).graph.node if n.op_type in ("MatMul", "Gemm")]
    assert made["int8_products"] == 2 and len(kept) == 1 and any("calibrated" in i for i in kept[0].input)


def test_a_linear_floor(tmp_path): assert list(both(fresh(kind="linear"), tmp_path, ["onnx"])) == ["logits", "probabilities"]


VARIANTS = {"colour, DoG, layer norm, 64 pixels, block": dict(input_ch=3, mean=[.4, .5, .6], std=[.2, .3, .25], side=64, front_end="dog", norm="layer", vertex_map="block", pairs=3, heads=5),
            "shared map, one pair, 32 pixels": dict(side=32, pairs=1, vertex_map="shared", class_names=["a", "b"]),
            "cube that routes by bits": dict(geometry="cube:3", factored=True, vertex_map="gray", dim=16, pairs=2), "cross-polytope, low rank, residual, strided": dict(geometry="cross:3", encode="lowrank", residual=True, front_end="strided", dim=16, pairs=2),
            "pyramid, 64 pixels": dict(front_end="pyramid", dim=16, pairs=2, side=64, input_ch=3, mean=[.4, .5, .6], std=[.2, .3, .25])}

@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_other_shapes(tmp_path, name): assert list(both(fresh(**VARIANTS[name]), tmp_path)) == ["logits", "probabilities", "routing_entropy", "rose"]


def test_bytes_are_what_they_are_as_floats(tmp_path):
    model = fresh(kind="cnn"); x = np.random.default_rng(2).integers(0, 256, (9, 1, 28, 28), dtype=np.uint8)
    got = room.open_export(room.export_model(model, tmp_path/"m.onnx", "onnx", as_bytes=True)["file"])(x)
    np.testing.assert_allclose(got["logits"], model.logits(x), rtol=1e-5, atol=1e-5)


# --- when something is wrong

def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch, cli):
    "The exporter makes a mistake: exit 3, the old file stays, nothing else is left."
    model = fresh(kind="cnn"); honest = room.save_onnx; (tmp_path/"m.onnx").write_text("old")
    def slip(program, path, about):
        import onnx
        honest(program, path, about); m = onnx.load(path); bias = next(i for i in m.graph.initializer if i.name.endswith("head.1.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3)*(np.arange(7) == 2), bias.name)); onnx.save(m, path)
    monkeypatch.setattr(room, "save_onnx", slip)
    with pytest.raises(CheckFailed, match="differs from the model, logits by .*nothing was written"): room.export_model(model, tmp_path/"m.onnx", "onnx")
    monkeypatch.setattr(room, "load_bundle", lambda b: model); code, out, err = cli("export", example("pentachora"), "--out", tmp_path/"m.onnx", "--json")
    assert code == 3 and json.loads(out)["exit_code"] == 3 and err.count("\n") == 1
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"m.onnx": "old"}


def test_eight_bits_that_are_wrong_more_often_are_not_written(tmp_path, monkeypatch):
    model = fresh(kind="cnn"); x = np.random.default_rng(3).integers(0, 256, (60, 28, 28, 1), dtype=np.uint8); honest = room.save_int8
    def slip(path, target):
        import onnx
        n = honest(path, target); m = onnx.load(target); bias = next(i for i in m.graph.initializer if i.name.endswith("head.1.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(100)*(np.arange(7) == 2), bias.name)); onnx.save(m, target); return n
    monkeypatch.setattr(room, "save_int8", slip); labels = model.predict(x); assert (labels != 2).sum() > 10
    with pytest.raises(CheckFailed, match="in 8 bits the model is right on .* of 60 held-out images less"): room.export_model(model, tmp_path/"m.onnx", "onnx", int8=True, held={"thumbnails": x, "labels": labels})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path/"damaged"; shutil.copytree(example("pentachora"), path); weights = next((path/"weights").iterdir()); raw = bytearray(weights.read_bytes()); raw[-1] ^= 1; weights.write_bytes(raw)
    return path


BAD = [(["--format", "onxx"], 2, "did you mean 'onnx'"), (["--format", "torch", "--int8"], 2, "--int8 goes with --format onnx only"), (["--out", "here.bin"], 2, "does not end in .onnx"), (["--format", "torch", "--out", "here.onnx"], 2, "does not end in .pt2"),
       (["--out", "nowhere/here.onnx"], 2, "there is no folder nowhere")]

@pytest.mark.parametrize("given, code, sentence", BAD)
def test_a_mistake_is_one_sentence(cli, tmp_path, monkeypatch, given, code, sentence):
    monkeypatch.chdir(tmp_path); got, out, err = cli("export", example("pentachora"), *given)
    assert got == code and sentence in err and err.startswith("geonb: ") and err.count("\n") == 1 and out == "" and not list(tmp_path.iterdir())


def test_other_bundles_are_refused_by_name(cli, tmp_path, monkeypatch, damaged):
    monkeypatch.chdir(tmp_path); before = sorted(tmp_path.iterdir())
    for bundle, code, sentence in ((example("ternary_v5_5"), 2, "not of 'pentachora'"), (damaged, 3, "does not match its SHA-256"), ("nothing-r1", 4, "no run or bundle 'nothing-r1'")):
        got, out, err = cli("export", bundle, "--out", "x.onnx"); assert (got, err.count("\n")) == (code, 1) and sentence in err
    monkeypatch.chdir(damaged); got, out, err = cli("export", example("pentachora")); assert got == 2 and "lies in a bundle" in err   # the file would lie in one
    assert sorted(tmp_path.iterdir()) == before


def test_without_the_packages_it_says_which(cli, monkeypatch):
    find = importlib.util.find_spec; monkeypatch.setattr(room.importlib.util, "find_spec", lambda m, *a: None if m in ("onnxscript", "onnxruntime") else find(m, *a))
    got, out, err = cli("export", example("pentachora")); assert got == 2 and "--format onnx needs onnxscript, onnxruntime: pip install 'geonb[onnx]'" in err


def test_the_command_writes_and_tells(cli, tmp_path, monkeypatch):
    "A floor, through the command line: named after its run, all figures as JSON, the same for people."
    model = fresh(kind="cnn"); monkeypatch.setattr(room, "load_bundle", lambda b: model); monkeypatch.chdir(tmp_path); path = example("pentachora")
    code, out, err = cli("export", path, "--format", "torch", "--json"); made = json.loads(out)
    assert (code, err) == (0, "") and os.listdir(tmp_path) == ["pentachora.pt2"] and made["bytes"] == os.path.getsize("pentachora.pt2") and made["format"] == "torch" and not made["int8"]
    assert made["batches"] == [1, 7, 64] and made["tolerance"] == 1e-5 and max(made["difference"].values()) <= 1e-5 and set(made["compared"]) == {"eager", "fp32"} and made["held_out"] == 359
    code, out, err = cli("export", path, "--format", "torch", "--out", "again.pt2"); assert code == 0 and out.startswith("again.pt2: ") and "images batch x 1 x 28 x 28, float32 from 0 to 1" in out and "of 359" in out


def test_nothing_in_the_file_names_this_machine(digits):
    "Neither where geonb lies nor where the bundle lay."
    import zipfile
    for name in ("onnx", "torch", "int8"):
        raw = open(digits[name]["file"], "rb").read() if name != "torch" else b"".join(zipfile.ZipFile(digits[name]["file"]).read(f) for f in zipfile.ZipFile(digits[name]["file"]).namelist())
        assert str(example("pentachora")).encode() not in raw and os.path.dirname(os.path.dirname(room.__file__)).encode() not in raw
