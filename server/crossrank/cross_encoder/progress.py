"""A progress bar, where the caller wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(pairs: int, show: bool | None) -> Iterator[Callable[[int], None] | None]:
    """Show how many pairs are scored, while inside; the value is called with the number of pairs that became ready.

    Args:
        pairs: How many there are.
        show: None shows nothing, as False.
    """
    if not show:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=pairs, desc="Pairs", unit="pair") as bar:
        yield bar.update
