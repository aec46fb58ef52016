"""Choosing by measured error: the table is what attention does, selections are what brute force finds."""

import itertools

import numpy as np
import pytest

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, SparsePlan, attention
from sparse_vdit import choose as choosing
from sparse_vdit.choose.candidates import box, top_stripe
from sparse_vdit.choose.controls import kept_blocks
from sparse_vdit.choose.rows import BETAS, CandidateRows, best_beta
from sparse_vdit.plan import ModelIdentity, PlanError
from sparse_vdit.presets import densities as measured_densities

GEOMETRY = Geometry(5, 6, 7, prefix=9, suffix=4, block_q=16, block_k=32)
MODEL = ModelIdentity("WanTransformer3DModel", 2, 2, 16)
CANDIDATES = [
    Pattern.skip(),
    Pattern.full(),
    Pattern.diagonal(half_width=0),
    Pattern.diagonal(half_width=40, sink_frames=1),
    Pattern.multi_diagonal(half_width=12),
    Pattern.vertical_stripe(key_blocks=[1, 4]),
    Pattern.vertical_stripe(key_blocks=[2], order=Order.tiles(2, 3, 3)),
    Pattern.periodic_tiles(tile=(2, 3, 3), time=(1, 0, None), space=(2, 1, 3)),
    Pattern.union(
        Pattern.multi_diagonal(half_width=5),
        Pattern.vertical_stripe(key_blocks=[3], order=Order.token_major()),
    ),
]


def tensors(seed, geometry=GEOMETRY, heads=2, depth=16, batch=1, sharpness=2.0):
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal((batch, heads, geometry.tokens, depth)).astype(np.float32) for _ in range(3)
    )
    return sharpness * q, k, v


def filled(rows=None, bins=(0.0, 0.5, 1.0), candidates=CANDIDATES):
    table = choosing.ErrorTable(MODEL, GEOMETRY, candidates, bins, rows=rows)
    for seed, (level, layer) in enumerate(itertools.product((0.2, 0.8), (0, 1))):
        table.add(level, layer, *tensors(seed))
    return table


def real_errors(pattern, q, k, v, rows=slice(None)):
    layer = LayerPlan(GEOMETRY, [pattern] * q.shape[1])
    dense = attention(q, k, v, layer=LayerPlan(GEOMETRY, [Pattern.full()] * q.shape[1])).astype(np.float64)
    got = attention(q, k, v, layer=layer).astype(np.float64)
    return np.square(got - dense)[..., rows, :].sum(axis=(0, 2, 3)), np.square(dense)[..., rows, :].sum(
        axis=(0, 2, 3)
    )


@pytest.mark.parametrize("rows", [None, 40])
@pytest.mark.parametrize("pattern", CANDIDATES, ids=lambda p: p.name)
def test_an_error_is_that_of_really_running_attention(pattern, rows):
    q, k, v = tensors(3)
    measure = CandidateRows(GEOMETRY, [pattern])
    picked = measure.sample(rows, (1,))
    for head in range(2):
        errors, energy, _ = measure.measure(q[0, head], k[0, head], v[0, head], picked, 0.25)
        for index in (0, 1, 17, 33, len(BETAS)):
            if index and not pattern.takes_remainder:
                continue
            beta = None if index == 0 else float(BETAS[index - 1])
            real, real_energy = real_errors(pattern.with_remainder(beta), q, k, v, picked)
            assert energy == pytest.approx(real_energy[head], rel=1e-5)
            assert errors[0, index] == pytest.approx(real[head], rel=2e-4, abs=1e-8 * energy), (index, beta)


