"""The two files of a saved SAE, and how one is saved and loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from splinterp._atomic import current, locked, replace_files
from splinterp._checks import at_least, one_of, usable_device
from splinterp._files import (
    CHECKSUM,
    FLOATS,
    check_numbers,
    check_sha256,
    entry,
    read_object,
    reading,
    sealed,
    sha256_of,
    tensor_header,
    unsealed,
)
from splinterp._typing import Tensor
from splinterp.activations import Activation, activation_from_config
from splinterp.encoders import Encoder, Linear, encoder_from_config
from splinterp.protocol import SparseModel

if TYPE_CHECKING:
    from splinterp.data.standardizer import Standardizer

FORMAT = "splinterp-sae-1"
CONFIG, TENSORS = "sae.json", "sae.safetensors"
STANDARDIZER_FILES = ("standardizer.json", "standardizer.safetensors")
UNITS = "start_waits_for_units"
"""Whether b_enc is still to be brought into the units of training samples, by `start_at_mean`; not there: it is not."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
KINDS: dict[str, Any] = {}
"""SAE classes by name: those that `SAE.load` can make."""
FINITE = ("W_enc", "b_dec", "b_pre", "W_dec", "residual", "scale", "points", "mixing", "deviation", "log_scale")
"""Parameters and buffers of which no infinity can be right."""


class SavedSAE(SparseModel):
    """Saving and loading, as `SAE` has them."""

    if TYPE_CHECKING:
        about: dict[str, Any]
        activation: Activation
        encoder: Encoder
        W_enc: nn.Parameter
        _config: dict[str, Any]

        @property
        def _waits_for_units(self) -> bool: ...

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that `save` writes, as JSON has them; activation, encoder and dtype are written beside them.

        A subclass whose constructor has further arguments adds them: `{**super().config(), "name": self.name}`.
        """
        return dict(self._config)

    def _checked_config(self) -> dict[str, Any]:
        own = inspect.signature(type(self).__init__).parameters.values()
        known = {*inspect.signature(KINDS["SAE"].__init__).parameters, *self.config()}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        missing = [p.name for p in own if p.kind in named and p.name not in known]
        if missing:
            raise TypeError(
                f"{type(self).__name__} has the argument {missing[0]}, which would be lost: override config() to hold it, "
                f"{{**super().config(), {missing[0]!r}: ...}}"
            )
        return self.config()

    def save(self, folder: str | Path, standardizer: Standardizer | None = None, about: dict[str, Any] | None = None) -> None:
        """Write `sae.safetensors` and `sae.json` (and the standardizer beside them) into `folder`, in one step: whatever happens,
        `load` finds the SAE that was there before or this one. A standardizer of an SAE that was there before is removed.

        Args:
            about: what the SAE is of, as JSON; it replaces `self.about`. Under "activations" what an `ActivationStore` says of itself
                (`store.about`): `measure_loss` and others then refuse another model, layer, site or standardizer. An SAE that was trained
                with a standardizer still says so when it is saved without: keep that beside it.

        Raises:
            RuntimeError: a standardizer without statistics.
            TypeError, ValueError: `about` is no object that JSON has; parameters that hold NaN, or are computed by a parametrization.
        """
        _check_storable(self)
        about = {**self.about} if about is None else {name: value for name, value in about.items() if name != "standardizer"}
        if standardizer is not None:
            about["standardizer"] = standardizer.fingerprint()
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        dtype = str(self.W_enc.dtype).removeprefix("torch.")
        config = {"dtype": dtype, **self._checked_config(), "activation": self.activation.config()}
        if type(self) is not KINDS["SAE"]:
            config["class"] = type(self).__name__
        if self.encoder != Linear():
            config["encoder"] = self.encoder.config()
        if self._waits_for_units:
            config[UNITS] = True
        if about:
            config["about"] = json.loads(json.dumps(about, allow_nan=False))
        write_sae(Path(folder), tensors, config, standardizer)


def _check_storable(sae: Any) -> None:
    """Raise TypeError, ValueError where `load` would refuse what is written."""
    for name, part in sae.named_modules():
        if parametrize.is_parametrized(part):
            raise TypeError(
                f"{name or type(sae).__name__} has a parametrization, which is not saved: remove it first "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            )
    _check_entries(type(sae).__name__, sae)


def _check_entries(where: Path | str, sae: Any) -> None:
    """Raise ValueError for numbers that no SAE has."""
    for name, value in sae.named_parameters():  # buffers may be NaN until they are set, a bias of -inf silences its latent
        check_numbers(where, name, value.detach(), infinite=name not in FINITE)
    own = sae.state_dict()
    for name in (name for name in ("b_pre", "points") if name in own):
        check_numbers(where, name, own[name])


def write_sae(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], standardizer: Standardizer | None) -> None:
    """Replace the files of an SAE, its standardizer's among them, in one step."""
    config = {"format": FORMAT, **config}
    files: dict[str, Callable[[Path], object] | None]  # in the order of writing: checksums after what they are of
    files = dict.fromkeys(STANDARDIZER_FILES) if standardizer is None else standardizer.files()

    def write_tensors(path: Path) -> None:
        save_file(tensors, path)
        config["sha256"] = sha256_of(path)

    files[TENSORS] = write_tensors
    files[CONFIG] = lambda path: path.write_text(json.dumps(sealed(config), indent=1) + "\n")
    replace_files(folder, files)


