"Hyperbolic and p-adic geometry against other libraries, eighty digits and every leaf; the notebooks show the identities."
import geoopt
import mpmath
import numpy as np
import pytest
import torch

from geonb.geometry.padic import goodman_kruskal, spearman_limit, tree_anchors, tree_embedding, tree_fidelity, valuation
from geonb.geometry.poincare import distance, distance0, distance_matrix, expmap0, geodesic, logmap0, mobius_add, mobius_scale, polar_distance, project

mp = mpmath.mp.clone(); mp.dps = 80


def points(n, seed, top=.99, c=1., d=6):
    g = torch.Generator().manual_seed(seed); u = torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)
    return u * torch.rand(n, 1, generator=g, dtype=torch.float64) * top / c ** .5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("c", [.25, 1., 3.])
def test_geoopt_agrees(seed, c):
    ball = geoopt.PoincareBall(c=c).double(); c = ball.c.item()   # which geoopt keeps as the softplus of a float32
    x, y = points(500, seed, c=c), points(500, seed + 50, c=c); v = 3 * points(500, seed + 99); t = torch.linspace(0, 1, 500, dtype=torch.float64)
    same = lambda ours, theirs, eps=1e-9: torch.testing.assert_close(ours, theirs, rtol=0, atol=eps)
    same(distance(x, y, c), ball.dist(x, y)); same(distance0(x, c), ball.dist0(x)); same(distance_matrix(x[:40], y, c), ball.dist(x[:40, None], y[None]))
    same(mobius_add(x, y, c), ball.mobius_add(x, y), 1e-11); same(mobius_scale(.7, x, c), ball.mobius_scalar_mul(torch.tensor(.7, dtype=torch.float64), x), 1e-11)
    inside = v.norm(dim=1) * c ** .5 < 5                      # further out geoopt's own projection, 1e-5 from the boundary, sets in
    same(expmap0(v, c)[inside], ball.expmap0(v)[inside], 1e-12); same(logmap0(x, c), ball.logmap0(x), 1e-12)
    same(geodesic(x, y, t, c), ball.geodesic(t[:, None], x, y), 1e-9)
    same(project(5 * x, c, eps=1e-5), ball.projx(5 * x), 1e-12)


def exactly(x, y, c):
    "Distance of two points given as lists of doubles, in 80 digits."
    x, y, c = [mp.mpf(a) for a in x], [mp.mpf(a) for a in y], mp.mpf(c)
    gap = lambda a: 1 - c * sum(t * t for t in a)
    return 2 / mp.sqrt(c) * mp.asinh(mp.sqrt(c * sum((a - b) ** 2 for a, b in zip(x, y)) / (gap(x) * gap(y))))


EXTREME = [([1e-15, 0, 0], [0, 1e-15, 0]), ([1e-100, 0, 0], [0, 0, 0]), ([.5, 0, 0], [.5 + 2**-53, 0, 0]), ([.3, -.4, .1], [.3, -.4, .1 + 1e-14]),
           ([1 - 1e-3, 0, 0], [1 - 1e-3, 1e-9, 0]), ([.6, .7999999, 0], [.6, -.7999999, 0]), ([1 - 1e-7, 0, 0], [-1 + 1e-7, 0, 0]), ([1 - 1e-7, 0, 0], [0, 0, 1e-15]), ([.57735, .57735, .57735], [.57735, .57735, .57734])]


@pytest.mark.parametrize("x, y", EXTREME)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 3e-9), (torch.float32, 2e-7)])
def test_eighty_digits_agree_at_extreme_points(x, y, dtype, rtol):
    x, y = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
    for a, b in ((x, y), (y, x), (x, 0 * x), (y, -y)):
        truth = exactly(a.tolist(), b.tolist(), 1)
        for ours in (distance(a, b), distance_matrix(a[None], b[None])[0, 0], *([distance0(a)] if not b.any() else [])):
            assert abs(ours.item() - truth) <= rtol * truth
    ours, length = logmap0(x).double(), mp.sqrt(sum(mp.mpf(t) ** 2 for t in x.tolist()))
    if not length: assert not ours.any(); return                                       # 1e-100 in float32
    for o, t in zip(ours.tolist(), x.tolist()): assert abs(o - mp.atanh(length) / length * t) <= rtol * abs(mp.atanh(length) / length * t)


