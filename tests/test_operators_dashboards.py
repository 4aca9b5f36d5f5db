"The dashboards of a tokenizer: numbers that can be computed again, pictures made of them alone, a command that refuses or finishes."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from geonb.app import cli as face
from geonb.app import dashboards as command
from geonb.core.artifacts import read_npz
from geonb.core.atomic import canonical_json, read_json, sha256
from geonb.core.bundles import verify_bundle
from geonb.core.run import Run
from geonb.core.seeds import stream
from geonb.operators.dashboards import DASHBOARDS, evidence, invented, measured
from geonb.operators.dashboard_figures import PANELS, page, panel_figure

PANEL_NAMES = [(k, n) for k in PANELS for n in PANELS[k]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "(runs root, bundle of a data set, bundle of a tokenizer trained on it for a moment)."
    from geonb.core.training import fit
    from geonb.operators.generation_bundle import make_dataset
    from geonb.operators.generation_config import GenerateOperators
    from geonb.operators.tokenizer_bundle import opened, save, task_name
    from geonb.operators.tokenizer_config import TrainOperatorVQVAE
    from geonb.operators.tokenizer_report import report_of
    from geonb.operators.tokenizer_task import TokenizerTask, prepare
    root, quiet = tmp_path_factory.mktemp("dashboards"), dict(progress="none", device="cpu")
    data = make_dataset(GenerateOperators.build(profile="ci", total_samples=40, twins=4, executor="serial", runs_root=str(root), **quiet), report=lambda _: None)
    c = TrainOperatorVQVAE.build(dataset=str(data), epochs=4, val_every=2, codes=5, bootstraps=2, k_max=8, side_temporal_cnn=8, side_ic_cnn=4, runs_root=str(root), **quiet)
    store, name = opened(c); run = Run.open(c, task_name(name), {"dataset": store.sha256}, report=lambda _: None); task = TokenizerTask(c, prepare(c, store), run.device); t = fit(task, run)
    return root, data, save(run, task, report_of(run, task, t, name))


@pytest.fixture(scope="module")
def drawn(made, tmp_path_factory):
    "What the command leaves: (folder, {kind: numbers})."
    folder = tmp_path_factory.mktemp("drawn")/"pictures"
    with pytest.raises(SystemExit) as end: face.main(["dashboards", str(made[2]), "--output", str(folder), "--dpi", "40"])
    assert not end.value.code
    return folder, {k: read_json(folder/f"{k}.json") for k in PANELS}


@pytest.fixture(scope="module")
def numbers():
    "Dashboards of an invented run, as read from a file."
    e = invented(rows=200, codes=6); m = measured(e)
    return json.loads(canonical_json({k: make(e, m) for k, make in DASHBOARDS.items()}))


def one_sentence(err): return err.startswith("geonb: ") and err.count("\n") == 1 and "Traceback" not in err
def close(a, b): np.testing.assert_allclose(np.array(a, float), np.array(b, float), rtol=0, atol=1e-6)


# --- the numbers

def test_numbers_are_those_of_a_fresh_computation(made, drawn):
    bundle, found = made[2], drawn[1]; kept, tokens, splits = (read_npz(bundle/f) for f in ("latents.npz", "tokens.npz", "splits.npz")); test = kept["part"] == 0; books = kept["codes"]; C, L = books.shape
    assert kept["rows"][test].tolist() == splits["test"].tolist()
    x, xhat, z, q = (kept[k][test].astype(float) for k in ("target", "reconstruction", "latents", "quantised")); t = tokens["tokens"][splits["test"]].reshape(-1, C, L); everyone = tokens["tokens"][tokens["tokens"][:, 0] >= 0].reshape(-1, C, L)
    group = np.full(x.shape[1], -1); [group.__setitem__(v, i) for i, v in enumerate(read_json(bundle/"config.json")["model"]["config"]["categories"])]; table, about = found["engineering"]["table"], found["semantic"]["about"]
    assert (about["n"], about["N"], about["run"], about["preset"]) == (len(x), len(everyone), bundle.name, "sound") and about["data_hash"] == read_json(bundle/"report.json")["run"]["data"][:12]
    # read back
    sse, sst = ((x - xhat)**2).sum(0), ((x - x.mean(0))**2).sum(0); moving = x.var(0) > 1e-12*np.maximum(x.mean(0)**2, 1e-30)
    close(table["r2"]["r2"], 1 - sse[moving].sum()/sst[moving].sum()); close(table["quality"], np.clip(1 - np.mean((x - xhat)**2), 0, 1)); close(found["engineering"]["errors"]["shared"], [np.mean((x - xhat)[:, group == c]**2) for c in range(C)])
    close(found["engineering"]["errors"]["mean_predictor"], [np.mean((x - x.mean(0))[:, group == c]**2) for c in range(C)]); each = np.where(moving, 1 - sse/np.where(moving, sst, 1), np.nan); m = found["semantic"]["membership"]
    names = read_json(bundle/"categories.json")["columns"]; by_name = dict(zip(names, each)); np.testing.assert_allclose([np.nan if v is None else v for v in m["r2"]], [by_name[n] for n in m["names"]], rtol=1e-6, atol=1e-6)
    assert [group[names.index(n)] for n in m["names"]] == m["category"]
    # use
    entropy = lambda v: (lambda p: -sum(p*np.log(p)))(np.unique(v, return_counts=True)[1]/len(v)); usage = found["engineering"]["usage"]
    close(usage["used"], [[len(set(t[:, c, l])) for l in range(L)] for c in range(C)]); close(usage["perplexity"], [[np.exp(entropy(t[:, c, l])) for l in range(L)] for c in range(C)]); close(table["bits"]["marginal"], sum(entropy(t[:, c, l]) for c in range(C) for l in range(L))/np.log(2))
    s = found["topological"]["statistics"]; used = [len(set(everyone[:, c, l])) for c in range(C) for l in range(L)]; assert (s["used"], s["dead"], s["codes"]) == (sum(used), books.sum() - sum(used), books.sum())
    codes = found["topological"]["codes"]; close(codes["share"], [np.mean(everyone[:, c, l] == k) for c, l, k in zip(codes["category"], codes["level"], codes["code"])]); close(found["topological"]["ranks"]["shares"][1][2], sorted((np.mean(everyone[:, 1, 2] == k) for k in range(books[1, 2])), reverse=True))
    # neighbours and categories; levels are residual: the first latent, the sum of the codes
    centred = [z[:, c, 0] - z[:, c, 0].mean(0) for c in range(C)]; rv = [[np.trace(a @ a.T @ b @ b.T)/np.sqrt(np.trace(a @ a.T @ a @ a.T)*np.trace(b @ b.T @ b @ b.T)) for b in centred] for a in centred]; close(found["semantic"]["correlation"]["rv"], rv)
    dx, dz, dq = pdist(kept["x"][test].astype(float)), np.mean([pdist(z[:, c, 0]) for c in range(C)], 0), np.mean([pdist(q[:, c].sum(1)) for c in range(C)], 0); top = found["semantic"]["topology"]
    close([top[k]["pearson"] for k in ("pre", "post", "end_to_end")], [np.corrcoef(a, b)[0, 1] for a, b in ((dx, dz), (dz, dq), (dx, dq))]); close(top["degradation"], top["pre"]["pearson"] - top["end_to_end"]["pearson"])
    # directions
    first = [kept["codebook"][c, l][sorted(set(everyone[:, c, l]))].astype(float).mean(0) for c in range(C) for l in range(L)]; close(found["topological"]["centroids"]["cosine"], [[a @ b/np.linalg.norm(a)/np.linalg.norm(b) for b in first] for a in first])


def test_the_same_data_set_read_anew_says_the_same(made, drawn):
    e, kept = evidence(made[2], made[1]), evidence(made[2]); m = measured(e)
    np.testing.assert_array_equal(e.tokens, kept.tokens); np.testing.assert_array_equal(e.all_tokens, kept.all_tokens); np.testing.assert_allclose(e.latents, kept.latents, atol=1e-5); np.testing.assert_allclose(e.reconstruction, kept.reconstruction, atol=1e-5)
    assert e.about == kept.about and abs(m["r2"]["r2"] - drawn[1]["engineering"]["table"]["r2"]["r2"]) < 1e-5


def test_rows_of_one_category_in_another_order_change_the_correlations(made):
    e = evidence(made[2]); before = np.array(DASHBOARDS["semantic"](e, measured(e))["correlation"]["rv"]); z = e.latents.copy(); z[:, 1] = np.roll(z[:, 1], 1, 0)
    other = replace(e, latents=z); after = DASHBOARDS["semantic"](other, measured(other)); rv, rest = np.array(after["correlation"]["rv"]), [c for c in range(len(before)) if c != 1]
    assert np.abs(rv - before)[1, rest].min() > 1e-4; np.testing.assert_allclose(rv[np.ix_(rest, rest)], before[np.ix_(rest, rest)], atol=1e-12)
    assert after["sizes"] == DASHBOARDS["semantic"](e, measured(e))["sizes"]


def test_codebooks_of_different_width_are_not_compared():
    e = invented(rows=200, codes=6); wide = replace(e, level_mode="parallel", widths=np.broadcast_to([4, 3, 2], (6, 3)).copy()); found = DASHBOARDS["topological"](wide, measured(wide)); cosine, w = found["centroids"]["cosine"], found["centroids"]["width"]
    assert all((v is None) == (w[i] != w[j]) for i, row in enumerate(cosine) for j, v in enumerate(row))
    image = panel_figure(found, "topological", "centroids").axes[0].images[0]; np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), np.not_equal.outer(w, w))


