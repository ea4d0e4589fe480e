"""Signs requests as a device does (RFC 9421 and 9530), for clients written in Python."""

import base64
import hashlib
import pathlib
import time
import urllib.parse
import uuid

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

COVERED = ["@method", "@path", "@query", "content-digest", "authorization", "idempotency-key"]


def load_key(file):
    return serialization.load_pem_private_key(pathlib.Path(file).read_bytes(), None)


def content_digest(body):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def sign(key, keyid, method, url, fields):
    """`Signature-Input` and `Signature` over what of COVERED the request has. Names of fields are in lower case."""
    target = urllib.parse.urlsplit(url)
    values = {"@method": method, "@path": target.path or "/", "@query": f"?{target.query}"} | fields
    covered = {name: values[name] for name in COVERED if name in values}
    names = " ".join(f'"{name}"' for name in covered)
    parameters = (f'({names});created={int(time.time())};nonce="{uuid.uuid4()}";keyid="{keyid}"'
                  ';alg="ecdsa-p256-sha256"')
    base = "".join(f'"{name}": {value}\n' for name, value in covered.items()) + f'"@signature-params": {parameters}'
    r, s = decode_dss_signature(key.sign(base.encode("latin-1"), ec.ECDSA(hashes.SHA256())))
    signature = base64.b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()
    return f"sig1={parameters}", f"sig1=:{signature}:"
