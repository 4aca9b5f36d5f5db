"The hyperbolic network against the published tensor names, K-FAC inside the trainer, the tropical report against the network itself."
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from geonb.core.callbacks import usual_callbacks
from geonb.core.errors import CheckFailed
from geonb.core.seeds import torch_stream
from geonb.core.state import load_state, save_state
from geonb.core.training import Stage, Task, Trainer, fit, restore_task, task_state
from geonb.geometry.padic import valuation
from geonb.geometry.poincare import distance0
from geonb.ternary.coverage import trit_tensor
from geonb.ternary.hyperbolic import HyperbolicSpec, TernaryVAEV5_11_PartialFreeze, architecture_of, build_hyperbolic, load_exact
from geonb.ternary.kfac import KFAC
from geonb.ternary.tropical import affine_layers, affine_maps, borders, encoder_layers, patterns, quotient, tropical_report

GOLDEN = json.loads((Path(__file__).parent/"hyperbolic_keys.json").read_text())
COUNTS = {"dual": (101_663, 48), "dual_controller": (103_269, 56), "dual_dropout": (101_663, 48), "structural": (149_151, 60), "structural_dropout": (149_151, 60), "dual_head": (106_074, 54), "single": (98_829, 37)}
shapes = lambda net: {k: list(v.shape) for k, v in net.state_dict().items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_and_shapes_are_those_of_the_golden_list(name):
    net, keys = TernaryVAEV5_11_PartialFreeze(**GOLDEN[name]["arguments"]), GOLDEN[name]["keys"]
    assert shapes(net) == keys
    assert (sum(p.numel() for p in net.parameters()), len(keys)) == COUNTS[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_architecture_is_read_back_from_the_golden_shapes_alone(name):
    "Tensors of zeros, no network anywhere near: what is inferred must rebuild the same list."
    state = {k: torch.zeros(s) for k, s in GOLDEN[name]["keys"].items()}
    assert shapes(build_hyperbolic(architecture_of(state))) == GOLDEN[name]["keys"]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_loads_only_files_of_its_own_layout(name):
    net = build_hyperbolic(architecture_of({k: torch.zeros(s) for k, s in GOLDEN[name]["keys"].items()}))
    for other in GOLDEN:
        state = {k: torch.zeros(s) for k, s in GOLDEN[other]["keys"].items()}
        if other == name: assert all((v == 0).all() for v in load_exact(net, state).state_dict().values())
        else:
            with pytest.raises(CheckFailed, match="missing|unexpected|wrong shape"): load_exact(net, state)


def test_any_single_change_of_a_key_is_named():
    state = TernaryVAEV5_11_PartialFreeze(use_dual_projection=True).state_dict(); net = build_hyperbolic(architecture_of(state))
    for key in state:
        if not key.endswith("isp_c"):
            with pytest.raises(CheckFailed, match=f"1 missing: {key}$"): load_exact(net, {k: v for k, v in state.items() if k != key})
        with pytest.raises(CheckFailed, match=f"1 unexpected: {key}x$"): load_exact(net, state | {key + "x": state[key]})
        with pytest.raises(CheckFailed, match=rf"1 of the wrong shape: {key} \["): load_exact(net, state | {key: torch.zeros(3, 3, 3)})
        with pytest.raises(CheckFailed, match=f"1 not finite floating point: {key}$"): load_exact(net, state | {key: torch.full_like(state[key], torch.nan)})
        with pytest.raises(CheckFailed, match="1 of the wrong shape"): load_exact(net, state | {key: "weights"})


@pytest.mark.parametrize("kw", [dict(), dict(n_projection_layers=2, projection_dropout=.1, hidden_dim=32)])
def test_no_gradient_reaches_a_frozen_part_and_every_thawed_one_gets_some(kw):
    net = build_hyperbolic(HyperbolicSpec(decoder_H=True, use_controller=True, learnable_curvature=True, **kw)); x = trit_tensor()[:64]
    for part in net.parts:
        for other in net.parts: net.freeze(other, other != part)
        net.zero_grad(); out = net.train()(x, sample=True)
        loss = out["logits_A"].square().mean() + sum(net.decode_hyp(p, out[f"z_{p}_hyp"]).square().mean() + out[f"logvar_{p}"].square().mean() for p in net.paths) + sum(v.mean() for v in out["control"].values())
        loss.backward()
        got = {k: any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters()) for k, m in net.parts.items()}
        assert got == {k: k == part for k in net.parts}
        assert all(p.grad is not None for p in net.parts[part].parameters())


def test_twenty_steps_leave_frozen_weights_bit_equal():
    net = build_hyperbolic(HyperbolicSpec(decoder_H=True)); net.freeze("projection_A"); x = trit_tensor()[::40]
    before = {k: v.clone() for k, v in net.state_dict().items()}; optimiser = torch.optim.AdamW(net.groups(1e-2), weight_decay=.1)
    for _ in range(20):
        optimiser.zero_grad(set_to_none=True); net.decode_hyp("B", net.embed(x, "B")).square().mean().backward(); optimiser.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"encoder_B", "projection", "decoder_H"} and not any("proj_A" in k or "isp_c" in k for k in moved)


