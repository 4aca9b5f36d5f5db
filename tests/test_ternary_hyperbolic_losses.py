"The hyperbolic losses as a training meets them: any batch, both precisions, gradients, and what following them leads to."
import numpy as np
import pytest
import torch

from geonb.core.seeds import stream, torch_stream
from geonb.ternary.hierarchy import hierarchy_of, richness_of
from geonb.ternary.hyperbolic_losses import (LEVEL_OF, Bands, RichHierarchyLoss, band_terms, global_rank, hierarchy_focused, level_moments, monotonic_radial, padic_geodesic,
                                             radial_collapse, radial_hierarchy, radial_stratification, target_radius, triplet_ranking, variance_term, zero_structure)

LIMITS = Bands().limits(torch.float64)
RADIAL = {
    "bands": lambda r, v, g: band_terms(r, v, LIMITS.to(r.dtype)), "variance": lambda r, v, g: variance_term(r, v, .0114),
    "rich": lambda r, v, g: RichHierarchyLoss(torch.linspace(.2, 0, 10, dtype=r.dtype))(r, v),
    "radial": lambda r, v, g: radial_hierarchy(r, v, generator=g), "stratification": lambda r, v, g: radial_stratification(r, v), "rank": lambda r, v, g: global_rank(r, v, generator=g),
    "monotonic": lambda r, v, g: monotonic_radial(r, v), "collapse": lambda r, v, g: sum(radial_collapse(r, v).values()), "focused": lambda r, v, g: sum(hierarchy_focused(r, v).values())}
PAIRS = {"geodesic": padic_geodesic, "triplets": triplet_ranking, "hyperbolic triplets": lambda z, i, **k: triplet_ranking(z, i, c=1., **k)}


def batch(seed, dtype):
    "Rows of anything from one level to all, with repeats, radii of any size."
    g = stream(seed, "batch"); n = int(g.integers(1, 60)); pool = np.flatnonzero(np.isin(LEVEL_OF.numpy(), g.choice(10, g.integers(1, 11), replace=False)))
    index = torch.as_tensor(g.choice(pool, n)); scale = 10.**g.integers(-8, 2)
    return index, LEVEL_OF[index], torch.as_tensor(g.random(n)*scale, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RADIAL)
def test_radial_terms_are_finite_on_any_batch(name, dtype):
    for seed in range(60):
        _, v, r = batch(seed, dtype); r.requires_grad_()
        loss = RADIAL[name](r, v, torch_stream(seed, "g"))
        grad, = torch.autograd.grad(loss, r)
        assert loss.shape == () and loss.dtype == dtype and loss.isfinite() and loss >= 0 and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_pair_terms_are_finite_on_any_batch(name, dtype):
    for seed in range(60):
        index, _, r = batch(seed, dtype); u = torch.randn(len(r), 16, generator=torch_stream(seed, "u"), dtype=torch.float64)
        z = (u/u.norm(dim=1, keepdim=True)*r.double().clamp_max(1).mul(.99)[:, None]).to(dtype).requires_grad_()
        loss = PAIRS[name](z, index, generator=torch_stream(seed, "g"))
        grad, = torch.autograd.grad(loss, z)
        assert loss.dtype == dtype and loss.isfinite() and loss >= 0 and grad.isfinite().all()


