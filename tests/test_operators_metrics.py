"Metrics and null models of the operators laboratory: calibration, reference implementations and time, beyond what their notebooks show."
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from geonb.operators.metrics import bits_report, grouped_r2, mean_distances, one_hot, probe_report, r2_report, rv_matrix, topo_report, twin_agreement, usage_report
from geonb.operators.nulls import in_turn, null_models, ridge, stack_groups
from geonb.stats.resampling import bootstrap_counts, pair_correlation, quantile_interval


def rows(N, D, seed=0, rank=10):
    "Correlated standardised rows."
    g = np.random.default_rng(seed); x = g.normal(size=(N, rank)) @ g.normal(size=(rank, D)) + g.normal(size=(N, D))
    return (x - x.mean(0)) / x.std(0)


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score
    x = 3 * rows(80, 7) + 5; xhat = x + np.random.default_rng(1).normal(size=x.shape); r = r2_report(x, xhat, draws=10)
    assert list(r["features"].values()) == pytest.approx(r2_score(x, xhat, multioutput="raw_values"), abs=1e-12)
    assert r["r2"] == pytest.approx(r2_score(x, xhat, multioutput="variance_weighted"), abs=1e-12)


def test_r2_interval_holds_the_true_value():
    "Of 120 test sets, about 95 in 100 intervals hold the value of a very large one."
    g = np.random.default_rng(2); w = g.normal(size=(6, 12))
    def measured(n): s = g.normal(size=(n, 6)) * np.exp(.4 * g.normal(size=(n, 1))); x = s @ w; return x, x + 1.5 * g.normal(size=x.shape)
    member = np.ones((1, 12), bool); truth = grouped_r2(*measured(200_000), member)[0]; held = 0
    for i in range(120):
        x, xhat = measured(140); low, high = quantile_interval(grouped_r2(x, xhat, member, bootstrap_counts(140, 300, g))[:, 0]); held += low <= truth <= high
    assert .87 <= held / 120 <= .99, held


def test_topographic_interval_holds_zero_for_shuffled_rows():
    held = []
    for s in range(40):
        g = np.random.default_rng(s); x = g.normal(size=(150, 8)); e = topo_report(x, [x], [x[g.permutation(150)]], seed=s, draws=100)["end_to_end"]
        held.append(e["low"] <= 0 <= e["high"]); assert abs(e["pearson"]) < .2
    assert sum(held) >= 34, sum(held)


