"""The README's Python examples run, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from splinterp.data import LanguageModel

README = Path(__file__).resolve().parent.parent / "README.md"


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    try:
        LanguageModel.load("minilm")
    except ImportError:
        blocks = [block for block in blocks if '"minilm"' not in block]
    names: dict[str, object] = {}
    before = torch.random.get_rng_state()
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    torch.random.set_rng_state(before)
    fvu, bounds, geometry = capsys.readouterr().out.splitlines()
    error, price, share = (float(value) for value in bounds.split())
    assert error > 0
    assert price > 0
    assert 0 <= share <= 1
    assert 0 < float(fvu) < 1
    n_cells, margin, n_regions = (float(value) for value in geometry.split())
    assert n_cells > 10
    assert margin > 0
    assert 1 <= n_regions <= 200
    assert (tmp_path / "my_sae" / "sae.safetensors").exists()
    assert names["W_dec"].shape == (256, 64)
    assert 0 < float(names["frequencies"].min()) < float(names["frequencies"].max()) < 0.5
    if "store" in names:
        assert names["store"].shape == (2_000, 384)
        assert names["minilm_sae"].W_dec.shape == (768, 384)


def test_commands_exist():
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", text, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / path).exists(), path
