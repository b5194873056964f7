"""The shell of the reports: self-contained, escaped, and honest in its first line."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from kubevox.page import (
    SYNTHETIC_NOTICE,
    Card,
    Section,
    badge,
    cards,
    figure_html,
    gallery,
    key_values,
    new_figure,
    notice,
    paragraph,
    plotting,
    render_page,
    table,
)

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7*7 }}"


class Reader(HTMLParser):
    """What a browser would show of a page, and what it would try to load."""

    VOID = frozenset({"meta", "input", "br", "link", "img", "hr"})
    HIDDEN = frozenset({"head", "style", "script", "title"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.visible: list[str] = []
        self.scripts = 0
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if data.strip() and not self.HIDDEN & set(self.open):
            self.visible.append(data.strip())


def a_figure(label="recall", alt="a line"):
    with plotting():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], label=label)
        axes.set_xlabel(label)
        axes.legend()
        return figure_html(figure, alt=alt, caption=label)


def everything(text):
    """A page with the text in every place that takes some."""
    return render_page(
        text,
        text,
        [
            Section(text, [text, paragraph(text), notice(text), badge(passed=True, text=text)], lead=text),
            Section("2", [cards([Card(text, text, text)]), key_values({text: text})]),
            Section("3", [table([text], [[text], [None], [1.5]], caption=text, searchable=True)]),
            Section("4", [gallery([a_figure(text, alt=text)])]),
        ],
        subtitle=text,
        footer=text,
    )


def test_a_banner_is_the_first_visible_line():
    page = render_page("Report", SYNTHETIC_NOTICE, [Section("One", [paragraph("text")])])
    assert Reader(page).visible[0] == SYNTHETIC_NOTICE


def test_without_a_banner_the_title_comes_first():
    assert Reader(render_page("Report", None, [])).visible[0] == "Report"


def test_the_synthetic_notice_says_what_it_must():
    assert "synthetic" in SYNTHETIC_NOTICE
    assert "no evidence about people" in SYNTHETIC_NOTICE


def test_whatever_is_interpolated_is_escaped():
    page = everything(HOSTILE)
    reader = Reader(page)
    assert reader.scripts == 1  # the page's own
    assert "<script>alert" not in page
    assert any(HOSTILE in text for text in reader.visible)
    assert not reader.open


def test_an_attribute_cannot_be_left_through_a_quote():
    figure = a_figure(alt='" onload="alert(1)')
    assert not [name for _, name, _ in Reader(str(figure)).attributes if name == "onload"]


def test_a_page_loads_nothing():
    page = everything("plain")
    loading = [
        (tag, name, value)
        for tag, name, value in Reader(page).attributes
        if name in ("src", "href", "xlink:href", "action", "data") and not value.startswith(("#", "data:"))
    ]
    assert not loading
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_ids_are_unique_even_with_the_same_axes_twice():
    page = render_page("t", None, [Section("s", [a_figure("one"), a_figure("two")])])
    ids = [value for _, name, value in Reader(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert used <= set(ids)


def test_the_same_figure_gives_the_same_bytes():
    assert a_figure() == a_figure()


def test_a_figure_takes_the_pages_colour_and_keeps_its_text():
    figure = a_figure("share of <labels> at $5 each")
    assert "currentColor" in figure
    assert "share of &lt;labels&gt; at $5 each</text>" in figure


def test_a_dash_stands_for_what_is_missing():
    assert "<td>–</td>" in table(["a"], [[None]])
    assert "<td>0</td>" in table(["a"], [[0]])


@pytest.mark.parametrize(("passed", "word"), [(True, "pass"), (False, "fail"), (None, "not asked")])
def test_a_badge_says_in_words_what_its_colour_says(passed, word):
    assert word in badge(passed)


def test_plotting_leaves_matplotlibs_settings_alone():
    import matplotlib as mpl

    before = mpl.rcParams["svg.fonttype"]
    a_figure()
    assert mpl.rcParams["svg.fonttype"] == before


@pytest.mark.parametrize("module", ["kubevox.page", "kubevox.evaluation", "kubevox.data.validation"])
def test_the_import_is_light(module):
    heavy = ["jinja2", "matplotlib", "pandas", "torch", "scipy"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
