"""The documentation site: the pages beside this file, and those that ``_site`` writes from the code."""

import importlib.metadata
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_site"))

project = "Automodel"
author = "the Automodel contributors"
release = importlib.metadata.version("automodel-recipes")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_site"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
default_role = "code"

html_theme = "furo"
html_title = "Automodel"
html_static_path: list[str] = []


def setup(app):
    """Write the generated pages first; make links, the table of contents and docstrings fit the site."""
    from contents import add_contents
    from docstrings import open_sections
    from links import rewrite_links
    from pages import write_pages

    app.connect("builder-inited", lambda app: write_pages(DOCS / "_generated"))
    app.connect("source-read", rewrite_links)
    app.connect("source-read", add_contents)
    # Before napoleon, whose handler has the default priority.
    app.connect("autodoc-process-docstring", open_sections, priority=400)
