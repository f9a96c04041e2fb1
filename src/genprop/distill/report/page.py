"""One self-contained HTML page: headings, text, tables and pictures, without scripts or other files.

Every function takes text and gives HTML; whatever comes from a run is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark;
  --ink: #1d1d21; --quiet: #666670; --line: #dcdce2; --back: #fff; --mark: #fff1b8; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #ececf0; --quiet: #a0a0aa; --line: #3b3b44; --back: #18181b; --mark: #574a12; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1100px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.lead { font-size: 1.1rem; }
.quiet, figcaption, summary { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; }
figure { margin: .6rem 0 1.2rem; }
figure img { max-width: 100%; display: block; background: #fff; border-radius: 6px; }
@media (max-width: 44rem) { .wide img { max-width: none; width: 44rem; } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; }
td.text, th.text { text-align: left; white-space: normal; max-width: 28rem; overflow-wrap: anywhere; }
small { color: var(--quiet); }
pre { font-size: .85rem; line-height: 1.45; overflow-x: auto; }
mark { background: var(--mark); color: inherit; }
summary { cursor: pointer; }
.side { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
"""


def page(title: str, parts: Sequence[str]) -> bytes:
    """The whole document of parts that are HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'.encode()


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """Cells as text; the first `text` columns are words. A second line of a cell is set small."""
    if not rows:
        return ""

    def cell(tag: str, i: int, value: str) -> str:
        large, _, small = value.partition("\n")
        inner = escape(large) + (f"<br><small>{escape(small)}</small>" if small else "")
        return f"<{tag}{' class=text' if i < text else ''}>{inner}</{tag}>"

    def row(tag: str, values: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, i, value) for i, value in enumerate(values))}</tr>"

    body = "".join(row("td", values) for values in rows)
    return f'<div class="wide"><table>{row("th", header)}{body}</table></div>'


def picture(image: bytes | None, caption: str = "", *, kind: str = "png") -> str:
    """A PNG (or `kind`) inside the page, which keeps a legible size on a phone; nothing without one."""
    if image is None:
        return ""
    data = base64.b64encode(image).decode()
    shown = f'<img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
    return f'<figure><div class="wide">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'


def side_by_side(parts: Sequence[str]) -> str:
    return f'<div class="side">{"".join(parts)}</div>' if parts else ""


def lines(text: Sequence[tuple[str, bool]]) -> str:
    """Lines as they are, those with True highlighted."""
    marked = [f"<mark>{escape(line)}</mark>" if bright else escape(line) for line, bright in text]
    return f"<pre>{chr(10).join(marked)}</pre>" if text else ""


def folded(summary: str, inner: str) -> str:
    """Shown when it is asked for; nothing where there is nothing."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>" if inner else ""
