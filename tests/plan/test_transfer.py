"""for_geometry against a brute force written from the rules: token by token, no arrays of places."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, PlanError
from sparse_vdit.plan.transfer import transfer_pattern

sides = st.integers(1, 6)
BLOCKS = st.sampled_from([(16, 16), (16, 32), (32, 16)])


@st.composite
def pairs(draw):
    block_q, block_k = draw(BLOCKS)
    make = lambda: Geometry(  # noqa: E731
        draw(sides),
        draw(sides),
        draw(sides),
        draw(st.integers(0, 20)),
        draw(st.integers(0, 20)),
        block_q,
        block_k,
    )
    return make(), make()


def position(g, order, f, r, c):
    """Section 2, by counting the tokens that come earlier."""
    if order.kind == "frame_major":
        return (f * g.height + r) * g.width + c
    if order.kind == "token_major":
        return (r * g.width + c) * g.frames + f
    t, h, w = order.tile
    key = (f // t, r // h, c // w, f, r, c)
    return sum(
        (a // t, b // h, d // w, a, b, d) < key
        for a in range(g.frames)
        for b in range(g.height)
        for d in range(g.width)
    )


def place(g, order, index):
    v = index - g.prefix
    if not 0 <= v < g.video_tokens:
        return index
    f, rest = divmod(v, g.height * g.width)
    return g.prefix + position(g, order, f, *divmod(rest, g.width))


def nearest_cell(index, new, old):
    """The one of `old` equal cells whose middle is nearest to the middle of cell `index` of `new`."""
    middle = (index + 0.5) / new
    return min(range(old), key=lambda cell: (round(abs((cell + 0.5) / old - middle), 12), -cell))


def nearest_token(old, new, index):
    v = index - new.prefix
    if v < 0:
        return nearest_cell(index, new.prefix, old.prefix) if old.prefix else None
    if v >= new.video_tokens:
        if not old.suffix:
            return None
        return old.prefix + old.video_tokens + nearest_cell(v - new.video_tokens, new.suffix, old.suffix)
    f, rest = divmod(v, new.height * new.width)
    r, c = divmod(rest, new.width)
    f, r, c = (
        nearest_cell(i, getattr(new, a), getattr(old, a))
        for i, a in ((f, "frames"), (r, "height"), (c, "width"))
    )
    return old.prefix + (f * old.height + r) * old.width + c


def kept_blocks(old, new, order, listed):
    tokens = {}
    for index in range(new.tokens):
        source = nearest_token(old, new, index)
        hit = source is not None and place(old, order, source) // old.block_k in listed
        tokens.setdefault(place(new, order, index) // new.block_k, []).append(hit)
    return tuple(block for block in sorted(tokens) if 2 * sum(tokens[block]) >= len(tokens[block]))


@given(st.data(), pairs())
@settings(max_examples=120, deadline=None)
def test_stripes_keep_their_place_in_the_picture(data, geometries):
    old, new = geometries
    order = data.draw(
        st.one_of(
            st.just(Order.frame_major()),
            st.just(Order.token_major()),
            st.builds(Order.tiles, sides, sides, sides),
        )
    )
    listed = data.draw(st.sets(st.integers(0, old.key_blocks - 1)))
    pattern = Pattern.vertical_stripe(key_blocks=sorted(listed), order=order)
    moved = transfer_pattern(pattern, old, new)
    assert moved.order == order
    assert moved.key_blocks == kept_blocks(old, new, order, listed)
    LayerPlan(new, [moved])


@given(st.integers(0, 3) | st.integers(0, 2000), pairs())
def test_bands_keep_their_reach(half_width, geometries):
    old, new = geometries
    for make, before, after in (
        (Pattern.diagonal, old.height * old.width, new.height * new.width),
        (Pattern.multi_diagonal, old.frames, new.frames),
    ):
        got = transfer_pattern(make(half_width=half_width), old, new).half_width
        exact = math.ceil(half_width * after / before - 1e-9)
        assert got >= exact
        assert (got + 1) % new.block_k == 0
        assert got - new.block_k < exact


@given(st.tuples(sides, st.integers(0, 12), st.none() | st.integers(1, 12)), pairs(), sides)
def test_boxes_keep_their_rhythm_in_the_row(window, geometries, side):
    old, new = geometries
    pattern = Pattern.periodic_tiles(tile=(1, 1, side), time=(2, 1, 3), space=window)
    moved = transfer_pattern(pattern, old, new)
    before, after = math.ceil(old.width / side), math.ceil(new.width / side)
    width, offset, period = window
    assert moved.tile == pattern.tile
    assert moved.time == pattern.time
    assert moved.space[0] == width
    assert moved.space[1] == (offset * after // before if offset % before == 0 else offset)
    if period is None:
        assert moved.space[2] is None
    else:
        assert moved.space[2] == (period * after // before if period % before == 0 else period)


def test_the_rest_stays():
    old, new = Geometry(4, 6, 6, block_k=16), Geometry(8, 9, 9, block_k=16)
    axes = Pattern.periodic_tiles(
        tile=(2, 2, 2), time=(1, 0, None), rows=(2, 3, 3), columns=(1, 3, None), sink_frames=2
    )
    for pattern in (Pattern.full(), Pattern.skip(), axes):
        assert transfer_pattern(pattern, old, new) == pattern
    parts = (Pattern.diagonal(half_width=36), Pattern.vertical_stripe(key_blocks=[0]))
    union = transfer_pattern(Pattern.union(*parts, sink_frames=1), old, new)
    assert union.parts == tuple(transfer_pattern(part, old, new) for part in parts)
    assert union.sink_frames == 1


def test_a_plan_is_carried_over_with_its_densities():
    old = Geometry(4, 8, 8, prefix=6, block_q=32, block_k=16)
    model = ModelIdentity("WanTransformer3DModel", 2, 2, 16)
    plan = SparsePlan.uniform(model, old, Pattern.diagonal(half_width=31, remainder=0.75), dense_above=0.9)
    moved = plan.for_geometry(Geometry(8, 16, 8, prefix=6))
    assert moved.geometry == Geometry(8, 16, 8, prefix=6, block_q=32, block_k=16), "block sizes stay"
    assert moved.patterns == (Pattern.diagonal(half_width=63),)
    assert (moved.betas == 0.75).all()
    assert moved.dense_above == 0.9
    note = moved.provenance["for_geometry"]
    assert note["density_before"] == pytest.approx(plan.density(), abs=1e-6)
    assert note["density_after"] == pytest.approx(moved.density(), abs=1e-6)
    assert note["from_sha256"] == plan.hash
    assert "not verified" in moved.summary()
    assert SparsePlan.from_json(moved.to_json()) == moved
    assert plan.for_geometry(old).choice.tolist() == plan.choice.tolist()


def test_patterns_that_become_equal_are_one():
    old = Geometry(4, 8, 8, block_q=16, block_k=16)
    from sparse_vdit.plan.transformer import TransformerPlan

    model = ModelIdentity("WanTransformer3DModel", 1, 2, 16)
    near = [Pattern.diagonal(half_width=20), Pattern.diagonal(half_width=30)]
    plan = SparsePlan(TransformerPlan(model, old, near, np.array([[[0, 1]]])))
    moved = plan.for_geometry(Geometry(4, 8, 8))
    assert moved.patterns == (Pattern.diagonal(half_width=31),)
    assert moved.choice.tolist() == [[[0, 0]]]


def test_what_cannot_be_carried_over_is_refused():
    old = Geometry(4, 8, 8, block_q=16, block_k=16)
    model = ModelIdentity("WanTransformer3DModel", 1, 1, 16)
    plan = SparsePlan.uniform(model, old, Pattern.diagonal(half_width=15, sink_frames=3))
    with pytest.raises(ValueError, match="sink_frames is 3"):
        plan.for_geometry(Geometry(2, 8, 8))
    with pytest.raises(TypeError, match="for_geometry: geometry is tuple, expected a Geometry"):
        plan.for_geometry((2, 8, 8))
    layer = LayerPlan.from_block_masks(old, [np.ones((16, 16), dtype=bool)])
    with pytest.raises(PlanError, match="it holds block masks"):
        SparsePlan.from_layers(model, [[layer]]).for_geometry(Geometry(2, 8, 8))
