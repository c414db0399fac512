"""The Python client of a crossrank server: typed answers, an error tree, retries, sync and async.

client.py      Client and AsyncClient: what you call
operations.py  what can be asked, and how each question and answer reads on the wire
transport.py   the seam that carries an operation to a server; HTTP here
retries.py     when to try again, and how long to wait
results.py, errors.py  what comes back, or is raised
"""

from crossrank_client.client import AsyncClient, Client
from crossrank_client.errors import (
    APIError,
    BadRequest,
    ConnectionFailed,
    CrossrankClientError,
    InvalidResponse,
    NotFound,
    PaymentRequired,
    RateLimited,
    ServerError,
    TimedOut,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from crossrank_client.results import Model, RerankResponse, RerankResult, Usage

__all__ = [
    "APIError",
    "AsyncClient",
    "BadRequest",
    "Client",
    "ConnectionFailed",
    "CrossrankClientError",
    "InvalidResponse",
    "Model",
    "NotFound",
    "PaymentRequired",
    "RateLimited",
    "RerankResponse",
    "RerankResult",
    "ServerError",
    "TimedOut",
    "Timeout",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Usage",
]
