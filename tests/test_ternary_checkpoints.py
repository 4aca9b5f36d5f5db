"Checkpoints of others: every published layout comes back as it was; everything else is refused in one line, runs nothing, writes nothing."
import ast
import functools
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from geonb.app.cli import command
from geonb.core.atomic import sha256, write_json
from geonb.core.errors import CheckFailed, GeonbError
from geonb.ternary.checkpoints import convert, load_checkpoint, measure_checkpoint, read_checkpoint, verify
from geonb.ternary.dual import DualPathwayVAE
from geonb.ternary.hierarchy import measure
from geonb.ternary.hyperbolic import TernaryVAEV5_11_PartialFreeze, load_exact
from geonb.ternary.registry import REGISTRY

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed=0, **kwargs):
    "Random weights, the radius net's included: at its initial bias every radius is R/2, and no metric would notice a wrong one."
    torch.manual_seed(seed); net = TernaryVAEV5_11_PartialFreeze(**{"use_dual_projection": True, "use_controller": False, **kwargs}).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "radius_net" in name or "direction_net" in name: p.normal_(0, .5)
    return net


@functools.cache
def state(): return network().state_dict()


def save(path, content): torch.save(content, path); return path


# --- layouts

LAYOUTS = {
    "with controller": dict(use_controller=True), "without controller": {}, "dropout slots": dict(projection_dropout=.1), "dropout slots, controller": dict(projection_dropout=.1, use_controller=True),
    "hidden 128, two layers": dict(hidden_dim=128, n_projection_layers=2), "hidden 128, two layers, dropout": dict(hidden_dim=128, n_projection_layers=2, projection_dropout=.1), "one projection": dict(use_dual_projection=False),
    "R 0.99": dict(max_radius=.99), "curvature 0.5": dict(curvature=.5), "hyperbolic head": dict(decoder_H=True), "latent 8": dict(latent_dim=8), "learnable curvature": dict(learnable_curvature=True)}
KEYS = ("model_state_dict", "model_state", "model")


@pytest.mark.parametrize("name, curvature_kept", [*((n, True) for n in LAYOUTS), *((n, False) for n in LAYOUTS if n in ("without controller", "dropout slots, controller", "hidden 128, two layers, dropout", "curvature 0.5"))])
def test_a_published_layout_comes_back(tmp_path, name, curvature_kept):
    kwargs, key = LAYOUTS[name], KEYS[len(name) % 3]; net = network(3, **kwargs)
    kept = {k: v for k, v in net.state_dict().items() if curvature_kept or not k.endswith("isp_c")}
    config = {"model": {"max_radius": net.max_radius, "curvature": kwargs.get("curvature", 1.)}}
    file = save(tmp_path/"best.pt", {key: kept, "epoch": np.int64(7), "metrics": {"rho": np.float64(-.5), "richness": np.float32(.25), "all": [np.float64(1), 2]}, "config": config, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}})
    c = read_checkpoint(file); back, index = load_checkpoint(file), np.arange(0, 19_683, 27)
    assert c.metadata["metrics"] == {"rho": -.5, "richness": .25, "all": [1, 2]} and c.metadata["epoch"] == 7 and c.metadata["geonb"]["left_out"] == ["optimizer_state_dict"] and c.metadata["geonb"]["assumed"] == []
    assert list(back.state_dict()) == list(net.state_dict()) and back.max_radius == net.max_radius and not back.training
    for p in "AB":
        before, after = measure(net, p, index=index), measure(back, p, index=index)
        if curvature_kept: assert after.as_dict() == before.as_dict()
        else: assert abs(after.rho - before.rho) < 1e-9 and after.coverage_hyp == before.coverage_hyp and after.richness == pytest.approx(before.richness, rel=1e-5)
    made = load_checkpoint(convert(file, tmp_path/"made")); assert made.max_radius == back.max_radius and all(torch.equal(v, back.state_dict()[k]) for k, v in made.state_dict().items())


