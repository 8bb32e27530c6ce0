"""The published comparison and its ablations, as the authors' scripts run them on images
and, with `LANGUAGE_MODEL`, on a language model's activations.

Their choices, kept here and named: "topk" selects by magnitude (AbsTopK); the SGD baseline ties W_dec to W_enc^T while
PAM is untied; W_enc starts at 0.1 N(0, 1), far too large for a tied decoder; the step size is constant and common to
both methods, 3e-3; the decoder's weights are solved without the bias and the decay enters that solve squared; pixels
are normalised by the mean and standard deviation of all of MNIST; mu = nu is L2 on W_enc and b_enc, not a pull to the
previous encoder (options `mu`/`nu` here are the pull of the paper's text); one measurement at the last epoch. On language models:
dimensions are standardised each; PAM's decoder is solved before each epoch of its encoder, so it is measured stale, and PAM alone
clips gradients (at 1 here). Normalisation is by the training subset, where theirs precedes the split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from experiments.compare import t_interval
from experiments.runs import Run, pool_size
from experiments.store import RecordStore

PAPER = {"SGD tied": (("init", "mnist-paper"), ("schedule", "constant")),
         "PAM published": (("init", "mnist-paper"), ("schedule", "constant"))}  # fmt: skip
"""The authors' two rows."""
CAUSES = {
    "SGD untied": (("init", "mnist-paper"), ("schedule", "constant")),
    "SGD tied, unit start": (("schedule", "constant"),),
    "PAM joint bias": (("init", "mnist-paper"), ("schedule", "constant")),
}
"""Rows that change one choice each, to show what makes the published ordering."""
PARTS = ("sizes", "encoder_updates", "k", "weight_decay", "mu_nu", "mu_nu_pull")
DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class PaperConfig:
    """Settings of the published comparison."""

    data: str = "mnist"
    source: str = ""
    """The key of the data's `experiments.sources.Source`."""
    k: int = 15
    n_latents: int = 256
    activations: tuple[str, ...] = ("AbsTopK", "ReLU")
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    ablation_shares: tuple[float, ...] = (0.05, 0.25)
    ablation_activations: tuple[str, ...] = ("AbsTopK", "ReLU")
    epochs: int = 10
    lr: float = 3e-3
    l1: float = 1e-5
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder_updates: tuple[int, ...] = (1, 3, 5, 10)
    batch_size: int = 128
    ks: tuple[int, ...] = ()
    """Numbers of active latents of the k ablation, beside `k`."""
    decays: tuple[float, ...] = DECAYS
    pulls: tuple[float, ...] = DECAYS
    """Strengths of mu = nu."""
    decoder_pull: bool = True
    """nu acts too, and mu = nu is shown as the image scripts code it as well; on language models mu alone ever acts."""
    normalise: str = "published"
    """As `Run.normalise`; "published" on other data than MNIST is the training subset's."""
    pam_options: tuple[tuple[str, Any], ...] = ()
    """What the authors' PAM does besides: on language models it solves before each epoch, and it alone clips gradients."""

    def run(self, method: str, activation: str, share: float, options: tuple[tuple[str, Any], ...]) -> Run:
        """One run of the paper's settings, at seed 0."""
        if activation == "ReLU":
            options = (*options, ("l1", self.l1))
        name = method.removesuffix(", unit start")
        if method == "PAM published":
            options = (*options, *self.pam_options)
        return Run(
            data=self.data, source=self.source, method=name, activation=activation, k=self.k, n_latents=self.n_latents,
            batch_size=self.batch_size,
            n_train=round(share * pool_size(self.data)), epochs=self.epochs, lr=self.lr, seed=0,
            normalise="train" if (self.normalise, self.data) == ("published", "digits") else self.normalise, options=options,
        )  # fmt: skip