@pytest.mark.parametrize("name", RADIAL)
def test_gradients_agree_with_differences(name):
    g = stream(7, "gradient"); index = torch.as_tensor(np.concatenate([g.choice(3**9, 12), np.arange(0, 3**9, 729)])); v = LEVEL_OF[index]
    r = torch.as_tensor(.05 + g.random(len(v)), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: RADIAL[name](r, v, torch_stream(0, "g")), r, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", [*RADIAL, *PAIRS])
def test_randomness_is_that_of_the_generator(name):
    index = torch.as_tensor(stream(1, "rows").choice(3**9, 200)); v = LEVEL_OF[index]; z = torch.randn(200, 16, generator=torch_stream(1, "z"))*.1
    def loss(seed): g = torch_stream(seed, "g"); return float(RADIAL[name](z.norm(dim=1), v, g) if name in RADIAL else PAIRS[name](z, index, generator=g))
    before = torch.get_rng_state(); values = [loss(0), loss(0), loss(1)]
    assert torch.equal(before, torch.get_rng_state()) and values[0] == values[1]
    assert (values[0] != values[2]) == (name in {"radial", "rank", *PAIRS})


def test_the_order_of_the_rows_does_not_matter_to_terms_of_levels():
    index, k = torch.arange(0, 3**9, 7), torch.as_tensor(stream(0, "rows").permutation(len(range(0, 3**9, 7)))); v = LEVEL_OF[index]; r = torch.rand(len(v), generator=torch_stream(0, "r"), dtype=torch.float64)*5
    for name in ("bands", "variance", "rich", "stratification", "monotonic", "collapse", "focused"):
        assert float(RADIAL[name](r, v, None)) == pytest.approx(float(RADIAL[name](r[k], v[k], None)), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_radii_within_their_bands_are_at_the_limit_of_the_correlation(seed):
    g = stream(seed, "bands"); low, high = LIMITS.numpy()[LEVEL_OF].T; h = hierarchy_of(low + (high - low)*g.random(3**9), LEVEL_OF.numpy(), limits=LIMITS.numpy())
    assert h["rho"] == pytest.approx(h["rho_limit"], abs=1e-9) and h["gamma"] == -1 and h["violations"] == 0 and h["outside"] == 0 and h["min_gap"] >= .1 - 1e-9
    out = RADIAL["bands"](torch.as_tensor(low + (high - low)*g.random(3**9)), LEVEL_OF, None)
    assert float(out) < .2   # only the margin is paid for


def test_following_the_two_terms_leads_free_radii_into_bands_with_a_spread():
    "From one shell: the bands sort the levels, the variance term spreads them, and both hold at the end."
    r = (2 + .05*torch.randn(3**9, generator=torch_stream(0, "shell"), dtype=torch.float64)).requires_grad_(); opt = torch.optim.Adam([r], lr=.03)
    for i in range(500):
        for q in opt.param_groups: q["lr"] = .03*(1 - i/500)
        opt.zero_grad(); (2*band_terms(r, LEVEL_OF, LIMITS) + .3*variance_term(r, LEVEL_OF, Bands().floor)).backward(); opt.step()
    radii, v = r.detach().numpy(), LEVEL_OF.numpy(); h, s = hierarchy_of(radii, v, limits=LIMITS.numpy()), richness_of(radii, v)
    assert h["outside"] == 0 and h["violations"] == 0 and s["floor"] >= .9*Bands().floor and s["unweighted"] >= .009


def test_the_variance_term_cannot_be_bought_with_two_points():
    "The pair at level 8 far apart, every other level on its shell: the unweighted mean of variances is fooled, the term is not."
    v = LEVEL_OF; r = target_radius(v, .1, .9).double(); pair = (v == 8).nonzero()[:, 0]; r[pair] = torch.tensor([.64, .07], dtype=torch.float64)
    assert richness_of(r, v)["unweighted"] > .00787
    assert float(variance_term(r, v, .005)) == pytest.approx(8/9)


def test_zero_structure_and_hierarchy_cannot_both_be_met():
    x = (torch.arange(3**9)[:, None]//3**torch.arange(9) % 3 - 1).double(); r = target_radius(LEVEL_OF, .1, .85)
    assert float(radial_stratification(r, LEVEL_OF)) == 0 < float(zero_structure(r, x)["leading"])
    zeros = (x == 0).long().cumprod(1).sum(1); r = target_radius(zeros, .1, .85)
    assert float(zero_structure(r, x)["leading"]) == 0 < float(radial_stratification(r, LEVEL_OF))


def test_single_precision_is_enough_for_moments():
    "13,122 radii of level 0 in float32, summed one after the other."
    r = 4.68 + .1*torch.randn(3**9, generator=torch_stream(0, "r"), dtype=torch.float64)
    for a, b in zip(level_moments(r.float(), LEVEL_OF)[1:], level_moments(r, LEVEL_OF)[1:]): assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-7)
