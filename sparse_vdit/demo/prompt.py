"""Prompts of the embedded model: a small vocabulary, its sentences and its embeddings.

A prompt is eight tokens of 64 numbers: six for up to three bodies (look and motion of each, both with the body's
number, which tells whose motion it is), one for the ground, one for source, camera and marks. A token is the
normalised sum of its words' vectors; a word's vector is the signs of 64 hash bits, so it needs no table, no file and no
random number generator.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TOKENS = 8
WIDTH = 64
MAX_BODIES = 3

COLOURS: dict[str, tuple[float, float, float]] = {  # RGB in -1..1
    "red": (0.9, -0.8, -0.8),
    "green": (-0.8, 0.7, -0.7),
    "blue": (-0.8, -0.5, 0.95),
    "yellow": (0.95, 0.85, -0.8),
    "magenta": (0.9, -0.8, 0.85),
    "cyan": (-0.8, 0.85, 0.9),
}
SHAPES = ("disc", "square", "triangle", "ring")
DIRECTIONS: dict[str, tuple[int, int]] = {  # x to the right, y down
    "still": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
SPEEDS = ("slow", "fast")
GROUNDS = ("plain", "graded", "striped", "chequered")
TONES: dict[str, tuple[float, float, float]] = {  # RGB in -1..1
    "black": (-0.9, -0.9, -0.9),
    "grey": (-0.15, -0.15, -0.15),
    "white": (0.75, 0.75, 0.75),
    "navy": (-0.85, -0.8, -0.4),
    "brown": (-0.35, -0.55, -0.75),
}
SOURCES = ("drawn", "film", "photo")
CAMERAS = ("still", "pan left", "pan right", "slow", "fast", "shake", "cut", "slides")
MARKS = ("flicker", "overlay", "slate")
SUBJECTS = ("rabbit", "bikes", "street", "tree", "person", "driver", "hand")


@dataclass(frozen=True)
class Body:
    """One moving object.

    Attributes:
        colour: A key of `COLOURS`.
        shape: One of `SHAPES`.
        direction: A key of `DIRECTIONS`.
        speed: One of `SPEEDS`; says nothing for a body that stands still.
    """

    colour: str
    shape: str
    direction: str = "still"
    speed: str = "slow"


@dataclass(frozen=True)
class Prompt:
    """All that a prompt can say.

    Attributes:
        bodies: Up to three moving objects.
        ground: Kind of ground, or of a film's or photo's subject; empty for unknown.
        tone: A key of `TONES`; empty for films and photos.
        camera: One of `CAMERAS`.
        source: One of `SOURCES`.
        marks: Any of `MARKS`.
    """

    bodies: tuple[Body, ...] = ()
    ground: str = "plain"
    tone: str = "black"
    camera: str = "still"
    source: str = "drawn"
    marks: tuple[str, ...] = ()


def word_vector(role: str, word: str) -> np.ndarray:
    """Returns the vector of a word in a role: the signs of 64 hash bits, float32 [64]."""
    bits = np.unpackbits(
        np.frombuffer(hashlib.sha256(f"{role}:{word}".encode()).digest()[: WIDTH // 8], np.uint8)
    )
    return bits.astype(np.float32) * 2 - 1


def _token(words: Iterable[tuple[str, str]]) -> np.ndarray:
    vectors = [word_vector(role, word) for role, word in words]
    return sum(vectors[1:], vectors[0]) / math.sqrt(len(vectors))


def vectors(prompt: Prompt) -> np.ndarray:
    """Returns the prompt's tokens, float32 [8, 64]."""
    tokens = []
    for place in range(MAX_BODIES):
        if place < len(prompt.bodies):
            body = prompt.bodies[place]
            speed = body.speed if body.direction != "still" else "none"
            number = ("body", str(place + 1))
            tokens.append(_token([("colour", body.colour), ("shape", body.shape), number]))
            tokens.append(_token([("direction", body.direction), ("speed", speed), number]))
        else:
            tokens += [_token([("body", "none")])] * 2
    tokens.append(_token([("ground", prompt.ground or "any"), ("tone", prompt.tone or "any")]))
    marks = [("mark", mark if mark in prompt.marks else f"no {mark}") for mark in MARKS]
    tokens.append(_token([("source", prompt.source), ("camera", prompt.camera), *marks]))
    return np.stack(tokens)


