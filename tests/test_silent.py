"""What must not happen silently: another decoder than the one trained, a solve that moves its own codes, calls that
change nothing or leave something behind."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from splinterp import PAMSGD, SAE, SGD, AbsTopK, ReLU, TopK, Transcoder, fit, paired
from splinterp.data import ActivationStore, Standardizer, StoreWriter
from splinterp.metrics import evaluate
from splinterp.training import CSVLogger, start_at_mean
from tests.helpers import rng, samples

X = samples(400)


class Own(nn.Module):
    """A ReLU SAE of somebody else's; subclasses differ in one method."""

    def __init__(self, d=8, m=16, seed=0):
        super().__init__()
        W = torch.randn(d, m, generator=rng(seed)) / d**0.5
        self.W_enc, self.W_dec = nn.Parameter(W), nn.Parameter(W.T.clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(m)), nn.Parameter(torch.zeros(d))

    def encode(self, x):
        return torch.relu(x @ self.W_enc + self.b_enc)

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec

    def forward(self, x):
        return self.decode(self.encode(x))


class Skips(Own):
    def forward(self, x):
        return super().forward(x) + 0.1 * x


class Scales(Own):
    def decode(self, acts):
        return 3 * super().decode(acts)


class InTuple(Own):
    def forward(self, x):
        return Own.forward(self, x) + 1.0, self.encode(x)


class OtherSignature(Own):
    def decode(self, values, indices):  # of few latents a sample, say
        raise AssertionError("not to be called")

    def forward(self, x, labels):
        raise AssertionError("not to be called")


class Centres(Own):
    """Subtracts b_dec before it encodes, as many do."""

    def encode(self, x):
        return super().encode(x - self.b_dec)


@pytest.mark.parametrize("module", [Skips, Scales, InTuple])
def test_a_module_that_decodes_in_another_way_is_neither_trained_nor_evaluated(module):
    for call in (
        lambda: fit(module(), X, SGD(), epochs=1),
        lambda: fit(module(), X, PAMSGD(), epochs=1),
        lambda: evaluate(module(), X),
    ):
        with pytest.raises(TypeError, match=rf"{module.__name__}\.(decode|forward) is not acts @ W_dec \+ b_dec"):
            call()


@pytest.mark.parametrize("module", [Own, OtherSignature])
def test_one_that_decodes_alike_or_cannot_be_asked_is(module):
    assert fit(module(), X, PAMSGD(), epochs=2, generator=0).history[-1]["train_fvu"] < 1


def test_a_solve_refuses_an_encoder_that_reads_b_dec():
    with pytest.raises(TypeError, match=r"Centres\.encode reads b_dec.*b_pre"):
        fit(Centres(), X, PAMSGD(), epochs=1)
    module = Centres()
    before = copy.deepcopy(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it does centre: no warning of an offset
        fit(module, X + 30, SGD(), epochs=1, generator=0)
    assert not torch.equal(before["b_dec"], module.b_dec)

    class Advised(Centres):
        def __init__(self):
            super().__init__()
            self.register_buffer("b_pre", torch.zeros(8))

        def encode(self, x):
            return Own.encode(self, x - self.b_pre)

    assert fit(Advised(), X + 30, PAMSGD(), epochs=3, generator=0).history[-1]["train_fvu"] < 0.7


@pytest.mark.parametrize("decoder", ["free", "tied", "tied_residual"])
@pytest.mark.parametrize("method", [SGD(), PAMSGD()])
def test_a_compiled_sae_is_trained_as_the_sae_inside(decoder, method):
    found = []
    for wrap in (lambda sae: sae, lambda sae: torch.compile(sae, backend="eager")):
        sae = SAE(8, 16, TopK(2), decoder, generator=0)
        found.append(fit(wrap(sae), X + 5, method, epochs=2, generator=0).history[-1]["train_fvu"])
    assert found[0] == found[1]


def test_a_parametrized_decoder_is_not_solved_for_and_not_saved(tmp_path):
    sae = parametrizations.weight_norm(SAE(8, 32, TopK(3), generator=0), "W_dec", dim=0)
    with pytest.raises(TypeError, match="remove_parametrizations"):
        fit(sae, X, PAMSGD(), epochs=1)
    with pytest.raises(TypeError, match="parametrization"):
        sae.save(tmp_path / "sae")
    g = sae.parametrizations.W_dec.original1.detach().clone()
    fit(sae, X, SGD(), epochs=1)
    assert not torch.equal(g, sae.parametrizations.W_dec.original1)  # gradients reach what it is computed from
    parametrize.remove_parametrizations(sae, "W_dec")
    fit(sae, X, PAMSGD(), epochs=1)
    sae.save(tmp_path / "sae")


def test_both_kinds_of_a_pair_are_looked_at():
    transcoder = Transcoder(8, 32, TopK(3), d_out=4, generator=0)
    with pytest.warns(UserWarning, match="entries of y vary by the order of"):
        fit(transcoder, paired(X, X[:, :4] * 1e-4), SGD(lr=1e-9), epochs=1)
    with pytest.raises(ValueError, match="rows of y are all equal"):
        fit(transcoder, paired(X, torch.ones(len(X), 4)), SGD(), epochs=1)


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 1e8), (torch.bfloat16, 1e3)])
def test_samples_that_a_dtype_rounds_away_are_refused(dtype, offset):
    x = X.double() + offset
    sae = SAE(8, 32, TopK(3), dtype=dtype, generator=0)
    with pytest.raises(ValueError, match=r"subtract the mean first"):
        fit(sae, x, SGD(), epochs=1)
    fit(sae, x - x.mean(0), SGD(), epochs=1)


