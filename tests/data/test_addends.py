"""Which module's output a block adds, on blocks whose answer is written in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splinterp.data import LanguageModel, extract_activations
from splinterp.data._addends import addend
from tests.data.tiny_models import NO_ENDS, SIZES, letters, tiny, word_tokenizer

D = 16


class Tupled(nn.Linear):
    """An attention that gives its weights too."""

    def forward(self, x):
        return super().forward(x), None


class AddsItself(nn.Module):
    """A part that takes the residual and gives the new stream."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(D, D)

    def forward(self, x, residual):
        return self.dense(x) + residual


class Block(nn.Module):
    """A block of a kind, named by how it adds."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second, self.after, self.later = (nn.LayerNorm(D) for _ in range(4))
        self.scale = nn.Parameter(torch.full((D,), 0.3))
        self.drop = nn.Dropout(0.5)
        self.attn, self.mlp = Tupled(D, D), nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        if kind == "itself":
            self.attn, self.mlp = AddsItself(), AddsItself()
        for norm in (self.first, self.second, self.after, self.later):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
        if kind.startswith("silent"):
            for last in (self.attn, self.mlp[-1]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, x):
        match self.kind:
            case "plain" | "silent":
                x = x + self.attn(self.first(x))[0]
                return x + self.mlp(self.second(x))
            case "in place":
                x = x.clone()
                x += self.drop(self.attn(self.first(x))[0])
                x += self.drop(self.mlp(self.second(x)))
                return x
            case "parallel":
                return x + self.attn(self.first(x))[0] + self.mlp(self.second(x))
            case "post-norm":
                x = self.first(x + self.attn(x)[0])
                return self.second(x + self.mlp(x))
            case "sandwich":
                x = x + self.after(self.attn(self.first(x))[0])
                return x + self.later(self.drop(self.mlp(self.second(x))))
            case "norm of the output":
                x = x + self.after(self.attn(x)[0])
                return x + self.later(self.mlp(x))
            case "itself":
                x = self.attn(self.first(x), x)
                return self.mlp(self.second(x), residual=x)
            case "multiplied" | "silent and multiplied":
                x = x + 0.9 * self.attn(self.first(x))[0]
                return x + self.mlp(self.second(x)) * 1.1
            case "scaled by channel":
                x = x + self.scale * self.attn(self.first(x))[0]
                return x + self.scale * self.mlp(self.second(x))
            case "end scaled":
                return 0.5 * (x + self.attn(self.first(x))[0] + self.mlp(self.second(x)))
            case "nothing added":
                return self.mlp(self.attn(x)[0])


ANSWERS = {
    "plain": ("attn", "mlp"), "silent": ("attn", "mlp"), "in place": ("attn", "mlp"), "parallel": ("attn", "mlp"),
    "post-norm": ("attn", "mlp"), "sandwich": ("after", "later"), "norm of the output": ("after", "later"),
    "itself": ("attn.dense", "mlp.dense"), "multiplied": (None, None), "silent and multiplied": (None, None),
    "scaled by channel": (None, None), "end scaled": (None, None), "nothing added": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ANSWERS)
def test_the_answer_is_the_blocks(kind, dtype, size):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        block = Block(kind).to(dtype).eval()
        x = (torch.randn(1, 6, D) * size).to(dtype)

    @torch.no_grad()
    def run():
        block(x)

    found = [addend(block, block.attn, [block.mlp], run), addend(block, block.mlp, [block.attn], run)]
    names = {module: name for name, module in block.named_modules()}
    assert tuple(None if each is None else names[each] for each in found) == ANSWERS[kind]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_multipliers_are_refused_by_name():
    transformers = pytest.importorskip("transformers")
    for multiplier, site in ((0.22, "mlp"), (0.22, "attention"), (1.0, "mlp"), (1.0, "attention")):
        config = transformers.GraniteConfig(**SIZES, intermediate_size=32, residual_multiplier=multiplier, **NO_ENDS)
        lm = LanguageModel(transformers.GraniteModel(config), word_tokenizer(False), "granite")
        if multiplier == 1.0:
            assert extract_activations(lm, [letters(9)], 2, site).x.shape == (9, 16)
            continue
        for _ in range(2):  # what was measured is kept, and refused again
            with pytest.raises(ValueError, match=rf"site='{site}' of granite: .*GraniteDecoderLayer.*take site='residual'"):
                extract_activations(lm, [letters(9)], 2, site)
        assert extract_activations(lm, [letters(9)], 2).x.shape == (9, 16)


def test_each_layer_is_measured_once_and_runs_nothing_above():
    lm, ran = tiny("OLMo 2"), []
    for i, block in enumerate(lm.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    one = lm.module(2, "mlp")
    assert one == (lm.blocks[1].post_feedforward_layernorm, False)
    assert set(ran) == {0, 1}
    n = len(ran)
    assert lm.module(2, "mlp") == one
    assert len(ran) == n
