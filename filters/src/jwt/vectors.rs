//! Tokens that other libraries have made verify with both engines, and say who sends them. The files in `vectors/` name
//! the library and its version; `vectors/make.py` and `vectors/make.mjs` make them anew.

use serde::Deserialize;
use serde_json::Value;

use super::{Claims, Expected, KeySet, Token, TokenError};
use crate::crypto::{CryptoError, Local, Verify, VerifyingKey, portable_verify};
use crate::policy::Algorithm;

#[derive(Deserialize)]
struct Made {
    library: String,
    version: String,
    jwks: Value,
    tokens: Vec<Signed>,
    introspection: Option<Value>,
}

#[derive(Deserialize)]
struct Signed {
    alg: String,
    token: String,
}

/// The engine of the WASM module.
struct Portable;

impl Verify for Portable {
    fn verify(&self, key: &VerifyingKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        portable_verify(key, message, signature)
    }
}

const ENGINES: [(&str, &dyn Verify); 2] = [("native", &Local), ("portable", &Portable)];

fn made() -> Vec<Made> {
    [
        include_str!("vectors/pyjwt.json"),
        include_str!("vectors/authlib.json"),
        include_str!("vectors/joserfc.json"),
        include_str!("vectors/jose.json"),
        include_str!("vectors/oidc-provider.json"),
    ]
    .map(|text| serde_json::from_str(text).expect("a vector"))
    .into()
}

fn expected(audiences: &[String]) -> Expected<'_> {
    Expected { audiences, leeway_ms: 0, now_ms: 1_900_000_000_000 }
}

#[test]
fn tokens_of_other_libraries() {
    let all = ["ES256", "ES384", "RS256", "PS256", "EdDSA"];
    for Made { library, version, jwks, tokens, .. } in made() {
        let keys = KeySet::parse(jwks.to_string().as_bytes()).expect(&library);
        for (name, engine) in ENGINES {
            for Signed { alg, token } in &tokens {
                let context = format!("{library} {version}: {alg}, {name}");
                let token = Token::parse(token, 4_096).expect(&context);
                let algorithm = token.algorithm.expect(&context);
                assert_eq!(Some(algorithm), Algorithm::of_token(alg), "{context}");
                let key = keys.find(token.kid.as_deref(), algorithm).expect(&context);
                let payload = token.verify(key, engine).expect(&context);
                let claims = Claims::parse(payload, "main", &[]).expect(&context);
                claims.check(&expected(&["torana".to_owned()])).expect(&context);
                assert!(claims.identity.scopes.contains("payments:read"), "{context}");
                assert!(["user-1", "batch"].contains(&claims.identity.subject.as_str()), "{context}");
            }
        }
        let signed = |alg: &str| tokens.iter().any(|token| token.alg == alg);
        let lacks: Vec<&str> = all.into_iter().filter(|alg| !signed(alg)).collect();
        let expected: &[&str] = if library == "oidc-provider" { &["ES384"] } else { &[] };
        assert_eq!(lacks, expected, "{library}");
    }
    let ed25519 = made().iter().filter(|made| made.tokens.iter().any(|token| token.alg == "Ed25519")).count();
    assert_eq!(ed25519, 3, "libraries that know RFC 9864");
}

/// RSA keys of other lengths, and the smallest exponent there is.
#[test]
fn rsa_keys_of_all_lengths() {
    let made: Made = serde_json::from_str(include_str!("vectors/rsa-sizes.json")).expect("a vector");
    let keys = KeySet::parse(made.jwks.to_string().as_bytes()).expect("keys");
    assert_eq!((keys.len(), made.tokens.len()), (5, 10));
    for Signed { alg, token } in &made.tokens {
        let token = Token::parse(token, 4_096).expect(alg);
        let key = keys.find(token.kid.as_deref(), token.algorithm.expect(alg)).expect(alg);
        for (name, engine) in ENGINES {
            assert!(token.verify(key, engine).is_ok(), "{alg}, {:?}, {name}", token.kid);
        }
    }
}

/// No bit of a signature is spare, neither engine takes another key, and both agree.
#[test]
fn forgeries_of_other_libraries_tokens() {
    for Made { library, jwks, tokens, .. } in made() {
        let keys = KeySet::parse(jwks.to_string().as_bytes()).expect(&library);
        for Signed { alg, token: text } in &tokens {
            let (signed, signature) = text.rsplit_once('.').expect(alg);
            let token = Token::parse(text, 4_096).expect(alg);
            let algorithm = token.algorithm.expect(alg);
            let key = keys.find(token.kid.as_deref(), algorithm).expect(alg);
            let last = signature.len() - 4;
            let swap = |at: usize| {
                let mut other = signature.to_owned();
                let with = if signature[at..].starts_with('A') { "B" } else { "A" };
                other.replace_range(at..=at, with);
                format!("{signed}.{other}")
            };
            let shorter = format!("{signed}.{}", &signature[4..]);
            let longer = format!("{text}AAAA");
            let forged = [swap(0), swap(signature.len() / 2), swap(last), shorter, longer, format!("{signed}.")];
            for forged in &forged {
                let token = Token::parse(forged, 8_192).expect(alg);
                for (engine_name, engine) in ENGINES {
                    let verified = token.verify(key, engine);
                    assert_eq!(verified, Err(TokenError::Signature), "{library}: {alg}, {engine_name}: {forged}");
                }
            }
            for other in keys.iter().filter(|other| other.algorithm != algorithm) {
                assert_eq!(token.verify(other, &Local), Err(TokenError::Algorithm), "{library}: {alg}");
            }
        }
    }
}

/// Numbers are kept as they were written, however long.
#[test]
fn numeric_identifiers_of_pyjwt() {
    let made = made();
    let pyjwt = made.iter().find(|made| made.library == "PyJWT").expect("PyJWT");
    for Signed { alg, token } in &pyjwt.tokens {
        let token = Token::parse(token, 4_096).expect(alg);
        let claims = Claims::parse(token.unverified(), "main", &[]).expect(alg);
        assert_eq!(claims.token_id.as_deref(), Some("18446744073709551616"));
        assert_eq!(claims.session.as_deref(), Some("7"));
    }
}

/// What a provider answers about a token that a client got for itself: it has no `sub`.
#[test]
fn introspection_of_a_clients_own_token() {
    let made = made();
    let answer = made.iter().find_map(|made| made.introspection.as_ref()).expect("an answer").to_string();
    let claims = Claims::introspected(answer.as_bytes(), "main", &[]).expect("claims");
    assert_eq!(claims.identity.subject, "batch");
    claims.check(&expected(&["torana".to_owned()])).expect("valid");
    assert_eq!(Claims::parse(answer.as_bytes(), "main", &[]), Err(TokenError::ClaimMissing("sub")));
}
