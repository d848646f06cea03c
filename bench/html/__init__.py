"""One HTML page from reports: no script, no font and no picture from elsewhere, so that it opens offline and for years.

Plots whose text must stay readable on a phone are HTML bars; those with an axis are SVG of a phone's width. The numbers
of both are made here, `plots.py` and `sections.py`; `templates/` only draws.
"""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench.html.sections import Document, section

__all__ = ["Document", "page"]


def page(documents: Sequence[Document]) -> str:
    """The page, a section for each document in the order given."""
    environment = Environment(
        loader=PackageLoader("bench.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [section(document, number) for number, document in enumerate(documents)]
    return environment.get_template("page.html.j2").render(sections=sections)
