"""One verdict on a fit: whether the computation can be believed, and where model and data are weak.

A line of the computation that fails spoils the numbers; a weak spot of the model does not: the posterior is right, and
says little there, or leans on its prior. So a fit is to be trusted where all is well, trusted with care where there are
weak spots or numbers that are not quite good, and not relied on where a check of the computation fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from partialpool.criticism.computation import computation
from partialpool.criticism.finding import CARE, COMPUTATION, FAIL, MODEL, OK, SEVERITY, Finding
from partialpool.criticism.weak_spots import weak_spots
from partialpool.present.report import Report
from partialpool.present.tables import listed

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from partialpool.posterior.posterior import Posterior

TRUST, WITH_CARE, DO_NOT = "trust", "trust with care", "do not rely on it"


def diagnose(fit: Posterior) -> Diagnosis:
    """Whether a fit can be trusted, with the evidence and what to do.

    Parameters
    ----------
    fit : Posterior
        Of any engine. Where it was saved without its rows, the checks that need them are left out, and named.

    Returns
    -------
    Diagnosis
        With `.verdict`, `.table` (a row a check: where, verdict, evidence, mend) and `.plot()`.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> found = diagnose(fit)
    >>> found.verdict, bool((found.table["verdict"] == "ok").all())
    ('trust', True)
    """
    findings = [*computation(fit), *weak_spots(fit)]
    if not fit.accuracy.trusted and all(own.verdict == OK for own in findings if own.about == COMPUTATION):
        findings.insert(0, _doubt(fit))
    return Diagnosis(fit, tuple(sorted(findings, key=lambda own: (SEVERITY[own.verdict], own.about != COMPUTATION))))


def _doubt(fit: Posterior) -> Finding:
    """What the engine says of itself where no check here finds anything."""
    notes = " ".join(fit.accuracy.notes) or "it gives no reason."
    return Finding(
        "the engine's own doubt", COMPUTATION, fit.accuracy.engine, CARE, "not trusted",
        f"The engine does not trust its answer: {notes}", "check with fit.verify()",
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis(Report):
    """What ``fit.diagnose()`` found.

    Attributes
    ----------
    source : the fit. findings : every line, the gravest first.
    """

    source: Posterior
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """One of "trust", "trust with care" and "do not rely on it"."""
        if any(own.verdict == FAIL for own in self.findings):
            return DO_NOT
        return WITH_CARE if any(own.verdict == CARE for own in self.findings) else TRUST

    @property
    def title(self) -> str:
        """What this is."""
        return f"Diagnosis of {self.source.model.design.terms.formula} ({self.source.accuracy.engine} engine)"

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A row a check, the gravest first: about (computation or model), where, verdict, evidence, mend."""
        import pandas as pd

        columns = ["check", "about", "where", "verdict", "evidence", "mend"]
        rows = [tuple(getattr(own, column) for column in columns) for own in self.findings]
        return pd.DataFrame(rows, columns=columns).set_index("check")

    @property
    def shown(self) -> pandas.DataFrame:
        """The table without the mends, which stand in the sentences."""
        return self.table[["verdict", "where", "evidence"]]

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The verdict, then each finding that is not well with what to do."""
        out = [_told(self.verdict, self.findings)]
        for own in self.findings:
            if own.verdict == OK:
                continue
            mend = f" Mend: {own.mend.rstrip('.')}." if own.mend else ""
            out.append(f"- {own.words}{mend}")
        if len(self.source.model.design.y) != self.source.model.design.n_rows:
            out.append(_without_rows(self.source))
        return tuple(out)

    def __repr__(self) -> str:
        first, *others = self.sentences
        table = super().__repr__().split("\n\n")[1]
        return "\n".join([self.title, "", first, "", table, *([""] if others else []), *others])

    def plot(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Prior and posterior of every hyperparameter: what the data said, and where it meets its ends.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw it, for a model with one hyperparameter.
        figsize : (width, height), optional
            In inches.
        """
        from partialpool.criticism.weak_spots import prior_and_posterior
        from partialpool.present.criticism_diagnose import priors_and_posteriors

        names, prior, posterior, supports = prior_and_posterior(self.source)
        flagged = {own.where: own.check for own in self.findings if own.verdict != OK}
        return priors_and_posteriors(
            names, prior, posterior, supports, [flagged.get(name, "") for name in names], self.verdict, ax, figsize
        )


def _without_rows(fit: Posterior) -> str:
    """What could not be checked of a fit that was saved without its rows."""
    left = ["collinear predictors"] if len(fit.model.coefficients.names) > 2 else []
    if fit.model.design.groups:
        left.append("rows in groups")
    if fit.model.latent.leaf is not None and not fit.model.exact and fit.result.effects is None:
        left.append("searches in groups")
    if not left:
        return "Saved without rows, which none of the checks needed."
    return f"Saved without rows; not checked: {listed(left)}."


def _told(verdict: str, findings: tuple[Finding, ...]) -> str:
    """The verdict as a sentence."""

    def checks(about: str, grade: str) -> list[str]:
        return list(dict.fromkeys(own.check for own in findings if own.about == about and own.verdict == grade))

    failed, doubtful, weak = checks(COMPUTATION, FAIL), checks(COMPUTATION, CARE), checks(MODEL, CARE)
    if verdict == TRUST:
        return "Trust it: every check of the computation passed, and no weak spot of the model was found."
    if verdict == DO_NOT:
        return f"Do not rely on it: {listed(failed)} failed, so that the numbers may be wrong."
    if not doubtful:
        return f"Trust it with care: the computation is sound, but the model or the data are weak ({listed(weak)})."
    rest = f", and the model or the data are weak ({listed(weak)})" if weak else ""
    return f"Trust it with care: the computation is not quite good ({listed(doubtful)}){rest}."
