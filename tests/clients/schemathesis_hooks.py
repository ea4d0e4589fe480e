"""Signs what schemathesis sends, and gives it data that exists."""

import os
import uuid

import schemathesis
from requests.auth import AuthBase

from signing import content_digest, load_key, sign

KEY = load_key(os.environ["TORANA_DEVICE_KEY"])
PAYMENT = os.environ["TORANA_PAYMENT"]
DEVICE = "device-alice-1"


class Signature(AuthBase):
    """Signs the request as it is sent."""

    def __call__(self, request):
        body = request.body or b""
        request.headers["content-digest"] = content_digest(body if isinstance(body, bytes) else body.encode())
        names = ["content-digest", "authorization", "idempotency-key"]
        fields = {name: text(request.headers[name]) for name in names if name in request.headers}
        signed = sign(KEY, DEVICE, request.method, request.url, fields)
        request.headers["signature-input"], request.headers["signature"] = signed
        return request


def text(value):
    return value.decode("latin-1") if isinstance(value, bytes) else value


@schemathesis.hook
def before_call(context, case, kwargs):
    negated = {kind.value for kind, part in case.meta.components.items() if part.mode.is_negative}
    if "{id}" in case.path and "path" not in negated:
        case.path_parameters["id"] = PAYMENT
    if case.method.upper() != "POST" or "header" in negated:
        return
    kwargs["auth"] = Signature()
    case.headers["Idempotency-Key"] = key = str(uuid.uuid4())
    if "body" not in negated and isinstance(case.body, dict):
        # What the schema cannot say: the token's owner and device, the field that repeats the key, and two decimals.
        amount = round(float(case.body["amount"]), 2)
        case.body |= {"fromVPA": "alice@torana", "deviceId": DEVICE, "idempotencyKey": key, "amount": amount}