@pytest.mark.parametrize("key", [*KEYS, "state_dict", None])
def test_weights_are_found_under_each_name(tmp_path, key):
    file = save(tmp_path/"x.pt", {key: state()} if key else state()); c = read_checkpoint(file)
    assert c.metadata["geonb"]["state_key"] == key and all(torch.equal(c.state[k], v) for k, v in state().items()) and c.metadata["geonb"]["assumed"] == ["max_radius"]


def test_parameters_saved_as_parameters(tmp_path):
    assert read_checkpoint(save(tmp_path/"x.pt", {"model": OrderedDict(network(1).named_parameters())})).state.keys() == state().keys()


def test_all_points_measure_as_before(tmp_path):
    net = network(5); file = save(tmp_path/"x.pt", {"model": net.state_dict(), "config": {"max_radius": .95}})
    assert {p: m.as_dict() for p, m in measure_checkpoint(file).items()} == {p: measure(net, p).as_dict() for p in "AB"}


def test_conversion_keeps_every_bit(tmp_path):
    net = network(2)
    with torch.no_grad(): net.encoder_A.fc_mu.bias[:3] = torch.tensor([-0., 1e-42, 3.4e38])   # negative zero, a subnormal, nearly the largest
    file = save(tmp_path/"x.pt", {"model_state_dict": net.state_dict(), "epoch": 3, "note": "\u03c1"}); made = convert(file)
    from safetensors.torch import load_file
    assert made == tmp_path/"x" and sorted(p.name for p in made.iterdir()) == ["SHA256SUMS", "metadata.json", "model.safetensors"]
    stored = load_file(made/"model.safetensors"); assert stored.keys() == net.state_dict().keys() and all(torch.equal(stored[k].view(torch.int32), v.contiguous().view(torch.int32)) for k, v in net.state_dict().items())
    notes = json.loads((made/"metadata.json").read_text()); assert notes["note"] == "\u03c1" and notes["geonb"]["source"] == dict(file="x.pt", sha256=sha256(file), bytes=file.stat().st_size)


def test_the_converted_folder_is_preferred_while_it_is_of_this_file(tmp_path, monkeypatch):
    file = save(tmp_path/"x.pt", {"model": network(1).state_dict()}); convert(file)
    def not_opened(*_): raise AssertionError("the pickle was opened")
    with monkeypatch.context() as m: m.setattr("geonb.ternary.checkpoints.loaded", not_opened); read_checkpoint(file)
    save(file, {"model": network(2).state_dict()}); other = read_checkpoint(file)
    assert torch.equal(other.state["encoder_A.fc_mu.weight"], network(2).state_dict()["encoder_A.fc_mu.weight"])


def test_the_largest_radius_is_told_from_four_places(tmp_path):
    radius = lambda path, **k: (c := read_checkpoint(path, **k)).spec.max_radius
    file = save(tmp_path/"x.pt", {"model": state(), "config": {"projection": {"max_radius": .9}}})
    assert radius(file) == .9 and radius(file, max_radius=.8) == .8 and radius(save(tmp_path/"y.pt", {"model": state()})) == .95
    (tmp_path/"homeostatic_rich").mkdir(); assert radius(save(tmp_path/"homeostatic_rich"/"best.pt", {"model": state()})) == .99
    assert load_checkpoint(file, max_radius=.8).max_radius == .8


def test_a_v5_5_file_is_read_too(tmp_path):
    torch.manual_seed(0); net = DualPathwayVAE(); file = save(tmp_path/"latest.pt", {"model": net.state_dict(), "epoch": 1})
    assert isinstance(load_checkpoint(file), DualPathwayVAE) and verify(file)["parameters"] == 168_770
    assert isinstance(load_checkpoint(convert(file)), DualPathwayVAE)
    with pytest.raises(GeonbError, match="no hyperbolic points"): measure_checkpoint(file)


def test_the_readme_snippet_names_the_controller_keys_that_a_file_lacks():
    with pytest.raises(CheckFailed, match="8 missing: controller.net.0.bias"): load_exact(network(use_controller=True), state())
    with pytest.raises(CheckFailed, match="direction_net.3.*direction_net.4"): load_exact(network(), network(projection_dropout=.1).state_dict())   # what loose loading leaves at random


# --- programs in files

