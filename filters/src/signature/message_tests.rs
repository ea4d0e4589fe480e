//! RFC 9421's published vectors and examples, and what must not verify.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;
use crate::crypto::RsaPublicKey;

type Lines = Vec<(String, Vec<u8>)>;

fn lines(fields: &[(&str, &str)]) -> Lines {
    fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

fn with(fields: &[(&str, &str)], input: &str, signature: &str) -> Lines {
    let mut all = lines(fields);
    all.push(("Signature-Input".into(), input.as_bytes().to_vec()));
    all.push(("Signature".into(), signature.as_bytes().to_vec()));
    all
}

fn post(headers: &dyn Fields) -> Message<'_> {
    Message::request("POST", "https", "example.com", "/foo", Some("param=Value&Pet=dog"), headers)
}

const REQUEST: &[(&str, &str)] = &[
    ("Host", "example.com"),
    ("Date", "Tue, 20 Apr 2021 02:07:55 GMT"),
    ("Content-Type", "application/json"),
    (
        "Content-Digest",
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
    ),
    ("Content-Length", "18"),
];

const RESPONSE: &[(&str, &str)] = &[
    ("Date", "Tue, 20 Apr 2021 02:07:56 GMT"),
    ("Content-Type", "application/json"),
    (
        "Content-Digest",
        "sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:",
    ),
    ("Content-Length", "23"),
];

/// Appendix B.1.2, `test-key-rsa-pss`.
fn rsa_pss() -> VerifyingKey {
    let n = "r4tmm3r20Wd_PbqvP1s2-QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct-Lh1GH45x28Rw3Ry53mm-oAXjyQ86OnDkZ5N8\
             lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHqgDsznjPFmTOtCEcN2Z1FpWgchwuYLPL-Wokqltd11nqqzi-bJ9cv\
             SKADYdUAAN5WUtzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4aOT9v6d-nb4bnNkQVklLQ3fV\
             AvJm-xdDOp9LCNCN48V2pnDOkFV6-U9nV5oyc6XI2w";
    VerifyingKey::RsaPssSha512(
        RsaPublicKey::new(&URL_SAFE_NO_PAD.decode(n).expect("base64url"), &[1, 0, 1]).expect("a key"),
    )
}

/// Appendix B.1.3, `test-key-ecc-p256`.
fn p256() -> VerifyingKey {
    let mut point = URL_SAFE_NO_PAD.decode("qIVYZVLCrPZHGHjP17CTW0_-D9Lfw0EkjqF7xB4FivA").expect("x");
    point.extend(URL_SAFE_NO_PAD.decode("Mc4nN9LTDOBhfoUeg8Ye9WedFRhnZXZJA12Qp0zZ6F0").expect("y"));
    VerifyingKey::ecdsa_p256(&point).expect("a key")
}

/// Appendix B.1.4, `test-key-ed25519`.
fn ed25519() -> VerifyingKey {
    let x = URL_SAFE_NO_PAD.decode("JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs").expect("x");
    VerifyingKey::ed25519(&x).expect("a key")
}

fn ed25519_private() -> SigningKey {
    let der =
        STANDARD.decode("MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF").expect("base64");
    SigningKey::ed25519_pkcs8(&der).expect("a key")
}

/// Appendix B.1.5, `test-shared-secret`.
fn secret() -> Vec<u8> {
    let text = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
    STANDARD.decode(text).expect("base64")
}

fn hmac() -> VerifyingKey {
    VerifyingKey::hmac(&secret()).expect("long enough")
}

