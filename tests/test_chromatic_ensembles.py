"What a cell cannot show of the ensembles: identities for any shape, that nothing is chosen on the test set, that intervals cover and tests keep their level."
import json
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import kstest
from geonb.chromatic.diversity import brier_gain, nll_gain, relations, relative_disagreement
from geonb.chromatic.distances import distance_matrix
from geonb.chromatic.ensembles import COMBINATIONS, FIGURES, comparison, curves, farthest_first, four_ways, greedy, member_order, members, mixtures, random_subsets, subset_figures
from geonb.stats.temperature import fit_temperatures, log_softmax
from geonb.core.errors import CheckFailed, UsageError
from geonb.core.seeds import stream

TWIN = pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)], ids=["reduced", "whole"])   # `size` times 50 replicates


def networks(seed, S=5, N=200, C=4, skill=1.2, scale=2., index=0):
    "Logits of S networks that share a part, and labels."
    rng = stream(seed, "networks", index); y = rng.integers(C, size=N); y[:C] = range(C)
    return scale * (skill * np.eye(C)[y] + .5 * rng.normal(size=(N, C)) + rng.normal(size=(S, N, C))), y


def made(seed=0, combine="probabilities", calibrated=False, **kw):
    z, y = networks(seed, **kw); h = len(y) // 2
    return members(z[:, h:], y[h:], z[:, :h], y[:h], combine, calibrated)


# --- identities

@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("S,N,C,scale", [(1, 40, 3, 1.), (2, 40, 2, 1.), (3, 60, 10, 4.), (7, 400, 5, .01), (12, 100, 4, 20.)])
def test_gains_are_accounted_for(S, N, C, scale, combine):
    m = made(3, combine, S=S, N=N, C=C, scale=scale); n = nll_gain(m)
    assert abs(n.residual) < 1e-12 * max(1, n.member) and n.gain >= -1e-12
    b = brier_gain(m); assert abs(b.residual) < 1e-12 and b.gain >= -1e-12
    if S > 1: d = distance_matrix(m.test, "prob_mse_T1"); assert abs(b.gain - C * (S - 1) / (2 * S) * d[np.triu_indices(S, 1)].mean()) < 1e-12
    if S > 1 and scale >= 1: assert b.gain > 1e-3 and n.gain > 1e-3
    if S == 1: assert abs(b.gain) + abs(n.gain) < 1e-12


def test_members_that_are_copies_gain_nothing_in_any_figure():
    z, y = networks(1, S=1); z = np.repeat(z, 4, 0); m = members(z, y, z, y)
    alone, together = subset_figures(m, [[0]]), subset_figures(m, [[0, 1, 2, 3]])
    for k in FIGURES: assert abs(alone[k] - together[k]) < 1e-12
    assert all(abs(r[k]) < 1e-12 for r in comparison(m, R=20) for k in ("difference", "low", "high"))
    assert (relative_disagreement(m) == 0).all()


# --- mixtures

def test_mixtures_hold_for_very_sure_networks():
    z, _ = networks(2, scale=200.); L = log_softmax(z); at = [[0, 1, 2], [4, 3, 1]]
    assert L.min() < -1000
    q = mixtures(L, at); exact = np.stack([logsumexp(L[a], axis=0) - np.log(3) for a in at]); floor = L.max(0) - 700
    assert np.isfinite(q).all() and abs(np.where(exact > floor, q - exact, 0)).max() < 1e-10
    assert (exact > floor).mean() > .8


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_constant_for_each_example_changes_no_figure(combine):
    z, y = networks(4); shift = 3 * stream(0, "gauge").normal(size=(5, 200, 1)); at = random_subsets(5, 3)[0]
    a, b = (subset_figures(members(x, y, x, y, combine), at) for x in (z, z + shift))
    for k in a: assert abs(a[k] - b[k]).max() < 1e-8


def test_many_subsets_at_once_are_each_by_itself():
    z, y = networks(5, S=6, N=24_000, C=10); m = members(z, y, z[:, :2000], y[:2000]); at = random_subsets(6, 3)[0]   # 17 at a time
    whole = subset_figures(m, at)
    for i in (0, 16, 17, 19):
        one = subset_figures(m, at[i])
        for k in whole: assert abs(whole[k][i] - one[k][0]) < 1e-12


