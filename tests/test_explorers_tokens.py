"The tokens explorer without a browser: what it shows against the model and brute force, what it refuses, and traits driven from Python."
import json
import math
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from geonb.core.artifacts import read_npz
from geonb.core.atomic import write_sums
from geonb.core.errors import CheckFailed, DataMissing, UsageError
from geonb.explorers.boards import NAMES, in_sight
from geonb.explorers.strings import furthest
from geonb.explorers.tokens import TokensExplorer, TokensState, numbers_of
from geonb.operators.dashboards import dashboard_data
from geonb.operators.tokenizer_bundle import load_tokenizer

KINDS = tuple(NAMES)


def tokenizer_run(root, samples=40, epochs=3, codes=5, **more):
    "(bundle of a tokenizer, bundle of its data set), trained for a moment."
    from geonb.core.run import Run
    from geonb.core.training import fit
    from geonb.operators.generation_bundle import make_dataset
    from geonb.operators.generation_config import GenerateOperators
    from geonb.operators.tokenizer_bundle import opened, save, task_name
    from geonb.operators.tokenizer_config import TrainOperatorVQVAE
    from geonb.operators.tokenizer_report import report_of
    from geonb.operators.tokenizer_task import TokenizerTask, prepare
    quiet = dict(progress="none", device="cpu", runs_root=str(root))
    data = make_dataset(GenerateOperators.build(profile="ci", total_samples=samples, timesteps=8, realizations=2, twins=0, executor="serial", **quiet), report=lambda _: None)
    c = TrainOperatorVQVAE.build(dataset=str(data), **dict(epochs=epochs, val_every=1, codes=codes, bootstraps=0, k_max=6, side_temporal_cnn=8, side_ic_cnn=4) | more, **quiet); store, name = opened(c)
    run = Run.open(c, task_name(name), {"dataset": store.sha256}, report=lambda _: None); task = TokenizerTask(c, prepare(c, store), run.device); t = fit(task, run)
    return save(run, task, report_of(run, task, t, name)), data


