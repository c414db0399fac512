"""Convert operations to gRPC messages, and their answers to results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from crossrank_client.errors import BadRequest, NotSupported, api_error
from crossrank_client.operations import CheckReady, ListModels, Operation, Rerank
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.results import Model, RerankResponse, RerankResult, Usage

Answer = TypeVar("Answer")

_SERVICE = pb.DESCRIPTOR.services_by_name["Reranker"].full_name


@dataclass(frozen=True)
class GrpcCall(Generic[Answer]):
    """An operation as a gRPC call: its method, its message, and a function that reads the answer."""

    method: str
    request: Message
    response: type[Message]
    read: Callable[[Any], Answer]


def grpc_call_from_operation(operation: Operation[Answer]) -> GrpcCall[Answer]:
    """Return the gRPC call of an operation.

    Raises:
        BadRequest: A field cannot be sent in a message, such as a document that is no string; `param` names it.
        NotSupported: The interface has no such method.
    """
    make = _GRPC_CALLS.get(type(operation))
    if make is None:
        raise NotSupported(
            f"{type(operation).__name__} is no call of the gRPC interface; make a client with the http:// or https:// "
            "address of the server for it"
        )
    call: GrpcCall[Any] = make(operation)
    return call


def _rerank(operation: Rerank) -> GrpcCall[RerankResponse]:
    side = operation.truncation_direction
    try:
        request = pb.RerankRequest(
            query=operation.query,
            documents=operation.documents,
            model=operation.model,
            top_n=operation.top_n,
            return_documents=operation.return_documents,
            raw_scores=operation.raw_scores,
            truncate=operation.truncate,
            truncation_direction=side and f"TRUNCATION_DIRECTION_{side.upper()}",
            max_tokens_per_doc=operation.max_tokens_per_doc,
            max_chunks_per_doc=operation.max_chunks_per_doc,
        )
    except (TypeError, ValueError) as error:
        raise _refused(operation, error) from None

    def read(answer: pb.RerankResponse) -> RerankResponse:
        return RerankResponse(
            id=answer.id,
            model=answer.model,
            results=tuple(
                RerankResult(
                    operation.checked(result.index),
                    result.relevance_score,
                    result.document if result.HasField("document") else None,
                )
                for result in answer.results
            ),
            usage=Usage(answer.usage.prompt_tokens, answer.usage.total_tokens),
            truncated_documents=tuple(map(operation.checked, answer.meta.truncated_documents)),
            query_truncated=answer.meta.query_truncated,
        )

    return GrpcCall(f"/{_SERVICE}/Rerank", request, pb.RerankResponse, read)


def _list_models(operation: ListModels) -> GrpcCall[tuple[Model, ...]]:
    def read(answer: pb.ListModelsResponse) -> tuple[Model, ...]:
        return tuple(
            Model(
                model.id,
                {name: _number(value) for name, value in MessageToDict(model.details).items() if name != "object"},
            )
            for model in answer.models
        )

    return GrpcCall(f"/{_SERVICE}/ListModels", pb.ListModelsRequest(), pb.ListModelsResponse, read)


def _check_ready(operation: CheckReady) -> GrpcCall[bool]:
    def read(answer: health_pb2.HealthCheckResponse) -> bool:
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    request = health_pb2.HealthCheckRequest(service=_SERVICE)
    return GrpcCall("/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse, read)


_GRPC_CALLS: dict[type[Operation[Any]], Callable[[Any], GrpcCall[Any]]] = {
    Rerank: _rerank,
    ListModels: _list_models,
    CheckReady: _check_ready,
}


def _number(value: Any) -> Any:
    """Return a whole number as an int, as a Struct holds only floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refused(operation: Rerank, error: Exception) -> BadRequest:
    """Return the error for a field that a message cannot hold, worded as the server's where it has one."""
    texts = [("query", operation.query), *((f"documents[{i}]", text) for i, text in enumerate(operation.documents))]
    for name, text in texts:
        if not isinstance(text, str):
            return _bad_request(f"{name} is {text!r:.80}; send a string", name)
        try:
            text.encode()
        except UnicodeEncodeError as fault:
            place = f"\\u{ord(text[fault.start]):04x} at character {fault.start}"
            return _bad_request(f"{name} holds the lone surrogate {place}; send valid Unicode", name)
    for name in ("top_n", "max_tokens_per_doc", "max_chunks_per_doc"):
        value = getattr(operation, name)
        if value is not None and not (type(value) is int and 0 <= value < 2**32):
            return _bad_request(f"{name} is {value!r:.80}; send a whole number from 0 on", name)
    return _bad_request(f"the request cannot be sent: {error}", None)


def _bad_request(message: str, param: str | None) -> BadRequest:
    detail = {"type": "invalid_request_error", "param": param, "code": "invalid_value"}
    error = api_error(400, message, detail)
    assert isinstance(error, BadRequest)
    return error
