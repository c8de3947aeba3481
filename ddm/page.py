"""Self-contained HTML pages: tables, plots as inline SVG, rows of small images, and the document around them."""

import base64
import contextlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate

from ddm import drawing

TILE = 96  # CSS pixels of an image's side; larger images are reduced
INK = "#010203"  # the colour of axes and text in plots; the page replaces it by its own text colour
BACKGROUNDS = {"light": "#ffffff", "dark": "#15171c"}
# Each has a contrast of at least 3 to both backgrounds.
COLOURS = ["#4477aa", "#d9534f", "#2e8b3d", "#9a7d0a", "#1789b0", "#b8478a", "#808080", "#c8642b", "#1f8f74", "#8a63c9"]
MARKERS = "osD^vPX*<>"
FEW = 20  # above this number of values, a description gives their range

Draw = Callable[[Any], None]  # draws on matplotlib's axes


class Plot(NamedTuple):
    """A plot to be drawn, and the text that replaces it for readers who can't see it."""

    draw: Draw
    alt: str
    caption: str = ""


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(str(value))


def scrolling(label: str, body: str, name: str = "scroll") -> str:
    """A region that scrolls sideways, also with the keyboard."""
    return f'<div class="{name}" role="group" aria-label="{text(label)}" tabindex="0">{body}</div>'


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption; the first row and the first column are headers."""
    columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    content = f"<caption>{text(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody>"
    return scrolling(caption, f"<table>{content}</table>")


def details(summary: str, body: str, shown: bool = False) -> str:
    """A part that opens on demand."""
    return f"<details{' open' if shown else ''}><summary>{text(summary)}</summary>{body}</details>"


def image(content: bytes, alt: str) -> str:
    """An <img> of a PNG."""
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def tiles(pixels: Tensor, alt: str, caption: str, columns: int | None = None) -> str:
    """Images [N, C, H, W] in [0, 1] as a captioned row that wraps, after at most `columns` images."""
    if max(pixels.shape[-2:]) > TILE:
        size = [max(1, side * TILE // max(pixels.shape[-2:])) for side in pixels.shape[-2:]]
        pixels = interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
    body = "".join(image(drawing.png(tile[None], 1, padding=0), "") for tile in pixels)
    width = f' style="--columns: {columns}"' if columns else ""
    label = f'role="img" aria-label="{text(alt)}"'
    return f'<figure class="tiles"><figcaption>{text(caption)}</figcaption><div {label}{width}>{body}</div></figure>'


# --- plots ---------------------------------------------------------------------------------------------------


def plots(shown: Sequence[Plot], share: str = "", high: float = 3.2) -> str:
    """Plots side by side, 5.2 x `high` inches each; `share` names the axes ("x", "y", "xy") with common limits."""
    with contextlib.ExitStack() as stack:
        drawn = [stack.enter_context(drawing.axes(5.2, high, SETTINGS)) for _ in shown]
        for plot, (_, axes) in zip(shown, drawn, strict=True):
            axes.set_prop_cycle(color=COLOURS)
            plot.draw(axes)
        for axis in share:
            limits = [getattr(axes, f"get_{axis}lim")() for _, axes in drawn]
            for _, axes in drawn:
                getattr(axes, f"set_{axis}lim")(min(low for low, _ in limits), max(high for _, high in limits))
        svgs = [_svg(figure, plot.alt) for plot, (figure, _) in zip(shown, drawn, strict=True)]
    captions = [f"<figcaption>{text(plot.caption)}</figcaption>" if plot.caption else "" for plot in shown]
    figures = (f"<figure>{caption}{svg}</figure>" for caption, svg in zip(captions, svgs, strict=True))
    return f'<div class="plots">{"".join(figures)}</div>'


_numbers: Iterator[int] = count()
_colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SETTINGS = {name: INK for name in _colours} | {
    **{"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "legend.frameon": False},
    # Text stays text: the browser has glyphs that matplotlib's font lacks, such as those of Chinese class names.
    **{"svg.hashsalt": "ddm", "svg.fonttype": "none", "axes.xmargin": 0.03},
}


def _svg(figure: Any, alt: str) -> str:
    """A figure as an inline <svg>, whose ids are unique on the page."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # only measured with it
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|\n\s*", " ", buffer.getvalue(), flags=re.S)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{next(_numbers)}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(alt)}"', 1)


