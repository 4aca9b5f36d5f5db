"Features of real rollouts: the same bits wherever they are computed, the symmetries they must have, and no column that says nothing."
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from geonb.operators.dynamics import Evolution, NeuralOperator, Noise, play, sample_stream
from geonb.operators.fields import ic_types
from geonb.operators.initial_features import INITIAL, column_names, initial_features
from geonb.operators.registry import PATHS, PER_TRAJECTORY, REGISTRY, extract
from geonb.operators.summary_features import SUMMARY, SUMMARY_AGGREGATED, operator_sensitivity, over_realisations, summary_features
from geonb.operators.temporal_features import TEMPORAL, temporal_features
from geonb.operators.theta import sobol_points, theta_space, thetas

SUMMARY_NAMES, TEMPORAL_NAMES = column_names(SUMMARY), column_names(TEMPORAL)
CONSTANT = {"initial": {"spatial_largest_cluster_frac", "morph_density"},
            "summary": {f"lag{n}_asymmetry_mean" for n in (1, 2, 3)} | {f"pred_error_{w}_lag{n}" for w in ("ratio", "diff") for n in (1, 2)},
            "temporal": {"low_freq_ratio", "mid_freq_ratio", "high_freq_ratio", "spectral_anisotropy", "corr_log_det"}}


def rollouts(n, grid, T, layers, kernels, root=7):
    u = sobol_points(n, root); t = thetas(u, theta_space(layers, (8, 16), kernels, grid))
    played = [play(root, i, t[i], str(ic), Evolution(T, 3)) for i, ic in enumerate(ic_types(u[:, 12]))]
    return dict(frames=torch.stack([p.frames for p in played]), inputs=torch.stack([p.field for p in played]), thetas=t, seeds=[p.weight_seed for p in played], u=u)


@pytest.fixture(scope="module")
def ci(): return rollouts(48, 16, 32, (2, 3), (3,))


def same(a, b): return torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))


def constants(rows, names, rel):
    rows = rows.flatten(0, -2); low, high = rows.amin(0), rows.amax(0)
    return {n for n, gap, size in zip(names, high - low, torch.maximum(high.abs(), low.abs())) if gap <= rel * size.clamp_min(rel)}


def test_rows_do_not_depend_on_batch_order_strides_or_threads(ci):
    x = ci["frames"][:32]; whole = extract(x, ci["inputs"][:32]); last = torch.get_num_threads()
    for path, rows in extract(x[:9].flip(0), ci["inputs"][:9].flip(0)).items(): assert same(rows.flip(0), whole[path][:9]), path
    scattered = torch.empty(32, *x.shape[2:], 3).movedim(-1, 1); scattered.copy_(x)                  # the same numbers, a stride apart, starting at odd addresses
    for path, rows in extract(scattered[5:8], ci["inputs"][5:8]).items(): assert same(rows, whole[path][5:8]), path
    for i in range(0, 32, 8):
        for path, rows in extract(x[i:i + 1], ci["inputs"][i:i + 1]).items(): assert same(rows, whole[path][i:i + 1]), (i, path)
    try:
        torch.set_num_threads(2)
        for path, rows in extract(x[:4], ci["inputs"][:4]).items(): assert same(rows, whole[path][:4]), path
    finally: torch.set_num_threads(last)


def test_another_process_computes_the_same_bits(ci, tmp_path):
    torch.save(ci["frames"][:2].clone(), tmp_path/"x.pt")
    code = "import sys, torch; from geonb.operators.registry import extract; torch.save(extract(torch.load(sys.argv[1])), sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path/"x.pt"), str(tmp_path/"y.pt")], check=True)
    for path, rows in torch.load(tmp_path/"y.pt").items(): assert same(rows, extract(ci["frames"][:2])[path]), path


