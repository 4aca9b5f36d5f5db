"Matching, straight lines, shifts, trajectories and crossed designs of the chromatic laboratory against brute force and other libraries, beyond what their notebooks show."
import copy
import hashlib
import json
from itertools import permutations, product

import numpy as np
import pytest
import torch
from geonb.chromatic.components import component_shares, component_study, crossed_answers, crossed_members, factor_tests, raw_shares, trained_answers
from geonb.chromatic.connectivity import Barrier, barrier, barrier_table, barriers, between, feature_cka, heights, penultimate, reestimated
from geonb.chromatic.inference import variance_components
from geonb.chromatic.matching import aligned, channel_groups, correlations, match, matched_by_weights, permuted, random_orders
from geonb.chromatic.member_task import PopulationData, Recipe, keep_data
from geonb.chromatic.networks import make_net
from geonb.chromatic.shifts import SHIFTS, STRANGE, blurred, image_logits, shift_study, shifted, strange, unsure
from geonb.chromatic.trajectories import cross_distances, separation, trajectory_map
from geonb.core.errors import UsageError
from geonb.data.images import load_images
from geonb.stats.resampling import bootstrap_counts
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from sklearn.decomposition import PCA
from torch import nn

ARCHS = ["small2", "small5", "tiny3", "digits4"]


def lively(arch, seed, channels=3):
    "A network whose normalisations have met images and whose scales differ."
    net = make_net(arch, channels, 10, seed=seed).double(); g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1: p.add_(.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        net.train()(torch.randn(16, channels, 12, 12, generator=g, dtype=torch.float64))
    return net.eval()


def pictures(n=20, channels=3, side=12, seed=0): return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def state(net): return {k: v.clone() for k, v in net.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


# --- matching

@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("by", ["activations", "weights"])
def test_an_aligned_network_is_the_same_function(arch, by):
    a, b, x = lively(arch, 1), lively(arch, 2), pictures()
    old = b(x).detach(); new = aligned(a, b, x, by)
    assert float((new(x) - old).detach().abs().max()) < 1e-6 * float(old.abs().max()) and not same(new.state_dict(), b.state_dict())
    single, back = copy.deepcopy(b).float(), aligned(copy.deepcopy(a).float(), copy.deepcopy(b).float(), x.float(), by)
    assert float((back(x.float()) - single(x.float())).detach().abs().max()) < 1e-5 * float(old.abs().max())


def test_the_parts_of_a_sum_cannot_be_permuted_apart():
    net, x = lively("small3", 3), pictures(); g = next(g for g in channel_groups(net) if g.name == "body.4.main.3"); order = np.roll(np.arange(g.size), 1); y = net(x).detach()
    assert torch.allclose(permuted(net, {g.name: order})(x), y, atol=1e-10)
    for left in ("body.4.shortcut.0", "body.5.main.3", "head"):
        broken = permuted(net, {g.name: order}); s, old = broken.state_dict(), net.state_dict()
        for key, _, _ in g.places:
            if key.startswith(left + "."): s[key] = old[key]
        broken.load_state_dict(s); assert float((broken(x) - y).detach().abs().max()) > 1e-3, left


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_permutation_is_found(arch, seed):
    net = lively(arch, 4); turn = random_orders(net, seed); away = permuted(net, turn)
    assert all(np.array_equal(turn[k][p], np.arange(len(p))) for k, p in match(net, away, by="weights", seed=seed).items())
    c = correlations(net, away, pictures(40)); best = match(net, away, pictures(40))
    for k, p in best.items(): rank = np.arange(len(p)); assert c[k][rank, p].sum() >= c[k][rank, np.argsort(turn[k])].sum() - 1e-9
    assert np.mean([np.mean(turn[k][p] == np.arange(len(p))) for k, p in best.items()]) > .5   # but for channels that are off, which are all alike


def test_both_matchings_are_the_best_of_all_orders():
    a, b = (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(2)); x = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)); g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in (*a.parameters(), *b.parameters()): p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    ha, hb = (n[1](n[0](x)).detach().numpy() for n in (a, b)); c = np.corrcoef(ha.T, hb.T)[:5, 5:]; rank = np.arange(5)
    assert np.allclose(correlations(a, b, x, batch=7)["0"], c, atol=1e-9)
    assert tuple(match(a, b, x)["0"]) == max(permutations(range(5)), key=lambda p: c[rank, p].sum())
    inner = lambda p: sum(float((u * v).sum().detach()) for u, v in zip(a.parameters(), permuted(b, {"0": list(p)}).parameters()))
    with torch.no_grad(): assert tuple(matched_by_weights(a, b)["0"]) == max(permutations(range(5)), key=inner)


