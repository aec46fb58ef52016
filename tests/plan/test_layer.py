"""LayerPlan: visits shared by heads, tables, densities; block masks; the packed layout."""

import numpy as np
import pytest

from sparse_vdit import _C, Geometry, LayerPlan, Order, Pattern

GEOMETRY = Geometry(4, 6, 7, prefix=5, suffix=9, block_q=16, block_k=32)
PATTERNS = [
    Pattern.full(),
    Pattern.skip(),
    Pattern.diagonal(half_width=20, remainder=0.5),
    Pattern.diagonal(half_width=20),
    Pattern.multi_diagonal(half_width=3, remainder=-1.0),
    Pattern.periodic_tiles(tile=(2, 3, 3), time=(1, 0, None), space=(2, 1, 3), remainder=0.0),
    Pattern.vertical_stripe(key_blocks=[1, 3], order=Order.token_major()),
]


def test_visits_are_made_once_per_distinct_pattern(monkeypatch):
    calls = []
    real = _C.visits
    monkeypatch.setattr(
        _C, "visits", lambda g, patterns, r: calls.append((len(patterns), r.tolist())) or real(g, patterns, r)
    )
    layer = LayerPlan(GEOMETRY, PATTERNS)
    layer.items(), layer.density(), layer.block_mask(3), layer.packed(), layer.rows
    assert calls == [(6, [False, False, True, True, True, False])]
    assert layer.rows.shape == (6, GEOMETRY.query_blocks, 4)


def test_head_tables():
    layer = LayerPlan(GEOMETRY, PATTERNS)
    assert layer.heads == 7
    assert layer.head_table.tolist() == [[-1, 0], [-1, 0], [-1, 1], [-1, 0], [0, 1], [1, 1], [0, 0]]
    assert layer.betas.tolist() == [0, 0, 0.5, 0, -1, 0, 0]
    assert layer.betas.dtype == np.float32
    assert layer.tokens.shape == (2, GEOMETRY.tokens)
    assert layer.tokens.dtype == np.int32
    assert (np.argsort(layer.tokens[0]) == layer.places(4)).all()
    assert (layer.places(0) == np.arange(GEOMETRY.tokens)).all()
    heads = layer.items()[:, 0] & 0xFFFFFF
    assert set(heads.tolist()) == {0, 2, 3, 4, 5, 6}, "a skipped head has no items"


def test_density_counts_token_pairs():
    layer = LayerPlan(GEOMETRY, PATTERNS)
    assert layer.density(0) == 1
    assert layer.density(1) == 0
    n = GEOMETRY.tokens
    rows = np.minimum(16, n - 16 * np.arange(GEOMETRY.query_blocks))
    columns = np.minimum(32, n - 32 * np.arange(GEOMETRY.key_blocks))
    for head in range(7):
        expected = (layer.block_mask(head) * rows[:, None] * columns).sum() / n**2
        assert layer.density(head) == pytest.approx(expected, abs=1e-12)
    assert layer.density() == pytest.approx(np.mean([layer.density(h) for h in range(7)]))
    assert layer.density(-1) == layer.density(6)


def test_packed_layout():
    layer = LayerPlan(GEOMETRY, PATTERNS)
    packed = layer.packed()
    assert packed.items.shape == (1, len(layer.items()), 4)
    assert packed.items.dtype == np.int32
    assert (packed.items[0].view(np.uint32) == layer.items()).all()
    assert packed.heads.shape == (1, 7, 2)
    assert packed.betas.shape == (1, 7)
    assert packed.codes.dtype == np.int32
    assert packed.tokens is layer.tokens
    assert packed.geometry == GEOMETRY.to_ints()


