"What a cell cannot show of the chromatic tests: how often they reject where nothing is, how often they find what is, and that workers change nothing."
import json
import pickle

import numpy as np
import pytest
from scipy.stats import kstest
from geonb.chromatic.distances import METRICS, distance_matrix, pair_terms
from geonb.chromatic.inference import axis_correlations, batch_effects, null_rows, planted_cloud, power
from geonb.chromatic.nulls import NULLS, drawn, gaussian_draws, measured, measured_chunks, model_cloud, null, permuted_draws, prepared, prepared_distances
from geonb.chromatic.stability import example_bootstrap, retrained, weighted_distances
from geonb.stats.temperature import fit_temperatures
from geonb.core.seeds import stream
from geonb.geometry.mds import spectrum
from geonb.stats.multiple import holm
from geonb.stats.resampling import p_value, quantile_interval, stratified_counts

TWIN = pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)], ids=["reduced", "whole"])   # `size` times 50 replicates


def between(x): return ((x[..., :, None, :] - x[..., None, :, :]) ** 2).sum(-1)


def rate(p, alpha=.05): return float(np.mean(np.asarray(p) <= alpha))


def bounds(level, n): return level + 3 * np.sqrt(level * (1 - level) / n)   # a true level passes 999 times in 1,000


# --- A1 and A2: answers

def answers(rng, S=10, classes=5, per_class=60, C=4, bias=0., signal=0.):
    "Outputs of S models: noise, class bias, and three factors that each model loads on every image."
    y = np.repeat(np.arange(classes), per_class); x = rng.normal(size=(S, len(y), C))
    if bias: x = x + bias * rng.normal(size=(S, classes, C))[:, y]
    if signal: x = x + signal * np.einsum("sk,nkc->snc", rng.normal(size=(S, 3)), rng.normal(size=(len(y), 3, C)))
    return x, y


@TWIN
def test_a1_keeps_its_level_where_answers_are_exchangeable(size):
    n, p = 50 * size, []
    for k in range(n):
        rng = stream(k, "A1 level"); x = rng.normal(size=(10, 300, 1)) * rng.uniform(.2, 2, (1, 300, 1)) + rng.normal(size=(1, 300, 1))   # images differ in difficulty
        p.append(null("A1", x, statistics="evr2", R=99, seed=k).p)
    assert rate(p) <= bounds(.05, n) and rate(p, .5) > .3
    if size == 4: assert .01 <= rate(p) <= .11


def test_a1_keeps_the_trace_of_every_draw():
    x, y = answers(stream(0, "trace"), bias=1., signal=.5); kit = prepared("A1", x); D = permuted_draws(kit, stream(1, "trace"), 40)
    assert abs(spectrum(D).sum(-1) / spectrum(kit["D2"]).sum() - 1).max() < 1e-9


@TWIN
def test_class_bias_is_found_by_a1_and_granted_by_a2(size):
    n, p = 20 * size, {"A1": [], "A2": [], "A2b": []}
    for k in range(n):
        x, y = answers(stream(k, "class bias"), bias=1.2)
        for name in p: p[name].append(null(name, x, y, "evr2", R=39, seed=k).p)
    assert rate(p["A1"]) > .9
    for name in ("A2", "A2b"): assert rate(p[name]) <= bounds(.05, n)
    if size == 4: assert rate(p["A2"]) <= .10


@TWIN
def test_a_signal_on_every_image_is_found_by_both(size):
    p = {"A1": [], "A2": []}
    for k in range(15 * size):
        x, y = answers(stream(k, "image signal"), signal=.18)
        for name in p: p[name].append(null(name, x, y, "evr2", R=39, seed=k).p)
    assert rate(p["A1"]) > .5 and rate(p["A2"]) > .5


# --- A3 and A4: distances

