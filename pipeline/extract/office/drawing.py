"""What charts and diagrams of office files say: the words and the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from pipeline.extract.blocks import Blocks
from pipeline.extract.office.elements import inner_text
from pipeline.extract.office.ooxml import Office, Target

_MAX_POINTS = 500  # of one series; a chart of more is a picture of measurements


def read_graphic(reference: Element, office: Office, related: Mapping[str, Target], blocks: Blocks) -> None:
    """Writes a chart as its title and a table, a diagram as a list; `reference` is what the slide or page holds."""
    key = reference.get("r-id") or reference.get("r-dm") or ""
    target = related.get(key)
    part = office.root(target.name) if target is not None else None
    if part is None:
        return
    if reference.tag == "c-chart":
        _chart(part, blocks)
        return
    for paragraph in part.iter("a-p"):
        blocks.item(0, "".join(run.text or "" for run in paragraph.iter("a-t")))


def _chart(part: Element, blocks: Blocks) -> None:
    for title in part.iter("c-title"):
        blocks.paragraph(" ".join(inner_text(paragraph) for paragraph in title.iter("a-p")))
    columns: list[dict[int, str]] = []
    heads: list[str] = []
    for series in part.iter("c-ser"):
        if not columns and (categories := _first(series, "c-cat", "c-xVal")) is not None:
            heads.append("")
            columns.append(_points(categories))
        if (values := _first(series, "c-val", "c-yVal")) is not None:
            heads.append(inner_text(series.find("c-tx")) if series.find("c-tx/c-strRef") is None else _name(series))
            columns.append(_points(values))
    rows = sorted({index for column in columns for index in column})
    if rows:
        blocks.table([heads, *([column.get(index, "") for column in columns] for index in rows)])


def _first(series: Element, *names: str) -> Element | None:
    return next((found for name in names if (found := series.find(name)) is not None), None)


def _name(series: Element) -> str:
    return inner_text(series.find("c-tx/c-strRef/c-strCache/c-pt/c-v"))


def _points(axis: Element) -> dict[int, str]:
    found: dict[int, str] = {}
    for point in axis.iter("c-pt"):
        index = point.get("idx", "")
        if index.isdecimal() and len(found) < _MAX_POINTS:
            found.setdefault(int(index[:9]), _plain(inner_text(point.find("c-v"))))
    return found


def _plain(text: str) -> str:
    """A number without the noise of its binary form."""
    try:
        return f"{float(text):.10g}"
    except ValueError:
        return text
