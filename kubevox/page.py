"""The shell of a self-contained HTML report: one file, no request to anywhere, light or dark or on paper.

A page is a title and sections; a section's parts are built by :func:`paragraph`, :func:`cards`, :func:`table` and
:func:`figure_html`. Whatever is interpolated is escaped: labels and file names come from other people's disks. Text
becomes markup only in this module, and the page's own policy forbids loading anything.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "PALETTE",
    "SYNTHETIC_NOTICE",
    "Card",
    "Section",
    "audio",
    "badge",
    "cards",
    "figure_html",
    "gallery",
    "key_values",
    "link",
    "new_figure",
    "notice",
    "paragraph",
    "plotting",
    "render_page",
    "table",
]

SYNTHETIC_NOTICE = (
    "The data is synthetic: it holds voices made by a speech synthesiser, so a score that rests on it is no evidence "
    "about people."
)
"""The first line of every report, model card and summary that rests on synthetic data."""

INK = "#1f2430"
"""The colour of text and axes in figures; on the page it becomes the text's own colour, light or dark."""

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c7a00", "#7f7f7f")
"""Colours that people with a colour-vision deficiency tell apart (Okabe & Ito 2008; its yellow darkened to be seen)."""


@dataclass(frozen=True)
class Card:
    """A key figure: what it is, its value, and a word beside it; ``state`` is "", "pass" or "fail"."""

    label: str
    value: str
    note: str = ""
    state: str = ""


@dataclass(frozen=True)
class Section:
    """A headed part of a page; ``parts`` come from this module's builders, plain text is escaped."""

    title: str
    parts: Sequence[Markup | str]
    lead: str = ""


def render_page(
    title: str,
    banner: str | None,
    sections: Sequence[Section],
    subtitle: str = "",
    footer: str = "",
    audible: bool = False,
) -> str:
    """A complete HTML document.

    Args:
        title: of the document, and its first heading.
        banner: what must be read before anything else; it is the page's first line. None: nothing must.
        sections: in reading order; more than three get a table of contents.
        subtitle: a line under the title.
        footer: a line at the end.
        audible: whether the page may play recordings that it holds.
    """
    return (
        _environment()
        .from_string(_PAGE)
        .render(
            title=title,
            banner=banner,
            sections=[(f"s{i}", section) for i, section in enumerate(sections, start=1)],
            subtitle=subtitle,
            footer=footer,
            media="; media-src data:" if audible else "",
            style=_markup(_STYLE),
            script=_markup(_SCRIPT),
        )
    )


def paragraph(text: str) -> Markup:
    """A paragraph of text."""
    return _render("<p>{{ text }}</p>", text=text)


def notice(text: str, state: str = "warn") -> Markup:
    """A paragraph that must not be missed; ``state`` is "warn", "pass" or "fail"."""
    return _render('<p class="notice {{ state }}">{{ text }}</p>', text=text, state=state)


def badge(passed: bool | Literal["warn"] | None, text: str | None = None) -> Markup:
    """A word with a colour and a sign, so that neither is needed alone: pass, fail, warn, or (None) not asked."""
    kinds: dict[bool | str | None, tuple[str, str, str]] = {
        True: ("pass", "✓", "pass"),
        False: ("fail", "✗", "fail"),
        "warn": ("warn", "!", "warning"),
        None: ("none", "–", "not asked"),
    }
    kind, sign, word = kinds[passed]
    return _render(
        '<span class="badge {{ kind }}"><span aria-hidden="true">{{ sign }}</span> {{ text }}</span>',
        kind=kind,
        sign=sign,
        text=text or word,
    )


def link(text: str, href: str) -> Markup:
    """A text that leads to another place."""
    return _render('<a href="{{ href }}">{{ text }}</a>', text=text, href=href)


def audio(flac: bytes) -> Markup:
    """A recording inside the page, with a button to play it; the page is to be rendered ``audible``."""
    return _render(
        '<audio controls preload="none" src="data:audio/flac;base64,{{ data }}"></audio>',
        data=base64.b64encode(flac).decode(),
    )


