"""Carrying out a plan: activations, training, measuring, saving; killed and started again it goes on."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from splinterp._atomic import locked, replace_file
from splinterp._documented import documented
from splinterp._warned import outside
from splinterp.data.extract import extract_activations
from splinterp.data.language_model import LanguageModel
from splinterp.data.manifest import DTYPES
from splinterp.data.standardizer import Standardizer
from splinterp.data.store import ActivationStore
from splinterp.data.stream import ActivationStream
from splinterp.data.text import TokenSequences, pack_tokens, python_documentation, text_from_datasets, text_from_files
from splinterp.language.interventions import measure_loss
from splinterp.metrics import evaluate
from splinterp.pipeline.plan import Plan
from splinterp.sae import SAE
from splinterp.training.fit import fit
from splinterp.training.loggers import CSVLogger, several

PLAN, CHECKPOINT, HISTORY, SAVED = "plan.json", "checkpoint.pt", "history.csv", "sae"
HELD_OUT = 20, 5
"""Of so many documents one is held out, at least and at most."""
CHARACTERS = 6
"""Of text a token, enough for English."""
FITTED = 20_000
"""Activations of a stream that the standardizer is fitted to."""
ROWS = 10
"""History rows, where the plan does not say."""
LOSS_SEQUENCES = 64
CHECKPOINT_STEPS = 1_000
"""Steps between checkpoints, at most."""
OF_THE_TEXT = ("max_tokens", "n_sequences", "text_sha256", "sequences_a_shard")
"""What a store says of its text."""
FREE = ("device", "loss", "store")
"""Options with which a folder may be gone on with, whatever it began with."""
FILES = (".txt", ".md", ".rst", ".csv", ".json", ".jsonl", ".html", ".xml", ".tex", ".parquet", ".gz", ".zip")
"""Endings by which a name that is not there is of a file, and not of a data set."""


@documented
class Outcome(NamedTuple):
    """What a plan has come to."""

    sae: SAE
    standardizer: Standardizer | None
    metrics: dict[str, float]
    """On held-out activations: fvu, l0, frac_dead; with `loss`, loss_recovered (against zero ablation) and kl."""
    folder: Path
    """The SAE's, for `SAE.load`."""


def train(
    plan: Plan, out: str | Path, *, model: LanguageModel | None = None, progress: bool = False,
    callback: Callable[[dict[str, float]], object] | None = None,
) -> Outcome:  # fmt: skip
    """Carry out a plan in a folder, or go on with it there.

    The folder holds the plan, the activations (`activations/train`, unless they are streamed, and `activations/validation`; or the plan
    names another folder for them, which runs may share), the history as CSV, a checkpoint, and the SAE with its standardizer and what
    it is of (`sae`).

    Args:
        model: in place of the one that the plan names, already loaded.
        callback: called with each history row beside the CSV file.

    Raises:
        TypeError, ValueError: a folder of another plan, or activations of one; options that do not fit the model or the text.
    """
    out = Path(out)
    plan = _remembered(plan, out)
    _check_folder(plan, out)
    if model is None:
        model = LanguageModel.load(plan.model, device=plan.device, causal=plan.loss)
    [width] = model.widths([(plan.layer, plan.site)])
    sae = plan.make_sae(width)  # whatever does not fit is found now
    method = plan.make_method()
    documents, held_out = set_apart(documents_of(plan), plan.validation_tokens)
    sequences = pack_tokens(model.tokenizer, held_out, plan.context, bos=plan.bos)
    x_val = _extracted(plan, model, sequences, plan.validation_tokens, plan.store_of(out) / "validation", progress)
    _claim(plan, out)
    x, standardizer = _samples(plan, model, documents, out, progress)
    if plan.stream:
        about = {name: value for name, value in x_val.about.items() if name not in OF_THE_TEXT} | {"streamed": str(x)}
    else:
        about = x.about
    x.standardizer = x_val.standardizer = standardizer
    steps = (plan.tokens if plan.stream else plan.epochs * len(x)) // plan.batch_size
    every = plan.log_every_steps or max(1, steps // ROWS)
    rows = CSVLogger(out / HISTORY)
    result = fit(
        sae, x, method, batch_size=plan.batch_size, x_val=x_val, generator=plan.seed, log_every_steps=every, checkpoint=out / CHECKPOINT,
        checkpoint_every_steps=min(every, CHECKPOINT_STEPS), resume=True, progress=progress,
        callback=rows if callback is None else several(rows, callback), epochs=None if plan.stream else plan.epochs,
    )  # fmt: skip
    metrics = measured(sae, x_val)
    if plan.loss:
        part = sequences.take(0, LOSS_SEQUENCES)
        lost = measure_loss(model, sae, part, plan.layer, plan.site, standardizer=standardizer, rules=plan.rules())
        metrics |= {"loss_recovered": lost.loss_recovered(), "kl": lost.kl, "cross_entropy": lost.clean}
    said = _about(plan, about, x_val.about, metrics, result.history[-1], _begins(model, sequences))
    sae.save(out / SAVED, standardizer, about=said)
    return Outcome(SAE.load(out / SAVED), standardizer, metrics, out / SAVED)


def _samples(
    plan: Plan, model: LanguageModel, documents: list[str], out: Path, progress: bool
) -> tuple[Any, Standardizer | None]:
    """The activations to train on, a stream or a store, and the standardizer that is fitted to them."""
    if plan.stream:
        stream = ActivationStream(
            model, documents, plan.layer, plan.site, context=plan.context, rules=plan.rules(), bos=plan.bos, max_tokens=plan.tokens,
            repeat=True,
        )  # fmt: skip
        return stream, _fitted(plan, stream.peek(FITTED))
    packed = pack_tokens(model.tokenizer, documents, plan.context, bos=plan.bos)
    found = _extracted(plan, model, packed, plan.tokens, plan.store_of(out) / "train", progress)
    if len(found) < plan.tokens:
        warnings.warn(
            f"the text gives {len(found):,} activations to train on, not {plan.tokens:,}: name more text", stacklevel=outside()
        )
    return found, _fitted(plan, found)


def _extracted(
    plan: Plan, model: LanguageModel, sequences: TokenSequences, most: int, folder: Path, progress: bool
) -> ActivationStore:
    with _alone_in(folder, progress) if plan.store else nullcontext():
        found = extract_activations(
            model, sequences, plan.layer, plan.site, rules=plan.rules(), max_tokens=most, dtype=DTYPES[plan.store_dtype], folder=folder,
            progress=progress,
        )  # fmt: skip
    assert isinstance(found, ActivationStore)
    return found


@contextmanager
def _alone_in(folder: Path, progress: bool) -> Iterator[None]:
    """Inside, no other run extracts into the folder: this one has waited for those that did."""
    place = folder.with_name(f".{folder.name}.lock")  # writers lock the folder itself, for a moment at a time
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(place, exclusive=True, needed=True))
                break
            except ValueError:
                if progress:
                    sys.stderr.write(f"{folder} is being written to by another run: waiting for it\n")
        yield


