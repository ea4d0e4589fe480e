//! Tokens of other libraries over the wire, in both data planes. `filters/src/jwt/vectors/` has them and the scripts that
//! make them.

use std::path::Path;

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};

const CASE: &str = r#"
name: t
routes: [{ name: r, methods: [GET], path: /a, upstream: u, filters: { jwt: {} } }]
requests: []
"#;

fn made(library: &str) -> Value {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../filters/src/jwt/vectors/{library}.json"));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

struct Asked<'w> {
    world: &'w World,
    plane: Plane<'w>,
}

impl Asked<'_> {
    async fn verdict(&self, token: &str) -> String {
        let step = json!({ "target": "/a", "headers": { "authorization": format!("Bearer {token}") }, "verdict": "" });
        let step: Step = serde_json::from_value(step).unwrap();
        let sent = Sent::new(&step, &self.world.keys, Times::new(self.world.epoch_ms, 0).unwrap()).unwrap();
        self.plane.decide(&sent, None).await.unwrap().verdict
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_other_libraries_pass_and_their_forgeries_do_not() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let programs = Programs::beside_test().unwrap();
    for library in ["pyjwt", "authlib", "joserfc", "jose", "oidc-provider"] {
        let made = made(library);
        let jwks = world.folder().join(format!("{library}.json"));
        std::fs::write(&jwks, made["jwks"].to_string()).unwrap();
        for kind in [Kind::Gateway, Kind::Envoy] {
            // The two names of one algorithm allow each other.
            let eddsa = if kind == Kind::Gateway { "EdDSA" } else { "Ed25519" };
            let mut named = Named::parse(CASE).unwrap();
            named.case.algorithms = ["ES256", "ES384", "RS256", "PS256", eddsa].map(str::to_owned).into();
            named.case.jwks = Some(json!({ "file": format!("file:{}", jwks.display()) }));
            let folder = world.case_folder(&format!("{library}-{}", kind.name())).unwrap();
            let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
            plane.at(world.epoch_ms).unwrap();
            let asked = Asked { world: &world, plane };
            for signed in made["tokens"].as_array().unwrap() {
                let (alg, token) = (&signed["alg"], signed["token"].as_str().unwrap());
                let context = format!("{library}, {alg}, {}", kind.name());
                assert_eq!(asked.verdict(token).await, "pass", "{context}");
                let (signed, signature) = token.rsplit_once('.').unwrap();
                let other = if signature.starts_with('A') { "B" } else { "A" };
                let forged = format!("{signed}.{other}{}", &signature[1..]);
                assert_eq!(asked.verdict(&forged).await, "401 token_signature", "{context}");
            }
        }
    }
}

/// What a policy does not allow is refused, however good the signature is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn algorithms_that_the_policy_does_not_name_are_refused() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let programs = Programs::beside_test().unwrap();
    let made = made("pyjwt");
    let jwks = world.folder().join("pyjwt.json");
    std::fs::write(&jwks, made["jwks"].to_string()).unwrap();
    for kind in [Kind::Gateway, Kind::Envoy] {
        let mut named = Named::parse(CASE).unwrap();
        named.case.algorithms = vec!["RS256".to_owned()];
        named.case.jwks = Some(json!({ "file": format!("file:{}", jwks.display()) }));
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let asked = Asked { world: &world, plane };
        for signed in made["tokens"].as_array().unwrap() {
            let expected = if signed["alg"] == "RS256" { "pass" } else { "401 token_algorithm" };
            let verdict = asked.verdict(signed["token"].as_str().unwrap()).await;
            assert_eq!(verdict, expected, "{}, {}", signed["alg"], kind.name());
        }
    }
}
