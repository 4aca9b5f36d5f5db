"Samples of neural operators are the same in any process, order and thread count; the layers, the noise and the map of theta hold for any input."
import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from geonb.core.errors import UsageError
from geonb.core.executor import get_executor
from geonb.operators.cost import PROFILES, calibrate, cost_terms, shards
from geonb.operators.dynamics import STREAMS, Evolution, NeuralOperator, Noise, one_thread, play, rollout, sample_stream
from geonb.operators.fields import IC_TYPES, ic_types, initial_field
from geonb.operators.theta import Theta, sobol_points, theta_space, thetas

ROOT = 7


def design(n, profile="ci"):
    "Theta and kind of initial field of the first n samples."
    points = sobol_points(n, ROOT)
    return thetas(points, PROFILES[profile].space()), ic_types(points[:, 12])


def digest(ids, timesteps=6, stream="noise"):
    "sha256 of each sample's frames; importable, so that a worker can be asked for it."
    rows, kinds = design(64)
    return {i: sha256(play(ROOT, i, rows[i], kinds[i], Evolution(timesteps, 3), stream).frames.numpy().tobytes()).hexdigest() for i in ids}


@pytest.mark.parametrize("size", [1, pytest.param(5, marks=pytest.mark.slow), 16])
def test_shards_in_processes_give_the_same_bits_as_one_loop(size):
    ids = list(range(16)); want = digest(ids)
    assert len(set(want.values())) == 16
    parts = [ids[i:i+size] for i in range(0, 16, size)][::-1]
    with get_executor("processes" if size == 5 else "serial", workers=2) as ex:
        got = {k: v for job in [ex.submit(digest, p) for p in parts] for k, v in job.result().items()}
    assert got == want


def test_a_fresh_process_with_other_threads_and_hash_seed_agrees(root):
    code = f"import sys, json; sys.path.insert(0, {str(root/'tests')!r}); import torch; torch.set_num_threads(2); from test_operators_dynamics import digest; print(json.dumps(digest([3, 11])))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}).stdout
    assert {int(k): v for k, v in json.loads(said.splitlines()[-1]).items()} == digest([3, 11])


def test_the_state_of_other_generators_changes_nothing():
    torch.manual_seed(0); np.random.seed(0); a = digest([2]); torch.rand(5); np.random.rand(5)
    assert a == digest([2])


def test_threads_are_given_back_even_after_an_error():
    before = torch.get_num_threads(); torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


def test_one_sample_depends_on_its_own_streams_only():
    rows, kinds = design(4); ev = Evolution(5, 2)
    base = play(ROOT, 1, rows[1], kinds[1], ev)
    assert not torch.equal(base.frames, play(ROOT, 2, rows[1], kinds[1], ev).frames)          # another sample, same theta
    assert not torch.equal(base.frames, play(ROOT + 1, 1, rows[1], kinds[1], ev).frames)      # another root
    twin = play(ROOT, 1, rows[1], kinds[1], ev, "twin_noise")
    assert torch.equal(twin.frames[:, 0], base.frames[:, 0]) and not torch.equal(twin.frames[:, 1], base.frames[:, 1])
    longer = play(ROOT, 1, rows[1], kinds[1], replace(ev, timesteps=40, dt=ev.step))
    assert torch.equal(longer.frames[:, :5], base.frames)                                     # the future does not change the past, over more than one block of noise
    with pytest.raises(UsageError, match="no stream 'weight'.*did you mean 'weights'"): sample_stream(0, 0, "weight")
    assert sorted(STREAMS.values()) == [0, 1, 2, 3]


def test_realisations_differ_by_noise_alone():
    rows, kinds = design(8); t = replace(rows[5], noise_scale=1e-30)
    f = play(ROOT, 5, t, kinds[5], Evolution(10, 3)).frames
    torch.testing.assert_close(f[0], f[1], rtol=0, atol=0); torch.testing.assert_close(f[0], f[2], rtol=0, atol=0)
    loud = play(ROOT, 5, replace(t, noise_scale=.5), kinds[5], Evolution(10, 3)).frames
    assert (loud[0, 1:] - loud[1, 1:]).abs().amax((1, 2, 3)).min() > .01


@pytest.mark.parametrize("policy", ["residual", "convex"])
def test_the_noise_enters_each_step_with_the_weight_of_the_operator(policy):
    t = Theta(base_channels=4, noise_scale=.1, grid_size=16, update_policy=policy); ev = Evolution(2, 400, dt=.04)
    f = play(0, 0, t, "structured", ev).frames[:, 1].double(); op = NeuralOperator(t, play(0, 0, t, "structured", ev).weight_seed)
    w = op.weight.flatten(1).double(); want = .01 * (w @ w.T) * {"residual": .04, "convex": .5}[policy] ** 2
    d = (f - f.mean(0)).transpose(0, 1).flatten(1); got = d @ d.T / (d.shape[1] * (1 - 1 / 400))
    torch.testing.assert_close(got, want, rtol=.03, atol=.01 * want.diagonal().min().item())


