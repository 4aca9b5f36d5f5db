"The hyperbolic network against the published tensor names, K-FAC inside the trainer, the tropical report against the network itself."
import json
import re
from pathlib import Path

import pytest
import torch

from geonb.core.errors import CheckFailed
from geonb.ternary.coverage import trit_tensor
from geonb.ternary.hyperbolic import HyperbolicSpec, TernaryVAEV5_11_PartialFreeze, architecture_of, build_hyperbolic, load_exact

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