@TWIN
def test_t1_keeps_its_level_under_gaussian_clouds(size):
    n = 50 * size
    for d in (30, 100):
        found = power(12, d, 0, R=99, replicates=n, seed=d)
        assert found["A3"][0] <= bounds(.05, n) and found["A4"][0] <= bounds(.05, n)
        if size == 4: assert .01 <= found["A3"][0] <= .11
    assert power(12, 100, 0, nulls=("A4",), R=99, replicates=n, seed=3, spread=.15)["A4"][0] <= (.11 if size == 4 else bounds(.05, n))


@TWIN
def test_t1_finds_three_models_that_share_a_shift_and_the_share_of_two_axes_does_not(size):
    n = 50 * size; found = power(12, 150, .15, R=99, replicates=n, seed=5)
    assert found["A3"][0] > .9 and found["A4"][0] > .9
    assert power(12, 150, .15, nulls=("A3",), statistic="evr2", R=99, replicates=n, seed=5)["A3"][0] < .3


def test_the_planted_cloud_is_that_of_its_points():
    "Distances made without points against those of points, in mean and spread."
    S, d, share, m = 12, 60, .2, 3; c = np.sqrt(share / (1 - share) * d * (S - 1) * S / (m * (S - m)))
    rng = stream(0, "planted"); x = rng.normal(size=(1500, S, d)); x[:, :m, 0] += c; long = between(x); short = np.stack([planted_cloud(S, d, share, m, rng) for _ in range(1500)])
    for f in (np.mean, np.std):
        a, b = f(long, 0), f(short, 0); assert np.allclose(a[a > 0], b[a > 0], rtol=.12)
    assert abs(spectrum(long).mean(0)[0] / spectrum(short).mean(0)[0] - 1) < .02


def test_one_bad_model_is_what_a4_grants():
    "A3 sees a model far from all others as structure; A4 has its radius."
    p3, p4 = [], []
    for k in range(40):
        x = stream(k, "bad model").normal(size=(12, 100)); x[0] *= 2.5; D = between(x)
        p3.append(null("A3", D, R=99, seed=k).p); p4.append(null("A4", D, R=99, seed=k).p)
    assert rate(p3) > .9 and rate(p4) <= bounds(.05, 40)
    assert null("A4", D, R=9).facts["additive_r2"] > .8


def test_shuffled_pairs_are_no_distances_of_points():
    x = stream(0, "pairs").normal(size=(12, 20))
    D = between(x); assert spectrum(D).min() > -1e-9
    assert (spectrum(drawn(prepared("A0", D), 0, 0)) < -1e-6).any(-1).mean() > .9


# --- the guard, A5, A6

def test_a_permutation_shared_by_all_models_moves_nothing():
    rng = stream(0, "guard"); z, y = 2 * rng.normal(size=(5, 200, 4)), rng.integers(4, size=200); z[:, np.arange(200), y] += 2; p = rng.permutation(200)
    T, Tp = fit_temperatures(z, y), fit_temperatures(z[:, p], y[p]); assert abs(np.asarray(T.value) - Tp.value).max() < 1e-9
    for name in METRICS:
        cal = name.endswith("_cal"); a, b = distance_matrix(z, name, T if cal else None), distance_matrix(z[:, p], name, Tp if cal else None)
        assert abs(a - b).max() < 1e-9, name


def test_reproducibility_finds_noisy_copies_and_is_uniform_otherwise():
    p = []
    for k in range(100):
        rng = stream(k, "retrained"); a, b = between(rng.normal(size=(11, 15))), between(rng.normal(size=(11, 15))); p.append(retrained(a, b, 99, k)["raw"]["p"])
    assert kstest(p, "uniform").pvalue > .01
    rng = stream(0, "copies"); x = rng.normal(size=(12, 15)); first, second = (between(x + .5 * rng.normal(size=x.shape)) for _ in range(2)); again = retrained(first, second, 999)
    assert again["raw"]["p"] < .01 and again["radii removed"]["p"] < .01


