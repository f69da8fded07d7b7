"""Sphinx: `make docs` builds the site into build/docs. Nothing is fetched, at build or when it is read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from docstring_sections import CUSTOM  # noqa: E402

import semobridge_ext  # noqa: E402

project = "semobridge-ext"
author = "the semobridge-ext authors"
copyright = f"2026, {author}"
release = semobridge_ext.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstring_sections"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path: list[str] = []
exclude_patterns = ["Thumbs.db", ".DS_Store"]

# Formulas are Unicode text in code blocks: they read alike in a terminal, in a docstring and on a page,
# and need no script from elsewhere.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# A docstring that names a thing in single backticks means code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = list(CUSTOM)
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
