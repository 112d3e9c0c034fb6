"""How results show themselves: as text where they are printed, as HTML in a notebook."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """
    A result in cells, with the lines around them.

    :param title: what was measured
    :param head: names of the columns; the first column is aligned at the left, the others at the right
    :param rows: cells, one for each column
    :param below: the last line, such as an advice; empty: none
    :param left_out: what is not in the table, and why
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """:return: lines with aligned columns"""
        cells = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
        reasons = [f"not here: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join([self.title, *lines, *reasons, *([self.below] if self.below else [])])

    def html(self) -> str:
        """:return: a table without colours of its own, so that it is readable in light and dark notebooks; all is escaped"""
        parts = [f"<p>{html.escape(self.title)}</p><table><thead>{_row('th', self.head)}</thead>"]
        parts += ["<tbody>", *(_row("td", row) for row in self.rows), "</tbody></table>"]
        if self.below:
            parts.append(f"<p><b>{html.escape(self.below)}</b></p>")
        if self.left_out:
            reasons = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in self.left_out.items())
            parts.append(f"<details><summary>not here</summary><ul>{reasons}</ul></details>")
        return "".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    sides = ["left", *["right"] * (len(cells) - 1)]
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )
        + "</tr>"
    )


class ShownAsTable:
    """A result that ``print`` shows as text and a notebook as HTML: both from its ``_table``."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()
