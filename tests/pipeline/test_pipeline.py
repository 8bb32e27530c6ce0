"""Plans carried out on small models from folders: by Python, by files and by commands."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import threading

import pytest
import torch

from splinterp import PAMSGD, SAE
from splinterp._atomic import locked
from splinterp.data import ActivationStore, LanguageModel, Standardizer, extract_activations
from splinterp.interop import load_saelens
from splinterp.metrics import evaluate
from splinterp.pipeline import Plan, train
from splinterp.pipeline import runner as module
from splinterp.pipeline.commands import hook_name, main, pairs_of, value_of
from splinterp.pipeline.runner import opened, set_apart
from splinterp.training import CSVLogger
from tests.data.tiny_models import BUILDERS, letters, word_tokenizer
from tests.helpers import rng

MODULE = "splinterp.pipeline.runner"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder of a model with a head and its tokenizer, and a folder of texts."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    model = BUILDERS["GPT-2 with head"]()
    model.save_pretrained(folder / "model")
    word_tokenizer(False, bos_token="[EOS]").save_pretrained(folder / "model")
    (folder / "text").mkdir()
    lengths = torch.randint(20, 60, (40,), generator=rng(0)).tolist()
    order = torch.randint(0, 26, (40, 60), generator=rng(1))
    for i, n in enumerate(lengths):
        (folder / "text" / f"{i:02d}.txt").write_text(" ".join(chr(97 + int(c)) for c in order[i, :n]))
    return folder


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def plan_of(world, **options):
    return Plan(
        model=str(world / "model"), text=str(world / "text"),
        **{"layer": 2, "context": 16, "tokens": 900, "validation_tokens": 300, "k": 3, "expansion": 2.0, "batch_size": 32, "epochs": 4,
           **options},
    )  # fmt: skip


def test_a_plan_ends_in_an_sae_that_says_what_it_is(world, tmp_path):
    outcome = train(plan_of(world, loss=True), tmp_path)
    x, x_val = (ActivationStore(tmp_path / "activations" / part) for part in ("train", "validation"))
    assert len(x) == 900
    assert len(x_val) == 300
    standardizer = Standardizer.load(tmp_path / "sae")
    torch.testing.assert_close(standardizer.mean, x.statistics()["mean"].mean().expand(16))
    sae = SAE.load(tmp_path / "sae")
    found = evaluate(sae, standardizer.transform(x_val[:]))
    assert outcome.metrics["fvu"] == pytest.approx(found.fvu, rel=1e-5)
    assert outcome.metrics["l0"] == pytest.approx(3)
    assert outcome.metrics["fvu"] < 0.6
    assert 0 < outcome.metrics["loss_recovered"] < 1.5
    assert sae.about["activations"]["layer"] == 2
    assert sae.about["plan"] == json.loads((tmp_path / "plan.json").read_text()) == plan_of(world, loss=True).as_json()
    assert sae.about["metrics"] == outcome.metrics
    assert "PAMSGD" in sae.about["method"]
    rows = rows_of(tmp_path / "history.csv")
    assert 10 <= len(rows) <= 12
    assert float(rows[-1]["val_fvu"]) == pytest.approx(outcome.metrics["fvu"], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"stream": True, "method": "StreamingPAMSGD", "epochs": 1, "tokens": 3_000}])
def test_a_plan_that_is_interrupted_goes_on_to_the_same_bytes(options, world, tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.data.extract.BATCHES_A_SHARD", 1)
    plan = plan_of(world, **options)
    whole = train(plan, tmp_path / "whole")
    own = module.fit

    def cut(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE + ".fit", cut)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "cut")
    calls = []

    def stopping(row):
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MODULE + ".fit", own)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "cut", callback=stopping)
    again = train(plan, tmp_path / "cut")
    assert again.metrics == whole.metrics
    for name in ("sae/sae.safetensors", "plan.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    steps = [[row["step"] for row in rows_of(tmp_path / part / "history.csv")] for part in ("cut", "whole")]
    assert steps[0] == steps[1]
    assert (tmp_path / "cut" / "activations" / "train").exists() == (not options)
    finished = train(plan, tmp_path / "cut")
    assert finished.metrics == whole.metrics


def test_a_folder_of_another_plan_is_refused(world, tmp_path):
    train(plan_of(world), tmp_path)
    with pytest.raises(ValueError, match="its k is 3, not 4: pass another folder"):
        train(plan_of(world, k=4), tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m splinterp train"):
        opened(tmp_path / "nothing")


def test_a_finished_run_takes_more_epochs_and_no_fewer(world, tmp_path):
    train(plan_of(world, epochs=2), tmp_path)
    before = (tmp_path / "history.csv").read_text().splitlines() if (tmp_path / "history.csv").exists() else None
    longer = train(plan_of(world, epochs=4), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["epochs"] == 4
    straight = train(plan_of(world, epochs=4), tmp_path / "straight")
    assert longer.sae.W_dec.shape == straight.sae.W_dec.shape
    assert opened(tmp_path)[2].epochs == 4
    assert before is None or len((tmp_path / "history.csv").read_text().splitlines()) > len(before)
    with pytest.raises(ValueError, match="its epochs is 4, not 2: pass another folder"):
        train(plan_of(world, epochs=2), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k"), ({"tokens": 1.5}, "tokens"), ({"activation": "topk"}, "known: 'TopK'"), ({"method": "Adam"}, "known: 'PAMSGD'"),
        ({"method_options": {"lr": -1.0}}, "lr"), ({"method_options": {"temperature": 1.0}}, "temperature"),
        ({"stream": True}, "take method='StreamingPAMSGD'"), ({"stream": True, "method": "SGD", "epochs": 2}, "epochs=2"),
        ({"outliers": "drop"}, "outliers"), ({"text": ()}, "text is empty"), ({"standardizer": "unit_norm"}, "standardizer"),
        ({"expansion": 0.0}, "expansion"), ({"decoder": "tied-residual"}, "decoder"), ({"store_dtype": "fp16"}, "store_dtype"),
        ({"n_latents": 0}, "n_latents"), ({"n_latents": -5}, "n_latents"), ({"log_every_steps": 0}, "log_every_steps"),
        ({"method_options": {"lr": "abc"}}, "method_options={'lr': 'abc'}"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_before_anything_is_loaded(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Plan(**{"model": "nothing", "text": ("nothing.txt",), "layer": 1, **options})


def test_what_cannot_be_is_found_before_anything_is_extracted_and_claims_no_folder(world, tmp_path):
    for options, message in (
        ({"n_latents": 2}, "k=3"), ({"layer": 9}, "layer=9"), ({"site": "h.0.nothing"}, "no module"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train(plan_of(world, **options), tmp_path)
        assert not (tmp_path / "plan.json").exists()
    train(plan_of(world), tmp_path)
    again = train(plan_of(world, loss=True), tmp_path)  # asked for later
    assert "loss_recovered" in again.metrics


def test_a_folder_without_training_is_no_plans_yet(world, tmp_path, monkeypatch):
    def cut(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE + ".fit", cut)
    with pytest.raises(KeyboardInterrupt):
        train(plan_of(world), tmp_path)
    with pytest.raises(KeyboardInterrupt):  # with the same activations another training may begin
        train(plan_of(world, k=5), tmp_path)
    with pytest.raises(ValueError, match="holds other activations"):
        train(plan_of(world, layer=1), tmp_path)


def test_a_plan_that_is_killed_within_its_only_epoch_goes_on_from_there(world, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE + ".CHECKPOINT_STEPS", 4)
    plan = plan_of(world, epochs=1)
    whole = train(plan, tmp_path / "whole")
    calls, step = [], PAMSGD.step

    def killed(self, sae, state, x):
        calls.append(state.step)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return step(self, sae, state, x)

    monkeypatch.setattr(PAMSGD, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "cut")
    again = train(plan, tmp_path / "cut")
    assert calls[20] >= 16
    assert len(calls) == 20 + 29 - calls[20]
    assert again.metrics == whole.metrics


def test_less_text_than_asked_for_is_said(world, tmp_path):
    with pytest.warns(UserWarning, match="activations to train on, not 50,000: name more text"):
        outcome = train(plan_of(world, tokens=50_000, epochs=1), tmp_path)
    x = ActivationStore(tmp_path / "activations" / "train")
    assert outcome.sae.about["last_row"]["step"] == math.ceil(len(x) / 32)


def test_names_with_dots_are_data_sets_and_words_are_values(world, monkeypatch):
    asked = []
    monkeypatch.setattr(
        MODULE + ".text_from_datasets", lambda dataset, /, **options: asked.append((dataset, options)) or ["a b"]
    )
    plan = plan_of(world)
    for name in ("wikimedia/wikipedia:20231101.en", "mlfoundations/dclm-baseline-1.0"):
        module.documents_of(dataclasses.replace(plan, text=(name,)))
    assert [(name, options.get("name")) for name, options in asked] == [
        ("wikimedia/wikipedia", "20231101.en"), ("mlfoundations/dclm-baseline-1.0", None),
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"corpus.txt is not there"):
        module.documents_of(dataclasses.replace(plan, text=("corpus.txt",)))
    assert [value_of(word) for word in ("True", "False", "None", "true", "x", "2e3")] == [True, False, None, True, "x", 2e3]


def test_options_of_the_tokens_reach_the_activations(world, tmp_path):
    plan = plan_of(world, bos=True, skip_first=3, store_dtype="bfloat16", standardizer="none", site="h.{layer}.mlp.act",
                   layer=1,
                   activation="ReLU", decoder="free", method="SGD", method_options={"l1": 0.01}, epochs=1)  # fmt: skip
    outcome = train(plan, tmp_path)
    store = ActivationStore(tmp_path / "activations" / "train")
    assert store.manifest["dtype"] == "bfloat16"
    assert store.about["rules"] == {"skip_first": 3}
    assert store.left_out["first"] > 0
    assert store.d_in == outcome.sae.d_in == 64
    assert outcome.standardizer is None
    assert type(outcome.sae.activation).__name__ == "ReLU"
    assert outcome.sae.decoder == "free"


def test_held_out_documents_are_enough_where_they_can_be():
    documents = [letters(20) for _ in range(50)]
    for n_tokens, share in ((1, 0.04), (32, 0.1), (10_000, 0.2)):
        kept, held = set_apart(documents, n_tokens)
        assert len(kept) + len(held) == 50
        assert len(held) / 50 == pytest.approx(share, abs=0.021)
        assert share == 0.2 or sum(map(len, held)) >= 6 * n_tokens
    uneven = ["a " * 3_000, *(letters(2) for _ in range(40))]  # one document has nearly all of the text
    assert sum(map(len, set_apart(uneven, 20)[1])) < 120
    assert [len(part) for part in set_apart(["a", "b"], 5)] == [1, 1]
    with pytest.raises(ValueError, match="one document"):
        set_apart(["a"], 5)


def test_files_and_the_command_line_say_the_same(world, tmp_path, capsys):
    plan = plan_of(world, method_options={"lr": 0.01, "hold": 0.1})
    (tmp_path / "plan.json").write_text(json.dumps(plan.as_json()))
    assert Plan.read(tmp_path / "plan.json") == plan
    assert Plan.read(tmp_path / "plan.json", k=5).k == 5
    pytest.importorskip("yaml")
    (tmp_path / "plan.yaml").write_text(
        f"model: {world / 'model'}\ntext: [{world / 'text'}]\nlayer: 2\ncontext: 16\ntokens: 900\nvalidation_tokens: 300\nk: 3\n"
        "expansion: 2\nbatch_size: 32\nepochs: 4\nmethod_options:\n  lr: 0.01\n  hold: 0.1\n"
    )
    words = [
        "train", "--model", str(world / "model"), "--text", str(world / "text"), "--layer", "2", "--context", "16", "--tokens", "9e2",
        "--validation-tokens", "300", "--k", "3", "--expansion", "2.0", "--batch-size", "32", "--epochs", "4", "--quiet",
        "--set", "lr=0.01", "hold=0.1", "--out",
    ]  # fmt: skip
    main([*words, str(tmp_path / "one")])
    main(["train", "--config", str(tmp_path / "plan.yaml"), "--quiet", "--out", str(tmp_path / "two")])
    main(["train", "--config", str(tmp_path / "plan.json"), "--quiet", "--out", str(tmp_path / "three"), "--seed", "1"])
    said = capsys.readouterr().out
    assert said.count("saved:") == 3
    assert json.loads((tmp_path / "one" / "plan.json").read_text()) == plan.as_json()
    weights = [(tmp_path / part / "sae" / "sae.safetensors").read_bytes() for part in ("one", "two", "three")]
    assert weights[0] == weights[1] != weights[2]
    for name, content, message in (
        ("a.json", {"kk": 3}, "'kk'; known: model"), ("b.json", {"k": 3}, "lacks model, text, layer"), ("c.json", [1], "holds a list"),
    ):  # fmt: skip
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            Plan.read(tmp_path / name)


def test_commands_evaluate_show_and_export(world, tmp_path, capsys):
    train(plan_of(world, activation="AbsTopK"), tmp_path / "run")
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--loss"])
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    sae, standardizer, _ = opened(tmp_path / "run")
    assert float(printed["fvu"]) == pytest.approx(sae.about["metrics"]["fvu"], rel=1e-3)
    assert math.isfinite(float(printed["loss_recovered"]))
    main(["contexts", str(tmp_path / "run"), "--latents", "1", "5", "-n", "3", "--sign", "magnitude"])
    shown = capsys.readouterr().out
    assert shown.startswith("latent 1\n")
    assert "«" in shown
    main(["contexts", str(tmp_path / "run")])
    assert 1 <= capsys.readouterr().out.count("latent ") <= 10
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "lens"), "--nonnegative"])
    exported, config = load_saelens(tmp_path / "lens")
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    x = ActivationStore(tmp_path / "run" / "activations" / "validation")[:]
    torch.testing.assert_close(
        exported(x).x_hat, standardizer.inverse(sae(standardizer.transform(x)).x_hat), rtol=1e-3, atol=1e-3
    )
    train(plan_of(world, activation="JumpReLU", epochs=1), tmp_path / "jump")
    for kind, name in (("dictionary_learning", "ae.pt"), ("sparsify", "sae.safetensors"), ("gemma_scope", "params.npz")):
        run = tmp_path / ("jump" if kind == "gemma_scope" else "run")
        main(["export", str(run), "--to", kind, "--out", str(tmp_path / kind)])
        assert (tmp_path / kind / name).exists()
    main(["export", str(tmp_path / "jump"), "--out", str(tmp_path / "rows"), "--unit-rows"])
    torch.testing.assert_close(load_saelens(tmp_path / "rows")[0].W_dec.norm(dim=1), torch.ones(exported.n_latents // 2))
    capsys.readouterr()
    for words in (
        ["evaluate", str(tmp_path)],
        ["export", str(tmp_path / "run"), "--to", "sparsify", "--unit-rows", "--out", str(tmp_path / "y")],
        ["train", "--model", "m", "--text", "no.txt", "--layer", "1", "--out", str(tmp_path / "x")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("python -m splinterp")


def test_runs_share_activations_which_the_first_extracts(world, tmp_path, monkeypatch, capsys):
    alone = train(plan_of(world), tmp_path / "alone")
    shared = str(tmp_path / "shared")
    first = train(plan_of(world, store=shared), tmp_path / "first")
    assert not (tmp_path / "first" / "activations").exists()
    assert first.metrics == alone.metrics
    for name, value in alone.sae.state_dict().items():
        assert torch.equal(first.sae.state_dict()[name], value)

    def extracted(*arguments, **named):
        raise AssertionError("extracted again")

    monkeypatch.setattr("splinterp.data.extract._Plan._shard", extracted)
    options = ["--set", "lr=0.01", "--store", "shared", "--out", "second", "--quiet"]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_of(world).as_json()))
    monkeypatch.chdir(tmp_path)
    main(["train", "--config", str(plan), *options])
    second = json.loads((tmp_path / "second" / "plan.json").read_text())
    assert second["store"] == shared
    assert second["method_options"] == {"lr": 0.01}
    capsys.readouterr()
    monkeypatch.chdir(world)  # what reads the plan later may be elsewhere
    main(["evaluate", str(tmp_path / "second")])
    measured = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(measured["fvu"]) != pytest.approx(alone.metrics["fvu"], rel=1e-3)
    assert SAE.load(tmp_path / "second" / "sae").about["plan"]["store"] == ""  # no folder of this machine in what is shared
    main(["train", "--config", str(plan), "--set", "lr=0.01", "--out", str(tmp_path / "second"), "--quiet"])  # it remembers
    assert json.loads((tmp_path / "second" / "plan.json").read_text())["store"] == shared
    (tmp_path / "shared").rename(tmp_path / "moved")
    for words, message in ((["contexts"], "name their folder by --store"), (["dashboard"], "--store")):
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path / "second")])
        assert message in capsys.readouterr().err
    main(["contexts", str(tmp_path / "second"), "--store", str(tmp_path / "moved"), "--latents", "1"])
    assert capsys.readouterr().out.startswith("latent 1\n")
    again = train(plan_of(world, store=str(tmp_path / "moved")), tmp_path / "first")  # a finished run whose store has moved
    assert again.metrics == first.metrics
    with pytest.raises(ValueError, match="moved.*holds other activations: its layer is 2, not 1"):
        train(plan_of(world, layer=1, store=str(tmp_path / "moved")), tmp_path / "third")


def test_activations_of_another_plan_are_not_read_for_those_of_an_sae(world, tmp_path, capsys):
    train(plan_of(world, store=str(tmp_path / "one")), tmp_path / "run")
    train(plan_of(world, layer=1, store=str(tmp_path / "two")), tmp_path / "other")
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--store", str(tmp_path / "two")])
    assert "holds other activations than those of" in (said := capsys.readouterr().err)
    assert "its layer is 1, not 2" in said
    with pytest.raises(TypeError, match="store"):  # by the type checker of tests first
        plan_of(world, store=5)


def test_a_run_waits_for_another_one_that_extracts_into_the_same_folder(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("splinterp._atomic.LOCK_SECONDS", 0.05)
    shared, released = tmp_path / "shared", []
    place = shared / ".validation.lock"
    place.mkdir(parents=True)
    held = locked(place, exclusive=True)
    held.__enter__()

    def release():
        released.append(True)
        held.__exit__(None, None, None)

    timer = threading.Timer(1.0, release)
    timer.start()
    train(plan_of(world, store=str(shared)), tmp_path / "run", progress=True)
    assert released
    assert "waiting for it" in capsys.readouterr().err


def test_places_have_the_names_of_other_tools():
    assert hook_name(3, "residual") == "blocks.2.hook_resid_post"
    assert hook_name(0, "residual") == "blocks.0.hook_resid_pre"
    assert hook_name(1, "mlp") == "blocks.0.hook_mlp_out"
    assert hook_name(2, "h.{layer}.mlp") == "h.2.mlp"
    assert pairs_of(["a=1", "b=x", "c=[1, 2]"]) == {"a": 1, "b": "x", "c": [1, 2]}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        pairs_of(["a"])


def test_rows_of_a_csv_file_are_written_once(tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    log = CSVLogger(path)
    for step in (1, 2, 2, 3):
        log({"step": step, "loss": 0.5 / step, "val_fvu": math.nan})
    again = CSVLogger(path)
    for step in (2, 3, 4):
        again({"step": step, "loss": 9.0, "val_fvu": math.nan})
    rows = rows_of(path)
    assert [float(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[1]["loss"]) == 0.25
    with open(path, "a") as file:
        file.write("5,0.1")  # a line that was cut
    CSVLogger(path)({"step": 5, "loss": 0.2, "val_fvu": math.nan})
    assert [float(row["step"]) for row in rows_of(path)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="log to another file"):
        again({"step": 5, "other": 1.0})


def test_the_store_of_a_plan_is_what_extraction_gives(world, tmp_path):
    plan = plan_of(world)
    train(plan, tmp_path)
    kept, held = set_apart(module.documents_of(plan), plan.validation_tokens)
    lm = LanguageModel.load(plan.model)
    for part, documents, n in (("train", kept, 900), ("validation", held, 300)):
        expected = extract_activations(lm, documents, 2, context=16, max_tokens=n).x
        torch.testing.assert_close(ActivationStore(tmp_path / "activations" / part)[:], expected)


def test_the_loss_is_of_the_tokens_that_the_plan_takes(world, tmp_path, capsys):
    outcome = train(plan_of(world, skip_first=4, tokens=600, loss=True), tmp_path)
    main(["evaluate", str(tmp_path), "--loss"])
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name in ("loss_recovered", "kl"):
        assert float(printed[name]) == pytest.approx(outcome.metrics[name], rel=1e-3)


def test_a_config_may_be_completed_and_corrected_by_the_command_line(world, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({
        "model": str(world / "model"), "layer": 2, "stream": True, "context": 16, "validation_tokens": 300, "k": 3, "batch_size": 32,
        "method_options": {"lr": 0.02, "refresh_every": 5},
    }))  # fmt: skip
    main(["train", "--config", str(tmp_path / "c.json"), "--text", str(world / "text"), "--method", "StreamingPAMSGD", "--tokens", "640",
          "--set", "lr=0.01", "--quiet", "--out", str(tmp_path / "run")])  # fmt: skip
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["method_options"] == {"lr": 0.01, "refresh_every": 5}


def test_a_folder_that_another_training_left_without_a_checkpoint_has_a_history_of_its_own(world, tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan_of(world, log_every_steps=2), tmp_path / "a", callback=stop)
    assert (tmp_path / "a" / "history.csv").exists()
    train(plan_of(world, seed=3, log_every_steps=2), tmp_path / "a")
    train(plan_of(world, seed=3, log_every_steps=2), tmp_path / "b")
    timed = {"seconds", "solve_seconds"}
    one, other = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(tmp_path / part / "history.csv")]
        for part in ("a", "b")
    )
    assert one == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--activation", "ReLU", "--k", "64"], "k=64 changes nothing with activation='ReLU'"),
        (["--n-latents", "50", "--expansion", "4"], "n_latents=50 and expansion=4.0 both say the size"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused_on_the_command_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "m", "--text", "t.txt", "--layer", "1", "--out", str(tmp_path / "x"), *words])
    assert message in capsys.readouterr().err