@pytest.fixture(scope="module")
def made(tmp_path_factory): return tokenizer_run(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def explorer(made): return TokensExplorer(made[0])


def standing(explorer): return explorer.live.to_json()


def numbers(explorer, r, n):
    "States that wander through everything."
    a = explorer.strings; fine = np.flatnonzero(a.tokens[:, 0] >= 0)
    for i in range(n):
        c, l = int(r.integers(a.C)), int(r.integers(a.L)); yield TokensState(int(r.choice(fine)), int(r.integers(a.frames)), int(r.integers(a.realizations)), c, l, int(r.integers(-1, a.codes[c, l])), KINDS[i % 3])


# --- exactness

def test_decoded_features_are_the_models_own(explorer, made):
    model = load_tokenizer(made[0]); a = explorer.strings; tokens = read_npz(made[0]/"tokens.npz")["tokens"]
    for s in numbers(explorer, np.random.default_rng(0), 12):
        own = tokens[s.sample].copy(); other = own.copy()
        if s.code >= 0: other[s.category * a.L + s.level] = s.code
        with torch.no_grad(): want = model.net.decode(torch.from_numpy(np.stack([own, other]))).numpy()
        raw = model.decode(np.stack([own, other])); r, v = explorer.reading(s), explorer.view(s)
        np.testing.assert_allclose(r.decoded, want, atol=1e-6); np.testing.assert_allclose(v["before"]["x"], want[0, r.named], atol=1e-6); np.testing.assert_allclose(v["after"]["x"], want[1, r.named], atol=1e-6)
        assert raw.names == a.names and np.allclose(a.in_units(r.decoded), raw.values, rtol=1e-4, atol=1e-5)
        if (own == other).all(): np.testing.assert_array_equal(v["before"]["x"], v["after"]["x"]); assert set(r.named) <= set(model.model_config.categories[s.category])
        else:
            step = np.abs(want[1] - want[0]); np.testing.assert_allclose(np.sort(step[r.named])[::-1], np.sort(step)[::-1][:12], atol=1e-6)
            assert v["tokens"]["text"][s.category][s.level] == str(s.code)


def test_neighbours_are_those_of_brute_force(explorer):
    a, tied = explorer.strings, 0
    for s in numbers(explorer, np.random.default_rng(1), 12):
        r = explorer.reading(s); now = r.tokens[1]; brute = sorted((sum(int(x != y) for x, y in zip(row, now)), i) for i, row in enumerate(a.tokens) if i != s.sample and row[0] >= 0)[:8]
        assert list(zip(r.apart, r.near)) == brute; tied += len({n for n, _ in brute}) < 8
        z = np.array(explorer.view(s)["near"]["z"]); assert z[0].all(); np.testing.assert_array_equal((1 - z[1:]).sum(1), r.apart)
    assert tied, "ties were never met"


def test_shares_and_truth(explorer, made):
    a = explorer.strings; everyone = a.tokens[a.tokens[:, 0] >= 0]; kept = read_npz(made[0]/"latents.npz"); row = int(kept["rows"][0])
    s = replace(explorer.first(), sample=row, category=1, level=2, code=3); v = explorer.view(s); now = a.swapped(row, 1, 2, 3)
    np.testing.assert_allclose(np.ravel(v["tokens"]["z"]), (everyone == now).mean(0), atol=1e-6); np.testing.assert_allclose(v["truth"]["x"], kept["target"][0][explorer.reading(s).named], atol=1e-6)
    absent = next(i for i in range(a.N) if i not in a.truth and a.tokens[i, 0] >= 0) if len(a.truth) < len(everyone) else None
    if absent is not None: assert np.isnan(explorer.view(replace(s, sample=absent))["truth"]["x"]).all()


def test_the_rollout_is_that_of_the_data_set(explorer, made):
    from geonb.operators.store import Store, replay
    store, a = Store(made[1]/"dataset.h5"), explorer.strings; s = replace(explorer.first(), time=5, realization=1); frames = replay(store, s.sample).frames.numpy()
    for c in range(3): np.testing.assert_allclose(explorer.view(s)[f"field {c}"]["z"], frames[1, 5, c], atol=1e-6)
    assert a.source == "plan.json" and (a.tokenizer.tokens_of(replay(store, s.sample)) == a.string(s.sample)).all()


def test_without_its_plan_a_bundle_opens_with_a_sentence_and_the_data_set_helps(made, tmp_path, monkeypatch):
    from geonb.operators import tokenizer_bundle
    monkeypatch.setenv("GEONB_RUNS", str(made[1].parents[2])); old = tmp_path/made[0].name; shutil.copytree(made[0], old); (old/"plan.json").unlink(); write_sums(old)
    assert np.shape((e := TokensExplorer(old)).view(e.first())["field 0"]["z"]) == (16, 16) and e.strings.source == made[1].name, "the data set that its parameters name is at hand"
    def gone(*_): raise DataMissing("not here")
    with monkeypatch.context() as m: m.setattr(tokenizer_bundle, "open_store", gone); bare = TokensExplorer(old)
    v = bare.view(bare.first()); assert v["field 0"]["z"] == [[None]] and "plan.json" in dict(bare.readout(bare.first()))["no rollout"] and bare.picture()[:4] == b"\x89PNG" and len(bare.film().frames) > 1
    full = TokensExplorer(old, dataset=str(made[1])); assert np.shape(full.view(full.first())["field 0"]["z"]) == (16, 16) and full.strings.source == made[1].name


@pytest.mark.parametrize("kind", KINDS)
def test_dashboards_are_the_numbers_of_the_printed_ones(explorer, made, kind):
    want = dashboard_data(made[0], kinds=(kind,))[kind]; have = numbers_of(explorer.strings, kind)
    assert json.dumps(have, sort_keys=True) == json.dumps(want, sort_keys=True)
    v = explorer.view(replace(explorer.first(), dashboard=kind)); assert {n for n, d in v.items() if "visible" in d and in_sight(d)} == set(NAMES[kind])
    if kind == "engineering": assert v["shared error"]["x"].tolist() == want["errors"]["shared"] and v["usage"]["text"][0][0] == f"{want['usage']['used'][0][0]}/{want['usage']['codes'][0][0]}"
    if kind == "topological": assert v["codes"]["x"].tolist() == want["codes"]["x"] and len(v["own codes"]["x"]) == explorer.strings.C * explorer.strings.L
    if kind == "semantic": assert sum(v[f"size {f}"]["x"][0] for f in want["sizes"]["counts"]) == sum(n[0] for n in want["sizes"]["counts"].values()) and v["neighbours kept"]["y"][0] == want["topology"]["pre"]["pearson"]


def test_view_is_pure_and_fast(explorer, capsys):
    spent, size = [], 0
    for s in numbers(explorer, np.random.default_rng(2), 60):
        first = explorer.view(s); t0 = time.process_time(); again = explorer.view(s); spent.append(1000 * (time.process_time() - t0)); size = max(size, len(json.dumps(again, default=lambda a: np.asarray(a).tolist()))); assert repr(first) == repr(again)
    with capsys.disabled(): print(f" view: median {np.median(spent):.1f} ms, p95 {np.percentile(spent, 95):.1f} ms, {size/1000:.1f} kB ", end="")   # shown, not asserted: seconds belong to the machine
    assert size < 300_000


def test_ties_of_what_is_named():
    assert furthest([1., -3, 2], [1., -3, 2], [0, 1, 2], 2).tolist() == [1, 2] and furthest([0., 0, 0], [1., 1, 0], [2], 3).tolist() == [0, 1, 2]


# --- what is refused, and what is clamped

BAD = [dict(sample=math.nan), dict(sample="3"), dict(sample=[1]), dict(time=1.5), dict(time=None), dict(realization=True), dict(category=math.nan), dict(category="C0"), dict(level={}), dict(code="two"), dict(code=math.nan), dict(code=True), dict(dashboard="all"), dict(dashboard=None)]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_hostile_state_is_one_sentence_and_the_picture_stands(explorer, bad):
    explorer.go(**vars(replace(explorer.first(), time=2, code=1))); before, state = standing(explorer), explorer.state
    with pytest.raises(UsageError) as e: explorer.go(**bad)
    assert next(iter(bad)) in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UsageError): explorer.view(replace(explorer.first(), **bad))
    assert standing(explorer) == before and explorer.state == state


