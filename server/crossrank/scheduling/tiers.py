"""Name the tiers of requests as callers do.

In code the second one is called bulk, as a batch is a group of pairs.
"""

from __future__ import annotations

from typing import Final, Literal

Tier = Literal["realtime", "batch"]
REALTIME: Final = "realtime"
BULK: Final = "batch"
