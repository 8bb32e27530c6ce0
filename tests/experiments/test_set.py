"""Other settings on the command line: read by their kind, refused by name, and their results kept apart."""

from __future__ import annotations

import argparse
import importlib

import pytest

from experiments import __main__ as command_line
from experiments import biases, geometry, grid, lines, options
from experiments.errors import UsageError
from experiments.files import read_results


def asked(tmp_path, *given):
    return argparse.Namespace(out=tmp_path, set=list(given))


def test_values_are_read_by_the_kind_of_what_they_replace(tmp_path):
    args = asked(tmp_path, "k=7", "grid=0.01,2e-2", "activations=ReLU", "full_from=2", "ours=PAM-SGD", "seeds=3")
    config = options.changed(grid.Config(), args)
    assert (config.k, config.grid, config.activations, config.seeds) == (7, (0.01, 0.02), ("ReLU",), (3,))
    assert (config.full_from, config.ours) == (2.0, "PAM-SGD")
    assert config.n_latents == grid.Config().n_latents
    assert args.out == tmp_path / "k=7 grid=0.01,2e-2 activations=ReLU full_from=2 ours=PAM-SGD seeds=3"
    assert args.out.is_dir()


def test_nothing_given_changes_nothing(tmp_path):
    args = asked(tmp_path)
    config = geometry.Config()
    assert options.changed(config, args) is config
    assert args.out == tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["depth=3"], "'depth' is no setting of this experiment that can be given here: .*n_train, epochs"),
        (["data=digits"], "'data' is no setting"),
        (["trained=TopK"], "'trained' is no setting"),
        (["k"], "give each setting once, as k=VALUE"),
        (["k=3", "k=4"], "give each setting once"),
        (["k=many"], "'many' is not whole numbers"),
        (["seeds=1,x"], "'1,x' is not a list, with commas, of whole numbers"),
        (["margin=wide"], "'wide' is not numbers"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(given, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        options.changed(geometry.Config(), asked(tmp_path, *given))
    assert not list(tmp_path.iterdir())


def test_every_experiment_with_a_grid_takes_it(capsys):
    for name in command_line.EXPERIMENTS:
        if name in ("tables", "small_gpt2", "bench", "atoms", "bridge", "looks"):
            continue
        with pytest.raises(SystemExit):
            importlib.import_module(f"experiments.{name}").command(["--help"])
        assert "--set NAME=VALUE" in " ".join(capsys.readouterr().out.split()), name


@pytest.mark.parametrize(
    "config", [grid.Config(), geometry.Config(), lines.Config(), biases.Config()], ids=lambda c: type(c).__module__
)
def test_settings_of_all_kinds_can_be_given_as_they_are(config, tmp_path):
    """What is printed for a setting is read as itself."""
    for name in ("k", "n_latents", "seeds"):
        value = getattr(config, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert getattr(options.changed(config, asked(tmp_path, f"{name}={text}")), name) == value


def test_results_are_kept_in_a_folder_of_what_was_changed(tmp_path, capsys):
    given = [
        "k=3",
        "n_latents=16",
        "activations=TopK",
        "shares=0.1",
        "grid=0.008",
        "seeds=0,1",
        "early_epochs=1",
        "long_steps=10",
    ]
    assert command_line.main(["digits", "--out", str(tmp_path), "--set", *given]) == 0
    folder = next(tmp_path.iterdir())
    assert "k=3 n_latents=16" in folder.name
    config = read_results(folder / "digits.json")["config"]
    assert (config["k"], config["n_latents"], config["seeds"]) == (3, 16, [0, 1])
    assert command_line.main(["digits", "--out", str(tmp_path), "--set", "k=none"]) == 2
    assert "--set k=none" in capsys.readouterr().err
