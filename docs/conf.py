"""The documentation site: Sphinx over the Markdown of this folder. Build it with ``make docs``.

Warnings are errors, and nothing is fetched, neither while building nor by the built pages.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

from imcc import __version__

project = "imcc"
author = "The imcc contributors"
copyright = "The imcc contributors"
version = release = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# Blocks of IR and of command lines have no lexer.
highlight_language = "text"
lexers["mlir"] = TextLexer()

html_theme = "furo"
html_title = f"imcc {release}"
html_copy_source = False


def setup(app):
    """Write the generated pages before the sources are read."""
    from generate_reference import generate

    app.connect("builder-inited", lambda app: generate(Path(app.srcdir) / "generated"))