def test_a_table_adds_up_samples_and_finds_the_best_bias():
    table = choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES, rows=None)
    parts = [tensors(seed, batch=2) for seed in (5, 6)]
    for q, k, v in parts:
        for layer in (0, 1):
            table.add(0.5, layer, q, k, v)
    plain, none = table.errors(remainder=False)
    fitted, betas = table.errors()
    assert np.isnan(none).all()
    for number, pattern in enumerate(CANDIDATES):
        sums = [real_errors(pattern, *part) for part in parts]
        expected = (sums[0][0] + sums[1][0]) / (sums[0][1] + sums[1][1])
        assert plain[0, 0, :, number] == pytest.approx(expected, rel=1e-3, abs=1e-8)
        for head in range(2):
            beta = betas[0, 1, head, number]
            if np.isnan(beta):
                assert fitted[0, 1, head, number] == plain[0, 1, head, number]
                continue
            sums = [real_errors(pattern.with_remainder(beta), *part) for part in parts]
            at_best = (sums[0][0][head] + sums[1][0][head]) / (sums[0][1][head] + sums[1][1][head])
            assert fitted[0, 1, head, number] == pytest.approx(at_best, rel=2e-3)
            for off in (-0.2, 0.2):
                sums = [real_errors(pattern.with_remainder(beta + off), *part) for part in parts]
                beside = (sums[0][0][head] + sums[1][0][head]) / (sums[0][1][head] + sums[1][1][head])
                assert beside >= at_best * (1 - 1e-4)
    assert not np.isnan(betas[0, 0, 0, 2])
    assert np.isnan(betas[..., 0]).all()
    assert np.isnan(betas[..., 1]).all()


def test_sampled_rows_estimate_the_whole():
    whole, sampled = filled(None), filled(64)
    a, b = whole.errors()[0], sampled.errors()[0]
    real = a > 1e-6
    assert np.median(np.abs(np.log(b[real] / a[real]))) < 0.25
    assert (b[..., 1] < 1e-9).all(), "full is exact"
    assert b[..., 0] == pytest.approx(1), "skip loses everything"


def test_a_ceiling_picks_the_least_error_of_each_head():
    table = filled()
    errors, betas = table.errors()
    plan = table.select(max_density=0.6)
    for cell in np.ndindex(errors.shape[:3]):
        allowed = [n for n in range(len(CANDIDATES)) if table.density[n] <= 0.6]
        best = min(allowed, key=lambda n: errors[cell][n])
        assert plan.patterns[plan.choice[cell]] == CANDIDATES[best]
        expected = betas[cell][best]
        assert np.isnan(plan.betas[cell]) == np.isnan(expected)
        if not np.isnan(expected):
            assert plan.betas[cell] == expected
    assert plan.for_transformer().densities().max() <= 0.6
    assert table.mean_error(plan) == pytest.approx(plan.provenance["mean_relative_error"])


def test_a_budget_is_the_optimum_of_brute_force():
    model = ModelIdentity("WanTransformer3DModel", 1, 4, 16)
    rng = np.random.default_rng(0)
    table = choosing.ErrorTable(model, GEOMETRY, CANDIDATES, rows=None)
    q, k, v = tensors(9, heads=4)
    q *= np.array([0.2, 1, 2, 4], np.float32)[:, None, None]
    table.add(0.5, 0, q, k, v)
    cost, density = table.errors()[0][0, 0], table.density
    for budget in (0.3, 0.45, 0.6, 0.8):
        plan = table.select(mean_density=budget)
        assert plan.density() <= budget + 1e-9
        reached = table.mean_error(plan) * 4
        options = itertools.product(range(len(CANDIDATES)), repeat=4)
        best = min(
            sum(cost[h, n] for h, n in enumerate(o))
            for o in options
            if sum(density[n] for n in o) <= 4 * budget + 1e-9
        )
        exact = plan.density() * 4
        same = min(
            sum(cost[h, n] for h, n in enumerate(o))
            for o in itertools.product(range(len(CANDIDATES)), repeat=4)
            if sum(density[n] for n in o) <= exact + 1e-9
        )
        assert reached <= best + cost.max(), "never worse than one step of one head"
        assert reached <= same * 1.35 + 1e-6, "near the optimum at the density reached"
    assert rng is not None


def test_hull_choices_beat_every_single_pattern():
    table = filled()
    for number, pattern in enumerate(CANDIDATES):
        if 0 < table.density[number] < 1:
            plan = table.select(mean_density=float(table.density[number]))
            alone = table.errors()[0][..., number].mean()
            assert table.mean_error(plan) <= alone + 1e-9, pattern.name


def test_weights_move_the_budget():
    table = filled()
    weights = np.ones((1, 2, 1))
    weights[0, 1] = 1e6
    plan = table.select(mean_density=0.5, weights=weights)
    densities = plan.for_transformer().densities()
    assert densities[:, 1].mean() > densities[:, 0].mean()
    for bad in (-1, np.inf):
        with pytest.raises(ValueError, match="weights holds a negative or infinite number"):
            table.select(mean_density=0.5, weights=bad)


