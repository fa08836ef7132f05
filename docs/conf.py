"""Sphinx configuration of the site. It builds without a network, with warnings as errors."""

from typing import Any

import pyrocontrol

project = "pyrocontrol"
author = copyright = "The pyrocontrol authors"
version = release = pyrocontrol.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_parser",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"pyrocontrol {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The docstrings write code in single backticks.
default_role = "literal"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# A room documents what its __all__ lists, in that order; what torch or Pyro document themselves stays there.
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
maximum_signature_line_length = 90


def skip_member(app: Any, what: str, name: str, thing: object, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: their class docstring has them, with what they mean."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Register what the configuration adds to autodoc."""
    app.connect("autodoc-skip-member", skip_member)
