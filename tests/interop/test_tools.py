"""What SAEBench and sae-dashboard, the real packages, make of an exported SAE of a small GPT-2: `make interop` runs it."""

from __future__ import annotations

import json

import jaxtyping
import pytest
import torch

from splinterp import PAMSGD, SAE, AbsTopK, BatchTopK, JumpReLU, ReLU, TopK, fit
from splinterp.data import Standardizer, TokenSequences, extract_activations
from splinterp.interop import save_saelens, to_nonnegative
from splinterp.language.interventions import measure_loss
from splinterp.metrics import evaluate
from tests.data.tiny_models import tiny
from tests.helpers import rng

HOOK, LAYER, CONTEXT, N = "blocks.0.hook_resid_post", 1, 16, 64
ACTIVATIONS = {
    "ReLU": ReLU, "JumpReLU": lambda: JumpReLU(threshold=0.2), "TopK": lambda: TopK(4), "BatchTopK": lambda: BatchTopK(4),
    "AbsTopK": lambda: AbsTopK(4),
}  # fmt: skip
METRICS = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics",
           "featurewise_weight_based_metrics")  # fmt: skip


def trained(x, kind, one_norm=False):
    standardizer = Standardizer("global").fit(x)
    sae = SAE(x.shape[1], 40, ACTIVATIONS[kind](), generator=1)
    fit(sae, standardizer.transform(x), PAMSGD(lr=4e-3), epochs=6, generator=2)
    if one_norm:
        with torch.no_grad():
            sae.W_dec.mul_(2.5 / sae.W_dec.norm(dim=1, keepdim=True))
    return sae.eval(), standardizer


@pytest.fixture(scope="module")
def text():
    """Our model, sequences of it, their model, the token ids, our activations."""
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="transformer-lens is not installed")
    lm = tiny("GPT-2 with head")
    ids = torch.randint(5, 31, (N, CONTEXT), generator=rng(0))
    theirs = bridge.TransformerBridge.boot_transformers("gpt2", hf_model=lm.model, tokenizer=lm.tokenizer)
    sequences = TokenSequences(ids.tolist(), torch.zeros_like(ids).tolist(), torch.zeros_like(ids).tolist())
    return lm, sequences, theirs, ids, extract_activations(lm, sequences, LAYER).x


def loaded(folder):
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    return sae_lens.SAE.load_from_disk(folder)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_saebench_core_measures_what_we_measure(tmp_path, text, kind):
    pytest.importorskip("sae_bench", reason="sae-bench is not installed")
    from datasets import Dataset
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens.training.activations_store import ActivationsStore

    lm, sequences, model, ids, x = text
    sae, standardizer = trained(x, kind)
    save_saelens(
        sae,
        tmp_path,
        standardizer=standardizer,
        nonnegative=kind == "AbsTopK",
        model_name="gpt2",
        hook_name=HOOK,
        context_size=CONTEXT,
    )
    _, theirs, _ = load_and_format_sae("ours", loaded(tmp_path), "cpu")
    store = ActivationsStore.from_sae(
        model, theirs, dataset=Dataset.from_dict({"tokens": ids.tolist()}), streaming=False, store_batch_size_prompts=8
    )
    config = CoreEvalConfig(
        model_name="gpt2", context_size=CONTEXT, batch_size_prompts=8, n_eval_reconstruction_batches=N // 8,
        n_eval_sparsity_variance_batches=N // 8, **{f"compute_{name}": True for name in METRICS},
    )  # fmt: skip
    found, of_latents = run_evals(theirs, store, model, config)
    seen = standardizer.transform(x)
    ours = evaluate(sae, seen)
    loss = measure_loss(lm, sae, sequences, LAYER, standardizer=standardizer)
    with torch.no_grad():
        x_hat = standardizer.inverse(sae(seen).x_hat)
        acts = (to_nonnegative(sae) if kind == "AbsTopK" else sae).encode(seen)
    kept = found["model_performance_preservation"]
    assert kept["ce_loss_without_sae"] == pytest.approx(loss.clean, rel=1e-5)
    assert kept["ce_loss_with_sae"] == pytest.approx(loss.patched, rel=1e-5)
    assert kept["ce_loss_with_ablation"] == pytest.approx(loss.zero, rel=1e-5)
    assert kept["ce_loss_score"] == pytest.approx(loss.loss_recovered("zero"), rel=1e-2)
    assert found["sparsity"]["l0"] == pytest.approx(ours.l0, rel=1e-5)
    assert found["shrinkage"]["l2_norm_out"] == pytest.approx(float(x_hat.norm(dim=1).mean()), rel=1e-4)
    # a sum of squares a sample, divided by the samples of a batch
    assert found["reconstruction_quality"]["mse"] == pytest.approx(
        float((x - x_hat).square().sum(1).mean()) / (8 * CONTEXT), rel=1e-4
    )
    density = torch.tensor(of_latents["feature_density"])
    torch.testing.assert_close(density, (acts > 0).float().mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["TopK", "ReLU"])