def test_learnable_curvature_moves_and_stays_inside_the_ball():
    net = build_hyperbolic(HyperbolicSpec(learnable_curvature=True, max_radius=.95)); x = trit_tensor()[::40]; free = net.projection["proj_B"].manifold
    with torch.no_grad(): free.isp_c.fill_(3.)   # c = 3.05: a ball of radius 0.57, smaller than max_radius
    z = net.embed(x, "B"); assert (z.double().norm(dim=1) < free().item() ** -.5).all()
    net.tangent(z, "B").square().mean().backward(); assert free.isp_c.grad.isfinite() and free.isp_c.grad != 0
    assert architecture_of(net.state_dict()).curvature == pytest.approx(1.) and net.curvature("B").item() == pytest.approx(3.0486, abs=1e-4)   # A's; each pathway keeps its own


def test_the_forbidden_way_of_loading_occurs_nowhere(root):
    "Files are matched exactly or refused."
    words = "strict" + "=False|load_state_dict[(].*strict" + " *= *False"   # the run parameter `strict` is another thing
    found = [p for folder in ("geonb", "nbs", "tests", ".ci") for p in (root/folder).rglob("*") if p.suffix in (".py", ".ipynb", ".md") and re.search(words, p.read_text(encoding="utf-8"))]
    assert found == []


# --- K-FAC inside the trainer

class Small(Task):
    "Encoder B, its projection and the head learn a batch under K-FAC; what is saved is what the trainer saves."
    stages = (Stage("train", 3),)
    def __init__(self, graft="adam", bad=()):
        super().__init__(); net = build_hyperbolic(HyperbolicSpec(decoder_H=True, projection_dropout=.1), 4); self.bad, self.steps, self.net = bad, 4, net
        net.freeze("projection_A"); self.modules["net"] = net; self.streams["data"] = self
        self.optimisers["net"] = KFAC(net, net.groups(3e-3), refresh=3, graft=graft, weight_decay=1e-4); self.schedules["net"] = lambda i, n: 3e-3*(1 - i/n)
    def batch(self, epoch, i): return {"x": trit_tensor()[torch.randint(19683, (64,), generator=torch_stream(5, "small", epoch, i))], "bad": (epoch, i) in self.bad}
    def loss(self, batches):
        x = batches["data"]["x"]; out = self.net.decode_hyp("B", self.net.embed(x, "B"))
        return {"ce": torch.nn.functional.cross_entropy(out.reshape(-1, 3), (x.long() + 1).flatten()) * (torch.nan if batches["data"]["bad"] else 1)}


