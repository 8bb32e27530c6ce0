"""Pages of the site that are files elsewhere in the repository: results with their figures, the changelog, how to contribute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "paper_figures" / "figures"
PAGES = {"results.md": "experiments/RESULTS.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINKS = {
    "../paper_figures/figures/": "figures/",
    "paper_figures/figures/": "figures/",
    "(README.md": "(index.md",
    "(docs/": "(",
}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages, their links as the site has them, and every committed figure."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for elsewhere, here in LINKS.items():
            text = text.replace(elsewhere, here)
        files.append(File.generated(config, name, content=text))
    for path in sorted(FIGURES.glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_post_build(config: Any, **_: Any) -> None:
    """Every exported name of the package must be in the reference."""
    import importlib.util

    import splinterp

    text = "".join(path.read_text(encoding="utf-8") for path in sorted((Path(config["site_dir"]) / "reference").glob("*.html")))
    missing = []
    for part in ("splinterp", *(f"splinterp.{name}" for name in splinterp._PARTS)):
        for name in getattr(importlib.import_module(part), "__all__", ()):
            shadowed = importlib.util.find_spec(f"{part}.{name}") is not None  # by the module that it is in
            if f'.{name}.{name}"' not in text if shadowed else f'.{name}"' not in text:
                missing.append(f"{part}.{name}")
    if missing:
        raise PluginError(f"not in the reference: {', '.join(missing)}")