def all_say_something(data, may=frozenset()):
    found = extract(data["frames"], data["inputs"])
    assert constants(found[PATHS["initial"]], column_names(INITIAL), 1e-6) == set()
    assert constants(found[PER_TRAJECTORY][..., :110], SUMMARY_NAMES[:110], 1e-6) == set()
    assert constants(found[PATHS["temporal"]], TEMPORAL_NAMES, 1e-6) == set()
    whole, names = found[PATHS["summary"]], column_names(SUMMARY_AGGREGATED)
    assert whole.isnan().sum() == 30 * len(whole) and not found[PATHS["initial"]].isnan().any() and not found[PATHS["temporal"]].isnan().any()
    keep = ~whole.isnan().any(0); assert keep.sum() == 330
    assert constants(whole[:, keep], [n for n, k in zip(names, keep) if k], 1e-6) == set()
    baseline = extract(data["frames"], data["inputs"], baseline=True)
    assert constants(baseline[PATHS["initial"]], column_names(INITIAL), 1e-5) == CONSTANT["initial"]
    assert constants(baseline[PER_TRAJECTORY][..., :110], SUMMARY_NAMES[:110], 1e-5) - may == CONSTANT["summary"]
    assert constants(baseline[PATHS["temporal"]], TEMPORAL_NAMES, 1e-5) == CONSTANT["temporal"]


def test_no_column_is_constant_but_the_published_ones(ci): all_say_something(ci, {"num_bursts"})   # the published burst hardly ever fits into 32 frames


@pytest.mark.slow
def test_no_column_is_constant_at_full_length(): all_say_something(rollouts(48, 32, 64, (2, 4), (3, 5)))


def test_no_nan_when_operators_are_asked(ci):
    asked = []
    for i in range(6):
        op = NeuralOperator(ci["thetas"][i], ci["seeds"][i]); draw = next(Noise(op, sample_stream(7, i, "noise"), 3))
        with torch.inference_mode(): asked.append(operator_sensitivity(lambda x: op(x, draw), ci["frames"][i, :, 0]))
    rows = summary_features(ci["frames"][:6], sensitivity=torch.stack(asked)); assert not over_realisations(rows).isnan().any()
    gain = rows[..., 113:117]; assert (gain - 1).abs().max() < .35                                   # instance normalisation hides the amplitude


def test_scale():
    "Features of a·u are those of u times a power of a."
    x = torch.randn(2, 2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64).cumsum(2); a = 8.                 # a power of two: no rounding
    one, two = temporal_features(x)[0], temporal_features(a * x)[0]
    degree = {n: 1 for n in TEMPORAL_NAMES[:24]} | dict.fromkeys(("variance", "laplacian_energy", *TEMPORAL_NAMES[24:39]), 2) | dict.fromkeys(("skewness", "kurtosis", "gradient_anisotropy"), 0)
    for i, n in enumerate(TEMPORAL_NAMES): torch.testing.assert_close(two[:, i], one[:, i] * a ** degree.get(n, 0), rtol=2e-6, atol=1e-6, msg=n)
    one, two = (dict(zip(SUMMARY_NAMES, summary_features(k * x)[0, 0].tolist())) for k in (1., a))
    degree = dict(energy_growth_accel=2, oscillation_amplitude=2, trajectory_smoothness=1, detrended_variance=2, time_irreversibility=3, time_asymmetry_index=1, **{n: 1 for n in SUMMARY_NAMES[18:36]})
    for n in SUMMARY_NAMES[50:110]:
        norm, metric = n.split("_")[0], n.split("_", 1)[1]; power = 0 if norm == "entropy" else 1
        degree[n] = {"mean": power, "drift": 2 * power}.get(metric.split("_")[0], 0)
    for n in SUMMARY_NAMES[:110]:
        if n != "lyapunov_approx": assert math.isclose(two[n], one[n] * a ** degree.get(n, 0), rel_tol=3e-6, abs_tol=1e-6), n
    assert math.isclose(two["lyapunov_approx"], one["lyapunov_approx"] + math.log(a), rel_tol=1e-5)
    one, two = initial_features(x[:, 0, 0])[0], initial_features(a * x[:, 0, 0])[0]; degree = {8: 4, 12: 1}
    for i in range(14): torch.testing.assert_close(two[i], one[i] * a ** degree.get(i, 0), rtol=2e-6, atol=1e-6, msg=str(i))


