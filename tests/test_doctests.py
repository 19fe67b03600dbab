"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import partialpool

MODULES = [
    module.name
    for module in pkgutil.walk_packages(partialpool.__path__, "partialpool.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


def test_there_are_examples_for_what_users_call():
    finder = doctest.DocTestFinder(recurse=False)
    for public in ("fit", "Model", "load", "Normal", "LKJ", "parse_formula", "build_design"):
        found = getattr(partialpool, public)
        assert any(test.examples for test in finder.find(found, public)), public