def test_a_checkpoint_of_another_seed_is_not_gone_on_from(tmp_path):
    def run(seed, epochs=1, **options):
        sae = SAE(8, 32, TopK(3), generator=seed)
        return fit(sae, X, SGD(), epochs=epochs, generator=0, checkpoint=tmp_path / "run.pt", **options)

    run(0)
    with pytest.raises(ValueError, match="drawn from another seed"):
        run(1, resume=True)
    run(0, epochs=2, resume=True)
    run(None, epochs=3, resume=True)  # of no seed: as ever


@pytest.mark.parametrize("kind", [ReLU(), TopK(3)])
def test_a_refused_call_leaves_a_trained_sae_as_it_was(kind, tmp_path):
    sae = SAE(8, 32, kind, generator=0)
    fit(sae, X, SGD(), epochs=2, generator=0, checkpoint=tmp_path / "run.pt")
    before, waits = copy.deepcopy(sae.state_dict()), sae._few_by_default
    calls = {
        "needs SAE": {"method": PAMSGD(hold=0.5)},
        "another": {"method": SGD(lr=1e-4), "checkpoint": tmp_path / "run.pt", "resume": True},
    }
    for message, options in calls.items():
        with pytest.raises(ValueError, match=message):
            fit(sae, 2 * X + 1, epochs=1, **options)
        assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())
        assert sae._few_by_default == waits


def test_a_log_of_another_run_is_not_added_to(tmp_path):
    def run(path, method=None, epochs=3, **options):
        return fit(
            SAE(8, 32, TopK(3), generator=0),
            X,
            method or SGD(),
            epochs=epochs,
            generator=0,
            callback=CSVLogger(path),
            **options,
        )

    path = tmp_path / "log.csv"
    run(path)
    text = path.read_text()
    run(path)  # the same rows
    assert path.read_text() == text
    with pytest.raises(ValueError, match="columns"):
        run(path, PAMSGD())
    with pytest.raises(ValueError, match="another run"):
        run(path, SGD(lr=1e-5))
    assert path.read_text() == text


def test_what_load_would_refuse_is_not_saved(tmp_path):
    sae = SAE(8, 32, TopK(3), generator=0)
    sae.save(tmp_path)
    sae.W_enc.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="W_enc .* NaN"):
        sae.save(tmp_path)
    assert torch.isfinite(SAE.load(tmp_path).W_enc).all()