def encode(prompt: str | Prompt | None) -> torch.Tensor:
    """Encodes a sentence or a prompt for the pipeline's `prompt_embeds`.

    Args:
        prompt: A sentence such as "red disc moving right, slow", a `Prompt`, or None for the null prompt.

    Returns:
        float32 [8, 64]; zeros for the null prompt.
    """
    import torch

    if prompt is None:
        return torch.zeros(TOKENS, WIDTH)
    return torch.from_numpy(vectors(parse(prompt) if isinstance(prompt, str) else prompt))


def describe(prompt: Prompt) -> str:
    """Returns the sentence that `parse` turns back into the prompt."""
    bodies = " and ".join(
        f"{b.colour} {b.shape} " + ("still" if b.direction == "still" else f"moving {b.direction}, {b.speed}")
        for b in prompt.bodies
    )
    if prompt.source == "drawn":
        place = f"{prompt.ground} {prompt.tone} ground"
        head = f"{bodies} on {place}" if bodies else place
    else:
        head = f"{prompt.source} of {prompt.ground or 'anything'}"
    camera = "" if prompt.camera == "still" else f", camera {prompt.camera}"
    marks = "".join(f", with {mark}" for mark in prompt.marks)
    return head + camera + marks


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_BODY = re.compile(
    rf"({_any(COLOURS)}) ({_any(SHAPES)})(?: (?:moving )?({_any(DIRECTIONS)}))?(?:,? ({_any(SPEEDS)}))?\b"
)
_GROUND = re.compile(rf"({_any(GROUNDS)}) ({_any(TONES)}) ground")
_CAMERA = re.compile(rf"camera ({_any(CAMERAS)})")
_SOURCE = re.compile(rf"(film|photo) of ({_any((*SUBJECTS, 'anything'))})")
_MARK = re.compile(rf"with ({_any(MARKS)})")


def parse(sentence: str) -> Prompt:
    """Reads a sentence.

    Args:
        sentence: For example "red disc moving right, slow and blue ring still on striped grey ground".

    Returns:
        The prompt; what the sentence leaves out is plain, black and still.

    Raises:
        ValueError: The sentence names no body, ground or source, or more than three bodies.
    """
    text = " ".join(sentence.lower().split())
    bodies = tuple(Body(c, s, d or "still", v or "slow") for c, s, d, v in _BODY.findall(text))
    ground, source, camera = _GROUND.search(text), _SOURCE.search(text), _CAMERA.search(text)
    if not (bodies or ground or source):
        raise ValueError(
            "prompt: expected a body such as 'red disc moving right, slow' "
            f"(colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}), got {sentence!r}"
        )
    if len(bodies) > MAX_BODIES:
        raise ValueError(f"prompt: expected at most {MAX_BODIES} bodies, got {len(bodies)} in {sentence!r}")
    marks = tuple(mark for mark in MARKS if mark in _MARK.findall(text))
    view = camera[1] if camera else "still"
    if source:
        return Prompt(bodies, "" if source[2] == "anything" else source[2], "", view, source[1], marks)
    return Prompt(
        bodies, ground[1] if ground else "plain", ground[2] if ground else "black", view, "drawn", marks
    )


def encode_many(prompts: Sequence[str | Prompt | None]) -> torch.Tensor:
    """Encodes several prompts, float32 [count, 8, 64]."""
    import torch

    return torch.stack([encode(prompt) for prompt in prompts])