def test_weight_matching_never_loses():
    for seed in range(4):
        a, b = lively("small2", seed), lively("small2", seed + 10); new = permuted(b, matched_by_weights(a, b, seed))
        with torch.no_grad(): before, after = (sum(float((p * q).sum().detach()) for p, q in zip(a.parameters(), n.parameters())) for n in (b, new))
        assert after >= before


def test_a_layer_used_twice_has_one_order():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        def forward(self, x): h = torch.relu(self.a(x)); return self.c(self.b(torch.relu(self.b(h))).mean((2, 3)))
    net = Twice().double().eval(); groups = channel_groups(net); assert [g.size for g in groups] == [4]
    assert torch.allclose(permuted(net, {groups[0].name: [3, 1, 0, 2]})(pictures()), net(pictures()), atol=1e-12)


def test_grouped_convolutions_are_refused():
    with pytest.raises(UsageError, match="nothing is known about the channels after Conv2d"): channel_groups(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)))


# --- straight lines

def test_a_barrier_leaves_everything_as_it_was():
    a, b, x = lively("digits4", 1, 1), lively("digits4", 2, 1), pictures(30, 1); y = torch.arange(30) % 10; a.train(); before = state(a), state(b), torch.get_rng_state()
    barrier(a, b, x, y, 5, x, "activations"); feature_cka([a, b], x)
    assert same(before[0], a.state_dict()) and same(before[1], b.state_dict()) and torch.equal(before[2], torch.get_rng_state()) and a.training and not b.training


def test_the_line_is_the_same_from_both_ends():
    a, b, x = lively("tiny2", 1), lively("tiny2", 2), pictures(30); y = torch.arange(30) % 10
    there, back = barrier(a, b, x, y, 5, x), barrier(b, a, x, y, 5, x); assert np.allclose(there.losses, back.losses[::-1], atol=1e-6) and abs(there.height() - back.height()) < 1e-6


def test_statistics_are_those_of_the_training_mode():
    net, x = between(lively("digits3", 1), lively("digits3", 2), .5), pictures(24); trained = copy.deepcopy(net).train()
    with torch.no_grad(): z = trained(x); now = reestimated(net, x, batch=24)(x)
    assert torch.allclose(now, z, atol=.1) and not torch.allclose(now, z, atol=1e-6)      # but for the unbiased variance, which inference uses
    big = pictures(4000, side=4); net = between(net, net, 0)
    with torch.no_grad(): assert torch.allclose(reestimated(net, big, batch=4000)(big[:9]), copy.deepcopy(net).train()(big)[:9], atol=1e-3)


def test_interval_of_a_barrier_is_that_of_images_drawn_again():
    g = np.random.default_rng(0); P, N = 5, 40; alpha = np.linspace(0, 1, P); b = Barrier(alpha, g.random((P, N)) + 2 * (alpha * (1 - alpha))[:, None], (g.random((P, N)) < .3).astype(float), "none", True)
    from geonb.core.seeds import stream
    rng = stream(3, "barrier bootstrap"); slow = [heights(np.repeat(b.losses, w.astype(int), axis=1).mean(1), alpha).max() for w in bootstrap_counts(N, 100, rng)]
    assert np.allclose(b.interval("loss", 100, 3), np.quantile(slow, [.025, .975])); low, high = b.interval("loss", 400); assert low < b.height() < high
    straight = Barrier(alpha, np.outer(1 - alpha, np.ones(N)) * 3, np.zeros((P, N)), "none", True); assert straight.height() < 1e-12 and straight.interval()[1] < 1e-12


def test_barriers_are_told_in_json():
    nets, x = [lively("digits3", s, 1).float() for s in range(3)], pictures(20, 1).float(); y = torch.arange(20) % 10; found = barriers(nets, x, y, x, ("none", "weights"), points=3); rows = barrier_table(found, [13, 14, 15], R=50)
    assert len(rows) == 6 and {(r["a"], r["b"]) for r in rows} == {(13, 14), (13, 15), (14, 15)}
    for r in json.loads(json.dumps(rows, allow_nan=False)): assert r["images"] == 20 and r["error"]["low"] <= r["error"]["high"] and r["error"]["barrier"] >= 0
    assert penultimate(nets, x).shape == (3, 20, 6)


