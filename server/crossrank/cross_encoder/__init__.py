"""Define `CrossEncoder`, the public class of the library.

`encoder` (the class) -> `calls` (steps of one call) and `facts` (properties of an open model) -> `handle` (one model
for each process) -> `opening` (opens it) -> `loaded` (texts to logits, for threads and event loops). `inputs`,
`activations` and `results` handle arguments and return values.
"""

from crossrank.cross_encoder.encoder import CrossEncoder
from crossrank.cross_encoder.results import Prediction

__all__ = ["CrossEncoder", "Prediction"]
