"""`CrossEncoder`, and what it is made of.

`encoder` (the class) -> `opening` (what opens a model) and `handle` (a model in each process that uses it) -> `loaded`
(texts to logits, for threads and event loops); `inputs`, `activations` and `results` are what comes in and goes out.
"""

from crossrank.cross_encoder.encoder import CrossEncoder
from crossrank.cross_encoder.results import Prediction

__all__ = ["CrossEncoder", "Prediction"]