def test_block_masks_come_back_as_they_went_in():
    rng = np.random.default_rng(0)
    shape = (GEOMETRY.query_blocks, GEOMETRY.key_blocks)
    masks = [rng.random(shape) < share for share in (0.0, 0.3, 1.0)]
    orders = [Order.frame_major(), Order.tiles(2, 2, 2), Order.token_major()]
    layer = LayerPlan.from_block_masks(GEOMETRY, masks, orders=orders, remainders=[None, 0.25, None])
    for head, mask in enumerate(masks):
        assert (layer.block_mask(head) == mask).all()
        assert layer.order(head) == orders[head]
    assert layer.has_masks
    assert layer.patterns == ()
    assert layer.density(2) == 1
    assert layer.head_table.tolist() == [[-1, 0], [0, 1], [1, 0]]


def test_a_mask_of_a_pattern_gives_the_pattern():
    plain = LayerPlan(GEOMETRY, PATTERNS)
    again = LayerPlan.from_block_masks(
        GEOMETRY,
        [plain.block_mask(head) for head in range(7)],
        orders=[p.order for p in PATTERNS],
        remainders=plain.remainders,
    )
    assert (again.items()[:, :2] == plain.items()[:, :2]).all()
    assert (again.head_table[:, 1] == plain.head_table[:, 1]).all()
    assert again.density() == plain.density()


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: LayerPlan(GEOMETRY, []), ValueError, "layer: there are 0 heads, expected 1..256"),
        (lambda: LayerPlan(GEOMETRY, [Pattern.full()] * 257), ValueError, "there are 257 heads"),
        (
            lambda: LayerPlan(GEOMETRY, ["full"]),
            TypeError,
            "the pattern of head 0 is str, expected a Pattern",
        ),
        (lambda: LayerPlan((1, 2, 3), [Pattern.full()]), TypeError, "geometry is tuple, expected a Geometry"),
        (lambda: LayerPlan(GEOMETRY, [Pattern.vertical_stripe(key_blocks=[99])]), ValueError, "99"),
        (
            lambda: LayerPlan(GEOMETRY, [Pattern.diagonal(half_width=1, sink_frames=5)]),
            ValueError,
            "sink_frames is 5",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, [np.ones((2, 2), bool)]),
            ValueError,
            "has shape \\(2, 2\\)",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, [np.ones((12, 6))]),
            TypeError,
            "is float64, expected bool",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, [np.ones((12, 6), bool)], orders=[]),
            ValueError,
            "there are 0 orders, expected 1",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, [np.ones((12, 6), bool)], remainders=[float("inf")]),
            ValueError,
            "remainder is inf",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, [np.ones((12, 6), bool)], orders=["tiles"]),
            TypeError,
            "layer: the order of head 0 is str, expected an Order",
        ),
        (
            lambda: LayerPlan.from_block_masks((4, 8), [np.ones((12, 6), bool)]),
            TypeError,
            "layer: geometry is tuple, expected a Geometry",
        ),
        (
            lambda: LayerPlan.from_block_masks(GEOMETRY, None),
            TypeError,
            "layer: masks is NoneType, expected one",
        ),
        (
            lambda: LayerPlan(GEOMETRY, Pattern.full()),
            TypeError,
            "layer: patterns is Pattern, expected one per",
        ),
        (
            lambda: LayerPlan(GEOMETRY, PATTERNS).density(1.0),
            TypeError,
            "layer: head is float, expected an integer",
        ),
        (
            lambda: LayerPlan(GEOMETRY, PATTERNS).places(True),
            TypeError,
            "layer: head is bool, expected an integer",
        ),
    ],
)
def test_refusals_are_sentences(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_visits_are_bounded_before_they_are_made():
    geometry = Geometry(2**20, 32, 63, block_q=16, block_k=128)
    layer = LayerPlan(geometry, [Pattern.diagonal(half_width=n) for n in range(2)])
    with pytest.raises(
        ValueError, match=r"visits: 2 patterns of 132120576 query blocks have 264241152 rows, exp"
    ):
        layer.density()


def test_a_head_out_of_range_is_refused():
    with pytest.raises(IndexError, match=r"head is 7, expected 0..6"):
        LayerPlan(GEOMETRY, PATTERNS).density(7)
