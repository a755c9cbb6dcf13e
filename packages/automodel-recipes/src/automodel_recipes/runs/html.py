"""A page in one file: escaped text, tables, pictures as data URLs, no script and nothing from the network."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_MAX_PICTURE_BYTES = 2_000_000
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}

_STYLE = """
:root{--ink:#1d2430;--soft:#667085;--line:#e3e7ee;--tint:#f6f8fb;--accent:#1f5a9c;--good:#2f7d4f;--bad:#b3402a}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:#fff;font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:18px;margin:40px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--line)}
p.lead{color:var(--soft);margin:0 0 20px;overflow-wrap:anywhere}
code,pre,td.code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
pre{background:var(--tint);border:1px solid var(--line);border-radius:8px;padding:12px}
pre{overflow-x:auto;white-space:pre-wrap}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--soft);font-weight:600;padding:6px 10px;border-bottom:1px solid var(--line)}
td{padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
.scroll{overflow-x:auto}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;font-weight:600;color:#fff}
.badge{vertical-align:4px}.finished{background:var(--good)}.failed{background:var(--bad)}
.interrupted{background:#8a6d1f}.running{background:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.tile{background:var(--tint);border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:19px}.tile span{color:var(--soft);font-size:12.5px}
.sample{border:1px solid var(--line);border-radius:10px;padding:12px 16px;margin:0 0 12px;display:flex;gap:16px}
.sample img{width:132px;height:auto;border-radius:6px;border:1px solid var(--line);align-self:flex-start}
.sample div{flex:1;min-width:0}.sample p{margin:0 0 6px;white-space:pre-wrap;overflow-wrap:anywhere}
.sample .who{color:var(--soft);font-size:12px;display:block}
.right{color:var(--good)}.wrong{color:var(--bad)}
.curves{width:100%;height:auto}
details>summary{cursor:pointer;color:var(--accent);margin:8px 0}
"""


def escape(value: Any) -> str:
    """Text that cannot become markup."""
    return html.escape(str(value), quote=True)


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. The policy forbids scripts and every address, in case something slipped through."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading and what stands under it; nothing where there is nothing."""
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, code: Sequence[int] = ()) -> str:
    """A table of escaped cells; columns in ``code`` are set in a fixed pitch. Empty for no rows."""
    lines = [
        "<tr>" + "".join(f"<td{' class=code' if i in code else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        for row in rows
    ]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Figures with what they mean."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(name)}</span></div>' for name, v in facts)
        + "</div>"
    )


def folded(summary: str, content: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def picture(data: bytes, kind: str, *, alt: str, style: str = "") -> str:
    """An image within the page."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img class="{escape(style)}" alt="{escape(alt)}" src="data:{kind};base64,{encoded}">'


def picture_of_run(run: Path, name: str) -> str:
    """An image file of a run's directory; a line in words for one that is absent, too large, or lies elsewhere."""
    root = run.resolve()
    file = (root / name).resolve()
    kind = _KINDS.get(file.suffix.lower())
    if kind is None or not file.is_relative_to(root) or not file.is_file():
        return f"<span class=who>picture {escape(name)} is not in this run</span>"
    if file.stat().st_size > _MAX_PICTURE_BYTES:
        return f"<span class=who>picture {escape(name)} is too large to embed</span>"
    return picture(file.read_bytes(), kind, alt=name)
