"""Turn an error into a gRPC status whose details name the code, the field and the time to wait."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from crossrank.errors import shown_error

DOMAIN = "crossrank"
DETAILS_KEY = "grpc-status-details-bin"


def status_from_error(error: Exception, request_id: str) -> Status:
    """Return the status that a caller sees; for an internal error it has only the id under which the cause is logged.

    Source: https://google.aip.dev/193
    """
    shown = shown_error(error, request_id)
    facts = {"http_status": str(shown.http_status), "type": shown.error_type, "code": shown.code}
    if shown.param:
        facts["param"] = shown.param
    status = Status(code=grpc.StatusCode[shown.grpc_status].value[0], message=shown.message)
    status.details.add().Pack(ErrorInfo(reason=shown.code.upper(), domain=DOMAIN, metadata=facts))
    status.details.add().Pack(RequestInfo(request_id=request_id))
    if shown.param:
        violation = BadRequest.FieldViolation(field=shown.param, description=shown.message)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if shown.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(shown.retry_after_s * 1e3))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status