@pytest.mark.parametrize("graft", ["adam", "none"])
def test_kfac_continues_bit_for_bit_from_a_checkpoint_on_disk(tmp_path, graft):
    class Keep:
        "Save the state after the second epoch: 8 steps, two after an inversion."
        order = 0
        def after_epoch(self, t):
            if t.total_epoch == 2: save_state(tmp_path/"state", task_state(t.task))
    whole = Small(graft); torch.manual_seed(0); fit(whole, callbacks=[Keep()])
    second = Small(graft); restore_task(second, load_state(tmp_path/"state"))
    t = Trainer(second); t.epoch, t.step, t.total_epoch, t.started = 2, 8, 2, True; t.fit()
    one, two = task_state(whole), task_state(second)
    assert one["tensors"].keys() == two["tensors"].keys() and all(torch.equal(v, two["tensors"][k]) for k, v in one["tensors"].items())
    flat = lambda s: {(i, k): torch.as_tensor(v) for i, own in s["optimisers"]["net"]["state"].items() for k, v in own.items()}
    one, two = flat(one), flat(two); assert one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items()), [k for k in one if k not in two or not torch.equal(one[k], two[k])]


def test_kfac_frozen_layers_and_a_refused_batch():
    "A batch of NaN inside training is as if it had not been there, for weights and for the factors."
    start = {k: v.clone() for k, v in Small().net.state_dict().items()}; task = Small(bad={(1, 2)}); torch.manual_seed(0); t = fit(task, callbacks=usual_callbacks(task, None, "none", 5.))
    assert t.skips == 1 and all(torch.as_tensor(v).isfinite().all() for own in task.optimisers["net"].state.values() for v in own.values())
    moved = {k for k, v in task.net.state_dict().items() if not torch.equal(v, start[k])}
    assert {".".join(k.split(".")[:2]) for k in moved} == {"encoder_B.encoder", "encoder_B.fc_mu", "projection.proj_B", "decoder_H.decoder"} and not any("isp_c" in k for k in moved)
    assert task.optimisers["net"].state[task.net.encoder_B.fc_mu.weight]["seen"] == 11   # of 12 steps


def test_kfac_twenty_steps_of_a_convex_problem_always_go_down():
    "Multinomial regression on a full batch: twenty steps, every one of them downhill."
    g = torch_stream(9, "convex"); x = torch.randn(300, 5, generator=g) @ torch.diag(torch.tensor([100., 10, 1, .1, .01])); y = (x @ torch.randn(5, 3, generator=g)).argmax(1)
    for graft, lr in [("none", .05), ("adam", .002)]:
        net = torch.nn.Linear(5, 3); torch.nn.init.zeros_(net.weight); torch.nn.init.zeros_(net.bias); optimiser, losses = KFAC(net, lr=lr, graft=graft, momentum=0.), []
        for _ in range(21):
            optimiser.zero_grad(); loss = torch.nn.functional.cross_entropy(net(x), y); loss.backward(); optimiser.step(); losses.append(loss.item())
        assert all(b < a for a, b in zip(losses, losses[1:])), (graft, losses)


def test_kfac_layer_used_twice_sees_both_uses():
    "A shared projection: its factors are the mean over all rows of both calls, with each call's own scale."
    g = torch_stream(8, "twice"); a, b = torch.randn(6, 3, generator=g), torch.randn(10, 3, generator=g); net = torch.nn.Linear(3, 2); optimiser = KFAC(net, refresh=1)
    grads = torch.cat([net(a).cos(), -net(b).sin()]).detach()   # of one example's own loss at the output
    (net(a).sin().sum(1).mean() + net(b).cos().sum(1).mean()).backward(); optimiser.step(); s = optimiser.state[net.weight]
    rows = torch.cat([torch.cat([a, b]), torch.ones(16, 1)], 1); torch.testing.assert_close(s["A"], rows.T @ rows / 16)
    torch.testing.assert_close(s["G"], grads.T @ grads / 16); assert s["seen"] == 1 and not optimiser.pending


