r"""What a model's rows, groups and predictors cannot tell, whatever the posterior.

*Collinear predictors.* The generalised variance inflation factor of a term (Fox and Monette 1992): the determinant of
its own columns' correlations times that of the others' over that of all, per column. Products and powers are left out:
they are collinear with their parts wherever these lie far from 0, which harms no prediction.

*Terms that the rows cannot tell.* The rank of each group's own rows in the columns of a term: a group of one row
says nothing about a slope by itself, and the sd of slopes rests on those groups whose rows tell all effects of the
term.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.finding import CARE, MODEL, Finding, fine
from partialpool.design.design import GroupDesign
from partialpool.inference.remarks import _power_of, _read_by
from partialpool.levels.estimability import sd_interval
from partialpool.levels.proposal import FEW
from partialpool.model import Model
from partialpool.present.tables import listed
from partialpool.spec.distributions import Distribution

Array = NDArray[np.float64]

#: Generalised variance inflation, per column, that is told; correlation from which on a pair is named.
INFLATION, PAIR = 10.0, 0.8


def few_groups(model: Model) -> list[Finding]:
    """Factors whose sd the prior decides, unless the user has said what it may be."""
    design = model.design
    if not design.factors:
        return []
    found = []
    for f, factor in enumerate(design.factors):
        groups = len(factor.labels)
        sds = [f"sd({name}|{factor.name})" for own in design.groups if own.factor == f for name in own.names]
        if groups >= FEW or all(model.priors.source(name) == "you" for name in sds):
            continue
        low, high = sd_interval(groups) if groups > 1 else (0.0, math.inf)
        prior = model.priors[sds[0]]
        found.append(
            Finding(
                "few groups", MODEL, factor.name, CARE, f"{groups} groups (at least {FEW})",
                f"{factor.name!r} has {groups} groups: whatever their rows, the data leave their sd open from "
                f"{low:.2g} to {high:.2g} times its estimate, and the prior decides how much to pool.",
                f"say what is plausible, priors={{{sds[0]!r}: pp.HalfNormal({_scale(prior)})}}; or {factor.name} as a "
                "predictor in place of the group term, which speaks of these groups only",
            )
        )  # fmt: skip
    fewest = min(len(factor.labels) for factor in design.factors)
    return found or [fine("few groups", f"{fewest:,} groups at least")]


def _scale(prior: Distribution) -> str:
    value = prior.parameters.get("sigma", 1.0)
    return f"{float(f'{value / 2.5:.2g}'):.12g}"


def told_by_rows(model: Model) -> list[Finding]:
    """Terms of more effects than the rows can tell."""
    if not model.design.groups:
        return []
    found = _left_for_sigma(model)
    shares = []
    for group in model.design.groups:
        factor = model.design.factors[group.factor]
        q, groups = len(group.names), len(factor.labels)
        telling = int((group_ranks(model.design.V[:, group.columns], factor.codes, groups) == q).sum())
        shares.append(telling / groups)
        if q > 1 and telling < FEW <= groups:
            found.append(
                Finding(
                    "rows in groups", MODEL, group.text, CARE, f"{telling:,} of {groups:,} groups tell all {q} effects",
                    f"Only {telling:,} of the {groups:,} groups of {factor.name!r} have rows that tell all {q} effects "
                    f"of {group.text} apart; its sds and correlations rest on these and on the priors.",
                    without(model, group, group.names[-1]),
                )
            )  # fmt: skip
        pairs = q * (q - 1) // 2
        if group.correlated and pairs > groups:
            found.append(
                Finding(
                    "many correlations", MODEL, group.text, CARE, f"{pairs} from {groups} groups",
                    f"{group.text} has {pairs} correlations and {groups} groups to learn them from.",
                    f"({bar(group).replace(' |', ' ||')} {factor.name}) leaves them out",
                )
            )  # fmt: skip
    return found or [fine("rows in groups", f"{min(shares):.0%} of groups or more tell all effects of their terms")]


def _left_for_sigma(model: Model) -> list[Finding]:
    """Factors whose effects leave hardly a row from which sigma is learnt."""
    design = model.design
    if not model.has_sigma:
        return []
    found = []
    for f, factor in enumerate(design.factors):
        columns = np.unique(np.concatenate([own.columns for own in design.groups if own.factor == f]))
        told = int(group_ranks(design.V[:, columns], factor.codes, len(factor.labels)).sum())
        left = design.n_rows - told
        if left >= FEW:
            continue
        terms = [own for own in design.groups if own.factor == f]
        found.append(
            Finding(
                "more effects than rows", MODEL, factor.name, CARE,
                f"{left:,} of {design.n_rows:,} rows left for sigma",
                f"The effects of {factor.name!r} could fit all but {left:,} of {design.n_rows:,} rows: the priors tell "
                "sigma and the group sds apart.",
                f"fewer effects a group: {without(model, terms[-1], terms[-1].names[-1])}",
            )
        )  # fmt: skip
    return found


def group_ranks(columns: Array, codes: NDArray[np.int32], groups: int) -> NDArray[np.int64]:
    """The rank of each group's rows in some columns, (groups,).

    Examples
    --------
    >>> columns = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0]])
    >>> group_ranks(columns, np.array([0, 0, 1]), 2).tolist()
    [2, 1]
    """
    scaled = columns / np.maximum(np.sqrt((columns**2).mean(axis=0)), np.finfo(float).tiny)
    q = scaled.shape[1]
    grams = np.empty((groups, q, q))
    for i in range(q):
        for j in range(i + 1):
            grams[:, i, j] = grams[:, j, i] = np.bincount(codes, scaled[:, i] * scaled[:, j], minlength=groups)
    values = np.linalg.eigvalsh(grams)
    largest = np.maximum(values[:, -1:], np.finfo(float).tiny)
    return np.asarray((values > 1e-9 * largest).sum(axis=1), dtype=np.int64)


# -- predictors -------------------------------------------------------------------------------------------------------


def collinear(model: Model) -> list[Finding]:
    """Predictors that the others, products and powers apart, nearly determine."""
    design = model.design
    found, checked, largest = [], False, 1.0
    for predictor, prefix in enumerate(design.prefixes):
        terms = _plain_terms(model, predictor, prefix)
        if len(terms) < 2:
            continue
        checked = True
        inflations = inflation_factors({name: design.V[:, columns] for name, columns in terms.items()})
        largest = max(largest, *inflations.values())
        told = {name: value for name, value in inflations.items() if value > INFLATION}
        if told:
            found.append(_collinear_terms(model, terms, told))
    return found or ([fine("collinear predictors", f"variance inflation at most {largest:.1f}")] if checked else [])


def _plain_terms(model: Model, predictor: int, prefix: str) -> dict[str, NDArray[np.int64]]:
    """Columns of V by term, without the intercept, products and powers of other terms."""
    design = model.design
    own = [name for name, at in zip(design.x_names, design.x_predictor, strict=True) if at == predictor]
    columns = dict(zip(own, design.x_columns[design.x_predictor == predictor].tolist(), strict=True))
    parts = {name: _read_by(name, prefix) for name in own}
    out: dict[str, list[int]] = {}
    for name in own:
        made = any((parts[other] and parts[other] < parts[name]) or _power_of(name, other) for other in own)
        varies = float(np.ptp(design.V[:, columns[name]])) > 0
        if varies and not made:
            out.setdefault(name.split("[")[0], []).append(columns[name])
    return {name: np.array(own) for name, own in out.items()}


def inflation_factors(terms: dict[str, Array]) -> dict[str, float]:
    """The generalised variance inflation factor of each term's columns, per column.

    Examples
    --------
    >>> x = np.random.default_rng(1).normal(size=(500, 2))
    >>> found = inflation_factors({"a": x[:, :1], "b": x[:, 1:], "c": x[:, :1] + 0.1 * x[:, 1:]})
    >>> found["a"] > 50
    True
    """
    names = list(terms)
    stacked = np.concatenate(list(terms.values()), axis=1)
    correlations = np.atleast_2d(np.corrcoef(stacked, rowvar=False))
    owner = np.repeat(np.arange(len(names)), [own.shape[1] for own in terms.values()])
    whole = _log_determinant(correlations)
    out = {}
    for k, name in enumerate(names):
        inside, outside = owner == k, owner != k
        gap = _log_determinant(correlations[np.ix_(inside, inside)]) - whole
        gap += _log_determinant(correlations[np.ix_(outside, outside)])
        out[name] = float(np.exp(min(gap / max(int(inside.sum()), 1), 30.0))) if math.isfinite(gap) else 1e12
    return out


def _log_determinant(matrix: Array) -> float:
    if not matrix.size:
        return 0.0
    sign, value = np.linalg.slogdet(matrix)
    return float(value) if sign > 0 else -math.inf


def _collinear_terms(model: Model, terms: dict[str, NDArray[np.int64]], told: dict[str, float]) -> Finding:
    """One line for the terms of a predictor that go together, with the pair that does so most."""
    V = model.design.V
    names = sorted(told, key=lambda name: -told[name])
    best, pair = 0.0, ("", "")
    for i, first in enumerate(names):
        for second in [*names[i + 1 :], *(other for other in terms if other not in told)]:
            joint = np.corrcoef(np.concatenate([V[:, terms[first]], V[:, terms[second]]], axis=1), rowvar=False)
            value = float(np.abs(joint[: len(terms[first]), len(terms[first]) :]).max())
            if value > best:
                best, pair = value, (first, second)
    worst = told[names[0]]
    among = (
        f"{pair[0]!r} and {pair[1]!r} correlate by {best:.3f}" if best > PAIR else "each follows from several others"
    )
    return Finding(
        "collinear predictors", MODEL, listed(names[:3]), CARE,
        f"variance inflation {worst:,.0f} (up to {INFLATION:.0f})",
        f"{listed([repr(name) for name in names[:3]])} go together ({among}; variance inflation {worst:,.0f}): their "
        f"coefficients have {math.sqrt(worst):.1f} times the sd that each would have alone, and priors share out what "
        "they do together. Predictions within the data are not affected.",
        f"leave {pair[1] or names[-1]} out, or replace it by what it adds, such as I({pair[1]} - {pair[0]})"
        if best > PAIR
        else f"leave {names[0]} out, or join them into one predictor",
    )  # fmt: skip


def without(model: Model, group: GroupDesign, effect: str) -> str:
    """A term without one of its effects, or the formula without the term."""
    left = [name for name in group.names if name != effect]
    factor = model.design.factors[group.factor].name
    if not left:
        return f"a model without ({bar(group)} {factor})"
    kept = " + ".join("1" if name == "Intercept" else name for name in left)
    start = "" if "Intercept" in left else "0 + "
    return f"({start}{kept} {'|' if group.correlated or len(left) == 1 else '||'} {factor}) in place of {group.text}"


def bar(group: GroupDesign) -> str:
    """The left side of a group term and its bar, ``1 + x |``."""
    shown = " + ".join("1" if name == "Intercept" else name for name in group.names)
    start = "" if "Intercept" in group.names else "0 + "
    return f"{start}{shown} {'|' if group.correlated or len(group.names) == 1 else '||'}"