def test_uniform_is_the_best_single_pattern():
    table = filled()
    errors, betas = table.errors()
    plan = table.uniform(0.6)
    allowed = [n for n, p in enumerate(CANDIDATES) if table.density[n] <= 0.6 * 1.05 and p.kind != "skip"]
    best = min(allowed, key=lambda n: errors[..., n].sum())
    assert plan.patterns == (CANDIDATES[best],)
    assert np.array_equal(plan.betas, betas[..., best], equal_nan=True)
    with pytest.raises(PlanError, match="no candidate but skip has a density of at most"):
        table.uniform(1e-6)


def test_permuted_heads_are_the_same_heads_elsewhere():
    plan = filled().select(max_density=0.6)
    moved = choosing.permute(plan, 1)
    assert moved.density() == pytest.approx(plan.density())
    assert moved == choosing.permute(plan, 1)
    for bin_ in range(2):
        before = sorted(zip(plan.choice[bin_].ravel(), plan.betas[bin_].ravel(), strict=True))
        after = sorted(zip(moved.choice[bin_].ravel(), moved.betas[bin_].ravel(), strict=True))
        assert repr(before) == repr(after)
    orders = {tuple(choosing.permute(plan, seed).betas.ravel()) for seed in range(20)}
    assert len(orders) > 5
    again = filled().refit(moved)
    assert (again.choice[0] == again.choice[0]).all()
    assert [p.kind for p in again.patterns] == sorted(
        [p.kind for p in again.patterns], key=[p.kind for p in CANDIDATES].index
    )


def test_random_masks_have_the_density_and_keep_what_every_pattern_keeps():
    plan = filled().select(
        max_density=0.6, kinds=["diagonal", "multi_diagonal", "periodic_tiles", "vertical_stripe"]
    )
    control = choosing.random_masks(plan, 3)
    fixed = kept_blocks(GEOMETRY)
    full_rows = LayerPlan(GEOMETRY, [Pattern.diagonal(half_width=0)]).block_mask(0)
    assert (fixed == full_rows).all(), "the own block and other tokens"
    for bin_, layer, head in np.ndindex(plan.choice.shape):
        mask = control.layer(bin_, layer).block_mask(head)
        source = plan.layer(bin_, layer).block_mask(head)
        assert (mask.sum(axis=1) == source.sum(axis=1)).all()
        enough = source.sum(axis=1) >= fixed.sum(axis=1)
        assert (mask | ~fixed)[enough].all()
        assert control.layer(bin_, layer).remainders[head] == plan.layer(bin_, layer).remainders[head]
    assert control.density() == pytest.approx(plan.density(), abs=0.02)
    assert control.hash != choosing.random_masks(plan, 4).hash
    assert control.packed(0).items.shape[0] == 2


def test_the_ladder_has_every_family_at_every_density():
    geometry = Geometry(16, 16, 16, prefix=8, block_q=64, block_k=64)
    found = choosing.ladder(geometry)
    assert 15 <= len(found) <= 30
    assert len(set(found)) == len(found)
    assert {p.kind for p in found} == {
        "full", "skip", "diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles", "union",
    }  # fmt: skip
    densities = measured_densities(geometry, found)
    assert densities == sorted(densities)
    for target in choosing.DENSITIES[1:]:
        near = [p.kind for p, d in zip(found, densities, strict=True) if abs(d - target) < 0.035]
        assert {"diagonal", "multi_diagonal", "vertical_stripe", "periodic_tiles", "union"} <= set(near), (
            target
        )
    mass = np.zeros(geometry.key_blocks)
    mass[[3, 9, 60]] = (3, 2, 1)
    assert top_stripe(geometry, mass, 3 / 65).key_blocks == (3, 9, 60)
    assert len(choosing.ladder(geometry, (0.2,), mass=mass)) == len(choosing.ladder(geometry, (0.2,))) + 1


def test_boxes_hold_about_a_block():
    assert box(Geometry(16, 16, 16, block_k=64)) == (4, 4, 4)
    assert np.prod(box(Geometry(33, 45, 80))) == 128
    assert box(Geometry(1, 2, 2)) == (1, 2, 2)


def test_attention_mass_is_where_attention_looks():
    table = choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES, rows=None)
    q, k, v = tensors(2, sharpness=1.0)
    q[:] = 4
    k[:, :, 64:96] += 1
    for layer in (0, 1):
        table.add(0.1, layer, q, k, v)
    assert table.mass.sum() == pytest.approx(1)
    assert table.mass.argmax() == 2