def test_a_code_that_only_training_rows_use_is_not_called_dead():
    e = invented(rows=200, codes=6); few = replace(e, tokens=np.zeros_like(e.tokens)); found = DASHBOARDS["topological"](few, measured(few))
    assert found["statistics"] == DASHBOARDS["topological"](e, measured(e))["statistics"]


# --- the pictures

def test_pictures_are_made_of_the_json_alone(drawn, tmp_path):
    for k in PANELS: shutil.copy(drawn[0]/f"{k}.json", tmp_path)
    code = """import hashlib, io, json, sys
from geonb.operators.dashboard_figures import PANELS, panel_figure
for k in PANELS:
    d = json.load(open(k + ".json"))
    for n in PANELS[k]:
        f = io.BytesIO(); panel_figure(d, k, n).savefig(f, format="png", dpi=40, bbox_inches="tight", metadata={"Software": None}); print(k + "_" + n + ".png", hashlib.sha256(f.getvalue()).hexdigest())
assert not {"torch", "h5py", "geonb.operators.dashboards", "geonb.operators.tokenizer"} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "GEONB_RUNS": str(tmp_path/"empty")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == {f"{k}_{n}.png": sha256(drawn[0]/f"{k}_{n}.png") for k, n in PANEL_NAMES}


def shaken(x, d):
    "The same numbers, all a little different."
    if isinstance(x, dict): return {k: shaken(v, d) for k, v in x.items()}
    if isinstance(x, list): return [shaken(v, d) for v in x]
    return x + d if isinstance(x, float) else x


@pytest.mark.parametrize("kind, name", PANEL_NAMES)
def test_every_panel_shows_its_numbers_and_its_origin(numbers, kind, name):
    fig = panel_figure(numbers[kind], kind, name); said = " ".join(t.get_text() for t in fig.texts); n = 200 if PANELS[kind][name].of_all else 40
    assert all(part in said for part in ("run invented-0", "preset sound", f"N = {n} ", "data 000000000000"))
    if name in ("flow", "sizes", "families"):                                 # counts only
        other = json.loads(json.dumps(numbers[kind]).replace("30", "31").replace("12", "13")) if name != "sizes" else numbers[kind] | {"sizes": numbers[kind]["sizes"] | {"counts": {f: [v + 1 for v in c] for f, c in numbers[kind]["sizes"]["counts"].items()}}}
    else: other = numbers[kind] | {name: shaken(numbers[kind][name], .05)}
    assert command.png(fig, 40) == command.png(panel_figure(numbers[kind], kind, name), 40) != command.png(panel_figure(other | {"about": numbers[kind]["about"]}, kind, name), 40)


@pytest.mark.parametrize("C, L", [(1, 1), (2, 3), pytest.param(19, 3, marks=pytest.mark.slow)])
def test_few_and_many_categories_are_drawn(C, L):
    e = invented(categories=C, levels=L, codes=6, rows=150); m = measured(e)
    for k, make in DASHBOARDS.items():
        d = json.loads(canonical_json(make(e, m)))
        for n in PANELS[k]: assert len(command.png(panel_figure(d, k, n), 30)) > 1000
        assert len(page(d, k).subfigs) >= 2


# --- the command

def test_the_command_leaves_pictures_numbers_and_an_untouched_bundle(made, drawn):
    assert sorted(p.name for p in drawn[0].iterdir()) == sorted([*(f"{k}_{n}.png" for k, n in PANEL_NAMES), *(f"{k}.{end}" for k in PANELS for end in ("png", "json"))])
    assert verify_bundle(made[2]) == [] and all({*found} == {"about", *PANELS[k]} for k, found in drawn[1].items())


def test_one_type_and_json(cli, made, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("GEONB_RUNS", str(made[0])); name = made[2].name
    code, out, err = cli("dashboards", name, "--type", "semantic", "--dpi", 40, "--json"); said = json.loads(out)
    assert (code, err) == (0, "") and said["dashboards"] == {"semantic": drawn[1]["semantic"]} and sorted(said["files"]) == sorted(p.name for p in (tmp_path/f"dashboards-{name}").iterdir()) == sorted(["semantic.json", "semantic.png", *(f"semantic_{n}.png" for n in PANELS["semantic"])])
    assert (tmp_path/f"dashboards-{name}"/"semantic_used.png").read_bytes() == (drawn[0]/"semantic_used.png").read_bytes() and command.complete_tokenizer("") == [name]


def test_a_failure_while_drawing_leaves_everything_as_it_was(cli, made, tmp_path, monkeypatch):
    old = tmp_path/"out"; old.mkdir(); (old/"semantic.json").write_text("old"); real, calls = command.png, []
    def png(*args):
        calls.append(1)
        if len(calls) == 4: raise MemoryError("no room")
        return real(*args)
    monkeypatch.setattr(command, "png", png)
    code, out, err = cli("dashboards", made[2], "--type", "semantic", "--dpi", 30, "--output", old)
    assert code == 1 and one_sentence(err) and len(calls) == 4 and [(p.name, p.read_text()) for p in old.iterdir()] == [("semantic.json", "old")]


def test_a_failure_while_writing_leaves_whole_files(cli, made, tmp_path, monkeypatch):
    real, n = os.replace, []
    def replace_(a, b):
        n.append(1)
        if len(n) == 3: raise OSError(28, "No space left on device")
        return real(a, b)
    monkeypatch.setattr(os, "replace", replace_)
    code, out, err = cli("dashboards", made[2], "--type", "semantic", "--dpi", 30, "--output", tmp_path/"out")
    assert code == 1 and one_sentence(err) and "No space left" in err
    left = list((tmp_path/"out").iterdir()); assert len(left) == 2 and all(p.read_bytes().endswith(b"IEND\xaeB`\x82") for p in left)


def test_a_bundle_of_another_laboratory_is_refused(cli, tmp_path):
    import torch
    from geonb.pentachora.config import TrainPentachora
    from safetensors.torch import save_file
    run = Run.open(TrainPentachora.build(runs_root=str(tmp_path), epochs=1), "digits", {"made": "here"}, report=lambda _: None)
    def write(folder): (folder/"weights").mkdir(); save_file({"w": torch.zeros(1)}, folder/"weights"/"line.safetensors", {"config_sha256": run.config_sha256})
    path = run.finish(write, [{"epoch": 1}], {"kind": "line"}, {})
    code, out, err = cli("dashboards", path, "--output", tmp_path/"out")
    assert (code, out) == (2, "") and one_sentence(err) and "laboratory 'pentachora', not of 'operators'" in err and not (tmp_path/"out").exists()


@pytest.mark.parametrize("args, code, words", [
    ("{tokenizer} --type engeneering", 2, "did you mean 'engineering'?"), ("{tokenizer} --type all,semantic", 2, "engineering, topological, semantic or all"), ("{data}", 2, "holds a data set and no tokenizer"), ("{root}/nowhere", 4, "no run or bundle"),
    ("{tokenizer} --output {tokenizer}/plots", 2, "lies in a bundle"), ("{tokenizer} --output {data}/dataset.h5", 2, "is a file"), ("{tokenizer} --dpi 0", 2, "--dpi 0 is not allowed: 30 to 600"), ("{tokenizer} --topo-samples 1", 2, "--topo-samples 1 is not allowed"),
    ("{tokenizer} --dataset {root}/no.h5", 4, "no.h5"), ("{tokenizer} --tpye all", 2, "No such option"), ("", 2, "Missing argument")])
def test_a_mistake_is_one_sentence(cli, made, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    got, out, err = cli("dashboards", *args.format(root=made[0], data=made[1], tokenizer=made[2]).split())
    assert (got, out) == (code, "") and one_sentence(err) and words in err, err
    assert list(tmp_path.iterdir()) == [] and verify_bundle(made[2]) == []


def test_a_damaged_bundle_is_refused_by_name(cli, made, tmp_path):
    copy = tmp_path/made[2].name; shutil.copytree(made[2], copy); raw = bytearray((copy/"latents.npz").read_bytes()); raw[len(raw)//2] ^= 1; (copy/"latents.npz").write_bytes(raw)
    code, out, err = cli("dashboards", copy, "--output", tmp_path/"out")
    assert code == 3 and one_sentence(err) and "latents.npz does not match" in err and not (tmp_path/"out").exists()
