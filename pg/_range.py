"""Range: a value of PostgreSQL's range types."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ("Range",)

_T = TypeVar("_T")


class Range(Generic[_T]):
    """A range of values. A bound that is None is open to infinity; an empty range has none.

    >>> Range(1, 10)
    <Range [1, 10)>
    """

    __slots__ = ("_empty", "_lower", "_lower_inc", "_upper", "_upper_inc")

    def __init__(
        self,
        lower: _T | None = None,
        upper: _T | None = None,
        lower_inc: bool = True,
        upper_inc: bool = False,
        empty: bool = False,
    ) -> None:
        if empty and (lower is not None or upper is not None):
            raise ValueError("an empty range has no bounds")
        self._lower = lower
        self._upper = upper
        self._lower_inc = lower is not None and bool(lower_inc) and not empty
        self._upper_inc = upper is not None and bool(upper_inc) and not empty
        self._empty = bool(empty)

    @property
    def lower(self) -> _T | None:
        return self._lower

    @property
    def upper(self) -> _T | None:
        return self._upper

    @property
    def lower_inc(self) -> bool:
        return self._lower_inc

    @property
    def upper_inc(self) -> bool:
        return self._upper_inc

    @property
    def lower_inf(self) -> bool:
        return self._lower is None and not self._empty

    @property
    def upper_inf(self) -> bool:
        return self._upper is None and not self._empty

    @property
    def isempty(self) -> bool:
        return self._empty

    def _key(self) -> tuple[Any, ...]:
        return self._lower, self._upper, self._lower_inc, self._upper_inc, self._empty

    def __contains__(self, value: Any) -> bool:
        if self._empty:
            return False
        if self._lower is not None:
            if value < self._lower or (value == self._lower and not self._lower_inc):
                return False
        if self._upper is not None:
            if value > self._upper or (value == self._upper and not self._upper_inc):
                return False
        return True

    def issubset(self, other: Range[_T]) -> bool:
        """Whether every value of it is in the other one, too."""
        if self._empty or other._empty:
            return self._empty
        return other._begins_before(self) and other._ends_after(self)

    def issuperset(self, other: Range[_T]) -> bool:
        """Whether every value of the other one is in it, too."""
        return other.issubset(self)

    def _begins_before(self, other: Range[Any]) -> bool:
        mine: Any = self._lower
        if mine is None or other._lower is None:
            return mine is None
        if mine == other._lower:
            return self._lower_inc or not other._lower_inc
        return bool(mine < other._lower)

    def _ends_after(self, other: Range[Any]) -> bool:
        mine: Any = self._upper
        if mine is None or other._upper is None:
            return mine is None
        if mine == other._upper:
            return self._upper_inc or not other._upper_inc
        return bool(mine > other._upper)

    def __bool__(self) -> bool:
        return not self._empty

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Range):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> Any:
        return type(self), self._key()

    def __repr__(self) -> str:
        if self._empty:
            return "<Range empty>"
        left, right = "(["[self._lower_inc], ")]"[self._upper_inc]
        lower = "" if self._lower is None else repr(self._lower)
        upper = "" if self._upper is None else repr(self._upper)
        return f"<Range {left}{lower}, {upper}{right}>"