def test_a_host_is_flagged_where_it_matters_and_quiet_where_it_does_not():
    host = ["a", "b"] * 6; p = []
    for k in range(60): p.append(batch_effects(between(stream(k, "host").normal(size=(12, 40))), dict(host=host), 99, k)[0]["p"])
    assert rate(p) <= bounds(.05, 60) and kstest(p, "uniform").pvalue > .001
    x = stream(0, "host").normal(size=(12, 40)); x[::2, :8] += 2
    assert batch_effects(between(x), dict(host=host), 999, 0)[0]["p"] < .01


# --- stability

@TWIN
def test_the_bootstrap_interval_of_the_mean_distance_covers_the_truth(size):
    n, held = 50 * size, 0
    for k in range(n):
        rng = stream(k, "coverage"); y = np.repeat(np.arange(5), 60); x = rng.normal(size=(6, 300, 2)) * (1 + .3 * y)[:, None]; i, j = np.triu_indices(6, 1); terms = ((x[i] - x[j]) ** 2).mean(-1)
        w = stratified_counts(y, 300, stream(k, "coverage draws")); low, high = quantile_interval((w @ terms.mean(0)) / 300); held += low <= 2 * np.mean((1 + .3 * y) ** 2) <= high
    assert (.91 <= held / n <= .99) if size == 4 else held / n >= .86


def test_weighted_means_are_the_same_as_distances_computed_again():
    rng = stream(0, "weights"); z = rng.normal(size=(5, 80, 3)); drawn = rng.integers(80, size=(3, 80))
    for name in ("prob_mse_T1", "js_T1", "zero_one", "sym_kl_T1"):
        D = weighted_distances(pair_terms(z, name), [np.bincount(d, minlength=80) for d in drawn])
        for d, one in zip(drawn, D): assert abs(one - distance_matrix(z[:, d], name)).max() < 1e-12


def work():
    rng = stream(0, "workers"); x = rng.normal(size=(5, 60, 3)); i, j = np.triu_indices(5, 1)
    return x, np.arange(60) % 3, ((x[i] - x[j]) ** 2).mean(-1)


def test_chunks_that_travel_and_come_in_another_order_give_the_same_draws():
    x, y, _ = work(); kit = pickle.loads(pickle.dumps(prepared("A2", x, y))); here = null("A2", x, y, R=330, seed=3).null
    parts = {c: measured_chunks((kit, 3, [(c, n)], ["t1"]))[:, 0] for c, n in ((3, 30), (1, 100), (0, 100), (2, 100))}
    assert (np.concatenate([parts[c] for c in range(4)]) == here).all() and len(np.unique(here)) == 330


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_neither_a_null_nor_a_bootstrap(workers):
    x, y, terms = work()
    here = null("A2", x, y, ["t1", "evr2"], R=230, seed=3), example_bootstrap(terms, y, R=130, seed=3)
    there = null("A2", x, y, ["t1", "evr2"], R=230, seed=3, executor="processes", workers=workers), example_bootstrap(terms, y, R=130, seed=3, executor="processes", workers=workers)
    for s in ("t1", "evr2"): assert (here[0][s].null == there[0][s].null).all() and here[0][s] == there[0][s]
    assert all((here[1].draws[k] == there[1].draws[k]).all() for k in here[1].draws) and (here[1].aligned == there[1].aligned).all()


# --- what is printed

def test_every_p_comes_with_its_draws_and_is_never_0():
    rng = stream(0, "rows"); z = 2 * rng.normal(size=(7, 90, 4)); y = np.arange(90) % 4
    rows = null_rows({m: model_cloud(z, m, np.full(7, 1.2) if m.endswith("_cal") else None) for m in ("prob_mse_cal", "hellinger2_T1", "bhattacharyya_cal", "one_minus_cka")}, y, statistics=["t1", "evr2", "participation"], R=29, seed=11)
    assert {r["name"] for r in rows} == set(NULLS) and len(rows) == 3 * (6 + 6 + 4 + 3)
    for r in rows: assert 1 / 30 <= r["p"] <= 1 and r["R"] == 29 and r["seed"] == 11 and np.isfinite([r["observed"], r["mean"], r["sd"]]).all() and r["hypothesis"] == NULLS[r["name"]]
    adjusted = [(r["p"], r["p_holm"]) for r in rows if r["p_holm"] is not None]; assert np.allclose([h for _, h in adjusted], holm([p for p, _ in adjusted])) and (np.diff([h for _, h in sorted(adjusted)]) >= 0).all()
    assert sum(r["primary"] for r in rows) == 2 and json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_p_values_of_true_hypotheses_are_uniform():
    z = stream(0, "uniform").normal(size=(100, 3000)); p = p_value(z[1:], z[0])
    assert p.min() == .01 and all(abs(rate(p, a) - a) < .03 for a in (.05, .2, .5, .8))


