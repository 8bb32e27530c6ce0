"""One training run: what it is, how it is carried out, and what is kept of it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch

import splinterp
from experiments.activations import last_tokens, raw_tokens
from experiments.recipe import digest, essence, options_of
from experiments.sources import IMAGES, LAST, source_of, split_name
from splinterp import PAMSGD, SAE, SGD, BiasAdaptation, DivergenceError, FitResult, fit
from splinterp.activations import Activation
from splinterp.data import Standardizer, load_digits, load_mnist
from splinterp.encoders import InputNoise, Linear
from splinterp.losses import AuxK, SquaredError
from splinterp.metrics import evaluate
from splinterp.sae_start import started_bias
from splinterp.training import Racing, Resampling

VALIDATION = {"mnist": 5_000, "digits": 237}
WIDTHS = {"mnist": 784, "digits": 64}
TOKEN_WIDTHS = {"minilm": 384, "small-gpt2": 128}
"""Of the language models that are tried without a network."""
TOKEN_POOL = 110_000
"""Training tokens of a language model that subsets are drawn from."""
TEXT_POOL = 9_000
"""Training texts of a language model whose last tokens are used; a ninth as many are for validation, and again for testing."""
SPLIT_SEED = 2025
LOGGED_ROWS = 20

SOLVE_GAP = 50
"""Least number of steps between solves of all samples, in the comparisons; by default their cost decides since (`solves`)."""

TIMED_AS_THEN: dict[str, Any] = {"solve_gap": SOLVE_GAP, "hold": 0.0, "decoder_lr": 1.0, "readout": False}
AS_THEN: dict[str, Any] = {**TIMED_AS_THEN, "ridge": "gcv"}
"""What was the default when the first comparison was made; the former for those that have a ridge of their own."""

DEFAULT = "PAM-SGD"
"""At the defaults of today, centred: the entry of the second comparison."""
HOLDS = {f"{DEFAULT}, hold {hold:g}": hold for hold in (0.0, 0.1, 1.0)}
"""Beside it, fixed rules for when the residual is let in."""
STEPS = {f"{DEFAULT}, decoder_lr {factor:g}": factor for factor in (1.0, 0.3)}
SMALLER_CONTROLS = {f"SGD tied-residual, decoder_lr {factor:g}": factor for factor in (0.3, 0.1)}
"""PAM-SGD, whatever the activation, and the control on the same decoder, by the step size of the residual."""
OPEN, SLOWER = next(iter(HOLDS)), next(iter(SMALLER_CONTROLS))
"""PAM-SGD with its residual let in from the start; the control with the larger of the smaller steps."""

METHODS: dict[str, dict[str, Any]] = {
    # the rows of the comparison: one PAM entry, four controls with the same optimizer, schedule, W_enc and data order
    "SGD tied": {"method": SGD, "decoder": "tied"},
    "SGD untied": {"method": SGD, "decoder": "free", "init_dec": "random"},
    "SGD untied from W_enc^T": {"method": SGD, "decoder": "free", "init_dec": "transpose"},
    "SGD tied-residual": {"method": SGD, "decoder": "tied_residual"},
    "PAM": {"method": PAMSGD, "decoder": "tied_residual", **AS_THEN},
    # other variants of PAM, reported apart
    "PAM, one solve at the end": {"method": PAMSGD.final_solve, "decoder": "tied_residual"},
    "PAM, held": {"method": PAMSGD, "decoder": "tied_residual", **AS_THEN, "hold": 0.1},
    # of the second comparison
    DEFAULT: {"method": PAMSGD, "decoder": "tied_residual"},
    **{name: {"method": PAMSGD, "decoder": "tied_residual", "hold": hold} for name, hold in HOLDS.items()},
    **{name: {"method": PAMSGD, "decoder": "tied_residual", "decoder_lr": factor} for name, factor in STEPS.items()},
    **{name: {"method": SGD, "decoder": "tied_residual", "decoder_lr": factor} for name, factor in SMALLER_CONTROLS.items()},
    "PAM, race from the start": {"method": PAMSGD, "decoder": "tied_residual", "hold": "race", "racing": Racing(begin=0.0)},
    "PAM, race of a tenth": {"method": PAMSGD, "decoder": "tied_residual", "hold": "race", "racing": Racing(length=0.1)},
    "PAM published": {
        "method": PAMSGD.published,
        "decoder": "free",
        "init_dec": "random",
        "schedule": "cosine",
        **TIMED_AS_THEN,
    },
    "PAM joint bias": {
        "method": PAMSGD.published,
        "decoder": "free",
        "init_dec": "random",
        "schedule": "cosine",
        "bias": "joint",
        **TIMED_AS_THEN,
    },
    "PAM encoder-only, GCV": {
        "method": PAMSGD,
        "decoder": "free",
        "init_dec": "random",
        "gradient": "encoder",
        **AS_THEN,
    },
    "PAM untied, GCV": {"method": PAMSGD, "decoder": "free", "init_dec": "random", **AS_THEN},
    "PAM encoder-only tied-residual": {
        "method": PAMSGD,
        "decoder": "tied_residual",
        "gradient": "encoder",
        **AS_THEN,
    },
}
"""What makes a row: the method, the decoder it trains, and the options that differ from the defaults."""


def _adapted(base: type[SGD | PAMSGD]) -> Callable[..., BiasAdaptation]:
    def method(lr: float, share: float) -> BiasAdaptation:
        own = PAMSGD(lr=lr, **AS_THEN) if base is PAMSGD else base(lr=lr)
        return BiasAdaptation(base=own, target_frequencies=share, gamma_up=0.1, gamma_down=0.1, every=50, gain=1.0)

    return method


REMEDIES = ("none", "AuxK", "resampling", "bias adaptation")
"""Against latents that die, by SGD and PAM-SGD; `share` is k / n_latents."""
_BASES: dict[str, type[SGD | PAMSGD]] = {"SGD": SGD, "PAM": PAMSGD}
for _name, _base in _BASES.items():
    _timed = AS_THEN if _base is PAMSGD else {}
    METHODS[f"{_name}, none"] = {"method": _base, **_timed}
    METHODS[f"{_name}, AuxK"] = {"method": _base, **_timed, "terms": (SquaredError(), AuxK())}
    METHODS[f"{_name}, resampling"] = {"method": _base, **_timed, "resample": Resampling(every=100, dead_after=10_000)}
    METHODS[f"{_name}, bias adaptation"] = {"method": _adapted(_base), "share": None}

THRESHOLDS = (0.5, 0.5)
"""Start of JumpReLU's thresholds and its bandwidth, in units of scores, whose deviation is about 1 at the start."""
SAE_OPTIONS = ("decoder", "init_dec", "init", "init_bias", "tie_scale", "b_pre", "encoder")


