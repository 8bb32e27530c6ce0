"""One training run of a variant of SAEs: its data, what is trained, what is measured."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from experiments.compositions import MEMBERS, VARIANTS, Parts, Setting
from experiments.recipe import digest, essence
from experiments.runs import WIDTHS, Run, Split, split
from splinterp import PAMSGD, SAE, SGD, ArchetypalSAE, DivergenceError, TopActs, TopK, fit
from splinterp.archetypal import ARCHETYPAL, centroids
from splinterp.data import FeatureTree
from splinterp.decoder import readout
from splinterp.decoder.groups import code_statistics
from splinterp.encoders import AdaptiveK, fit_probe
from splinterp.ensembles import Ensemble, bag, boost
from splinterp.inference import Dictionary, learn_dictionary, least_squares_codes
from splinterp.metrics import absorption, evaluate, fvu, match_features
from splinterp.metrics.features import unit_rows

TREE = "tree"
"""The data that are made here: features in trees."""
N_TREE = {"x": 20_000, "x_val": 4_000, "x_test": 10_000}
SEARCHED = 2_000
"""Test samples whose codes are searched for."""


OPTIMIZERS: dict[str, type[SGD | PAMSGD]] = {"SGD": SGD, "PAM-SGD": PAMSGD}
MOD = "MOD"
"""Neither: a dictionary learned by pursuits and exact solves."""


@dataclass(frozen=True)
class VariantRun:
    """One training run; equal runs have equal keys."""

    data: str
    variant: str
    optimizer: str
    knob: float
    lr: float
    seed: int
    n_latents: int
    n_train: int
    steps: int
    batch_size: int
    role: str = "reported"
    """"reported", or "tuning": the test split is not read."""
    source: str = ""

    @property
    def key(self) -> str:
        """A hash of all fields that differ from their defaults."""
        return digest(self)

    @property
    def cost(self) -> float:
        """Steps, times what a step costs beside one with sparse codes."""
        return float(self.steps) * (3.0 if self.variant == MOD else 1.0)

    def setting(self, d_in: int) -> Setting:
        """What the variant is made for."""
        return Setting(self.knob, d_in, self.n_latents, self.steps)

    def parts(self, d_in: int) -> Parts:
        """What the SAE and the method are made of."""
        return VARIANTS[self.variant].make(self.setting(d_in))

    def method(self, d_in: int) -> SGD | PAMSGD:
        """The method."""
        parts = self.parts(d_in)
        options: dict[str, Any] = {**({"hold": 0.0, "decoder_lr": 1.0} if self.optimizer == "PAM-SGD" else {}), **parts.options}
        return OPTIMIZERS[self.optimizer](lr=self.lr, terms=parts.terms, **options)

    def recipe(self) -> str:
        """A hash of what the run means today."""
        if self.variant == MOD:
            return digest([MOD, 20], 12)
        parts = self.parts(WIDTHS.get(self.data, 0))
        made = [
            essence(self.method(WIDTHS.get(self.data, 0))),
            essence(parts.activation),
            essence(parts.encoder),
            parts.decoder,
            *(["both signs"] if parts.activation.signed else []),
        ]
        return digest([*made, VARIANTS[self.variant].kind and [VARIANTS[self.variant].kind, MEMBERS]], 12)


def run_of(record: dict[str, Any]) -> VariantRun | None:
    """The run that a record is of; None if there is no such variant any more."""
    run = VariantRun(**record["run"])
    return run if run.variant == MOD or (run.variant in VARIANTS and run.optimizer in OPTIMIZERS) else None


def tree() -> FeatureTree:
    """12 trees of 1 + 3 + 6 features in 64 dimensions; 6.6 are active on average, one child of a feature at a time."""
    return FeatureTree(12, (3, 2), 64, p_root=0.25, p_child=0.7, exclusive=True, magnitudes=0.3, noise=0.02)


def tree_samples(seed: int) -> tuple[Split, torch.Tensor]:
    """Samples, and which features are active in the test samples: training samples by seed, the others always the same."""
    parts = {
        name: tree().sample(n, torch.Generator().manual_seed(seed if name == "x" else 10_000_000 + i))
        for i, (name, n) in enumerate(N_TREE.items())
    }
    scale = parts["x"].x.std()
    mean = parts["x"].x.mean(0)
    return Split(*((part.x - mean) / scale for part in parts.values())), parts["x_test"].codes != 0


def data_of(run: VariantRun, data_dir: str | None, device: str) -> tuple[Split, torch.Tensor | None]:
    """The samples of a run, and the truth where it is known."""
    if run.data == TREE:
        found, truth = tree_samples(run.seed)
        return Split(*(part.to(device) for part in (found.x[: run.n_train], found.x_val, found.x_test))), truth
    drawn = Run(
        data=run.data, method="PAM", activation="TopK", k=1, n_latents=1, n_train=run.n_train, epochs=1, lr=1e-3, seed=run.seed,
        source=run.source,
    )  # fmt: skip
    return split(drawn, None if run.data == "digits" else data_dir, device), None


def train_one(run: VariantRun, x: torch.Tensor, x_val: torch.Tensor, device: str, n_latents: int, seed: int) -> Any:
    """One SAE of the run's variant on x."""
    parts = run.parts(x.shape[1])
    options: dict[str, Any] = {"init_bias": 0.0, "generator": torch.Generator().manual_seed(10_000 + seed), "device": device}
    if parts.decoder == ARCHETYPAL:
        points = centroids(x, min(2 * n_latents, len(x)), random_state=seed)
        sae: SAE = ArchetypalSAE(x.shape[1], n_latents, parts.activation, points=points, **options)
    else:
        sae = SAE(x.shape[1], n_latents, parts.activation, parts.decoder, encoder=parts.encoder, **options)
    if isinstance(parts.encoder, AdaptiveK):
        _set_probe(run, sae, x, device)
    return fit(
        sae, x, run.method(x.shape[1]), steps=run.steps, batch_size=run.batch_size, x_val=x_val, log_every=10**9,
        train_eval_samples=2_000, generator=torch.Generator().manual_seed(20_000 + seed),
    ).sae  # fmt: skip


