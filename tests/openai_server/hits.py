"""How a fault hits a request: before it is done, or after."""

from __future__ import annotations

import email.utils
import time

from starlette.responses import JSONResponse, Response

from openai_server.answers import ApiError, Raw, cut, of_status
from openai_server.faults import Drawn


def before(hit: Drawn) -> Response | None:
    """What keeps a request from being done."""
    if "refuse" in hit:
        return Raw()
    if fault := hit.get("status"):
        error = of_status(int(fault.get("code", 500)))
        told = error.body["error"]
        told["message"] = fault.get("message", told["message"])
        told["code"] = fault.get("error_code", told["code"])
        error.headers = fault.get("headers", {})
        raise error
    if fault := hit.get("rate_limit"):
        raise ApiError(429, "Rate limit reached for requests", type="requests", code="rate_limit_exceeded",
                       headers=_retryafter(float(fault.get("retry_after", 1.0)), fault.get("how", "ms")))  # fmt: skip
    if "quota" in hit:
        raise quota()
    return None


def _retryafter(seconds: float, how: str | None) -> dict[str, str]:
    if how == "ms":
        return {"retry-after-ms": str(int(seconds * 1000))}
    if how == "seconds":
        return {"retry-after": f"{seconds:g}"}
    if how == "date":
        return {"retry-after": email.utils.formatdate(time.time() + seconds, usegmt=True)}
    return {}


def after(hit: Drawn, response: Response) -> Response:
    """What becomes of the answer to what was done."""
    if "drop" in hit:
        return Raw()
    for kind in ("reset", "cut", "truncated"):
        if fault := hit.get(kind):
            share = float(fault.get("share", 0.5))
            return cut(response, share, length=kind != "truncated", reset=kind == "reset")
    if "error_in_200" in hit:
        return JSONResponse(of_status(500).body)
    if "garbage" in hit:
        return Response("<html><body>Welcome to nginx!</body></html>", media_type="text/html")
    return response


def quota() -> ApiError:
    return ApiError(429, "You exceeded your current quota, please check your plan and billing details.",
                    type="insufficient_quota", code="insufficient_quota")  # fmt: skip