LANGUAGE_MODEL = PaperConfig(
    data="google/gemma-2-2b-12@last", k=320, n_latents=4_096, epochs=50, lr=1e-3, batch_size=256, normalise="per_feature",
    ablation_activations=("AbsTopK",), ks=(15, 20, 40, 80, 160, 640, 1_280), pulls=(0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), decoder_pull=False,
    pam_options=(("solve_first", True), ("clip", 1.0)),
)  # fmt: skip
"""Last tokens of 10,000 texts on layer 12 of Gemma 2 2B: for a GPU with access to the hub."""
SMALL_LANGUAGE_MODEL = replace(
    LANGUAGE_MODEL, data="minilm-3", k=60, n_latents=768, epochs=20, shares=(0.01, 0.05, 0.1), ablation_shares=(0.05,),
    ks=(4, 15, 30, 120, 240),
)  # fmt: skip
"""The same on MiniLM, every token of it, at the same share of active latents, for two CPU cores."""


def plan(config: PaperConfig) -> list[tuple[str, str, Any, Run]]:
    """(part, row name, setting, run at seed 0) of every point."""
    points: list[tuple[str, str, Any, Run]] = []
    for activation in config.activations:
        for share in config.shares:
            for method, options in {**PAPER, **CAUSES}.items():
                points.append(("sizes", method, None, config.run(method, activation, share, options)))
    for activation, share in itertools.product(config.ablation_activations, config.ablation_shares):

        def add(
            part: str, method: str, setting: Any, *extra: tuple[str, Any], activation: str = activation, share: float = share
        ) -> None:
            points.append((part, method, setting, config.run(method, activation, share, (*PAPER[method], *extra))))

        for updates in config.encoder_updates:
            add("encoder_updates", "PAM published", updates, *([("encoder_updates", updates)] if updates > 1 else []))
        for k in (*config.ks, config.k) if config.ks and activation != "ReLU" else ():
            for method in PAPER:
                points.append(("k", method, k, replace(config.run(method, activation, share, PAPER[method]), k=k)))
        for strength in config.decays:
            for method in PAPER:
                add("weight_decay", method, strength, *([("weight_decay", strength)] if strength > 0 else []))
        for strength in config.pulls:
            on = strength > 0  # at 0 the base run serves
            for method in PAPER:
                # as coded: L2 on W_enc and b_enc, whose gradient 2 mu W is Adam's decay of 2 mu; none in the solve
                l2 = [("weight_decay", 2 * strength), ("decay_biases", True)]
                if config.decoder_pull:
                    add("mu_nu", method, strength, *(l2 if on else []), *([("ridge", 0.0)] if on and "PAM" in method else []))
            pull = [("mu", strength), ("nu", strength if config.decoder_pull else 0.0)]
            add("mu_nu_pull", "PAM published", strength, *(pull if on else []))
    return points


def paper_parts(config: PaperConfig) -> tuple[str, ...]:
    """The parts that `plan` has points of."""
    found = {part for part, *_ in plan(config)}
    return tuple(part for part in PARTS if part in found)


def run_paper(
    config: PaperConfig, part: str, store: RecordStore, complete: Callable[[Iterable[Run], str], None]
) -> list[dict[str, Any]]:
    """Carry out one part of the published comparison, of PARTS; returns its table rows."""
    points = [point for point in plan(config) if point[0] == part]
    complete([replace(run, seed=seed) for _, _, _, run in points for seed in config.seeds], part)
    rows = []
    for part, name, setting, run in points:
        records = [store.get(replace(run, seed=seed)) for seed in config.seeds]
        tests = [record["test_last"] for record in records]
        rows.append(
            {
                "part": part, "activation": run.activation, "n_train": run.n_train, "method": name, "setting": setting,
                "fvu": [t["fvu"] for t in tests], "l0": t_interval([t["l0"] for t in tests]).mean,
                "frac_dead": t_interval([t["frac_dead"] for t in tests]).mean, "seeds": list(config.seeds),
            }
        )  # fmt: skip
    return rows