def test_the_parabola_finds_the_lowest_point():
    for lowest in (-3.11, -0.4, 0.03, 1.7, 3.9):
        curve = np.square(BETAS - lowest) + 0.5
        beta, error = best_beta(curve)
        assert beta == pytest.approx(lowest, abs=1e-3)
        assert error == pytest.approx(0.5)
    assert best_beta(BETAS + 5.0)[0] == -4
    assert best_beta(np.zeros(len(BETAS)))[1] == 0


def test_logits_that_overflow_a_float_are_no_trouble():
    measure = CandidateRows(GEOMETRY, CANDIDATES)
    q, k, v = tensors(4, sharpness=400.0)
    errors, energy, mass = measure.measure(q[0, 0], k[0, 0], v[0, 0], measure.sample(32, (0,)), 1.0)
    assert np.isfinite(energy)
    assert np.isfinite(mass).all()
    assert not np.isnan(errors).any()
    table = choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES)
    for layer in (0, 1):
        table.add(0.5, layer, q, k, v)
    assert table.select(max_density=1.0).families() == {"full": 4}
    table.select(mean_density=0.5)


def test_torch_tensors_are_read_like_arrays():
    torch = pytest.importorskip("torch")
    a, b = choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES), choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES)
    q, k, v = tensors(1)
    for layer in (0, 1):
        a.add(0.3, layer, q, k, v)
        b.add(
            0.3, layer, *(torch.from_numpy(x).transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        )
    assert (a.errors()[0] == b.errors()[0]).all()


def test_choose_is_the_short_way():
    samples = [(0.4, layer, *tensors(layer)) for layer in (0, 1)]
    plan = choosing.choose(MODEL, GEOMETRY, CANDIDATES, samples, max_density=0.6, dense_above=0.9)
    assert isinstance(plan, SparsePlan)
    assert plan.dense_above == 0.9
    assert plan.provenance["made_by"] == "choose.select"
    assert plan == SparsePlan.from_json(plan.to_json())


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda t: t.add(0.5, 2, *tensors(0)), r"layer is 2, expected 0..1"),
        (lambda t: t.add(1.5, 0, *tensors(0)), r"the noise level is 1.5"),
        (
            lambda t: t.add(0.5, 0, *tensors(0, heads=3)),
            r"q.shape is \(1, 3, 223, 16\), expected \(batch, \*\(2, 223, 16\)\)",
        ),
        (lambda t: t.add(0.5, 0, *tensors(0), scale=float("nan")), "choose: scale is nan"),
        (
            lambda t: filled().select(mean_density=float("nan")),
            "choose: mean_density is nan, expected a finite",
        ),
        (
            lambda t: filled().select(max_density=float("nan")),
            "choose: max_density is nan, expected a finite",
        ),
        (lambda t: filled().uniform(float("inf")), "choose: density is inf, expected a finite"),
        (lambda t: t.select(max_density=0.5), "bin 0, layer 0 was never measured"),
        (lambda t: choosing.ErrorTable(MODEL, GEOMETRY, []), "there are 0 candidates"),
        (
            lambda t: choosing.ErrorTable(MODEL, GEOMETRY, [Pattern.diagonal(half_width=1, remainder=0.0)]),
            "a candidate has a remainder",
        ),
        (lambda t: filled().select(max_density=-1.0), "no candidate has a density of at most -1.0"),
        (lambda t: filled().select(mean_density=-0.1), "mean_density is -0.1, expected at least 0.0000"),
        (
            lambda t: t.refit(SparsePlan.uniform(MODEL, GEOMETRY, Pattern.diagonal(half_width=77))),
            "expected candidates",
        ),
    ],
)
def test_refusals_are_sentences(act, sentence):
    with pytest.raises(ValueError, match=sentence):
        act(choosing.ErrorTable(MODEL, GEOMETRY, CANDIDATES))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_sample_with_nan_is_refused_and_leaves_no_trace(name):
    table = filled()
    before = table.errors()
    given = dict(zip("qkv", tensors(3), strict=True))
    given[name][0, 1, 5:] = np.nan
    with pytest.raises(
        ValueError, match="choose: attention of layer 1, head 1 is not finite, expected finite"
    ):
        table.add(0.5, 1, **given)
    for got, expected in zip(table.errors(), before, strict=True):
        np.testing.assert_array_equal(got, expected)