def load_sae(folder: str | Path, device: torch.device | str) -> Any:
    """What `SAE.load` does, its errors included."""
    folder, device = Path(folder), usable_device(device)
    if not folder.is_dir():
        what = "a file: pass the folder that it is in" if folder.exists() else "not there"
        raise FileNotFoundError(f"the folder {folder} is {what}")
    if (folder / "cfg.json").exists() and not (folder / CONFIG).exists():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG} but a cfg.json of another library: splinterp.interop.load_any reads those"
        )
    with locked(folder):
        return read_sae(current(folder, CONFIG), current(folder, TENSORS), device)


def read_sae(path: Path, weights: Path, device: torch.device | str) -> Any:
    """The SAE that `sae.json` at path and the tensors at weights are of, made by the class of its name."""
    content = read_object(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of the format {FORMAT!r}")
    config = {name: value for name, value in content.items() if name not in ("format", "sha256", CHECKSUM)}
    for name in ("d_in", "n_latents"):
        at_least(f"{path} has {name}", entry(path, config, name, int), 1)
    config = {"tie_scale": False, "b_pre": False, **config}  # as before there were such options
    entry(path, config, "tie_scale", bool)
    if entry(path, config, "b_pre", (bool, str)) not in (False, True, "fixed"):
        raise ValueError(f"{path} has b_pre={config['b_pre']!r}, which must be false, true or 'fixed'")
    for name in ("dtype", "decoder"):
        entry(path, config, name, str)
    one_of(f"{path} has dtype", config["dtype"], DTYPES)
    about = entry(path, {"about": {}, **config}, "about", dict)
    config.pop("about", None)
    kind = config.pop("class", "SAE")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path} is a {kind}, which is not known here: import its class first")
    header = tensor_header(weights)
    with reading(path):
        activation = activation_from_config(entry(path, config, "activation", dict))
        encoder = encoder_from_config(entry(path, {"encoder": {"name": "Linear"}, **config}, "encoder", dict))
        columns = encoder.columns(config["n_latents"])
    shapes = {"W_enc": (config["d_in"], columns), "b_enc": (columns,), "b_dec": (config.get("d_out", config["d_in"]),)}
    if isinstance(config.get("points"), int):
        shapes["points"] = (config["points"], config["d_in"])
    _check_sizes(weights, shapes, header)  # before anything of that size is made
    with reading(path):
        options = {name: value for name, value in config.items() if name not in ("activation", "encoder", "dtype")}
        dtype = DTYPES[config["dtype"]]
        start = options.get("init_bias", 0.0)  # as before there was such an option
        if "init_bias" in options:
            options["init_bias"] = 0.0  # what is loaded needs no start, and one of before may be refused today
        waits = entry(path, {UNITS: False, **options}, UNITS, bool)
        options.pop(UNITS, None)
        sae = KINDS[kind](activation=activation, dtype=dtype, device=device, encoder=encoder, generator=0, **options)
    sae._config["init_bias"] = start
    sae._few_by_default = waits
    unsealed(path, content)
    if "sha256" in content:
        check_sha256(weights, content["sha256"])
    own = sae.state_dict()
    with reading(weights):
        tensors = load_file(weights, device=str(device))
        for name, value in tensors.items():
            fitting = FLOATS.values() if name in own and own[name].is_floating_point() else (own.get(name, value).dtype,)
            if value.dtype not in fitting:
                raise ValueError(f"{name} in {weights} has dtype {value.dtype}, not {own[name].dtype}")
        try:
            sae.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the tensors in {weights} do not fit sae.json: {error}") from error
        _check_entries(weights, sae)
    sae.about, sae.drawn_from = about, None
    return sae.eval()


def _check_sizes(weights: Path, shapes: dict[str, tuple[int, ...]], header: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Raise ValueError where the tensors of the file have other sizes than the configuration says."""
    if "W_enc" not in header:
        raise ValueError(f"the tensors in {weights} do not fit {CONFIG}: there is no W_enc")
    for name, expected in shapes.items():
        if name in header and header[name][0] != expected:
            raise ValueError(
                f"the tensors in {weights} do not fit {CONFIG}: {name} has shape {header[name][0]}, not {expected}"
            )
