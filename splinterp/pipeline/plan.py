"""What is trained, on what, and how: one dataclass, which the command line and a file fill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from splinterp._checks import at_least, one_of, whole
from splinterp.activations import Activation, activation_from_config
from splinterp.data.manifest import DTYPES
from splinterp.data.token_rules import TokenRules
from splinterp.sae import SAE
from splinterp.sae_start import DECODERS
from splinterp.training import PAMSGD, SGD, StreamingPAMSGD

METHODS: dict[str, Any] = {"PAMSGD": PAMSGD, "SGD": SGD, "StreamingPAMSGD": StreamingPAMSGD}
"""Training methods by name. `BiasAdaptation` is made around one, in Python."""
ACTIVATIONS = ("TopK", "AbsTopK", "BatchTopK", "ReLU", "JumpReLU")
STANDARDIZERS = ("none", "global", "per_feature")


def option(default: Any, said: str) -> Any:
    """A field with a line of help; a list or dict is copied."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": said})
    return field(default=default, metadata={"help": said})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One SAE: the activations that it is trained on, what it is, and how it is trained.

    Raises:
        TypeError, ValueError: an option that does not fit, by its name.
    """

    model: str = field(metadata={"help": "a name on the Hugging Face hub, a folder, or minilm"})
    text: Sequence[str] = field(
        metadata={
            "help": "text files or folders of *.txt; 'python' (Python's documentation); or a data set of the hub, NAME or NAME:CONFIG"
        }
    )
    layer: int = field(metadata={"help": "as LanguageModel counts them: residual at L is the stream after L blocks"})
    site: str = option("residual", "residual, mlp, attention, or the name of a module")
    heading: str = option(
        "", "regular expression of a line that begins a new document in text files (WikiText: '^ = [^=].*[^=] = $')"
    )
    column: str = option("text", "of a data set")
    context: int = option(128, "tokens a sequence")
    bos: bool | None = option(None, "begin each sequence with the beginning-of-text token; null: where the tokenizer does")
    skip_first: int = option(0, "places at the beginning of each sequence that are left out")
    outliers: str = option("keep", "tokens of over ten times the median norm: keep, leave_out or cap")
    tokens: int = option(1_000_000, "activations to train on")
    validation_tokens: int = option(5_000, "held-out activations, of documents that are not trained on")
    stream: bool = option(False, "extract while training, with nothing on disk (StreamingPAMSGD or SGD; one pass)")
    store_dtype: str = option("float32", "of the store: float32, float16 or bfloat16")
    store: str = option(
        "", "folder of the activations (of a stream: the held-out ones), which runs may share; '': activations in the run's own"
    )
    standardizer: str = option("global", "none, global or per_feature")
    activation: str = option("TopK", ", ".join(ACTIVATIONS))
    k: int = option(32, "active latents a sample, of the TopK family")
    n_latents: int | None = option(None, "dictionary size; null: expansion times the width")
    expansion: float = option(8.0, "dictionary size over the width")
    decoder: str = option("tied_residual", "free, tied or tied_residual")
    method: str = option("PAMSGD", ", ".join(METHODS))
    method_options: dict[str, Any] = option(
        {}, "of the method: lr, l1, hold, ... (on the command line: --set lr=0.004 hold=0.1)"
    )
    epochs: int = option(1, "passes over the activations")
    batch_size: int = option(512, "activations a step")
    log_every_steps: int | None = option(None, "steps between history rows; null: ten rows in all")
    loss: bool = option(False, "measure the loss recovered, for which the language-modelling head is loaded")
    device: str = option("cpu", "cpu, cuda, cuda:1, ...")
    seed: int = option(0, "of the start and the order of the data")

    def __post_init__(self) -> None:
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        object.__setattr__(self, "text", text)
        if not text:
            raise ValueError("text is empty: name some files, 'python', or a data set")
        if not isinstance(self.store, str | Path):
            raise TypeError(f"store={self.store!r} must be the name of a folder")
        if self.store:  # commands that read the plan later may be run elsewhere
            object.__setattr__(self, "store", str(Path(self.store).expanduser().absolute()))
        for name, low in {
            "context": 1, "skip_first": 0, "tokens": 1, "validation_tokens": 2, "k": 1, "epochs": 1, "batch_size": 1, "seed": 0,
        }.items():  # fmt: skip
            object.__setattr__(self, name, whole(name, getattr(self, name), low))
        for name in ("n_latents", "log_every_steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        for name, known in {"stream": (True, False), "loss": (True, False), "bos": (True, False, None)}.items():
            if not any(getattr(self, name) is each for each in known):
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(str, known))}")
        one_of("decoder", self.decoder, DECODERS)
        one_of("store_dtype", self.store_dtype, DTYPES)
        one_of("standardizer", self.standardizer, STANDARDIZERS)
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("method", self.method, METHODS)
        at_least("expansion", self.expansion, 0.0, strict=True)
        if self.stream and self.method == "PAMSGD":
            raise ValueError(
                "method='PAMSGD' passes over all activations, and a stream is seen once: take method='StreamingPAMSGD'"
            )
        if self.stream and self.epochs > 1:
            raise ValueError(f"epochs={self.epochs}: a stream is seen once; leave stream out to write the activations to disk")
        self.rules()
        self.make_method()
        self.make_activation()

    def check_effects(self) -> None:
        """Raise ValueError for an option that would change nothing."""
        usual = {f.name: f.default for f in fields(type(self))}
        if not self.activation.endswith("TopK") and self.k != usual["k"]:
            raise ValueError(f"k={self.k} changes nothing with activation={self.activation!r}: leave it out, or choose 'TopK'")
        if self.n_latents is not None and self.expansion != usual["expansion"]:
            raise ValueError(
                f"n_latents={self.n_latents} and expansion={self.expansion} both say the size: leave one of them out"
            )

    def store_of(self, out: str | Path) -> Path:
        """The folder of the activations of a run in `out`."""
        return Path(self.store) if self.store else Path(out) / "activations"

    def rules(self) -> TokenRules:
        """Which tokens are taken."""
        return TokenRules(skip_first=self.skip_first, outliers=self.outliers)

    def make_method(self) -> Any:
        """The training method. Raises ValueError: options that it does not take."""
        try:
            return METHODS[self.method](**self.method_options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"method_options={self.method_options}: {error}") from error

    def make_activation(self) -> Activation:
        """The activation."""
        return activation_from_config({"name": self.activation, **({"k": self.k} if self.activation.endswith("TopK") else {})})

    def make_sae(self, d_in: int) -> SAE:
        """The SAE at its start. Raises ValueError for a k above the dictionary's size."""
        n_latents = round(self.expansion * d_in) if self.n_latents is None else self.n_latents
        return SAE(d_in, n_latents, self.make_activation(), self.decoder, generator=self.seed, device=self.device)

    def as_json(self) -> dict[str, Any]:
        """All options, as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: str | Path, **changes: Any) -> Plan:
        """From a JSON or YAML file with the fields' names, some of them changed; of `method_options` those that are given.

        Raises:
            ValueError: a field that there is not, or one that is missing.
            ImportError: a YAML file, and PyYAML is not installed.
        """
        path = Path(path)
        if path.suffix.lower() in (".yaml", ".yml"):
            try:
                import yaml  # type: ignore[import-untyped, unused-ignore]
            except ImportError as error:
                raise ImportError(f"{path} is YAML: pip install pyyaml, or write it as JSON") from error
            content = yaml.safe_load(path.read_text())
        else:
            content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, not an object of options")
        options = {**content, **changes}
        if "method_options" in changes and isinstance(content.get("method_options"), dict):
            options["method_options"] = {**content["method_options"], **changes["method_options"]}
        return cls.of(options, str(path))

    @classmethod
    def of(cls, options: dict[str, Any], where: str = "the options") -> Plan:
        """From a dict. Raises ValueError as `read`."""
        known = {f.name: f for f in fields(cls)}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ValueError(f"{where} has {unknown[0]!r}; known: {', '.join(known)}")
        needed = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in needed if name not in options]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        return cls(**{name: _as_said(known[name].type, value) for name, value in options.items()})


def _as_said(kind: Any, value: Any) -> Any:
    """A number from a file as the field has it: 2e6 as 2000000, 8 as 8.0."""
    if isinstance(value, float) and value.is_integer() and str(kind).startswith("int"):
        return int(value)
    return float(value) if type(value) is int and kind == "float" else value
