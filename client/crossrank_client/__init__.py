"""The Python client of a crossrank server: typed answers, an error tree, retries, sync and async.

client.py      Client and AsyncClient, the public calls; many.py: thousands of documents, few requests at a time
operations.py  the operations of the API, with the JSON of their requests and answers
endpoint.py    where the server is; retries.py: when to try again, and how long to wait
transport.py   the seam that carries an operation to a server, and HTTP
grpc_*.py      gRPC, imported for grpc:// addresses only; proto/: its interface
results.py     the answers; errors.py: the exceptions
"""

from crossrank_client.client import AsyncClient, Client
from crossrank_client.errors import (
    APIError,
    BadRequest,
    ConnectionFailed,
    CrossrankClientError,
    Forbidden,
    InvalidResponse,
    NotFound,
    NotSupported,
    PartialFailure,
    PaymentRequired,
    RateLimited,
    ServerError,
    TimedOut,
    Timeout,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from crossrank_client.operations import RerankOptions
from crossrank_client.results import Account, Model, RerankResponse, RerankResult, Spent, Usage

__all__ = [
    "APIError",
    "Account",
    "AsyncClient",
    "BadRequest",
    "Client",
    "ConnectionFailed",
    "CrossrankClientError",
    "Forbidden",
    "InvalidResponse",
    "Model",
    "NotFound",
    "NotSupported",
    "PartialFailure",
    "PaymentRequired",
    "RateLimited",
    "RerankOptions",
    "RerankResponse",
    "RerankResult",
    "ServerError",
    "Spent",
    "TimedOut",
    "Timeout",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Usage",
]
