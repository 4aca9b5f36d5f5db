"Homeostasis over random traces, and on the real network: flags are requires_grad, frozen weights do not move."
import json

import numpy as np
import pytest
import torch

from geonb.core.seeds import stream
from geonb.ternary.coverage import trit_tensor
from geonb.ternary.homeostasis import PARTS, Homeostasis, obey
from geonb.ternary.hyperbolic import HyperbolicSpec, build_hyperbolic


def trace(seed, n=250, sign=-1):
    "Random evaluations with long still stretches, jumps, and coverage about its thresholds."
    g = stream(seed, "trace"); rho = [.5, .5]
    for e in range(n):
        rho = [float(np.clip(r + g.choice([0, 0, 0, .0005, .02, -.02, -.3]), 0, 1)) for r in rho]
        yield e, float(g.choice([1, 1, 1, .9999, .996, .99, .94])), sign*rho[0], sign*rho[1], float(g.choice([.005, .005, .005, .5, 3])), float(g.normal())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("arguments", [{}, {"thaw_at": .999}, {"hysteresis": 7, "warmup": 20}])
def test_bounds_hold_on_any_trace(seed, arguments):
    h = Homeostasis(**arguments); was = dict(h.frozen); last = {}; changes = 0
    for e, *row in trace(seed):
        now = h.update(e, *row)
        freeze, thaw = h.thresholds
        assert .95 <= freeze < thaw <= 1 and thaw - freeze >= .004 - 1e-9
        assert h.patience["encoder_A"] == 5 and 1 <= h.patience["encoder_B"] <= 15 and 1 <= h.patience["controller"] <= 10
        assert not now["projection_A"] and not now["projection_B"] and set(now) == set(PARTS)
        for part in PARTS:
            if now[part] == was[part]: continue
            assert e >= h.warmup and e - last.get(part, -99) >= h.hysteresis
            last[part] = e; changes += 1
        was = now
    assert changes == len(h.events) and {x["part"] for x in h.events} == {"encoder_A", "encoder_B", "controller"}


def test_a_returned_verdict_is_a_copy():
    h = Homeostasis(); h.update(0, 1., -.5, -.5)["encoder_B"] = True
    assert not h.frozen["encoder_B"]


@pytest.mark.parametrize("cut", [1, 6, 9, 40, 133])
def test_a_resume_at_any_evaluation_goes_on_alike(cut):
    rows = list(trace(5)); whole, first, second = Homeostasis(), Homeostasis(), Homeostasis()
    for r in rows: whole.update(*r)
    for r in rows[:cut]: first.update(*r)
    kept = json.loads(json.dumps(first.state(), allow_nan=False)); second.load_state(kept)
    for r in rows[cut:]: second.update(*r); first.update(*r)
    assert second.state() == whole.state() == first.state() and len(whole.events) > 10
    assert kept == json.loads(json.dumps(kept)) and len(kept["events"]) <= len(whole.events)   # the two share no list


@pytest.mark.parametrize("seed", range(6))
def test_no_positive_correlation_ever_counts_as_progress(seed):
    "Whatever a positive rho does, the count of still checks only grows; by the published rule it is reset again and again."
    h, published, resets = Homeostasis(warmup=10**6), Homeostasis(warmup=10**6, faithful=True), 0
    for e, *row in trace(seed, sign=1):
        before = published.quiet["encoder_A"]; h.update(e, *row); published.update(e, *row)
        assert h.quiet["encoder_A"] == h.quiet["encoder_B"] == max(0, e - 3)
        resets += published.quiet["encoder_A"] < before
    assert resets > 3


def test_flags_are_requires_grad_and_frozen_weights_do_not_move():
    net = build_hyperbolic(HyperbolicSpec(use_controller=True), 0); opt = torch.optim.AdamW(net.groups(1e-2), weight_decay=.1, fused=True); x = trit_tensor()[:16]; h = Homeostasis()
    def step():
        out = net.train()(x, sample=False); opt.zero_grad(set_to_none=True)
        sum(out[f"z_{p}_hyp"].square().sum() + net.decode_hyp(p, out[f"z_{p}_hyp"]).square().sum() for p in net.paths).add(sum(v.sum() for v in out["control"].values())).backward(); opt.step()
    for part in h.frozen: net.freeze(part, False)
    for _ in range(3): step()                              # every part has moments now: a frozen part must not drift on them
    seen = set()
    for e, *row in trace(3, 120):
        verdict = h.update(e, *row); obey(net, verdict); flags = {k: net.frozen()[k] for k in verdict}
        assert flags == verdict
        if (case := tuple(verdict.items())) in seen or len(seen) == 4: continue
        seen.add(case); before = {k: [p.clone() for p in net.parts[k].parameters()] for k in verdict}
        for _ in range(20): step()
        for k, frozen in verdict.items():
            same = [torch.equal(a, b) for a, b in zip(before[k], net.parts[k].parameters())]
            assert all(same) if frozen else not all(same), (k, frozen)
    assert len(seen) == 4


def test_a_network_without_a_controller_is_no_error():
    net = build_hyperbolic(HyperbolicSpec(use_controller=False), 0)
    obey(net, {p: True for p in PARTS})
    assert net.frozen() == {"encoder_A": True, "encoder_B": True, "decoder_A": True, "projection_A": True, "projection_B": True}