def cards(items: Sequence[Card]) -> Markup:
    """The key figures, side by side."""
    return _render(
        """<div class="cards">
{%- for card in items %}
<div class="card {{ card.state }}"><span class="label">{{ card.label }}</span>
<span class="value">{{ card.value }}</span><span class="note">{{ card.note }}</span></div>
{%- endfor %}
</div>""",
        items=items,
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numeric: Collection[int] = (),
    caption: str = "",
    searchable: bool = False,
) -> Markup:
    """A table; None in a cell is shown as a dash.

    Args:
        headers: of the columns.
        rows: cells of text, numbers or markup from this module.
        numeric: indices of the columns to align right.
        caption: what the table shows.
        searchable: whether a box above it narrows the rows to those that hold what is typed.
    """
    return _render(
        """{% if searchable %}<p class="search"><label>Search
<input type="search" placeholder="any part of a row" autocomplete="off"></label> <output></output></p>{% endif %}
<div class="scroll"><table{% if searchable %} class="searchable"{% endif %}>
{%- if caption %}<caption>{{ caption }}</caption>{% endif %}
<thead><tr>{% for header in headers %}<th scope="col"
{%- if loop.index0 in numeric %} class="number"{% endif %}>{{ header }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows %}
<tr>{% for cell in row %}<td{% if loop.index0 in numeric %} class="number"{% endif %}>
{{- "–" if cell is none else cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>""",
        headers=headers,
        rows=rows,
        numeric=set(numeric),
        caption=caption,
        searchable=searchable,
    )


def key_values(items: Mapping[str, Any]) -> Markup:
    """A list of names and values, for hashes, paths and the like; None is shown as a dash."""
    return _render(
        """<dl>
{%- for name, value in items.items() %}
<dt>{{ name }}</dt><dd>{{ "–" if value is none else value }}</dd>
{%- endfor %}
</dl>""",
        items=items,
    )


def gallery(figures: Sequence[Markup]) -> Markup:
    """Figures side by side where the page is wide enough, else one under the other."""
    return _render(
        """<div class="gallery">
{% for figure in figures %}{{ figure }}
{% endfor %}</div>""",
        figures=figures,
    )


@contextlib.contextmanager
def plotting() -> Iterator[None]:
    """The style in which figures for a page are drawn; draw and call :func:`figure_html` inside it."""
    import matplotlib as mpl
    from matplotlib import rcsetup

    style: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.prop_cycle": rcsetup.cycler("color", PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.constrained_layout.use": True,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same everywhere
        "font.size": 9,
        "grid.alpha": 0.15,
        "grid.color": INK,
        "grid.linewidth": 0.8,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.transparent": True,
        "svg.fonttype": "none",  # text stays text: it can be searched, and it scales with the page
        "text.color": INK,
        "text.parse_math": False,  # a label with dollar signs is a label, not a formula
        "xtick.color": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": INK,
        "ytick.labelsize": 8.5,
    }
    with mpl.rc_context(style):
        yield


