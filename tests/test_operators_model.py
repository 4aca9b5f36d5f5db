"The tokenizer: what a notebook cell cannot show, or only for one shape."
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from geonb.core.errors import UsageError
from geonb.core.seeds import torch_stream
from geonb.operators import losses
from geonb.operators.encoders import BaselineProjection, StackedLinear
from geonb.operators.losses import loss_terms
from geonb.operators.tokenizer import CategoricalHierarchicalVQVAE, CategoricalVQVAEConfig

SIZES = dict(embedding=16, hidden=24, decoder_hidden=32, grid=16, timesteps=32)
BASE = dict(features=24, categories=[[0, 3, 6, 9, 12], [1, 2, *range(13, 24)], [4, 5, 7, 8, 10, 11]], **SIZES)
CONFIGS = {
    "residual": BASE | dict(codes=8, ic_categories=[0], temporal_categories=[1, 2]),
    "no side inputs": BASE | dict(codes=8),
    "every category sees the field": BASE | dict(codes=8, ic_categories=[0, 1, 2]),
    "ragged residual": BASE | dict(codes=[[4, 5, 6], [7, 8, 9], [3, 2, 4]], latent=[[4] * 3, [8] * 3, [2] * 3]),
    "ragged parallel": BASE | dict(level_mode="parallel", codes="rule", latent="rule", compression_ratios=[.5, 1., .3], temporal_categories=[1]),
    "one category, one level": SIZES | dict(features=5, categories=[[0, 1, 2, 3, 4]], levels=1, codes=4),
    "shared books": BASE | dict(codes=8, quantizer="rvq"),
    "grid": BASE | dict(codes=8, quantizer="fsq"),
    "signs": BASE | dict(codes=8, quantizer="lfq", beta=.1),
    "mapped books": BASE | dict(codes=8, quantizer="simvq"),
    "baseline": SIZES | dict(preset="baseline", features=20, categories=[list(range(12)), [12, 13, *range(17, 48)]]),   # columns 14 to 16 belong to no category
}


def example(config, n=300, seed=0):
    g = torch_stream(seed, "example"); factors = torch.randn(n, 4, generator=g)
    x = factors @ torch.randn(4, config.features, generator=torch_stream(9, "loading")) / 2 + .3 * torch.randn(n, config.features, generator=g)
    return x, torch.randn(n, 3, config.grid, config.grid, generator=g), torch.randn(n, config.timesteps, 63, generator=g)


def trained(config, steps=5, **change):
    "A model after a few steps, so that running means have moved."
    config = CategoricalVQVAEConfig(**config | change); model, data = CategoricalHierarchicalVQVAE(config), example(config); torch.manual_seed(0)
    model.start(*data); optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps): optimiser.zero_grad(); sum(loss_terms(model(*data), preset=config.preset).values()).backward(); optimiser.step()
    return model, data


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_say_what_the_forward_pass_reconstructs(kind):
    model, data = trained(CONFIGS[kind]); tokens = model.tokens(*data); config = model.config
    assert model.training, "asking for tokens leaves the mode alone"
    out = model.eval()(*data)
    assert torch.equal(tokens, out.indices) and tuple(tokens.shape) == (300, len(config.books)) and out.reconstruction.shape == (300, config.targets)
    assert torch.allclose(model.decode(tokens), out.reconstruction, atol=1e-5, rtol=1e-5)
    assert all(int(tokens[:, i].max()) < b.codes for i, b in enumerate(config.books))
    assert torch.equal(torch.cat([model.tokens(*(a[i:i+1] for a in data)) for i in range(30)]), tokens[:30]), "alone as in the batch"
    assert torch.equal(model.tokens(*(a.flip(0) for a in data), chunk=37).flip(0), tokens)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configuration_survives_json_and_builds_the_same_model(kind):
    config = CategoricalVQVAEConfig(**CONFIGS[kind]); text = json.loads(json.dumps(config.model_dump(mode="json")))
    again = CategoricalVQVAEConfig(**text); assert again == config
    a, b = (CategoricalHierarchicalVQVAE(c).state_dict() for c in (config, again)); assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    other = CategoricalHierarchicalVQVAE(CategoricalVQVAEConfig(**text | {"seed": 1})).state_dict(); assert any(not torch.equal(a[k], other[k]) for k in a if "weight" in k)
    with pytest.raises(UsageError, match="unknown parameter 'hiden' .did you mean 'hidden'"): CategoricalVQVAEConfig(**text, hiden=3)


