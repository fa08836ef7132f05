"""The span recursion in NumPy, where `call_spans.c` cannot be compiled: the same tables and sums, slower."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .call_spans_kernel import Floats, KernelUnit, Whole

__all__ = ["Tables"]

_NEVER = -1e30


class Tables:
    """gamma, beta and kappa of every unit along one trace of n actions; see `call_spans.c` for their meaning.

    Attributes:
        log_prob: log p(x), or that of the likeliest call trace.
    """

    def __init__(self, n: int, units: Several[KernelUnit], likeliest: bool):
        self.n, self.units = n, units
        self.merge = np.maximum if likeliest else np.logaddexp
        self.gamma: list[list[Floats]] = []
        self.beta: list[list[Floats]] = []
        self.kappa: list[list[Floats]] = []
        for i in range(len(units)):
            self._fill(i)
        roots = self.beta[-1][0][:, 0]
        value = float(self.merge.reduce(roots))
        self.log_prob = value if value > _NEVER / 2 else -np.inf

    def _low(self, i: int, s: int) -> int:
        """The first end of spans from s; of the root, only the end n is asked."""
        return self.n if i == len(self.units) - 1 else s

    def _width(self, i: int, s: int) -> int:
        return 1 if i == len(self.units) - 1 else int(self.units[i].high[s]) - s + 1

    def _sources(self, i: int, s: int) -> int:
        return int(self.units[i].taus[s]) + 1 if self.units[i].counts else 1

    def _moves(self, i: int, s: int) -> list[tuple[int, int, int, int, int]]:
        """Every way in which a call at s may go on: (callee number, its unit, time after, value returned, skip)."""
        unit = self.units[i]
        return [
            (k, int(child), then, given, self._low(i, then) - self._low(i, s))
            for k, child in enumerate(unit.callee)
            for then in range(s + 1, int(self.units[child].high[s]) + 1)
            for given in range(self.units[child].returns)
        ]

    def _rows(self, i: int, s: int) -> tuple[Floats, Floats]:
        """Weights of the fresh frame at s ``[columns]``, and of those that took a step ``[taus, F, columns]``."""
        unit = self.units[i]
        taus, first = int(unit.taus[s]), int(unit.row[s])
        later = unit.weight[first : first + taus * unit.frames]
        return unit.weight[s], later.reshape(taus, unit.frames, unit.weight.shape[1])

    def _options(self, i: int, s: int) -> tuple[Floats, Floats, Floats]:
        """What follows each choice, by source: the action ``[R, S, w]``, the calls ``[K, R, S, w]``, the return."""
        unit, w, sources = self.units[i], self._width(i, s), self._sources(i, s)
        act = np.full((unit.returns, sources, w), _NEVER)
        if unit.high[s] > s and unit.acts:
            skip = self._low(i, s + 1) - self._low(i, s)
            act[..., skip:] = self.gamma[i][s + 1][0, :, :sources]
        stop = np.where(np.arange(w) + self._low(i, s) == s, 0.0, _NEVER)
        return act, self.kappa[i][s], stop

    def _fill(self, i: int) -> None:
        unit, n = self.units[i], self.n
        calls = len(unit.callee)
        empty: list[Floats] = [np.zeros(0)] * (n + 1)
        self.gamma.append(list(empty))
        self.beta.append(list(empty))
        self.kappa.append(list(empty))
        for s in range(n, -1, -1):
            w, sources = self._width(i, s), self._sources(i, s)
            kappa = np.full((calls, unit.returns, sources, w), _NEVER)
            for k, child, then, given, skip in self._moves(i, s):
                called = self.beta[child][s][given, then - s]
                rest = self.gamma[i][then][unit.into[k] + given - 1, :, :sources] + called
                kappa[k, :, :, skip:] = self.merge(kappa[k, :, :, skip:], rest)
            self.kappa[i][s] = kappa
            fresh, later = self._rows(i, s)
            self.beta[i][s] = self._joined(i, s, fresh[None, None], slice(0, 1), stop=False)[0, :, 0]
            self.gamma[i][s] = self._joined(i, s, later, self._from(i, s), stop=True)

    def _from(self, i: int, s: int) -> NDArray[np.int64]:
        """The source of every counter of the frames that took a step."""
        taus = np.arange(int(self.units[i].taus[s]))
        return taus + 1 if self.units[i].counts else taus * 0

    def _terms(self, i: int, s: int, weight: Floats, source: slice | Whole, stop: bool) -> Floats:
        """Log-probability of every choice and all that follows, ``[choices, F, R, taus, w]``: act, calls, return."""
        calls = len(self.units[i].callee)
        act, kappa, last = self._options(i, s)
        by = weight.transpose(2, 1, 0)[:, :, None, :, None]  # [columns, F, 1, taus, 1]
        returning = by[1 + calls :, :, 0][:, :, None].transpose(2, 1, 0, 3, 4)  # [1, F, R, taus, 1]
        terms = [by[:1] + act[None, None, :, source]]
        terms += [by[1 + k : 2 + k] + kappa[k][None, None, :, source] for k in range(calls)]
        terms.append((returning + last) if stop else np.full_like(terms[0], _NEVER))
        return np.concatenate([np.broadcast_to(term, terms[0].shape) for term in terms])

    def _joined(self, i: int, s: int, weight: Floats, source: slice | Whole, *, stop: bool) -> Floats:
        found: Floats = np.maximum(self.merge.reduce(self._terms(i, s, weight, source, stop), axis=0), _NEVER)
        return found

    # -- the posterior ------------------------------------------------------------------------------------------

    def count(self, found: list[Floats]) -> None:
        """Add the posterior's expected numbers of choices to ``found``, laid out as the weights."""
        if not np.isfinite(self.log_prob):
            return
        gamma_bar = [[np.zeros_like(one) for one in gamma] for gamma in self.gamma]
        beta_bar = [[np.zeros_like(one) for one in beta] for beta in self.beta]
        beta_bar[-1][0][:, 0] = np.exp(self.beta[-1][0][:, 0] - self.log_prob)
        for i in range(len(self.units) - 1, -1, -1):
            unit, calls = self.units[i], len(self.units[i].callee)
            for s in range(self.n + 1):
                kappa_bar = np.zeros_like(self.kappa[i][s])
                fresh, later = self._rows(i, s)
                first, taus = int(unit.row[s]), int(unit.taus[s])
                parts = (
                    (
                        fresh[None, None],
                        slice(0, 1),
                        False,
                        beta_bar[i][s][None, :, None],
                        self.beta[i][s][None, :, None],
                    ),
                    (later, self._from(i, s), True, gamma_bar[i][s], self.gamma[i][s]),
                )
                for weight, source, stop, bar, value in parts:
                    share = bar * np.exp(np.minimum(self._terms(i, s, weight, source, stop) - value, 0.0))
                    share[:, value <= _NEVER / 2] = 0.0
                    number = share[: 1 + calls].sum((2, 4)).transpose(2, 1, 0)  # [taus, F, choices]
                    back = share[1 + calls].sum(-1).transpose(2, 0, 1)  # [taus, F, R]
                    expected = np.concatenate([number, back], -1)
                    rows = found[i][first : first + taus * unit.frames] if stop else found[i][s : s + 1]
                    rows += expected.reshape(rows.shape)
                    every: Any = (slice(None), np.arange(self._sources(i, s))[source])
                    for k in range(calls):
                        np.add.at(kappa_bar[k], every, share[1 + k].sum(0))
                    if unit.high[s] > s and unit.acts:
                        skip = self._low(i, s + 1) - self._low(i, s)
                        np.add.at(gamma_bar[i][s + 1][0], every, share[0].sum(0)[..., skip:])
                for k, child, then, given, skip in self._moves(i, s):
                    called, frame = self.beta[child][s][given, then - s], unit.into[k] + given - 1
                    sources = self._sources(i, s)
                    rest = self.gamma[i][then][frame, :, :sources] + called
                    part = kappa_bar[k, :, :, skip:] * np.exp(np.minimum(rest - self.kappa[i][s][k, :, :, skip:], 0.0))
                    gamma_bar[i][then][frame, :, :sources] += part
                    beta_bar[child][s][given, then - s] += part.sum()

    def draw(self, random: np.random.Generator | None) -> Whole:
        """Return a call trace of the posterior ``[I, 3]``, or the likeliest one if there is no generator."""

        def pick(options: list[float]) -> int:
            noise = 0.0 if random is None else random.gumbel(size=len(options))
            return int(np.argmax(np.array(options) + noise))

        steps = []

        def run(i: int, s: int, end: int, returned: int) -> None:
            unit, tau, frame = self.units[i], 0, 0
            while True:
                fresh, later = self._rows(i, s)
                weight = later[tau - 1, frame - 1] if frame else fresh
                source, e = (tau if unit.counts else 0), end - self._low(i, s)
                act, kappa, stop = self._options(i, s)
                calls = len(unit.callee)
                options = [weight[0] + act[returned, source, e]]
                options += [weight[1 + k] + kappa[k, returned, source, e] for k in range(calls)]
                options += [weight[1 + calls + returned] + (stop[e] if frame else _NEVER)]
                choice = pick(options)
                if choice == 1 + calls:
                    steps.append((2, returned, s))
                    return
                tau = tau + 1 if unit.counts else 1
                if choice == 0:
                    steps.append((0, 0, s))
                    s, frame = s + 1, 1
                    continue
                k = choice - 1
                moves = [move for move in self._moves(i, s) if move[0] == k and move[2] <= end]
                ends = [
                    self.beta[child][s][given, then - s]
                    + self.gamma[i][then][unit.into[k] + given - 1, returned, source, end - self._low(i, then)]
                    for _, child, then, given, _ in moves
                ]
                _, child, then, given, _ = moves[pick(ends)]
                steps.append((1, child, s))
                run(child, s, then, given)
                s, frame = then, int(unit.into[k]) + given

        run(len(self.units) - 1, 0, self.n, pick([*self.beta[-1][0][:, 0]]))
        return np.array(steps, np.int64).reshape(-1, 3)
