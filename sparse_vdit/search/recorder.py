"""The recorder: takes the place of a pipeline's attention and measures every candidate on sampled rows.

    with observe(pipe, recorder), recorder.watching(pipe):      # `record` in recording.py does all this
        with recorder.prompt(0):
            pipe(prompt)

Follow "dense" hands the dense output on: errors do not depend on choices. Follow "choice" is the paper's
greedy Algorithm 1: every layer of every step is decided at once by `_C.select_paper` and its mixed output
handed on. Guidance branches of a step (a batch of two, or two calls) are summed. Everything drawn at random
depends on (seed, prompt, step, layer) alone, and sums are rounded once per (prompt, step): the record that
goes to the journal is the record that is added, so that an interrupted search ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_vdit import _C
from sparse_vdit.attention import attention
from sparse_vdit.geometry import Json, integer, shown
from sparse_vdit.pattern import Pattern
from sparse_vdit.plan.identity import ModelIdentity
from sparse_vdit.plan.layer import LayerPlan
from sparse_vdit.plan.sparse import identity
from sparse_vdit.plan.transformer import checked_bins, checked_name

from .candidates import PENALTY, THRESHOLD, Candidates
from .estimate import Estimate, estimated
from .head_errors import MAX_ROWS, MEASURES, HeadErrors
from .probe import BETAS, ProbeResult, probe, sample_rows
from .schedule import Schedule, schedule_of
from .sensitivity import HeadOutputs, gradient_power
from .step import Step, StepSums, seed_of

TRANSFORMERS = ("transformer", "transformer_2")
BINS = tuple(number / 10 for number in range(11))
ROWS = 64
FOLLOW = ("dense", "choice")
POWER_BINS = 3  # log power is nearly straight in noise level between them

Share = Callable[[NDArray[np.int32]], NDArray[np.int32]]


@dataclass(frozen=True)
class Choosing:
    """What "choice" needs: the paper's lambda and epsilon (Eq. 2 and 3), and its modes by number; None: all."""

    penalty: float = PENALTY
    threshold: float = THRESHOLD
    among: tuple[int, ...] | None = None