def measured(sae: Any, x: Any) -> dict[str, float]:
    """fvu, l0 and frac_dead."""
    found = evaluate(sae, x)
    return {"fvu": found.fvu, "l0": found.l0, "frac_dead": found.frac_dead}


def set_apart(documents: list[str], n_tokens: int) -> tuple[list[str], list[str]]:
    """(documents to train on, held-out ones): every so many-th of them, enough for the tokens where that is a fifth at most.

    Raises ValueError: a single document.
    """
    if len(documents) < 2:
        raise ValueError(
            "the text is one document, and some have to be held out: pass more, or heading= where it holds several"
        )
    rarest, most = HELD_OUT
    for every in range(min(rarest, len(documents)), 0, -1):
        held = range(every - 1, len(documents), every)
        if every <= most or sum(len(documents[i]) for i in held) >= CHARACTERS * n_tokens:
            break
    return [d for i, d in enumerate(documents) if i not in held], [documents[i] for i in held]


def documents_of(plan: Plan) -> list[str]:
    """The plan's text as documents. Raises ImportError, OSError, ValueError: what cannot be read."""
    documents: list[str] = []
    for name in plan.text:
        if name == "python":
            documents += python_documentation()
        elif Path(name).exists():
            documents += text_from_files(name, plan.heading or None)
        elif Path(name).suffix.lower() in FILES or name.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"{name} is not there: name text files, a folder of *.txt, 'python', or a data set of the hub"
            )
        else:
            dataset, _, config = name.partition(":")
            wanted = CHARACTERS * (plan.tokens + plan.validation_tokens)
            documents += _first(dataset, plan.column, wanted, {"name": config} if config else {})
    return documents


AT_ONCE = 10_000
"""Documents of a data set that are read at first."""


def _first(dataset: str, column: str, wanted: int, options: dict[str, Any]) -> list[str]:
    """The first documents of a data set with so many characters together, or all."""
    limit = AT_ONCE
    while True:
        found = text_from_datasets(dataset, column=column, limit=limit, **options)
        if len(found) < limit or sum(map(len, found)) >= wanted:
            return found
        limit *= 4


def _fitted(plan: Plan, x: Any) -> Standardizer | None:
    return None if plan.standardizer == "none" else Standardizer(plan.standardizer).fit(x)