@dataclass(frozen=True)
class Run:
    """One training run; equal runs have equal keys, and a key that has a record is not run again."""

    data: str
    """"mnist", "digits", or MODEL-LAYER of a language model ("minilm-3"), with "@last" for the last token of each text."""
    method: str
    """A row of METHODS."""
    activation: str
    """Class name."""
    k: int
    """Active latents a sample (ignored by ReLU)."""
    n_latents: int
    n_train: int
    """Training images or tokens, drawn from the pool by `seed`."""
    epochs: int
    lr: float
    seed: int
    """Of the subset, the initial weights and the data order, three separate streams."""
    role: str = "reported"
    """"reported", or "tuning": the test split is not read."""
    batch_size: int = 128
    normalise: str = "train"
    """"train": mean and standard deviation of the training subset; "per_feature": those of each column of it; "published": 0.1307
    and 0.3081."""
    options: tuple[tuple[str, Any], ...] = field(default=())
    """Further options of the method or the SAE; "input_noise" is the scale of `InputNoise`."""
    source: str = ""
    """The key of the data's `experiments.sources.Source`; "": whatever the folder holds."""
    pool: int = 0
    """Tokens that training subsets are drawn from; 0: as `pool_size` says."""

    @property
    def key(self) -> str:
        """A hash of all fields that differ from their defaults."""
        return digest(self)

    @property
    def steps_per_epoch(self) -> int:
        """Gradient steps an epoch."""
        return math.ceil(self.n_train / self.batch_size)

    @property
    def cost(self) -> float:
        """Gradient steps of the run."""
        return float(self.epochs * self.steps_per_epoch)

    def recipe(self) -> str:
        """A hash of what the run's method means today: its options, and the SAE's, that are not neutral."""
        make, options, sae_options = _split(self, WIDTHS.get(self.data, 0))
        made = [essence(make(lr=self.lr, **options)), options_of(SAE, sae_options)]
        return digest([*made, essence(activation_of(self))] if self.activation == "JumpReLU" else made, 12)