/// The published signature holds, the base is the published one, and no other key or message passes.
fn check(
    section: &str,
    fields: &[(&str, &str)],
    message: fn(&dyn Fields) -> Message<'_>,
    input: &str,
    signature: &str,
    key: &VerifyingKey,
) {
    let headers = with(fields, input, signature);
    let label = input.split('=').next();
    let parsed = parse(&headers, label).unwrap_or_else(|error| panic!("{section}: {error}"));
    let message = message(&headers);
    assert_eq!(parsed.verify(&message, key), Ok(()), "{section}");

    let base = String::from_utf8(parsed.base(&message).expect("a base")).expect("text");
    let params = input.split_once('=').map(|(_, params)| params).unwrap_or_default();
    assert!(base.ends_with(&format!("\"@signature-params\": {params}")), "{section}: {base}");

    for other in [rsa_pss(), p256(), ed25519(), hmac()] {
        assert_eq!(parsed.verify(&message, &other).is_ok(), other == *key, "{section}");
    }
    let mut forged = parsed.clone();
    forged.signature[0] ^= 1;
    assert_eq!(forged.verify(&message, key), Err(SignatureError::Invalid), "{section}");
}

fn ok(headers: &dyn Fields) -> Message<'_> {
    Message::response(200, headers, None)
}

#[test]
fn b21_minimal_rsa_pss() {
    let signature = "sig-b21=:d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf\
        8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXeh\
        hWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPY\
        TU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==:";
    let input = "sig-b21=();created=1618884473;keyid=\"test-key-rsa-pss\";nonce=\"b3k2pp5k7z-50gnwp.yemd\"";
    check("B.2.1", REQUEST, post, input, signature, &rsa_pss());
}

#[test]
fn b22_selective_rsa_pss() {
    let signature = "sig-b22=:LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH\
        7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpc\
        AoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh\
        0aaUEb0rQl3/XaVe4bXTugEjHSw==:";
    let input = "sig-b22=(\"@authority\" \"content-digest\" \"@query-param\";name=\"Pet\");created=1618884473\
        ;keyid=\"test-key-rsa-pss\";tag=\"header-example\"";
    check("B.2.2", REQUEST, post, input, signature, &rsa_pss());
}

#[test]
fn b23_full_rsa_pss() {
    let signature = "sig-b23=:bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU\
        5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7\
        YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJy\
        oEZAFL2FUo5fTIztsDZKEgM4cUA==:";
    let input = "sig-b23=(\"date\" \"@method\" \"@path\" \"@query\" \"@authority\" \"content-type\" \"content-digest\" \
        \"content-length\");created=1618884473;keyid=\"test-key-rsa-pss\"";
    check("B.2.3", REQUEST, post, input, signature, &rsa_pss());
}

#[test]
fn b24_response_ecdsa() {
    let signature =
        "sig-b24=:wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==:";
    let input = "sig-b24=(\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473\
        ;keyid=\"test-key-ecc-p256\"";
    check("B.2.4", RESPONSE, ok, input, signature, &p256());
}

#[test]
fn b25_hmac() {
    let signature = "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:";
    let input =
        "sig-b25=(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    check("B.2.5", REQUEST, post, input, signature, &hmac());

    let params = Params {
        created: Some(1_618_884_473),
        keyid: Some("test-shared-secret".into()),
        ..Params::covering(&["date", "@authority", "content-type"]).expect("components")
    };
    let headers = lines(REQUEST);
    let fields = sign(&post(&headers), "sig-b25", &params, &SigningKey::hmac(&secret()).expect("a key"))
        .expect("signed");
    assert_eq!(fields, SignatureFields { signature_input: input.into(), signature: signature.into() });
}

#[test]
fn b26_ed25519() {
    let signature =
        "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:";
    let input = "sig-b26=(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\")\
        ;created=1618884473;keyid=\"test-key-ed25519\"";
    check("B.2.6", REQUEST, post, input, signature, &ed25519());

    let components = ["date", "@method", "@path", "@authority", "content-type", "content-length"];
    let params = Params {
        created: Some(1_618_884_473),
        keyid: Some("test-key-ed25519".into()),
        ..Params::covering(&components).expect("components")
    };
    let headers = lines(REQUEST);
    let fields = sign(&post(&headers), "sig-b26", &params, &ed25519_private()).expect("signed");
    assert_eq!(fields, SignatureFields { signature_input: input.into(), signature: signature.into() });
}

