"Populations as a user trains them: the same bits wherever members are trained, what varies and what does not, members pushed apart, another training to compare with."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import geonb
from geonb.chromatic.bundle import other_training, report_of, save
from geonb.chromatic.config import ChromaticDescent
from geonb.chromatic.folder import read_probes
from geonb.chromatic.member_task import PopulationData
from geonb.chromatic.population import Population, finished_member
from geonb.chromatic.verify import verify
from geonb.core.atomic import read_json
from geonb.core.bundles import verify_bundle
from geonb.core.errors import GeonbError
from geonb.core.run import Run, Workspace
from geonb.data.images import load_images

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = dict(seeds=3, epochs=2, reps=99, bootstraps=50, progress="none", engine="loop")


@pytest.fixture(scope="module")
def digits(): return PopulationData.of(load_images("digits", size=8))


def trained(folder, data, **given):
    "A population without a run around it."
    return Population(Workspace(folder), ChromaticDescent.build(**QUICK | given), data).train("none")


def probes_of(p): return np.stack([np.load(p.folder(s)/"export"/f"probe_logits_seed{s}.npz")["logits"] for s in p.seeds])


def bundle_of(root, **given):
    "What the run notebook does, without its pictures."
    c = ChromaticDescent.build(**QUICK | dict(runs_root=str(root)) | given); c.check_data(); images = load_images(c.dataset, c.size); other = other_training(c)
    run = Run.open(c, images.name, images.checksums | ({"against": other.digest} if other else {}), report=lambda *_: None); p = Population(run, c, PopulationData.of(images, c.fast))
    if not run.finished: p.train("none")
    report = report_of(run, p, other); return save(run, p, report), report


# ---- wherever members are trained ----

def test_two_processes_give_the_bits_of_one(digits, tmp_path):
    one, two = trained(tmp_path/"one", digits), trained(tmp_path/"two", digits, executor="processes", workers=2)
    assert (probes_of(one) == probes_of(two)).all() and {r["worker"] for r in one.records} != {r["worker"] for r in two.records}
    assert [r["config"] for r in one.records] == [r["config"] for r in two.records] and {r["threads"] for r in one.records + two.records} == {1}


@pytest.mark.slow
def test_a_dask_cluster_gives_the_bits_of_one_process(digits, tmp_path):
    one, two = trained(tmp_path/"one", digits), trained(tmp_path/"two", digits, executor="dask", workers=2)
    assert (probes_of(one) == probes_of(two)).all() and all(r["worker"].startswith("dask") for r in two.records)


def test_a_member_whose_files_were_harmed_is_trained_again_and_no_other(digits, tmp_path):
    p = trained(tmp_path, digits); z = probes_of(p); times = {s: (p.folder(s)/"done.json").stat().st_mtime_ns for s in p.seeds}
    file = p.folder(14)/"export"/"probe_logits_seed14.npz"; file.write_bytes(file.read_bytes()[:-1]); assert not finished_member(p.folder(14)) and p.missing() == [14]
    again = trained(tmp_path, digits); assert (probes_of(again) == z).all() and {s for s in p.seeds if (p.folder(s)/"done.json").stat().st_mtime_ns != times[s]} == {14}


# ---- what varies ----

def test_only_what_varies_differs(digits, tmp_path):
    z = {v: probes_of(trained(tmp_path/v, digits, vary=v, augment="crop", seeds=2)) for v in ("init", "order", "augment", "all")}
    assert all((a[0] == z["all"][0]).all() for a in z.values()) and len({a[1].tobytes() for a in z.values()}) == 4   # the first member is always the same one, the second never
    assert not (z["order"][1] == z["order"][0]).all() and not (z["augment"][1] == z["augment"][0]).all()


def test_without_augmentation_nothing_is_left_to_vary(digits, tmp_path):
    z = probes_of(trained(tmp_path, digits, vary="augment", seeds=2)); assert (z[0] == z[1]).all()


def test_recipes_are_recorded_and_tested_as_a_factor(tmp_path):
    bundle, report = bundle_of(tmp_path, vary="recipe", arch="tiny4", seeds=8); probes = read_probes(bundle); assert {m["recipe"] for m in probes.members} == {"plain", "half the learning rate", "half the width", "other augmentation"}
    factors = {f["factor"]: f for f in report.records["artifact_tests"]["batch"]}; assert 0 < factors["recipe"]["p"] <= 1
    assert len(geonb.load(bundle)) == 8 and verify_bundle(bundle) == verify(bundle) == []


# ---- pushed apart ----

@pytest.mark.parametrize("given", [dict(), dict(repel_mode="wave", repel_wave=2), dict(repel_mode="joint", engine="auto"), dict(repel_on="fit"), dict(repel_form="hinge", repel_h=.02)], ids=["sequential", "wave", "joint", "fit", "hinge"])
def test_every_way_of_pushing_apart_runs_and_pushes(digits, tmp_path, given):
    more = dict(repel=True, repel_warmup=1, repel_ramp=1, repel_lambda=.5, epochs=3, seeds=4) | given; p = trained(tmp_path, digits, **more); last = [r["final"] for r in p.records]
    pushed = [r for r in last if "loss/repel" in r]; rows = [r["row"] for r in p.records if "loss/repel" in r["final"]]
    assert len(pushed) == (4 if more.get("repel_mode") == "joint" else 3 if "repel_h" in more else 2) and all(0 <= r["loss/repel"] <= 2 for r in pushed) and 0 not in (rows if more.get("repel_mode") != "joint" else [])
    plain = trained(tmp_path/"plain", digits, epochs=3, seeds=4); assert not (probes_of(p) == probes_of(plain)).all()