class Act:
    "Pickles to a call."
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args


class Built:
    "Pickles to an object whose state is made by a call."
    def __init__(self, act): self.act = act


def good(**more): return {"model_state_dict": state(), "epoch": 1, "metrics": {"rho": -.5}} | more
def torch_zip(content, **k): f = io.BytesIO(); torch.save(content, f, **k); return f.getvalue()


def rezip(data, change=lambda name, body: [(name, body)], **how):
    "An archive with other entries."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as a, zipfile.ZipFile(out, "w", **how) as b:
        for i in a.infolist():
            for name, body in change(i.filename, a.read(i)): b.writestr(name, body)
    return out.getvalue()


def with_program(program): return rezip(torch_zip(good()), lambda n, b: [(n, program if n.endswith("data.pkl") else b)])


def old_tar(canary):
    "The layout of torch before 0.1.10."
    out, parts = io.BytesIO(), {"sys_info": pickle.dumps({}), "pickle": pickle.dumps(Act(os.mkdir, canary), 2), "tensors": pickle.dumps(0, 2), "storages": pickle.dumps(0, 2)}
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, body in parts.items(): i = tarfile.TarInfo(name); i.size = len(body); t.addfile(i, io.BytesIO(body))
    return out.getvalue()


def inst(canary): return b"(dS'metrics'\n(S" + repr(canary).encode() + b"\niposix\nmkdir\ns."   # INST: opcode of protocol 0


PROGRAMS = {   # name -> canary's path -> bytes of the file
    "a call in the metrics": lambda c: torch_zip(good(metrics={"rho": Act(os.mkdir, c)})),
    "a call, deep": lambda c: torch_zip(good(config={"a": [({"b": Act(os.mkdir, c)},)]})),
    "a call as a key": lambda c: torch_zip(good(metrics={("rho", Act(os.mkdir, c)): 1})),
    "a call beside the weights": lambda c: torch_zip(good(optimizer_state_dict=Act(os.mkdir, c))),
    "a call among the weights": lambda c: torch_zip({"model": OrderedDict([*state().items(), ("x", Act(os.mkdir, c))])}),
    "a call for the weights": lambda c: torch_zip({"model": Act(os.mkdir, c)}),
    "nothing but a call": lambda c: torch_zip(Act(os.mkdir, c)),
    "os.system": lambda c: torch_zip(good(x=Act(os.system, f"mkdir {c}"))),
    "exec": lambda c: torch_zip(good(x=Act(exec, f"import os; os.mkdir({c!r})"))),
    "eval": lambda c: torch_zip(good(x=Act(eval, f"__import__('os').mkdir({c!r})"))),
    "a process": lambda c: torch_zip(good(x=Act(__import__("subprocess").check_call, ["mkdir", c]))),
    "through getattr": lambda c: torch_zip(good(x=Act(getattr, Act(os.mkdir, c), "real"))),
    "through a partial": lambda c: torch_zip(good(x=Act(functools.reduce, functools.partial(os.mkdir), [c, 0o755]))),
    "through map": lambda c: torch_zip(good(x=Act(list, Act(map, os.mkdir, [c])))),
    "in the state of an object": lambda c: torch_zip(good(x=Built(Act(os.mkdir, c)))),
    "in an object array": lambda c: torch_zip(good(x=np.array([Act(os.mkdir, c)], dtype=object))),
    "torch.load of a second file": lambda c: (Path(c + ".pkl").write_bytes(pickle.dumps(Act(os.mkdir, c))), torch_zip(good(x=Act(functools.partial(pickle.load), Act(open, c + ".pkl", "rb")))))[1],
    "protocol 4 in the archive": lambda c: torch_zip(good(x=Act(os.mkdir, c)), pickle_protocol=4),
    "protocol 5 in the archive": lambda c: with_program(pickle.dumps(Act(os.mkdir, c), 5)),
    "opcode INST in the archive": lambda c: with_program(inst(c)),
    "a compressed archive": lambda c: rezip(torch_zip(good(x=Act(os.mkdir, c))), compression=zipfile.ZIP_DEFLATED),
    "two programs in one archive": lambda c: rezip(torch_zip(Act(os.mkdir, c)), lambda n, b: [(n, b), ("other/data.pkl", b)] if n.endswith("data.pkl") else [(n, b)]),
    "torch's old layout": lambda c: torch_zip(good(x=Act(os.mkdir, c)), _use_new_zipfile_serialization=False),
    "torch's oldest layout, a tar": old_tar,
    **{f"a raw pickle, protocol {p}": lambda c, p=p: pickle.dumps(Act(os.mkdir, c), p) for p in range(6)},
    "a raw pickle by opcode INST": inst,
}