def legend(axes: Any, columns: int = 3) -> None:
    """A legend above the axes, which covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)), fontsize=9)


def bars(groups: dict[str, list[float]], labels: Sequence[str], ylabel: str) -> Draw:
    """Bars of several groups beside each other, for each label."""

    def draw(axes: Any) -> None:
        width = 0.8 / len(groups)
        for k, (name, values) in enumerate(groups.items()):
            axes.bar([i + (k + 0.5) * width - 0.4 for i in range(len(values))], values, width, label=name)
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, labels)) > 40 else {}
        axes.set_xticks(range(len(labels)), labels, **turned)
        axes.set_xlim(-0.6, max(len(labels), 3) - 0.4)  # limits the width of a single bar
        axes.set_ylabel(ylabel)
        legend(axes)

    return draw


def listed(names: Sequence[str], values: Sequence[float]) -> str:
    """Named values as text; above FEW values, their range and mean."""
    if len(values) > FEW:
        mean = sum(values) / len(values)
        return f"{min(values):.3g} to {max(values):.3g}, mean {mean:.3g}, over {len(values)}"
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))


# --- the document --------------------------------------------------------------------------------------------


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def section(title: str, body: str, note: str = "") -> tuple[str, str]:
    """A title, and the section under it; an empty body gives an empty section, which `document` leaves out.

    On a wide screen, sections of one plot stand beside each other.
    """
    anchor = _anchor(title)
    note = f'<p class="note">{text(note)}</p>' if note else ""
    head = f'<h2 id="{anchor}">{text(title)}</h2>{note}'
    return (
        title,
        f'<section class="{"narrow" if body.count("<svg") == 1 else "wide"}">{head}{body}</section>' if body else "",
    )


def document(title: str, subtitle: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """The whole page."""
    sections = [(name, body) for name, body in sections if body]
    links = "".join(f'<li><a href="#{_anchor(name)}">{text(name)}</a></li>' for name, _ in sections)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{text(title)}</title><style>{STYLE}</style>"
    body = '<a class="skip" href="#main">Skip to the content</a>'
    body += f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>"
    body += f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
    body += f'<main id="main">{"".join(part for _, part in sections)}</main><footer><p>{text(footer)}</p></footer>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


STYLE = f"""
:root {{ color-scheme: light dark; --tile: {TILE}px; --page: {BACKGROUNDS["light"]}; --ink: #1b1d21; --quiet: #565b63;
  --line: #d5d8dd; --panel: #f5f6f8; --link: #1a5fb4; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: {BACKGROUNDS["dark"]}; --ink: #e7e9ec; --quiet: #a9afb8;
  --line: #3a3f48; --panel: #1f2229; --link: #8ab8ff; }} }}
"""
STYLE += """
* { box-sizing: border-box; }
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1440px; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.25rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; } p { margin: .3rem 0; }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
section { border-top: 1px solid var(--line); min-width: 0; padding-top: 1rem; } .wide { grid-column: 1 / -1; }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { background: var(--page); left: 1rem; padding: .5rem; position: absolute; top: -5rem; }
.skip:focus { top: .5rem; }
header p, .note, figcaption, caption, footer { color: var(--quiet); font-size: .875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .5rem 0 1rem; padding: 0; }
nav a { display: inline-block; padding: .2rem 0; }
.headline { font-size: 1.35rem; font-weight: 650; line-height: 1.3; }
.runs { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  margin-bottom: 1rem; }
.card { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem; }
.card p { overflow-wrap: anywhere; } .card .note { margin: .15rem 0 0; }
.scroll, .strip { overflow-x: auto; } figure { margin: 0; min-width: 0; }
table { border-collapse: collapse; font-size: .875rem; } caption { padding-bottom: .25rem; text-align: left; }
th { font-weight: 600; text-align: left; } th[scope=col] { vertical-align: bottom; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem 1rem .3rem 0; vertical-align: top; }
td { max-width: 40rem; overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: .5rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.plots > figure figcaption { color: var(--ink); font-weight: 600; }
svg { display: block; height: auto; max-width: 100%; }
.classes { display: grid; gap: 1.1rem 1.5rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--block)), 1fr)); }
.class { min-width: 0; } .pair { display: flex; gap: .25rem 1.5rem; }
.pair > .tiles { flex: 0 1 auto; } .sets { flex: 1 1 calc(var(--tile) + 4px); min-width: max(var(--tile), 5rem); }
.tiles + .tiles { margin-top: .4rem; }
.tiles div { display: flex; flex-wrap: wrap; gap: 4px; max-width: calc(var(--columns, 999) * (var(--tile) + 4px)); }
.tiles img { background: var(--panel); height: var(--tile); image-rendering: pixelated; }
.strip { display: flex; gap: .75rem; } .strip figure { flex: 0 0 auto; }
.strip img { display: block; height: 400px; image-rendering: pixelated; }
.plots .strip img { height: 260px; }
details { border: 1px solid var(--line); border-radius: .5rem; margin-top: .5rem; padding: .5rem .75rem; }
summary { cursor: pointer; } footer { border-top: 1px solid var(--line); margin-top: 1.5rem; }
@media (max-width: 1000px) { :root { --tile: 72px; }
  .pair:not(.short) { display: block; } .pair:not(.short) div { max-width: none; } }
@media (max-width: 600px) { :root { --tile: 64px; } }
"""