#[test]
fn b3_tls_terminating_proxy() {
    let certificate = ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBI\
        EludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DA\
        QcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwA\
        DAfBgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwE\
        YEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r\
        5XarmPk0wmuydBVoU4hBVZ1yhk=:";
    let signature =
        "ttrp=:xVMHVpawaAC/0SbHrKRs9i8I3eOs5RtTMGCWXm/9nvZzoHsIg6Mce9315T6xoklyy0yzhD9ah4JHRwMLOgmizw==:";
    let input = "ttrp=(\"@path\" \"@query\" \"@method\" \"@authority\" \"client-cert\");created=1618884473\
        ;keyid=\"test-key-ecc-p256\"";
    let internal = |headers| Message { authority: "service.internal.example", ..post(headers) };
    let headers = with(&[("Client-Cert", certificate)], input, signature);
    let parsed = parse(&headers, Some("ttrp")).expect("a signature");
    assert_eq!(parsed.verify(&internal(&headers), &p256()), Ok(()));
}

/// Appendix B.4: what may change on the way, and what may not.
#[test]
fn b4_transformations() {
    let input = "transform=(\"@method\" \"@path\" \"@authority\" \"accept\");created=1618884473;keyid=\"test-key-ed25519\"";
    let signature = "transform=:ZT1kooQsEHpZ0I1IjCqtQppOmIqlJPeo7DHR3SoMn0s5JZ1eRGS0A+vyYP9t/LXlh5QMFFQ6cpLt2m0pmj3NDA==:";
    type Case = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], bool);
    let cases: &[Case] = &[
        (
            "GET",
            "example.org",
            "name1=Value1&Name2=value2",
            &[("Accept", "application/json"), ("Accept", "*/*")],
            true,
        ),
        (
            "GET",
            "example.org",
            "name1=1&param=added",
            &[("Accept", "application/json"), ("Accept", "*/*")],
            true,
        ),
        ("GET", "example.org", "", &[("Referer", "https://x/"), ("Accept", "application/json, */*")], true),
        ("GET", "EXAMPLE.org:443", "", &[("accept", " application/json\t"), ("ACCEPT", "*/*")], true),
        ("POST", "example.com", "", &[("Accept", "application/json"), ("Accept", "*/*")], false),
        ("GET", "example.org", "", &[("Accept", "*/*"), ("Accept", "application/json")], false),
        ("GET", "example.org:80", "", &[("Accept", "application/json"), ("Accept", "*/*")], false),
    ];
    for (method, authority, query, fields, holds) in cases {
        let headers = with(fields, input, signature);
        let message = Message::request(method, "https", authority, "/demo", Some(query), &headers);
        let parsed = parse(&headers, None).expect("a signature");
        assert_eq!(parsed.verify(&message, &ed25519()).is_ok(), *holds, "{method} {authority} {fields:?}");
    }
}

