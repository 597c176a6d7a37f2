"""How an outbox numbers its records: each has an id in the database, and a number in a stream for the mothership.

A stream is a run of ids with a random name (its identity). The mothership keeps the last number of each stream. So it never
mixes up two outboxes, two databases of one outbox, or two boards of one name. A new stream begins with each new database, and
whenever records go to another database: the old one does not learn which numbers are given from then on.

    id      1 2 3 4 5 | 6 7 8 | 9 10        `first` of the streams: 1, 6, 9
    number  1 2 3 4 5 | 1 2 3 | 1 2         `shift`: 0, 5, 8; id = number + shift

Nothing here touches a disk or a clock. `new_identity` draws random bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

RESERVED = 1_000_000  # ids above the next one that the database marks as given, so that one write serves for many records
LEGACY = ""  # the stream of records that were numbered before streams had names
REMEMBERED = 8  # streams without records that an outbox keeps in its list


class Stream(NamedTuple):
    """A stream has the ids from `first` up to the next stream's `first`."""

    first: int
    identity: str
    shift: int
    own: int = 1  # 0: another board wrote it, and we have its card; we send its records and do not list it as ours


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
        """Begin a stream at this id, or at the next one. It replaces a last stream that has given no number."""
        first = first or self.next
        if self.streams and self.streams[-1].first >= first:
            self.streams.pop()
        self.streams.append(Stream(first, new_identity(), first - 1))

    def reserve(self) -> int:
        """Mark RESERVED ids as given, and return the first id above them. The database must store it before they are used."""
        self.reserved = self.next + RESERVED
        return self.reserved

    def of(self, record: int) -> Stream:
        """The stream that has this id."""
        return next(stream for stream in reversed(self.streams) if stream.first <= record)

    def find(self, identity: str) -> list[Stream]:
        """The streams of this name: two where records were copied from a disk that still has them."""
        return [stream for stream in self.streams if stream.identity == identity]

    def end(self, stream: Stream) -> int:
        """The first id after a stream."""
        return min((one.first for one in self.streams if one.first > stream.first), default=self.next)

    def given(self, identity: str) -> int:
        """The highest number that this outbox has given in the stream of this name; 0 if none."""
        return max((self.end(stream) - 1 - stream.shift for stream in self.find(identity)), default=0)

    def up_to(self, identity: str, number: int) -> Iterator[tuple[int, int]]:
        """Ranges of ids, first and end, that the numbers up to this one of a stream have."""
        for stream in self.find(identity):
            yield stream.first, min(self.end(stream), number + stream.shift + 1)

    def own(self) -> list[str]:
        """Names of our own streams, the newest first, as the question to the mothership lists them."""
        return list(dict.fromkeys(stream.identity for stream in reversed(self.streams) if stream.own))

    def rename(self, identity: str) -> str:
        """Give a stream a new name, and return it: the mothership has numbers under the old name that we never gave."""
        new = new_identity()
        self.streams = [one._replace(identity=new) if one.identity == identity else one for one in self.streams]
        return new

    def disown(self) -> None:
        """Mark all streams as another board's: this card is a copy of its card."""
        self.streams = [one._replace(own=0) for one in self.streams]

    def behind(self, other: Numbering) -> tuple[Numbering, int]:
        """Append our streams to another outbox's, with names and numbers unchanged; and how much our ids rise by that."""
        by = other.reserved
        ours = [one._replace(first=one.first + by, shift=one.shift + by) for one in self.streams]
        return Numbering([*other.streams, *ours], self.next + by), by

    def forget(self, oldest: int) -> bool:
        """Drop the streams whose ids are all below the oldest record's, but keep the last few. True if any was dropped."""
        old = [one for one in self.streams[:-REMEMBERED] if self.end(one) <= oldest]
        self.streams = [one for one in self.streams if one not in old]
        return bool(old)

    def rows(self) -> Iterator[tuple[int, str, int, int]]:
        """Rows of the database's table `stream`."""
        yield from self.streams