@pytest.mark.parametrize("grid", [15, 16])
@pytest.mark.parametrize("length", [0., .05, .2])
def test_filtered_noise_keeps_its_variance_on_even_and_odd_grids(grid, length):
    op = NeuralOperator(Theta(base_channels=4, noise_scale=1., spatial_correlation=length, grid_size=grid), 1); w = op.weight.flatten(1)
    source = Noise(op, np.random.default_rng(3), 200); z = torch.cat([next(source) for _ in range(16)])
    assert abs(source.energy(np.ones((grid, grid // 2 + 1))) - 1) < 1e-12                        # half of the modes stand for all of them
    torch.testing.assert_close(z.pow(2).mean((0, 2, 3)), (w @ w.T).diagonal(), rtol=.05, atol=0)


@pytest.mark.parametrize("dropout", [0., .5])
def test_dropout_takes_whole_channels_and_keeps_their_mean(dropout):
    t = Theta(base_channels=64, dropout_rate=dropout, grid_size=16); u = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(200, -1, -1, -1)
    calm, active = (NeuralOperator(t, 4, dropout_active=a).inlet for a in (False, True))
    x, y = calm(u), active(u, np.random.default_rng(0))
    gone = (y == 0).all(-1).all(-1); assert abs(gone.double().mean() - dropout) < .02
    assert torch.allclose(y[~gone], x[~gone] / (1 - dropout)) and len({tuple(r.tolist()) for r in gone}) == (200 if dropout else 1)


def test_a_rollout_that_overflows_says_so_and_stays():
    t = Theta(base_channels=8, noise_scale=1e38, grid_size=16, update_policy="autoregressive")
    first, again = (play(0, 0, t, "localized", Evolution(5, 2)) for _ in range(2))
    assert first.status == 1 and torch.equal(torch.isfinite(first.frames), torch.isfinite(again.frames)) and torch.isfinite(first.frames[:, 0]).all()


@pytest.mark.parametrize("name", IC_TYPES)
@pytest.mark.parametrize("grid", [16, 33, 64])
def test_every_initial_field_is_finite_varied_and_its_own(name, grid):
    rng = lambda: sample_stream(ROOT, 5, "ic")
    for b in (False, True):
        x = initial_field(name, rng(), grid, baseline=b)
        assert x.dtype == np.float32 and x.shape == (3, grid, grid) and np.isfinite(x).all() and (x.std((1, 2)) > 1e-3).all()
        assert (x == initial_field(name, rng(), grid, baseline=b)).all() and (x != initial_field(name, sample_stream(ROOT, 6, "ic"), grid, baseline=b)).any()
        assert not np.allclose(x[0], x[1])


def test_theta_refuses_what_lies_outside_the_cube():
    for bad in (-1e-9, 1 + 1e-9, np.nan):
        u = np.full((3, 12), .5); u[1, 4] = bad
        with pytest.raises(UsageError, match="unit cube"): thetas(u)


def test_every_corner_of_every_profile_builds_and_runs():
    for p in PROFILES.values():
        for u in (np.zeros((1, 12)), np.ones((1, 12))):
            t = replace(thetas(u, p.space())[0], grid_size=8, base_channels=4)
            assert play(0, 0, t, "structured", Evolution(2, 1)).frames.shape == (1, 2, 3, 8, 8)


def test_rollout_wants_the_grid_of_theta():
    with pytest.raises(UsageError, match="grid of 16, got a field of shape"): rollout(NeuralOperator(Theta(grid_size=16), 0), torch.zeros(3, 16, 8), np.random.default_rng(0), Evolution(3, 1))


@pytest.mark.parametrize("seed", range(5))
def test_shards_hold_every_sample_once_and_differ_by_less_than_one(seed):
    rng = np.random.default_rng(seed); cost = rng.lognormal(0, 1.5, 300); ids = rng.permutation(10_000)[:300]; value = dict(zip(ids.tolist(), cost))
    for target in (.1, 5., 40., 1e9):
        parts = shards(cost, target, ids); loads = [sum(value[i] for i in p) for p in parts]
        assert sorted(i for p in parts for i in p) == sorted(ids.tolist()) and all(p and p == sorted(p) for p in parts)
        assert max(loads) - min(loads) <= cost.max() + 1e-9 and np.all(np.diff(loads) < 1e-9)
        assert parts == shards(cost, target, ids)
        if target == 40.: assert np.ptp([v for v, p in zip(loads, parts) if len(p) > 1]) < .5     # dearest first evens out the rest: one sample of 300 costs 3 on average


def test_a_cost_model_stands_ten_per_cent_of_noise():
    p = PROFILES["cpu30"]; rng = np.random.default_rng(0); u = sobol_points(500, 3); columns = {d.name: d.values(u[:, i]) for i, d in enumerate(p.space()[:3])}
    true = cost_terms(p, columns) @ [.05, 5e-10, 1e-11]; some = rng.permutation(500)[:12]
    model = calibrate(p, {k: v[some] for k, v in columns.items()}, true[some] * rng.normal(1, .1, 12))
    assert abs(model.seconds(p, columns).sum() / true.sum() - 1) < .1 and min(model.fixed, model.per_activation, model.per_flop) >= 0 and .02 < model.error < .2


def test_the_space_of_a_profile_says_what_is_live():
    live = lambda *a, **k: {d.name for d in theta_space(*a, **k) if d.live}
    assert live(kernels=(3,)) == live() - {"kernel_size"} and live(baseline=True) == live() - {"spatial_correlation"} and live(dropout_active=True) == live() | {"dropout_rate"}


def test_a_sample_is_played_again_from_what_a_data_set_stores():
    points = sobol_points(1000, ROOT); stored = points[:, :12].astype("f4")
    space = PROFILES["ci"].space(); assert thetas(stored, space) == thetas(points, space)
    i = 17; first = play(ROOT, i, thetas(points, space)[i], ic_types(points[:, 12])[i], Evolution(4, 2)); again = play(ROOT, i, thetas(stored[i:i+1], space)[0], ic_types(sobol_points(i + 1, ROOT)[:, 12])[i], Evolution(4, 2))
    assert torch.equal(first.frames, again.frames)