# --- shifts

@pytest.mark.parametrize("sigma, truncate", [(.5, 4), (1., 3), (1.5, 3.2), (4., 3)])
def test_blur_is_a_gaussian_filter(sigma, truncate):
    x = np.random.default_rng(0).normal(size=(3, 9, 7, 2)).astype(np.float32)
    assert np.allclose(blurred(x, sigma), gaussian_filter(x, (0, sigma, sigma, 0), mode="reflect", truncate=truncate), atol=1e-5)


def test_pictures_are_the_same_everywhere():
    x = (np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3) * 37 % 256).astype(np.uint8); sha = lambda v: hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()[:12]
    assert {k: sha(v) for k, v in dict(noise=shifted(x, "noise", 2, 5), contrast=shifted(x, "contrast", 2), uniform=strange(x, "uniform", 5), shuffled=strange(x, "shuffled", 5)).items()} == PINNED


PINNED = dict(noise="7fea424a9d6a", contrast="665f46158210", uniform="b362943ac8ee", shuffled="8975d443cd7b")


def test_strange_pictures_need_no_labels_and_rows_are_json():
    data = load_images("digits", size=8).test[np.arange(60)]; mean, std = [.3], [.35]; nets = [make_net("digits3", 1, 10, seed=s).eval() for s in range(3)]; predict = lambda x: image_logits(nets, x, mean, std); asked = []
    def counted(x): asked.append(hashlib.sha256(x.tobytes()).hexdigest()); return predict(x)
    calib = predict(data.images[::-1]); rows = shift_study(counted, data.images, data.labels, calib, data.labels[::-1], calibrated=False, R=20)
    other = shift_study(predict, data.images, np.roll(data.labels, 7), calib, data.labels[::-1], calibrated=False, R=20)
    assert len(asked) == len(set(asked)) == 1 + 3 * len(SHIFTS) + len(STRANGE) and rows[-3:] == other[-3:] and rows[0] != other[0]
    json.dumps(rows, allow_nan=False); assert all(r["ensemble"] is None for r in rows[-3:]) and len(rows) == 13


def test_what_members_dispute_is_a_divergence():
    p = softmax(np.random.default_rng(1).normal(size=(2, 30, 4)) * 2, -1); assert np.allclose(unsure(np.log(p))["information"], jensenshannon(p[0], p[1], axis=1) ** 2, atol=1e-12)
    assert np.allclose(unsure(np.log(np.repeat(p[:1], 3, 0)))["information"], 0, atol=1e-12)


# --- trajectories

def walks(S=5, E=6, n=30, C=4, seed=0): g = np.random.default_rng(seed); return 2 * g.normal(size=(n, C)) + .5 * g.normal(size=(S, E, n, C)).cumsum(1)


def test_placing_is_projection():
    z, new = walks(), walks(2, 4, seed=9); m = trajectory_map(z, 3); flat = lambda v: softmax(v, -1).reshape(-1, 120) / np.sqrt(120)
    pca = PCA(3).fit(flat(z)); at, left = m.place(new); truth = pca.transform(flat(new)); sign = np.sign((pca.transform(flat(z)) * m.coords.reshape(-1, 3)).sum(0))
    assert np.allclose(at.reshape(-1, 3), truth * sign, atol=1e-9)
    assert np.allclose(left.ravel(), ((flat(new) - pca.mean_) ** 2).sum(1) - (truth ** 2).sum(1), atol=1e-10)


def test_a_place_does_not_depend_on_its_company():
    z, new = walks(), walks(3, 5, seed=4); m = trajectory_map(z, 2, "js"); kept = m.coords.copy(); at, _ = m.place(new)
    for s, e in product(range(3), range(5)): assert np.allclose(m.place(new[s, e][None])[0][0], at[s, e], atol=1e-10)
    assert np.array_equal(kept, m.coords) and np.allclose(m.place(z[:, 2:4])[0], m.coords[:, 2:4], atol=1e-10)
    assert np.allclose(cross_distances(new[0], m.known, "js", block=2), cross_distances(new[0], m.known, "js"), atol=1e-14)


def test_separation_is_json_for_two_and_for_equal_members():
    for z in (walks(2), np.repeat(walks(1), 4, 0), walks(6, 1)): json.dumps(separation(z, R=19), allow_nan=False)
    assert separation(np.float16(walks()))[-1]["recognised"] == 1


