//! What ordinary clients send over HTTP/1.1 and HTTP/2: over the wire, with both data planes.

use certs::client::{ClientLimits, https_to};
use certs::{Trust, Versions};
use parity::answering::Seen;
use parity::case::Named;
use parity::mint::AUTHORITY;
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use reqwest::{Client, Method, StatusCode, Version};

const CASE: &str = "
name: ordinary clients
requests: []
routes:
  - { name: get, methods: [GET], path: \"/things/{id}\", upstream: u, filters: { shape: { max_headers: 16 } } }
  - { name: post, methods: [POST], path: /things, upstream: u }
  - { name: explicit, methods: [HEAD], path: /explicit, upstream: v }
  - { name: explicit-get, methods: [GET], path: /explicit, upstream: u, filters: { jwt: {} } }
";

/// Both versions of HTTP that clients speak with this data plane.
fn clients(world: &World, plane: &Plane<'_>) -> [(Version, Client); 2] {
    let trust = Trust::load(&world.folder().join("ca.pem")).unwrap();
    [(Version::HTTP_11, b"http/1.1".as_slice()), (Version::HTTP_2, b"h2")].map(|(version, name)| {
        let mut tls = certs::client_config(&trust, None, Versions::Tls13Only).unwrap();
        tls.alpn_protocols = vec![name.to_vec()];
        (version, https_to(tls, ClientLimits::default(), AUTHORITY, plane.address()).unwrap())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_served_where_get_is_and_cookies_of_http_2_are_one_field() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    for kind in Kind::ALL {
        let folder = world.case_folder(&format!("ordinary-{}", kind.name())).unwrap();
        let programs = Programs::beside_test().unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        for (version, client) in clients(&world, &plane) {
            let url = |path: &str| format!("https://{AUTHORITY}:{}{path}", plane.address().port());
            let at = format!("{} {version:?}", kind.name());

            // A response to HEAD has GET's fields and no body, and the connection goes on.
            for _ in 0..2 {
                let response = client.head(url("/things/1")).send().await.unwrap();
                assert_eq!((response.version(), response.status()), (version, StatusCode::OK), "{at}");
                assert!(response.headers().contains_key("content-type"), "{at}");
                assert!(response.headers().contains_key("content-length"), "{at}");
                assert!(response.bytes().await.unwrap().is_empty(), "{at}");
                let response = client.get(url("/things/1")).send().await.unwrap();
                assert_eq!(response.json::<Seen>().await.unwrap().target, "/things/1", "{at}");
            }
            for (method, path, status, allow) in [
                (Method::HEAD, "/things", 405, Some("POST")),
                (Method::DELETE, "/things/1", 405, Some("GET, HEAD")),
                (Method::HEAD, "/explicit", 200, None),
                (Method::GET, "/explicit", 401, None),
                (Method::HEAD, "/nothing", 404, None),
            ] {
                let response = client.request(method.clone(), url(path)).send().await.unwrap();
                assert_eq!(response.status(), status, "{at} {method} {path}");
                let allowed = response.headers().get("allow").map(|value| value.to_str().unwrap());
                assert_eq!(allowed, allow, "{at} {method} {path}");
            }

            let crumbs = (0..30).map(|number| format!("c{number}={number}"));
            let whole: Vec<String> = crumbs.clone().collect();
            let request = match version {
                Version::HTTP_2 => crumbs
                    .fold(client.get(url("/things/1")), |request, crumb| request.header("cookie", crumb)),
                _ => client.get(url("/things/1")).header("cookie", whole.join("; ")),
            };
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{at}");
            let seen: Seen = response.json().await.unwrap();
            let cookies: Vec<_> = seen.fields.iter().filter(|(name, _)| name == "cookie").collect();
            assert_eq!(cookies, [&("cookie".to_owned(), whole.join("; ").into_bytes())], "{at}");
        }
    }
}
