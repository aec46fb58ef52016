"""The recorder against slow truths, on real small pipelines: brute force, Algorithm 1 by hand, kills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from kit import masks, tiny  # noqa: E402
from kit.stock import geometry_of  # noqa: E402

import sparse_vdit  # noqa: E402
from sparse_vdit import Geometry, Pattern  # noqa: E402
from sparse_vdit.plan import ModelIdentity  # noqa: E402
from sparse_vdit.search import (  # noqa: E402
    Candidates,
    HeadErrors,
    Recorder,
    Sample,
    models_of,
    record,
)
from sparse_vdit.search import recorder as recorder_module  # noqa: E402
from sparse_vdit.search.probe import BETAS, output_factors  # noqa: E402
from sparse_vdit.search.schedule import Schedule  # noqa: E402

pytestmark = pytest.mark.models
BINS = (0.0, 0.8, 0.95, 1.0)


def candidates_of(small: tiny.Tiny, mass: tuple[int, ...] = (1, 2)) -> Candidates:
    patterns = (
        Pattern.full(),
        Pattern.skip(),
        Pattern.diagonal(half_width=0),
        Pattern.multi_diagonal(half_width=3),
        Pattern.vertical_stripe(key_blocks=[1]),
    )
    return Candidates(geometry_of(small), patterns, mass)


def recorded(
    small: tiny.Tiny, out: Path, seeds: tuple[int, ...] = (0, 1), **options: Any
) -> dict[str, HeadErrors]:
    """All samples through `record`, without a bar."""
    settings = options.pop("settings", None)
    options = {"rows": 24, "power": 1, "bins": BINS} | options
    made = Recorder(models_of(small.pipe), options.pop("candidates", candidates_of(small)), **options)
    return record(
        small.pipe,
        [Sample(f"prompt {seed}", seed) for seed in seeds],
        out,
        recorder=made,
        observe=sparse_vdit.observe,
        settings=settings,
        generate=lambda pipe, sample: small.run(seed=sample.seed),
        progress=False,
    )


def generate(small: tiny.Tiny, recorder: Recorder, prompt: int = 0, seed: int = 0) -> Any:
    """One generation under the recorder."""
    with sparse_vdit.observe(small.pipe, recorder), recorder.watching(small.pipe), recorder.prompt(prompt):
        return small.run(seed=seed)


Call = tuple[int, float, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def captured(small: tiny.Tiny, seed: int) -> Iterator[Call]:
    """Every attention call of a dense generation."""
    calls: list[Call] = []

    def note(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> None:
        length = None if dense.kv_len is None else dense.kv_len.numpy()
        calls.append((step, level, layer, *(x.double().numpy() for x in (q, k, v)), length))

    with sparse_vdit.observe(small.pipe, note):
        small.run(seed=seed)
    yield from calls


def slow(geometry: Geometry, pattern: Pattern, call: Call, sample: int, head: int) -> np.ndarray:
    """One head's output in float64, from masks written from the definitions."""
    q, k, v = (array[sample, head] for array in call[3:6])
    cover, place = masks.block_cover(geometry, pattern), masks.places(geometry, pattern.order)
    length = None if call[6] is None else int(call[6][sample])
    return masks.attention(q, k, v, geometry, cover, place, q.shape[-1] ** -0.5, length, pattern.remainder)[0]


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "wan"])
def test_sums_are_those_of_running_every_candidate(name: str, tmp_path: Path) -> None:
    """All rows: then nothing is sampled. A batch of two, two calls, padded text: all are added."""
    small = tiny.FAMILIES[name](**({"batch": 2} if name == "hunyuan_video" else {"layers": 1}))
    geometry, candidates = geometry_of(small), candidates_of(small)
    errors = recorded(small, tmp_path / "e.safetensors", (3,), rows=10**6, power=0)["transformer"]
    assert errors.rows == geometry.tokens
    energy = np.zeros(errors.shape)
    plain = np.zeros((*errors.shape, candidates.count))
    zero = np.zeros_like(plain)
    calls = np.zeros(errors.shape[:2], int)
    at_zero = int(np.argmin(np.abs(BETAS)))
    assert BETAS[at_zero] == 0
    looked_at = [0] if name == "hunyuan_video" else list(range(errors.model.layers))
    for call in captured(small, 3):
        _, level, layer, q = call[:4]
        bin_ = next(n for n in range(len(errors.bins) - 1) if level <= errors.bins[n + 1])
        calls[bin_, layer] += len(q)
        if layer not in looked_at:
            continue
        for sample, head in np.ndindex(q.shape[:2]):
            full = slow(geometry, Pattern.full(), call, sample, head)
            energy[bin_, layer, head] += (full**2).sum()
            for number in range(candidates.count):
                pattern = candidates.pattern(number, errors.stripes[bin_, layer, head])
                out = slow(geometry, pattern, call, sample, head)
                plain[bin_, layer, head, number] += ((out - full) ** 2).sum()
                if pattern.takes_remainder:
                    out = slow(geometry, pattern.with_remainder(0.0), call, sample, head)
                    zero[bin_, layer, head, number] += ((out - full) ** 2).sum()
    assert (errors.calls == calls).all()
    ours = [array[:, looked_at] for array in (errors.energy, errors.plain, errors.curve)]
    energy, plain, zero = (array[:, looked_at] for array in (energy, plain, zero))
    assert ours[0] == pytest.approx(energy, rel=1e-5)
    small_number, takes = 1e-9 * energy.max(), candidates.takes_remainder
    assert ours[1] == pytest.approx(plain, rel=1e-4, abs=small_number)
    assert ours[2][..., takes, at_zero] == pytest.approx(zero[..., takes], rel=1e-4, abs=small_number)


