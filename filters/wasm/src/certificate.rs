//! The client's certificate, as Envoy tells it: in `x-forwarded-client-cert`, with `SANITIZE_SET` and `cert`.
//!
//! The field then holds one element of ours and nothing of the client's: `Hash=HEX;Cert="PEM"`, the PEM with `%` escapes.
//! Anything else means that Envoy was told otherwise, and then nothing in it is believed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filters::certificate::Certificate;

/// Certificates that were read a moment ago: a connection brings the same one with every request.
#[derive(Debug, Default)]
pub struct Certificates(RefCell<VecDeque<(Vec<u8>, Arc<Certificate>)>>);

/// Few enough to look through.
const MOST: usize = 32;

impl Certificates {
    /// The certificate in Envoy's field. One that cannot be read names nobody, but it was shown.
    pub fn told(&self, field: &[u8]) -> Arc<Certificate> {
        let mut known = self.0.borrow_mut();
        if let Some((_, certificate)) = known.iter().find(|(text, _)| text == field) {
            return Arc::clone(certificate);
        }
        let certificate = Arc::new(read(field).unwrap_or_else(|| Certificate::new(&[])));
        known.push_front((field.to_vec(), Arc::clone(&certificate)));
        known.truncate(MOST);
        certificate
    }
}

fn read(field: &[u8]) -> Option<Certificate> {
    let text = std::str::from_utf8(field).ok()?;
    let (hash, rest) = text.strip_prefix("Hash=")?.split_once(";Cert=\"")?;
    let pem = unescaped(rest.strip_suffix('"')?)?;
    let base64 = pem.strip_prefix("-----BEGIN CERTIFICATE-----\n")?.trim_end_matches('\n');
    let base64: String = base64.strip_suffix("-----END CERTIFICATE-----")?.split('\n').collect();
    let certificate = Certificate::new(&STANDARD.decode(base64).ok()?);
    let digest: String = certificate.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
    (digest == hash).then_some(certificate)
}

/// Without its `%` escapes; `None` when a byte is none that Envoy writes, a second element's comma say.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        plain.push(char::from(u8::from_str_radix(digits, 16).ok()?));
        plain.push_str(rest);
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "+/=- \n".contains(c);
    plain.chars().all(known).then_some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whatever bytes: to Envoy's field they are a certificate.
    fn field(der: &[u8]) -> String {
        let base64 = STANDARD.encode(der);
        let lines: Vec<&str> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        let mut escaped = pem;
        for (plain, escape) in [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")] {
            escaped = escaped.replace(plain, escape);
        }
        let digest: String = filters::crypto::sha256(der).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("Hash={digest};Cert=\"{escaped}\"")
    }

    #[test]
    fn what_envoy_writes_is_read_and_nothing_else() {
        let der = [0xfb; 300];
        let good = field(&der);
        let told = Certificates::default();
        assert_eq!(told.told(good.as_bytes()).sha256(), Certificate::new(&der).sha256());
        let nobody = Certificate::new(&[]);
        let other = field(&[1; 300]);
        for bad in [
            String::new(),
            "By=x".to_owned(),
            format!("{other},{good}"),
            format!("{good},{other}"),
            format!("{good};URI=spiffe://acme"),
            format!("By=spiffe://x;{good}"),
            good.replace("Hash=", "hash="),
            good.replacen(&good[5..7], "zz", 1),
            good.replace("%0A", "%0"),
            good.replace("BEGIN", "END"),
        ] {
            assert_eq!(*told.told(bad.as_bytes()), nobody, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_field_panics(field in proptest::collection::vec(any::<u8>(), 0..200), inside in "[%A-Za-z0-9=,;\"]{0,80}") {
            let told = Certificates::default();
            for _ in 0..2 {
                let _ = told.told(&field);
            }
            let _ = told.told(format!("Hash=00;Cert=\"{inside}\"").as_bytes());
        }
    }
}
