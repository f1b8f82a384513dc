"""Which chunks of a pass this process writes, and which others that are at the same folder."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType

from keras_ssd.data.mining.scores import Chunk, Scores


class Share:
    """The part that one process has in a pass; nobody hands it out.

    It claims a chunk, writes it and goes on with the one after it. Where that is there or claimed,
    it looks for the longest stretch that is left: it begins in the middle if another process is
    coming from the front. So the pool is read in few long pieces, by however many processes. The
    system ends the claims of a killed process, and another one comes by.

    Args:
        scores: The folder.
        missing: The numbers of the chunks to write.

    Attributes:
        left: The numbers of those that are not there yet, as far as it is known here.
        theirs: The numbers of those that others wrote meanwhile.
    """

    def __init__(self, scores: Scores, missing: Collection[int]) -> None:
        self._scores = scores
        self.left, self.theirs = set(missing), set[int]()
        self._claims: dict[int, contextlib.ExitStack] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Share:
        self._cleanup.enter_context(_made(self._scores.folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in list(self._claims):
            self._release(number)
        self._cleanup.close()

    def take(self, following: int) -> int | None:
        """Claims a chunk that is missing: `following` if it can be had.

        Returns:
            Its number; None where all that are left are claimed.
        """
        self.look()
        busy = set(self._claims)
        if following in self.left - busy and self._claim(following):
            return following
        while free := sorted(self.left - busy):
            number = _place(free, busy)
            if self._claim(number):
                return number
            busy.add(number)
        return None

    def put(self, number: int, chunk: Chunk) -> None:
        """Writes a chunk that was taken, and lets go of it."""
        self._scores.write(number, chunk)
        self.left.discard(number)
        self._release(number)
        self.look()

    def look(self) -> None:
        """Notes what others have written."""
        mine = set(self._claims)  # before `left`, of which a chunk is taken before it is let go
        there = self._scores.present(self.left - mine)
        self._note_theirs({number for number in there if self._scores.is_whole(number)})

    def _claim(self, number: int) -> bool:
        """Whether a chunk is this process' to write: free, and still missing once it is claimed."""
        with contextlib.ExitStack() as claim:
            if not claim.enter_context(self._scores.claimed(number)):
                return False
            if self._scores.is_whole(number):
                self._note_theirs({number})
                return False
            self._claims[number] = claim.pop_all()
        return True

    def _note_theirs(self, numbers: Collection[int]) -> None:
        self.theirs.update(numbers)
        self.left.difference_update(numbers)

    def _release(self, number: int) -> None:
        self._claims.pop(number).close()


def _place(free: Sequence[int], busy: Collection[int]) -> int:
    """Where to begin: in the longest stretch of free numbers that follow on one another."""
    stretches = [[free[0]]]
    for number in free[1:]:
        if number == stretches[-1][-1] + 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    longest = max(stretches, key=len)
    return longest[len(longest) // 2] if longest[0] - 1 in busy else longest[0]


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and those above it; takes back what stays empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty, or that another process took
            for each in new:
                each.rmdir()
