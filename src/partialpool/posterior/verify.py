"""A fit beside the reference engine: the same model sampled by NUTS with nothing integrated out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.inference.base import MAX_RHAT, Engine, Settings
from partialpool.inference.diagnostics import ess_bulk
from partialpool.inference.importance import effective_sample_size
from partialpool.posterior.groups import effect_summary, factor_terms, layout_of
from partialpool.posterior.summaries import in_chains

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]

#: Combined Monte Carlo standard errors by which two means may differ.
MOST_ERRORS = 4.0
#: Share by which two sds may differ, beyond their own Monte Carlo error.
MOST_SD_SHARE = 0.10
REFERENCE_ESS = 1000.0


@dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """What `fit.verify()` found.

    Attributes
    ----------
    table : pandas.DataFrame
        Index parameter; columns mean, sd, reference_mean, reference_sd, mcse (combined Monte Carlo standard error of
        the two means), z (their difference in mcse), sd_ratio (the fit's sd over the reference's).
    groups : pandas.DataFrame
        A row a grouping factor: groups compared, largest_z among their means, and the group and term where it is.
    agrees : bool
        Whether every mean is within 4 mcse and every sd within 10% (beyond its Monte Carlo error), and the reference's
        chains agree among themselves.
    verdict : str
        The same as a sentence.
    reference : Posterior
        The reference's own fit.
    """

    table: pandas.DataFrame
    groups: pandas.DataFrame
    agrees: bool
    verdict: str
    reference: Posterior

    def __repr__(self) -> str:
        parts = [self.table.to_string(float_format=lambda value: f"{value:.4g}")]
        if len(self.groups):
            parts.append("Group effects:\n" + self.groups.to_string(float_format=lambda value: f"{value:.2f}"))
        return "\n".join([*parts, self.verdict])

    def _repr_html_(self) -> str:
        parts = [self.table.to_html(float_format=lambda value: f"{value:.4g}")]
        if len(self.groups):
            parts.append(self.groups.to_html(float_format=lambda value: f"{value:.2f}"))
        return "".join([*parts, f"<p>{escape(self.verdict)}</p>"])


def verify(fit: Posterior, ess: float | None = None, seed: int | None = None) -> Verification:
    """Run the reference engine on the fit's model and compare.

    Parameters
    ----------
    fit : Posterior
        A fit that has its rows.
    ess : float, optional
        Effective sample size of the reference, bulk and tail, of every parameter; 1,000 by default.
    seed : int, optional
        Of the reference; one after the fit's by default.

    Returns
    -------
    Verification

    Raises
    ------
    ModelError
        Where an option is impossible.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Yield ~ 1 + (1 | Batch)", pp.datasets.load("Dyestuff"), seed=1)
    >>> fit.verify().agrees  # doctest: +SKIP
    True
    """
    from partialpool.posterior.posterior import Posterior

    settings = _settings(fit, ess, seed)
    result = _reference_engine(fit).run(fit.model, settings)
    reason = "NUTS on the whole model, nothing integrated out, to verify a fit"
    reference = Posterior(fit.model, replace(result, accuracy=replace(result.accuracy, reason=reason)))
    table = _parameter_table(fit, reference)
    groups = _group_table(fit, reference)
    agrees, verdict = _verdict(table, groups, reference)
    return Verification(table, groups, agrees, verdict, reference)


def _reference_engine(fit: Posterior) -> Engine:
    from partialpool.inference.select import select_engine

    return select_engine(fit.model, "nuts")[0]


def _settings(fit: Posterior, ess: float | None, seed: int | None) -> Settings:
    asked = REFERENCE_ESS if ess is None else ess
    if not (_is_number(asked, int | float | np.number) and 0 < asked < math.inf):
        raise ModelError(f"ess = {ess!r} is not possible; ask for a number above 0, such as 1000.")
    if seed is not None and not (_is_number(seed, int | np.integer) and seed >= 0):
        raise ModelError(f"seed = {seed!r} is not possible; give a whole number of at least 0, or leave it out.")
    own = fit.result.settings
    other = int(own.seed + 1 if seed is None else seed)
    return replace(own, draws=4000, ess=float(asked), seed=other, parameterization=None)


def _is_number(value: object, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _parameter_table(fit: Posterior, reference: Posterior) -> pandas.DataFrame:
    import pandas as pd

    ours, theirs = fit.summary(), reference.summary()
    error = np.sqrt(ours["sd"] ** 2 / ours["ess"] + theirs["sd"] ** 2 / theirs["ess"])
    return pd.DataFrame(
        {
            "mean": ours["mean"],
            "sd": ours["sd"],
            "reference_mean": theirs["mean"],
            "reference_sd": theirs["sd"],
            "mcse": error,
            "z": (ours["mean"] - theirs["mean"]) / error,
            "sd_ratio": ours["sd"] / theirs["sd"],
            # relative Monte Carlo error of an sd, as of a normal; kept for the verdict
            "sd_error": np.sqrt(0.5 / ours["ess"] + 0.5 / theirs["ess"]),
        }
    )


def _group_table(fit: Posterior, reference: Posterior) -> pandas.DataFrame:
    """The largest difference among each factor's group effects."""
    import pandas as pd

    design, effects = fit.model.design, reference.result.effects
    rows = []
    for f, factor in enumerate(design.factors):
        ours, theirs = effect_summary(fit, f, "effect"), effect_summary(reference, f, "effect")
        positions = layout_of(fit.model).effects_of(f)
        assert effects is not None
        # what is known of u given theta is exact, so that its mean is known as well as theta's worst parameter
        own = _effect_ess(fit, positions, f)
        error = np.sqrt(ours.sd**2 / own + theirs.sd**2 / _effect_ess(reference, positions, f))
        z = np.divide(ours.mean - theirs.mean, error, out=np.zeros_like(error), where=error > 0)
        group, term = np.unravel_index(int(np.abs(z).argmax()), z.shape)
        names = factor_terms(design, f)
        rows.append((factor.name, z.shape[0], float(abs(z[group, term])), str(factor.labels[group]), names[term]))
    frame = pd.DataFrame(rows, columns=["factor", "groups", "largest_z", "group", "term"])
    return frame.set_index("factor")