def test_space():
    "A transposed frame exchanges x and y; a frame shifted around the edge is the same frame; channels have no order."
    x = torch.randn(1, 2, 9, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64).cumsum(-1)
    x = x - x.mean((-2, -1), keepdim=True) + .5; one = dict(zip(TEMPORAL_NAMES, temporal_features(x)[0].T)); two = dict(zip(TEMPORAL_NAMES, temporal_features(x.mT)[0].T))
    for n in TEMPORAL_NAMES:
        if "anisotropy" in n: continue
        other = n.replace("_x", "_?").replace("_y", "_x").replace("_?", "_y") if n.endswith(("_x", "_y")) or "gradient_x" in n or "gradient_y" in n else n
        torch.testing.assert_close(two[n], one[other], rtol=1e-5, atol=1e-6, msg=n)
    single = temporal_features(x[:, :1, :, :1]), temporal_features(x[:, :1, :, :1].mT)               # anisotropies are quotients: inverse, one field at a time
    for n in ("gradient_anisotropy", "spectral_anisotropy"): i = TEMPORAL_NAMES.index(n); torch.testing.assert_close(single[1][..., i], 1 / single[0][..., i], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(temporal_features(x.roll((3, 5), (-2, -1))), temporal_features(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(temporal_features(x[:, :, :, [2, 0, 1]]), temporal_features(x), rtol=1e-5, atol=1e-6)
    order = [i for i, n in enumerate(SUMMARY_NAMES[:110]) if not (n.startswith("lag") and n.endswith("mean"))]           # a mean over i < j has an order
    torch.testing.assert_close(summary_features(x[:, :, :, [2, 0, 1]])[..., order], summary_features(x)[..., order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(initial_features(x[:, 0, 0, [2, 0, 1]]), initial_features(x[:, 0, 0]), rtol=1e-5, atol=1e-6)


def test_time():
    "What changes sign when a trajectory runs backwards, and what does not notice."
    x = torch.randn(1, 2, 24, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).cumsum(2)
    one, two = (dict(zip(SUMMARY_NAMES, summary_features(y)[0, 1].tolist())) for y in (x, x.flip(2)))
    odd = [n for n in SUMMARY_NAMES[:110] if n in ("energy_growth_rate", "variance_growth_rate", "time_irreversibility", "time_asymmetry_index") or n.startswith("lag") and n.endswith("mean") or "pred_error_diff" in n or "mean_drift" in n or "monotonicity" in n]
    even = [n for n in SUMMARY_NAMES[:110] if n in ("energy_growth_accel", "temporal_freq_dominant", "oscillation_amplitude", "autocorr_decay_time", "trajectory_smoothness", "regime_switches", "trend_strength", "detrended_variance", "num_zero_crossings", "lyapunov_approx")
            or n.startswith("w") or n.endswith("asymmetry_max") or "drift_variance" in n]
    for n in odd: assert math.isclose(two[n], -one[n], rel_tol=2e-5, abs_tol=1e-6) and one[n] != 0, n
    for n in even: assert math.isclose(two[n], one[n], rel_tol=2e-5, abs_tol=1e-6), n
    for lag in (1, 2): assert math.isclose(two[f"pred_error_ratio_lag{lag}"], 1 / one[f"pred_error_ratio_lag{lag}"], rel_tol=2e-2)         # a mean over nothing but itself: exact up to the ridge
    assert len(odd) + len(even) > 60


@pytest.mark.parametrize("value", [0., .1, -3e4, 1e-20])
@pytest.mark.parametrize("baseline", [False, True])
def test_constant_fields_have_features(value, baseline):
    x = torch.full((1, 2, 9, 3, 12, 10), value); found = extract(x, baseline=baseline)
    for path, rows in found.items(): assert torch.isfinite(rows[..., :110] if path != PATHS["summary"] else rows[..., :110]).all(), path


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e8])
def test_extreme_fields_have_finite_features(scale):
    x = scale * torch.randn(1, 2, 9, 3, 12, 10, generator=torch.Generator().manual_seed(6)); found = extract(x)
    for path, rows in found.items(): assert torch.isfinite(rows[..., :110]).all(), path


def test_grid_sizes_that_are_odd_or_small():
    for shape in ((4, 4), (5, 7), (9, 16)):
        x = torch.randn(2, 2, 9, 3, *shape, generator=torch.Generator().manual_seed(8))
        for path, rows in extract(x).items(): assert torch.isfinite(rows[..., :110]).all(), (path, shape)
