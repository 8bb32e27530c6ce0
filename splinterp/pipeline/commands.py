"""`python -m splinterp train | evaluate | contexts | dashboard | export`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from splinterp.data.language_model import SITES, LanguageModel, source_of
from splinterp.data.text import pack_tokens, text_from_files
from splinterp.encoders import Gated
from splinterp.interop import save_dictionary_learning, save_gemma_scope, save_saelens, save_sparsify, to_jumprelu
from splinterp.language import context_of, dashboard, measure_loss, top_activating
from splinterp.metrics import evaluate
from splinterp.pipeline.plan import Plan
from splinterp.pipeline.runner import documents_of, history_of, lines, measured, opened, set_apart, train, validation_of
from splinterp.training.loggers import TensorBoardLogger, WandbLogger, several


def say(text: str = "") -> None:
    """A line on standard output."""
    sys.stdout.write(f"{text}\n")


WORDS = {"True": True, "False": False, "None": None}


def value_of(text: str) -> Any:
    """A value as JSON (or Python: True, False, None) has it, else the text itself."""
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def pairs_of(words: Sequence[str]) -> dict[str, Any]:
    """Options NAME=VALUE. Raises ValueError for another form."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set {word!r} must be NAME=VALUE")
        found[name] = value_of(value)
    return found


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="a JSON or YAML file of these options; those given here go before it")
    for f in fields(Plan):
        if f.name == "method_options":
            continue
        default = None if f.default is MISSING else f.default
        said = f.metadata["help"] + ("" if default is None or default == "" else f" ({default})")
        flag = "--" + f.name.replace("_", "-")
        options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": said.replace("%", "%%")}
        if isinstance(default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif f.name == "text":
            options["nargs"] = "+"
        elif f.name not in ("model", "site", "heading", "column", "store"):
            options["type"] = value_of
        parser.add_argument(flag, **options)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of the method: lr=0.004 hold=0.1")


def _plan_of(args: argparse.Namespace) -> Plan:
    names = {f.name for f in fields(Plan)}
    given = {name: value for name, value in vars(args).items() if name in names}
    if not args.config:
        plan = Plan.of({**given, "method_options": pairs_of(args.set)}, "the command line")
    else:
        plan = Plan.read(args.config, **given, **({"method_options": pairs_of(args.set)} if args.set else {}))
    plan.check_effects()
    return plan


def _train(args: argparse.Namespace) -> None:
    plan = _plan_of(args)
    callbacks: list[Callable[[dict[str, float]], object]] = []
    if args.tensorboard:
        callbacks.append(TensorBoardLogger(Path(args.out) / "tensorboard"))
    if args.wandb:
        callbacks.append(WandbLogger(project=args.wandb, config=plan.as_json(), dir=args.out))
    outcome = train(plan, args.out, progress=not args.quiet, callback=several(*callbacks) if callbacks else None)
    for line in lines(outcome.metrics):
        say(line)
    say(f"saved: {outcome.folder}")


def _evaluate(args: argparse.Namespace) -> None:
    sae, standardizer, plan = opened(args.folder)
    metrics = measured(sae, validation_of(args.folder, sae, plan, standardizer, args.store))
    if args.loss:
        model = LanguageModel.load(plan.model, device=args.device, causal=True)
        documents = text_from_files(args.text) if args.text else set_apart(documents_of(plan), plan.validation_tokens)[1]
        sequences = pack_tokens(model.tokenizer, documents, plan.context, bos=plan.bos).take(0, args.sequences)
        lost = measure_loss(model, sae, sequences, plan.layer, plan.site, standardizer=standardizer)
        metrics |= {
            "loss_recovered": lost.loss_recovered(), "kl": lost.kl, "cross_entropy": lost.clean, "cross_entropy_with_sae": lost.patched,
        }  # fmt: skip
    for line in lines(metrics):
        say(line)


def chosen_latents(sae: Any, x: Any, given: list[int] | None, n: int) -> list[int]:
    """Those given, or n that fire, spread evenly from the rarest to the most frequent."""
    if given:
        return given
    frequencies = evaluate(sae, x).frequencies
    order = frequencies.argsort()
    live = order[frequencies[order] > 0]
    return live[torch.linspace(0, len(live) - 1, min(n, len(live))).round().long()].tolist() if len(live) else []


def _contexts(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    sae, standardizer, plan = opened(args.folder)
    x = validation_of(args.folder, sae, plan, standardizer, args.store)
    tokenizer = AutoTokenizer.from_pretrained(source_of(plan.model))
    latents = chosen_latents(sae, x, args.latents, 10)
    found = top_activating(sae, x, args.n, latents, sign=args.sign)
    for latent, acts, rows in zip(latents, found.acts.tolist(), found.rows.tolist(), strict=True):
        say(f"latent {latent}")
        for act, row in zip(acts, rows, strict=True):
            if row >= 0:
                say(f"  {act:8.3f}  {context_of(x, row, tokenizer)}")


def hook_name(layer: int, site: str) -> str:
    """A place as TransformerLens names it; a module's name as it is."""
    names = {"residual": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "hook_attn_out"}
    if site not in names:
        return site.replace("{layer}", str(layer))
    return f"blocks.{layer - 1}.{names[site]}" if layer else "blocks.0.hook_resid_pre"


def _dashboard(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    sae, standardizer, plan = opened(args.folder)
    x = validation_of(args.folder, sae, plan, standardizer, args.store)
    model = LanguageModel.load(plan.model, causal=True) if args.logits else None
    tokenizer = AutoTokenizer.from_pretrained(source_of(plan.model))
    latents = chosen_latents(sae, x, args.latents, args.count)
    out = Path(args.out or Path(args.folder) / "dashboard.html")
    title = f"{plan.activation} SAE of {Path(plan.model).name}, {plan.site} at layer {plan.layer}"
    dashboard(out, sae, x, x, tokenizer, latents, title=title, n_contexts=args.n, model=model, standardizer=standardizer,
              history=history_of(args.folder))  # fmt: skip
    say(f"written: {out}")


STORE = "folder of the activations, where it has moved"
FORMATS = ("saelens", "dictionary_learning", "sparsify", "gemma_scope")


def _export(args: argparse.Namespace) -> None:
    sae, standardizer, plan = opened(args.folder)
    if args.unit_rows and args.to != "saelens":
        raise ValueError(f"--unit-rows is for --to saelens, not {args.to}")
    out, hook = Path(args.out), hook_name(plan.layer, plan.site)
    layer = max(0, plan.layer - 1) if plan.site in SITES else plan.layer  # others count blocks from 0
    if args.to == "saelens":
        sae = to_jumprelu(sae) if isinstance(sae.encoder, Gated) else sae
        save_saelens(
            sae, out, standardizer=standardizer, nonnegative=args.nonnegative, unit_rows=args.unit_rows, model_name=plan.model,
            hook_name=hook, context_size=plan.context, prepend_bos=bool(sae.about.get("begins_with_bos", plan.bos)),
        )  # fmt: skip
    elif args.to == "dictionary_learning":
        save_dictionary_learning(sae, out, standardizer=standardizer, model_name=plan.model, layer=layer, submodule_name=hook)
    elif args.to == "sparsify":
        save_sparsify(sae, out, standardizer=standardizer)
    else:
        save_gemma_scope(sae, out / "params.npz", standardizer=standardizer)
    say(f"saved: {out}")


def main(argv: Sequence[str] | None = None) -> None:
    """The commands. Exits with 2 and one line where something does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m splinterp", description="Train and look at sparse autoencoders of language models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="from a model and text to an SAE in a folder; run again, it goes on")
    _add_plan(command)
    command.add_argument("--out", required=True, help="folder")
    command.add_argument("--tensorboard", action="store_true", help="log to OUT/tensorboard too")
    command.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.set_defaults(run=_train)
    command = commands.add_parser("evaluate", help="measure the SAE of a folder on its held-out activations")
    command.add_argument("folder")
    command.add_argument("--store", help=STORE)
    command.add_argument("--loss", action="store_true", help="the loss recovered too, with the model")
    command.add_argument("--text", help="a text file or folder for it; else the held-out documents")
    command.add_argument("--sequences", type=int, default=64, help="of them (64)")
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=_evaluate)
    command = commands.add_parser("contexts", help="the tokens that latents fire on most, in their context")
    command.add_argument("folder")
    command.add_argument("--store", help=STORE)
    command.add_argument("--latents", nargs="+", type=int, help="which; else ten from rare to frequent")
    command.add_argument("-n", type=int, default=8, help="tokens a latent (8)")
    command.add_argument("--sign", choices=("positive", "negative", "magnitude"), default="positive")
    command.set_defaults(run=_contexts)
    command = commands.add_parser("dashboard", help="one HTML page about some latents")
    command.add_argument("folder")
    command.add_argument("--store", help=STORE)
    command.add_argument("--latents", nargs="+", type=int, help="which; else some from rare to frequent")
    command.add_argument("--count", type=int, default=20, help="how many of those (20)")
    command.add_argument("-n", type=int, default=8, help="contexts a latent (8)")
    command.add_argument("--logits", action="store_true", help="the tokens that they raise and lower, with the model's head")
    command.add_argument("--out", help="the page; else FOLDER/dashboard.html")
    command.set_defaults(run=_dashboard)
    command = commands.add_parser("export", help="write the SAE for other tools")
    command.add_argument("folder")
    command.add_argument("--to", choices=FORMATS, default="saelens")
    command.add_argument("--out", required=True, help="folder")
    command.add_argument(
        "--nonnegative",
        action="store_true",
        help="an AbsTopK as a TopK of twice as many latents, which formats but SAELens' always are",
    )
    command.add_argument(
        "--unit-rows", action="store_true", help="decoder rows of norm 1, as sae-dashboard wants them (SAELens)"
    )
    command.set_defaults(run=_export)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # what reads the output has seen enough
        raise SystemExit(0) from None
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, KeyError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.stderr.write(f"{parser.prog} {args.command}: {said}\n")
        raise SystemExit(2) from error
