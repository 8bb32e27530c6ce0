"""Files that are whole or absent: kills at every step of a save, leftovers of dead writers, modes and links."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import warnings

import pytest
import torch

from splinterp import SAE
from splinterp._atomic import PENDING, current, replace_file, replace_files
from splinterp.data import Standardizer
from tests.helpers import make_sae, samples

X = samples(40)


def killed_at(step: int, work) -> bool:
    """Whether a child that does `work` dies before the `step`th change of a folder's entries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks among threads
        child = os.fork()
    if child == 0:
        left = itertools.count(step, -1)

        def dying(change):
            def changed(*arguments, **options):
                if next(left) == 0:
                    os._exit(9)
                return change(*arguments, **options)

            return changed

        for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def content(folder):
    """What a folder holds: the SAE's first weights, and its standardizer's mode."""
    try:
        mode = Standardizer.load(folder).mode
    except FileNotFoundError:
        mode = None
    return float(SAE.load(folder).W_enc.detach()[0, 0]), mode


@pytest.mark.parametrize("kept", [True, False])
def test_a_kill_at_any_step_leaves_the_old_sae_or_the_new_one(tmp_path, kept):
    old, new = make_sae(seed=1), make_sae(seed=2)
    olds, news = Standardizer("global").fit(X), Standardizer("per_feature").fit(X) if kept else None
    start = tmp_path / "start"
    old.save(start, olds)
    new.save(tmp_path / "end", news)
    before, after = content(start), content(tmp_path / "end")
    assert after == (float(new.W_enc.detach()[0, 0]), "per_feature" if kept else None)
    seen = set()
    for step in itertools.count():
        folder = tmp_path / str(step)
        shutil.copytree(start, folder)
        if not killed_at(step, lambda folder=folder: new.save(folder, news)):
            break
        found = content(folder)
        assert found in (before, after), step
        seen.add(found)
        new.save(folder, news)
        assert content(folder) == after
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "end").iterdir())
    assert seen == {before, after}
    assert step > 8


def test_an_sae_saved_without_a_standardizer_has_none(tmp_path):
    make_sae().save(tmp_path, Standardizer("global").fit(X))
    make_sae().save(tmp_path)
    with pytest.raises(FileNotFoundError, match="standardizer.json is missing"):
        Standardizer.load(tmp_path)
    Standardizer("unit_norm").fit(X).save(tmp_path)
    assert content(tmp_path)[1] == "unit_norm"


def test_files_of_two_saves_are_found_out(tmp_path):
    make_sae(seed=1).save(tmp_path / "a")
    make_sae(seed=2).save(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "sae.safetensors", tmp_path / "b")
    with pytest.raises(ValueError, match=r"sae\.safetensors does not have the bytes that were written"):
        SAE.load(tmp_path / "b")
    path = tmp_path / "a" / "sae.json"
    text = path.read_text()
    path.write_text(text.replace('"k": 3', '"k": 2'))
    with pytest.raises(ValueError, match=r"sae\.json does not have the content.*remove its 'checksum'"):
        SAE.load(tmp_path / "a")
    config = json.loads(path.read_text())
    config.pop("checksum")
    path.write_text(json.dumps(config))  # as the message says
    assert SAE.load(tmp_path / "a").activation.k == 2


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    path = tmp_path / "run.ckpt"
    script = "import os, sys; from pathlib import Path; from splinterp._atomic import replace_file; "
    script += "replace_file(Path(sys.argv[1]), lambda temporary: os._exit(9))"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == 9
        assert len(list(tmp_path.iterdir())) == 1  # the second removed what the first left
    (tmp_path / ".run.ckpt.abcdefgh.tmp").write_bytes(b"of an older writer")
    (tmp_path / ".other.ckpt.abcdefgh.tmp").write_bytes(b"of another file")
    living = tmp_path / ".run.ckpt.living_8.tmp"
    living.mkdir()
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    replace_file(path, lambda temporary: temporary.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.ckpt.abcdefgh.tmp", living.name, "run.ckpt"]
    os.close(handle)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        replace_file(path, lambda temporary: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_files(tmp_path, {"file": lambda temporary: temporary.write_text("new"), "second": lambda temporary: 1 / 0})
    assert path.read_text() == "old"
    assert current(tmp_path, "file") == path


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o027, 0o640)])
def test_the_umask_is_respected(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        make_sae().save(tmp_path, Standardizer("global").fit(X))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {mode}


def test_links_are_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("sae.json", "sae.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    for seed in (1, 2):
        sae = make_sae(seed=seed)
        sae.save(tmp_path)
        assert torch.equal(SAE.load(tmp_path).W_enc, sae.W_enc)
        assert torch.equal(SAE.load(tmp_path / "there").W_enc, sae.W_enc)
    assert (tmp_path / "sae.json").is_symlink()


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("folder", "is a folder"), ("pipe", "is no regular file")):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            replace_file(tmp_path / name, lambda temporary: temporary.write_text("x"))


@pytest.mark.parametrize("text", ["", "[]", '{"replace": ["../x"], "remove": []}', '{"replace": 3, "remove": []}'])
def test_a_damaged_record_of_a_save_is_named_and_mended_by_the_next(tmp_path, text):
    sae = make_sae()
    sae.save(tmp_path)
    (tmp_path / PENDING).write_text(text)
    with pytest.raises(ValueError, match=r"\.pending\.json is damaged.*save again into"):
        SAE.load(tmp_path)
    sae.save(tmp_path)
    assert torch.equal(SAE.load(tmp_path).W_enc, sae.W_enc)
