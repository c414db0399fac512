"""The tiers that requests belong to, by the names that callers use.

In code the second one is called background, as a batch is a group of pairs.
"""

from __future__ import annotations

REALTIME = "realtime"
BACKGROUND = "batch"