class Raw(pickle.Unpickler):
    "What upstream falls back to in the end."
    def persistent_load(self, _): return None


def unsafely(data):
    "What the usual advice does when a file does not load: less and less care, until something comes out."
    def members():
        if data[:2] == b"PK": z = zipfile.ZipFile(io.BytesIO(data)); return [z.read(n) for n in z.namelist() if n.endswith("data.pkl")]
        return [t.extractfile(m).read() for t in [tarfile.open(fileobj=io.BytesIO(data))] for m in t.getmembers()]
    for way in (lambda: torch.load(io.BytesIO(data), weights_only=False), lambda: pickle.loads(data), lambda: [Raw(io.BytesIO(m)).load() for m in members()]):
        try: return way()
        except Exception: pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_of_these_programs_would_run(tmp_path, name):
    "The guard of the test below: with an unsafe load, the canary is there."
    data = PROGRAMS[name](str(tmp_path/"canary"))
    unsafely(data)
    assert (tmp_path/"canary").is_dir()


def snapshot(folder): return {p.relative_to(folder).as_posix(): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def refused(capsys, folder, file, code=3, only=("verify", "convert")):
    "Every command ends with `code`, one line, and the folder as it was."
    before = snapshot(folder)
    for c in only:
        capsys.readouterr(); got = command(["checkpoints", c, str(file)]); said = capsys.readouterr()
        assert got == code, (c, got, said.err)
        assert said.err.startswith("geonb: ") and said.err.count("\n") == 1 and len(said.err) < 1000 and said.err[:-1].isprintable() and "Traceback" not in said.err and "(traceback in" not in said.err, (c, said.err)
        assert snapshot(folder) == before, c
    return said.err


@pytest.mark.parametrize("ending", ["best.pt", "best.safetensors"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_none_of_them_runs(tmp_path, capsys, name, ending):
    (tmp_path/"d").mkdir(); file = tmp_path/"d"/ending; file.write_bytes(PROGRAMS[name](str(tmp_path/"canary")))
    refused(capsys, tmp_path/"d", file, only=("verify", "info", "convert", "upload") if ending == "best.pt" else ("verify",))
    for f in (read_checkpoint, load_checkpoint):
        with pytest.raises(CheckFailed): f(file)
    assert not (tmp_path/"canary").exists() and [p.name for p in (tmp_path/"d").iterdir()] == [ending]


def test_the_refusal_names_what_was_asked_for(tmp_path):
    with pytest.raises(CheckFailed, match=r"best.pt is refused: it asks for posix.mkdir, which no checkpoint of numbers needs; nothing of it was run"):
        (tmp_path/"best.pt").write_bytes(PROGRAMS["a call, deep"]("x")); read_checkpoint(tmp_path/"best.pt")


def test_torchscript_is_a_program_too(tmp_path, capsys):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path/"best.pt"); refused(capsys, tmp_path, tmp_path/"best.pt")


# --- damaged and wrong files

@functools.cache
def whole(): return torch_zip(good())


def replaced(**new): return {k: v for k, v in (state() | new).items() if v is not None}
def nan(x): x = x.clone(); x.view(-1)[0] = float("nan"); return x


W = "encoder_A.fc_mu.weight"
WRONG = {   # name -> content for torch.save
    "a list": lambda: [1, 2], "a number": lambda: 3, "a tensor": lambda: torch.zeros(3), "an empty dictionary": lambda: {}, "no weights": lambda: {"epoch": 3}, "weights under another name": lambda: {"weights": state()}, "empty weights": lambda: {"model": {}},
    "two sets of weights": lambda: {"model": state(), "model_state": state()}, "weights that are no tensors": lambda: {"model": {"a": 1.}}, "a number among the weights": lambda: {"model": replaced(x=3)}, "a numbered key": lambda: {"model": {**state(), 3: torch.zeros(1)}},
    "one key missing": lambda: {"model": replaced(**{W: None})}, "one key more": lambda: {"model": replaced(extra=torch.zeros(1))}, "one key renamed": lambda: {"model": {k.replace("fc_mu", "mu"): v for k, v in state().items()}}, "keys of DataParallel": lambda: {"model": {f"module.{k}": v for k, v in state().items()}},
    "another network": lambda: {"model": torch.nn.Linear(3, 3).state_dict()}, "a decoder missing": lambda: {"model": {k: v for k, v in state().items() if not k.startswith("decoder_A")}}, "half a controller": lambda: {"model": replaced(**{"controller.net.0.weight": torch.zeros(32, 8)})},
    "dropout in one net only": lambda: {"model": {k.replace("proj_A.direction_net.3", "proj_A.direction_net.4"): v for k, v in state().items()}}, "a layer at place 99": lambda: {"model": {k.replace("direction_net.3", "direction_net.99"): v for k, v in state().items()}},
    "a matrix turned": lambda: {"model": replaced(**{W: state()[W].T.contiguous()})}, "a scalar for a matrix": lambda: {"model": replaced(**{W: torch.tensor(0.)})}, "an empty tensor": lambda: {"model": replaced(**{W: torch.zeros(0, 64)})}, "one row too many": lambda: {"model": replaced(**{W: torch.zeros(17, 64)})},
    "latent dimension 0": lambda: {"model": {k: v[:0] if "fc_mu" in k else v for k, v in state().items()}}, "latent dimension 1000": lambda: {"model": replaced(**{W: torch.zeros(1000, 64)})},
    "float64": lambda: {"model": {k: v.double() for k, v in state().items()}}, "float16 once": lambda: {"model": replaced(**{W: state()[W].half()})}, "bfloat16": lambda: {"model": {k: v.bfloat16() for k, v in state().items()}}, "integers": lambda: {"model": replaced(**{W: state()[W].int()})},
    "booleans": lambda: {"model": replaced(**{W: state()[W] > 0})}, "complex numbers": lambda: {"model": replaced(**{W: torch.complex(state()[W], state()[W])})}, "a sparse tensor": lambda: {"model": replaced(**{W: state()[W].to_sparse()})}, "a meta tensor": lambda: {"model": replaced(**{W: state()[W].to("meta")})},
    "a quantised tensor": lambda: {"model": replaced(**{W: torch.quantize_per_tensor(state()[W], .1, 0, torch.qint8)})},
    "NaN": lambda: {"model": replaced(**{W: nan(state()[W])})}, "infinity": lambda: {"model": replaced(**{W: state()[W] / 0})}, "NaN for a curvature": lambda: {"model": replaced(**{"projection.proj_A.manifold.isp_c": torch.tensor(float("nan"))})},
    "a curvature for which R lies outside": lambda: {"model": replaced(**{f"projection.proj_{p}.manifold.isp_c": torch.tensor(3.) for p in "AB"})}, "R outside the ball": lambda: good(config={"max_radius": 5.}), "R negative": lambda: good(config={"max_radius": -1}),
    "a tensor larger than its file": lambda: {"model": replaced(x=torch.zeros(1).expand(10**9))}, "a name with a line break": lambda: {"model": replaced(**{"a\nb": torch.zeros(1)})}, "an endless name": lambda: {"model": replaced(**{"a" * 1000: torch.zeros(1)})},
    "bytes in the notes": lambda: good(blob=bytearray(10)), "a set in the notes": lambda: good(metrics={"a": {1, 2}}), "a complex number in the notes": lambda: good(metrics={"a": 1j}), "a list that holds itself": lambda: good(metrics=(lambda l: (l.append(l), l)[1])([])),
    "ten to the ninth values in few bytes": lambda: good(metrics=functools.reduce(lambda l, _: [l] * 10, range(9), 0)), "an integer of 2000 digits": lambda: good(epoch=10**2000), "geonb's own entry": lambda: good(geonb={"source": {}}),
}
BYTES = {   # name -> bytes of the file
    "empty": lambda: b"", "one byte": lambda: b"P", "the head of a zip": lambda: b"PK\x03\x04", "an empty zip": lambda: b"PK\x05\x06" + bytes(18), "random bytes": lambda: np.random.default_rng(0).bytes(5000), "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a web page": lambda: b"<!doctype html><html>404</html>",
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), **{f"cut after {n}": lambda n=n: whole()[:n] for n in (10, 100, 1000, 50_000)}, **{f"{n} bytes short": lambda n=n: whole()[:-n] for n in (1, 22, 100, 5000)}, "bytes behind the end": lambda: whole()[:-22] + bytes(70_000),
    "a flipped bit in a tensor": lambda: (lambda d: bytes(d[:60_000]) + bytes([d[60_000] ^ 1]) + bytes(d[60_001:]))(whole()), "compressed": lambda: rezip(whole(), compression=zipfile.ZIP_DEFLATED), "a zip of something else": lambda: rezip(whole(), lambda n, b: [("a.txt", b"x")]),
    "an entry twice": lambda: rezip(whole(), lambda n, b: [(n, b), (n, b)] if n.endswith("/data/0") else [(n, b)]), "no tensors in the archive": lambda: rezip(whole(), lambda n, b: [] if "/data/" in n else [(n, b)]), "tensors cut short": lambda: rezip(whole(), lambda n, b: [(n, b[:8] if "/data/" in n else b)]),
    "an empty program": lambda: with_program(b""), "a program without end": lambda: with_program(b"\x80\x02}"), "a program of nonsense": lambda: with_program(b"\xff" * 100), "a program that pops nothing": lambda: with_program(b"\x80\x020."), "endless nesting": lambda: with_program(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "a string of four gigabytes": lambda: with_program(b"\x80\x02X\xff\xff\xff\xff."), "memo never filled": lambda: with_program(b"\x80\x02h\x07."), "an extension code": lambda: with_program(b"\x80\x02\x82\x01."), "a persistent name as text": lambda: with_program(b"Pfoo\n."),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_refused(tmp_path, capsys, name): refused(capsys, tmp_path, save(tmp_path/"best.pt", WRONG[name]()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BYTES)
def test_damaged_files_are_refused(tmp_path, capsys, name): (tmp_path/"best.pt").write_bytes(BYTES[name]()); refused(capsys, tmp_path, tmp_path/"best.pt")


def tensors(header, data=b""): h = header if isinstance(header, bytes) else json.dumps(header).encode(); return struct.pack("<Q", len(h)) + h + data


SAFETENSORS = {
    "empty": b"", "a short head": b"\x08\0\0\0", "a head of 2^63": struct.pack("<Q", 2**63), "no JSON": tensors(b"{{{{"), "deep JSON": tensors(b"[" * 100_000), "no tensors": tensors({}), "data missing": tensors({"a": dict(dtype="F32", shape=[4], data_offsets=[0, 16])}), "an unknown type": tensors({"a": dict(dtype="X9", shape=[1], data_offsets=[0, 4])}, bytes(4)),
    "offsets that lie": tensors({"a": dict(dtype="F32", shape=[4], data_offsets=[0, 4])}, bytes(4)), "overlap": tensors({k: dict(dtype="F32", shape=[1], data_offsets=[0, 4]) for k in "ab"}, bytes(4)), "another network": tensors({"a": dict(dtype="F32", shape=[1], data_offsets=[0, 4])}, bytes(4)), "a huge shape": tensors({"a": dict(dtype="F32", shape=[2**62, 4], data_offsets=[0, 4])}, bytes(4)),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_damaged_safetensors_are_refused(tmp_path, capsys, name): (tmp_path/"x.safetensors").write_bytes(SAFETENSORS[name]); refused(capsys, tmp_path, tmp_path/"x.safetensors")


def changed(f):
    "A change of metadata.json that keeps the sums right."
    def go(d):
        from geonb.core.atomic import write_sums
        m = json.loads((d/"metadata.json").read_text()); (d/"metadata.json").write_text(json.dumps(f(m) or m)); write_sums(d)
    return go


CONVERTED = {
    "weights changed": lambda d: (d/"model.safetensors").write_bytes((d/"model.safetensors").read_bytes()[:-1] + b"\x7f"), "weights gone": lambda d: (d/"model.safetensors").unlink(), "notes changed": lambda d: (d/"metadata.json").write_text((d/"metadata.json").read_text().replace("0.95", "0.5")),
    "no sums": lambda d: (d/"SHA256SUMS").unlink(), "a file more": lambda d: (d/"x.pt").write_bytes(whole()), "a link": lambda d: ((d/"metadata.json").rename(d.parent/"elsewhere"), (d/"metadata.json").symlink_to(d.parent/"elsewhere")),
    "no JSON": lambda d: ((d/"metadata.json").write_text("{"), __import__("geonb.core.atomic").core.atomic.write_sums(d)), "another kind": changed(lambda m: m["geonb"].update(kind="Other")), "no architecture": changed(lambda m: m["geonb"].pop("spec") and None), "another architecture": changed(lambda m: m["geonb"]["spec"].update(hidden_dim=32)),
    "an argument more": changed(lambda m: m["geonb"]["spec"].update(path="/")), "R outside": changed(lambda m: m["geonb"]["spec"].update(max_radius=2.)), "a list": changed(lambda m: [1]),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_folder_that_changed_is_refused(tmp_path, capsys, name):
    made = convert(save(tmp_path/"best.pt", good(config={"max_radius": .95})), tmp_path/"made"); (tmp_path/"best.pt").unlink(); assert verify(made)["problems"] == []
    CONVERTED[name](made); refused(capsys, tmp_path, made, only=("verify", "info"))


def test_another_file_than_the_locked_one_is_refused(tmp_path, capsys):
    (tmp_path/"a").mkdir(); file = save(tmp_path/"a"/"best.pt", good()); lock = {"a/best.pt": dict(repo="someone/things", revision="main", commit=None, sha256=sha256(file), bytes=1)}
    write_json(tmp_path/"hub.lock.json", lock); assert verify(file) | dict(locked=True) == verify(file)
    save(file, good(epoch=2)); assert "is not the file that was fetched" in refused(capsys, tmp_path, file)


def test_notes_with_nan_are_read_but_not_converted(tmp_path, capsys):
    file = save(tmp_path/"best.pt", good(metrics={"loss": [1., float("nan")]})); assert verify(file)["problems"] == []
    assert "best.pt.metrics.loss.1 is not a finite number" in refused(capsys, tmp_path, file, only=("convert",))


# --- names

def test_files_that_are_none(tmp_path, capsys):
    os.mkfifo(tmp_path/"pipe.pt"); (tmp_path/"loop.pt").symlink_to("loop.pt"); (tmp_path/"away.pt").symlink_to("nowhere"); (tmp_path/"folder.pt").mkdir(); (tmp_path/"huge.pt").touch(); os.truncate(tmp_path/"huge.pt", 2**40)
    for name, code in {"pipe.pt": 3, "huge.pt": 3, "folder.pt": 2}.items(): refused(capsys, tmp_path, tmp_path/name, code, only=("verify", "convert"))
    for name in ("none.pt", "away.pt"): refused(capsys, tmp_path, tmp_path/name, 4, only=("verify", "convert"))
    for name in ("loop.pt", "a\0b.pt", "x" * 300 + ".pt", "a/" * 3000 + "b.pt"): refused(capsys, tmp_path, tmp_path/name, 2, only=("verify", "convert"))


@pytest.mark.parametrize("name", ["CON", "nul", "aux.d", "COM1", "lpt9.x", "x" * 121, ".hidden", "a.", "a ", "a\\b", "a:b", "a|b", "a\nb", "a\0b", "-x", "\u202ea", "..", "a*", "a?"])
def test_folders_that_are_not_made(tmp_path, capsys, name):
    file = save(tmp_path/"best.pt", good()); before = snapshot(tmp_path); capsys.readouterr()
    code = command(["checkpoints", "convert", str(file), f"--output={tmp_path}/{name}"]); err = capsys.readouterr().err
    assert code == 2 and err.startswith("geonb: ") and err.count("\n") == 1 and snapshot(tmp_path) == before


def test_nothing_is_converted_over_or_through_something(tmp_path, capsys):
    file = save(tmp_path/"best.pt", good()); (tmp_path/"there").mkdir(); (tmp_path/"link").symlink_to("nowhere"); (tmp_path/"file").touch(); before = snapshot(tmp_path)
    for name in ("there", "link", "file"): assert command(["checkpoints", "convert", str(file), "-o", str(tmp_path/name)]) == 2
    assert command(["checkpoints", "convert", str(file), "-o", str(tmp_path/"file"/"x")]) == 1 and snapshot(tmp_path) == before
    assert all(e.startswith("geonb: ") for e in capsys.readouterr().err.splitlines())


def test_the_corpus_is_as_large_as_promised():
    assert len(PROGRAMS) + len(WRONG) + len(BYTES) + len(SAFETENSORS) + len(CONVERTED) >= 50


# --- commands

def test_info_shows_both_encoders_and_the_contradiction(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path); assert command(["checkpoints", "info", "homeostatic_rich"]) == 0
    text = capsys.readouterr().out; assert "mixes two encoders" in text and all(x in text for x in ("rho_A", "rho_B", "-0.6944", "-0.8321", "0.00787", "claimed", "stored", "re-evaluated", "not on this machine"))
    for name in REGISTRY:
        assert command(["checkpoints", "info", name, "--json"]) == 0; e = json.loads(capsys.readouterr().out)["entry"]; assert e["name"] == name and e["status_means"]


def test_info_measures(tmp_path, capsys, monkeypatch):
    (tmp_path/"checkpoints"/"homeostatic_rich").mkdir(parents=True); save(tmp_path/"checkpoints"/"homeostatic_rich"/"best.pt", good()); monkeypatch.chdir(tmp_path)
    assert command(["checkpoints", "info", "homeostatic_rich", "--measure", "--json"]) == 0
    r = json.loads(capsys.readouterr().out); want = measure(network(max_radius=.99), "B").as_dict()
    assert r["measures"]["B"] == want and r["file"]["parameters"] == 101_663 and r["file"]["architecture"]["max_radius"] == .99 and r["entry"]["status"] == "refuted"
    assert command(["checkpoints", "info", "homeostatic_rich", "--measure"]) == 0 and f"{want['rho']:.7g}" in capsys.readouterr().out


@pytest.mark.parametrize("name", "list info download upload convert verify".split())
def test_every_command_has_help_and_json(capsys, name):
    assert command(["checkpoints", name, "--help"]) == 0; assert "--json" in capsys.readouterr().out


def test_completion_knows_the_entries():
    from geonb.app.checkpoints import complete_entry
    assert complete_entry("v5_11_str") == ["v5_11_structural", "v5_11_structural/best.pt"] and set(REGISTRY) <= set(complete_entry(""))


# --- the code base

def test_no_lottery_and_no_unsafe_load_in_the_library(root):
    "load_state_dict always strict, torch.load only with weights_only=True, pickle nowhere."
    wrong = []
    for path in sorted((root/"geonb").rglob("*.py")):
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""] if isinstance(n, ast.ImportFrom) else []
            if path.parent.name != "data" and {"pickle", "_pickle", "dill", "joblib", "cloudpickle"} & {x.split(".")[0] for x in names}: wrong.append(f"{path.name}:{n.lineno}")   # data reads the official CIFAR files, behind their checksums
            if not isinstance(n, ast.Call): continue
            f, given = ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords}
            if f.endswith("load_state_dict") and (given.get("strict", "True") != "True" or len(n.args) > 1): wrong.append(f"{path.name}:{n.lineno} {f}")
            if f == "torch.load" and given.get("weights_only") != "True": wrong.append(f"{path.name}:{n.lineno} {f}")
    assert not wrong
