"""Gradient power: exact for a linear model, and a better budget than plain relative errors."""

import numpy as np
import pytest

from sparse_vdit import Geometry, Pattern
from sparse_vdit.choose import ErrorTable, gradient_power
from sparse_vdit.plan import ModelIdentity

torch = pytest.importorskip("torch")


class Linear(torch.nn.Module):
    """y = x + sum over layers of W_l x."""

    def __init__(self, layers, width):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, width, bias=False) for _ in range(layers)])

    def forward(self, x):
        return x + sum(layer(x) for layer in self.layers)


def test_gradients_of_a_linear_model_are_its_weights():
    torch.manual_seed(0)
    model = Linear(3, 8).requires_grad_(False)
    with torch.no_grad():
        model.layers[1].weight[:, :4] *= 10
        model.layers[2].weight.zero_()
    x = torch.randn(2, 50, 8)
    power = gradient_power(list(model.layers), 2, lambda: model(x), probes=200)
    exact = np.array(
        [[layer.weight[:, part].square().sum() for part in (slice(4), slice(4, 8))] for layer in model.layers]
    )
    assert power == pytest.approx(exact, rel=0.1)
    assert power[2].tolist() == [0, 0]
    assert not any(layer._forward_pre_hooks for layer in model.layers), "hooks are taken away"


def test_modules_called_other_than_once_are_refused():
    model = Linear(2, 8)
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="projection of layer 0 was called 2 times, expected once"):
        gradient_power(list(model.layers), 2, lambda: model(model(x)))
    with pytest.raises(ValueError, match="projection of layer 1 was called 0 times"):
        gradient_power([model.layers[0], torch.nn.Linear(8, 8)], 2, lambda: model(x))


def test_weights_send_the_budget_where_it_is_felt():
    geometry = Geometry(4, 6, 6, block_q=16, block_k=16)
    model = ModelIdentity("WanTransformer3DModel", 1, 2, 16)
    candidates = [Pattern.full(), Pattern.diagonal(half_width=0), Pattern.diagonal(half_width=31)]
    table = ErrorTable(model, geometry, candidates, rows=None)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, geometry.tokens, 16)).astype(np.float32) for _ in range(3))
    table.add(0.5, 0, q, k, v * np.array([1, 10], np.float32)[:, None, None])
    weights = table.absolute_weights()
    assert weights.shape == (1, 1, 2)
    assert weights[0, 0, 1] / weights[0, 0, 0] == pytest.approx(table.energy[0, 0, 1] / table.energy[0, 0, 0])
    assert weights.mean() == pytest.approx(1)
    plan = table.select(mean_density=0.6, weights=weights)
    densities = plan.for_transformer().densities()[0, 0]
    assert densities[1] > densities[0]
    turned = table.absolute_weights([[[1e6, 1.0]]])
    densities = table.select(mean_density=0.6, weights=turned).for_transformer().densities()[0, 0]
    assert densities[0] > densities[1]