@pytest.mark.parametrize("length", [1e-300, 1e-15, 1e-8, 9.9e-5, 1.01e-4, .5, 3., 9.])
def test_eighty_digits_agree_for_both_maps(length):
    v = torch.tensor([length, 0], dtype=torch.float64)
    assert abs(expmap0(v)[0].item() - mp.tanh(length)) <= 2e-15 * mp.tanh(length)
    if length < 1: assert abs(logmap0(v)[0].item() - mp.atanh(length)) <= 2e-15 * mp.atanh(length)


def test_polar_form_far_beyond_what_coordinates_can_hold():
    angles = torch.logspace(-12, 0, 7, dtype=torch.float64)
    for r1, r2 in ((.1, .1), (5., 5.), (40., 40.), (40., 39.), (150., 150.)):
        for a in [0, *angles.tolist()]:
            u, w = torch.tensor([1., 0], dtype=torch.float64), torch.tensor([float(mp.cos(a)), float(mp.sin(a))], dtype=torch.float64)
            truth = 2 * mp.asinh(mp.sqrt(mp.sinh((mp.mpf(r1) - r2) / 2) ** 2 + mp.sinh(r1) * mp.sinh(r2) * mp.sin(mp.mpf(a) / 2) ** 2))
            ours = polar_distance(torch.tensor(r1, dtype=torch.float64), u, torch.tensor(r2, dtype=torch.float64), w).item()
            assert abs(ours - truth) <= 1e-7 * truth                                # cos a is rounded: |u - w| of 1e-12 keeps its digits through the sine


def measured(anchors):
    z = torch.tensor(tree_embedding("S"))
    return tree_fidelity(lambda a: distance_matrix(z[a], z), anchors)


def test_the_tree_embedding_misplaces_no_branch_of_a_sample():
    found = measured(tree_anchors(np.random.default_rng(3), middle=60, shallow=60))
    assert found.pop("map_levels") == pytest.approx([1.] * 8, abs=1e-12) and list(found.values()) == pytest.approx([1.] * 4, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["S", "W"])
def test_the_tree_embedding_misplaces_no_branch_at_all(code):
    z = torch.tensor(tree_embedding(code)); found = tree_fidelity(lambda a: distance_matrix(z[a], z))   # every leaf an anchor
    assert found["sep"] == pytest.approx(1, abs=1e-12) and found["map_min"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("p", [2, 3, 7])
def test_valuation_of_every_number_up_to_the_largest_that_fits(p):
    for n in (p ** k * m for k in range(60) for m in (1, p - 1, p + 1) if p ** k * m < 2 ** 63):
        k = 0
        while n % p ** (k + 1) == 0: k += 1
        assert valuation(n, p) == valuation(-n, p) == k


@pytest.mark.parametrize("seed", range(10))
def test_the_spearman_limit_is_scipys_for_any_levels_and_ties(seed):
    from scipy.stats import spearmanr
    rng = np.random.default_rng(seed); counts = rng.integers(1, 40, rng.integers(2, 7)); level = np.repeat(np.arange(len(counts)), counts)
    radius = -level + rng.random(len(level)) * .9; ties = []
    for k in range(len(counts)):
        tied = np.flatnonzero(level == k)[:rng.integers(0, counts[k] + 1)]
        if len(tied): radius[tied] = radius[tied[0]]; ties.append(len(tied))
    assert spearman_limit(counts, ties) == pytest.approx(spearmanr(level, radius).statistic, abs=1e-12) and goodman_kruskal(level, radius) == -1


@pytest.mark.parametrize("name, C", [("simplex:4", 3), ("simplex:4", 10), ("cube:3", 10), ("cross:5", 12)])
def test_the_default_map_of_a_family_is_that_of_its_constellation(name, C):
    from geonb.geometry.families import family
    from geonb.pentachora.constellation import BatchedPentachoronConstellation
    for seed in (0, 7): assert BatchedPentachoronConstellation(C, 12, geometry=name, seed=seed).vertex_codes.tolist() == family(name).default_map(C, seed=seed).tolist()
    assert BatchedPentachoronConstellation(C, 12, 3, geometry=name).vertex_codes.tolist() == family(name).default_map(C, 3).tolist()
