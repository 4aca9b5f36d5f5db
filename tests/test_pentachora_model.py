"What a demonstration cell cannot hold still: timing, and models at sizes nobody tried by hand."
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from geonb.pentachora.bands import DogPyramid
from geonb.geometry.codes import coded_maps, minimum_distance
from geonb.pentachora.constellation import BatchedPentachoronConstellation
from geonb.pentachora.encoder import NeighbourAttention, PentaFreqEncoderV2, encoder_parameters, grid_size


def attention_loop(m, X, mask):
    "One call of torch's own attention per vertex."
    rows = []
    for i in range(X.shape[1]):
        blocked = torch.zeros(1, X.shape[1]).masked_fill(~mask[i:i+1], float("-inf"))
        rows.append(m.attn(X[:, i:i+1], X, X, attn_mask=blocked, need_weights=False)[0])
    return torch.cat(rows, 1)


def best(f, n):
    "Shortest of n runs: load on the machine can only lengthen one."
    times = []
    for _ in range(n):
        start = time.perf_counter(); f(); times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("batch", [8, 64, 256])
def test_batched_attention_is_not_slower_than_the_loop(batch):
    m, mask = NeighbourAttention(56, 2), ~torch.eye(5, dtype=bool)
    X = torch.randn(batch, 5, 56, requires_grad=True)
    step = lambda f: f().sum().backward()
    for _ in range(3): step(lambda: m(X, mask)); step(lambda: attention_loop(m, X, mask))
    assert best(lambda: step(lambda: m(X, mask)), 30) <= best(lambda: step(lambda: attention_loop(m, X, mask)), 30)


@settings(max_examples=25, deadline=None)
@given(C_in=st.integers(1, 4), c=st.integers(1, 9), half=st.integers(2, 12), side=st.sampled_from([28, 32, 56, 64]), proj=st.integers(0, 20),
       front=st.sampled_from(["raw", "dog"]), norm=st.sampled_from(["batch", "layer"]), seed=st.integers(0, 2**31))
def test_any_encoder_gives_unit_latents_and_has_the_stated_size(C_in, c, half, side, proj, front, norm, seed):
    torch.manual_seed(seed)
    m = PentaFreqEncoderV2(C_in * side**2, C_in, 2 * half, 2, c, proj or None, front_end=front, norm=norm)
    assert sum(p.numel() for p in m.parameters()) == encoder_parameters(C_in, c, 2 * half, proj, grid_size(side))
    z = m(torch.randn(3, C_in, side, side))
    assert z.shape == (3, proj or 2 * half)
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)
    z.square().mul(torch.arange(z.shape[1])).sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), C=st.integers(1, 40), P=st.integers(1, 8), V=st.integers(2, 9), extra=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_any_constellation_gives_a_distribution(data, C, P, V, extra, seed):
    given_map = data.draw(st.lists(st.integers(0, V - 1), min_size=C, max_size=C))
    how = data.draw(st.sampled_from(["auto", "shared", "coded", "block", given_map]))
    m = BatchedPentachoronConstellation(C, V + extra, P, num_vertices=V, vertex_map=how, seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in m.parameters(): p += .5 * torch.randn(p.shape, generator=g)
    logits, d = m(F.normalize(torch.randn(4, V + extra, generator=g), dim=1))
    assert torch.allclose(d["mixture_logp"].exp().sum(1), torch.ones(4), atol=1e-5)
    assert ((d["routing_entropy"] >= 0) & (d["routing_entropy"] <= 1 + 1e-5)).all()
    assert (d["pair_disagreement"] >= -1e-5).all()
    assert not d["vertex_probs"][:, ~m.active].any()
    F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_codes_keep_classes_apart_whatever_the_seed(seed):
    for C, P, least in ((10, 5, 3), (8, 5, 3), (47, 24, 12)):
        assert minimum_distance(coded_maps(C, P, seed=seed)) >= least


@pytest.mark.parametrize("side", [28, 32, 64, 128, 224])
def test_bands_sum_to_the_input_at_every_side(side):
    x = torch.randn(2, 3, side, side)
    assert (DogPyramid(side)(x).sum(0) - x).abs().max() <= 1e-6
