"""The error that refuses a request: a status of HTTP, and JSON in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from lora_np.reading import shown

FAULT = "invalid_request_error"  # of the client
TYPES = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(ValueError):
    """A request that gets no answer.

    Parameters
    ----------
    message : str
        What is wrong, and the way out, on one line.
    status : int
        The status of the HTTP response.
    param : str, optional
        The field of the request that is at fault.
    code : str, optional
        A word by which programs recognise the error.
    retry_after : int, optional
        Seconds after which the same request may succeed.

    Examples
    --------
    >>> from lora_np.serve.errors import Refusal
    >>> Refusal("n = 2: only 1 is supported", param="n").body()["error"]["param"]
    'n'
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status = " ".join(message.split()), status
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = TYPES.get(self.status, FAULT)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def cannot_answer(model: str, error: Exception | None) -> Refusal:
    """Return the Refusal of a request that failed in the engine.

    Examples
    --------
    >>> from lora_np.serve.errors import cannot_answer
    >>> cannot_answer("sql", ValueError("a tensor is missing")).message
    "'sql' cannot answer: a tensor is missing"
    """
    return Refusal(f"{shown(model)} cannot answer: {error}", 500, code="model_failed")
