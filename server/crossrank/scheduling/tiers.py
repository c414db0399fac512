"""Name the tiers of requests, as callers write them.

In code the second one is called background, as a batch is a group of pairs.
"""

from __future__ import annotations

from typing import Final, Literal

Tier = Literal["realtime", "batch"]
REALTIME: Final = "realtime"
BACKGROUND: Final = "batch"