def test_topographic_correlation_is_mean_over_books_of_the_upper_triangle():
    g = np.random.default_rng(3); x, z = rows(60, 9), g.normal(size=(2, 3, 60, 4)); q = np.round(z); i, j = np.triu_indices(60, 1)
    d = lambda a: np.sqrt(((a[i] - a[j]) ** 2).sum(-1)); over = lambda b: np.mean([d(c) for c in b.reshape(6, 60, 4)], 0); r = topo_report(x, z, q, draws=5)
    for name, a, b in (("pre", d(x), over(z)), ("post", over(z), over(q)), ("end_to_end", d(x), over(q))): assert r[name]["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    whole = topo_report(x, z.sum(1), q, draws=5, levels="residual"); assert whole["end_to_end"]["pearson"] == pytest.approx(np.corrcoef(d(x), np.mean([d(c) for c in q.sum(1)], 0))[0, 1], abs=1e-6)
    padded = np.concatenate([z, np.zeros_like(z)], -1); assert np.allclose(mean_distances(padded), mean_distances(z), atol=1e-6)   # ragged widths come padded with zeros


def test_distances_by_formula_would_not_see_equal_codes():
    "Equal rows are at distance 0 exactly, for narrow and for wide books, also far from the origin."
    for width in (8, 60):
        a = 1e3 + np.random.default_rng(4).normal(size=(4, width)).astype(np.float32); d = mean_distances([a[[0, 1, 2, 3] * 25]]); same = np.equal.outer([0, 1, 2, 3] * 25, [0, 1, 2, 3] * 25)
        assert d[same].max() <= 1e-3 and d[~same].min() > 1


def test_bootstrap_of_a_book_without_variation():
    x = rows(30, 4); r = topo_report(x, [x], [np.zeros((30, 2))], draws=20)
    assert r["end_to_end"] == r["post"] and r["post"]["pearson"] is None and json.loads(json.dumps(r, allow_nan=False)) == r


def test_entropies_are_those_of_scipy():
    from scipy.stats import entropy
    g = np.random.default_rng(5); sizes = np.array([[5, 3, 2], [7, 4, 9]]); t = (g.random((200, 2, 3)) ** 2 * sizes).astype(int); u, b = usage_report(t, sizes), bits_report(t, sizes)
    for c in range(2):
        for l in range(3): assert u["perplexity"][c][l] == pytest.approx(np.exp(entropy(np.bincount(t[:, c, l]))))
        joint = np.unique(t[:, c] @ [100, 10, 1], return_counts=True)[1]; assert b["categories"]["joint"][c] == pytest.approx(entropy(joint, base=2))
    assert u["strings"] == len({tuple(r) for r in t.reshape(200, -1)}) and b["joint"] <= b["marginal"] <= b["nominal"]


def test_joint_bits_corrected_lie_nearer_to_the_truth():
    "200 rows of 64 equally likely pairs of codes: 6 bits."
    found = [bits_report(np.random.default_rng(s).integers(8, size=(200, 2)), [[8, 8]]) for s in range(20)]
    plain, corrected = (np.mean([f[k] for f in found]) for k in ("joint", "joint_corrected")); assert plain < 5.85 and abs(corrected - 6) < .5 * abs(plain - 6)


def test_active_codes_have_a_tenth_of_an_even_share_and_joint_bits_millers_correction():
    t = np.repeat([0, 1, 2, 3, 0, 0], [50, 30, 12, 3, 4, 1])[:, None]; u = usage_report(t, [[5]])   # 55, 30, 12, 3 and 0 of 100; a tenth of an even share is 2
    assert (u["active"], u["utilisation"], usage_report(t, [[4]])["active"]) == ([[.8]], [[.8]], [[1.]]) and usage_report(np.r_[t, t * 0, t * 0], [[4]])["active"] == [[.75]]   # 3 of 300 are too few
    g = np.random.default_rng(10); a = g.integers(6, size=400); pair = np.stack([a, np.where(g.random(400) < .9, a, g.integers(6, size=400))], 1); b = bits_report(pair, [[6, 6]])
    assert b["joint_corrected"] == pytest.approx(b["joint"] + (len(np.unique(pair, axis=0)) - 1) / (800 * np.log(2))) and b["joint_corrected"] < b["marginal"]


def test_rv_chance_level_is_the_mean_over_pairings():
    g = np.random.default_rng(6); a, b = g.normal(size=(40, 3)) * [1, 5, 1], g.normal(size=(40, 7)); rv, chance = rv_matrix([a, b])
    paired = [rv_matrix([a, b[g.permutation(40)]])[0][0, 1] for _ in range(800)]; assert np.mean(paired) == pytest.approx(chance[0, 1], rel=.05)
    assert np.allclose(rv_matrix([a * 3 + 1, b])[0], rv)


def test_random_agreement_is_exact_over_all_pairs():
    g = np.random.default_rng(7); a, b = (g.integers(4, size=(25, 2)) for _ in range(2)); r = twin_agreement(a, b, [[4, 4]], draws=50)
    for l in range(2): assert r["random"][0][l] == pytest.approx(np.mean([a[i, l] == b[j, l] for i in range(25) for j in range(25) if i != j]))
    assert twin_agreement(np.arange(5)[:, None], np.arange(5)[:, None], [[5]])["ratio"][0][0] == 20   # nothing agrees at random: the least that could be seen, one pair of twenty


def test_probe_scores_rows_its_model_has_not_seen():
    "Labels of their own for all rows cannot be told, though a model remembers them."
    g = np.random.default_rng(8); t, y = g.integers(24, size=(300, 36)), g.integers(3, size=300); r = probe_report(t, dict(y=y), np.full((12, 3), 24), strength=100.)["y"]
    assert r["tokens"]["accuracy"] < .45 and r["chance"] == pytest.approx(np.bincount(y).max() / 300)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_of_another_operator_give_nothing(seed):
    "A decoder that was fitted to real tokens, given the tokens of other rows; and the predictor of the mean."
    x, groups, books = rows(700, 40, seed, rank=30), [list(range(i, i + 10)) for i in range(0, 40, 10)], np.full((4, 2), 8); train, test = x[:560], x[560:]
    codes = in_turn(stack_groups(train, groups), stack_groups(x, groups), books, np.random.default_rng(seed), 10)[1].permute(1, 0, 2).flatten(1).numpy()
    r = {m["name"]: m for m in null_models(train, test, groups, books, codes[560:], lambda t: ridge(one_hot(codes[:560], books), train, one_hot(t, books)), seed=seed, draws=100)}
    assert r["shuffled tokens"]["r2"] <= .02 < .4 < r["tokens"]["r2"] and abs(r["mean"]["r2"]) <= .02 and r["shuffled tokens"]["lead_low"] > .4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_predictor_has_neither_r2_nor_quality(seed):
    "On 3,000 test rows. On 140 the quality of the mean still strays by some 0.04 with the spread of those rows, which R2 divides out."
    raw = rows(6000, 60, seed, rank=40) * 5 + 100; mean, std = raw[:3000].mean(0), raw[:3000].std(0); x = (raw[3000:] - mean) / std
    r = r2_report(x, 0 * x, draws=50); assert abs(r["r2"]) <= .02 and abs(r["mse"] - 1) <= .02 and 0 <= r["quality"] <= .02
    few = [r2_report(x[i:i + 140], 0 * x[i:i + 140], draws=2) for i in range(0, 2800, 140)]; assert np.std([1 - f["mse"] for f in few]) > 3 * np.std([f["r2"] for f in few])


def test_null_models_read_no_test_row_before_scoring():
    "Each row is rounded alone: the same row among others gets the same reconstruction, and fitting sees training rows only."
    from geonb.operators.nulls import null_reconstructions
    x = rows(200, 12); groups, books = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]], [[4, 3], [5, 2]]; theta = np.random.default_rng(0).random((200, 12))
    whole = {n: y for n, y, *_ in null_reconstructions(x[:150], x[150:], groups, books, (theta[:150], theta[150:]))}
    alone = {n: y for n, y, *_ in null_reconstructions(x[:150], x[160:163], groups, books, (theta[:150], theta[160:163]))}
    assert whole.keys() == alone.keys() and len(whole) == 9
    for name in whole: assert np.allclose(whole[name][10:13], alone[name], atol=1e-5), name


