"""Head errors: sums that merge, options, weights, and a file that is refused unless it is whole and right."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_vdit import Geometry, Pattern
from sparse_vdit.plan import ModelIdentity
from sparse_vdit.search import errors_file
from sparse_vdit.search.candidates import Candidates
from sparse_vdit.search.head_errors import HeadErrors, array_shapes, total
from sparse_vdit.search.probe import BETAS

GEOMETRY = Geometry(frames=4, height=6, width=6, block_q=16, block_k=16)
MODEL = ModelIdentity("WanTransformer3DModel", layers=2, heads=3, head_dim=16)
CANDIDATES = Candidates(
    GEOMETRY, (Pattern.skip(), Pattern.diagonal(half_width=20), Pattern.full()), mass_stripes=(1, 3)
)
BINS = (0.0, 0.25, 0.5, 1.0)


def made(rng: np.random.Generator, bins: tuple[float, ...] = BINS, **changes: Any) -> HeadErrors:
    shapes = array_shapes(MODEL, CANDIDATES, len(bins) - 1)
    stripes = np.zeros(shapes["stripes"], np.int32) + np.array([2, 0, 5], np.int32)
    arrays: dict[str, Any] = {
        "plain": rng.random(shapes["plain"], np.float32),
        "curve": rng.random(shapes["curve"], np.float32),
        "energy": 1 + rng.random(shapes["energy"], np.float32),
        "calls": rng.integers(1, 9, shapes["calls"]),
        "stripes": stripes,
    }
    about = {"measure": "relative", "rows": 64, "seed": 3}
    return HeadErrors(MODEL, CANDIDATES, bins, **(about | arrays | changes))


def bowls(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Curves with a known lowest point."""
    shape = array_shapes(MODEL, CANDIDATES, 3)["plain"]
    low, depth = rng.uniform(-2, 2, shape), rng.uniform(0.1, 0.2, shape)
    curve = depth[..., None] + 0.01 * (BETAS - low[..., None]) ** 2
    return curve.astype(np.float32), low, depth


def test_options_are_pairs_of_plain_and_best_bias(rng: np.random.Generator) -> None:
    curve, low, depth = bowls(rng)
    energy = np.full((3, 2, 3), 4, np.float32)
    energy[1, 1, 2] = 0
    errors = made(rng, curve=curve, energy=energy)
    errors.plain.flags.writeable = True
    errors.plain[1, 1, 2] = 0
    errors.plain[0, 1, 1, 1] = np.inf
    found, betas = errors.options()
    assert found.shape == betas.shape == (3, 2, 3, 10)
    assert found.dtype == betas.dtype == np.float32
    takes = CANDIDATES.takes_remainder
    assert takes.tolist() == [False, True, False, True, True]
    assert np.isnan(found[..., 1::2][..., ~takes]).all(), "skip and full take no remainder"
    assert np.isnan(betas[..., ::2]).all()
    assert np.isnan(found[0, 1, 1, 2]), "an output that is not finite is not allowed"
    assert (found[1, 1, 2, ::2] == 0).all(), "a head whose output is zero is right with any candidate"
    rest = np.ones((3, 2, 3), bool)
    rest[1, 1, 2] = rest[0, 1, 1] = False
    assert found[rest][:, ::2] == pytest.approx(errors.plain[rest] / 4)
    assert found[rest][:, 1::2][:, takes] == pytest.approx(depth[rest][:, takes] / 4, rel=0.01)
    assert betas[rest][:, 1::2][:, takes] == pytest.approx(low[rest][:, takes], abs=0.05)


def test_weights_and_mean_squares(rng: np.random.Generator) -> None:
    power = rng.random((3, 2, 3), np.float32)
    errors = made(rng, power=power)
    assert (errors.weights("relative") == 1).all()
    for measure, felt in (("mse", np.ones_like(power)), ("sensitivity", power)):
        weights = errors.weights(measure)
        assert weights.mean(axis=(1, 2)) == pytest.approx(1)
        raw = felt * errors.energy / errors.calls[..., None]
        assert weights / weights[:, :1, :1] == pytest.approx(raw / raw[:, :1, :1])
    mean = errors.mean_square()
    assert mean[2, 1, 0, 3] == pytest.approx(errors.plain[2, 1, 0, 3] / (errors.calls[2, 1] * 64 * 16))
    with pytest.raises(
        ValueError, match="errors: measure is 'psnr', expected one of relative, mse, sensitivity"
    ):
        errors.weights("psnr")
    with pytest.raises(
        ValueError, match="errors: no bin has a sensitivity, expected a recording with power=1"
    ):
        made(rng).weights("sensitivity")