/// The values of components in the examples of sections 2.1 to 2.4.
#[test]
fn section_2_examples() {
    let headers = lines(&[
        ("Host", "www.example.com"),
        ("X-OWS-Header", "  Leading and trailing whitespace.   "),
        ("X-Obs-Fold-Header", "Obsolete\r\n    line folding."),
        ("Cache-Control", "max-age=60"),
        ("Cache-Control", "   must-revalidate"),
        ("X-Empty-Header", ""),
        ("Example-Dict", "  a=1,    b=2;x=1;y=2,   c=(a   b   c), d"),
        ("Example-Header", "value, with, lots"),
        ("Example-Header", "of, commas"),
        ("Latin", "caf\u{e9}"),
        ("Inject", "a\nb"),
        ("Trailing", "a\n"),
        ("Form-Feed", "a\u{c}"),
    ]);
    let request = Message::request(
        "POST",
        "HTTPS",
        "www.Example.com:443",
        "/path",
        Some("param=value&foo=bar"),
        &headers,
    );
    let answer = Message::response(200, &headers, Some(&request));
    let bare = Message::request("GET", "http", "www.example.com:80", "", None, &headers);
    let cases: &[(&Message<'_>, &str, Result<&str, Problem>)] = &[
        (&request, "host", Ok("www.example.com")),
        (&request, "x-ows-header", Ok("Leading and trailing whitespace.")),
        (&request, "x-obs-fold-header", Ok("Obsolete line folding.")),
        (&request, "cache-control", Ok("max-age=60, must-revalidate")),
        (&request, "x-empty-header", Ok("")),
        (&request, "example-dict", Ok("a=1,    b=2;x=1;y=2,   c=(a   b   c), d")),
        (&request, "\"example-dict\";sf", Ok("a=1, b=2;x=1;y=2, c=(a b c), d")),
        (&request, "\"example-dict\";key=\"a\"", Ok("1")),
        (&request, "\"example-dict\";key=\"d\"", Ok("?1")),
        (&request, "\"example-dict\";key=\"b\"", Ok("2;x=1;y=2")),
        (&request, "\"example-dict\";key=\"c\"", Ok("(a b c)")),
        (&request, "\"example-dict\";key=\"e\"", Err(Problem::Absent)),
        (&request, "\"example-header\";bs", Ok(":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:")),
        (&request, "example-header", Ok("value, with, lots, of, commas")),
        (&request, "\"example-header\";sf", Err(Problem::FieldType)),
        (&request, "\"x-empty-header\";tr", Err(Problem::Trailers)),
        (&request, "latin", Err(Problem::NotText)),
        (&request, "\"latin\";bs", Ok(":Y2Fmw6k=:")),
        (&request, "inject", Err(Problem::NotText)),
        (&request, "trailing", Err(Problem::NotText)),
        (&request, "form-feed", Err(Problem::NotText)),
        (&request, "absent", Err(Problem::Absent)),
        (&request, "@method", Ok("POST")),
        (&request, "@scheme", Ok("https")),
        (&request, "@authority", Ok("www.example.com")),
        (&request, "@path", Ok("/path")),
        (&request, "@query", Ok("?param=value&foo=bar")),
        (&request, "@target-uri", Ok("https://www.example.com/path?param=value&foo=bar")),
        (&request, "@request-target", Ok("/path?param=value&foo=bar")),
        (&request, "\"@query-param\";name=\"foo\"", Ok("bar")),
        (&request, "\"@query-param\";name=\"none\"", Err(Problem::Absent)),
        (&request, "@query-param", Err(Problem::Parameter)),
        (&request, "\"@method\";name=\"foo\"", Err(Problem::Parameter)),
        (&request, "\"@method\";sf", Err(Problem::Parameter)),
        (&request, "\"@method\";new", Err(Problem::Parameter)),
        (&request, "\"@method\";req", Err(Problem::NoRequest)),
        (&request, "@status", Err(Problem::Absent)),
        (&request, "@signature-params", Err(Problem::Unknown)),
        (&request, "@made-up", Err(Problem::Unknown)),
        (&request, "Host", Err(Problem::Malformed)),
        (&request, "", Err(Problem::Malformed)),
        (&bare, "@path", Ok("/")),
        (&bare, "@query", Ok("?")),
        (&bare, "@target-uri", Ok("http://www.example.com/")),
        (&bare, "@request-target", Ok("/")),
        (&answer, "@status", Ok("200")),
        (&answer, "@method", Err(Problem::Absent)),
        (&answer, "\"@method\";req", Ok("POST")),
        (&answer, "\"@path\";req", Ok("/path")),
        (&answer, "\"host\";req", Ok("www.example.com")),
        (&answer, "\"@status\";req", Err(Problem::Parameter)),
    ];
    for (message, component, expected) in cases {
        let value = component.parse::<Component>().and_then(|parsed| parsed.value(message));
        let value = value.map(|bytes| String::from_utf8(bytes).expect("text")).map_err(|error| error.problem);
        assert_eq!(value.as_deref(), expected.as_ref().copied(), "{component}");
    }
}

#[test]
fn what_is_refused_before_any_key_is_asked_for() {
    let many = (0..=COMPONENTS_MAX).map(|n| format!("\"h{n}\"")).collect::<Vec<_>>().join(" ");
    let long = format!("a=({})", "\"h\" ".repeat(FIELD_MAX / 4));
    let cases: &[(Option<&str>, Option<&str>, SignatureError)] = &[
        (None, None, SignatureError::Missing),
        (Some("b=();created=1"), Some("b=:AA==:"), SignatureError::Missing),
        (Some("a=()"), None, SignatureError::Malformed("")),
        (None, Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=()"), Some("b=:AA==:"), SignatureError::Malformed("")),
        (Some("a=1"), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=()"), Some("a=\"AA==\""), SignatureError::Malformed("")),
        (Some("a=("), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=(\"@method\" \"@method\")"), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=();created=\"1\""), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=();created=1.5"), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=();keyid=tok"), Some("a=:AA==:"), SignatureError::Malformed("")),
        (Some("a=();alg=\"none\""), Some("a=:AA==:"), SignatureError::UnknownAlgorithm),
        (Some(&format!("a=({many})")), Some("a=:AA==:"), SignatureError::TooLarge),
        (Some(&long), Some("a=:AA==:"), SignatureError::TooLarge),
    ];
    for (input, signature, expected) in cases {
        let mut headers = Lines::new();
        headers.extend(input.map(|value| ("signature-input".to_owned(), value.as_bytes().to_vec())));
        headers.extend(signature.map(|value| ("signature".to_owned(), value.as_bytes().to_vec())));
        let error = parse(&headers, Some("a")).expect_err("refused");
        match expected {
            SignatureError::Malformed(_) => {
                assert!(matches!(error, SignatureError::Malformed(_)), "{input:?} {error}")
            }
            _ => assert_eq!(error, *expected, "{input:?}"),
        }
    }
}

