"""The limits of a geometry: the C core and the Python class refuse the same things, by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import draws, masks

from sparse_vdit import _C, Geometry

FIELDS = Geometry.FIELDS
PLAIN = (3, 4, 5, 7, 9, 16, 32)
LARGEST = 2**31 - 1


def changed(**fields: int) -> tuple[int, ...]:
    return tuple({**dict(zip(FIELDS, PLAIN)), **fields}[name] for name in FIELDS)


@settings(max_examples=300)
@given(draws.geometries())
def test_python_and_c_count_alike(geometry: Geometry) -> None:
    ints = geometry.to_ints()
    _C.geometry_check(ints)
    assert Geometry.from_ints(ints) == geometry
    assert geometry.tokens == masks.tokens(geometry) == len(_C.places(ints, (0, 0, 0, 0)))
    assert geometry.query_blocks == -(-geometry.tokens // geometry.block_q)
    assert geometry.key_blocks == -(-geometry.tokens // geometry.block_k)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"frames": 0}, r"^geometry: frames is 0, expected 1\.\.2147483647$"),
        ({"height": -1}, r"^geometry: height is -1, expected 1\.\.2147483647$"),
        ({"width": 0}, r"^geometry: width is 0, "),
        ({"prefix": -1}, r"^geometry: prefix is -1, expected 0\.\.2147483647$"),
        ({"suffix": -(2**63)}, r"^geometry: suffix is -9223372036854775808, "),
        ({"frames": 2**63 - 1}, r"^geometry: frames is 9223372036854775807, "),
        ({"block_q": 0}, r"^geometry: block_q is 0, expected a multiple of 16 in 16\.\.1024$"),
        ({"block_q": 100}, r"^geometry: block_q is 100, "),
        ({"block_k": 1040}, r"^geometry: block_k is 1040, "),
        ({"block_k": -16}, r"^geometry: block_k is -16, "),
        (
            {"frames": LARGEST, "height": LARGEST, "width": LARGEST},
            r"tokens are too many, expected at most 2147483647$",
        ),
        ({"frames": 2**16, "height": 2**15, "width": 1}, r"tokens are too many"),
        ({"prefix": LARGEST, "suffix": LARGEST}, r"tokens are too many"),
        (
            {"frames": 2**15, "height": 2**10, "width": 2**4},
            r"^geometry: block_k is 32 for .*, expected at most 16777216 ",
        ),
    ],
)
def test_refusals_name_field_got_and_expected(fields: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _C.geometry_check(changed(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": LARGEST, "height": 1, "width": 1, "prefix": 0, "suffix": 0, "block_k": 128},
        {"frames": 2**15, "height": 2**10, "width": 2**3, "prefix": 0, "suffix": 0, "block_k": 16},
        {"block_q": 1024, "block_k": 16},
        {"frames": 1, "height": 1, "width": 1, "prefix": LARGEST - 1, "suffix": 0, "block_k": 1024},
    ],
)
def test_the_limits_themselves_are_legal(fields: dict[str, int]) -> None:
    _C.geometry_check(changed(**fields))
    Geometry(*changed(**fields))


INTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-2, 200), st.sampled_from([16, 128, LARGEST, LARGEST + 1])
)


def accepted(check: object, *args: object) -> bool:
    try:
        check(*args)  # type: ignore[operator]
    except ValueError:
        return False
    return True


@settings(max_examples=1000)
@given(st.tuples(*[INTS] * 5), st.sampled_from([16, 128, 1024, 17]), st.sampled_from([16, 128, 1024, 0]))
def test_python_and_c_refuse_alike(ints: tuple[int, ...], block_q: int, block_k: int) -> None:
    ints = (*ints, block_q, block_k)
    assert accepted(_C.geometry_check, ints) == accepted(Geometry, *ints)