def test_errors_behind_the_output_projection(tmp_path: Path) -> None:
    small = tiny.wan(layers=2)
    weights = [block.attn1.to_out[0].weight for block in small.pipe.transformer.blocks]
    projections = {"transformer": np.stack([output_factors(weight, 2) for weight in weights])}
    options = {"rows": 10**6, "power": 0, "candidates": candidates_of(small, ())}
    errors = recorded(small, tmp_path / "e.safetensors", (3,), projections=projections, **options)[
        "transformer"
    ]
    assert errors.measure == "projected"
    geometry, pattern = geometry_of(small), Pattern.diagonal(half_width=0)
    number = errors.candidates.patterns.index(pattern)
    wanted = np.zeros(errors.shape)
    for call in captured(small, 3):
        bin_ = next(n for n in range(len(errors.bins) - 1) if call[1] <= errors.bins[n + 1])
        for head in range(2):
            wrong = slow(geometry, pattern, call, 0, head) - slow(geometry, Pattern.full(), call, 0, head)
            slice_ = weights[call[2]].detach().double().numpy()[:, 64 * head : 64 * (head + 1)]
            wanted[bin_, call[2], head] += ((wrong @ slice_.T) ** 2).sum()
    assert errors.plain[..., number] == pytest.approx(wanted, rel=1e-4)