#[test]
fn several_signatures_need_a_label() {
    let headers = lines(&[
        ("signature-input", "a=(\"@method\");created=1, b=(\"@path\");created=2"),
        ("signature", "b=:AA==:"),
        ("signature", "a=:AQ==:"),
    ]);
    assert_eq!(parse(&headers, None), Err(SignatureError::Several));
    assert_eq!(parse(&headers, Some("b")).map(|s| (s.params.created, s.signature)), Ok((Some(2), vec![0])));
}

/// Proxies and other libraries add signatures of their own.
#[test]
fn other_signatures_may_be_beyond_us() {
    let ours = "ours=(\"@method\");created=1";
    for (other, signature) in [
        ("other=(\"@method\");alg=\"ml-dsa-65\"", "other=:AA==:"),
        ("other=(\"x-checksum\";tr)", "other=:AA==:"),
        ("other=(\"@made-up\")", "other=:AA==:"),
        ("other=(\"@method\");created=\"now\"", "other=:AA==:"),
        ("other=1", "other=:AA==:"),
        ("other=()", "other=\"AA==\""),
        ("other=()", "another=:AA==:"),
    ] {
        for inputs in [format!("{other}, {ours}"), format!("{ours}, {other}")] {
            let headers = with(&[], &inputs, &format!("{signature}, ours=:AQ==:"));
            for label in [Some("ours"), None] {
                let parsed = parse(&headers, label);
                assert_eq!(parsed.map(|parsed| parsed.signature), Ok(vec![1]), "{inputs}");
            }
            assert!(parse(&headers, Some("other")).is_err(), "{inputs}");
        }
    }
}

#[test]
fn parameters_are_signed_in_the_order_received() {
    let input =
        "a=(\"@query-param\";req;name=\"x\" \"date\";key=\"k\";sf);tag=\"t\";later=1;created=5;b;keyid=\"k\"";
    let headers = with(&[], input, "a=:AA==:");
    assert_eq!(
        parse(&headers, None).map(|s| s.input),
        Ok(input.strip_prefix("a=").expect("label").to_owned())
    );
}

#[test]
fn the_key_decides_the_algorithm() {
    let headers = lines(REQUEST);
    let params = Params { alg: Some(Algorithm::HmacSha256), ..Params::covering(&["@method"]).expect("one") };
    let fields =
        sign(&post(&headers), "a", &params, &SigningKey::hmac(&secret()).expect("a key")).expect("signed");
    let signed = with(REQUEST, &fields.signature_input, &fields.signature);
    let parsed = parse(&signed, None).expect("parsed");
    assert_eq!(parsed.verify(&post(&signed), &hmac()), Ok(()));
    assert_eq!(parsed.verify(&post(&signed), &p256()), Err(SignatureError::AlgorithmMismatch));
    let wrong = Params { alg: Some(Algorithm::Ed25519), ..params };
    let error = sign(&post(&headers), "a", &wrong, &SigningKey::hmac(&secret()).expect("a key"));
    assert_eq!(error, Err(SignError::Parameter("alg")));
}

