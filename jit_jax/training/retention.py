"""Which steps of a run are kept, by Orbax's own policies."""

import math
from collections.abc import Callable
from types import SimpleNamespace

from orbax.checkpoint import checkpoint_managers as policies

from jit_jax.errors import UserError


class Retention:
    """Keeps the newest `keep_last` steps, multiples of `keep_every`, and the step where a metric is
    best.

    keep_last: at least 1. keep_every: at least 1, or None. best: (metric, 'min' or 'max'), or None.
    Raises UserError for other values.
    """

    def __init__(
        self, keep_last: int, keep_every: int | None = None, best: tuple[str, str] | None = None
    ):
        too_small = keep_last < 1 or (keep_every is not None and keep_every < 1)
        if too_small or (best and best[1] not in ('min', 'max')):
            raise UserError(
                "keep_last and keep_every are at least 1 and best is (metric, 'min' or 'max'); "
                f'got {keep_last}, {keep_every} and {best}.'
            )
        keep = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        if best:
            keep.append(policies.BestN(get_metric_fn=_score(*best), n=1))
        self._policy = policies.AnyPreservationPolicy(keep)

    def removable(self, metrics: dict[int, dict]) -> list[int]:
        """The steps that no rule keeps, of those in `metrics` (step → its metrics, ascending)."""
        steps = [SimpleNamespace(step=step, metrics=found) for step, found in metrics.items()]
        kept = self._policy.should_preserve(steps, context=policies.PreservationContext())
        return [about.step for about, keep in zip(steps, kept) if not keep]


def _score(metric: str, better: str) -> Callable[[dict], float]:
    """metrics → a number that is higher where the metric is better; a step without it is never the
    best.
    """

    def score(metrics: dict) -> float:
        if metric not in metrics or not math.isfinite(metrics[metric]):
            return -math.inf
        return metrics[metric] if better == 'max' else -metrics[metric]

    return score