def _set_probe(run: VariantRun, sae: SAE, x: torch.Tensor, device: str) -> None:
    """How hard a sample is: what a TopK of a quarter of the latents, trained for a quarter of the steps, leaves of it."""
    k = run.setting(x.shape[1]).k
    small = SAE(x.shape[1], max(run.n_latents // 4, k), TopK(k), "tied", init_bias=0.0, generator=run.seed, device=device)
    fit(small, x, SGD(lr=run.lr), steps=max(1, run.steps // 4), batch_size=run.batch_size, log_every=10**9, generator=run.seed)
    with torch.no_grad():
        left = torch.cat([(part - small(part).x_hat).square().sum(1) for part in x.split(4096)])
    fit_probe(sae, x, left.log())


def execute_variant(run: VariantRun, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and measure. A diverged run is a result: its errors are infinite."""
    data, truth = data_of(run, data_dir, device)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run)}
    start = time.perf_counter()
    try:
        model = _trained(run, data, device)
    except DivergenceError as error:
        worst = {"fvu": math.inf, "l0": math.nan, "frac_dead": math.nan}
        return {**record, "diverged_at": error.step, "val": worst, "test": worst, "read": worst}
    record["seconds"] = round(time.perf_counter() - start, 3)
    found = evaluate(model, data.x_val)
    record["val"] = {"fvu": found.fvu, "l0": found.l0, "frac_dead": found.frac_dead}
    if run.role == "reported":
        record["test"] = measure(model, data.x_test, truth)
        record |= _better_codes(run, model, data) if run.variant == "TopK" else {}
        record |= _cuts(run, model, data) if run.variant in ("TopK", "HierarchicalTopK") else {}
        if run.variant != MOD:  # whose codes would be searched anew
            _read_out(model, data)  # last: it moves the decoder
            record["read"] = measure(model, data.x_test, truth)
    return record


def _trained(run: VariantRun, data: Split, device: str) -> Any:
    kind = "" if run.variant == MOD else VARIANTS[run.variant].kind
    if run.variant == MOD:
        return learn_dictionary(data.x, run.n_latents, int(run.knob), generator=run.seed)
    share = run.n_latents // MEMBERS
    if kind == "bagging":
        return bag(lambda member: train_one(run, data.x, data.x_val, device, share, MEMBERS * run.seed + member), MEMBERS)
    if kind == "boosting":

        def member_of(member: int, x: torch.Tensor, x_val: torch.Tensor | None) -> Any:
            assert x_val is not None
            return train_one(run, x, x_val, device, share, MEMBERS * run.seed + member)

        return boost(member_of, data.x, MEMBERS, data.x_val)
    return train_one(run, data.x, data.x_val, device, run.n_latents, run.seed)


@torch.no_grad()
def measure(model: Any, x: torch.Tensor, truth: torch.Tensor | None) -> dict[str, float]:
    """On test samples; with the truth, absorption (of features that have children) and recovery."""
    found = evaluate(model, x)
    signed = model.nonlinearity is not None and model.nonlinearity.signed
    rows = unit_rows(model.W_dec, "W_dec")
    found_cosines = rows @ rows.T  # a row and its negative are one latent where codes have both signs
    cosines = (found_cosines.abs() if signed else found_cosines).fill_diagonal_(-1.0).amax(1)
    result = {"fvu": found.fvu, "l0": found.l0, "frac_dead": found.frac_dead, "mean_max_cosine": float(cosines.mean())}
    if truth is not None:
        known, sample = tree(), slice(0, 4_000)
        acts = model.eval().encode(x[sample]).detach().cpu()
        absorbed = absorption(x[sample].cpu(), acts, model.W_dec.cpu(), known.features, truth[sample], b_dec=model.b_dec.cpu())
        parents = known.parents.unique()[1:]
        result["absorption"] = float(absorbed[parents].nanmean())
        result["recovery"] = match_features(model.W_dec.cpu(), known.features, signed=not signed).recovery(0.9)
    return result


@torch.no_grad()
def _read_out(model: Any, data: Split) -> None:
    """The decoder that training codes and held-out samples give for the codes as they are; of an ensemble, its joint solve; of rows that
    are held in a set, the best there."""
    if isinstance(model, Ensemble):
        model.solve(data.x)
        return
    block = model.decoder_block()
    if block.solve is not None:
        block.solve(code_statistics(model, data.x))
        return
    found = readout(
        code_statistics(model, data.x), code_statistics(model, data.x_val), model.W_dec, model.b_dec, prior=model.W_dec
    )
    block.write(found.W_dec, found.b_dec)


@torch.no_grad()
def _cuts(run: VariantRun, model: SAE, data: Split) -> dict[str, Any]:
    """Errors of the same SAE with fewer latents a sample, as it is and with a decoder read out for that number."""
    own = model.W_dec.detach().clone(), model.b_dec.detach().clone()
    cuts: dict[str, tuple[float, float]] = {}
    for share in (8, 4, 2, 1):
        k = max(1, int(run.knob) // share)
        with model.keeping(k):
            found = readout(code_statistics(model, data.x), code_statistics(model, data.x_val), *own, prior=own[0])
        errors = []
        for W_dec, b_dec in (own, (found.W_dec, found.b_dec)):
            model.decoder_block().write(W_dec, b_dec)
            with model.keeping(k):
                errors.append(evaluate(model, data.x_test).fvu)
        cuts[str(k)] = (errors[0], errors[1])
        model.decoder_block().write(*own)
    return {"cuts": cuts}


@torch.no_grad()
def _better_codes(run: VariantRun, model: SAE, data: Split) -> dict[str, Any]:
    """The amortisation gap: errors of the encoder's codes, of the best values on its support, and of pursuits, on some test samples."""
    x = data.x_test[:SEARCHED]
    code = model.encode_top(x)
    largest = code.top_indices.gather(1, code.top_acts.argmax(1, keepdim=True))
    support = torch.where(
        code.top_acts > 0, code.top_indices, largest
    )  # one that is there twice shares its value: none is added
    refitted = TopActs(least_squares_codes(x, model.W_dec, model.b_dec, support, nonnegative=True), support)
    found = {"encoder": fvu(x, model.decode(code)), "refitted": fvu(x, model.decode(refitted))}
    for pursuit in ("gradient", "omp"):
        found[pursuit] = evaluate(Dictionary.of(model, pursuit=pursuit), x).fvu
    return {"codes": found}


def tuning(run: VariantRun, lr: float, seed: int) -> VariantRun:
    """The same at another step size, its test split unread."""
    return replace(run, lr=lr, seed=seed, role="tuning")
