"""Presets: published widths, measured densities, the right rules."""

import itertools
import math

import pytest

from sparse_vdit import Geometry, LayerPlan, Order, Pattern
from sparse_vdit.presets import paper, radial, sliding_tiles, spread_blocks, svg

COG = Geometry(11, 48, 85, prefix=226)
HUNYUAN = Geometry(33, 45, 80, suffix=256)
WAN = Geometry(21, 30, 52)
SMALL = Geometry(16, 16, 16, prefix=8, block_q=64, block_k=64)


@pytest.mark.parametrize(("geometry", "blocks", "density"), [(COG, 45, 0.251), (HUNYUAN, 122, 0.251)])
def test_svg_has_the_published_widths(geometry, blocks, density):
    spatial, temporal = svg(geometry, 0.25)
    assert spatial == Pattern.diagonal(half_width=128 * blocks - 1)
    assert temporal == Pattern.multi_diagonal(half_width=128 * blocks - 1)
    for pattern in (spatial, temporal):
        assert LayerPlan(geometry, [pattern]).density() == pytest.approx(density, abs=0.005)


@pytest.mark.parametrize("geometry", [COG, WAN, SMALL])
@pytest.mark.parametrize("density", [0.15, 0.25, 0.5])
def test_paper_has_five_modes_of_the_density_asked_for(geometry, density):
    modes = paper(geometry, density)
    assert [mode.kind for mode in modes] == ["full", "skip", "diagonal", "multi_diagonal", "vertical_stripe"]
    layer = LayerPlan(geometry, modes)
    assert [layer.density(head) for head in (0, 1)] == [1, 0]
    for head in (2, 3, 4):
        assert layer.density(head) == pytest.approx(density, abs=0.6 * 2 / geometry.key_blocks + 1e-3)


def test_sliding_tiles_look_at_neighbouring_boxes():
    (pattern,) = sliding_tiles(SMALL, (4, 4, 4), (3, 1, 5))
    assert pattern.tile == (4, 4, 4)
    assert (pattern.time, pattern.rows, pattern.columns) == ((2, 0, None), (1, 0, None), (3, 0, None))
    with pytest.raises(ValueError, match="an entry of window is 0"):
        sliding_tiles(SMALL, (4, 4, 4), (0, 1, 1))


def test_radial_narrows_with_the_distance_in_time():
    (pattern,) = radial(SMALL, (2, 4, 4), 6)
    assert [part.time for part in pattern.parts] == [(1, d, None) for d in range(8)]
    widths = [max(1, 6 >> math.floor(math.log2(max(d, 1)))) for d in range(8)]
    assert [part.space for part in pattern.parts] == [(w, 0, None) for w in widths]
    assert widths[2] == 3
    with pytest.raises(ValueError, match="there are 70 frames of boxes, expected at most 64"):
        radial(Geometry(70, 4, 4), (1, 2, 2), 2)


def test_spread_blocks_are_even():
    assert spread_blocks(SMALL, 4) == (8, 24, 40, 56)
    for count in range(1, SMALL.key_blocks + 1):
        blocks = spread_blocks(SMALL, count)
        assert len(blocks) == count
        gaps = [b - a for a, b in itertools.pairwise(blocks)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("make", [svg, paper])
@pytest.mark.parametrize(
    ("density", "error"), [(0, ValueError), (1.5, ValueError), ("0.2", TypeError), (True, TypeError)]
)
def test_a_density_is_a_share(make, density, error):
    with pytest.raises(error, match="density is"):
        make(SMALL, density)


def test_svg_refuses_a_density_that_the_other_tokens_use_up():
    with pytest.raises(ValueError, match=r"svg: density is 0.1, expected more than 0.3333"):
        svg(Geometry(4, 5, 5, prefix=20), 0.1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: svg((1, 2), 0.2), "svg: geometry is tuple, expected a Geometry"),
        (lambda: paper(None, 0.2), "paper: geometry is NoneType, expected a Geometry"),
        (lambda: radial(SMALL, 4, 2), "radial: tile is int, expected three sides"),
        (lambda: sliding_tiles(SMALL, (2, 2, 2), 3), "sliding_tiles: window is int, expected three counts"),
    ],
)
def test_what_is_no_geometry_tile_or_window_is_named(make, sentence):
    with pytest.raises(TypeError, match=sentence):
        make()


def test_presets_are_patterns_of_any_geometry():
    for pattern in (*svg(WAN, 0.2), *radial(WAN, (3, 6, 13), 2), *sliding_tiles(WAN, (3, 6, 13), (3, 3, 3))):
        assert 0 < LayerPlan(WAN, [pattern]).density() < 1
        assert pattern.order in (Order.frame_major(), Order.token_major(), Order.tiles(3, 6, 13))
