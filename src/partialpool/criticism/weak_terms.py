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
from partialpool.design.design import GroupDesign, GroupFactor
from partialpool.inference.remarks import power_of, read_by
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
        sds = [name for name in sds if model.priors.source(name) != "you"]
        if groups >= FEW or not sds:
            continue
        low, high = sd_interval(groups) if groups > 1 else (0.0, math.inf)
        priors = ", ".join(f"{name!r}: pp.HalfNormal({_scale(model.priors[name])})" for name in sds)
        found.append(
            Finding(
                "few groups", MODEL, factor.name, CARE, f"{groups} groups (at least {FEW})",
                f"{factor.name!r} has {groups} groups: whatever their rows, the data leave their sd open from "
                f"{low:.2g} to {high:.2g} times its estimate, and the prior decides how much to pool.",
                f"say what is plausible, priors={{{priors}}}; or {factor.name} as a predictor in place of the "
                "group term, which speaks of these groups only",
            )
        )  # fmt: skip
    fewest = min(len(factor.labels) for factor in design.factors)
    return found or [fine("few groups", f"{fewest:,} groups (at least {FEW})")]


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
                    "rows in groups", MODEL, group.text, CARE,
                    f"{telling:,} of {groups:,} groups tell {_all(group)} effects",
                    _few_tell(telling, group, factor),
                    without(model, group, group.names[-1]),
                )
            )  # fmt: skip
        pairs = q * (q - 1) // 2
        if group.correlated and pairs > groups:
            found.append(
                Finding(
                    "many correlations", MODEL, group.text, CARE, f"{pairs} from {groups} groups",
                    f"{group.text} has {pairs} correlations and {groups} groups to learn them from.",
                    f"{uncorrelated(model, group)} leaves them out",
                )
            )  # fmt: skip
    which = "every group tells" if min(shares) == 1 else f"at least {min(shares):.0%} of the groups tell"
    return found or [fine("rows in groups", f"{which} all effects of a term")]


def _all(group: GroupDesign) -> str:
    return "both" if len(group.names) == 2 else f"all {len(group.names)}"


def _few_tell(telling: int, group: GroupDesign, factor: GroupFactor) -> str:
    """How few groups tell the effects of a term apart."""
    what = f"{_all(group)} effects of {group.text} apart"
    numbers = "sds and correlations" if group.correlated else "sds"
    if not telling:
        return (
            f"No group of {factor.name!r} has rows that tell {what}: its {numbers} rest on how groups differ, "
            "and on the priors."
        )
    has = "has" if telling == 1 else "have"
    return (
        f"Only {telling:,} of the {len(factor.labels):,} groups of {factor.name!r} {has} rows that tell {what}; its "
        f"{numbers} rest on these and on the priors."
    )


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
            found.append(_collinear_terms(model, terms, told, prefix))
    return found or ([fine("collinear predictors", f"variance inflation at most {largest:.1f}")] if checked else [])


def _plain_terms(model: Model, predictor: int, prefix: str) -> dict[str, NDArray[np.int64]]:
    """Columns of V by term, without the intercept, products and powers of other terms."""
    design = model.design
    own = [name for name, at in zip(design.x_names, design.x_predictor, strict=True) if at == predictor]
    columns = dict(zip(own, design.x_columns[design.x_predictor == predictor].tolist(), strict=True))
    parts = {name: read_by(name, prefix) for name in own}
    out: dict[str, list[int]] = {}
    for name in own:
        made = any((parts[other] and parts[other] < parts[name]) or power_of(name, other) for other in own)
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


def _collinear_terms(model: Model, terms: dict[str, NDArray[np.int64]], told: dict[str, float], prefix: str) -> Finding:
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
    told_worst = _two_digits(worst)
    among = (
        f"{pair[0]!r} and {pair[1]!r} correlate by {_correlation(best)}"
        if best > PAIR
        else "each follows from several others"
    )
    return Finding(
        "collinear predictors", MODEL, listed(names[:3]), CARE,
        f"variance inflation {told_worst} (up to {INFLATION:.0f})",
        f"{listed([repr(name) for name in names[:3]])} go together ({among}; variance inflation {told_worst}): by the "
        f"rows alone a coefficient would have up to {_two_digits(math.sqrt(worst))} times the sd that it has without "
        "the others, and priors share out what they do together. Predictions within the data are not affected.",
        f"leave {pair[1]} out{_what_it_adds(V, terms, pair, prefix)}"
        if best > PAIR
        else f"leave {names[0]} out, or join them into one predictor",
    )  # fmt: skip


def _correlation(value: float) -> str:
    return f"{value:.3f}" if value < 0.9995 else "more than 0.999"


def _two_digits(value: float) -> str:
    """A large number to two digits, in words that are read.

    Examples
    --------
    >>> _two_digits(4029401.0), _two_digits(35.2), _two_digits(3.46)
    ('4,000,000', '35', '3.5')
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _what_it_adds(V: Array, terms: dict[str, NDArray[np.int64]], pair: tuple[str, str], prefix: str) -> str:
    """What to write for the second of two numeric predictors, so that it is what it adds to the first; else empty."""
    first, second = (V[:, terms[name]] for name in pair)
    if first.shape[1] > 1 or second.shape[1] > 1 or not all(_is_number(V, name, terms[name]) for name in pair):
        return ""
    x, y = first[:, 0] - first.mean(), second[:, 0] - second.mean()
    slope = float(x @ y / (x @ x))
    # as many digits as it takes to leave nothing of the first in it
    left = math.sqrt(max(float(((y - slope * x) ** 2).sum() / (x @ x)), 1e-12 * slope**2))
    digits = min(max(1, math.ceil(math.log10(abs(slope) / left)) + 1), 8)
    sign, size = ("-", f"{slope:.{digits}g}") if slope > 0 else ("+", f"{-slope:.{digits}g}")
    times = "" if float(size) == 1 else f"{float(size):.12g} * "
    names = [name.removeprefix(prefix) for name in pair]
    return f", or replace it by what it adds: I({names[1]} {sign} {times}{names[0]})"


def _is_number(V: Array, name: str, columns: NDArray[np.int64]) -> bool:
    """Whether a term is a plain predictor or a function of one, with more than two values."""
    return "[" not in name and ":" not in name and np.unique(V[:1000, columns[0]]).size > 2


def without(model: Model, group: GroupDesign, effect: str) -> str:
    """A term without one of its effects, or the formula without the term."""
    left = tuple(name for name in group.names if name != effect)
    # the user's own text, where it stands in the main formula
    text = group.text if not group.predictor else _typed(model, group, group.names, _bar(group, group.names))
    if not left:
        return f"a model without {text}"
    return f"{_typed(model, group, left, _bar(group, left))} in place of {text}"


def _bar(group: GroupDesign, names: tuple[str, ...]) -> str:
    return "|" if group.correlated or len(names) == 1 else "||"


def uncorrelated(model: Model, group: GroupDesign) -> str:
    """A term with no correlations."""
    return _typed(model, group, group.names, "||")


def _typed(model: Model, group: GroupDesign, names: tuple[str, ...], bar: str) -> str:
    """A group term to be typed; of another parameter than the mean, in which formula."""
    prefix = model.design.prefixes[group.predictor]
    plain = [name.removeprefix(prefix) for name in names]
    shown = " + ".join("1" if name == "Intercept" else name for name in plain)
    start = "" if "Intercept" in plain else "0 + "
    where = f" in the formula of {prefix.rstrip('.')}" if prefix else ""
    return f"({start}{shown} {bar} {model.design.factors[group.factor].name}){where}"