def test_sensitivity_is_the_default_where_any_was_measured(rng: np.random.Generator) -> None:
    power = rng.random((3, 2, 3), np.float32)
    assert made(rng).default_weights == "relative"
    assert made(rng, power=power, probes=np.array([0, 1, 0])).default_weights == "sensitivity"
    projected = made(rng, power=power, measure="projected")
    assert projected.default_weights == "relative"
    for asks in (lambda: projected.weights("sensitivity"), projected.mean_square):
        with pytest.raises(ValueError, match="errors: these are projected, expected relative ones"):
            asks()


def test_power_lies_between_that_of_the_measured_bins(rng: np.random.Generator) -> None:
    power = rng.random((3, 2, 3), np.float32)
    between = power.astype(np.float64)
    low, middle, high = (sum(made(rng).bins[n : n + 2]) / 2 for n in range(3))
    share = (middle - low) / (high - low)
    between[1] = power[0] ** (1 - share) * power[2] ** share
    errors = made(rng, power=power, probes=np.array([1, 0, 1]))
    raw = between * errors.energy / errors.calls[..., None]
    assert errors.weights("sensitivity") == pytest.approx(raw / raw.mean(axis=(1, 2), keepdims=True))
    only = made(rng, power=power, probes=np.array([0, 2, 0]))
    raw = power[1] * only.energy / only.calls[..., None]
    assert only.weights("sensitivity") == pytest.approx(raw / raw.mean(axis=(1, 2), keepdims=True))


def test_merging_adds_and_averages_power_by_its_probes(rng: np.random.Generator) -> None:
    power = rng.random((3, 2, 3), np.float32)
    a = made(rng, power=power, probes=np.array([1, 0, 3]), provenance={"samples": [1]})
    b = made(rng, power=2 * power, probes=np.array([1, 1, 1]), provenance={"samples": [2, 3]})
    c = made(rng)
    merged = a.merge(b).merge(c)
    for name in ("plain", "curve", "energy"):
        wanted = sum(getattr(part, name).astype(np.float64) for part in (a, b, c))
        assert getattr(merged, name) == pytest.approx(wanted, rel=1e-6)
    assert (merged.calls == a.calls + b.calls + c.calls).all()
    assert merged.probes.tolist() == [2, 1, 4]
    assert merged.power / power == pytest.approx(np.array([1.5, 2, 1.25])[:, None, None] + 0 * power)
    assert merged.provenance["samples"] == [1, 2, 3]
    other_way = total([c, b, a])
    assert np.array_equal(other_way.plain, total([a, b, c]).plain)


