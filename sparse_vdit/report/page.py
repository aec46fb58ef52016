"""Everything a reader sees of a run, as one HTML file without scripts, fonts or addresses outside itself.

`write(path, page)` fills the template through jinja2 with escaping on; pictures are inline SVG or data URIs,
so the file can be mailed. Its content security policy allows inline styles and data images only.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure
from .files import write_text

TEMPLATE = Path(__file__).parent / "templates" / "page.html"


@dataclass(frozen=True)
class Tile:
    """One figure of the headline: `value` in large letters, what it is, and a line below."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Clip:
    """One prompt, seen dense and sparse.

    Attributes:
        prompt: The sentence.
        seed: Seed of the noise.
        views: (name, sheet of frames as a data URI) from left to right.
        numbers: (name, value) below them.
    """

    prompt: str
    seed: int
    views: Sequence[tuple[str, str]]
    numbers: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first row of `rows` is emphasised when `lead` is set."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    lead: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with text, a picture and a table, each of them optional.

    Attributes:
        title: The heading.
        text: Paragraphs.
        figure: A picture.
        caption: What the picture shows.
        table: Numbers.
        after: Paragraphs below.
    """

    title: str
    text: Sequence[str] = ()
    figure: Figure | None = None
    caption: str = ""
    table: Table | None = None
    after: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Name of the page.
        headline: The result in one sentence.
        lead: What was compared, in two or three.
        tiles: Main figures.
        frames: Frames of a clip.
        fps: Frames per second.
        clips: Videos; without any, their section is left out.
        sections: What follows.
        notes: What a careful reader should know.
        facts: (name, value) of machine, versions and settings.
        footer: Last line.
        aspect: Width of a clip over its height.
    """

    title: str
    headline: str
    lead: str
    tiles: Sequence[Tile]
    frames: int
    fps: int
    clips: Sequence[Clip]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    footer: str = ""
    aspect: float = 1.0


def render(page: Page) -> str:
    """Returns the page as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = lambda figure: Markup(figure.svg)  # figures.py has escaped its texts
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return str(template.render(page=page, icon=_icon()))


def _icon() -> str:
    lines = '<path d="M1.5 1.5 6.5 6.5M4 1.5 6.5 4M1.5 4 4 6.5" stroke="#fff" stroke-linecap="round"/>'
    square = '<rect width="8" height="8" rx="1.6" fill="#0072B2"/>'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{square}{lines}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()


def write(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all."""
    write_text(path, render(page))
