"""Small real data sets, with their sources: what the examples, the demo and the guides use.

>>> import partialpool as pp
>>> pp.datasets.names()[:2]
('bball1970', 'bcg')
>>> pp.datasets.load("sleepstudy").shape
(180, 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from partialpool.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas

__all__ = ["DataSet", "describe", "load", "names"]

_LME4 = (
    "Copied from the R package lme4, which is distributed under the GPL (>= 2); the measurements themselves were "
    "published in the source named above."
)


@dataclass(frozen=True)
class DataSet:
    """What a data set is and where it comes from; printed as text.

    Attributes
    ----------
    name, title : what it is called, and what it is in a line.
    rows : number of rows.
    columns : what each column means, with its unit.
    ids : the columns that hold labels (groups and categories), which are loaded as text.
    formula, family : a model of `partialpool.fit` to begin with; no formula where there is none.
    begin : a call of `partialpool.pool` to begin with, of the loaded frame `data`; empty where there is none.
    source : who measured it, and where it was published.
    licence : on what terms it is passed on.
    """

    name: str
    title: str
    rows: int
    columns: Mapping[str, str]
    ids: tuple[str, ...]
    formula: str
    source: str
    licence: str
    family: str = "gaussian"
    begin: str = ""

    def __repr__(self) -> str:
        width = max(len(name) for name in self.columns)
        lines = [f"{self.name}: {self.title}", f"{self.rows} rows"]
        lines += [f"  {name.ljust(width)}  {meaning}" for name, meaning in self.columns.items()]
        family = "" if self.family == "gaussian" else f", family={self.family!r}"
        if self.formula:
            lines.append(f"Model to begin with: {self.formula}{family}")
        if self.begin:
            lines.append(f"Pooling to begin with: {self.begin}")
        lines += [f"Source: {self.source}", f"Licence: {self.licence}"]
        return "\n".join(lines)


_ALL = (
    DataSet(
        "bball1970",
        "batting of 18 baseball players in the season of 1970: their first 45 times at bat, and the rest",
        18,
        {
            "Player": "name",
            "AB": "times at bat so far, 45 for everyone",
            "Hits": "hits in them",
            "RemainingAB": "times at bat in the rest of the season",
            "RemainingHits": "hits in the rest of the season",
        },
        ("Player",),
        "Hits | trials(AB) ~ 1 + (1 | Player)",
        "Efron and Morris (1975), Data analysis using Stein's estimator and its generalizations, J. American "
        "Statistical Association 70, 311-319.",
        "Eighteen published rows of counts; as in the R package rstanarm (GPL >= 3).",
        "binomial",
        'pp.pool("Hits", trials="AB", units="Player", data=data)',
    ),
    DataSet(
        "bcg",
        "13 trials of the BCG vaccine against tuberculosis: cases among the vaccinated and the others",
        13,
        {
            "trial": "number of the trial, 1 to 13 (two pairs of trials share an author)",
            "author": "first author or authors",
            "year": "of the publication",
            "tpos": "vaccinated people who had tuberculosis",
            "tneg": "vaccinated people who had not",
            "cpos": "people of the control group who had tuberculosis",
            "cneg": "people of the control group who had not",
            "ablat": "absolute latitude of the place, degrees",
            "alloc": "how people were assigned to the groups: random, alternate or systematic",
        },
        ("trial", "author", "alloc"),
        "",
        "Colditz et al. (1994), Efficacy of BCG vaccine in the prevention of tuberculosis, JAMA 271, 698-702.",
        "Thirteen published tables; as in the R package metadat (GPL >= 2).",
        begin='pp.pool("estimate", se="se", units="unit", data=pp.effect_sizes("risk ratio", events_treatment="tpos", '
        'nonevents_treatment="tneg", events_control="cpos", nonevents_control="cneg", units="trial", data=data))',
    ),
    DataSet(
        "cake",
        "angle at which chocolate cakes of 3 recipes, baked at 6 temperatures, break",
        270,
        {
            "replicate": "batch of a recipe, 1 to 15 (a new batch for each recipe: group by recipe:replicate)",
            "recipe": "A, B or C",
            "temperature": "of the oven, degrees Fahrenheit, as a category",
            "angle": "at which the cake broke, degrees",
            "temp": "temperature as a number",
        },
        ("replicate", "recipe", "temperature"),
        "angle ~ recipe + temp + (1 | recipe:replicate)",
        "Cook (1938), Iowa State College thesis; Cochran and Cox (1957), Experimental Designs, 2nd edition.",
        _LME4,
    ),
    DataSet(
        "cbpp",
        "new cases of contagious bovine pleuropneumonia in 15 herds, over 4 periods of an outbreak",
        56,
        {
            "herd": "number of the herd, 1 to 15",
            "incidence": "new cases in the period",
            "size": "animals at risk at its start",
            "period": "1 to 4, as a category",
        },
        ("herd", "period"),
        "incidence | trials(size) ~ period + (1 | herd)",
        "Lesnoff, Laval, Bonnet et al. (2004), Preventive Veterinary Medicine 64, 27-40.",
        _LME4,
        "binomial",
    ),
    DataSet(
        "Dyestuff",
        "yield of dyestuff from 6 batches of an intermediate product",
        30,
        {"Batch": "A to F", "Yield": "of standard colour, grams"},
        ("Batch",),
        "Yield ~ 1 + (1 | Batch)",
        "Davies and Goldsmith (1972), Statistical Methods in Research and Production, 4th edition.",
        _LME4,
    ),
    DataSet(
        "Dyestuff2",
        "made-up data of the same form, in which the batches do not differ: the group sd is near 0",
        30,
        {"Batch": "A to F", "Yield": "simulated"},
        ("Batch",),
        "Yield ~ 1 + (1 | Batch)",
        "Box and Tiao (1973), Bayesian Inference in Statistical Analysis, section 5.1.2.",
        _LME4,
    ),
    DataSet(
        "eight_schools",
        "estimated effects of coaching on SAT scores in 8 schools, with their standard errors",
        8,
        {"school": "A to H", "y": "estimated effect, points", "sigma": "its standard error, points"},
        ("school",),
        "y | se(sigma) ~ 1 + (1 | school)",
        "Rubin (1981), Estimation in parallel randomized experiments, J. Educational Statistics 6, 377-401.",
        "Eight published pairs of numbers; as in posteriordb (BSD 3-clause).",
        begin='pp.pool("y", se="sigma", units="school", data=data)',
    ),
    DataSet(
        "Hsb82",
        "mathematics of 7,185 pupils of 160 schools of the United States, 1982 (High School and Beyond)",
        7185,
        {
            "school": "id",
            "minrty": "whether the pupil belongs to a minority",
            "sx": "Female or Male",
            "ses": "social and economic status of the pupil's family, about 0 in the country",
            "mAch": "score in mathematics",
            "meanses": "mean of ses of the school's pupils",
            "sector": "of the school: Public or Catholic",
            "cses": "ses less meanses",
        },
        ("school", "minrty", "sx", "sector"),
        "mAch ~ within(ses | school) + between(ses | school) + (1 + within(ses | school) | school)",
        "Raudenbush and Bryk (2002), Hierarchical Linear Models, 2nd edition, chapter 4.",
        "Survey of the US Department of Education (public domain); as in the R package mlmRev (GPL >= 2).",
    ),
    DataSet(
        "Pastes",
        "strength of a chemical paste: 10 deliveries, 3 casks of each, 2 tests of each cask",
        60,
        {
            "strength": "of the paste",
            "batch": "delivery, A to J",
            "cask": "within its delivery, a to c",
            "sample": "batch and cask in one label",
        },
        ("batch", "cask", "sample"),
        "strength ~ 1 + (1 | batch/cask)",
        "Davies and Goldsmith (1972), Statistical Methods in Research and Production, 4th edition.",
        _LME4,
    ),
    DataSet(
        "Penicillin",
        "diameter of the zone that 6 samples of penicillin clear on each of 24 plates",
        144,
        {"diameter": "of the clear zone, mm", "plate": "assay plate, a to x", "sample": "of penicillin, A to F"},
        ("plate", "sample"),
        "diameter ~ 1 + (1 | plate) + (1 | sample)",
        "Davies and Goldsmith (1972), Statistical Methods in Research and Production, 4th edition.",
        _LME4,
    ),
    DataSet(
        "radon",
        "radon in 919 houses of 85 counties of Minnesota; some counties have one or two houses",
        919,
        {
            "floor": "where it was measured: 0 basement, 1 first floor",
            "county": "name",
            "log_radon": "log of the activity, picocuries per litre",
            "log_uranium": "log of the county's uranium in the soil, parts per million",
        },
        ("county",),
        "log_radon ~ floor + (1 + floor | county)",
        "Price, Nero and Gelman (1996), Health Physics 71, 922-936; Gelman and Hill (2007), chapter 12.",
        "Measurements of the US Environmental Protection Agency (public domain); as in posteriordb (BSD 3-clause).",
    ),
    DataSet(
        "sleepstudy",
        "reaction times of 18 people who slept three hours a night for ten days",
        180,
        {"Reaction": "mean reaction time, ms", "Days": "of little sleep so far", "Subject": "number of the person"},
        ("Subject",),
        "Reaction ~ Days + (Days | Subject)",
        "Belenky et al. (2003), Journal of Sleep Research 12, 1-12.",
        _LME4,
    ),
    DataSet(
        "toenail",
        "infected toenails of 294 patients under two treatments, seen up to 7 times over a year or more",
        1908,
        {
            "patientID": "number of the patient",
            "outcome": "degree of separation of the nail: none or mild, moderate or severe",
            "treatment": "itraconazole or terbinafine",
            "time": "since the start of the treatment, months",
            "visit": "1 to 7",
        },
        ("patientID", "outcome", "treatment"),
        'outcome == "moderate or severe" ~ treatment * time + (1 | patientID)',
        "De Backer, De Vroey, Lesaffre, Scheys and De Keyser (1998), J. American Academy of Dermatology 38, S57-S63.",
        "Copied from the R package HSAUR3, which is distributed under the GPL-2; the measurements themselves were "
        "published in the source named above.",
        "bernoulli",
    ),
    DataSet(
        "tumors",
        "rats with a tumour (endometrial stromal polyps) in the control groups of 71 experiments",
        71,
        {"y": "rats with a tumour", "K": "rats in the experiment (the last row is the new experiment)"},
        (),
        "",
        "Tarone (1982), The use of historical control information in testing for a trend in proportions, Biometrics "
        "38, 215-220; Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 5.1.",
        "Seventy-one published pairs of counts; as in rstanarm (GPL >= 3), from the data of the book.",
        "binomial",
        'pp.pool("y", trials="K", data=data)',
    ),
)
_BY_NAME = {entry.name.casefold(): entry for entry in _ALL}


def names() -> tuple[str, ...]:
    """The data sets there are.

    Examples
    --------
    >>> "radon" in names()
    True
    """
    return tuple(entry.name for entry in _ALL)


def describe(name: str) -> DataSet:
    """What a data set holds, where it comes from and on what terms.

    Raises
    ------
    DataError
        If there is no such data set.

    Examples
    --------
    >>> describe("eight_schools").formula
    'y | se(sigma) ~ 1 + (1 | school)'
    """
    entry = _BY_NAME.get(name.casefold()) if isinstance(name, str) else None
    if entry is None:
        raise DataError(f"There is no data set {name!r}. {did_you_mean(str(name), names())}")
    return entry


def load(name: str) -> pandas.DataFrame:
    """A data set as a fresh pandas data frame; labels of groups and categories are text.

    Parameters
    ----------
    name : str
        One of :func:`names`; capitals do not matter.

    Raises
    ------
    DataError
        If there is no such data set.

    Examples
    --------
    >>> load("sleepstudy")["Subject"].iloc[0]
    '308'
    """
    import pandas

    entry = describe(name)
    path = Path(__file__).parent / "data" / f"{entry.name}.csv"
    # A county may be called NA: only an empty cell is missing.
    return pandas.read_csv(path, dtype=dict.fromkeys(entry.ids, str), keep_default_na=False, na_values=[""])