def test_each_quantiser_has_its_own_options():
    assert CategoricalVQVAEConfig(**CONFIGS["residual"]).ema_rule == "corrected" and CategoricalVQVAEConfig(**CONFIGS["grid"]).ema_rule is None and CategoricalVQVAEConfig(**CONFIGS["signs"]).beta == .1
    with pytest.raises(UsageError, match="quantizer='fsq' has no option decay"): CategoricalVQVAEConfig(**CONFIGS["grid"], decay=.9)
    with pytest.raises(UsageError, match="quantizer='vq' has no option colour"): CategoricalVQVAEConfig(**CONFIGS["residual"], quantizer_options=dict(colour=1))


def test_building_a_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state(); CategoricalHierarchicalVQVAE(CategoricalVQVAEConfig(**CONFIGS["residual"])); assert torch.equal(before, torch.get_rng_state())


NEW_PROCESS = """
import json, sys, torch
from safetensors.torch import load_file
from geonb.operators.tokenizer import CategoricalHierarchicalVQVAE, CategoricalVQVAEConfig
folder = sys.argv[1]; model = CategoricalHierarchicalVQVAE(CategoricalVQVAEConfig(**json.load(open(folder + "/config.json")))); model.load_state_dict(load_file(folder + "/model.safetensors"))
data = load_file(folder + "/data.safetensors"); tokens = model.tokens(data["x"], data["ic"], data["curves"])
print(json.dumps(dict(tokens=tokens.tolist(), decoded=model.decode(tokens).double().sum(1).tolist())))
"""


def test_tokens_are_the_same_in_a_new_process(tmp_path):
    from safetensors.torch import save_file
    model, data = trained(CONFIGS["residual"]); (tmp_path/"config.json").write_text(model.config.model_dump_json())
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path/"model.safetensors"); save_file(dict(zip(("x", "ic", "curves"), data)), tmp_path/"data.safetensors")
    said = json.loads(subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path)], capture_output=True, text=True, check=True).stdout); tokens = model.tokens(*data)
    assert said["tokens"] == tokens.tolist() and np.allclose(said["decoded"], model.decode(tokens).double().sum(1), atol=1e-4)


# --- gradients

def pull(model, data, term, preset="sound"):
    "Largest gradient of one term on encoder and head."
    model.zero_grad(set_to_none=True); loss = loss_terms(model(*data), preset=preset)[term]
    if loss.requires_grad: loss.backward()
    return max((float(p.grad.abs().max()) for p in [*model.encoder.parameters(), *model.head.parameters()] if p.grad is not None), default=0.)


def check_gradients(kind):
    model, data = trained(CONFIGS[kind], 0)
    for term in ("orthogonality", "topographic", "vq"): assert pull(model, data, term) > 1e-5, f"{term} has no gradient"
    codes = dict(model.quantizer.named_buffers()); assert codes and not list(model.quantizer.parameters())
    assert all(b.grad is None and not b.requires_grad for b in codes.values())


@pytest.mark.parametrize("kind", ["residual", "ragged parallel"])
def test_every_term_reaches_the_encoder_and_none_a_codebook(kind): check_gradients(kind)


def test_a_term_turned_into_a_number_is_noticed(monkeypatch):
    honest = losses.orthogonality
    monkeypatch.setattr(losses, "orthogonality", lambda latents: torch.tensor(float(honest(latents).detach())))
    with pytest.raises(AssertionError, match="orthogonality has no gradient"): check_gradients("residual")


