"""Files that are either whole or absent, alone or several of a folder together.

Writers work in a temporary folder beside the target, under a lock that the system drops when they die, so that a later writer can
tell what is left over. Several files are replaced in one step: all are written under names of their own, then `PENDING` is put
there, which names them, and only then are they renamed. Readers ask `current` for a file's path, so that they see either all of
the old files or all of the new ones, wherever a writer was killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PENDING = ".pending.json"
LOCK_SECONDS = 20.0
"""Who waits longer for a folder goes on without it: checksums tell whether files belong together."""

Write = Callable[[Path], object]


def replace_file(path: Path, write: Write, *, like: Path | None = None, clean: bool = True) -> None:
    """Call `write` with a temporary path, then rename that to `path`, or to what `path` is a link to.

    A new file has the mode that the umask gives, a replaced one (or `like`) keeps its own. What writers that died left of earlier
    calls is removed, unless `clean` is False. Raises ValueError where `path` is there and is no regular file.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = _mode(path) if like is None else _mode(like)
    if clean:
        remove_leftovers(path.parent, path.name)
    with _workplace(path) as place:
        temporary = place / path.name
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode) if mode is None else mode
        os.close(handle)
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)


def replace_files(folder: Path, files: Mapping[str, Write | None]) -> None:
    """Replace files of a folder, and remove those whose `write` is None, in one step for readers that use `current`."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, exclusive=True):
        _finish(folder)
        for name, write in files.items():
            _next(folder, name).unlink(missing_ok=True)  # of a writer that died before it could say so
            if write is not None:
                replace_file(_next(folder, name), write, like=folder / name)
            else:
                remove_leftovers(folder, _next(folder, name).name)
        names: dict[str, list[str]] = {"replace": [], "remove": []}
        for name, write in files.items():
            names["remove" if write is None else "replace"].append(name)
        replace_file(folder / PENDING, lambda path: path.write_text(json.dumps(names)))
        _finish(folder)


def current(folder: Path, name: str) -> Path:
    """Where a file of a folder is now. Raises FileNotFoundError where it is to be removed, ValueError for a broken `PENDING`."""
    pending = _pending(folder)
    if name in pending["remove"]:
        raise FileNotFoundError(f"{folder / name} is missing")
    waiting = _next(folder, name)
    return waiting if name in pending["replace"] and waiting.exists() else folder / name


def check_writable(path: Path) -> None:
    """Raise ValueError unless `replace_file` could write to `path` now: what takes hours to make needs a place to go."""
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mode(path)
        with _workplace(path) as place:
            (place / path.name).touch()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): choose a folder that can") from error


@contextmanager
def locked(folder: Path, exclusive: bool = False, needed: bool = False) -> Iterator[None]:
    """Inside, no other process replaces files of the folder (and none reads them, where `exclusive`), if the system can say so.

    Raises ValueError where the lock is `needed` and another process does not let go of it.
    """
    handle, had = None, True
    try:
        handle = os.open(folder, os.O_RDONLY)
        deadline = time.monotonic() + LOCK_SECONDS
        while not (had := _try_lock(handle, exclusive)) and time.monotonic() < deadline:
            time.sleep(0.02)
    except OSError:  # no such folder, or a file system without locks
        pass
    try:
        if needed and not had:
            raise ValueError(f"{folder} is being written to by another process: let it finish, or write to another folder")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files and folders of `name` whose writers are dead."""
    pattern = re.compile(rf"\.{re.escape(name[:NAME_LENGTH])}\.[a-z0-9_]{{8}}\.tmp")
    for entry in list(os.scandir(folder)):
        if pattern.fullmatch(entry.name):
            remove_if_dead(Path(entry.path))


def remove_if_dead(path: Path) -> None:
    """Remove a temporary file or folder unless its writer lives (or nobody can tell)."""
    if fcntl is None or path.is_symlink():
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if _try_lock(handle, exclusive=True):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(handle)


NAME_LENGTH = 100


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, locked: writers of others' formats may have temporary files of their own."""
    while True:
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:NAME_LENGTH]}.", suffix=".tmp"))
        handle = None
        try:
            if fcntl is not None:
                handle = os.open(place, os.O_RDONLY)
                _try_lock(handle, exclusive=True)
                if not place.exists():  # taken for a leftover before the lock was there
                    os.close(handle)
                    continue
        except OSError:
            pass  # a file system without locks
        break
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _try_lock(handle: int, exclusive: bool) -> bool:
    """Whether the lock was had. Raises OSError where the file system has none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mode(path: Path) -> int | None:
    """Permissions of a file that is there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: write to another path")
    return stat.S_IMODE(mode)


def _next(folder: Path, name: str) -> Path:
    return folder / f".{name}.next"


def _pending(folder: Path) -> dict[str, list[str]]:
    path = folder / PENDING
    if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
        raise ValueError(f"{path} is no regular file: remove it, and save again into {folder}")
    try:
        names = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {"replace": [], "remove": []}
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): save again into {folder}") from error
    known = isinstance(names, dict) and set(names) == {"replace", "remove"}
    if not known or not all(isinstance(part, list) and all(map(_is_plain, part)) for part in names.values()):
        raise ValueError(f"{path} is damaged: save again into {folder}")
    return names


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _finish(folder: Path) -> None:
    """Rename and remove what `PENDING` names."""
    try:
        pending = _pending(folder)
    except ValueError:  # whatever it said, the files are written anew
        pending = {"replace": [], "remove": []}
    for name in pending["replace"]:
        waiting, path = _next(folder, name), folder / name
        if not waiting.exists():
            continue
        if path.is_symlink():
            replace_file(path, lambda temporary, source=waiting: shutil.copyfile(source, temporary))  # type: ignore[misc]
            waiting.unlink()
        else:
            os.replace(waiting, path)
    for name in pending["remove"]:
        (folder / name).unlink(missing_ok=True)
    (folder / PENDING).unlink(missing_ok=True)
