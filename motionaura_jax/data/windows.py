"""The position in the data: the data step that an optimizer step reads once windows of data were skipped."""

import dataclasses
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class SkippedWindows:
    """Half-open ranges of data steps that no optimizer step reads; ascending, disjoint, not touching.

    Data step d is the batch that (seed, d) gives.  Without windows, optimizer step n (0, 1, ...) reads data step n.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Iterable[int]]) -> "SkippedWindows":
        """Return the windows that cover `ranges` of (first, end), which may overlap and come in any order."""
        merged: list[tuple[int, int]] = []
        for first, end in sorted((int(first), int(end)) for first, end in ranges):
            if first >= end:
                continue
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        return cls(tuple(merged))

    def with_window(self, first: int, end: int) -> "SkippedWindows":
        """Return these windows and [`first`, `end`) of data steps; earlier steps keep their data."""
        return self.of((*self.ranges, (first, end)))

    def data_step(self, step: int) -> int:
        """Return the data step that optimizer step `step` reads."""
        for first, end in self.ranges:
            if step < first:
                break
            step += end - first
        return step

    def segments(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the half-open ranges of data steps that optimizer steps `first`, ..., `last` - 1 read, in order."""
        position, left = self.data_step(first), last - first
        for begin, end in self.ranges:
            length = min(left, begin - position)
            if length > 0:
                yield position, position + length
                left -= length
            position = max(position, end)
        if left > 0:
            yield position, position + left
