"""Files from strangers: two hundred changes of each format. ``python tests/helpers/fuzzing.py`` tries more."""

from __future__ import annotations

from fuzzing import BAD, campaign, formats


def test_changed_files_are_read_as_they_were_or_refused() -> None:
    said: list[str] = []
    count = 200 * len(formats())
    counts = campaign(count, report=said.append)
    assert not any(counts[name] for name in BAD), said
    # Not everything is refused, and not everything is read: the changes are neither too coarse nor too fine.
    assert sum(counts.values()) == count and min(counts["same"], counts["other"]) > count / 50
    assert counts["refused"] > count / 2
