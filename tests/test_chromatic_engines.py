"One training of a stack against the same trainings one by one, at the tolerances that rounding allows."
import copy
import pytest
import torch
from geonb.chromatic.networks import make_net
from geonb.chromatic.stacked import ENGINES, Stacked, choose_engine, engine_table, member_losses, stacked_logits, stepper
from geonb.core.seeds import torch_stream

S, B = 3, 12

def trained(arch, engine, steps, dtype, channels=3, size=16, channels_last=False):
    "Losses [steps, S] and the members after `steps` steps, from the same first weights and batches whatever the engine."
    nets = [make_net(arch, channels, seed=13 + s).to(dtype) for s in range(S)]; step, members = stepper(nets, engine, channels_last=channels_last); g = torch_stream(1, f"engines {arch}"); losses = []
    for _ in range(steps): losses.append(step(torch.randn(S, B, channels, size, size, generator=g, dtype=torch.float64).to(dtype), torch.randint(0, 10, (S, B), generator=g)))
    return torch.stack(losses), members()

def worst(a, b, buffers):
    "Greatest relative difference over tensors: of the parameters, or of the running statistics."
    out, names = 0., 0
    for m, n in zip(a, b):
        for (k, u), v in zip((m.named_buffers() if buffers else m.named_parameters()), (n.buffers() if buffers else n.parameters())):
            if "num_batches" in k: assert torch.equal(u, v), k
            else: out, names = max(out, float((u - v).detach().norm() / u.detach().norm())), names + 1
    assert names; return out

ARCHS = [("tiny8", 3, 16), ("digits", 1, 8), pytest.param("small8", 3, 16, marks=pytest.mark.slow), ("small2", 3, 16)]

@pytest.mark.parametrize("arch, channels, size", ARCHS)
def test_float64(arch, channels, size):
    "Five steps at the recipe's learning rate: the engines compute the same function, and what is left is rounding."
    losses, loop = trained(arch, "loop", 5, torch.float64, channels, size)
    for engine in ENGINES[1:]:
        l, nets = trained(arch, engine, 5, torch.float64, channels, size)
        torch.testing.assert_close(l, losses, rtol=1e-8, atol=0)
        assert worst(loop, nets, False) < 1e-8 and worst(loop, nets, True) < 1e-8, engine
    assert worst(loop, [make_net(arch, channels, seed=13 + s).double() for s in range(S)], False) > 1e-2   # and the steps did move them

@pytest.mark.parametrize("arch, channels, size", ARCHS)
def test_float32(arch, channels, size):
    "Rounding grows with every step: first losses to 1e-5, parameters and running statistics after five steps to 5e-3."
    losses, loop = trained(arch, "loop", 5, torch.float32, channels, size)
    for engine, layout in (("grouped", False), ("grouped", True), ("vmap", False), ("loop", True)):
        l, nets = trained(arch, engine, 5, torch.float32, channels, size, layout)
        torch.testing.assert_close(l[0], losses[0], rtol=1e-5, atol=0)
        assert worst(loop, nets, False) < 5e-3 and worst(loop, nets, True) < 5e-3, (engine, layout)

@pytest.mark.parametrize("engine", ENGINES[1:])
def test_members_are_independent(engine):
    "What one member sees changes nothing for another: not its loss, its gradient, nor its running statistics."
    nets = [make_net("tiny4", seed=s).double() for s in range(S)]; g = torch_stream(0, "independent"); x, y = torch.randn(S, B, 3, 16, 16, generator=g, dtype=torch.float64), torch.randint(0, 10, (S, B), generator=g); x2 = x.clone(); x2[1] *= 3; seen = []
    for given in (x, x2):
        stack = Stacked(nets, engine); l = member_losses(stack(given), y); l.sum().backward(); seen.append((l.detach(), {k: p.grad.view(S, -1) for k, p in stack.net.named_parameters()}, {k: v.clone() for k, v in stack.members().items()}))
    (l1, g1, v1), (l2, g2, v2) = seen; assert l1[1] != l2[1] and not torch.equal(g1["body.3.weight"][1], g2["body.3.weight"][1]) and not torch.equal(v1["body.1.running_var"][1], v2["body.1.running_var"][1])
    for s in (0, 2):
        torch.testing.assert_close(l1[s], l2[s], rtol=1e-12, atol=0)
        for k in g1: torch.testing.assert_close(g1[k][s], g2[k][s], rtol=1e-9, atol=1e-12)
        for k in v1: torch.testing.assert_close(v1[k][s], v2[k][s], rtol=1e-12, atol=1e-15)

@pytest.mark.parametrize("engine", ENGINES[1:])
def test_there_and_back(engine):
    "Separate networks give a stack and a stack gives the same networks, bit for bit; a stack of one is a network."
    nets = [make_net("small2", seed=s) for s in range(S)]
    for n in nets: n(torch.randn(4, 3, 16, 16, generator=torch_stream(0, "back")))
    for given in (nets, nets[:1]):
        for a, b in zip(given, Stacked(given, engine, channels_last=True).nets()): assert all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values())) and a.state_dict().keys() == b.state_dict().keys()
    state = Stacked(nets, engine).state_dict(); other = Stacked([make_net("small2", seed=9 + s) for s in range(S)], engine); other.load_state_dict(state)
    assert all(torch.equal(u, v) for a, b in zip(nets, other.nets()) for u, v in zip(a.state_dict().values(), b.state_dict().values()))

def test_inference_does_not_depend_on_the_cut():
    nets = [make_net("tiny4", seed=s) for s in range(S)]; images = torch.randn(37, 3, 16, 16, generator=torch_stream(0, "cut")); whole = stacked_logits(nets, images, 64, "loop")
    for engine in ENGINES:
        for batch in (1, 10, 37): torch.testing.assert_close(stacked_logits(nets, images, batch, engine), whole, rtol=1e-4, atol=1e-5)
    assert whole.shape == (S, 37, 10) and whole.dtype == torch.float32 and all(n.training for n in nets)

def test_measuring_draws_nothing_and_changes_nothing():
    nets = [make_net("tiny2", seed=s) for s in range(2)]; was = copy.deepcopy([n.state_dict() for n in nets]); random = torch.get_rng_state()
    told = choose_engine(nets, 2, 8, 1, ENGINES); rows = engine_table(("digits",), (2,), members=2, steps=1, size=8)
    assert torch.equal(random, torch.get_rng_state()) and all(torch.equal(a[k], n.state_dict()[k]) for a, n in zip(was, nets) for k in a)
    assert told["engine"] in ENGINES and [r["engine"] for r in rows] == list(ENGINES) and all(r["images_per_second"] > 0 for r in rows)