# --- crossed designs

def cloud(parts, I, J, d, seed): g = np.random.default_rng(seed); u, v = np.repeat(range(I), J), np.tile(range(J), I); a, b, c = np.sqrt(parts); x = a * g.normal(size=(I, d))[u] + b * g.normal(size=(J, d))[v] + c * g.normal(size=(I * J, d)); return x, u, v


def test_factor_test_is_that_of_the_vectors():
    x, u, v = cloud((.4, .1, .5), 4, 3, 6, 0); D = ((x[:, None] - x) ** 2).sum(-1); t = {r["factor"]: r for r in factor_tests(D, u, v, 199)}; c = variance_components(D, u, v)
    assert t["order"]["F"] == pytest.approx(c["order"]["mean_square"] / c["interaction"]["mean_square"]) and t["init"]["F"] == pytest.approx(c["init"]["mean_square"] / c["interaction"]["mean_square"])
    g = np.random.default_rng(5); slow = []                                # members really given other orders, within each start
    for _ in range(199):
        w = np.concatenate([g.permutation(3) for _ in range(4)]); s = variance_components(D, u, w); slow.append(s["order"]["mean_square"] / s["interaction"]["mean_square"])
    assert abs(np.mean(slow) - t["order"]["mean"]) < 4 * np.std(slow) / np.sqrt(199) * 1.5 and .5 < np.std(slow) / t["order"]["sd"] < 2
    p = np.random.default_rng(1).permutation(12); again = {r["factor"]: r["F"] for r in factor_tests(D[np.ix_(p, p)], u[p], v[p], 19)}; assert again["init"] == pytest.approx(t["init"]["F"]) and again["order"] == pytest.approx(t["order"]["F"])


@pytest.mark.parametrize("d", [4, 60])
def test_intervals_over_levels_hold_the_truth(d):
    truth = np.array([.3, .3, .4]); held = []
    for k in range(40): x, u, v = cloud(truth, 4, 4, d, k); rows = component_shares(((x[:, None] - x) ** 2).sum(-1), u, v); held.append([r["low"] <= t <= r["high"] for r, t in zip(rows, truth)])
    assert np.mean(held) > .9
    x, u, v = cloud(truth, 15, 15, 60, 99); assert np.allclose(raw_shares(((x[:, None] - x) ** 2).sum(-1), u, v), truth, atol=.05)


RECIPE = Recipe("digits2", 1, 128, .1, .9, 5e-4, "cosine", "none", "fp32", "last")


def test_a_design_from_a_folder_is_the_same(tmp_path):
    data = PopulationData.of(load_images("digits", size=8)); keep_data(tmp_path/"data", data); s = crossed_members(2, 2)
    a, b = trained_answers((RECIPE, data, s[2])), trained_answers((RECIPE, str(tmp_path/"data"), s[2])); assert all(np.array_equal(a[k], b[k]) for k in a)
    answers = crossed_answers(RECIPE, data, s); assert answers["probe"].shape == (4, 410, 10) and np.array_equal(answers["probe"][2], a["probe"])


def test_a_study_is_json():
    data = PopulationData.of(load_images("digits", size=8)); g = np.random.default_rng(0); u = np.repeat(range(3), 3)
    def answers(role): y = data.role(role).labels; return 3 * np.eye(10)[y] + g.normal(size=(9, len(y), 10)) + 2 * g.normal(size=(3, len(y), 10))[u]
    study = json.loads(json.dumps(component_study({k: answers(k) for k in ("probe", "calib")}, crossed_members(3, 3), data, ("prob_mse_cal", "zero_one"), 20, 99), allow_nan=False)); assert study["n_init"] == study["n_order"] == 3
    for m in study["metrics"].values(): rows = {r["name"]: r for r in m["shares"]}; assert rows["init"]["low"] > 0 and rows["order"]["low"] == 0 and [t["F"] > 2 for t in m["tests"]] == [True, False] and m["tests"][0]["p"] < .12   # 36 arrangements, one of which is this


@pytest.mark.slow
def test_a_design_is_the_same_with_workers(tmp_path):
    data = PopulationData.of(load_images("digits", size=8)); keep_data(tmp_path/"data", data); s = crossed_members(2, 2)
    a, b = crossed_answers(RECIPE, data, s), crossed_answers(RECIPE, str(tmp_path/"data"), s, "processes", 2); assert all(np.array_equal(a[k], b[k]) for k in a)
