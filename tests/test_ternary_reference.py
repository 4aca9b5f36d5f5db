"Reference recipes: repeatable without state, resumable in the middle, and what each reaches is what its table says it may move."
import copy

import numpy as np
import pytest
import torch

from geonb.ternary.dual import DualPathwayVAE
from geonb.ternary.homeostasis import Homeostasis
from geonb.ternary.hyperbolic import build_hyperbolic, start_from_dual
from geonb.ternary.reference import REFERENCE, ReferenceObjective, batches_of, set_parts


@pytest.fixture(scope="module")
def dual():
    torch.manual_seed(0); return DualPathwayVAE().state_dict()


def begun(recipe, dual, seed=2):
    net = build_hyperbolic(recipe.model, seed)
    return start_from_dual(net, dual) if recipe.starts else net


def steps(recipe, net, objective, opt, rows, epoch, which):
    w = objective.weights(epoch)
    for i in which:
        t = objective.terms(net.train(), rows.batch(epoch, i), epoch); loss = sum(w[k]*v for k, v in t.items())
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", REFERENCE)
def test_a_training_repeats_and_can_be_cut_anywhere(name, dual):
    "Dropout aside, nothing is drawn outside the objective: a copy taken in the middle goes on to the same weights."
    r = REFERENCE[name]; net = begun(r, dual); set_parts(net, r.factors(0)); opt = torch.optim.AdamW(net.groups(r.lr)); rows = batches_of(r, np.arange(0, 3**9, 3)); objective = ReferenceObjective(r, net, seed=5)
    for m in net.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    steps(r, net, objective, opt, rows, 1, range(2)); later = copy.deepcopy((net, opt.state_dict()))
    before = torch.get_rng_state(); one = steps(r, net, objective, opt, rows, 1, range(2, 4)); assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99); other = later[0]; again = torch.optim.AdamW(other.groups(r.lr)); again.load_state_dict(later[1])
    fresh = ReferenceObjective(r, begun(r, dual), seed=5)                                    # a resume makes its objective from the start again
    assert steps(r, other, fresh, again, batches_of(r, np.arange(0, 3**9, 3)), 1, range(2, 4)) == one
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    with torch.no_grad(): a, b = (float(sum(ReferenceObjective(r, net, seed=s).terms(net.eval(), rows.batch(1, 0), 1).values())) for s in (5, 6))
    assert a != b


@pytest.mark.parametrize("name", REFERENCE)
def test_only_what_the_recipe_trains_gets_a_gradient(name, dual):
    r = REFERENCE[name]; net = begun(r, dual); h = Homeostasis(**r.homeostasis).frozen if r.homeostasis is not None else None; set_parts(net, r.factors(0), h); objective = ReferenceObjective(r, net)
    t = objective.terms(net.train(), batches_of(r, np.arange(3**9)).batch(0, 0), 0)
    sum(v for v in t.values() if v.requires_grad).backward()
    reached = {k for k, m in net.parts.items() if any(p.grad is not None and bool(p.grad.any()) for p in m.parameters())}
    assert reached == {"v5_11": {"projection_A", "projection_B", "encoder_B"}, "homeostasis": {"projection_A", "projection_B", "encoder_B"}, "structural": {"projection_A", "projection_B", "encoder_B"},
                       "progressive": {"projection_A", "projection_B", "encoder_B"}, "homeostatic_rich": {"projection_A"}, "max_hierarchy": {"projection_A", "encoder_A"}, "advanced": {"projection_A", "encoder_A", "decoder_A"}}[name]
    assert all(net.parts[k] is not None and k in r.factors(r.epochs) for k in reached)


def test_the_reference_variances_are_those_of_the_start(dual):
    r = REFERENCE["homeostatic_rich"]; net = begun(r, dual); objective = ReferenceObjective(r, net)
    t = objective.terms(net.eval(), batches_of(r, np.arange(3**9)).batch(0, 0), 0)
    from geonb.ternary.coverage import trit_tensor
    from geonb.ternary.hierarchy import level_statistics
    from geonb.ternary.operations import valuation
    with torch.no_grad(): norm = net.embed(trit_tensor(), "A").norm(dim=1).double().numpy()
    assert objective.rich.reference.numpy() == pytest.approx(np.nan_to_num(level_statistics(norm, valuation(np.arange(3**9)))["variance"]), rel=1e-3, abs=1e-9)
    assert t["richness"].isfinite() and not net.training
    assert ReferenceObjective(r, net) and not net.training and ReferenceObjective(r, net.train()) and net.training   # measuring leaves the mode as it was


def test_two_epochs_of_v5_11_build_a_hierarchy(dual):
    "Random encoders are start enough for that: the projections learn an order on all operations, at twice the published rate."
    from geonb.ternary.hierarchy import measure
    from dataclasses import replace
    r = replace(REFERENCE["v5_11"], epochs=6); net = begun(r, dual); set_parts(net, r.factors(0)); opt = torch.optim.AdamW(net.groups(2*r.lr), fused=True); rows = batches_of(r, np.arange(3**9)); objective = ReferenceObjective(r, net)
    was = measure(net, "B").rho
    for e in range(2): steps(r, net, objective, opt, rows, e, range(rows.steps))
    now = measure(net, "B").rho
    assert now < -.3 and now < was - .2, (was, now)
