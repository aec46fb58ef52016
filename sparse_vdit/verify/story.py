"""What the page of a search is made of: everything that follows from the files of its folder, worked out once.

Next: `sections.py`, `page.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparse_vdit.plan import SparsePlan
from sparse_vdit.search import HeadErrors
from sparse_vdit.search.decisions import Decisions

from .clips import Pairs, load_clips
from .folder import Folder
from .heads import Picture, load_pictures
from .judge import Verification
from .request import Request, request_of
from .transfer import NoRivalError, Transfer, mean_error, planned_ms, transfer

log = logging.getLogger(__name__)


@dataclass
class Story:
    """What the page is made of.

    Args:
        folder: of the search.
        progress: told what is done next.
    """

    folder: Folder
    progress: Callable[[str], object] = lambda _: None

    @cached_property
    def plan(self) -> SparsePlan:
        """The plan."""
        return self.folder.plan

    @cached_property
    def request(self) -> Request:
        """How the plan was asked for."""
        return request_of(self.plan)

    @cached_property
    def errors(self) -> dict[str, HeadErrors]:
        """The recording in the plan's bins, joined where the plan has fewer."""
        found = {}
        for name, part in self.plan.transformers.items():
            if name not in self.folder.errors:
                raise ValueError(
                    f"report: the errors have no {name}, expected those that the plan was chosen on"
                )
            recorded = self.folder.errors[name]
            found[name] = recorded if recorded.bins == part.bins else recorded.rebinned(part.bins)
        return found

    @cached_property
    def options(self) -> dict[str, Any]:
        """Arguments for rules and fronts: those of the plan."""
        stock = self.folder.stock
        found: dict[str, Any] = {"weights": self.request.weights}
        if self.request.objective != "paper":
            found["remainder"] = self.request.remainder
        if stock is not None:
            found["levels"] = stock.levels
        return found

    @cached_property
    def dense_ms(self) -> float | None:
        """Attention of a dense step as measured."""
        return None if self.folder.stock is None else self.folder.stock.attention_ms

    @cached_property
    def decisions(self) -> Decisions:
        """What could be chosen."""
        return Decisions(
            self.errors,
            self.folder.cost,
            dense_above=self.request.dense_above,
            **self.options,
            **self.request.allowed,
        )

    @cached_property
    def attention_ms(self) -> tuple[float, float]:
        """Attention of a step, dense and predicted under the plan."""
        return self.decisions.dense_attention_ms(self.dense_ms), planned_ms(
            self.decisions, self.plan, self.dense_ms
        )

    @cached_property
    def rest_ms(self) -> float:
        """The step without attention; 0 where it was not measured."""
        return 0.0 if self.folder.stock is None else self.folder.stock.rest_ms

    def speedup(self, attention_ms: float) -> float:
        """Predicted for an attention time."""
        return (self.attention_ms[0] + self.rest_ms) / (attention_ms + self.rest_ms)

    @property
    def what(self) -> str:
        """What the predicted speed-ups are of."""
        return "speed-up of attention" if self.folder.stock is None else "speed-up of a step"

    @cached_property
    def error(self) -> float:
        """Mean error of the plan."""
        options = {
            key: value for key, value in self.options.items() if key in ("levels", "weights", "remainder")
        }
        return mean_error(self.errors, self.folder.cost, self.plan, **options)

    @cached_property
    def found(self) -> Verification | None:
        """What was achieved."""
        return self.folder.verification

    @cached_property
    def transfer(self) -> Transfer | None:
        """How the plan does on other prompts."""
        others = self.folder.others
        if others is None:
            return None
        binned = {
            name: part if part.bins == self.errors[name].bins else _in_bins(part, self.errors[name])
            for name, part in others.items()
        }
        options = self.options | self.request.rule | {"dense_ms": self.dense_ms}
        try:
            return transfer(self.errors, binned, self.folder.cost, self.plan, **options)
        except NoRivalError as error:
            log.warning("report: the page has no transfer test: %s", error)
            return None

    @cached_property
    def clips(self) -> Pairs:
        """Small copies of the judged videos."""
        return load_clips(self.folder.folder, self.plan)

    @cached_property
    def pictures(self) -> list[Picture]:
        """Attention maps of example heads."""
        return load_pictures(self.folder.folder, self.plan)


def _in_bins(part: HeadErrors, like: HeadErrors) -> HeadErrors:
    try:
        return part.rebinned(like.bins)
    except ValueError:
        raise ValueError(
            f"report: the other prompts were recorded in bins {list(part.bins)}, expected those of the plan, "
            f"{list(like.bins)}"
        ) from None


def percent(value: float) -> str:
    return f"{value:+.1%}" if abs(value) >= 0.0005 else "0.0%"


def decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"
