r"""Whether the computation of a fit can be believed: chains, importance weights, quadrature, searches.

Chains: rank-normalised split R-hat, bulk and tail effective sample sizes (`inference.diagnostics`), divergences, and
the energy's Bayesian fraction of missing information (Betancourt 2016), a chain at a time,

.. math:: \mathrm{EBFMI} = \frac{\sum_t (E_t - E_{t-1})^2}{\sum_t (E_t - \bar E)^2}.

Weighted nodes: Pareto k; the effective sample size of each mean, and as tail size the smaller one of P(f <= q05) and
P(f <= q95), whose conditional probabilities given a node are exact for coefficients that are integrated out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partialpool.criticism.finding import CARE, COMPUTATION, FAIL, OK, Finding, graded
from partialpool.inference.base import GOOD_K, MAX_RHAT
from partialpool.inference.diagnostics import ess_bulk, ess_tail, rhat
from partialpool.posterior.summaries import in_chains, node_weights

if TYPE_CHECKING:
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Where a number ceases to be good, and where an answer should not be used.
RHATS = (MAX_RHAT, 1.05)
SIZES = (400.0, 100.0)
ERRORS = (0.05, 0.2)
ENERGY = (0.3, 0.2)
#: Share of draws that may diverge before nothing should be read off them.
DIVERGED = 0.005
#: Depth of nutpie's trees at which they are cut, and the share of draws that may be.
DEEPEST, CUT_SHARE = 10, 0.05
#: Effects whose chains are checked, evenly spread.
MOST_EFFECTS = 1000


def computation(fit: Posterior) -> list[Finding]:
    """Every check that applies to how this fit was obtained."""
    out = _chain_checks(fit) if fit.result.chains else _weight_checks(fit)
    out += _errors(fit)
    out += _searches(fit)
    return out


def _made(check: str, where: str, verdict: str, evidence: str, words: str, mend: str) -> Finding:
    good = verdict == OK
    return Finding(check, COMPUTATION, where, verdict, evidence, "" if good else words, "" if good else mend)


def _more(fit: Posterior) -> str:
    """The call that asks for twice as much, and for enough."""
    return f"pp.fit(..., ess={max(2 * fit.result.settings.ess, SIZES[0]):.0f})"


# -- chains -----------------------------------------------------------------------------------------------------------


def _chain_checks(fit: Posterior) -> list[Finding]:
    result, names = fit.result, list(fit.model.parameter_names)
    public = fit.model.hyperparameters.public(result.theta)
    draws = in_chains(np.concatenate([result.beta_mean, public], axis=1), result.chains)
    out: list[Finding] = []
    longer = f"run it longer, {_more(fit)}"
    # NUTS is only run where it is asked for; where 'auto' ends in sampling, there is nothing else to turn to
    other = "use method='auto', which integrates the group effects out" if fit.accuracy.engine == "nuts" else ""
    better = f"{other}, or {longer}" if other else longer
    if names:
        rhats = rhat(draws)
        moved = np.isfinite(rhats)
        if not moved.any():
            out.append(_made("R-hat", names[0], FAIL, "nan", "No chain moved.", other or "check with fit.verify()"))
        else:
            at = int(np.nanargmax(rhats))
            out.append(
                _made(
                    "R-hat", names[at], graded(float(rhats[at]), *RHATS), f"{rhats[at]:.3f} (up to {MAX_RHAT})",
                    f"The chains do not agree on {names[at]!r}: R-hat {rhats[at]:.3f}.",
                    f"{better}, or give {names[at]!r} a tighter prior",
                )
            )  # fmt: skip
            out.append(_size("bulk ESS", names, np.where(moved, ess_bulk(draws), np.nan), "mean", better))
            out.append(_size("tail ESS", names, np.where(moved, ess_tail(draws), np.nan), "tails", better))
    return out + _effects_agree(fit, better) + _sampler(fit, longer, other)


def _effects_agree(fit: Posterior, mend: str) -> list[Finding]:
    """R-hat of the group effects that were sampled: those that were kept, thinned evenly, one chain after another."""
    sampled = fit.result.effects if fit.result.effects is not None else fit.result.draws_root
    chains = fit.result.chains
    if sampled is None or not sampled.shape[1] or len(sampled) % chains or len(sampled) < 50 * chains:
        return []
    positions = np.unique(np.linspace(0, sampled.shape[1] - 1, min(MOST_EFFECTS, sampled.shape[1])).astype(int))
    rhats = rhat(in_chains(sampled[:, positions], chains))
    if not np.isfinite(rhats).any():
        return []
    worst = float(np.nanmax(rhats))
    # the largest of many is larger by chance
    care = MAX_RHAT + 0.002 * math.log2(max(1, positions.size))
    return [
        _made(
            "R-hat of effects", f"{positions.size:,} group effects", graded(worst, care, RHATS[1]),
            f"{worst:.3f} (up to {care:.2f})", f"The chains do not agree on some group effects: R-hat {worst:.3f}.",
            mend,
        )
    ]  # fmt: skip


def _size(check: str, names: list[str], sizes: Array, of: str, mend: str) -> Finding:
    """Effective sample sizes: the smallest decides."""
    if not np.isfinite(sizes).any():
        return _made(check, names[0], OK, "exact", "", "")
    at = int(np.nanargmin(sizes))
    value = float(sizes[at])
    shown = f"{value:,.0f}" if value < 1e6 else "> 1,000,000"
    are = "are" if of == "tails" else "is"
    return _made(
        check, names[at], graded(-value, -SIZES[0], -SIZES[1]), f"{shown} (at least {SIZES[0]:.0f})",
        f"The {of} of {names[at]!r} {are} known no better than from {shown} independent draws.", mend,
    )  # fmt: skip


def _sampler(fit: Posterior, longer: str, other: str) -> list[Finding]:
    """Divergences, energy and depth of the trees; `other` is an engine to turn to, or empty."""
    out = []
    statistics, accuracy = fit.result.statistics, fit.accuracy
    if accuracy.divergences is not None:
        count, total = accuracy.divergences, max(len(fit.result.theta), 1)
        verdict = OK if not count else CARE if count <= DIVERGED * total else FAIL
        out.append(
            _made(
                "divergences", "", verdict, f"{count:,} of {total:,} draws",
                f"{count:,} of {total:,} draws diverged: the sampler could not enter part of the posterior, often near "
                "an sd of 0.",
                f"{other + ', or ' if other else ''}give sds priors that keep them from 0",
            )
        )  # fmt: skip
    energy = statistics.get("energy")
    if energy is not None and np.ndim(energy) == 2 and np.shape(energy)[1] >= 10:
        fractions = energy_fractions(np.asarray(energy, dtype=float))
        worst = int(np.argmin(np.where(np.isfinite(fractions), fractions, np.inf)))
        value = float(fractions[worst])
        if math.isfinite(value):
            out.append(
                _made(
                    "E-BFMI", f"chain {worst + 1}", graded(-value, -ENERGY[0], -ENERGY[1]),
                    f"{value:.2f} (at least {ENERGY[0]})",
                    f"The sampler explores the energy of chain {worst + 1} too slowly (E-BFMI {value:.2f}): tails may "
                    "be missed.", f"{other}, or {longer}" if other else longer,
                )
            )  # fmt: skip
    depth = statistics.get("depth")
    if depth is not None and np.size(depth):
        share = float((np.asarray(depth) >= DEEPEST).mean())
        if share > CUT_SHARE:
            out.append(
                _made(
                    "tree depth", "", CARE, f"{share:.0%} of draws at the limit of {DEEPEST}",
                    f"{share:.0%} of the sampler's trees were cut at depth {DEEPEST}: it moves slowly.", longer,
                )
            )  # fmt: skip
    return out


def energy_fractions(energy: Array) -> Array:
    """E-BFMI of each chain, (chains,), from the energies (chains, draws).

    Examples
    --------
    >>> bool(energy_fractions(np.random.default_rng(1).normal(size=(2, 4000))).round(0)[0] == 2)
    True
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = ((energy - energy.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return np.asarray((np.diff(energy, axis=1) ** 2).sum(axis=1) / spread)


# -- weighted nodes ---------------------------------------------------------------------------------------------------


def _weight_checks(fit: Posterior) -> list[Finding]:
    result, names = fit.result, list(fit.model.parameter_names)
    if not result.theta.shape[1] and len(result.theta) == 1:
        exact = "no hyperparameters: known exactly"
        return [_made("weights", "", OK, exact, "", "")]
    out = []
    k = fit.accuracy.pareto_k
    if k is not None:
        out.append(
            _made(
                "Pareto k", "all nodes", graded(k, GOOD_K, GOOD_K), f"{k:.2f} (below {GOOD_K})",
                f"The tail of the importance weights is too heavy (Pareto k {k:.2f}): single nodes decide.",
                "use method='whitened'",
            )
        )  # fmt: skip
    if names:
        table = fit.summary()
        longer = f"ask for more, {_more(fit)}"
        out.append(_size("bulk ESS", names, table["ess"].to_numpy(dtype=float), "mean", longer))
        out.append(_size("tail ESS", names, tail_sizes(fit), "tails", longer))
    return out


def tail_sizes(fit: Posterior) -> Array:
    """The smaller effective sample size of P(f <= q05) and of P(f <= q95), by parameter.

    How many independent draws would know the probability P as well: P (1 - P) over the variance of its estimate.
    """
    from scipy.special import ndtr

    result = fit.result
    p, weights = result.beta_mean.shape[1], node_weights(result)
    hyper, table = fit.model.hyperparameters.public(result.theta), fit.summary()
    sizes = []
    for end in ("q05", "q95"):
        at = table[end].to_numpy(dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (at[:p] - result.beta_mean) / result.beta_sd
        share = np.where(result.beta_sd > 0, ndtr(z), result.beta_mean <= at[:p])
        below = np.concatenate([share, (hyper <= at[p:]).astype(float)], axis=1)
        mean = weights @ below
        error = weights**2 @ (below - mean) ** 2
        sizes.append(np.where(error > 0, mean * (1 - mean) / np.where(error > 0, error, 1.0), np.inf))
    return np.asarray(np.minimum(*sizes))


# -- errors that an engine measures, and searches ---------------------------------------------------------------------


def _errors(fit: Posterior) -> list[Finding]:
    out = []
    accuracy = fit.accuracy
    if accuracy.surrogate_error is not None:
        value = accuracy.surrogate_error
        out.append(
            _made(
                "interpolation", "log density", graded(value, *ERRORS), f"{value:.2g} (below {ERRORS[0]})",
                f"The interpolated log density is off by {value:.2g}.", "ask for more, pp.fit(..., ess=2000)",
            )
        )  # fmt: skip
    if accuracy.quadrature_error is not None:
        value, worst = accuracy.quadrature_error, accuracy.worst_groups or {}
        where = max(worst, key=lambda name: worst[name]) if worst else ""
        out.append(
            _made(
                "quadrature gap", f"group {where}" if where else "", graded(value, *ERRORS),
                f"{value:.2g} (below {ERRORS[0]})",
                f"Quadrature over the group effects leaves an error of {value:.2g} in the log density, most of it in "
                f"group {where}.", "check with fit.verify(), or use method='nuts'",
            )
        )  # fmt: skip
    return out


def _searches(fit: Posterior) -> list[Finding]:
    """The searches for modes that the engine reports, and those of the groups, made again at the posterior mean."""
    out = []
    found = next((step for step in fit.accuracy.steps if step.startswith("mode of the hyperparameters:")), "")
    if found:
        status = found.partition(":")[2].strip()
        good = status.startswith("converged")
        # where the search for a mode stops short, the weights of the nodes still correct for it
        out.append(
            _made(
                "search for the mode", "hyperparameters", OK if good else CARE, status,
                f"The search for the mode of the hyperparameters {status}; the weights correct for it.",
                "check with fit.verify()",
            )
        )  # fmt: skip
    groups = _group_searches(fit)
    return out + ([] if groups is None else [groups])


def _group_searches(fit: Posterior) -> Finding | None:
    """How many groups' modes are not found at the posterior mean; None where no group is integrated by quadrature."""
    model, design = fit.model, fit.model.design
    sampled = fit.result.effects is not None
    if model.exact or model.latent.leaf is None or sampled or len(design.y) != design.n_rows:
        return None
    from partialpool.posterior.effects import leaf_conditional, nodes_of

    weights = node_weights(fit.result)
    density = leaf_conditional(fit).density
    theta, gamma, root = (weights @ part for part in nodes_of(fit))
    moments = density.leaf_moments(density.point(theta, gamma, root))
    lost = np.flatnonzero(moments.status)
    factor = design.factors[model.latent.leaf]
    first = str(factor.labels[int(lost[0])]) if lost.size else ""
    return _made(
        "searches in groups", factor.name, OK if not lost.size else FAIL,
        f"{lost.size:,} of {len(factor.labels):,} without a mode",
        f"The effects of {lost.size:,} groups of {factor.name!r} have no mode that was found (the first: {first}).",
        "look at the rows of these groups; method='nuts' needs no mode",
    )  # fmt: skip
