"""Every line of CRITERIA keeps the contract; a new one is tested without an edit here."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import cnn_small, resnet8
from pipeline.trimming import criteria, groups


def scored(module, name):
    torch.manual_seed(1)
    model = module.build(module.WIDTHS, None)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # all ones before training
            nn.init.uniform_(part.weight, 0.5, 1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = groups.trace(model, module.INPUT_SHAPE)
    batch = torch.rand(8, *module.INPUT_SHAPE), torch.arange(8)
    statistics = criteria.collect(graph, [batch], criteria.needed(name))
    scores = {key: criteria.CRITERIA[name](group, statistics) for key, group in graph.groups.items()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return graph, scores


@pytest.mark.parametrize("module", [cnn_small, resnet8], ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_one_finite_score_per_unit_that_tells_filters_apart(name, module):
    graph, scores = scored(module, name)
    for key, group in graph.groups.items():
        assert scores[key].shape == (group.size,) and scores[key].dtype == np.float64
        assert np.isfinite(scores[key]).all() and len(np.unique(scores[key])) > 1
    _, again = scored(module, name)
    assert all(np.array_equal(scores[key], again[key]) for key in scores)


def test_a_criterion_that_gives_one_score_for_all_would_be_noticed(monkeypatch):
    monkeypatch.setitem(criteria.CRITERIA, "same", lambda group, statistics: np.ones(group.size))
    with pytest.raises(AssertionError):
        test_one_finite_score_per_unit_that_tells_filters_apart("same", cnn_small)


def test_the_recipes_statistics_and_methods_exist():
    from typing import get_args

    from pipeline.config import Trim

    assert set(get_args(Trim.model_fields["statistic"].annotation)) == set(criteria.STATISTICS)
    methods = {"relevance" if name.startswith("relevance_") else name for name in criteria.CRITERIA}
    assert set(get_args(Trim.model_fields["method"].annotation)) == methods | {"none"}
