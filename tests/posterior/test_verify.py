from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from partialpool.errors import ModelError
from partialpool.model import Model
from partialpool.posterior.posterior import Posterior
from partialpool.posterior.verify import Verification, verify


@pytest.fixture(scope="module")
def fit(data_folder: Path) -> Posterior:
    model = Model.from_formula("Yield ~ 1 + (1 | Batch)", pd.read_csv(data_folder / "Dyestuff.csv"))
    return model.fit(seed=1)


@pytest.fixture(scope="module")
def verification(fit: Posterior) -> Verification:
    return fit.verify(ess=800, seed=5)  # type: ignore[no-any-return]


def test_an_exact_fit_agrees(verification: Verification) -> None:
    assert verification.agrees
    assert verification.table.index.tolist() == ["Intercept", "sd(Intercept|Batch)", "sigma"]
    columns = ["mean", "sd", "reference_mean", "reference_sd", "mcse", "z", "sd_ratio"]
    assert verification.table.columns.tolist() == columns
    assert verification.table["z"].abs().max() < 4
    assert verification.groups.loc["Batch", "groups"] == 6
    assert verification.groups.loc["Batch", "largest_z"] < 4.5
    assert verification.reference.accuracy.engine == "nuts"
    text = repr(verification)
    assert "agrees with the reference" in text
    assert "reference_mean" in text
    assert "<table" in verification._repr_html_()


def test_a_wrong_fit_is_caught(fit: Posterior) -> None:
    """All sds 10% too small on the log scale, coefficients half their sd off."""
    result = fit.result
    shift = 0.5 * fit.summary().loc["Intercept", "sd"]
    wrong = Posterior(fit.model, replace(result, theta=result.theta - 0.2, beta_mean=result.beta_mean + shift))
    found = verify(wrong, ess=800, seed=5)
    assert not found.agrees
    assert "the means of Intercept differ" in found.verdict


def test_impossible_options(fit: Posterior) -> None:
    with pytest.raises(ModelError, match="ess = 0 is not possible"):
        verify(fit, ess=0)
    with pytest.raises(ModelError, match="seed = -1 is not possible"):
        verify(fit, seed=-1)
