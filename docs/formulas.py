"""A hook of mkdocs: formulas become SVG while the site is built.

Pages write `$x$` and `$$x$$` (pymdownx.arithmatex). matplotlib's own TeX, a
subset of LaTeX, draws them as outlines: no script, no font and no network is
needed to read them.
"""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextToPath

_FORMULA = re.compile(
    r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL
)
_EM = 100  # units of the SVG: matplotlib's outlines are hundredths of a size
_PAD = 4  # outlines reach a little beyond their box
_COMMANDS = {
    Path.MOVETO: "M",
    Path.LINETO: "L",
    Path.CURVE3: "Q",
    Path.CURVE4: "C",
}


def on_page_content(content: str, **_: Any) -> str:
    """Puts a drawing in the place of every formula of a page."""
    return _FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    tag, formula = found[1], html.unescape(found[2])
    return f'<{tag} class="formula">{_svg(formula)}</{tag}>'


@functools.cache
def _svg(formula: str) -> str:
    """The drawing of a formula, on the line and as high as the text around."""
    text = f"${' '.join(formula.split())}$"
    tex, font = TextToPath(), FontProperties(math_fontfamily="stix", size=_EM)
    try:
        width, height, depth = tex.get_text_width_height_descent(
            text, font, ismath=True
        )
        outline = Path(*tex.get_text_path(font, text, ismath=True))
    except ValueError as error:
        raise ValueError(f"matplotlib cannot draw {formula!r}.") from error
    width, height, depth = width + 2 * _PAD, height + 2 * _PAD, depth + _PAD
    box = f"{-_PAD} {depth - height:.0f} {width:.0f} {height:.0f}"
    style = f"width:{width / _EM:.2f}em;vertical-align:{-depth / _EM:.2f}em"
    return (
        f'<svg role="img" aria-label="{html.escape(formula)}" viewBox="{box}"'
        f' style="{style}"><path fill="currentColor" d="{_path(outline)}"/>'
        "</svg>"
    )


def _path(outline: Path) -> str:
    """An outline as SVG writes it; its y axis points down."""
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        if code == Path.CLOSEPOLY:
            parts.append("Z")
            continue
        signed = (-p if place % 2 else p for place, p in enumerate(points))
        parts.append(_COMMANDS[code] + " ".join(f"{p:.0f}" for p in signed))
    return "".join(parts)
