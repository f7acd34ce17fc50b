"""What a parity run found: one row a tensor, and the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

OK, FAIL, SKIPPED = "ok", "FAIL", "skipped"
WHOLE = "*"
"""Tensor column of a row about a whole fixture."""


@dataclass(frozen=True)
class Row:
    """One comparison. `error` is max|ours - published| / max|published|, or the absolute one where `why` says so."""

    fixture: str
    tensor: str
    error: float | None
    tolerance: float | None
    status: str
    why: str = ""

    def __str__(self) -> str:
        numbers = (f"{n:.1e}" if n else "0" if n == 0 else "-" for n in (self.error, self.tolerance))
        return " ".join([self.fixture, self.tensor, *numbers, self.status, self.why]).rstrip()


@dataclass
class Report:
    """Rows in the order in which they were found; `tell` is called with each."""

    tell: Callable[[Row], None] = lambda row: None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.tell(row)

    @property
    def passed(self) -> bool:
        """Whether there is something, and all of it is within its tolerance."""
        return bool(self.rows) and all(row.status == OK for row in self.rows)

    def summary(self) -> str:
        """One line: fixtures, counts, and the names of those that did not pass."""
        count = Counter(row.status for row in self.rows)
        fixtures = list(dict.fromkeys(row.fixture for row in self.rows))
        bad = list(dict.fromkeys(row.fixture for row in self.rows if row.status != OK))
        line = f"{len(fixtures)} fixtures: {count[OK]} ok, {count[FAIL]} FAIL, {count[SKIPPED]} skipped"
        return f"{line} ({', '.join(bad)})" if bad else line

    def as_dict(self) -> dict[str, Any]:
        """The rows and the summary, for a JSON file."""
        return {"passed": self.passed, "summary": self.summary(), "rows": [asdict(row) for row in self.rows]}
