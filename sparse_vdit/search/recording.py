"""`record`: runs a pipeline on calibration prompts and writes what every candidate costs every head.

Beside `errors.safetensors` grows a folder `errors.safetensors.parts`: one finished file per prompt, and the
journal of the prompt in flight. Called again after any interruption, `record` skips finished prompts. Of a cut
prompt it generates the trajectory again from its first step (samplers keep a history, so that none can be
entered in the middle), at the price of the plain generation: steps in the journal are not measured again. The
folder goes when the file is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vdit.geometry import Json, integer, shown
from sparse_vdit.plan.file import (
    PlanError,
    canonical,
    checked_provenance,
    layout,
    parse,
    read_bytes,
    write_atomic,
)

from .distributed import Ranks
from .errors_file import load, save, write_file
from .head_errors import HeadErrors, total
from .journal import Journal
from .recorder import Recorder
from .step import Step
from .weights import weights_of

log = logging.getLogger(__name__)

MAX_SAMPLES = 100_000
IDENTITY = "search.json"

Observe = Callable[[Any, Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Sample:
    """One calibration generation: a prompt and the seed of its noise."""

    prompt: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise TypeError(f"record: a prompt is {type(self.prompt).__name__}, expected a string")
        integer("record", "a seed", self.seed, 0, 2**63 - 1)


Generate = Callable[[Any, Sample], object]


def record(
    pipe: Any,
    samples: Sequence[str | Sample],
    out: str | os.PathLike[str],
    *,
    recorder: Recorder,
    observe: Observe,
    settings: Mapping[str, Any] | None = None,
    generate: Generate | None = None,
    progress: bool = True,
    overwrite: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, HeadErrors]:
    """Generates every sample under the recorder, resumably, and writes `out`.

    Under torchrun every process calls this with the same arguments and does its share of the prompts.

    Args:
        pipe: a diffusers pipeline without a plan.
        samples: prompts (seed 0) or samples.
        out: the errors file.
        recorder: what is measured, e.g. `Recorder(models_of(pipe), ladder(geometry), power=1)`.
        observe: `sparse_vdit.observe`.
        settings: arguments of every pipeline call: size, `num_inference_steps`, guidance, ... They are part
            of the search's identity: a resumed search must have the same.
        generate: `generate(pipe, sample)` runs one generation; default: the pipeline with `settings`, the
            prompt and a CPU generator of the seed.
        progress: shows a bar with the remaining time.
        overwrite: replaces an `out` of another search.
        ranks: default as torchrun started it.

    Returns:
        The errors by transformer, bins that no step fell into joined to others; empty on ranks other than 0.

    Raises:
        ValueError: no samples; `out` or its parts belong to another search (naming what differs), or were
            measured on other weights (`weights.py`).
    """
    listed = [sample if isinstance(sample, Sample) else Sample(sample) for sample in samples]
    if not 1 <= len(listed) <= MAX_SAMPLES:
        raise ValueError(f"record: there are {len(listed)} samples, expected 1..{MAX_SAMPLES}")
    ranks = ranks if ranks is not None else Ranks.from_environment()
    search = _Search(Path(out), listed, recorder, dict(settings or {}), ranks, weights_of(pipe))
    mine = ranks.mine(len(listed))
    if search.finished(overwrite):
        return load(out) if ranks.rank == 0 else {}
    search.open()
    run = generate if generate is not None else _generation(search.settings)
    with search.bar(len(mine), progress) as bar, observe(pipe, recorder), recorder.watching(pipe):
        for position, number in enumerate(mine):
            bar.begin(position)
            if not search.part(number).exists():
                search.measure(number, lambda sample: run(pipe, sample))
    return search.finish()


def _generation(settings: Mapping[str, Any]) -> Generate:
    def generate(pipe: Any, sample: Sample) -> object:
        import torch

        generator = torch.Generator("cpu").manual_seed(sample.seed)
        return pipe(prompt=sample.prompt, generator=generator, **settings)

    return generate


class _Search:
    """The files of one search, and its prompts one by one."""

    def __init__(
        self,
        out: Path,
        samples: list[Sample],
        recorder: Recorder,
        settings: dict[str, Any],
        ranks: Ranks,
        weights: Mapping[str, str],
    ) -> None:
        self.out, self.samples, self.recorder, self.settings, self.ranks = (
            out,
            samples,
            recorder,
            settings,
            ranks,
        )
        self.folder = out.with_name(out.name + ".parts")
        self.identity: Json = recorder.describe() | {
            "samples": [[sample.prompt, sample.seed] for sample in samples],
            "settings": {str(name): _described(value) for name, value in settings.items()},
            "weights": dict(weights),
        }
        self.hash = hashlib.sha256(canonical(self.identity)).hexdigest()
        checked_provenance(self._provenance(samples))  # too many prompts are refused now, not at the end

    def _provenance(self, samples: Sequence[Sample]) -> Json:
        about = {key: self.identity[key] for key in ("follow", "choosing", "listen", "settings", "weights")}
        listed = [{"prompt": sample.prompt, "seed": sample.seed} for sample in samples]
        return {"made_by": "search.record", "search": self.hash, "samples": listed} | about

    def part(self, number: int) -> Path:
        return self.folder / f"prompt-{number:05d}.safetensors"

    def journal(self, number: int) -> Journal:
        return Journal(self._journal_path(number), {"search": self.hash, "prompt": number})

    def _journal_path(self, number: int) -> Path:
        return self.folder / f"prompt-{number:05d}.journal"

    def finished(self, overwrite: bool) -> bool:
        """Whether rank 0 has the whole file already.

        Raises:
            ValueError: it has one of another search, and may not overwrite it.
        """
        done = False
        if self.ranks.rank == 0 and self.out.exists() and not overwrite:
            stated = next(iter(load(self.out).values())).provenance
            if stated.get("search") != self.hash:
                if stated.get("weights") != self.identity["weights"]:
                    raise ValueError(
                        f"record: {str(self.out)!r} was measured on other weights, expected those of the given "
                        "pipeline, another name or to overwrite it"
                    )
                raise ValueError(
                    f"record: {str(self.out)!r} is of another search ({self._differs(stated)}), expected another name "
                    "or to overwrite it"
                )
            done = True
            self._tidy()
        return bool(self.ranks.share(np.array([done], dtype=np.int32))[0])

    def _differs(self, stated: Mapping[str, Any]) -> str:
        """The first thing that a finished file's provenance says otherwise."""
        mine = self._provenance(self.samples)
        names = [
            name for name in mine if name not in ("made_by", "search") and stated.get(name) != mine[name]
        ]
        if not names:
            return "its candidates, bins, rows or seed"
        return f"{names[0]} {shown(stated.get(names[0]))} instead of {shown(mine[names[0]])}"

    def open(self) -> None:
        """Makes or checks the folder and takes over the mass stripes of all that is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / IDENTITY
        if known.exists():
            self._compare(known)
        else:
            write_atomic(self.folder, IDENTITY, layout(self.identity))
        self.recorder.reset()
        self.recorder.share = self.ranks.share if self.ranks.size > 1 else None
        for number in range(len(self.samples)):
            self._take_stripes(number)
        for blocks in self.recorder.stripes.values():
            blocks[:] = self.ranks.union(blocks)

    def _compare(self, known: Path) -> None:
        try:
            found = parse(read_bytes(known))
        except PlanError as error:
            raise ValueError(f"record: {str(known)!r} cannot be read ({error}), expected a search") from None
        if found.get("weights") != self.identity["weights"]:
            raise ValueError(
                f"record: the interrupted search in {str(self.folder)!r} was measured on other weights, expected "
                "those of the given pipeline; go on with its model, or remove the folder"
            )
        for name in sorted(found.keys() | self.identity.keys()):
            if found.get(name) != self.identity.get(name):
                raise ValueError(
                    f"record: {name} is {shown(self.identity.get(name))}, expected {shown(found.get(name))} as in the "
                    f"interrupted search in {str(self.folder)!r}; go on with that, or remove the folder"
                )

    def _take_stripes(self, number: int) -> None:
        stripes = self.recorder.stripes
        if self.part(number).exists():
            for name, errors in self._loaded(number).items():
                stripes[name][:] = np.where(errors.stripes >= 0, errors.stripes, stripes[name])
        elif number in self.ranks.mine(len(self.samples)) and self._journal_path(number).exists():
            with self.journal(number) as journal:
                for data in journal.records():
                    step = self._step(data)
                    for name, blocks in step.stripes.items():
                        stripes[name][step.bin] = np.where(blocks >= 0, blocks, stripes[name][step.bin])

    def _step(self, data: bytes) -> Step:
        recorder = self.recorder
        return Step.from_bytes(data, recorder.models, recorder.candidates, len(recorder.bins) - 1)

    def _loaded(self, number: int) -> dict[str, HeadErrors]:
        found = load(self.part(number))
        if next(iter(found.values())).provenance.get("search") != self.hash:
            raise ValueError(
                f"record: {str(self.part(number))!r} is of another search, expected none; remove it"
            )
        return found

    def measure(self, number: int, run: Callable[[Sample], object]) -> None:
        """One prompt: its generation under the journal, then its part, which takes the journal's place."""
        sample = self.samples[number]
        with self.journal(number) as journal:
            if journal.kept:
                log.info(
                    "prompt %d: %d steps are in the journal, its trajectory runs again", number, journal.kept
                )
            with self.recorder.prompt(number, journal.records(), journal.append):
                run(sample)
            errors = self.recorder.errors(self._provenance([sample]))
            if not any(part.calls.any() for part in errors.values()):
                raise ValueError(
                    f"record: the generation of prompt {number} attended nowhere, expected it to"
                )
            save(self.part(number), errors)
            journal.remove()

    def finish(self) -> dict[str, HeadErrors]:
        """All parts, from all processes, added in the order of the prompts."""
        self.ranks.gather(len(self.samples), lambda number: self.part(number).read_bytes(), self._take)
        errors = {} if self.ranks.rank else self._merged()
        self.ranks.share(np.zeros(1, dtype=np.int32))  # nobody deletes before the file is there
        self._tidy()
        return errors

    def _tidy(self) -> None:
        """Nothing is left of the search but its file."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for stray in self.out.parent.glob(f".{self.out.name}.*.tmp"):  # of a writer that was killed
            stray.unlink(missing_ok=True)

    def _take(self, number: int, data: bytes) -> None:
        if not self.part(number).exists():  # measured on another machine
            write_file(self.part(number), data)

    def _merged(self) -> dict[str, HeadErrors]:
        numbers = range(len(self.samples))
        errors = {
            name: total(self._loaded(number)[name] for number in numbers).without_empty_bins()
            for name in self.recorder.models
        }
        save(self.out, errors)
        return errors

    def bar(self, prompts: int, progress: bool) -> _Bar:
        return _Bar(self.recorder, prompts, progress and self.ranks.rank == 0)


class _Bar:
    """Steps done, out of all steps of this process, with the remaining time."""

    def __init__(self, recorder: Recorder, prompts: int, shown: bool) -> None:
        self._recorder, self._prompts, self._shown, self._position = recorder, prompts, shown, 0
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(desc="search", unit="step", disable=not self._shown)
        self._recorder.on_step = self._at
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.on_step = None
        self._bar.close()

    def begin(self, position: int) -> None:
        """The prompt at this position of the process's own begins."""
        self._position = position

    def _at(self, step: int) -> None:
        schedule = self._recorder.schedule
        steps = len(schedule.levels) if schedule is not None else step + 1
        if schedule is not None:
            self._bar.total = self._prompts * steps
        self._bar.update(self._position * steps + step + 1 - self._bar.n)


def _described(value: Any) -> Any:
    """A setting as JSON: plain values as they are, arrays and tensors by their bytes, the rest by its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(entry) for entry in value]
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} {list(value.shape)} {digest}"
    return f"a {type(value).__qualname__}"
