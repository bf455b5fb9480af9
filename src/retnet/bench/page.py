"""Pages of the docs: each table between its markers, made of the committed records."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from retnet.bench.record import read_records
from retnet.bench.tables import TABLES
from retnet.hub import write_atomic

_BLOCK = re.compile(r"(<!-- begin: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

BENCH_OF = {"machine": "ops", "gpu-machine": "gpu", "reading": "prefill", "targets": "cpu"}
"""What writes the records of a table that has another name."""


def update_docs(page: Path, results: Path, pictures: Iterable[Path] = ()) -> bool:
    """Write each table between its markers, `<!-- begin: ops -->` and `<!-- end -->`.

    Quick runs' records do not count.

    Args:
        page: a Markdown file.
        results: folder of records.
        pictures: those that the page shows as `images/<name>` are copied there.

    Returns:
        Whether the text of the page changed.

    Raises:
        ValueError: a marker names no table, or the page has no marker.
    """
    records = [record for record in read_records(results) if not record.quick]

    def text(name: str) -> str:
        table = TABLES[name](records)
        command = f"retnet bench {BENCH_OF.get(name, name)}"
        return table.markdown() if table.rows else f"No results yet: `{command}`.\n"

    changed = rewrite_blocks(page, {name: partial(text, name) for name in TABLES})
    new = page.read_text(encoding="utf-8")
    for picture in pictures:
        if f"(images/{picture.name})" in new:
            target = page.parent / "images" / picture.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, target)
    return changed


def rewrite_blocks(page: Path, texts: Mapping[str, Callable[[], str]]) -> bool:
    """Write the text of each name between its markers on a page.

    Returns:
        Whether the page changed.

    Raises:
        ValueError: a marker has another name, or the page has no marker.
    """
    old = page.read_text(encoding="utf-8")
    if not _BLOCK.search(old):
        raise ValueError(
            f"{page} has no <!-- begin: NAME --> line with an <!-- end --> after it; add them "
            f"where a table belongs, NAME one of {', '.join(texts)}"
        )

    def block(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in texts:
            raise ValueError(f'{page}: no table "{name}"; name one of {", ".join(texts)}')
        return f"{begin}\n{texts[name]()}\n{end}"

    new = _BLOCK.sub(block, old)
    if new != old:
        write_atomic(page, lambda path: path.write_text(new, encoding="utf-8"))
    return new != old