def test_weight_zero_is_the_unrepelled_population(digits, tmp_path):
    a, b = trained(tmp_path/"a", digits), trained(tmp_path/"b", digits, repel=True, repel_lambda=0.); assert (probes_of(a) == probes_of(b)).all()


def test_a_killed_row_of_repelled_members_continues_with_the_same_bandwidth(digits, tmp_path):
    import shutil
    more = dict(repel=True, repel_warmup=0, repel_ramp=1, epochs=2, seeds=4); whole = trained(tmp_path/"a", digits, **more)
    shutil.rmtree(whole.folder(whole.rows()[-1][0])); z = probes_of(trained(tmp_path/"b", digits, **more)); assert (probes_of(trained(tmp_path/"a", digits, **more)) == z).all()


# ---- the whole run ----

@pytest.mark.slow
def test_a_short_run_on_synthetic_pictures_twice(tmp_path):
    "By the command and by papermill; the second call trains nothing; a fresh one has equal bits."
    bin = Path(sys.executable).parent; root = Path(__file__).resolve().parent.parent; words = "-p dataset synth -p arch tiny8 -p epochs 2 -p seeds 3 -p fast true -p engine loop -p reps 99".split(); env = dict(__import__("os").environ, GEONB_RUNS=str(tmp_path/"runs"))
    go = lambda *more: subprocess.run([*map(str, more)], cwd=root, env=env, capture_output=True, text=True)
    a = go(bin/"papermill", "nbs/chromatic_descent.ipynb", tmp_path/"out.ipynb", *words); assert a.returncode == 0, a.stderr[-2000:]
    bundle, = (tmp_path/"runs"/"chromatic").glob("synth/*-r1"); b = go(bin/"geonb", "run", "chromatic_descent", *words); assert b.returncode == 0 and "nothing is trained" in (tmp_path/"runs").joinpath("chromatic", "synth", f"{bundle.name}.ipynb").read_text(), b.stderr[-2000:]
    assert go(bin/"geonb", "chromatic", "verify", bundle).returncode == 0
    for f in ("split.json", "summary.json", "manifest.json", "probes/probe_index.json", "reports/analysis.json", "reports/artifact_tests.json", "reports/ensemble.json", "reports/ensemble.txt", "reports/REPORT.md"): assert (bundle/"artifacts"/f).is_file(), f
    for s in (13, 14, 15): assert sorted(p.name for p in (bundle/"runs"/f"SEED_{s:04d}").iterdir()) == ["config.json", "done.json", "history.json", "model.safetensors"]
    c = go(bin/"geonb", "run", "chromatic_descent", *words, "-p", "fresh", "true"); assert c.returncode == 0, c.stderr[-2000:]
    for s in (13, 14, 15): x, y = (np.load(bundle.with_name(bundle.name.replace("-r1", r))/"artifacts"/"probes"/f"probe_logits_seed{s}.npz")["logits"] for r in ("-r1", "-r2")); assert (x == y).all()


def test_another_training_of_the_same_seeds_is_compared(tmp_path):
    first, _ = bundle_of(tmp_path, seeds=5); second, report = bundle_of(tmp_path, seeds=5, against=first.name, epochs=3)
    rows = report.records["artifact_tests"]["against"] if "against" in report.records["artifact_tests"] else report.records["artifact_tests"]["reproducibility"]
    assert rows and all(0 < r["p"] <= 1 and -1 <= r["r"] <= 1 for r in rows if r.get("tested", True)); assert first != second
    assert read_json(second/"config.json")["data"]["against"] == read_probes(first).digest


def test_the_stacked_engine_leaves_the_same_bundle_but_for_rounding(tmp_path):
    loop, _ = bundle_of(tmp_path/"a"); stacked, report = bundle_of(tmp_path/"b", engine="stacked"); a, b = read_probes(loop), read_probes(stacked)
    assert a.seeds == b.seeds and np.abs(a.probe - b.probe).max() < .2 and (a.probe.argmax(-1) == b.probe.argmax(-1)).mean() > .98
    names = lambda p: sorted(f.relative_to(p).as_posix() for f in p.rglob("*") if f.is_file() and "tensorboard" not in f.parts); assert names(loop) == names(stacked) and verify_bundle(stacked) == verify(stacked) == []
    assert geonb.load(stacked).logits(load_images("digits", size=8).test.images[:5]).shape == (3, 5, 10)


def test_no_picture_of_the_probe_is_trained_on(digits, tmp_path, monkeypatch):
    "Every index that reaches a step is one of fit; pool is read by repulsion only."
    from geonb.chromatic import member_task
    seen = set(); real = member_task.MemberStream.batch
    def batch(self, epoch, i): b = real(self, epoch, i); seen.update(digits.splits.fit[b["index"].numpy()].tolist()); return b
    monkeypatch.setattr(member_task.MemberStream, "batch", batch); trained(tmp_path, digits, seeds=2)
    roles = {r: set(getattr(digits.splits, r).tolist()) for r in ("probe", "calib", "pool", "fit")}; assert seen == roles["fit"] and not seen & (roles["probe"] | roles["calib"] | roles["pool"])


def test_five_members_learn_and_their_average_is_better(digits, tmp_path):
    "Twelve epochs of the small network."
    p = trained(tmp_path, digits, seeds=5, epochs=12); z, y = probes_of(p), digits.role("probe").labels
    single = (z.argmax(-1) == y).mean(1); both = float((torch.from_numpy(z).softmax(-1).mean(0).argmax(-1).numpy() == y).mean()); assert single.mean() > .85 and both > single.mean()


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, runs_root):
    for given, words in ((dict(dataset="digitz"), "did you mean"), (dict(against="nothing-r1"), "nothing-r1")):
        with pytest.raises(GeonbError, match=words): ChromaticDescent.build(**given).check_data()
    assert list(runs_root.iterdir()) == []
