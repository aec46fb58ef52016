"""SparsePlan in use: bins, layers, the packed pool, identity, uniform, summary, figure."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, PlanError
from sparse_vdit.plan.layer import pack
from sparse_vdit.plan.transformer import TransformerPlan

GEOMETRY = Geometry(4, 6, 7, prefix=5, suffix=3, block_q=32, block_k=32)
MODEL = ModelIdentity("WanTransformer3DModel", 2, 3, 16)
PATTERNS = [
    Pattern.full(),
    Pattern.skip(),
    Pattern.diagonal(half_width=9),
    Pattern.multi_diagonal(half_width=5),
    Pattern.periodic_tiles(tile=(2, 2, 2), time=(1, 0, None), space=(2, 0, None)),
]


def random_plan(seed, bins=3):
    rng = np.random.default_rng(seed)
    choice = rng.integers(0, len(PATTERNS), (bins, 2, 3))
    betas = np.where((choice > 1) & (rng.random(choice.shape) < 0.6), rng.normal(size=choice.shape), np.nan)
    edges = (0, *sorted(rng.uniform(0.1, 0.9, bins - 1)), 1)
    return SparsePlan(TransformerPlan(MODEL, GEOMETRY, PATTERNS, choice, betas, edges, 0.9))


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=40)
def test_any_plan_goes_there_and_back(seed, bins):
    plan = random_plan(seed, bins)
    back = SparsePlan.from_json(plan.to_json())
    assert back == plan
    assert (back.choice == plan.choice).all()
    assert np.array_equal(back.betas, plan.betas, equal_nan=True)


def test_one_call_makes_the_visits_of_a_whole_plan(monkeypatch):
    calls = []
    real = _C.visits
    monkeypatch.setattr(_C, "visits", lambda *args: calls.append(1) or real(*args))
    plan = random_plan(1)
    for layer in range(2):
        plan.packed(layer)
        plan.density()
    assert calls == [1]
    assert plan.packed(0).codes.base is plan.packed(1).codes.base


def test_packed_bins_are_the_layers():
    plan = random_plan(2)
    for layer in range(2):
        packed = plan.packed(layer)
        assert packed.items.shape[0] == packed.heads.shape[0] == packed.betas.shape[0] == 3
        for bin_ in range(3):
            one = plan.layer(bin_, layer)
            listed = packed.items[bin_]
            assert (listed[: len(one.items())].view(np.uint32) == one.items()).all()
            assert (listed[len(one.items()) :] == -1).all()
            assert (packed.heads[bin_] == one.head_table).all()
            assert (packed.betas[bin_] == one.betas).all()


def test_a_layer_of_a_plan_is_a_layer():
    plan = random_plan(3)
    for bin_, layer in np.ndindex(3, 2):
        shared = plan.layer(bin_, layer)
        own = LayerPlan(GEOMETRY, shared.patterns)
        assert own.density() == pytest.approx(shared.density())
        for head in range(3):
            assert (own.block_mask(head) == shared.block_mask(head)).all()
            assert (own.places(head) == shared.places(head)).all()
        assert own.items().shape == shared.items().shape
        assert (own.items()[:, :2] == shared.items()[:, :2]).all()


def test_packing_layers_of_different_pools_moves_codes_and_orders():
    layers = [
        LayerPlan(
            GEOMETRY, [Pattern.diagonal(half_width=9, remainder=1.0), Pattern.multi_diagonal(half_width=5)]
        ),
        LayerPlan(GEOMETRY, [Pattern.multi_diagonal(half_width=3), Pattern.full()]),
        LayerPlan.from_block_masks(
            GEOMETRY, [np.eye(GEOMETRY.query_blocks, dtype=bool)] * 2, orders=[Order.tiles(2, 2, 2)] * 2
        ),
    ]
    packed = pack(layers)
    for bin_, layer in enumerate(layers):
        for head in range(2):
            order = packed.heads[bin_, head, 0]
            places = np.arange(GEOMETRY.tokens) if order < 0 else np.argsort(packed.tokens[order])
            assert (places == layer.places(head)).all()
        for item, own in zip(packed.items[bin_].view(np.uint32), layer.items(), strict=False):
            assert item[3] == own[3]
            if own[0] >> 24 == 0:
                mine = packed.codes.view(np.uint32)[item[2] : item[2] + item[3]]
                assert (mine == layer.codes[own[2] : own[2] + own[3]]).all()


def test_bins_of_noise_levels():
    shape = (2, 2, 3)
    part = TransformerPlan(MODEL, GEOMETRY, PATTERNS, np.zeros(shape, int), None, (0, 0.5, 1), 0.8)
    levels = {0: 0, 0.499: 0, 0.5: 1, 0.8: 1, 0.8001: None, 1: None, 1.0000001: None, np.float32(0.25): 0}
    assert {level: part.bin_of(level) for level in levels} == levels
    whole = TransformerPlan(MODEL, GEOMETRY, PATTERNS, np.zeros(shape, int), None, (0, 0.5, 1))
    assert whole.bin_of(1) == 1
    for bad in (-0.1, 1.1, float("nan"), "0.5", None):
        with pytest.raises(PlanError, match=r"expected a number in 0..1"):
            part.bin_of(bad)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"choice": np.zeros((1, 2, 2), int)}, r"choice has shape \(1, 2, 2\), expected \(1, 2, 3\)"),
        ({"choice": np.zeros((1, 2, 3))}, "choice holds float64, expected integers"),
        ({"choice": np.full((1, 2, 3), 7)}, r"choice holds 7, expected 0..4"),
        ({"choice": np.full((1, 2, 3), -1)}, "choice holds -1"),
        ({"betas": np.zeros((1, 2, 3))}, "betas holds a number for full, expected null"),
        ({"betas": np.full((1, 2, 3), np.inf)}, "not finite"),
        ({"betas": np.zeros((2, 2, 3))}, "betas has shape"),
        ({"bins": (0, 1, 2)}, "an edge of bins is 2.0"),
        ({"bins": (0,)}, "bins has 1 edges"),
        ({"dense_above": -1}, "dense_above is -1.0"),
        ({"patterns": [Pattern.full(), Pattern.full()]}, "appears twice"),
        ({"patterns": [Pattern.diagonal(half_width=1, remainder=0.0)]}, "pattern 0 has a remainder"),
        ({"patterns": []}, r"there are 0 patterns, expected 1..4096"),
        ({"patterns": [Pattern.vertical_stripe(key_blocks=[1000])]}, "1000"),
    ],
)
def test_refusals_are_sentences(arguments, sentence):
    whole = {"patterns": PATTERNS, "choice": np.zeros((1, 2, 3), int)} | arguments
    with pytest.raises(ValueError, match=sentence):
        TransformerPlan(MODEL, GEOMETRY, **whole)


def test_uniform_refuses_what_is_no_pattern_or_geometry():
    with pytest.raises(TypeError, match="plan: pattern is str, expected a Pattern"):
        SparsePlan.uniform(MODEL, GEOMETRY, "full")
    with pytest.raises(TypeError, match="plan: geometry is tuple, expected a Geometry"):
        SparsePlan.uniform(MODEL, (4, 8, 8), Pattern.full())


def transformer(name, **config):
    return type(name, (), {})(), types.SimpleNamespace(**config)


MODELS = [
    (
        "CogVideoXTransformer3DModel",
        {
            "num_layers": 30,
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "patch_size": 2,
            "patch_size_t": None,
        },
        ModelIdentity("CogVideoXTransformer3DModel", 30, 48, 64, (1, 2, 2)),
    ),
    (
        "HunyuanVideoTransformer3DModel",
        {
            "num_layers": 20,
            "num_single_layers": 40,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "patch_size": 2,
            "patch_size_t": 1,
        },
        ModelIdentity("HunyuanVideoTransformer3DModel", 60, 24, 128, (1, 2, 2)),
    ),
    (
        "WanTransformer3DModel",
        {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "patch_size": (1, 2, 2)},
        ModelIdentity("WanTransformer3DModel", 40, 40, 128, (1, 2, 2)),
    ),
]


@pytest.mark.parametrize(("name", "config", "expected"), MODELS)
def test_identity_is_read_from_the_configuration(name, config, expected):
    model, settings_ = transformer(name, **config)
    for form in (settings_, config):
        model.config = form
        assert ModelIdentity.from_transformer(model) == expected
        assert ModelIdentity.from_transformer(types.SimpleNamespace(_orig_mod=model)) == expected
    assert ModelIdentity.from_json(expected.to_json()) == expected
    plan = SparsePlan.uniform(
        model, GEOMETRY, Pattern.diagonal(half_width=31, remainder=0.25), dense_above=0.8
    )
    assert plan.choice.shape == (1, expected.layers, expected.heads)
    assert (plan.betas == 0.25).all()
    plan.check_model(model)
    plan.check_model(expected)


def test_another_model_is_refused():
    plan = random_plan(0)
    with pytest.raises(PlanError, match="plan: layers is 40, expected 2: the plan is of another model"):
        plan.check_model(ModelIdentity("WanTransformer3DModel", 40, 3, 16))
    with pytest.raises(PlanError, match="transformer_class is LTXVideoTransformer3DModel, expected Wan"):
        plan.check_model(ModelIdentity("LTXVideoTransformer3DModel", 2, 3, 16))
    with pytest.raises(ValueError, match=r"model: SimpleNamespace has no config.num_layers"):
        plan.check_model(types.SimpleNamespace())


def test_summary_tells_the_plan():
    text = random_plan(4).summary()
    assert "4 x 6 x 7 tokens, other tokens 5 before, 3 after" in text
    assert "WanTransformer3DModel, 2 layers x 3 heads x 16" in text
    assert text.count("noise level 0") >= 3
    assert len([line for line in text.splitlines() if line.startswith("    ")]) == 6


def test_figure_has_a_panel_per_bin(tmp_path):
    pytest.importorskip("matplotlib")
    plan = random_plan(5)
    figure = plan.figure()
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3
    for bin_, axes in enumerate(panels):
        assert axes.images[0].get_array().shape == (2, 3, 3)
        kinds = {(head, layer): PATTERNS[n].kind for (layer, head), n in np.ndenumerate(plan.choice[bin_])}
        lettered = {
            tuple(at): dots.get_label() for dots in axes.collections for at in dots.get_offsets().tolist()
        }
        assert lettered == kinds
    figure.savefig(tmp_path / "plan.png")


def test_families_are_counted():
    part = random_plan(6).for_transformer()
    kinds = [PATTERNS[n].kind for n in part.choice[1].ravel()]
    assert part.families(1) == {kind: kinds.count(kind) for kind in set(kinds)}
    assert sum(part.families().values()) == 18


def test_layered_plans_must_fit():
    layer = LayerPlan(GEOMETRY, [Pattern.full()] * 3)
    with pytest.raises(PlanError, match=r"the layers have shape \(1, 1, 3\), expected \(1, 2, 3\)"):
        SparsePlan.from_layers(MODEL, [[layer]])
    other = LayerPlan(Geometry(4, 6, 7, block_q=32, block_k=32), [Pattern.full()] * 3)
    with pytest.raises(PlanError, match="a layer has another geometry"):
        SparsePlan.from_layers(MODEL, [[layer, other]])


def test_the_hash_knows_every_part():
    masks = np.ones((GEOMETRY.query_blocks, GEOMETRY.key_blocks), bool)
    layers = [LayerPlan.from_block_masks(GEOMETRY, [masks] * 3)] * 2
    controls = SparsePlan.from_layers(MODEL, [layers]).for_transformer()
    first, second = (random_plan(seed).for_transformer() for seed in (1, 2))
    one = SparsePlan({"transformer": controls, "transformer_2": first})
    other = SparsePlan({"transformer": controls, "transformer_2": second})
    assert one.hash == SparsePlan({"transformer": controls, "transformer_2": first}).hash
    assert one.hash != other.hash
    later = SparsePlan.from_layers(MODEL, [layers], dense_above=0.5)
    assert later.hash != SparsePlan.from_layers(MODEL, [layers]).hash


def test_a_part_goes_to_another_geometry_as_the_plan_does():
    plan = random_plan(3)
    new = Geometry(4, 8, 8, block_q=GEOMETRY.block_q, block_k=GEOMETRY.block_k)
    part = plan.for_transformer().for_geometry(new)
    assert part.patterns == plan.for_geometry(new).for_transformer().patterns
    assert part.geometry == new