def test_what_does_not_merge(rng: np.random.Generator) -> None:
    a = made(rng)

    def refused(other: HeadErrors, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            a.merge(other)

    refused(made(rng, (0.0, 0.2, 0.5, 1.0)), r"errors: bins is \(0.0, 0.2, 0.5, 1.0\), expected \(0.0, 0.25")
    refused(made(rng, rows=32), "errors: rows is 32, expected 64")
    refused(made(rng, measure="projected"), "errors: measure is projected, expected relative")
    model = replace(MODEL, head_dim=32)
    refused(
        replace(made(rng), model=model), "errors: these are of another model: head_dim is 32, expected 16"
    )
    fewer = Candidates(GEOMETRY, (Pattern.full(), Pattern.diagonal(half_width=20), Pattern.skip()), (2, 3))
    refused(
        replace(made(rng), candidates=fewer), "errors: these are of other candidates, expected the same list"
    )
    bigger = Candidates(replace(GEOMETRY, frames=5), CANDIDATES.patterns, (1, 3))
    refused(replace(made(rng), candidates=bigger), r"errors: geometry is Geometry\(frames=5")
    stripes = a.stripes.copy()
    stripes[1, 0, 2] = [2, 5, 0]
    refused(
        made(rng, stripes=stripes),
        "errors: the mass stripes of bin 1, layer 0, head 2 are other blocks, expected a recording with stripes=",
    )
    stripes[1, 0, 2] = -1
    assert (a.merge(made(rng, stripes=stripes)).stripes == a.stripes).all()
    with pytest.raises(ValueError, match="errors: there is nothing to merge"):
        total([])


def test_wider_bins_are_sums(rng: np.random.Generator) -> None:
    power = rng.random((3, 2, 3), np.float32)
    stripes = np.zeros((3, 2, 3, 3), np.int32) + np.array([2, 0, 5], np.int32)
    stripes[1, 0, 2] = [5, 0, 2]
    a = made(rng, stripes=stripes, power=power, probes=np.array([1, 3, 1]))
    wide = a.rebinned((0.0, 0.5, 1.0))
    assert wide.bins == (0.0, 0.5, 1.0)
    assert wide.energy[0] == pytest.approx(a.energy[0] + a.energy[1])
    assert np.array_equal(wide.plain[1], a.plain[2])
    assert (wide.calls[0] == a.calls[0] + a.calls[1]).all()
    assert wide.probes.tolist() == [4, 1]
    assert wide.power[0] == pytest.approx((power[0] + 3 * power[1]) / 4)
    errors, _ = wide.options()
    assert np.isnan(errors[0, 0, 2, 6:]).all(), "stripes of other blocks cannot be added"
    assert np.isfinite(errors[0, 0, 1, 6:]).all()
    assert np.isfinite(errors[1, 0, 2, 6:]).all()
    assert (wide.stripes[0, 0, 2] == -1).all()
    with pytest.raises(ValueError, match=r"errors: 0\.3 is no edge of the recorded bins"):
        a.rebinned((0.0, 0.3, 1.0))


def test_bins_without_a_step(rng: np.random.Generator) -> None:
    calls = np.array([[0, 0], [2, 2], [0, 0]])
    a = made(rng, calls=calls)
    with pytest.raises(ValueError, match=r"errors: bin 0 \(noise 0..0.25\), layer 0 was never measured"):
        a.options()
    assert a.without_empty_bins().bins == (0.0, 1.0)
    assert made(rng, calls=calls[::-1] + calls[[1, 1, 1]]).without_empty_bins().bins == BINS
    low = made(rng, calls=np.array([[1, 1], [0, 0], [1, 1]])).without_empty_bins()
    assert low.bins == (0.0, 0.5, 1.0)
    low.options()
    nothing = HeadErrors.empty(MODEL, CANDIDATES, BINS, measure="relative", rows=64, seed=0)
    assert nothing.without_empty_bins() is nothing
    assert np.array_equal(nothing.merge(a).plain, a.plain)
    assert np.array_equal(nothing.merge(a).stripes, a.stripes)


def test_arrays_that_are_refused(rng: np.random.Generator) -> None:
    def refused(sentence: str, kind: type[Exception] = ValueError, **changes: Any) -> None:
        with pytest.raises(kind, match=sentence):
            made(rng, **changes)

    refused(
        r"errors: plain.shape is \(3, 2, 3, 4\), expected \(3, 2, 3, 5\)", plain=np.zeros((3, 2, 3, 4), "f4")
    )
    refused("errors: plain is float64, expected float32", TypeError, plain=np.zeros((3, 2, 3, 5)))
    refused("errors: energy is list, expected float32", TypeError, energy=[1.0])
    refused("errors: energy holds a negative or infinite", energy=np.full((3, 2, 3), np.nan, np.float32))
    refused("errors: plain holds a negative number", plain=np.full((3, 2, 3, 5), -1, np.float32))
    refused("errors: stripes holds block 9, expected -1..8", stripes=np.full((3, 2, 3, 3), 9, np.int32))
    refused("errors: measure is 'psnr', expected one of relative, projected", measure="psnr")
    refused("errors: rows is 0, expected 1..", rows=0)
    refused("errors: calls holds a negative number, expected counts", calls=np.full((3, 2), -1))
    refused("errors: probes holds a negative number, expected counts", probes=np.array([1, -1, 0]))


def test_the_file_comes_back(tmp_path: Path, rng: np.random.Generator) -> None:
    a = made(rng, provenance={"samples": [{"prompt": "a cat", "seed": 1}]})
    path = a.save(tmp_path / "deep" / "errors.safetensors")
    found = HeadErrors.load(path)
    for name, array in a.arrays().items():
        assert np.array_equal(getattr(found, name), array), name
    assert (found.model, found.candidates, found.bins) == (MODEL, CANDIDATES, BINS)
    assert (found.rows, found.seed, found.power) == (64, 3, None)
    assert found.provenance == a.provenance
    assert a.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    second = made(rng, (0.0, 1.0), power=np.ones((1, 2, 3), np.float32))
    both = errors_file.save(path, {"transformer": a, "transformer_2": second})
    assert errors_file.load(both)["transformer_2"].power is not None
    assert HeadErrors.load(both, "transformer_2").bins == (0.0, 1.0)
    with pytest.raises(
        ValueError, match="errors: transformer is None, expected one of transformer, transformer_2"
    ):
        HeadErrors.load(both)
    with pytest.raises(ValueError, match="errors: rows of transformer_2 is not that of the others"):
        errors_file.save(path, {"transformer": a, "transformer_2": made(rng, rows=8)})


def test_ten_bins_of_a_small_wan_are_some_megabytes() -> None:
    """30 layers, 12 heads, 10 bins, 75 candidates."""
    shapes = array_shapes(
        replace(MODEL, layers=30, heads=12),
        Candidates(
            Geometry(60, 16, 16, block_q=32, block_k=32),
            (Pattern.full(), *(Pattern.diagonal(half_width=32 * n) for n in range(74))),
        ),
        10,
    )
    size = sum(int(np.prod(shape)) * 4 for shape in shapes.values())
    assert 10e6 < size < 25e6


def test_truncated_anywhere(tmp_path: Path, rng: np.random.Generator) -> None:
    path = made(rng).save(tmp_path / "errors.safetensors")
    whole = path.read_bytes()
    for length in [*range(64), *range(64, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^errors: "):
            errors_file.load(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match=r"^errors: "):
        errors_file.load(path)


def test_a_changed_byte_of_the_numbers_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = made(rng).save(tmp_path / "errors.safetensors")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="errors: sha256 is not that of the tensors"):
            errors_file.load(path)


def rewritten(whole: bytes, change: Any) -> bytes:
    """The same file with another header."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    stated = header["__metadata__"][errors_file.FORMAT]
    about = json.loads(stated[1:])
    version = change(header, about) or stated[0]
    header["__metadata__"] = {errors_file.FORMAT: version + json.dumps(about)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header, about: "2", "errors: the format version is '2', expected '1'"),
        (lambda header, about: about.update(bins=[0, 1]), "errors: unknown field 'bins'"),
        (lambda header, about: about.pop("seed") and None, "errors: field 'seed' is missing"),
        (lambda header, about: about.update(betas=[0.0]), r"errors: betas is \[0.0\], expected the nodes"),
        (lambda header, about: about.update(rows="many"), "errors: rows is str, expected an integer"),
        (lambda header, about: about.update(measure="psnr"), "errors: measure is 'psnr'"),
        (lambda header, about: about.update(transformers={}), r"errors: transformers is \{\}, expected 1..4"),
        (
            lambda header, about: about["transformers"]["transformer"]["model"].update(heads=4),
            r"errors: tensor 'transformer/curve' is F32 \[3, 2, 3, 5, \d+\], expected F32 \[3, 2, 4, 5, \d+\]",
        ),
        (
            lambda header, about: about["transformers"]["transformer"]["model"].update(layers=512, heads=256),
            "errors: transformer would have 393216 cells and .* bytes|errors: tensor 'transformer/calls'",
        ),
        (
            lambda header, about: about["transformers"]["transformer"].update(bins=[0, 0.5, 0.4, 1]),
            r"errors: bins is \[0.0, 0.5, 0.4, 1.0\], expected edges that rise",
        ),
        (
            lambda header, about: about["candidates"].update(patterns=[]),
            "candidates: the list is empty",
        ),
        (
            lambda header, about: header.update({"transformer/more": header["transformer/plain"]}),
            "errors: ",
        ),
    ],
)
def test_headers_that_are_refused(
    tmp_path: Path, rng: np.random.Generator, change: Any, sentence: str
) -> None:
    path = made(rng).save(tmp_path / "errors.safetensors")
    path.write_bytes(rewritten(path.read_bytes(), change))
    with pytest.raises((ValueError, TypeError), match=sentence):
        errors_file.load(path)


def test_a_header_without_change_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """So that the refusals above are those of the changes."""
    path = made(rng).save(tmp_path / "errors.safetensors")
    path.write_bytes(rewritten(path.read_bytes(), lambda header, about: None))
    errors_file.load(path)


def test_other_files(tmp_path: Path, rng: np.random.Generator) -> None:
    from safetensors.numpy import save

    with pytest.raises(FileNotFoundError, match="errors: there is no file"):
        errors_file.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a regular file"):
        errors_file.load(tmp_path)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(save({"a": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match=r"errors: the header has no sparse_vdit\.errors"):
        errors_file.load(other)
    other.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(
        ValueError, match="errors: the file has 10 bytes and promises a header of 1099511627776"
    ):
        errors_file.load(other)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(rng).save(tmp_path / "errors.safetensors")
    before = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        made(rng).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["errors.safetensors"]