def test_the_start_does_not_depend_on_torchs_default_dtype():
    usual = SAE(8, 16, TopK(2), init_dec="random", generator=0)
    torch.set_default_dtype(torch.float64)
    try:
        other = SAE(8, 16, TopK(2), init_dec="random", generator=0, dtype=torch.float32)
        transcoder = Transcoder(8, 16, TopK(2), d_out=3, generator=0, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(usual.W_enc, other.W_enc)
    assert torch.equal(usual.W_dec, other.W_dec)
    assert torch.equal(transcoder.W_dec, Transcoder(8, 16, TopK(2), d_out=3, generator=0).W_dec)


def test_nor_on_its_default_device():
    with torch.device("meta"):  # as another device would
        sae = SAE(8, 16, TopK(2), generator=0, device="cpu")
    assert torch.equal(sae.W_enc, SAE(8, 16, TopK(2), generator=0).W_enc)


def test_nothing_to_train_is_said():
    for kind in (ReLU(), TopK(3)):
        with pytest.raises(ValueError, match="every parameter of SAE is frozen"):
            fit(SAE(8, 32, kind).requires_grad_(False), X, SGD(), epochs=1)


@pytest.mark.parametrize("kind", [ReLU(), TopK(3), AbsTopK(3)])
def test_training_inside_no_grad_and_inference_mode(kind):
    found = []
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            found.append(fit(SAE(8, 32, kind, generator=0), X, SGD(), epochs=1, generator=0).history[-1]["train_fvu"])
    assert found[0] == found[1]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        fit(SAE(8, 32, kind, generator=0), X, SGD(), epochs=1)


def test_autocast_around_fit_is_no_reason_to_refuse_a_solve():
    with torch.autocast("cpu", torch.bfloat16):
        fit(SAE(8, 32, TopK(3), generator=0), X, PAMSGD(), epochs=1)


def test_gradients_of_the_last_step_do_not_stay():
    sae = SAE(8, 32, TopK(3), generator=0)
    fit(sae, X, SGD(), epochs=1)
    assert all(p.grad is None for p in sae.parameters())


def test_a_callback_may_take_its_row_apart():
    rows = []

    def logged(row):
        rows.append(row.pop("step"))
        row.clear()

    history = fit(SAE(8, 32, TopK(3), generator=0), X, SGD(), epochs=3, callback=logged).history
    assert rows == [row["step"] for row in history]


def test_a_store_with_a_batch_of_nothing_in_it(tmp_path):
    writer = StoreWriter(tmp_path, 8)
    for part in (X[:150], X[:0], X[150:], X[:0]):
        writer.append(part, torch.zeros(len(part), 3, dtype=torch.int32))
    store = writer.finish()
    assert torch.equal(store[:], X)
    assert torch.equal(ActivationStore(tmp_path)[140:160], X[140:160])
    fit(SAE(8, 32, TopK(3)), store, SGD(), epochs=1)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_unit_norms_whose_squares_leave_float32(scale):
    norms = Standardizer("unit_norm").transform(X * scale).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_row_of_a_nan_is_counted_from_the_first():
    x = X.clone()
    x[333, 2] = torch.nan
    for sae in (SAE(8, 32, TopK(3), generator=0), Own()):
        with pytest.raises(ValueError, match=r"index \(333, 2\)"):
            evaluate(sae, x, batch_size=100)


def test_a_device_that_there_is_not(tmp_path):
    SAE(8, 32, TopK(3)).save(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="device='cuda'.*device='cpu'"):
        SAE.load(tmp_path, device="cuda")


def test_a_start_that_is_undone_is_the_start_again():
    """The units of dense codes are those of the samples that are trained on, not of a call that was refused."""
    sae = SAE(8, 32, ReLU(), generator=0)
    with pytest.raises(ValueError, match="needs SAE"):
        fit(sae, 100 * X, PAMSGD(hold=0.5), epochs=1)
    twin = SAE(8, 32, ReLU(), generator=0)
    start_at_mean(sae, X)
    start_at_mean(twin, X)
    assert torch.equal(sae.b_enc, twin.b_enc)


def test_an_sae_that_says_it_is_of_other_activations(tmp_path):
    def store_of(name, about, standardizer=None):
        writer = StoreWriter(tmp_path / name, 8, about=about)
        writer.append(X, torch.zeros(len(X), 3, dtype=torch.int32))
        writer.finish()
        return ActivationStore(tmp_path / name, standardizer=standardizer)

    scaled = Standardizer().fit(X)
    sae = SAE(8, 32, TopK(3), generator=0)
    store = store_of("a", {"layer": 3, "site": "residual"}, scaled)
    sae.save(tmp_path / "sae", scaled, about={"activations": store.about})
    sae = SAE.load(tmp_path / "sae")
    fit(sae, store, SGD(), epochs=1)  # of what it says
    fit(sae, X, SGD(), epochs=1)  # a tensor says nothing
    for name, other in {"layer": store_of("b", {"layer": 4}, scaled), "standardizer": store_of("c", {"layer": 3})}.items():
        with pytest.warns(UserWarning, match=f"another {name}"):
            fit(sae, other, SGD(), epochs=1)
