"""The documentation site: Sphinx with MyST and the Furo theme (why: docs/architecture.md).

``make docs`` builds it strictly; nothing is fetched.
"""

from importlib.metadata import version as version_of

project = "bids_petsynth"
author = "The bids_petsynth developers"
copyright = author
version = release = version_of("bids-petsynth")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["hpc/*"]
# pages are read on a code host, too: links go by file name, headings have the host's anchors
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # included cards and the changelog begin at their own level

autodoc_typehints = "signature"  # docstrings tell shapes and units
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"bids_petsynth {release}"
html_theme_options = {
    "announcement": "Research only; not a medical device. The built-in model was trained on simulated PET.",
}
html_show_copyright = False
html_copy_source = False


def setup(app):
    from pygments.lexers.special import TextLexer

    app.add_lexer("tsv", TextLexer)
    app.connect("source-read", _link_cards)


def _link_cards(app, docname, source):
    """Cards lie in the package, beside their weights; on the site they are one page."""
    import re

    source[0] = re.sub(r"\]\(\.\./bids_petsynth/data/models/[\w-]+/MODEL_CARD\.md\)", "](cards.md)", source[0])
