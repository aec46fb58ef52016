"""The examples in the docstrings run as printed."""

import doctest
import importlib

import pytest

import sparse_vdit

NAMES = {name: getattr(sparse_vdit, name) for name in ("Geometry", "LayerPlan", "Pattern")}


@pytest.mark.parametrize("module", ["pattern", "plan.layer", "plan.sparse", "search.candidates"])
def test_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"sparse_vdit.{module}"), extraglobs=NAMES)
    assert found.attempted > 0
    assert found.failed == 0
