"""The page is one file: nothing is loaded from outside, nothing that it is given can become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from sparse_vdit.report import figures, page, video

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} ' & $x_1$"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _maps(title: str) -> figures.Figure:
    weights = np.full((33, 33), 1e-3) + np.eye(33)
    mask = np.eye(9, dtype=bool)
    head = figures.HeadMap(title, "diagonal", "frame_major", 0.12, 0.9, weights, mask, (16, 16), (8, 72), 136)
    return figures.attention_maps([head])


@pytest.fixture(scope="module")
def html() -> str:
    clip = np.random.default_rng(0).random((4, 3, 16, 16))
    sheet = video.sheet_uri(clip)
    rows = [(HOSTILE, 27.0, 0.9, 0.031), ("random", 20.0, 0.8, 0.04)]
    sections = [
        page.Section(
            HOSTILE, [HOSTILE], _maps(HOSTILE), HOSTILE, page.Table([HOSTILE], [[HOSTILE]], True), [HOSTILE]
        ),
        page.Section("bars", [], figures.control_bars(rows, 0.03)),
        page.Section("time", [], figures.time_bars({"attention": 2, "rest": 1}, {"attention": 1, "rest": 1})),
    ]
    whole = page.Page(
        HOSTILE, HOSTILE, HOSTILE, [page.Tile(HOSTILE, HOSTILE, HOSTILE)], 4, 8,
        [page.Clip(HOSTILE, 1, [(HOSTILE, sheet)], [(HOSTILE, HOSTILE)])], sections,
        [HOSTILE], [(HOSTILE, HOSTILE)], HOSTILE,
    )  # fmt: skip
    return page.render(whole)


def test_hostile_text_stays_text(html) -> None:
    tags = _Tags()
    tags.feed(html)
    names = [tag for tag, _ in tags.tags]
    assert "script" not in names
    assert "img" not in names
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in html
    assert "49" not in "".join(tags.text)
    assert "".join(tags.text).count("alert(1)") >= 15


def test_nothing_comes_from_outside(html) -> None:
    tags = _Tags()
    tags.feed(html)
    policy = next(
        a["content"] for t, a in tags.tags if t == "meta" and "Content-Security-Policy" in a.values()
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for tag, attributes in tags.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
    for target in re.findall(r"url\(([^)]*)\)", html):
        assert target.strip("'\"").startswith(("data:image/png;base64,", "#")), target[:40]
    assert "@import" not in html


def test_references_between_drawings_resolve(html) -> None:
    tags = _Tags()
    tags.feed(html)
    named = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(named) == len(set(named))
    for _, attributes in tags.tags:
        target = attributes.get("xlink:href") or ""
        assert not target.startswith("#") or target[1:] in named
    for target in re.findall(r"url\(#([^)]*)\)", html):
        assert target in named


def test_the_same_page_twice_is_the_same_bytes(tmp_path, html) -> None:
    assert _maps("layer 0").svg == _maps("layer 0").svg
    assert _maps("layer 0").png == _maps("layer 0").png


def test_outline_walks_around_the_blocks() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    lines = figures.outline(mask, (16, 32), 100)
    assert sorted(map(tuple, lines)) == sorted(
        [
            ((32.0, 16.0), (96.0, 16.0)),
            ((32.0, 32.0), (96.0, 32.0)),
            ((32.0, 16.0), (32.0, 32.0)),
            ((96.0, 16.0), (96.0, 32.0)),
        ]
    )


def test_thin_diagonals_survive_shrinking() -> None:
    small = figures.shrink_map(np.eye(1000), 257)
    assert small.shape == (250, 250)
    assert (np.diag(small) == 1).all()
    assert small.sum() == 250


def test_plan_picture_names_families_and_densities() -> None:
    families = np.array([[["diagonal", "skip"], ["union", "full"]]])
    densities = np.array([[[0.25, 0.0], [0.5, 1.0]]])
    svg = figures.plan_picture(families, densities, ["all noise levels"]).svg
    for word in ("diagonal", "skip", "union", "full", "0.25", "1.00", "all noise levels"):
        assert word in svg
    assert "multi-diagonal" not in svg