#[test]
fn what_cannot_be_signed() {
    let headers = lines(REQUEST);
    let key = SigningKey::hmac(&secret()).expect("a key");
    let method = || Params::covering(&["@method"]).expect("one");
    let cases: &[(&str, Params)] = &[
        ("A", method()),
        ("", method()),
        ("a", Params { keyid: Some("\u{e9}".into()), ..method() }),
        ("a", Params { nonce: Some("a\nb".into()), ..method() }),
        ("a", Params { created: Some(i64::MAX), ..method() }),
        ("a", Params::covering(&["@method", "@method"]).expect("two")),
        ("a", Params::covering(&["absent"]).expect("one")),
    ];
    for (label, params) in cases {
        assert!(sign(&post(&headers), label, params, &key).is_err(), "{label} {params:?}");
    }
}

proptest! {
    #[test]
    fn what_was_signed_verifies_and_any_change_does_not(
        path in "/[a-z/]{0,20}",
        value in "[ -~]{0,40}",
        body_type in "[a-z/]{1,20}",
        nonce in "[ -~]{0,30}",
        created in 0..2_000_000_000_i64,
        bit in any::<usize>(),
    ) {
        let mut headers = lines(&[("content-type", &body_type), ("x-any", &value)]);
        let params = Params {
            created: Some(created),
            nonce: Some(nonce),
            keyid: Some("k".into()),
            ..Params::covering(&["@method", "@path", "@query", "content-type", "\"x-any\";bs"]).expect("components")
        };
        let key = SigningKey::hmac(&secret()).expect("a key");
        let request = Message::request("POST", "https", "edge.test", &path, None, &headers);
        let fields = sign(&request, "sig1", &params, &key).expect("signed");
        headers.push(("signature-input".into(), fields.signature_input.into()));
        headers.push(("signature".into(), fields.signature.into()));
        let request = Message::request("POST", "https", "edge.test", &path, None, &headers);
        let parsed = parse(&headers, Some("sig1")).expect("parsed");
        prop_assert_eq!(parsed.params(), &params);
        prop_assert_eq!(parsed.verify(&request, &hmac()), Ok(()));

        let longer = format!("{path}x");
        let changed = [
            Message { path: &longer, ..request },
            Message { method: "PUT", ..request },
            Message { query: Some("a"), ..request },
        ];
        for message in changed {
            prop_assert_eq!(parsed.verify(&message, &hmac()), Err(SignatureError::Invalid));
        }
        let mut forged = parsed.clone();
        forged.signature[bit % 32] ^= 1 << (bit / 32 % 8);
        prop_assert_eq!(forged.verify(&request, &hmac()), Err(SignatureError::Invalid));
    }

    #[test]
    fn no_fields_panic(
        input in proptest::collection::vec(any::<u8>(), 0..120),
        text in "[a-z]=\\((\"[@a-z-]{0,9}\"(;[a-z]{1,4}(=\"?[a-z0-9.]{0,4}\"?)?)? ?){0,4}\\)(;[a-z]{1,7}=[\"a-z0-9?:.]{0,9}){0,3}",
        component in any::<String>(),
    ) {
        let request = lines(REQUEST);
        for input in [input.as_slice(), text.as_bytes()] {
            let headers: Lines =
                vec![("signature-input".into(), input.to_vec()), ("signature".into(), b"a=:AA==:".to_vec())];
            if let Ok(parsed) = parse(&headers, None) {
                prop_assert!(parsed.verify(&post(&request), &hmac()).is_err());
            }
        }
        if let Ok(component) = component.parse::<Component>() {
            prop_assert_eq!(component.identifier().parse(), Ok(component));
        }
    }
}
