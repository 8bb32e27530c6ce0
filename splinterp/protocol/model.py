"""The interface: what a module must offer (`SAELike`), and what it may (`SparseModel`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from splinterp._typing import Tensor
from splinterp.activations import Activation, TopActs
from splinterp.protocol.blocks import BiasBlock, Block
from splinterp.protocol.code import Code, dense, masked


@runtime_checkable
class SAELike(Protocol):
    """What a module of one's own must offer to be trained here: an `nn.Module` with these names, samples in rows.

    x_hat = encode(x) @ W_dec + b_dec, with W_enc (d_in, n_latents), b_enc (n_latents,), W_dec (n_latents, d_in) and
    b_dec (d_in,). They may be parameters or views of parameters (`self.encoder.weight.T`, say): a decoder solve writes
    into W_dec and b_dec in place. A class that offers more is a `SparseModel`.
    """

    training: bool
    W_enc: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any

    def encode(self, x: Any) -> Any: ...
    def parameters(self, recurse: bool = True) -> Any: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


NAMES = ("encode", "W_enc", "b_enc", "W_dec", "b_dec", "parameters")


class SparseModel(nn.Module):
    """A module that says what it can do. Samples are rows; `W_dec` (n_latents, d_in) and `b_dec` (d_in,) are its decoder."""

    W_dec: Tensor
    b_dec: Tensor
    drawn_from: str | None = None
    """Where the generator stood that the start was drawn from, if one was given: runs of two seeds are told apart by it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, n_latents)."""
        n_latents, d_in = self.W_dec.shape
        return d_in, n_latents

    @property
    def width(self) -> int:
        """Columns of a sample: d_in, and more where samples are pairs."""
        return len(self.b_dec)

    @property
    def pairs(self) -> bool:
        """Whether a sample holds an input and, beside it, a target of another kind."""
        return False

    def inputs(self, x: Tensor) -> Tensor:
        """What is encoded of samples x (n, width), or of one: x itself unless samples are pairs."""
        return x

    def target(self, x: Tensor) -> Tensor:
        """What is to be reconstructed of samples x (n, width), or of one: x itself unless samples are pairs."""
        return x

    @property
    def label(self) -> str:
        """The class, as messages name it."""
        return type(self).__name__

    @property
    def trains_sparse(self) -> bool:
        """Whether `code` gives the sparse form."""
        return False

    @property
    def nonlinearity(self) -> Activation | None:
        """The activation, where the module has one of this package's."""
        return None

    @property
    def parametrisation(self) -> Any:
        """How the encoder makes scores and codes (`splinterp.encoders`), where the module says it; else None."""
        return None

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's code depends on the others of its batch."""
        return True

    def code(self, x: Tensor) -> Code:
        """The code of x (n, d_in), in the form that costs less."""
        raise NotImplementedError

    def pre_acts(self, x: Tensor) -> Tensor:
        """Affine scores (n, n_latents). Raises TypeError for a module that has none."""
        raise TypeError(
            f"{type(self).__name__} offers no pre_acts: use a splinterp SAE, or a loss term that does not read them"
        )

    def code_from(self, pre_acts: Tensor, x: Tensor) -> Code:
        """The code of the scores of samples x (n, d_in), in the form of `code`. Raises TypeError for a module that has none."""
        raise TypeError(f"{type(self).__name__} makes no code of pre_acts: use a splinterp SAE")

    def decode(self, code: Any) -> Tensor:
        """The reconstruction (n, d_in) of a code in either form."""
        raise NotImplementedError

    def decode_nested(self, code: Code, depth: Tensor, n_parts: int) -> Sequence[Tensor]:
        """The reconstructions (n, d_in) of nested parts of a code: part j of n_parts has the values whose depth is at most j.

        `depth` has the shape of the code's values, or is (n_latents,) for a dense code; a depth of n_parts or more is in no part.
        """
        return [self.decode(masked(code, depth <= part)) for part in range(n_parts)]

    def run(self, x: Tensor) -> tuple[Tensor, Code]:
        """(x_hat, code) of x (n, d_in), as evaluation takes them."""
        code = self.code(x)
        return self.decode(code), code

    def decoder_block(self) -> Block:
        """The decoder as a solve sees it."""
        raise NotImplementedError

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that make the encoder's map: W_enc and b_enc."""
        raise NotImplementedError

    def encoder_weights(self) -> nn.Parameter | None:
        """W_enc (d_in, n_latents) as a parameter or a view of one that may be written into; None where it is computed."""
        return None

    def encoder_bias(self) -> Tensor | None:
        """b_enc (n_latents,) as a parameter or a view of one that may be written into; None where it is computed."""
        return None

    def latent_parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Further parameters of the encoder with one entry for each latent (n_latents,), and what that starts at."""
        return []

    @property
    def kept(self) -> int | None:
        """How many latents a sample has (on average), where the activation fixes it; None where it does not."""
        return None

    def keeping(self, k: int) -> AbstractContextManager[None]:
        """Inside, k latents are kept in place of `kept`. Raises TypeError where their number is not fixed."""
        raise TypeError(f"{type(self).__name__} has no fixed number of latents to keep")

    @property
    def bias(self) -> BiasBlock:
        """The bias as bias adaptation sees it. Raises TypeError where there is none to adapt."""
        raise TypeError(f"{type(self).__name__} offers no bias to adapt")

    @property
    def center(self) -> Tensor | None:
        """b_pre, the input's centre (d_in,), where there is one."""
        return None

    def squared_error_gradients(self, x: Tensor, moved: Collection[int]) -> Tensor | None:
        """The mean squared error of x with its gradients written to `grad` of the parameters whose ids are in `moved`, by kernels of
        its own; None where it has none for this (autograd does it then)."""
        return None

    def check(self, x: Tensor) -> None:
        """Raises TypeError where what the module overrides does not agree on samples x (n, d_in)."""

    def check_linear(self) -> None:
        """Raises TypeError unless `decode` is acts @ W_dec + b_dec, which is what an exact solve solves for."""
        acts = torch.rand(2, self.shape[1], device="cpu", generator=torch.Generator().manual_seed(0)).to(self.b_dec)
        codes: list[Code] = [acts, torch.zeros_like(acts)]
        if self.trains_sparse:
            codes.append(TopActs(acts[:, :1], torch.tensor([[0], [self.shape[1] - 1]], device=acts.device)))
        with torch.no_grad(), inference_mode_of(self), full_precision(self.b_dec):
            found = torch.cat([self.decode(code) for code in codes])
            expected = torch.cat([torch.addmm(self.b_dec, dense(code, self.shape[1]), self.W_dec) for code in codes])
        if not alike(found, expected):
            raise TypeError(
                f"{self.label} decodes in its own way, not by acts @ W_dec + b_dec, which an exact solve is for: train it by SGD"
            )

    def reads_b_dec(self, x: Tensor) -> bool:
        """Whether codes of samples x (n, d_in) depend on b_dec, which a solve moves with the codes held."""
        return False

    def multiply_output(self, gain: float) -> bool:
        """Multiply x_hat - b_dec by a number, where that is not done by multiplying the decoder block's weights. Returns whether it was."""
        return False

    def project(self) -> None:
        """Called after every gradient step: put parameters back into the sets that they must be in."""

    @property
    def constrained(self) -> bool:
        """Whether parameters are held in sets, by `project`."""
        return type(self).project is not SparseModel.project

    def project_gradients(self) -> None:
        """Called before every gradient step: zero the gradients of what cannot move, which would count in clipping."""

    def start_in_units(self, rms: Callable[[], float]) -> Callable[[], None]:
        """Called before training on samples whose encoded entries deviate from their mean by the order of rms(), which costs a pass: the
        place to adapt a start that is meant for 1. Returns what undoes it."""
        return lambda: None

    def calibrate(self, x: Any) -> Any:
        """Set what inference needs and gradients do not train, from training samples x (n, d_in)."""


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two reconstructions are the same up to rounding."""
    tolerance = 1e3 * torch.finfo(found.dtype).eps * (float(expected.abs().max()) if expected.numel() else 0.0) + 1e-6
    return found.shape == expected.shape and bool(((found - expected).abs() <= tolerance).all())


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Inside, `torch.autocast` lowers nothing on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def inference_mode_of(module: Any, training: bool = False) -> Iterator[None]:
    """Inside, the module is in evaluation mode (with `training`, in that of training); afterwards each part in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