def test_scaled_members_meet_after_calibration():
    z, y = networks(6); loud = z * np.array([.3, 1, 4, 6, 2])[:, None, None]
    a, b = (four_ways(x, y, x, y) for x in (z, loud))
    for i in (2, 3):
        for k in FIGURES: assert abs(a[i][k] - b[i][k]) < 1e-6
    assert abs(a[0]["nll"] - b[0]["nll"]) > .01


def test_a_failed_temperature_stops_calibrated_members_only():
    z, y = networks(7); z[2] = 5 * np.eye(4)[(y + 1) % 4]   # sure and always wrong: no temperature is high enough
    assert members(z, y, z, y).temperatures.clamped[2]
    with pytest.raises(CheckFailed, match="1 of 5 temperatures ended at a limit"): members(z, y, z, y, calibrated=True)


# --- choices

def test_nothing_is_chosen_on_the_test_set():
    z, y = networks(8, S=6); h = 100; D2 = distance_matrix(z[:, :h], "prob_mse_T1"); rng = stream(0, "other test")
    one = members(z[:, h:], y[h:], z[:, :h], y[:h]); other = members(rng.normal(size=(6, 70, 4)), rng.integers(4, size=70), z[:, :h], y[:h])
    a, b = curves(one, D2), curves(other, D2)
    assert [r["members"] for r in a] == [r["members"] for r in b] and [r["mean"] for r in a] != [r["mean"] for r in b]
    assert (one.temperatures.value == other.temperatures.value).all() and (subset_figures(one, [[0, 1]])["temperature"] == subset_figures(other, [[0, 1]])["temperature"]).all()


def test_farthest_first_is_that_of_a_slow_loop():
    for k in range(20):
        x = stream(k, "points").integers(0, 4, size=(9, 2)); D = [[int(((a - b) ** 2).sum()) for b in x] for a in x]   # whole numbers: many ties
        order = [max(range(9), key=lambda s: (sum(D[s]), -s))]
        while len(order) < 9: order.append(max((s for s in range(9) if s not in order), key=lambda s: (min(D[s][t] for t in order), -s)))
        assert farthest_first(D) == order


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_greedy_is_that_of_a_slow_loop(combine):
    m = made(9, combine, S=6, N=120); y = m.calib_labels
    def loss(at):
        q = np.log(np.exp(m.calib[at]).mean(0)) if combine == "probabilities" else log_softmax(m.calib[at].mean(0))
        return -q[np.arange(len(y)), y].mean()
    order = []
    while len(order) < 6: order.append(min((s for s in range(6) if s not in order), key=lambda s: loss(order + [s])))
    assert greedy(m) == order and order[0] == member_order(m)[0]
    assert loss(greedy(m, 2)) <= min(loss([order[0], s]) for s in range(6) if s != order[0])


def test_subsets_are_all_or_a_fair_sample():
    whole, exact = random_subsets(10, 4, limit=210); assert exact and [tuple(s) for s in whole] == list(combinations(range(10), 4))
    some, exact = random_subsets(10, 4, limit=209, draws=4000); assert not exact and len(some) == 4000
    assert all(len(set(s)) == 4 for s in some.tolist())
    assert abs(np.bincount(some.ravel(), minlength=10) / 4000 - .4).max() < 5 * np.sqrt(.24 / 4000)
    assert (some == random_subsets(10, 4, limit=1, draws=4000)[0]).all() and (some != random_subsets(10, 4, limit=1, draws=4000, seed=1)[0]).any()


def test_curves_by_all_subsets_and_by_a_sample_agree():
    m = made(10, S=7, N=160); a, b = (curves(m, sizes=[3], limit=n, draws=600)[0] for n in (35, 34))
    assert a["exact"] and not b["exact"] and (a["subsets"], b["subsets"]) == (35, 600)
    for k in FIGURES: assert abs(a["mean"][k] - b["mean"][k]) < 5 * a["sd"][k] / np.sqrt(600)


