"""What only the validation report has: links into the store, recordings to listen to, and a badge for warnings."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["audible", "audio", "link", "warning_badge"]

_NO_SOUND = "img-src data:"


def link(text: str, href: str) -> Markup:
    """A text that leads to another place."""
    from markupsafe import Markup

    return Markup('<a href="{}">{}</a>').format(href, text)


def audio(flac: bytes) -> Markup:
    """A recording inside the page, with a button to play it; the page is to be made :func:`audible`."""
    from markupsafe import Markup

    return Markup(
        '<audio controls preload="none" style="width: 13em; height: 2.2em" src="data:audio/flac;base64,{}"></audio>'
    ).format(base64.b64encode(flac).decode())


def warning_badge(text: str) -> Markup:
    """A word like :func:`kubevox.page.badge`'s, for what is neither passed nor failed."""
    from markupsafe import Markup

    return Markup(
        '<span class="badge" style="color: var(--warn); background: var(--warn-ground)">'
        '<span aria-hidden="true">!</span> {}</span>'
    ).format(text)


def audible(page: str) -> str:
    """The page, allowed by its own policy to play what it holds; it still loads nothing."""
    return page.replace(_NO_SOUND, f"{_NO_SOUND}; media-src data:", 1)
