"""What every engine takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from partialpool.model import Model

Array = NDArray[np.float64]

#: Pareto k below which importance weights are trusted, and R-hat up to which chains agree.
GOOD_K = 0.7
MAX_RHAT = 1.01


@dataclass(frozen=True)
class Settings:
    """What the user asked of a fit.

    draws : equally weighted draws to return. ess : effective sample size asked of every hyperparameter.
    seed : of every random number. threads : cores to use. progress : True, False, or None (shown past two seconds).
    parameterization : by factor or group term, of NUTS on the whole model; see `inference.parameterization`.
    """

    draws: int = 4000
    ess: float = 1000
    seed: int = 0
    threads: int = 1
    progress: bool | None = None
    parameterization: Mapping[str, str | float] | None = None


@dataclass(frozen=True)
class Accuracy:
    """How a posterior was obtained, and how good it is; printed as sentences.

    Attributes
    ----------
    engine, reason : the method, and why it was chosen.
    trusted : whether every check passed; `checks` lists them.
    ess : effective sample size by parameter. pareto_k : shape of the weights' tail (below 0.7 is good), or None.
    nodes, evaluations : points of theta kept, and likelihood evaluations in all.
    surrogate_error : root mean square error of the interpolated log density on nodes held out, or None.
    rhat : by parameter, where chains were run. divergences : their number, or None.
    steps : what was tried on the way, in order. notes : what the user should know.
    seconds : wall time of the engine.
    quadrature_error : spread over the posterior of the error that quadrature leaves in the log density, or None.
    worst_groups : the groups where that error is largest.
    parameterization : by group term "centered", "non-centered" or a number between, for NUTS on the whole model.
    """

    engine: str
    reason: str
    trusted: bool
    ess: dict[str, float]
    pareto_k: float | None = None
    nodes: int = 0
    evaluations: int = 0
    surrogate_error: float | None = None
    rhat: dict[str, float] | None = None
    divergences: int | None = None
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    quadrature_error: float | None = None
    worst_groups: dict[str, float] | None = None
    parameterization: dict[str, str] | None = None

    @property
    def checks(self) -> dict[str, bool]:
        """What was checked, as sentences, and whether it holds."""
        out = {}
        if self.pareto_k is not None:
            out["the tail of the importance weights is light: Pareto k below 0.7"] = self.pareto_k < GOOD_K
        if self.surrogate_error is not None:
            out["the interpolated log density is as good as exact: error below 0.05"] = self.surrogate_error < 0.05
        if self.quadrature_error is not None:
            out["quadrature over the groups is as good as exact: error below 0.05"] = self.quadrature_error < 0.05
        if self.rhat:
            out["the chains agree: every R-hat at most 1.01"] = max(self.rhat.values()) <= MAX_RHAT
        if self.divergences is not None:
            out["no chain diverged"] = self.divergences == 0
        if self.ess:
            out["every effective sample size is at least 400"] = min(self.ess.values()) >= 400
        out["the engine itself raised no doubt"] = self.trusted
        return out

    def __repr__(self) -> str:
        lines = [f"Obtained by: {self.reason}"]
        lines += [f"  {step}" for step in self.steps]
        if self.ess:
            worst = min(self.ess, key=lambda name: self.ess[name])
            lines.append(f"Effective sample size: at least {self.ess[worst]:,.0f} ({worst})")
        if self.pareto_k is not None:
            verdict = "good, below 0.7" if self.pareto_k < GOOD_K else "too heavy a tail, above 0.7"
            lines.append(f"Pareto k of the weights: {self.pareto_k:.2f} ({verdict})")
        if self.surrogate_error is not None:
            lines.append(f"Interpolated log density: error {self.surrogate_error:.3f} on nodes held out")
        if self.quadrature_error is not None:
            lines.append(f"Quadrature over the groups: error {self.quadrature_error:.1g} in the log density")
        if self.parameterization:
            told = ", ".join(f"{term} {how}" for term, how in self.parameterization.items())
            lines.append(f"Parameterization: {told}")
        if self.rhat:
            lines.append(f"R-hat: at most {max(self.rhat.values()):.3f}")
        if self.divergences is not None:
            lines.append(f"Divergences: {self.divergences}")
        lines.append(f"Work: {self.evaluations:,} evaluations of the likelihood, {self.seconds:.2f} s")
        lines += [f"Note: {note}" for note in self.notes]
        lines.append(
            "Verdict: " + ("every check passed." if self.trusted else "do not rely on it before reading the notes.")
        )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Result:
    """What an engine found.

    Attributes
    ----------
    theta : (K, d) nodes on the unconstrained scale. log_weights : (K,) normalised log weights of the nodes
        (all equal for chains).
    beta_mean, beta_sd : (K, p) conditional means and sds of the public coefficients given theta; for an engine that
        samples the coefficients, its draws and 0.
    draws_theta, draws_beta : (D, d) and (D, p), equally weighted draws.
    log_marginal_likelihood : log p(y), nan where a prior is flat or the engine does not give it.
    chains : number of chains in which the nodes are stored one after another; 0 for weighted nodes.
    effects : (D, effects) draws of the group effects, for an engine that samples them; None where they are integrated
        out. In the internal order, see `Structure.effects_of`.
    root, draws_root : (K, root) and (D, root) effects of the factors that are not integrated out, at the nodes and of
        the draws, for an engine that integrates only the leaf's; None else. quadrature_nodes : of the leaf.
    """

    theta: Array
    log_weights: Array
    beta_mean: Array
    beta_sd: Array
    draws_theta: Array
    draws_beta: Array
    log_marginal_likelihood: float
    accuracy: Accuracy
    settings: Settings
    chains: int = 0
    effects: Array | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    root: Array | None = None
    draws_root: Array | None = None
    quadrature_nodes: int = 0


class Engine(Protocol):
    """A method of inference."""

    name: str

    def run(self, model: Model, settings: Settings) -> Result:
        """The posterior of `model`."""
        ...
