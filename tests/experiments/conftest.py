"""Tables are printed whole here, whatever the terminal."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def wide_terminal(request, monkeypatch):
    if request.module.__name__ != "tests.experiments.test_cli":
        monkeypatch.setenv("COLUMNS", "1000")