def test_kfac_leaves_no_trace_of_a_backward_without_a_step():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)); twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)); twin.load_state_dict(net.state_dict())
    x = torch.randn(20, 3, generator=torch_stream(7, "trace")); one, two = KFAC(net), KFAC(twin)
    net(1000*x).square().mean().backward()   # a measurement
    for m, o in [(net, one), (twin, two)]: o.zero_grad(); m(x).square().mean().backward(); o.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters()))
    one.close(); net(x).mean().backward(); assert not one.pending


# --- tropical report

def learnt(task, seed, steps=150):
    "A fresh encoder B, or one that has learnt the levels' radii."
    net = build_hyperbolic(HyperbolicSpec(), seed); x = trit_tensor(); v = torch.as_tensor(valuation(np.arange(len(x)), top=9)); high = torch.nonzero(v >= 4)[:, 0]; g = torch_stream(seed, "order"); o = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps if task else 0):
        i = torch.cat([torch.randint(len(x), (256,), generator=g), high]); o.zero_grad(); (distance0(net.embed(x[i], "B")) - 3.6*(1 - v[i]/10)).square().mean().backward(); o.step()
    return net


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_what_learning_levels_does_to_the_pieces_holds_at_other_seeds(seed):
    "Maps of one effective direction, borders gathered at the first trit; the fresh network has neither."
    x = trit_tensor().double(); fresh, levels = (tropical_report(encoder_layers(learnt(task, seed), "B"), x) for task in (False, True))
    first = lambda r: r["trit_borders"][0] / np.mean(r["trit_borders"][4:])
    assert max(row["rank"] for row in levels["levels"]) < 1.1 < 2 < min(row["rank"] for row in fresh["levels"])
    assert first(levels) > 1.25*first(fresh)
    assert [row["points"] for row in fresh["levels"]] == [13122, 4374, 1458, 486, 162, 54, 18, 6, 2, 1]


def test_regions_maps_and_quotient_of_a_decoder():
    "The other ReLU network of the model: region by region against the module itself, in double."
    net = build_hyperbolic(HyperbolicSpec(decoder_H=True), 7); layers = affine_layers(net.decoder_H.decoder); z = torch.randn(500, 16, generator=torch_stream(7, "z")).double(); whole = copy.deepcopy(net.decoder_H.decoder).double()
    pats = patterns(layers, z); W, c = affine_maps(layers, pats); assert [p.shape[1] for p in pats] == [32, 64]
    torch.testing.assert_close((W @ z[..., None])[..., 0] + c, whole(z), rtol=0, atol=1e-12)
    P, Q = quotient(layers, z); torch.testing.assert_close(P - Q, whole(z), rtol=0, atol=1e-11)
    seen = {}   # hooks on the module see the same neurons on
    for i in (1, 3): whole[i].register_forward_hook(lambda m, a, out, i=i: seen.update({i: out > 0}))
    whole(z); assert torch.equal(seen[1], pats[0]) and torch.equal(seen[3], pats[1])


def test_borders_agree_with_a_fine_walk():
    "Pattern changes in 50,000 steps: one in each step that holds a border."
    layers = encoder_layers(build_hyperbolic(HyperbolicSpec(), 3), "A")
    for k in range(3):
        a, b = torch.randn(2, 9, generator=torch_stream(3, "ends", k)).double(); exact = borders(layers, a, b); steps = 50_000
        r = np.packbits(torch.cat(patterns(layers, a + torch.linspace(0, 1, steps + 1).double()[:, None]*(b - a)), 1).numpy(), axis=1)
        assert int((r[1:] != r[:-1]).any(1).sum()) == torch.unique((exact*steps).floor()).numel() <= len(exact) and len(exact) > 50


def test_tropical_report_is_plain_and_repeats():
    layers = encoder_layers(build_hyperbolic(HyperbolicSpec(), 0), "A"); x = trit_tensor().double(); one, two = tropical_report(layers, x, 1), tropical_report(layers, x, 1)
    assert one == two and json.loads(json.dumps(one)) == one and tropical_report(layers, x, 2)["kinship"] != one["kinship"]
