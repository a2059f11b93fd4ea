"""What a diagnosis is: a report on one answer, with one finding for each thing that is wrong."""

from __future__ import annotations

from dataclasses import dataclass


class WrongAnswer(AssertionError):
    """An answer is wrong; the message is the diagnosis."""

    def _render_traceback_(self) -> list[str]:
        """Make IPython show the diagnosis without source lines, so a hidden test stays hidden."""
        return str(self).splitlines()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    name : str
        The name of a misconception, or one of "raises", "limit", "count", "order", "factor",
        "shape", "value", "not finite", "dtype", "writes", "put back inexactly".
        :func:`~lora_np.course.run_isolated` adds "no answer", "left out" and "not graded".
    sentence : str
        What the student reads.
    """

    name: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """The findings on one answer. A correct answer has none.

    Attributes
    ----------
    task : str
    findings : tuple of Finding
    in_page : bool
        Whether the code ran in a page of a browser, with few limits: the report says that it is
        not for grades.

    Examples
    --------
    >>> from lora_np.course import diagnose
    >>> report = diagnose("stable_rank", lambda M: (M**2).sum())
    >>> report.passed, len(report.findings)
    (False, 1)
    """

    task: str
    findings: tuple[Finding, ...] = ()
    in_page: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def sentences(self) -> list[str]:
        """The diagnosis, one sentence for each finding."""
        return [finding.sentence for finding in self.findings]

    def raise_if_wrong(self) -> None:
        """Raise a WrongAnswer with the diagnosis, unless the answer is correct."""
        if not self.passed:
            raise WrongAnswer(str(self))

    def __str__(self) -> str:
        where = " (in this page; not for grades)" if self.in_page else ""
        if self.passed:
            return f"{self.task}: right{where}"
        lines = [f"  - {s}{'' if s.endswith('?') else '.'}" for s in self.sentences]
        return "\n".join([f"{self.task}: not yet right{where}", *lines])