@pytest.mark.parametrize("far, near", [(dict(time=10**6), dict(time=7)), (dict(time=-math.inf), dict(time=0)), (dict(code=99), dict(code=4)), (dict(code=-7), dict(code=-1)), (dict(category=10**400), dict(category=10**6)), (dict(realization=np.int64(9)), dict(realization=1))], ids=str)
def test_out_of_range_is_taken_to_the_nearest(explorer, far, near): assert repr(explorer.view(replace(explorer.first(), **far))) == repr(explorer.view(replace(explorer.first(), **near)))


def test_an_operator_without_tokens_is_refused(explorer):
    a = explorer.strings; tokens = a.tokens; other = replace(a, tokens=np.where(np.arange(a.N)[:, None] == 3, -1, tokens)); e = TokensExplorer(other)
    e.widget; before = standing(e); e.inputs["sample"].value = 3
    assert "sample=3 has no tokens" in e.problem.value and standing(e) == before
    e.inputs["sample"].value = 4; assert not e.problem.value and 3 not in e.reading(e.settled(e.state)).near
    with pytest.raises(UsageError, match="no operator"): TokensExplorer(replace(a, tokens=np.full_like(tokens, -1))).first()


@pytest.mark.parametrize("source, kind", [("nothing-r1", DataMissing), (3, UsageError), ([], UsageError)], ids=str)
def test_what_is_no_tokenizer(source, kind):
    with pytest.raises(kind) as e: TokensExplorer(source)
    assert "\n" not in str(e.value)


