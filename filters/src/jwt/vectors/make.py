#!/usr/bin/env python3
"""Makes tokens and key sets with Python libraries, for the test in ../vectors.rs.

    python3 -m venv venv && venv/bin/pip install 'pyjwt[crypto]' authlib joserfc && venv/bin/python make.py

Writes pyjwt.json, authlib.json, joserfc.json and rsa-sizes.json beside this file. Every run makes new keys. Private keys are not kept.
"""

import json
import pathlib
from importlib.metadata import version

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

HERE = pathlib.Path(__file__).parent
CLAIMS = {"iss": "https://issuer.test", "aud": "torana", "sub": "user-1", "iat": 1700000000, "exp": 4102444800}
# Which key serves which algorithm.
ALGORITHMS = {
    "ES256": "p256", "ES384": "p384", "RS256": "rsa", "PS256": "rsa", "EdDSA": "ed25519", "Ed25519": "ed25519",
}


def private_keys():
    return {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def rsa_sizes():
    """Keys of other lengths. In one of 2049 bits the message of PS256 is a byte shorter than the modulus."""
    import jwt
    from jwt.algorithms import RSAAlgorithm

    keys = {str(bits): rsa.generate_private_key(public_exponent=65537, key_size=bits) for bits in (2049, 2056, 3072, 4096)}
    keys["e3"] = rsa.generate_private_key(public_exponent=3, key_size=2048)
    jwks = [{**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": name} for name, key in keys.items()]
    tokens = [
        {"alg": algorithm, "token": jwt.encode(CLAIMS, key, algorithm=algorithm, headers={"kid": name})}
        for name, key in keys.items()
        for algorithm in ("RS256", "PS256")
    ]
    made = {"library": "PyJWT", "version": version("PyJWT"), "jwks": {"keys": jwks}, "tokens": tokens}
    (HERE / "rsa-sizes.json").write_text(json.dumps(made, indent=2) + "\n")


def write(package, jwks, sign):
    tokens = []
    for algorithm, name in ALGORITHMS.items():
        try:
            token = sign({"alg": algorithm, "kid": name, "typ": "JWT"}, name)
        except Exception as why:  # A library that lacks an algorithm says so in its own way.
            print(f"{package}: no {algorithm}: {why}")
            continue
        tokens.append({"alg": algorithm, "token": token if isinstance(token, str) else token.decode()})
    made = {"library": package, "version": version(package), "jwks": {"keys": jwks}, "tokens": tokens}
    (HERE / f"{package.lower()}.json").write_text(json.dumps(made, indent=2) + "\n")


def pyjwt():
    import jwt
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    makers = {"p256": ECAlgorithm, "p384": ECAlgorithm, "rsa": RSAAlgorithm, "ed25519": OKPAlgorithm}
    keys = private_keys()
    jwks = [
        {**makers[name].to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"} for name, key in keys.items()
    ]
    claims = {**CLAIMS, "jti": 18446744073709551616, "sid": 7, "scope": "payments:read payments:write"}

    def sign(header, name):
        return jwt.encode(claims, keys[name], algorithm=header["alg"], headers={"kid": name})

    write("PyJWT", jwks, sign)


def authlib():
    from authlib.jose import JsonWebKey, JsonWebToken

    keys = {name: JsonWebKey.import_key(pem(key), {"kid": name}) for name, key in private_keys().items()}
    jwks = [key.as_dict(is_private=False) for key in keys.values()]
    claims = {**CLAIMS, "aud": ["torana", "other"], "scope": "payments:read payments:write"}
    write("Authlib", jwks, lambda header, name: JsonWebToken(list(ALGORITHMS)).encode(header, claims, keys[name]))


def joserfc():
    from joserfc import jwt
    from joserfc.jwk import import_key

    types = {"p256": "EC", "p384": "EC", "rsa": "RSA", "ed25519": "OKP"}
    keys = {name: import_key(pem(key), types[name], {"kid": name}) for name, key in private_keys().items()}
    jwks = [key.as_dict(private=False) for key in keys.values()]
    for jwk in jwks:
        if jwk["kid"] == "ed25519":
            jwk["alg"] = "Ed25519"
    claims = {**CLAIMS, "scope": ["payments:read", "payments:write"]}
    write(
        "joserfc", jwks, lambda header, name: jwt.encode(header, claims, keys[name], algorithms=list(ALGORITHMS))
    )


pyjwt()
authlib()
joserfc()
rsa_sizes()