def test_a_cloud_knows_its_dimension():
    "The fitted dimension of A3 against the true one, with a median that is not off by more than a few percent."
    for d in (15, 60, 240):
        rng = stream(d, "dimension"); D = gaussian_draws(dict(radii=np.ones(12), d=float(d)), rng, 400); fitted = [prepared_distances("A3", one)["d"] for one in D]
        assert abs(np.median(fitted) / d - 1) < .1
        assert abs(measured(D, ["mean_d2"]).mean() - 2) < .05


# --- what a test can see, and what it takes for something else

@TWIN
def test_the_share_of_two_axes_is_found_less_often_the_larger_the_group(size):
    "A3 matches the spread of the distances, which a group widens; t1 does not care."
    n = 40 * size; found = [power(12, 150, s, nulls=("A3",), statistic="evr2", R=99, replicates=n, seed=9)["A3"][0] for s in (.08, .25)]
    assert found[0] < .4 and found[1] == 0 and power(12, 150, .25, R=99, replicates=n, seed=9)["all"][0] > .95


@TWIN
def test_t1_finds_a_plane_of_two_equal_directions(size):
    n, at = 40 * size, {}
    for share in (.1, .2):
        p = []
        for k in range(n):
            rng = stream(k, "plane"); x = np.hstack([rng.standard_normal((12, 150)), rng.standard_normal((12, 2)) * np.sqrt(share / (1 - share) * 75)]); D = between(x); p.append([null(name, D, R=99, seed=k).p for name in ("A3", "A4")])
        at[share] = (np.array(p) <= .05).mean(0)
    assert (at[.2] > at[.1]).all() and (at[.1] > .2).all() and (at[.2] > .55).all()


@TWIN
def test_the_endpoint_keeps_its_level_whatever_the_radii(size):
    "Both nulls together, as the verdict asks, also where members lie unequally far from the centre."
    n = 40 * size
    for spread in (0., .3): assert power(12, 100, 0, R=99, replicates=n, seed=7, spread=spread)["all"][0] <= bounds(.05, n)
    assert power(12, 150, .15, R=99, replicates=n, seed=8, spread=.15)["all"][0] > .7


def test_dealt_pairs_call_unequal_radii_structure():
    "The published test rejects clouds that only differ in their radii; A4 grants them."
    p0, p4 = [], []
    for k in range(40): D = planted_cloud(12, 60, 0, 3, stream(k, "radii only"), .3); p0.append(null("A0", D ** 2, statistics="evr2", R=59, seed=k).p); p4.append(null("A4", D, R=59, seed=k).p)
    assert rate(p0) > .4 and rate(p4) <= bounds(.05, 40)


def test_a_signal_on_every_image_is_found_by_the_permutation_of_images():
    p = []
    for k in range(15):
        x, y = answers(stream(k, "image signal, A2b"), signal=.18); p.append(null("A2b", x, y, "evr2", R=39, seed=k).p)
    assert rate(p) > .5


def test_axes_go_with_nothing_where_there_is_nothing():
    "Over all axes and properties together, since Holm's method is to keep that level."
    smallest = []
    for k in range(40):
        rng = stream(k, "no axis"); D = between(rng.normal(size=(12, 40))); smallest.append(min(r["p_holm"] for r in axis_correlations(D, dict(a=rng.normal(size=12), b=rng.random(12)), R=99, seed=k)))
    assert rate(smallest) <= bounds(.05, 40)
