"""Settings of the documentation: `make docs` writes docs/_build/html.

Pages are MyST; their `{code-cell}` blocks run when the page is built, and a cell that
raises is a warning, which `make docs` takes for an error. Nothing is fetched, neither
here nor by a reader's browser.
"""

import os
import pathlib
import re

from sphinx.errors import ExtensionError

import sslx

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["IPYKERNEL_CELL_NAME"] = "page.py"  # what source lines name

project = "sslx"
author = "the sslx authors"
copyright = author
version = release = sslx.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "myst-nb"}

# Pages.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/plain", 0)]

# Docstrings: Google style; names in single backticks link where they are known.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["jax2onnx", "onnx"]  # their extra holds orbax-checkpoint back
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!sslx\.).*"),
    ("py:.*", r"sslx\..*\b_.*"),
]

# Looks.
html_theme = "sphinx_book_theme"
html_title = f"sslx {version}"
html_static_path = ["_static"]
html_css_files = ["sslx.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}


def _docstring(app, what, name, obj, options, lines):
    """Docstrings are Markdown as far as mathematics and code in backticks go."""
    text = "\n".join(lines)
    text = re.sub(r"(?m)^( *)\$\$(.+?)\$\$$", r"\1.. math:: \2", text)
    text = re.sub(r"(?<!\$)\$([^$\n]+)\$(?!\$)", r":math:`\1`", text)
    lines[:] = re.sub(r"(?<![`:\w])`([^`]+)`(?!`)", _code, text).split("\n")


def _code(found):
    """A name links where it is known; anything else is as it stands."""
    text = " ".join(found[1].split())
    name = re.fullmatch(r"[A-Za-z_][\w.]*", text)
    return (f":py:obj:`{text}`" if name else f"``{text}``") + "\\ "


def _publish(module):
    """Names that a package hands on are documented where users find them."""
    for name, item in vars(module).items():
        inside = getattr(item, "__module__", "") or ""
        if isinstance(item, type) and inside.startswith("sslx.") and name[0] != "_":
            item.__module__ = module.__name__


for package in (sslx.lowering, sslx.measure, sslx.psp, sslx.select, sslx):
    _publish(package)


def _offline(app, exception):
    """Fail if a page would load anything from elsewhere."""
    asset = re.compile(r'<(?:script|img|link|iframe)\b[^>]*="((?:https?:)?//[^"]*)"')
    for page in pathlib.Path(app.outdir).rglob("*.html") if exception is None else ():
        found = asset.findall(page.read_text(encoding="utf-8"))
        if found:
            raise ExtensionError(f"{page} loads {found}")


def setup(app):
    """Connect what reads docstrings, and what reads the pages."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("build-finished", _offline)
