"""Pays with the client that OpenAPI Generator makes, follows the payment, and reads two refusals.

    python3 pay.py URL CA_FILE TOKEN_FILE DEVICE_KEY_FILE

The generated package `openapi_client` and `signing` must be on PYTHONPATH.
"""

import json
import pathlib
import sys
import time
import uuid

import openapi_client
from openapi_client.rest import ApiException

from signing import content_digest, load_key, sign

PATH = "/v1/transactions/send"


def refused(call, status, code):
    try:
        call()
    except ApiException as refusal:
        problem = openapi_client.Problem.from_json(refusal.body)
        if (refusal.status, problem.code) == (status, code):
            return
        raise
    raise SystemExit(f"not refused: {code}")


def main():
    url, ca, token_file, key_file = sys.argv[1:]
    token = pathlib.Path(token_file).read_text().strip()
    client = openapi_client.ApiClient(openapi_client.Configuration(host=url, ssl_ca_cert=ca, access_token=token))
    api = openapi_client.DefaultApi(client)

    payment = openapi_client.SendRequest(
        fromVPA="alice@torana", toVPA="bob@torana", amount=1.25, txnNote="Lunch", deviceId="device-alice-1",
        idempotencyKey=str(uuid.uuid4()))
    digest = content_digest(json.dumps(client.sanitize_for_serialization(payment)).encode())
    fields = {"content-digest": digest, "authorization": f"Bearer {token}", "idempotency-key": payment.idempotency_key}
    signature_input, signature = sign(load_key(key_file), "device-alice-1", "POST", url + PATH, fields)
    txn_id = api.send(payment.idempotency_key, digest, signature_input, signature, payment).txn_id
    until = time.monotonic() + 60
    while api.find(txn_id).status != openapi_client.Status.COMPLETED:
        if time.monotonic() > until:
            raise SystemExit("the payment did not complete")
        time.sleep(0.05)

    nonsense = openapi_client.ApiClient(openapi_client.Configuration(host=url, ssl_ca_cert=ca, access_token="nonsense"))
    refused(lambda: openapi_client.DefaultApi(nonsense).find(txn_id), 401, "token_malformed")
    refused(lambda: api.find(f"TOR{'0' * 32}"), 404, "transaction_not_found")
    print("COMPLETED")


if __name__ == "__main__":
    main()