def _effect_ess(fit: Posterior, positions: NDArray[np.int64], factor: int) -> Array:
    """Effective sample size of the mean of each effect (groups, terms)."""
    effects, chains = fit.result.effects, fit.result.chains
    if effects is None and chains and fit.result.draws_root is not None:
        first = fit.model.latent.n_effects - fit.model.latent.n_root  # the leaf's effects come first
        if int(positions.min()) >= first:
            effects, positions = fit.result.draws_root, positions - first
    if effects is None:
        ess = list(fit.accuracy.ess.values())
        known = max(1.0, min(ess)) if ess else float(fit.result.draws_theta.shape[0])
        if not fit.model.exact and factor == fit.model.latent.leaf:
            from partialpool.posterior.effects import leaf_summary

            known = min(known, float(leaf_summary(fit).nodes))
        elif not fit.model.exact:
            return _node_ess(fit, factor)
        return np.full(positions.shape, known)
    length = effects.shape[0] // chains * chains  # thinned evenly, one chain after another
    return np.maximum(1.0, ess_bulk(in_chains(effects[:length][:, positions], chains)))


def _node_ess(fit: Posterior, factor: int) -> Array:
    """The same of effects that stand among the nodes."""
    layout, root = fit.model.latent, fit.result.root
    assert root is not None
    shape = layout.sizes[factor], layout.widths[factor]
    own = root[:, layout.root_at(factor) : layout.root_at(factor) + shape[0] * shape[1]]
    if fit.result.chains:
        found = ess_bulk(in_chains(own, fit.result.chains))
    else:
        found = np.minimum(effective_sample_size(fit.result.log_weights, own), len(own))
    return np.maximum(1.0, found.reshape(shape))


def _verdict(table: pandas.DataFrame, groups: pandas.DataFrame, reference: Posterior) -> tuple[bool, str]:
    tolerance = MOST_SD_SHARE + MOST_ERRORS * table.pop("sd_error").to_numpy()
    z, ratio = table["z"].abs().fillna(np.inf), table["sd_ratio"].fillna(np.inf)
    rhat = reference.accuracy.rhat or {}
    worst_rhat = max(rhat.values(), default=1.0)
    far = z.index[z > MOST_ERRORS]
    wrong = [f"the means of {name} differ by {z[name]:.1f} Monte Carlo standard errors" for name in far]
    off = np.abs(np.log(ratio.to_numpy(dtype=float))) > np.log1p(tolerance)
    wrong += [f"the sds of {name} differ by a factor of {ratio[name]:.2f}" for name in ratio.index[off]]
    compared = int(groups["groups"].sum()) if len(groups) else 0
    # among many groups the largest difference is larger by chance alone
    bound = max(MOST_ERRORS, math.sqrt(2 * math.log(max(compared, 1) * 1000))) + 0.5
    wrong += [
        f"the effects of {factor} differ by up to {row.largest_z:.1f} Monte Carlo standard errors ({row.group})"
        for factor, row in groups.iterrows()
        if not row.largest_z <= bound
    ]
    if not worst_rhat <= MAX_RHAT:
        return False, (
            f"No verdict: the chains of the reference do not agree (R-hat {worst_rhat:.3f}). "
            "Run verify with a larger ess=."
        )
    if wrong:
        return False, f"The fit and the reference do not agree: {'; '.join(wrong)}."
    sentence = (
        f"The fit agrees with the reference: every mean within {MOST_ERRORS:.0f} Monte Carlo standard errors "
        f"(largest {float(z.max()) if len(z) else 0.0:.1f}), every sd within "
        f"{100 * float(np.abs(ratio - 1).max()) if len(ratio) else 0.0:.1f}%."
    )
    divergences = reference.accuracy.divergences or 0
    if divergences:
        sentence += f" ({divergences} draws of the reference diverged, so that it may itself miss a part.)"
    return True, sentence