def _begins(model: LanguageModel, sequences: TokenSequences) -> bool:
    """Whether sequences begin with the beginning-of-text token."""
    begin = model.tokenizer.bos_token_id
    return begin is not None and all(row[0] == begin for row in sequences.ids)


def _remembered(plan: Plan, out: Path) -> Plan:
    """The plan with the store that a folder was begun with, where it names none itself."""
    path = out / PLAN
    begun = json.loads(path.read_text()).get("store") if path.exists() and not plan.store else ""
    return replace(plan, store=begun) if begun else plan


def _check_folder(plan: Plan, out: Path) -> None:
    """Raise ValueError where a folder holds what another plan has trained. More epochs are the same plan, which `fit` goes on with."""
    path = out / PLAN
    begun = (out / CHECKPOINT).exists() or (out / SAVED / "sae.json").exists()
    if not path.exists() or not begun:  # activations are compared with what they are of when they are gone on with
        return
    ours, theirs = plan.as_json(), {**_defaults(), **json.loads(path.read_text())}
    longer = {"epochs"} if not plan.stream and ours["epochs"] > theirs["epochs"] else set()
    different = [name for name in ours if name not in FREE and name not in longer and theirs.get(name) != ours[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{out} holds another plan: its {name} is {theirs.get(name)!r}, not {ours[name]!r}: pass another folder"
        )


def _defaults() -> dict[str, Any]:
    return {f.name: f.default for f in fields(Plan) if f.default is not MISSING}


def _claim(plan: Plan, out: Path) -> None:
    """Write the plan into the folder, now that activations have come."""
    if not (out / CHECKPOINT).exists():
        (out / HISTORY).unlink(missing_ok=True)  # of a training that left nothing else
    text = json.dumps(plan.as_json(), indent=1) + "\n"
    replace_file(out / PLAN, lambda temporary: temporary.write_text(text))


def _version() -> str:
    try:
        return importlib.metadata.version("splinterp")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _about(
    plan: Plan,
    activations: dict[str, Any],
    held_out: dict[str, Any],
    metrics: dict[str, float],
    last: dict[str, float],
    begins: bool,
) -> dict[str, Any]:
    """What the SAE is of; not where the activations lie, which is of this machine."""
    versions = {"splinterp": _version(), "torch": torch.__version__, "python": platform.python_version()}
    finite = {name: value for name, value in last.items() if value == value and abs(value) != float("inf")}
    return {
        "activations": activations, "held_out": held_out, "plan": {**plan.as_json(), "store": ""}, "method": str(plan.make_method()),
        "metrics": metrics, "last_row": finite, "versions": versions, "begins_with_bos": begins,
    }  # fmt: skip


def opened(folder: str | Path) -> tuple[SAE, Standardizer | None, Plan]:
    """(SAE, standardizer, plan) of a folder that `train` has finished. Raises FileNotFoundError: one that it has not."""
    folder = Path(folder)
    if not (folder / SAVED / "sae.json").exists():
        alone = (folder / "sae.json").exists()
        raise FileNotFoundError(
            f"{folder} holds an SAE, but no run: this command needs the plan and the activations of `python -m splinterp train`. Load it "
            f"in Python: SAE.load({str(folder)!r})"
            if alone
            else f"{folder} holds no trained SAE: run `python -m splinterp train ... --out {folder}` to its end"
        )
    plan = Plan.read(folder / PLAN)
    standardizer = None if plan.standardizer == "none" else Standardizer.load(folder / SAVED)
    return SAE.load(folder / SAVED), standardizer, plan


def validation_of(
    folder: str | Path, sae: SAE, plan: Plan, standardizer: Standardizer | None, store: str | Path | None = None
) -> ActivationStore:
    """The held-out activations of a folder of `train`, from where its plan says that they are, or from `store`.

    Raises FileNotFoundError, ValueError: there are none, or other ones than the SAE was measured on.
    """
    place = (plan.store_of(folder) if store is None else Path(store)) / "validation"
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is not there: where the activations have moved, name their folder by --store")
    found = ActivationStore(place, standardizer=standardizer)
    ours = sae.about.get("held_out", found.about)  # which SAEs of before do not say
    different = sorted(name for name in {*ours, *found.about} if ours.get(name) != found.about.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{place} holds other activations than those of {folder}: its {name} is {found.about.get(name)!r}, not {ours.get(name)!r}"
        )
    return found


def history_of(folder: str | Path) -> list[dict[str, float]]:
    """The history rows that `train` has written; none where there is no file."""
    path = Path(folder) / HISTORY
    if not path.exists():
        return []
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(path.read_text().splitlines())]


def lines(metrics: dict[str, float]) -> Iterable[str]:
    """Metrics, a line each."""
    width = max(map(len, metrics))
    return (f"{name:<{width}}  {value:.4g}" for name, value in metrics.items())