def seeded_reports():
    x = np.random.default_rng(0).normal(size=(50, 6)); t = (np.abs(x) * 3 % 4).astype(int)
    return [r2_report(x, x * .5, draws=50, seed=4), topo_report(x, [x], [np.round(x)], draws=20, samples=40, seed=4), twin_agreement(t, np.roll(t, 1, 1), [[4] * 6], seed=4, draws=20), null_models(x[:40], x[40:], [[0, 1, 2], [3, 4, 5]], [[4, 2]] * 2, seed=4, draws=20)]


def test_reports_are_those_of_a_new_process():
    "Seeded draws, no state of the process."
    code = f"import sys, json; sys.path.insert(0, {str(ROOT/'tests')!r}); from test_operators_metrics import seeded_reports; print(json.dumps(seeded_reports()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout; here = seeded_reports()
    assert json.loads(out) == here == seeded_reports()


def test_everything_at_the_size_of_a_run_is_quick(one_thread):
    "1,400 rows, 300 features, 12 x 3 books of 24 codes: CPU seconds of each report. The limits leave room for a slow machine."
    g = np.random.default_rng(9); x, t, books = rows(1400, 300, rank=40), g.integers(24, size=(1400, 36)), np.full((12, 3), 24); z = g.normal(size=(12, 3, 1260, 8)).astype(np.float32); spent = {}
    def timed(name, f): start = time.process_time(); f(); spent[name] = time.process_time() - start
    timed("r2", lambda: r2_report(x[:140], .7 * x[:140], ["a"] * 300, [i // 25 for i in range(300)]))
    timed("usage and bits", lambda: (usage_report(t, books), bits_report(t, books)))
    timed("topo", lambda: topo_report(x[:1260], z, np.round(z), samples=1000)); timed("rv", lambda: rv_matrix(z))
    timed("twins", lambda: twin_agreement(t[:140], t[140:280], books)); timed("probes", lambda: probe_report(t, {k: g.integers(4, size=1400) for k in "abcd"}, books, features=x))
    timed("nulls", lambda: null_models(x[:1120], x[1260:], [list(range(i, i + 25)) for i in range(0, 300, 25)], books, theta=(g.random((1120, 12)), g.random((140, 12)))))
    print({k: f"{1e3 * v:.0f} ms" for k, v in spent.items()})
    limits = {"r2": 1, "usage and bits": .5, "topo": 5, "rv": .5, "twins": .5, "probes": 20, "nulls": 8}
    assert all(spent[k] < limits[k] for k in limits), spent
