//! Certificates and CAs by SDS: each in a file of its own, which names the PEM files. Envoy watches the folder of those
//! and reads them again when something is renamed in it, as `certs`, cert-manager and Kubernetes do.
//!
//! A secret never changes what it names: its name carries a mark of that, so that connections that serve by the policy
//! before keep what that one named.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use serde_json::{Map, Value, json};

/// The parts of a validation context that are files.
const OF_PEERS: [&str; 2] = ["trusted_ca", "crl"];

/// Secrets by their name, which is that of their file too.
pub(super) type Secrets = BTreeMap<String, Value>;

/// Puts references to secrets in `folder` in the place of the files that a listener or cluster names, and gives the
/// secrets.
pub(super) fn take(resource: &mut Value, folder: &Path, secrets: &mut Secrets) {
    if let Some(chains) = resource.get_mut("filter_chains").and_then(Value::as_array_mut) {
        chains.iter_mut().for_each(|chain| take(chain, folder, secrets));
    }
    let Some(context) = resource.pointer_mut("/transport_socket/typed_config/common_tls_context") else {
        return;
    };
    let Some(context) = context.as_object_mut() else { return };
    if let Some(mut certificates) = context.remove("tls_certificates") {
        let all = certificates.as_array_mut().into_iter().flatten();
        let references: Vec<_> =
            all.map(|one| secret("tls_certificate", one.take(), folder, secrets)).collect();
        context.insert("tls_certificate_sds_secret_configs".into(), json!(references));
    }
    if let Some(Value::Object(mut validation)) = context.remove("validation_context") {
        let files: Map<String, Value> =
            OF_PEERS.iter().filter_map(|&part| validation.remove_entry(part)).collect();
        let reference = secret("validation_context", Value::Object(files), folder, secrets);
        if validation.is_empty() {
            context.insert("validation_context_sds_secret_config".into(), reference);
        } else {
            let combined = json!({
                "default_validation_context": validation,
                "validation_context_sds_secret_config": reference,
            });
            context.insert("combined_validation_context".into(), combined);
        }
    }
}

/// Adds a secret; gives the reference to it.
fn secret(kind: &str, mut files: Value, folder: &Path, secrets: &mut Secrets) -> Value {
    let paths: Vec<String> = files
        .as_object()
        .into_iter()
        .flat_map(Map::values)
        .filter_map(|file| file["filename"].as_str().map(str::to_owned))
        .collect();
    let folders: Vec<Option<&Path>> = paths.iter().map(|path| Path::new(path).parent()).collect();
    // Files in many folders are watched one by one: Envoy then watches the folder of each by itself.
    if let [Some(first), rest @ ..] = folders.as_slice()
        && rest.iter().all(|other| *other == Some(*first))
    {
        files["watched_directory"] = json!({ "path": first });
    }
    let mut hasher = DefaultHasher::new();
    files.to_string().hash(&mut hasher);
    let stem =
        paths.first().and_then(|path| Path::new(path).file_stem()).unwrap_or_default().to_string_lossy();
    // Dots and colons would make parts of the names of Envoy's statistics.
    let stem: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = format!("{stem}~{:016x}", hasher.finish());
    let path = folder.join(format!("{name}.json"));
    secrets.insert(
        name.clone(),
        json!({ "resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": name,
            kind: files,
        }] }),
    );
    json!({
        "name": name,
        "sds_config": { "resource_api_version": "V3", "path_config_source": { "path": path } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(chain: &str, validation: Value) -> Value {
        json!({ "transport_socket": { "typed_config": { "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": { "filename": chain },
                "private_key": { "filename": "/pki/edge.key" },
            }],
            "validation_context": validation,
        } } } })
    }

    fn taken(mut resource: Value) -> (Value, Secrets) {
        let mut secrets = Secrets::new();
        take(&mut resource, Path::new("/etc/envoy/secrets"), &mut secrets);
        (resource["transport_socket"]["typed_config"]["common_tls_context"].take(), secrets)
    }

    #[test]
    fn files_become_secrets() {
        let ca = json!({ "filename": "/pki/ca.pem" });
        let (context_of, secrets) = taken(context("/pki/edge.pem", json!({ "trusted_ca": ca })));
        let own = context_of["tls_certificate_sds_secret_configs"][0]["name"].as_str().unwrap();
        let peers = context_of["validation_context_sds_secret_config"]["name"].as_str().unwrap();
        assert!(own.starts_with("edge~") && peers.starts_with("ca~"), "{context_of}");
        let path =
            &context_of["tls_certificate_sds_secret_configs"][0]["sds_config"]["path_config_source"]["path"];
        assert_eq!(path, &json!(format!("/etc/envoy/secrets/{own}.json")));
        let own = &secrets[own]["resources"][0]["tls_certificate"];
        assert_eq!(own["private_key"]["filename"], "/pki/edge.key");
        assert_eq!(own["watched_directory"]["path"], "/pki");
        assert_eq!(secrets[peers]["resources"][0]["validation_context"]["trusted_ca"], ca);
        assert!(
            context_of.get("tls_certificates").is_none() && context_of.get("validation_context").is_none()
        );
    }

    #[test]
    fn what_is_no_file_stays() {
        let names = json!([{ "san_type": "DNS", "matcher": { "exact": "a.test" } }]);
        let validation =
            json!({ "trusted_ca": { "filename": "/pki/ca.pem" }, "match_typed_subject_alt_names": names });
        let (context_of, secrets) = taken(context("/other/edge.pem", validation));
        let combined = &context_of["combined_validation_context"];
        assert_eq!(combined["default_validation_context"], json!({ "match_typed_subject_alt_names": names }));
        assert!(
            combined["validation_context_sds_secret_config"]["name"].as_str().unwrap().starts_with("ca~")
        );
        let own = context_of["tls_certificate_sds_secret_configs"][0]["name"].as_str().unwrap();
        let own = &secrets[own]["resources"][0]["tls_certificate"];
        assert!(own.get("watched_directory").is_none(), "a certificate and a key in two folders: {own}");
    }

    #[test]
    fn other_files_are_another_secret() {
        let none = json!({ "trusted_ca": { "filename": "/pki/ca.pem" } });
        let names = |chain| taken(context(chain, none.clone())).1.into_keys().collect::<Vec<_>>();
        assert_eq!(names("/a/edge.pem"), names("/a/edge.pem"));
        assert_ne!(names("/a/edge.pem"), names("/b/edge.pem"));
        assert_eq!(names("/b/e.d.pem")[1].split_once('~').unwrap().0, "e-d");
    }
}