@pytest.mark.parametrize("term, change", [("topographic", "mean_distances"), ("informativeness", "informativeness")])
def test_other_terms_are_checked_as_well(monkeypatch, term, change):
    honest = getattr(losses, change); model, data = trained(CONFIGS["residual"], 0); assert pull(model, data, term) > 1e-5
    monkeypatch.setattr(losses, change, lambda *a: honest(*a).detach()); assert pull(model, data, term) == 0


def test_published_orthogonality_is_a_constant():
    model, data = trained(CONFIGS["baseline"], 0); assert pull(model, data, "orthogonality", "baseline") == 0
    value = float(loss_terms(model(*data), preset="baseline")["orthogonality"]); assert 0 < value < 1
    assert pull(model, data, "topographic", "baseline") > 0 and pull(model, data, "vq", "baseline") > 0


def test_residual_levels_do_not_multiply_the_gradient():
    "The sum of the codes up to a level is a straight-through copy of the latent, so one unit of gradient arrives once."
    model, data = trained(CONFIGS["no side inputs"], 0); out = model(*data); out.latents.retain_grad()
    out.blocks[1].sum().backward(); assert torch.allclose(out.latents.grad, torch.ones_like(out.latents))


# --- what each part sees

def test_a_category_reads_its_own_columns_and_side_inputs_only():
    model, (x, ic, curves) = trained(CONFIGS["residual"]); model.eval(); before = model.encode(x, ic, curves)[1]
    differs = lambda *data: [bool((model.encode(*data)[1][c] != before[c]).any()) for c in range(3)]
    moved = x.clone(); moved[:, 6] += 1
    assert differs(moved, ic, curves) == [True, False, False] and differs(x, ic + torch.rand_like(ic), curves) == [True, False, False] and differs(x, ic, curves.flip(1)) == [False, True, True]


def test_stacked_layers_equal_separate_ones_for_any_widths():
    g = np.random.default_rng(0)
    for _ in range(10):
        ins, outs = (g.integers(1, 9, 5).tolist() for _ in range(2)); stack = StackedLinear(ins, outs); x = torch.randn(5, 7, max(ins))
        for k, (i, o) in enumerate(zip(ins, outs)): x[k, :, i:] = 0
        for k, (i, o) in enumerate(zip(ins, outs)): assert torch.allclose(stack(x)[k, :, :o], x[k, :, :i] @ stack.weight[k, :i, :o] + stack.bias[k, 0, :o], atol=1e-6)


def test_padding_is_never_trained():
    model, _ = trained(CONFIGS["ragged parallel"], 8)
    for name, stack in model.named_modules():
        if isinstance(stack, StackedLinear):
            fresh = dict(CategoricalHierarchicalVQVAE(model.config).named_modules())[name]; assert torch.equal(stack.weight == 0, fresh.weight == 0), name


def test_baseline_target_holds_the_trained_code_of_the_field():
    model, (x, ic, _) = trained(CONFIGS["baseline"]); out = model(x, ic)
    assert out.target.shape == (300, 48) and torch.equal(out.target[:, :20].detach(), x) and out.target.requires_grad
    assert model.config.code_table == [[24] * 3, [32] * 3] and model.config.latent_table[0] == [48, 24, 12] and model.quantizer.codebook().shape[-1] == 48


def test_frozen_projection_ignores_training_and_batches():
    g = torch_stream(0, "rows"); rows = [torch.randn(50, 14, generator=g), torch.randn(50, 360, generator=g) * 1e4, torch.randn(50, 32, 63, generator=g)]; rows[1][0, 3] = torch.nan
    route = BaselineProjection(3).train(); found = route(*rows); assert found.shape == (50, 270) and not any(p.requires_grad for p in route.parameters())
    assert torch.allclose(route(*rows, chunk=7), found, rtol=1e-4, atol=1e-3) and torch.equal(route(*rows), found)
