"""Whose number is whose: an outbox gives each record an id, and tells the mothership a stream and a number in it.

A stream is a run of ids with a random name (its identity). The mothership keeps one last number for each stream, so that two
outboxes, two lives of one, or two boards of one name never take each other's numbers for their own. A new stream begins with
each new database, and whenever the disk below an outbox changes: what the disk does not know about is then no number of its.

    id      1 2 3 4 5 | 6 7 8 | 9 10        `first` of the streams: 1, 6, 9
    number  1 2 3 4 5 | 1 2 3 | 1 2         `shift`: 0, 5, 8; id = number + shift

Everything here is pure: no disk, no clock; only `new_identity` draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

RESERVED = 1_000_000  # ids ahead of the next one that the disk knows as taken
LEGACY = ""  # the stream of records that were numbered before streams had names
REMEMBERED = 8  # streams without records that an outbox still knows as its own


class Stream(NamedTuple):
    """Ids from `first` up to the next stream's are of this stream."""

    first: int
    identity: str
    shift: int
    own: int = 1  # 0: of another board, whose card this was; its records are sent, but it is not claimed as ours


def new_identity() -> str:
    """64 random bits: of a million streams two are the same with a probability of 3 in 100 million."""
    return os.urandom(8).hex()


class Numbering:
    """The streams of one outbox, the oldest first, and the next id."""

    def __init__(self, streams: Iterable[Stream] = (), next_id: int = 1) -> None:
        self.streams = [Stream(*row) for row in streams]
        self.next = next_id
        self.reserved = next_id

    def begin(self, first: int = 0) -> None:
        """A new stream, from this id on, or from the next; one that has given no number yet is replaced."""
        first = first or self.next
        if self.streams and self.streams[-1].first >= first:
            self.streams.pop()
        self.streams.append(Stream(first, new_identity(), first - 1))

    def reserve(self) -> int:
        """The id below which all ids count as given from now on: what the disk must remember before they are."""
        self.reserved = self.next + RESERVED
        return self.reserved

    def of(self, record: int) -> Stream:
        """The stream of a record's id."""
        return next(stream for stream in reversed(self.streams) if stream.first <= record)

    def find(self, identity: str) -> list[Stream]:
        """What is ours of this name. It may be there twice: as it was taken over from a disk, and as that disk has it still."""
        return [stream for stream in self.streams if stream.identity == identity]

    def end(self, stream: Stream) -> int:
        """The first id behind a stream."""
        return min((one.first for one in self.streams if one.first > stream.first), default=self.next)

    def given(self, identity: str) -> int:
        """The highest number that was given under this name; 0 for none."""
        return max((self.end(stream) - 1 - stream.shift for stream in self.find(identity)), default=0)

    def up_to(self, identity: str, number: int) -> Iterator[tuple[int, int]]:
        """The ids of this name's numbers up to one: from, and below which."""
        for stream in self.find(identity):
            yield stream.first, min(self.end(stream), number + stream.shift + 1)

    def own(self) -> list[str]:
        """The streams that are ours, the newest first: as the mothership is told."""
        return list(dict.fromkeys(stream.identity for stream in reversed(self.streams) if stream.own))

    def rename(self, identity: str) -> str:
        """Give a stream a new name: the mothership has numbers under the old one that we never gave. The new name."""
        new = new_identity()
        self.streams = [one._replace(identity=new) if one.identity == identity else one for one in self.streams]
        return new

    def disown(self) -> None:
        """None of the streams so far is ours: this is a copy of another board's card."""
        self.streams = [one._replace(own=0) for one in self.streams]

    def behind(self, other: Numbering) -> tuple[Numbering, int]:
        """Ours put behind another outbox's ids, under the same names and numbers; and by how much our ids rise."""
        by = other.reserved
        ours = [one._replace(first=one.first + by, shift=one.shift + by) for one in self.streams]
        return Numbering([*other.streams, *ours], self.next + by), by

    def forget(self, oldest: int) -> bool:
        """Drop streams all of whose ids are below the oldest record's, but for the last few; whether any was."""
        old = [one for one in self.streams[:-REMEMBERED] if self.end(one) <= oldest]
        self.streams = [one for one in self.streams if one not in old]
        return bool(old)

    def rows(self) -> Iterator[tuple[int, str, int, int]]:
        """For the table."""
        yield from self.streams
