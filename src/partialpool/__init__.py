"""Bayesian hierarchical models: the language of lme4 and brms, the speed of a point estimate, the whole posterior."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from partialpool._version import __version__ as __version__

#: Public name -> module that defines it; imported at first use, so that `import partialpool` is quick.
_WHERE = {
    "fit": "partialpool.posterior.fitting",
    "Posterior": "partialpool.posterior.posterior",
    "Prediction": "partialpool.posterior.predict",
    "pool": "partialpool.pooling.fitting",
    "Pooled": "partialpool.pooling.pooled",
    "Population": "partialpool.pooling.population",
    "effect_sizes": "partialpool.pooling.effect_sizes",
    "hierarchy": "partialpool.levels.order",
    "simulate_pooling": "partialpool.levels.study",
    "ecological": "partialpool.levels.ecological",
    "interactions": "partialpool.levels.interactions",
    "compare": "partialpool.criticism.compare",
    "calibrate": "partialpool.criticism.calibrate",
    "load": "partialpool.posterior.storage",
    "Model": "partialpool.model",
    "formula": "partialpool.spec.predictors",
    "parse_formula": "partialpool.spec.formula",
    "build_design": "partialpool.design.design",
    "select_engine": "partialpool.inference.select",
    "Settings": "partialpool.inference.base",
    **dict.fromkeys(
        (
            "Normal", "StudentT", "Cauchy", "HalfNormal", "HalfStudentT", "HalfCauchy", "Exponential", "Gamma",
            "InverseGamma", "Uniform", "Beta", "LKJ", "Flat", "PC",
        ),
        "partialpool.spec.priors",
    ),
    **dict.fromkeys(
        ("PartialPoolError", "FormulaError", "DataError", "PriorError", "ModelError", "InferenceError", "StorageError"),
        "partialpool.errors",
    ),
}  # fmt: skip
_MODULES = {"datasets": "partialpool.datasets", "families": "partialpool.spec.families"}

__all__ = [*_WHERE, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from partialpool import datasets as datasets
    from partialpool.criticism.calibrate import calibrate as calibrate
    from partialpool.criticism.compare import compare as compare
    from partialpool.design.design import build_design as build_design
    from partialpool.errors import (
        DataError as DataError,
    )
    from partialpool.errors import (
        FormulaError as FormulaError,
    )
    from partialpool.errors import (
        InferenceError as InferenceError,
    )
    from partialpool.errors import (
        ModelError as ModelError,
    )
    from partialpool.errors import (
        PartialPoolError as PartialPoolError,
    )
    from partialpool.errors import (
        PriorError as PriorError,
    )
    from partialpool.errors import (
        StorageError as StorageError,
    )
    from partialpool.inference.base import Settings as Settings
    from partialpool.inference.select import select_engine as select_engine
    from partialpool.levels.ecological import ecological as ecological
    from partialpool.levels.interactions import interactions as interactions
    from partialpool.levels.order import hierarchy as hierarchy
    from partialpool.levels.study import simulate_pooling as simulate_pooling
    from partialpool.model import Model as Model
    from partialpool.pooling.effect_sizes import effect_sizes as effect_sizes
    from partialpool.pooling.fitting import pool as pool
    from partialpool.pooling.pooled import Pooled as Pooled
    from partialpool.pooling.population import Population as Population
    from partialpool.posterior.fitting import fit as fit
    from partialpool.posterior.posterior import Posterior as Posterior
    from partialpool.posterior.predict import Prediction as Prediction
    from partialpool.posterior.storage import load as load
    from partialpool.spec import families as families
    from partialpool.spec.formula import parse_formula as parse_formula
    from partialpool.spec.predictors import formula as formula
    from partialpool.spec.priors import LKJ as LKJ
    from partialpool.spec.priors import PC as PC
    from partialpool.spec.priors import Beta as Beta
    from partialpool.spec.priors import Cauchy as Cauchy
    from partialpool.spec.priors import Exponential as Exponential
    from partialpool.spec.priors import Flat as Flat
    from partialpool.spec.priors import Gamma as Gamma
    from partialpool.spec.priors import HalfCauchy as HalfCauchy
    from partialpool.spec.priors import HalfNormal as HalfNormal
    from partialpool.spec.priors import HalfStudentT as HalfStudentT
    from partialpool.spec.priors import InverseGamma as InverseGamma
    from partialpool.spec.priors import Normal as Normal
    from partialpool.spec.priors import StudentT as StudentT
    from partialpool.spec.priors import Uniform as Uniform


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'partialpool' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