def new_figure(width_in: float = 5.0, height_in: float = 2.9) -> tuple[Figure, Axes]:
    """A figure and its axes, without a window or any state that outlives it; sizes in inches, 96 pixels each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    return figure, figure.add_subplot()


def figure_html(figure: Figure, alt: str, caption: str = "") -> Markup:
    """A matplotlib figure as SVG inside the page.

    Args:
        figure: drawn under :func:`plotting`.
        alt: what a person who cannot see it should know.
        caption: a line under it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "kubevox"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = svg.replace(INK, "currentColor")
    # Ids must be unique in the page, and a figure's are only unique in the figure.
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(?<=\bid=")(?=[^"])', f"{prefix}-", svg)
    svg = re.sub(r'(?<=href="#)|(?<=url\(#)', f"{prefix}-", svg)
    return _render(
        "<figure>{{ svg }}{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>",
        svg=_markup(svg.replace("<svg", f'<svg role="img" aria-label="{_escape(alt)}"', 1).strip()),
        caption=caption,
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def _render(template: str, **values: Any) -> Markup:
    return _markup(_environment().from_string(template).render(**values))


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 - this module's own templates, or what they escaped


def _escape(text: str) -> Markup:
    from markupsafe import escape

    return escape(text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:{{ media }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{% if banner %}<p class="banner" role="note">{{ banner }}</p>
{% endif -%}
<main>
<header>
<h1>{{ title }}</h1>
{% if subtitle %}<p class="subtitle">{{ subtitle }}</p>
{% endif -%}
</header>
{% if sections | length > 3 -%}
<nav aria-label="Contents">{% for anchor, section in sections %}<a href="#{{ anchor }}">{{ section.title }}</a>
{%- endfor %}</nav>
{% endif -%}
{% for anchor, section in sections -%}
<section id="{{ anchor }}">
<h2>{{ section.title }}</h2>
{% if section.lead %}<p class="lead">{{ section.lead }}</p>
{% endif -%}
{% for part in section.parts %}{{ part }}
{% endfor -%}
</section>
{% endfor -%}
{% if footer %}<footer>{{ footer }}</footer>
{% endif -%}
</main>
<script>{{ script }}</script>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1f2430; --soft: #5b6472; --line: #d9dee5; --ground: #f5f7f9; --sheet: #fff; --accent: #0072b2;
  --good: #00664b; --good-ground: #e0f3ec; --bad: #a33b00; --bad-ground: #fdeadf; --warn: #6b4e00;
  --warn-ground: #fff3d1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3adba; --line: #353c47; --ground: #14171c;
  --sheet: #1c2027; --accent: #6cbcf0; --good: #5fd3ac; --good-ground: #12352b; --bad: #ff9d66;
  --bad-ground: #44210f; --warn: #f3cd6b; --warn-ground: #3a2f10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 48px; }
.banner { margin: 0; padding: 11px 20px; max-width: none; text-align: center; font-weight: 600; color: var(--warn);
  background: var(--warn-ground); border-bottom: 1px solid var(--line); }
h1 { font-size: 27px; line-height: 1.25; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; line-height: 1.3; margin: 0 0 10px; }
p { margin: 0 0 12px; max-width: 78ch; overflow-wrap: anywhere; }
.subtitle, .lead, figcaption, footer { color: var(--soft); }
.subtitle { margin: 4px 0 0; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 16px 0 0; font-size: 14px; }
a { color: var(--accent); }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px;
  margin: 18px 0 0; }
section > :last-child { margin-bottom: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 14px; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.card.pass { border-left-color: var(--good); } .card.fail { border-left-color: var(--bad); }
.card span { display: block; overflow-wrap: anywhere; }
.card .label { color: var(--soft); font-size: 13px; }
.card .value { font-size: 24px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card.pass .value { color: var(--good); } .card.fail .value { color: var(--bad); }
.card .note { color: var(--soft); font-size: 12.5px; line-height: 1.4; }
.notice { border-left: 4px solid; border-radius: 4px; padding: 8px 14px; max-width: none; }
.notice.warn { color: var(--warn); background: var(--warn-ground); }
.notice.pass { color: var(--good); background: var(--good-ground); }
.notice.fail { color: var(--bad); background: var(--bad-ground); }
.badge { display: inline-block; white-space: nowrap; border-radius: 999px; padding: 0 10px; font-size: 13px;
  font-weight: 600; border: 1px solid currentColor; color: var(--soft); }
.badge.pass { color: var(--good); background: var(--good-ground); }
.badge.fail { color: var(--bad); background: var(--bad-ground); }
.badge.warn { color: var(--warn); background: var(--warn-ground); }
audio { width: 13em; height: 2.2em; }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; color: var(--soft); padding: 0 0 6px; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
td { overflow-wrap: anywhere; min-width: 6em; } td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
td.number { white-space: nowrap; min-width: 0; } td:last-child:not(.number) { min-width: 14em; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover { background: var(--ground); }
.searchable { max-height: 30em; }
.search { display: flex; align-items: center; gap: 12px; color: var(--soft); font-size: 14px; }
input { font: inherit; color: var(--ink); background: var(--ground); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 10px; width: 22em; max-width: 60vw; margin-left: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 20px; margin: 0 0 14px; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: 13px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); gap: 8px 24px; }
figure { margin: 0 0 14px; min-width: 0; }
figure svg { display: block; max-width: 100%; height: auto; color: var(--ink); }
figcaption { font-size: 13px; margin: 4px 0 0; max-width: 62ch; }
footer { margin: 22px 2px 0; font-size: 13px; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; gap: 0 0; } dd { margin: 0 0 8px; } }
@media print { :root { --ground: #fff; --sheet: #fff; } main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 14px 0; }
  section, figure, .card, tr { break-inside: avoid; } nav, .search { display: none; } .scroll { overflow: visible; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.searchable")) {
  const box = table.parentElement.previousElementSibling, input = box.querySelector("input");
  const rows = [...table.tBodies[0].rows], texts = rows.map(row => row.textContent.toLowerCase());
  const show = () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => { const hit = words.every(word => texts[i].includes(word));
      row.hidden = !hit; shown += hit; });
    box.querySelector("output").textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", show);
  show();
}
"""