class Recorder:
    """Measures all candidates wherever a pipeline attends.

    Args:
        transformers: transformers (or `ModelIdentity`) by name, both experts of Wan 2.2 among them; or one.
        candidates: what is measured, e.g. `ladder(geometry)`.
        bins: edges of noise level; ten by default.
        rows: query rows sampled per head and call.
        seed: of everything drawn.
        follow: "dense" or "choice".
        penalty, threshold: lambda and epsilon of "choice".
        among: numbers of the candidates that "choice" may take (the paper: `paper_modes`), full always; None: all
            but mass stripes. All candidates are measured.
        listen: at most so many measured steps in every bin, evenly spread; None: all. The rest is dense.
        power: random directions of the output per bin, whose gradients say how much each head is felt (each
            costs about three steps of the model: a forward with its graph and a backward pass); 0: none.
        power_prompts: the prompts 0 .. power_prompts - 1 measure it, the others save that time.
        power_bins: it is measured in so many bins, evenly spread, the others lie between (with two transformers: in
            all that each sees).
        projections: transformer name -> float [layers, heads, D, D], L with L^T L = W_h^T W_h for each
            head's slice W_h of the output projection: errors are then measured behind it.
        stripes: transformer name -> int32 [bins, layers, heads, M], mass stripes of an earlier recording.

    Raises:
        ValueError, TypeError: one sentence.
    """

    def __init__(
        self,
        transformers: Any,
        candidates: Candidates,
        bins: Sequence[float] = BINS,
        *,
        rows: int = ROWS,
        seed: int = 0,
        follow: str = "dense",
        penalty: float = PENALTY,
        threshold: float = THRESHOLD,
        among: Iterable[int] | None = None,
        listen: int | None = None,
        power: int = 0,
        power_prompts: int = 1,
        power_bins: int = POWER_BINS,
        projections: Mapping[str, NDArray[Any]] | None = None,
        stripes: Mapping[str, NDArray[np.int32]] | None = None,
    ) -> None:
        if not isinstance(candidates, Candidates):
            raise TypeError(f"recorder: candidates is {type(candidates).__name__}, expected Candidates")
        given = transformers if isinstance(transformers, Mapping) else {TRANSFORMERS[0]: transformers}
        self.models = {checked_name(name): identity(model) for name, model in given.items()}
        self.candidates = candidates
        self.bins = checked_bins(bins)
        self.seed = integer("recorder", "seed", seed, 0, 2**63 - 1)
        asked = integer("recorder", "rows", rows, 1, MAX_ROWS)
        self.rows = len(sample_rows(candidates.geometry, asked, 0))
        if follow not in FOLLOW:
            raise ValueError(f"recorder: follow is {shown(follow)}, expected one of {', '.join(FOLLOW)}")
        if follow == "choice" and listen is not None:
            raise ValueError(f"recorder: listen is {listen} with follow='choice', expected None (all steps)")
        self.choosing = None
        if follow == "choice":
            self.choosing = Choosing(float(penalty), float(threshold), self._modes(among))
        self.listen = None if listen is None else integer("recorder", "listen", listen, 1)
        self.power = integer("recorder", "power", power, 0, 1024)
        self.power_prompts = integer("recorder", "power_prompts", power_prompts, 1)
        self.power_bins = integer("recorder", "power_bins", power_bins, 1)
        self.measure = MEASURES[0 if projections is None else 1]
        self._projections = projections
        self._given = {name: self._stripes_of(name, stripes) for name in self.models}
        self.reset()
        self.share: Share | None = None
        self.on_step: Callable[[int], object] | None = None
        self.schedule: Schedule | None = None
        self._prompt: int | None = None
        self._last = -1
        self._step: Step | None = None
        self._append: Callable[[bytes], object] | None = None
        self._known: dict[int, dict[str, NDArray[np.int32]]] = {}
        self._sums = StepSums(self.models, candidates, len(self.bins) - 1)
        self._current = next(iter(self.models)) if len(self.models) == 1 else None
        self._outputs: HeadOutputs | None = None
        self._only_full = Candidates(candidates.geometry, (Pattern.full(),))

    def reset(self) -> None:
        """Forgets which key blocks became mass stripes, except those it was given."""
        self.stripes = {name: blocks.copy() for name, blocks in self._given.items()}

    def describe(self) -> Json:
        """All that the numbers depend on, apart from weights, prompts and pipeline settings."""
        return {
            "transformers": {name: model.to_json() for name, model in self.models.items()},
            "geometry": self.candidates.geometry.to_json(),
            "candidates": self.candidates.hash,
            "bins": list(self.bins),
            "betas": [float(beta) for beta in BETAS],
            "rows": self.rows,
            "seed": self.seed,
            "follow": self.follow,
            "choosing": None if self.choosing is None else list(astuple(self.choosing)),
            "listen": self.listen,
            "power": [self.power, self.power_prompts, self.power_bins],
            "projections": _digest(self._projections or {}),
            "stripes": _digest(self._given),
        }

    @property
    def follow(self) -> str:
        """ "dense" or "choice"."""
        return FOLLOW[self.choosing is not None]

    def estimate(
        self, steps: int, prompts: int = 1, branches: int = 1, step_seconds: float = 0.0
    ) -> Estimate:
        """Memory, disk and time of the measuring, beforehand; a short trial on random numbers is timed.

        Args:
            steps: denoising steps of a generation.
            prompts: generations.
            branches: samples per step (2 with guidance).
            step_seconds: of a dense step, which gradients are priced by; 0: they are counted, not priced.
        """
        heard = steps if self.listen is None else min(steps, self.listen * (len(self.bins) - 1))
        most = self.power_bins if len(self.models) == 1 else len(self.bins) - 1
        powered = min(prompts, self.power_prompts) * min(len(self.bins) - 1, heard, most)
        gradients = powered * (1 + 2 * self.power) if self.power else 0  # backward costs two forwards
        return estimated(
            self.models, self.candidates, len(self.bins) - 1, self.rows, heard, prompts, branches,
            gradients, step_seconds,
        )  # fmt: skip

    @contextmanager
    def prompt(
        self,
        number: int,
        records: Iterable[bytes] = (),
        append: Callable[[bytes], object] | None = None,
    ) -> Iterator[Recorder]:
        """One generation: between entering and leaving, the pipeline runs once.

        Args:
            number: of the prompt; with the seed, it decides which rows are sampled.
            records: what a journal already holds of this prompt: those steps are not measured again.
            append: takes the record of every step as soon as it is whole.
        """
        if self._prompt is not None:
            raise ValueError(
                f"recorder: prompt {number} begins inside prompt {self._prompt}, expected its end"
            )
        self._sums = StepSums(self.models, self.candidates, len(self.bins) - 1)
        self._known = {}
        for data in records:
            step = Step.from_bytes(data, self.models, self.candidates, len(self.bins) - 1)
            self._known[step.number] = step.choice
            self._add(step)
        self._append, self._step, self._last, self.schedule = append, None, -1, None
        self._prompt = integer("recorder", "prompt", number, 0)
        try:
            yield self
            self._finish_step()
        finally:
            self._prompt = None

    def errors(self, provenance: Mapping[str, Any] | None = None) -> dict[str, HeadErrors]:
        """What the last prompt gave, by transformer."""
        about: dict[str, Any] = {
            "measure": self.measure,
            "rows": self.rows,
            "seed": self.seed,
            "provenance": dict(provenance or {}),
        }
        return {
            name: HeadErrors(
                model,
                self.candidates,
                self.bins,
                **about,
                **self._sums.rounded(name),
                stripes=np.where(self._sums.calls[name][:, :, None, None] > 0, self.stripes[name], -1),
            )
            for name, model in self.models.items()
        }

    def __call__(self, step: int, noise_level: float, layer: int, q: Any, k: Any, v: Any, dense: Any) -> Any:
        """What `observe` calls instead of attention; None asks for the dense output."""
        if self._outputs is not None:
            return self._outputs.answer(layer, dense)
        name = self._enter(step, layer, q)
        if step in self._known:
            known = self._known[step].get(name)
            return None if known is None else self._mixed(known[layer], q, k, v, dense)
        if not self._listens(step):
            return None
        current = self._at_step(step, noise_level)
        result = self._measured(current, name, layer, q, k, v, dense)
        current.add(name, layer, len(q), result)
        if self.choosing is None:
            return None
        choice = current.choice_of(name, layer)
        if choice is None:
            choice = self._decide(result, len(q), q.shape[-1])
            current.set_choice(name, layer, choice)
        return self._mixed(choice, q, k, v, dense)

    def _enter(self, step: int, layer: int, q: Any) -> str:
        if self._prompt is None:
            raise ValueError(
                "recorder: attention is called outside a prompt, expected `with recorder.prompt(0):`"
            )
        name = self._current
        if name is None:
            raise ValueError(
                f"recorder: it does not know which of {', '.join(self.models)} attends, "
                "expected `with recorder.watching(pipe):`"
            )
        if step < self._last:
            raise ValueError(
                f"recorder: step {step} comes after step {self._last} of prompt {self._prompt}, "
                "expected one generation per prompt"
            )
        if step != self._last:
            self._finish_step()
            self._last = step
        model, geometry = self.models[name], self.candidates.geometry
        wanted = (model.heads, geometry.tokens, model.head_dim)
        if tuple(q.shape[1:]) != wanted or not 0 <= layer < model.layers:
            raise ValueError(
                f"recorder: layer {layer} of {name} has q of shape {tuple(q.shape)}, "
                f"expected (batch, {wanted[0]}, {wanted[1]}, {wanted[2]}) in {model.layers} layers"
            )
        return name

    def _listens(self, step: int) -> bool:
        return (
            self.listen is None
            or self.schedule is None
            or step in self.schedule.listened(self.bins, self.listen)
        )

    def _at_step(self, step: int, noise_level: float) -> Step:
        if self._step is None:
            if not 0 <= noise_level <= 1 + 1e-6:
                raise ValueError(f"recorder: the noise level of step {step} is {noise_level}, expected 0..1")
            found = int(np.searchsorted(self.bins, noise_level, side="right")) - 1
            bin_ = min(found, len(self.bins) - 2)
            self._step = Step(step, bin_, self.models, self.candidates, follows=self.choosing is not None)
        return self._step

    def _measured(
        self, current: Step, name: str, layer: int, q: Any, k: Any, v: Any, dense: Any
    ) -> ProbeResult:
        assert self._prompt is not None
        seed = seed_of(self.seed, self._prompt, current.number, layer, list(self.models).index(name))
        rows = sample_rows(self.candidates.geometry, self.rows, seed)
        length = getattr(dense, "kv_len", None)
        options: dict[str, Any] = {
            "scale": q.shape[-1] ** -0.5,
            "kv_len": None if length is None else np.asarray(_numpy(length), dtype=np.int64),
        }
        self._refuse(current.number, layer, _not_finite(q))
        q, k, v = (
            tensor.detach().cpu() if hasattr(tensor, "detach") else tensor for tensor in (q, k, v)
        )  # the probe reads memory of the CPU
        projection = None if self._projections is None else self._projections[name][layer]
        stripes = self._frozen(current, name, layer, lambda: probe(self._only_full, q, k, v, rows, **options))
        found = probe(self.candidates, q, k, v, rows, stripes=stripes, projection=projection, **options)
        broken = ~(np.isfinite(found.energy) & np.isfinite(found.mass).all(axis=-1))
        self._refuse(current.number, layer, int(np.argmax(broken)) if broken.any() else None)
        return found

    def _refuse(self, step: int, layer: int, head: int | None) -> None:
        if head is not None:
            raise ValueError(
                f"recorder: attention of step {step}, layer {layer}, head {head} is not finite, "
                "expected finite q, k, v"
            )

    def _frozen(
        self, current: Step, name: str, layer: int, measure: Callable[[], ProbeResult]
    ) -> NDArray[np.int32] | None:
        """The mass stripes [H, M] of this bin and layer, chosen at the first call ever."""
        blocks = self.candidates.stripe_blocks
        if not blocks:
            return None
        cell: NDArray[np.int32] = self.stripes[name][current.bin, layer]
        if (cell < 0).any():
            mass = measure().mass
            self._refuse(current.number, layer, _first(~np.isfinite(mass.sum(axis=-1))))
            found = np.argsort(-mass, axis=-1, kind="stable")[:, :blocks].astype(np.int32)
            cell[:] = found if self.share is None else self.share(found)
        current.stripes[name][layer] = cell
        return cell

    def _decide(self, result: ProbeResult, batch: int, head_dim: int) -> NDArray[np.int32]:
        assert self.choosing is not None
        patterns = len(self.candidates.patterns)
        mse = result.plain[:, :patterns] / float(self.rows * batch * head_dim)
        if self.choosing.among is not None:
            left_out = np.setdiff1d(np.arange(patterns), [*self.choosing.among, self.candidates.full])
            mse[:, left_out] = np.nan
        sparsity = 1 - self.candidates.density[:patterns]
        chosen: NDArray[np.int32] = _C.select_paper(
            np.ascontiguousarray(mse, dtype=np.float64),
            np.ascontiguousarray(sparsity, dtype=np.float64),
            self.choosing.penalty,
            self.choosing.threshold,
            self.candidates.full,
        )
        return chosen

    def _mixed(self, choice: NDArray[np.int32], q: Any, k: Any, v: Any, dense: Any) -> Any:
        if (choice == self.candidates.full).all():
            return None
        patterns = tuple(self.candidates.patterns[number] for number in choice)
        layer = LayerPlan.from_pool(self.candidates.pool, choice.tolist(), [None] * len(choice), patterns)
        return attention(q, k, v, layer=layer, kv_len=getattr(dense, "kv_len", None))

    def _finish_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            data = step.to_bytes()
            if self._append is not None:
                self._append(data)
            self._add(Step.from_bytes(data, self.models, self.candidates, len(self.bins) - 1))
        if self._last >= 0 and self.on_step is not None:
            self.on_step(self._last)

    def _add(self, step: Step) -> None:
        self._sums.add(step)
        for name, blocks in step.stripes.items():
            known = (blocks >= 0).all(axis=(-2, -1)) if blocks.size else np.zeros(len(blocks), dtype=bool)
            self.stripes[name][step.bin][known] = blocks[known]

    def _modes(self, among: Iterable[int] | None) -> tuple[int, ...] | None:
        if among is None:
            return None
        most = len(self.candidates.patterns) - 1
        return tuple(sorted({integer("recorder", "a number in among", number, 0, most) for number in among}))

    def _stripes_of(self, name: str, given: Mapping[str, NDArray[np.int32]] | None) -> NDArray[np.int32]:
        model = self.models[name]
        shape = (len(self.bins) - 1, model.layers, model.heads, self.candidates.stripe_blocks)
        if given is None or name not in given:
            return np.full(shape, -1, dtype=np.int32)
        if given[name].shape != shape:
            raise ValueError(f"recorder: stripes of {name} have shape {given[name].shape}, expected {shape}")
        return np.array(given[name], dtype=np.int32)

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[Recorder]:
        """Lets the recorder know which transformer attends, what the steps are, and (for `power`) run it again."""
        hooks: list[Any] = []
        try:
            for name in self.models:
                module = getattr(pipe, name, None)
                module = pipe if module is None and len(self.models) == 1 else module
                module = getattr(module, "_orig_mod", module)
                hooks += self._hooks(name, module, pipe)
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, name: str, module: Any, pipe: Any) -> list[Any]:
        def before(_: Any, __: Any) -> None:
            self._current = name
            self.schedule = self.schedule or schedule_of(pipe)

        def after(module: Any, positional: Any, named: Mapping[str, Any], _: Any) -> None:
            if self._wants_power(name):
                self._measure_power(name, lambda: module(*positional, **{**named, "return_dict": False})[0])

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _wants_power(self, name: str) -> bool:
        """At the middle step of `power_bins` bins; with two transformers, at the first step of each in every bin."""
        step = self._step
        if not self.power or self._outputs is not None or step is None or name in step.power:
            return False
        if self._prompt is None or self._prompt >= self.power_prompts:
            return False
        if self.schedule is None or len(self.models) > 1:
            return not self._sums.probes[name][step.bin]
        if step.bin not in self.schedule.felt(self.bins, self.power_bins, self.listen):
            return False
        return step.number == self.schedule.middle(self.bins, step.bin, self.listen)

    def _measure_power(self, name: str, run: Callable[[], Any]) -> None:
        assert self._step is not None
        assert self._prompt is not None
        model = self.models[name]
        seed = seed_of(
            self.seed, self._prompt, self._step.number, model.layers, list(self.models).index(name)
        )
        self._outputs = HeadOutputs()
        try:
            found = gradient_power(
                self._outputs, run, (model.layers, model.heads), probes=self.power, seed=seed
            )
        finally:
            self._outputs = None
        self._step.power[name] = (found.astype(np.float32), self.power)


def _digest(arrays: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(_numpy(arrays[name])).tobytes())
    return found.hexdigest()


def _numpy(array: Any) -> NDArray[Any]:
    return np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else array)


def _first(broken: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(broken)) if broken.any() else None


def _not_finite(q: Any) -> int | None:
    """The first head of q [B, H, N, D] with a number that is not finite."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(q, torch.Tensor):
        if bool(torch.isfinite(q).all()):
            return None
        return _first(_numpy(~torch.isfinite(q).flatten(2).all(dim=2).all(dim=0)))
    return _first(~np.isfinite(q).all(axis=(0, 2, 3)))


def models_of(pipe: Any) -> dict[str, ModelIdentity]:
    """Identities of a pipeline's transformers by name."""
    found = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    given = {
        name: ModelIdentity.from_transformer(module) for name, module in found.items() if module is not None
    }
    return given or {TRANSFORMERS[0]: ModelIdentity.from_transformer(pipe)}