def test_following_the_choice_is_algorithm_1(tmp_path: Path) -> None:
    """By hand: Eq. 2 and 3 over all rows of every step and layer, and the mixed output handed on."""
    small = tiny.wan(layers=2)
    small.inputs["guidance_scale"] = 1.0  # one call a step: then the trajectory is that of the choices alone
    geometry, candidates = geometry_of(small), candidates_of(small, ())
    penalty, threshold = 0.036, 0.0335
    sparsities = [
        1 - masks.density(geometry, masks.block_cover(geometry, pattern)) for pattern in candidates.patterns
    ]
    made = np.full((small.steps, 2, 2), -1)
    squares: dict[tuple[int, int, int], float] = {}

    def algorithm(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        call: Call = (step, level, layer, *(x.double().numpy() for x in (q, k, v)), None)
        out = np.zeros(q.shape, np.float32)
        for head in range(2):
            outs = [slow(geometry, pattern, call, 0, head) for pattern in candidates.patterns]
            losses = [
                ((found - outs[candidates.full]) ** 2).mean() + penalty * (1 - sparsity)
                for found, sparsity in zip(outs, sparsities, strict=True)
            ]
            losses[candidates.full] = np.inf
            best = int(np.argmin(losses)) if min(losses) <= threshold else candidates.full
            made[step, layer, head] = best
            out[0, head] = outs[best]
            squares[step, layer, head] = ((outs[best] - outs[candidates.full]) ** 2).sum()
        return torch.from_numpy(out)

    with sparse_vdit.observe(small.pipe, algorithm):
        wanted = small.run(seed=5)
    assert len(np.unique(made)) >= 3, "a test that always takes the same choice shows little"
    assert candidates.full in made

    options = {"follow": "choice", "penalty": penalty, "threshold": threshold, "rows": 10**6}
    recorder = Recorder(models_of(small.pipe), candidates, BINS, **options)
    latents = generate(small, recorder, seed=5)
    assert torch.allclose(latents, wanted, atol=1e-4)
    assert not torch.allclose(latents, small.run(seed=5), atol=1e-3), "the mixed output was handed on"
    errors = recorder.errors()["transformer"]
    for (step, layer, head), square in squares.items():
        bin_ = [2, 0][step]  # noise 1.0 and 0.05
        found = errors.plain[bin_, layer, head, made[step, layer, head]]
        assert found == pytest.approx(square, rel=1e-3, abs=1e-6)


def test_the_choice_is_among_the_modes_asked_for() -> None:
    small = tiny.wan(layers=2)
    candidates = candidates_of(small, ())
    about: dict[str, Any] = {"follow": "choice", "penalty": 0.02, "threshold": 0.03}

    def chosen(among: tuple[int, ...] | None) -> set[int]:
        recorder = Recorder(models_of(small.pipe), candidates, BINS, among=among, **about)
        assert recorder.describe()["choosing"] == [0.02, 0.03, among]
        decides, decided = recorder._decide, []
        recorder._decide = lambda *given: decided.append(decides(*given)) or decided[-1]  # type: ignore[method-assign,func-returns-value]
        generate(small, recorder)
        return set(np.unique(decided).tolist())

    free = chosen(None) - {candidates.full}
    left_out = min(free)
    rest = tuple(n for n in range(len(candidates.patterns)) if n not in (left_out, candidates.full))
    assert left_out not in chosen(rest)
    assert chosen(rest) <= {*rest, candidates.full}
    with pytest.raises(ValueError, match="recorder: a number in among is 999, expected 0"):
        Recorder(models_of(small.pipe), candidates, follow="choice", among=[999])


def test_both_guidance_calls_take_one_choice() -> None:
    small = tiny.wan(layers=2)
    recorder = Recorder(
        models_of(small.pipe), candidates_of(small, ()), BINS, follow="choice", threshold=0.03
    )
    decided: list[Any] = []
    chooses, mixes = recorder._decide, recorder._mixed

    def decide(*arguments: Any) -> Any:
        decided.append("decided")
        return chooses(*arguments)

    def mix(choice: Any, *arguments: Any) -> Any:
        decided.append(choice.tolist())
        return mixes(choice, *arguments)

    recorder._decide, recorder._mixed = decide, mix  # type: ignore[method-assign]
    generate(small, recorder)
    assert decided.count("decided") == 2 * small.steps
    for step in range(small.steps):
        calls = decided[6 * step : 6 * step + 6]  # conditional, then unconditional
        assert calls[0] == calls[2] == "decided"
        assert (calls[1], calls[3]) == (calls[4], calls[5])


def test_both_experts_are_recorded(tmp_path: Path) -> None:
    small = tiny.wan(2, layers=2)
    errors = recorded(small, tmp_path / "e.safetensors", bins=(0.0, 0.7, 0.95, 1.0))
    assert list(errors) == ["transformer", "transformer_2"]
    steps = {name: int(part.calls[:, 0].sum()) for name, part in errors.items()}
    assert steps == {"transformer": 2 * 2 * 2, "transformer_2": 2 * 2 * 2}, (
        "2 steps, 2 branches, 2 prompts each"
    )
    assert errors["transformer"].bins[-1] == 1
    assert errors["transformer_2"].calls.shape[0] > 1, "its two steps lie in two bins"
    for part in errors.values():
        part.options()
        assert np.isfinite(part.weights("sensitivity")).all()
    assert HeadErrors.load(tmp_path / "e.safetensors", "transformer_2").provenance["samples"][1]["seed"] == 1


def test_power_is_the_gradient_at_the_middle_step_of_each_bin(tmp_path: Path) -> None:
    """Once more by hand: the output of every layer kept by an observer, the same direction drawn."""
    small = tiny.wan(layers=2)
    small.steps = 4
    bins = (0.0, 0.99, 1.0)
    recorder = Recorder(models_of(small.pipe), candidates_of(small), bins, rows=8, power=2)
    generate(small, recorder)
    errors = recorder.errors()["transformer"]
    assert errors.probes.tolist() == [2, 2]
    generate(small, recorder, prompt=1)
    assert recorder.errors()["transformer"].power is None, "the first prompt alone pays for it"
    kept: list[Any] = []
    middle = recorder.schedule.middle(bins, 0, None)
    seen: list[dict[str, Any]] = []
    hook = small.pipe.transformer.register_forward_pre_hook(
        lambda module, _, named: seen.append(named), with_kwargs=True
    )
    small.run()
    hook.remove()
    arguments = seen[2 * middle] | {"return_dict": False}

    def keep(*call: Any) -> Any:
        out = call[-1]()
        kept.append(out if out.requires_grad else out.detach().requires_grad_())
        return kept[-1]

    with sparse_vdit.observe(small.pipe, keep), torch.enable_grad():
        output = small.pipe.transformer(**arguments)[0]
    generator = torch.Generator().manual_seed(recorder_module.seed_of(0, 0, middle, 2, 0))
    wanted = np.zeros((2, 2))
    for _ in range(2):
        direction = torch.randn(output.shape, generator=generator)
        for layer, gradient in enumerate(torch.autograd.grad(output, kept, direction, retain_graph=True)):
            wanted[layer] += gradient.square().sum(-1).mean(dim=(0, 2)).numpy() / 2
    assert errors.power[0] == pytest.approx(wanted, rel=1e-5)


def test_power_is_measured_in_some_bins_and_weighs_all() -> None:
    small = tiny.wan(layers=2)
    small.steps = 6
    bins = (0.0, 0.9, 0.95, 0.98, 1.0)
    full = Recorder(models_of(small.pipe), candidates_of(small), bins, rows=8, power=1, power_bins=4)
    generate(small, full)
    held = full.errors()["transformer"].probes > 0
    assert held.sum() > 2
    recorder = Recorder(models_of(small.pipe), candidates_of(small), bins, rows=8, power=1, power_bins=2)
    generate(small, recorder)
    errors = recorder.errors()["transformer"]
    assert np.flatnonzero(errors.probes).tolist() == np.flatnonzero(held)[[0, -1]].tolist()
    weights = errors.without_empty_bins().weights("sensitivity")
    assert (weights > 0).all()
    assert weights.mean(axis=(1, 2)) == pytest.approx(1)


def test_measuring_disturbs_nothing() -> None:
    small = tiny.wan(2, layers=2)
    stock = small.run()
    recorder = Recorder(models_of(small.pipe), candidates_of(small), rows=8, power=1)
    assert torch.equal(generate(small, recorder), stock)
    assert torch.equal(small.run(), stock)
    assert not small.pipe.transformer._forward_hooks
    assert not small.pipe.transformer._forward_pre_hooks


def test_rows_depend_on_seed_prompt_step_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny.wan(layers=2)
    real = recorder_module.sample_rows

    def run(seed: int, prompt: int) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        recorder = Recorder(models_of(small.pipe), candidates_of(small, ()), rows=8, seed=seed)

        def sample(*arguments: Any) -> Any:
            found.append(tuple(real(*arguments).tolist()))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(recorder_module, "sample_rows", sample)
            generate(small, recorder, prompt)
        return found

    drawn = run(0, 0)
    assert run(0, 0) == drawn
    for other in (run(1, 0), run(0, 1)):
        assert not set(other) & set(drawn)
    steps = [drawn[4 * step : 4 * step + 4] for step in range(2)]
    assert all(calls[:2] == calls[2:] for calls in steps), "both guidance calls see the same rows"
    assert len(set(drawn)) == 4, "every step and layer its own"


def test_listening_spreads_over_every_bin(tmp_path: Path) -> None:
    small = tiny.wan(layers=2)
    small.steps = 8
    errors = recorded(small, tmp_path / "e.safetensors", (0,), listen=2, power=0)["transformer"]
    assert (errors.calls <= 2 * 2).all()
    assert errors.calls.sum() > 4 * 2
    schedule = Schedule(tuple(np.linspace(1, 0.1, 10)))
    assert schedule.listened((0.0, 0.5, 1.0), None) == frozenset(range(10))
    assert sorted(schedule.listened((0.0, 0.5, 1.0), 2)) == [1, 4, 7, 9]
    assert schedule.steps_of((0.0, 0.5, 1.0), 1) == [0, 1, 2, 3, 4, 5]
    assert schedule.middle((0.0, 0.5, 1.0), 0, 1) == 8
    assert schedule.middle((0.0, 0.05, 1.0), 0, 1) is None
    edges = (0.0, 0.05, 0.3, 0.5, 0.7, 0.9, 1.0)
    assert [schedule.felt(edges, count, None) for count in (1, 2, 3, 9)] == [
        [3], [1, 5], [1, 3, 5], [1, 2, 3, 4, 5],
    ], "the lowest bin holds no step"  # fmt: skip


@pytest.mark.parametrize(("poison", "head"), [("q", 1), ("k", 0), ("v", 1)])
def test_attention_that_is_not_finite(poison: str, head: int, tmp_path: Path) -> None:
    small = tiny.wan(layers=2)
    recorder = Recorder(models_of(small.pipe), candidates_of(small), rows=4)
    calls = []

    def poisoned(step: int, level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        calls.append(layer)
        if step == 1 and layer == 1:
            {"q": q, "k": k, "v": v}[poison][0, head, 30, 5] = float("nan")
        return recorder(step, level, layer, q, k, v, dense)

    sentence = f"recorder: attention of step 1, layer 1, head {head} is not finite, expected finite q, k, v"
    with (
        sparse_vdit.observe(small.pipe, poisoned),
        recorder.watching(small.pipe),
        pytest.raises(ValueError, match=sentence),
        recorder.prompt(0),
    ):
        small.run()


def test_moments_and_options_that_are_refused(tmp_path: Path) -> None:
    small = tiny.wan(layers=2)
    candidates = candidates_of(small)
    models = models_of(small.pipe)

    def refused(sentence: str, **options: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=sentence):
            Recorder(models, **({"candidates": candidates} | options))

    refused("recorder: follow is 'cheap', expected one of dense, choice", follow="cheap")
    refused("recorder: listen is 2 with follow='choice', expected None", follow="choice", listen=2)
    refused("recorder: rows is 0, expected 1", rows=0)
    refused("recorder: candidates is list, expected Candidates", candidates=[])
    refused(
        r"recorder: stripes of transformer have shape \(1,\)", stripes={"transformer": np.zeros(1, np.int32)}
    )
    with pytest.raises(ValueError, match="record: there are 0 samples, expected 1"):
        recorded(small, tmp_path / "e", ())
    recorder = Recorder(models, candidates)
    with sparse_vdit.observe(small.pipe, recorder):
        with pytest.raises(ValueError, match="recorder: attention is called outside a prompt"):
            small.run()
        with recorder.prompt(0):
            small.run()
            with pytest.raises(ValueError, match="step 0 comes after step 1 of prompt 0"):
                small.run()
        with recorder.prompt(1), pytest.raises(ValueError, match="prompt 2 begins inside prompt 1"):
            recorder.prompt(2).__enter__()
    two = Recorder({"transformer": models["transformer"], "transformer_2": models["transformer"]}, candidates)
    with (
        sparse_vdit.observe(small.pipe, two),
        two.prompt(0),
        pytest.raises(ValueError, match="does not know which of transformer, transformer_2 attends"),
    ):
        small.run()
    other = Recorder(ModelIdentity("WanTransformer3DModel", 2, 4, 32), candidates)
    with (
        sparse_vdit.observe(small.pipe, other),
        other.prompt(0),
        pytest.raises(ValueError, match=r"q of shape \(1, 2, 48, 64\), expected \(batch, 4, 48, 32\)"),
    ):
        small.run()


def test_the_estimate_is_what_comes_to_be(tmp_path: Path) -> None:
    small = tiny.wan(layers=2)
    recorder = Recorder(models_of(small.pipe), candidates_of(small), BINS, rows=8, power=1)
    estimate = recorder.estimate(small.steps, prompts=2, branches=2)
    assert estimate.calls == 2 * 2 * 2 * 2
    assert estimate.options == 7 + 5
    assert estimate.seconds > 0
    assert re.match(
        r"12 options per head, 16 measured calls: about \d+ s \(gradients: 6 steps of the model\) "
        r"besides the generations, \d+ KB of memory",
        str(estimate),
    )
    assert estimate.gradient_steps == 3 * 2, "one prompt of two; two steps reach two of three bins"
    assert recorder.estimate(50, prompts=2).gradient_steps == 3 * 3
    few = Recorder(models_of(small.pipe), candidates_of(small), BINS, rows=8, power=1, power_bins=2)
    assert few.estimate(50).gradient_steps == 2 * 3
    both = Recorder(models_of(small.pipe), candidates_of(small), BINS, rows=8, power=2, power_prompts=5)
    assert both.estimate(50, prompts=2).gradient_steps == 2 * 3 * (1 + 2 * 2), "a graph, two ways back"
    slow = recorder.estimate(small.steps, prompts=2, branches=2, step_seconds=1000.0)
    assert slow.seconds - 6000.0 == pytest.approx(estimate.seconds, abs=60.0)
    none = Recorder(models_of(small.pipe), candidates_of(small), BINS, rows=8)
    assert none.estimate(small.steps, step_seconds=1000.0).gradient_steps == 0
    errors = recorded(small, tmp_path / "e.safetensors", rows=8)["transformer"]
    assert errors.nbytes * 3 / 2 == pytest.approx(estimate.file_bytes), "of three bins one stayed empty"
    assert recorder.estimate(50).calls == 2 * 50
    assert Recorder(models_of(small.pipe), candidates_of(small), BINS, listen=2).estimate(50).calls == 2 * 6
