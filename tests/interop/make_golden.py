"""Write small files with the field's own libraries, beside what these make of some samples: `make golden` runs it.

They are committed, so that reading is tested where the libraries are not installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden"
D, M, K, N = 6, 10, 3, 40


def moved(module: Any, seed: int) -> Any:
    """Every parameter away from its start; thresholds above 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=g))
            if "threshold" in name:
                p.abs_().add_(0.05)
    return module.eval() if isinstance(module, torch.nn.Module) else module


def kept(name: str, write: Callable[[Path], Any], made: Callable[[torch.Tensor], torch.Tensor], about: dict[str, str]) -> None:
    """One folder: the library's files, and samples with its reconstructions."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x_hat = made(x)
    save_file({"x": x, "x_hat": x_hat.float().contiguous()}, folder / "samples.safetensors", metadata=about)


def saelens() -> None:
    import sae_lens as lens

    about = {"library": f"sae-lens {lens.__version__}"}
    kinds = {
        "standard": (lens.StandardSAE, lens.StandardSAEConfig, {}), "topk": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K}),
        "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig, {}), "gated": (lens.GatedSAE, lens.GatedSAEConfig, {}),
        "standard_not_centred": (lens.StandardSAE, lens.StandardSAEConfig, {"apply_b_dec_to_input": False}),
    }  # fmt: skip
    for seed, (name, (kind, config, options)) in enumerate(kinds.items()):
        cfg = config(d_in=D, d_sae=M, **options)
        cfg.metadata.model_name, cfg.metadata.hook_name = "gpt2", "blocks.1.hook_resid_post"
        sae = moved(kind(cfg), seed)
        kept(f"saelens_{name}", lambda folder, sae=sae: sae.save_model(folder), sae, about)


def dictionary_learning() -> None:
    from importlib.metadata import version

    from dictionary_learning import dictionary as own
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    about = {"library": f"dictionary-learning {version('dictionary-learning')}"}
    kinds = {
        "AutoEncoder": lambda: own.AutoEncoder(D, M), "AutoEncoderNew": lambda: own.AutoEncoderNew(D, M),
        "GatedAutoEncoder": lambda: own.GatedAutoEncoder(D, M), "JumpReluAutoEncoder": lambda: own.JumpReluAutoEncoder(D, M),
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K), "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, group_sizes=[4, 6]),
    }  # fmt: skip
    for seed, (name, make) in enumerate(kinds.items()):
        model = moved(make(), 10 + seed)
        if "BatchTopK" in name:
            model.threshold.fill_(0.7)
        config = {"trainer": {"dict_class": name, "activation_dim": D, "dict_size": M, "k": K, "lm_name": "gpt2", "layer": 1}}

        def write(folder: Path, model: Any = model, config: Any = config) -> None:
            torch.save(model.state_dict(), folder / "ae.pt")
            (folder / "config.json").write_text(json.dumps(config))

        kept(f"dictionary_learning_{name}", write, model, about)


def sparsify() -> None:
    from importlib.metadata import version

    from sparsify import SparseCoder, SparseCoderConfig

    about = {"library": f"eai-sparsify {version('eai-sparsify')}"}
    sae = moved(SparseCoder(D, SparseCoderConfig(num_latents=M, k=K, normalize_decoder=False)), 30)
    kept("sparsify_topk", sae.save_to_disk, lambda x: sae(x).sae_out, about)


def overcomplete() -> None:
    """Its SAEs alone: the package imports models of images, whose libraries are not needed for them."""
    import importlib.util
    import sys
    import types
    from importlib.metadata import version

    spec = importlib.util.find_spec("overcomplete")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType("overcomplete")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["overcomplete"] = package
    from overcomplete import sae as own

    about = {"library": f"overcomplete {version('overcomplete')}"}
    points = torch.randn(12, D, generator=torch.Generator().manual_seed(5))
    kinds = {
        "SAE": lambda: own.SAE(D, M, dictionary_params={"use_multiplier": True}), "TopKSAE": lambda: own.TopKSAE(D, M, top_k=K),
        "TopKSAE_batch_norm": lambda: own.TopKSAE(D, M, top_k=K, encoder_module="mlp_bn_1"),
        "TopKSAE_max_l1": lambda: own.TopKSAE(D, M, top_k=K, dictionary_params={"normalization": "max_l1"}),
        "TopKSAE_tied": lambda: own.TopKSAE(D, M, top_k=K).tied(bias=True),
        "TopKSAE_untied": lambda: own.TopKSAE(D, M, top_k=K).untied(bias=True), "JumpSAE": lambda: own.JumpSAE(D, M),
        "BatchTopKSAE": lambda: own.BatchTopKSAE(D, M, top_k=K * N), "RATopKSAE": lambda: own.RATopKSAE(D, M, points=points, top_k=K),
    }  # fmt: skip
    for seed, (name, make) in enumerate(kinds.items()):
        model = moved(make().train(), 50 + seed).train()
        with torch.no_grad():
            model(2 * torch.randn(N, D, generator=torch.Generator().manual_seed(seed)))  # statistics, thresholds
        model.eval()
        threshold = getattr(model, "running_threshold", None)
        said = {**about, "threshold": "" if threshold is None else str(float(threshold))}

        def write(folder: Path, model: Any = model) -> None:
            torch.save(model.state_dict(), folder / "state.pt")

        kept(f"overcomplete_{name}", write, lambda x, model=model: model(x)[2], said)


if __name__ == "__main__":
    for write in (saelens, dictionary_learning, sparsify, overcomplete):
        write()
