"""Show a progress bar if the caller asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(pairs: int, show: bool | None) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar inside the `with` block; yield the function that advances it by a number of pairs, or None.

    Args:
        pairs: Total number of pairs.
        show: Whether to show the bar; None does not, like False.
    """
    if not show:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=pairs, desc="Pairs", unit="pair") as bar:
        yield bar.update
