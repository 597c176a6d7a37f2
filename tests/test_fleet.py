"""A small fleet over real brokers: what `make fleet` does with 2,000 boards."""

from __future__ import annotations

from itertools import islice

from bus import REMOTE_FIRST, REMOTE_MAX, pauses


def test_pauses_grow_to_their_end_and_are_drawn() -> None:
    """Half of each pause is drawn: boards that lost one broker at once do not return at once."""
    fleet = [list(islice(pauses(REMOTE_FIRST, REMOTE_MAX), 10)) for _ in range(200)]
    for turn, drawn in enumerate(zip(*fleet, strict=True)):
        whole = min(REMOTE_FIRST * 2**turn, REMOTE_MAX)
        assert all(whole / 2 <= pause <= whole for pause in drawn)
        assert max(drawn) - min(drawn) > whole / 4