def test_saebench_probes_classes_by_latents(tmp_path, text, monkeypatch, kind):
    """Two made languages, which write the first and the second half of the alphabet, a fifth of letters from the other one."""
    pytest.importorskip("sae_bench", reason="sae-bench is not installed")
    from sae_bench.evals.sparse_probing.probe_training import train_probe_on_activations
    from sae_bench.sae_bench_utils.activation_collection import get_sae_meaned_activations

    lm, *_ = text
    parts = {}
    for seed, name in enumerate(("first", "second")):
        own = torch.randint(5, 18, (400, CONTEXT), generator=rng(seed)) + 13 * seed
        other = torch.rand(own.shape, generator=rng(9 + seed)) < 0.2
        ids = torch.where(other, 5 + (own - 5 + 13) % 26, own)
        blank = torch.zeros_like(ids).tolist()
        parts[name] = extract_activations(lm, TokenSequences(ids.tolist(), blank, blank), LAYER).x.reshape(400, CONTEXT, -1)
    sae, standardizer = trained(torch.cat([part[:300].flatten(0, 1) for part in parts.values()]), kind)
    theirs = loaded(save_saelens(sae, tmp_path, standardizer=standardizer, hook_name=HOOK, model_name="gpt2"))
    means = get_sae_meaned_activations(parts, theirs, 125)
    for name, part in parts.items():
        with torch.no_grad():
            expected = sae.encode(standardizer.transform(part.flatten(0, 1))).reshape(400, CONTEXT, -1).mean(1)
        torch.testing.assert_close(means[name], expected, rtol=1e-3, atol=1e-4)
    # the shapes that it declares do not allow for the other class's rows, where jaxtyping checks them
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    train, test = ({name: acts[at] for name, acts in means.items()} for at in (slice(0, 300), slice(300, None)))
    for k in (1, 5):
        _, accuracies = train_probe_on_activations(train, test, select_top_k=k)
        assert min(accuracies.values()) > 0.65


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_sae_dashboard_draws_a_page(tmp_path, text, kind):
    pytest.importorskip("sae_dashboard", reason="sae-dashboard is not installed")
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    _, _, model, ids, x = text
    sae, standardizer = trained(x, kind, one_norm=True)
    save_saelens(
        sae, tmp_path / "sae", standardizer=standardizer, nonnegative=kind == "AbsTopK", unit_rows=True, model_name="gpt2", hook_name=HOOK,
        context_size=CONTEXT,
    )  # fmt: skip
    with torch.no_grad():
        acts = (to_nonnegative(sae) if kind == "AbsTopK" else sae).encode(standardizer.transform(x))
    latents = acts.sum(0).topk(3).indices.tolist()
    data = SaeVisRunner(SaeVisConfig(hook_point=HOOK, features=latents, minibatch_size_tokens=8)).run(
        encoder=loaded(tmp_path / "sae"), model=model, tokens=ids
    )
    for latent in latents:  # their three decimals of a percentage tell single tokens apart
        shown = data.feature_data_dict[latent].acts_histogram_data
        assert shown is not None
        assert f"{float((acts[:, latent] > 0).float().mean()):.3%}" in shown.title
    save_feature_centric_vis(data, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<html" in page.lower() or "<div" in page
    assert json.dumps(latents[-1]) in page
