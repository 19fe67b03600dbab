"""One line of a diagnosis: what was checked, where, how it came out, the number behind it, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

OK, CARE, FAIL = "ok", "care", "fail"
SEVERITY = {FAIL: 0, CARE: 1, OK: 2}
COMPUTATION, MODEL = "computation", "model"


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Attributes
    ----------
    check : what was checked, in a few words. about : "computation" or "model".
    where : the parameter, factor or predictor with the worst number.
    verdict : "ok", "care" or "fail".
    evidence : the number, with what it is held against.
    words : the same as a sentence. mend : what to do, with a formula or a prior to write; empty where all is well.
    """

    check: str
    about: str
    where: str
    verdict: str
    evidence: str
    words: str = ""
    mend: str = ""


def fine(check: str, evidence: str) -> Finding:
    """A check of the model that found nothing."""
    return Finding(check, MODEL, "", OK, evidence)


def graded(value: float, care: float, fail: float) -> str:
    """The verdict of a number that is the worse the larger it is; not a number is the worst.

    Examples
    --------
    >>> graded(0.2, 0.5, 0.7), graded(0.6, 0.5, 0.7), graded(float("nan"), 0.5, 0.7)
    ('ok', 'care', 'fail')
    """
    if value <= care:
        return OK
    return CARE if value <= fail else FAIL
