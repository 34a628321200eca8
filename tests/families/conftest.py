"""Tiny random models of every family, in fp32."""

import pytest
from transformers import PreTrainedModel

from prosemill.families import Family, families
from prosemill.params import ScratchModel

VOCABULARY = 97
CONTEXT = 64


@pytest.fixture(params=list(families()))
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    return families()[request.param]


@pytest.fixture
def model(family: Family) -> PreTrainedModel:
    """A model of the family with two layers."""
    shape = ScratchModel(source="scratch", name="tiny", family=family.name, hidden_size=32, num_heads=4, context_size=CONTEXT, seed=3)
    drawn = family.draw(shape, VOCABULARY)
    drawn.config.use_cache = False
    return drawn
