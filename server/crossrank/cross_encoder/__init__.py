"""`CrossEncoder`, and what it is made of.

`encoder` (the class) -> `calls` (one call) and `facts` (an open model) -> `handle` (a model in each process that uses
it) -> `opening` (what opens it) -> `loaded` (texts to logits, for threads and event loops); `inputs`, `activations` and
`results` are what comes in and goes out.
"""

from crossrank.cross_encoder.encoder import CrossEncoder
from crossrank.cross_encoder.results import Prediction

__all__ = ["CrossEncoder", "Prediction"]
