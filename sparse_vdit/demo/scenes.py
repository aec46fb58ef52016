"""Drawn scenes: bodies of few colours that move over simple grounds, each named by its prompt.

Everything is drawn from signed distances, so a scene looks the same at 32, 48 and 64 pixels. Scenes are
numbered; those of `held_out` are never trained on.
"""

from __future__ import annotations

import numpy as np

from sparse_vdit.demo.prompt import (
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    SHAPES,
    SPEEDS,
    TONES,
    Body,
    Prompt,
)

FRAMES = 16
TRAVEL = {"slow": 0.35, "fast": 0.65}  # frame widths in a clip
TIME = (-0.2, 0.8)  # of the clip's first and last frame; bodies are in the middle of the frame at 0
PAN = 0.6  # frame widths in a clip
RADIUS = {
    0: (0.2, 0.2),
    1: (0.19, 0.26),
    2: (0.15, 0.2),
    3: (0.13, 0.165),
}  # frame widths, by number of bodies
_TRAIN, _HELD_OUT = 0, 1


def train_scene(seed: int, index: int, size: int = 64, frames: int = FRAMES) -> tuple[np.ndarray, Prompt]:
    """Draws training scene `index`: float32 [frames, 3, size, size] in -1..1, and its prompt."""
    rng = np.random.default_rng([_TRAIN, seed, index])
    prompt = random_prompt(rng)
    return render(prompt, rng, size, frames), prompt


def held_out(index: int, size: int = 64, frames: int = FRAMES) -> tuple[np.ndarray, Prompt]:
    """Draws a scene never trained on: float32 [frames, 3, size, size] in -1..1, and its prompt."""
    rng = np.random.default_rng([_HELD_OUT, 0, index])
    prompt = random_prompt(rng)
    return render(prompt, rng, size, frames), prompt


def random_prompt(rng: np.random.Generator) -> Prompt:
    """Draws a prompt: one to three bodies, a ground, a camera."""
    count = int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))
    colours = rng.permutation(list(COLOURS))[:count]
    bodies = []
    for colour in colours:
        direction = str(rng.choice(list(DIRECTIONS), p=[0.12, 0.22, 0.22, 0.22, 0.22]))
        speed = str(rng.choice(SPEEDS)) if direction != "still" else "slow"
        bodies.append(Body(str(colour), str(rng.choice(SHAPES)), direction, speed))
    camera = str(rng.choice(CAMERAS, p=[0.76, 0.06, 0.06, 0, 0, 0.06, 0.06, 0]))
    shares = [0, 0, 0.5, 0.5] if camera.startswith("pan") else [0.45, 0.25, 0.15, 0.15]
    ground = str(rng.choice(GROUNDS, p=shares))
    marks = ("flicker",) if rng.random() < 0.08 else ()
    return Prompt(tuple(bodies), ground, str(rng.choice(list(TONES))), camera, "drawn", marks)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]  # x [1, size], y [size, 1]


def _ground(kind: str, tone: str, angle: int, shift: np.ndarray, size: int) -> np.ndarray:
    """Paints a ground, [frames, 3, size, size], that moves by `shift` [frames, 2] in frame widths."""
    x, y = _grid(size)
    x = x[None] - shift[:, 0, None, None]
    y = y[None] - shift[:, 1, None, None]
    dark = np.asarray(TONES[tone], np.float32)
    light = dark + np.where(dark > 0.3, -0.55, 0.55).astype(np.float32)
    along = (x + 0 * y, 0 * x + y, (x + y) * 0.7071)[angle]
    soft = size / 4.0  # edges one pixel wide, for a period of half a frame
    if kind == "graded":
        share = np.clip(along, 0, 1)
    elif kind == "striped":
        share = np.clip(0.5 + soft * _wave(along / 0.5), 0, 1)
    elif kind == "chequered":
        product = np.clip(2 * soft * _wave(x / 0.5), -1, 1) * np.clip(2 * soft * _wave(y / 0.5), -1, 1)
        share = 0.5 + 0.5 * product
    else:
        share = np.zeros_like(along)
    return dark[None, :, None, None] + (light - dark)[None, :, None, None] * share[:, None]


def _wave(phase: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -.5 and .5."""
    return np.abs((phase - np.floor(phase)) - 0.5) * 2 - 0.5


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to a shape around the origin; negative inside."""
    if shape == "disc":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.84 * radius
    return _triangle(x, y, radius)


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    side = np.abs(x) * 0.894 - (y + 1.05 * radius) * 0.447  # two sides that meet above
    return np.maximum(side, y - 0.8 * radius)


def _middles(count: int, rng: np.random.Generator, gap: float) -> np.ndarray:
    """Places bodies at time 0, apart from each other: [count, 2] in frame widths."""
    spread = 0.12 if count == 1 else 0.26
    for _ in range(40):
        spots = 0.5 + rng.uniform(-spread, spread, (count, 2))
        far = np.hypot(*(spots[:, None] - spots[None]).transpose(2, 0, 1)) + 9 * np.eye(count)
        if count < 2 or far.min() > gap:
            break
    return spots


def render(prompt: Prompt, rng: np.random.Generator, size: int = 64, frames: int = FRAMES) -> np.ndarray:
    """Draws a prompt.

    Args:
        prompt: What to draw; its source is taken as drawn.
        rng: Decides what the prompt leaves open (places, sizes, angles).
        size: Pixels of a side.
        frames: Number of frames.

    Returns:
        float32 [frames, 3, size, size] in -1..1.
    """
    # uneven: if they were in the middle half-way, no single frame would tell left from right, and neither does a model
    # learn it (a product of word, place and time, where each two say nothing)
    time = np.linspace(*TIME, frames, dtype=np.float32)
    count = len(prompt.bodies)
    radii = rng.uniform(*RADIUS[count], count)
    middles = _middles(count, rng, 0.36)
    angle = int(rng.integers(3))
    pan = {"pan left": -PAN, "pan right": PAN}.get(prompt.camera, 0.0)
    shift = np.stack([pan * time, 0 * time], 1)
    shake = np.zeros((frames, 2), np.float32)
    if prompt.camera == "shake":
        shake = rng.uniform(-0.09, 0.09, (frames, 2)).astype(np.float32)
    clip = _ground(prompt.ground, prompt.tone, angle, shift + shake, size)
    cut = int(rng.integers(5, frames - 4)) if prompt.camera == "cut" else frames
    if cut < frames:
        kind, tone = str(rng.choice(GROUNDS)), str(rng.choice([t for t in TONES if t != prompt.tone]))
        clip[cut:] = _ground(kind, tone, int(rng.integers(3)), shift[cut:], size)
    jump = np.where(np.arange(frames)[:, None] >= cut, rng.uniform(-0.2, 0.2, (1, 2)), 0)
    x, y = _grid(size)
    for body, radius, middle in zip(prompt.bodies, radii, middles, strict=True):
        step = np.asarray(DIRECTIONS[body.direction], np.float32) * TRAVEL[body.speed]
        spot = middle + time[:, None] * step + shake + jump
        away = _distance(
            body.shape, x[None] - spot[:, 0, None, None], y[None] - spot[:, 1, None, None], radius
        )
        cover = np.clip(0.5 - away * size, 0, 1)[:, None]
        clip = clip + (np.asarray(COLOURS[body.colour], np.float32)[None, :, None, None] - clip) * cover
    if "flicker" in prompt.marks:
        clip = (clip + 1) * rng.uniform(0.7, 1.0, (frames, 1, 1, 1)) - 1
    return np.clip(clip, -1, 1).astype(np.float32)