def test_reports_are_json():
    m = made(11, S=5); D2 = distance_matrix(m.test, "prob_mse_T1")
    rows = [*curves(m, D2), *comparison(m, R=10), *(r.record() for r in relations(m, D2, R=9).values()), brier_gain(m).record()]
    assert json.loads(json.dumps(rows, allow_nan=False)) == json.loads(json.dumps(rows))


@pytest.mark.parametrize("ask", [lambda m: curves(m, sizes=[6]), lambda m: greedy(m, 6), lambda m: farthest_first(1 - np.eye(5), 6), lambda m: relations(m, 1 - np.eye(5), k=6),
    lambda m: random_subsets(5, 6), lambda m: mixtures(m.test, [range(6)]), lambda m: subset_figures(m, [[0] * 6])], ids=["curves", "greedy", "farthest", "relations", "subsets", "mixtures", "figures"])
def test_more_members_than_there_are_is_an_error(ask):
    with pytest.raises(UsageError, match="an ensemble of 6 members cannot be formed from 5"): ask(made())


# --- intervals and tests

@TWIN
def test_the_paired_interval_covers(size):
    n, hit = 50 * size, {"accuracy": 0, "nll": 0, "brier": 0}
    z, y = networks(12, S=3, N=200_000, C=3); m = members(z, y, z[:, :500], y[:500]); f, one = subset_figures(m, [range(3)]), subset_figures(m, np.arange(3)[:, None])
    truth = {k: f[k][0] - one[k].mean() for k in hit}   # nearly: its error is 1/26 of that of 300 examples
    for k in range(n):
        z, y = networks(12, S=3, N=300, C=3, index=1 + k); c = {r["figure"]: r for r in comparison(members(z, y, z, y), R=200, seed=k) if r["against"] == "mean member"}
        for g in hit: hit[g] += c[g]["low"] <= truth[g] <= c[g]["high"]
    for g in hit: assert n * .95 - 3.5 * np.sqrt(n * .0475) <= hit[g]
    if size == 4: assert all(.91 <= h / n <= .99 for h in hit.values())


@TWIN
def test_relations_keep_their_level(size):
    m = made(13, S=7, N=160); p = {"gain": [], "quality": []}
    for k in range(50 * size):
        x = stream(k, "unrelated").normal(size=(7, 3)); found = relations(m, ((x[:, None] - x) ** 2).sum(-1), R=99, seed=k, k=2 + k % 2)
        for g in p: p[g].append(found[g].p)
    for g in p: assert min(p[g]) > 0 and kstest(p[g], "uniform").pvalue > .01


def test_the_null_of_a_relation_is_that_of_all_orders():
    m = made(15, S=4, N=120); x = stream(0, "points").normal(size=(4, 2)); D = ((x[:, None] - x) ** 2).sum(-1); found = relations(m, D, "nll", R=400)
    one, at = -subset_figures(m, np.arange(4)[:, None])["nll"], np.array(list(combinations(range(4), 2))); two = -subset_figures(m, at)["nll"]
    for name, y, of in (("gain", two - one[at].mean(1), lambda p: D[p[at[:, 0]], p[at[:, 1]]]), ("quality", two, lambda p: D[p[at[:, 0]], p[at[:, 1]]]), ("member", two, lambda p: one[p[at]].mean(1))):
        every = [np.corrcoef(of(np.array(p)), y)[0, 1] for p in permutations(range(4))]   # 24 orders, and each should turn up among 400
        far = abs(found[name].null[:, None] - every); assert far.min(1).max() < 1e-9 and far.min(0).max() < 1e-9
        assert abs(found[name].r - every[0]) < 1e-9


def test_relations_do_not_depend_on_the_names_of_the_members():
    z, y = networks(14, S=6); order = np.array([3, 0, 5, 1, 4, 2]); a, b = (relations(members(x, y, x, y), distance_matrix(x, "zero_one"), k=3, R=19) for x in (z, z[order]))
    for g in a: assert abs(a[g].r - b[g].r) < 1e-10