@functools.lru_cache(maxsize=1)
def _images(data: str, data_dir: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(pool, validation, test): the validation images are the same for every run and no run trains on them."""
    images = load_digits() if data == "digits" else load_mnist(data_dir)
    order = torch.randperm(len(images.x_train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = VALIDATION[data]
    return images.x_train[order[held_out:]], images.x_train[order[:held_out]], images.x_test


def _samples(run: Run, data_dir: str | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(pool, validation, test) of images, or of a language model's activations. Raises ValueError: not the run's data."""
    if run.data in IMAGES:
        if run.source and source_of(run.data, data_dir).key != run.source:
            raise ValueError(f"the images of {run.data} are not those that the run is of (source {run.source})")
        return _images(run.data, data_dir)
    model, layer = split_name(run.data)
    read = last_tokens if run.data.endswith(LAST) else raw_tokens
    return read(model, layer, run.pool or pool_size(run.data), data_dir, run.source or None)


def pool_size(data: str) -> int:
    """Images or tokens that training subsets are drawn from."""
    if data not in VALIDATION:
        return TEXT_POOL if data.endswith(LAST) else TOKEN_POOL
    return {"mnist": 60_000, "digits": 1_437}[data] - VALIDATION[data]


def build(run: Run, d_in: int, device: str = "cpu") -> tuple[SAE, SGD | PAMSGD]:
    """The SAE and the method of a run."""
    make, options, sae_options = _split(run, d_in)
    generator = torch.Generator().manual_seed(10_000 + run.seed)
    options_then = {"b_pre": False, "init_bias": 0.0, **sae_options}
    sae = SAE(d_in, run.n_latents, activation_of(run), generator=generator, device=device, **options_then)
    return sae, make(lr=run.lr, **options)


def _split(run: Run, d_in: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The method's constructor, its options and those of the SAE."""
    options = {**METHODS[run.method], **dict(run.options)}
    make = options.pop("method")
    if options.get("solve_first") or options.get("decoder_every"):
        options.pop("solve_gap", None)
    if "input_noise" in options:
        options["encoder"] = InputNoise(options.pop("input_noise"), seed=run.seed)
    sae_options = {name: options.pop(name) for name in SAE_OPTIONS if name in options}
    if make is PAMSGD and width_of(run.data):  # as the method decides, so that the record says it
        opening = PAMSGD(lr=run.lr, **options).opening(activation_of(run), width_of(run.data))
        known = opening if sae_options.get("decoder") == "tied_residual" else (0.0, 1.0)
        options = {**dict(zip(("hold", "decoder_lr"), known, strict=True)), **options}
    if "share" in options:
        options["share"] = run.k / run.n_latents
    if options.get("mu") or options.get("nu"):
        options.update(n_samples=run.n_train, d_in=d_in)
    return make, options, sae_options


def width_of(data: str) -> int:
    """d_in of a run's samples; 0 where only the model knows it."""
    return WIDTHS.get(data) or (0 if data in IMAGES else TOKEN_WIDTHS.get(split_name(data)[0], 0))


def activation_of(run: Run) -> Activation:
    """The run's activation."""
    made = getattr(splinterp, run.activation)
    if run.activation == "JumpReLU":
        return made(*THRESHOLDS)
    return made(run.k) if "TopK" in run.activation else made()


def start_of(run: Run) -> tuple[tuple[str, Any], ...]:
    """What an SAE made with no `init_bias` would have, as an option of the run; none where that is 0."""
    if not width_of(run.data):
        return ()
    bias, few = started_bias(None, width_of(run.data), run.n_latents, activation_of(run), Linear())
    return (("init_bias", bias),) if few else ()


def as_default(run: Run) -> Run:
    """The default's run where a variant of it is the same training, as `hold` 0 is where the default has that; else the run."""
    if run.method not in (*HOLDS, *STEPS):
        return run
    default = replace(run, method=DEFAULT)
    return default if default.recipe() == run.recipe() else run


def run_from_record(record: dict[str, Any]) -> Run | None:
    """The run that a record describes; None if its method is not among METHODS any more."""
    fields = dict(record["run"])
    if fields["method"] not in METHODS:
        return None
    return Run(**{**fields, "options": tuple((name, value) for name, value in fields["options"])})


def digit_labels(data: str, data_dir: str | None = None) -> torch.Tensor:
    """The digits that the test images show."""
    return (load_digits() if data == "digits" else load_mnist(data_dir)).y_test


class Split(NamedTuple):
    """A run's images, standardised by its training subset."""

    x: torch.Tensor
    x_val: torch.Tensor
    x_test: torch.Tensor


def split(run: Run, data_dir: str | None = None, device: str = "cpu") -> Split:
    """The training subset that a run draws, the validation and the test samples."""
    pool, x_val, x_test = _samples(run, data_dir)
    subset = torch.randperm(len(pool), generator=torch.Generator().manual_seed(run.seed))[: run.n_train]
    x = pool[subset]
    standardizer = Standardizer("per_feature" if run.normalise == "per_feature" else "global").fit(x)
    if run.normalise == "published":
        standardizer.mean, standardizer.scale = torch.full((x.shape[1],), 0.1307), torch.full((x.shape[1],), 0.3081)
    return Split(*(standardizer.transform(part).to(device) for part in (x, x_val, x_test)))


def train(
    run: Run, data: Split, sae: SAE, method: SGD | PAMSGD, callback: Callable[[dict[str, float]], None] | None = None
) -> FitResult:
    """Train the SAE that `build` made. Raises DivergenceError."""
    return fit(
        sae, data.x, method, epochs=run.epochs, batch_size=run.batch_size, x_val=data.x_val,
        log_every=max(1, run.epochs // LOGGED_ROWS), train_eval_samples=2_000, callback=callback,
        generator=torch.Generator().manual_seed(20_000 + run.seed),
    )  # fmt: skip


def execute(run: Run, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and measure. A diverged run is a result: its errors are infinite."""
    data = split(run, data_dir, device)
    record: dict[str, Any] = {"key": run.key, "run": asdict(run)}
    sae, method = build(run, data.x.shape[1], device)
    best_state = _BestState(sae)
    try:
        result = train(run, data, sae, method, best_state)
    except DivergenceError as error:
        worst = {"fvu": math.inf, "l0": math.nan, "frac_dead": math.nan}
        choices = dict.fromkeys(("val_last", "val_best", "val_objective"), math.inf)
        return {**record, **choices, "diverged_at": error.step, "test_last": worst, "test_best": worst}
    with torch.no_grad():  # of the model at the end, penalty on the code included
        record["val_objective"] = float(method.loss(sae.eval(), data.x_val))
    last = result.history[-1]
    best = min(result.history, key=lambda row: row["val_fvu"])
    record |= {
        "steps": last["step"], "seconds": round(last["seconds"], 3), "train_last": last["train_fvu"],
        "val_last": last["val_fvu"], "val_best": best["val_fvu"], "best_step": best["step"],
        "l0": last["l0"], "frac_dead": last["frac_dead"],
    }  # fmt: skip
    if "ridge" in last:
        record["ridge"] = [float(f"{row['ridge']:.4g}") for row in result.history]
    race = getattr(result.state, "race", None)
    if race is not None:
        record["winner"] = race.winner or "none"
    if run.role == "reported":
        record["test_last"] = _measure(sae, data.x_test)
        sae.load_state_dict(best_state.parameters)
        record["test_best"] = _measure(sae, data.x_test)
    return record


class _BestState:
    """Callback that keeps the parameters of the logged row of lowest validation FVU."""

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self.lowest = math.inf
        self.parameters = copy.deepcopy(sae.state_dict())

    def __call__(self, row: dict[str, float]) -> None:
        if row["val_fvu"] < self.lowest:
            self.lowest, self.parameters = row["val_fvu"], copy.deepcopy(self.sae.state_dict())


def _measure(sae: SAE, x: torch.Tensor) -> dict[str, float]:
    result = evaluate(sae, x)
    return {"fvu": result.fvu, "l0": result.l0, "frac_dead": result.frac_dead}
