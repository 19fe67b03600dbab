"""What an answer looks like: a heading, a table and sentences, in the terminal and in a notebook."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from partialpool.present.tables import summary_html, summary_text

if TYPE_CHECKING:
    import pandas


class Report(ABC):
    """An answer that shows itself: subclasses are frozen dataclasses with a table and sentences about it.

    `table` is what a user computes with, `shown` what is printed of it (the table itself unless it is too wide).
    """

    #: Rows of the table that are printed.
    MOST_ROWS = 20

    @property
    @abstractmethod
    def title(self) -> str:
        """What this is, in one line."""

    @property
    @abstractmethod
    def table(self) -> pandas.DataFrame:
        """All numbers."""

    @property
    @abstractmethod
    def sentences(self) -> Sequence[str]:
        """What the numbers say, a sentence a line."""

    @property
    def shown(self) -> pandas.DataFrame:
        """The part of the table that is printed."""
        return self.table

    def __repr__(self) -> str:
        table = summary_text(self.shown, max_rows=self.MOST_ROWS)
        return "\n".join([self.title, "", table, "", *self.sentences])

    def _repr_html_(self) -> str:
        below = "<br>".join(html.escape(line) for line in self.sentences)
        table = summary_html(self.shown, max_rows=self.MOST_ROWS)
        return f"<div><p><b>{html.escape(self.title)}</b></p>{table}<p>{below}</p></div>"