def test_foreign_damaged_and_unfinished_bundles(made, tmp_path):
    with pytest.raises(UsageError, match="holds no tokenizer"): TokensExplorer(made[1])
    hurt = tmp_path/made[0].name; shutil.copytree(made[0], hurt); (hurt/"tokens.npz").write_bytes(b"x" * 100)
    with pytest.raises(CheckFailed): TokensExplorer(hurt)
    with pytest.raises(UsageError, match="another data set"): TokensExplorer(made[0], dataset=str(tokenizer_data(tmp_path)))


def tokenizer_data(root):
    from geonb.operators.generation_bundle import make_dataset
    from geonb.operators.generation_config import GenerateOperators
    return make_dataset(GenerateOperators.build(total_samples=4, timesteps=8, realizations=1, seed=5, executor="serial", progress="none", device="cpu", runs_root=str(root)), report=lambda _: None)


# --- the shell, without a browser

def test_traits_move_the_one_figure(made):
    e = TokensExplorer(made[0]); e.widget; figure = e.live; fine = [int(i) for i in np.flatnonzero(e.strings.tokens[:, 0] >= 0)]
    for name, value in dict(sample=fine[-1], time=4, realization=1, category=1, level=2, code=3, dashboard="topological").items():
        e.inputs[name].value = value; assert getattr(e.state, name) == value and e.live is figure and not e.problem.value
        want = e.view(e.state)
        for trace in figure.data:
            if trace.name in ("before", "after", "truth", "move", "token"): np.testing.assert_allclose(trace.x, want[trace.name]["x"])
            if trace.name.startswith("field"): np.testing.assert_allclose(np.array(trace.z, float), want[trace.name]["z"])
            if "visible" in want[trace.name]: assert trace.visible == want[trace.name]["visible"]
    assert "now 3" in e.words.value or e.strings.string(fine[-1])[e.strings.L + 2] == 3
    with pytest.raises(Exception): e.inputs["dashboard"].value = "everything"


def test_clicks(explorer):
    e = explorer; e.go(**vars(e.first())); s = e.state; r = e.reading(s); e.goes_to(2); assert e.state.sample == r.near[1]; e.goes_to(0); e.goes_to(99); assert e.state.sample == r.near[1]
    p = numbers_of(e.strings, "topological")["codes"]; e.puts(7); assert (e.state.category, e.state.level, e.state.code) == (p["category"][7], p["level"][7], p["code"][7])


def test_an_error_of_a_callback_is_shown(made, monkeypatch):
    e = TokensExplorer(made[0]); e.widget; before = standing(e)
    with monkeypatch.context() as m: m.setattr(TokensExplorer, "readout", lambda *_: 1 / 0); e.inputs["time"].value = 3
    assert "ZeroDivisionError" in e.problem.value and standing(e) == before
    e.inputs["time"].value = 4; assert e.problem.value == ""


def test_display_film_and_stills(explorer, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False); assert set(explorer._repr_mimebundle_()) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    monkeypatch.setenv("IN_TEST", "1"); assert set(explorer._repr_mimebundle_()) == {"image/png", "text/plain"}
    film = explorer.film(); size = len(film.to_json()); assert len(film.frames) == 8 and size < 5_000_000 and film.frames[1].data[0].z != film.frames[6].data[0].z
    assert explorer.picture(replace(explorer.first(), dashboard="topological")) != explorer.picture(explorer.first())


@pytest.mark.slow
@pytest.mark.parametrize("more", [dict(preset="baseline", codes=None, k_max=None, side_temporal_cnn=None, side_ic_cnn=None, bootstraps=None), dict(quantizer="fsq"), dict(quantizer="lfq", codes=8), dict(quantizer="simvq")], ids=lambda m: m.get("quantizer", "baseline"))
def test_every_kind_of_tokenizer_opens(tmp_path, more):
    e = TokensExplorer(tokenizer_run(tmp_path, **more)[0])
    for s in numbers(e, np.random.default_rng(3), 9): e.figure(s)
    assert e.picture()
