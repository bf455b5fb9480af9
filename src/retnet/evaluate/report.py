"""A report to read: one HTML file with its pictures inside, or Markdown with pictures beside it."""

import base64
from functools import partial
from html import escape
from importlib.util import find_spec
from pathlib import Path

from retnet.evaluate.evaluation import Evaluation
from retnet.evaluate.pictures import draw
from retnet.evaluate.sections import Section, about, sections
from retnet.hub import write_atomic

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } p.note { color: #555; font-size: 0.9rem }
div.wide { overflow-x: auto }
"""


def write_report(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write a report.

    Args:
        evaluation: what was found out.
        path: ends in .html, or in .md: then pictures are NAME.SECTION.png beside it.

    Returns:
        The files written.

    Raises:
        ValueError: the path ends in something else, or matplotlib is not installed.
    """
    check_report_path(path)
    pictures = {s.key: draw(evaluation, s.key) for s in sections(evaluation)}
    if path.suffix == ".html":
        text, written = _html(evaluation, pictures), [path]
    else:
        named = {key: path.with_suffix(f".{key}.png") for key, png in pictures.items() if png}
        for key, file in named.items():
            write_atomic(file, partial(_write_bytes, pictures[key] or b""))
        text = _markdown(evaluation, {key: file.name for key, file in named.items()})
        written = [path, *named.values()]
    write_atomic(path, partial(_write_bytes, text.encode()))
    return written


def check_report_path(path: Path) -> None:
    """Refuse what cannot be written, before hours of work.

    Raises:
        ValueError: the path ends neither in .html nor in .md, or matplotlib is not installed.
    """
    if path.suffix not in (".html", ".md"):
        raise ValueError(f"report ({path}) must end in .html or .md; rename it")
    if find_spec("matplotlib") is None:
        raise ValueError("a report has pictures; pip install 'retnet[plot]' brings matplotlib")


def _html(evaluation: Evaluation, pictures: dict[str, bytes | None]) -> str:
    title = escape(f"Evaluation of {evaluation.name}")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>\n<p>{escape(about(evaluation))}</p>",
    ]
    for section in sections(evaluation):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts.append(_html_table(section))
        parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
        png = pictures[section.key]
        if png is not None:
            data = base64.b64encode(png).decode()
            alt = escape(section.title, quote=True)
            parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
    return "\n".join([*parts, "</body>\n</html>\n"])


def _html_table(section: Section) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "\n".join(line(row, "td") for row in section.rows)
    head = line(section.columns, "th")
    return (
        f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _markdown(evaluation: Evaluation, pictures: dict[str, str]) -> str:
    parts = [f"# Evaluation of {evaluation.name}", about(evaluation)]
    for section in sections(evaluation):
        rule = ("---", *("---:" for _ in section.columns[1:]))
        lines = [section.columns, rule, *section.rows]
        parts.append(f"## {section.title}")
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        parts += section.notes
        if section.key in pictures:
            parts.append(f"![{section.title}]({pictures[section.key]})")
    return "\n\n".join(parts) + "\n"


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)
