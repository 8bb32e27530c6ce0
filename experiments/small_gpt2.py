"""A small GPT-2-shaped language model, trained for a few minutes on Python's documentation and kept in the cache.

It makes cross-entropies and interventions possible where no model hub can be reached. The topics that `experiments.texts` keeps
for testing are left out of its training.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from experiments.texts import PYTHON, SMALL_GPT2, cache_folder, documents
from splinterp.data import LanguageModel, pack_tokens


@dataclass(frozen=True)
class Config:
    """Of the model and its training."""

    n_layer: int = 4
    n_embd: int = 128
    n_head: int = 4
    context: int = 128
    vocabulary: int = 2_048
    steps: int = 1_200
    batch_size: int = 16
    """Sequences."""
    lr: float = 2e-3
    seed: int = 0


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of the texts, with <|endoftext|> for its end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment, unused-ignore]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment, unused-ignore]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def train(config: Config, texts: list[str], folder: Path) -> None:
    """Train tokenizer and model, and write both to `folder`, whole or not at all."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = train_tokenizer(texts, config.vocabulary)
    packed = pack_tokens(tokenizer, texts, config.context, across_documents=True)
    ids = torch.tensor([row for row in packed.ids if len(row) == config.context])
    g = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():  # transformers draws weights from the global generator
        torch.manual_seed(config.seed)
        end = tokenizer.eos_token_id
        model = GPT2LMHeadModel(GPT2Config(
            n_layer=config.n_layer, n_embd=config.n_embd, n_head=config.n_head, n_positions=config.context, vocab_size=len(tokenizer),
            bos_token_id=end, eos_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.05)
    model.train()
    for _ in tqdm(range(config.steps), desc=SMALL_GPT2, unit="step", mininterval=5):
        batch = ids[torch.randint(len(ids), (config.batch_size,), generator=g)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".small-gpt2"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recipe(config: Config | None = None) -> str:
    """Names the model, before it is trained: its weights differ with the machine."""
    texts = documents(PYTHON).training
    return f"{SMALL_GPT2}-" + hashlib.sha256(f"{asdict(config or Config())} {chr(0).join(texts)}".encode()).hexdigest()[:12]


def load(config: Config | None = None) -> LanguageModel:
    """The trained model with its head, trained first where the cache does not have it."""
    config = config or Config()
    name = recipe(config)
    folder = cache_folder() / name
    if not folder.exists():
        train(config, documents(PYTHON).training, folder)
    model = LanguageModel.load(folder, causal=True)
    model.name = name
    return model


def command(argv: list[str]) -> Path:
    """`python -m experiments small_gpt2`"""
    parser = argparse.ArgumentParser(prog="python -m experiments small_gpt2", description=__doc__)
    parser.parse_args(argv)
    load()
    folder = cache_folder() / recipe()
    print(f"a model with its tokenizer, for LanguageModel.load or python -m splinterp train --model: {folder}")
    return folder
