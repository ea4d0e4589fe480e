//! How Envoy gets certificates and CAs: by SDS, from a copy that only the gateway writes.
//!
//! Each set of files that the policy names is a secret, called as the set is in metrics, with a mark of which files those
//! are. A secret never changes what it names, so that connections that serve by the policy before keep what that one
//! named.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use certs::{Identity, Set, Trust};
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::served::{Files, Served};
use crate::load::{ListenerFiles, UpstreamFiles};

/// Where a TLS context finds what it names.
#[derive(Debug)]
pub(super) enum Delivery {
    /// In the operators' own files, which Envoy reads once.
    Files,
    /// In secrets in this folder, which it follows.
    Secrets(PathBuf),
}

impl Delivery {
    /// Has a context show these certificates, of which the first is for who asks for no name of the others, and believe
    /// these CAs, as far as `also` lets it.
    pub(super) fn fill(
        &self,
        context: &mut Value,
        own: &[&Set<Identity>],
        peers: Option<(&Set<Trust>, Value)>,
    ) {
        match self {
            Self::Files => {
                let pair = |set: &&Set<Identity>| pair(&files(*set));
                context["tls_certificates"] = own.iter().map(pair).collect();
                if let Some((trust, mut also)) = peers {
                    merge(&mut also, believed(&files(trust)));
                    context["validation_context"] = also;
                }
            }
            Self::Secrets(folder) => {
                context["tls_certificate_sds_secret_configs"] =
                    own.iter().map(|set| reference(folder, &name(set))).collect();
                if let Some((trust, also)) = peers {
                    let secret = reference(folder, &name(trust));
                    if also.as_object().is_some_and(|also| also.is_empty()) {
                        context["validation_context_sds_secret_config"] = secret;
                    } else {
                        context["combined_validation_context"] = json!({
                            "default_validation_context": also,
                            "validation_context_sds_secret_config": secret,
                        });
                    }
                }
            }
        }
    }
}

/// Everything that Envoy uses of a policy's files.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    own: Vec<Set<Identity>>,
    peers: Vec<Set<Trust>>,
}

impl Secrets {
    pub(super) fn of<'f>(
        listeners: &[ListenerFiles],
        upstreams: impl Iterator<Item = &'f UpstreamFiles>,
    ) -> Self {
        let mut secrets = Self::default();
        for listener in listeners {
            secrets.own.push(listener.certificates.default.clone());
            secrets.own.extend(listener.certificates.others.iter().map(|named| named.identity.clone()));
            secrets.peers.extend(listener.clients.trust().cloned());
        }
        for upstream in upstreams {
            secrets.own.extend(upstream.identity.clone());
            secrets.peers.extend(upstream.trust.clone());
        }
        secrets
    }

    /// Whose certificates are believed, by the name of the set.
    pub(super) fn trust(&self, name: &str) -> Option<&Set<Trust>> {
        self.peers.iter().find(|set| set.name() == name)
    }

    /// By the name of each, as Envoy reads it.
    pub(super) fn documents(&self, served: &Served) -> BTreeMap<String, Value> {
        let at = |name: &str, ending: &str| served.path(&format!("{name}.{ending}"));
        let own = self.own.iter().map(|set| {
            let name = name(set);
            let mut files = pair(&[at(&name, "pem"), at(&name, "key")]);
            files["watched_directory"] = json!({ "path": served.folder() });
            (name, "tls_certificate", files)
        });
        let peers = self.peers.iter().map(|set| {
            let name = name(set);
            let endings = ["pem", "crl"].into_iter().take(set.files().count());
            let mut files = believed(&endings.map(|ending| at(&name, ending)).collect::<Vec<_>>());
            files["watched_directory"] = json!({ "path": served.folder() });
            (name, "validation_context", files)
        });
        own.chain(peers)
            .map(|(name, kind, files)| {
                let secret = json!({
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                    "name": name,
                    kind: files,
                });
                (name, json!({ "resources": [secret] }))
            })
            .collect()
    }

    /// What was accepted last of each set, as files.
    pub(super) fn files(&self) -> Files {
        let mut files = Files::new();
        for set in &self.own {
            let (name, identity) = (name(set), set.current());
            files.insert(format!("{name}.pem"), Zeroizing::new(identity.chain_pem()));
            files.insert(format!("{name}.key"), identity.key_pem());
        }
        for set in &self.peers {
            let (name, trust) = (name(set), set.current());
            // When every CA has expired Envoy keeps those: it refuses to believe nobody, and believes none of them.
            if trust.ders().is_empty() {
                continue;
            }
            files.insert(format!("{name}.pem"), Zeroizing::new(trust.pem()));
            if set.files().count() > 1 {
                files.insert(format!("{name}.crl"), Zeroizing::new(trust.lists_pem()));
            }
        }
        files
    }

    /// Another one when something else is to be handed to Envoy, or to be made of it.
    pub(super) fn version(&self, now: OffsetDateTime) -> Vec<(u64, bool)> {
        let own = self.own.iter().map(|set| (set.generation(), false));
        let peers = self.peers.iter().map(|set| (set.generation(), set.current().is_stale(now)));
        own.chain(peers).collect()
    }
}

/// `listener/public/clients` and its files: `listener-public-clients~5f…`. Dots and colons would make parts of the names
/// of Envoy's statistics.
fn name<T: certs::Subject>(set: &Set<T>) -> String {
    let name: String = set.name().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut hasher = DefaultHasher::new();
    (set.name(), files(set)).hash(&mut hasher);
    format!("{name}~{:016x}", hasher.finish())
}

fn files<T: certs::Subject>(set: &Set<T>) -> Vec<PathBuf> {
    set.files().map(Path::to_path_buf).collect()
}

fn pair(files: &[PathBuf]) -> Value {
    named(["certificate_chain", "private_key"], files)
}

fn believed(files: &[PathBuf]) -> Value {
    named(["trusted_ca", "crl"], files)
}

fn named(parts: [&str; 2], files: &[PathBuf]) -> Value {
    parts.into_iter().zip(files).map(|(part, file)| (part.to_owned(), json!({ "filename": file }))).collect()
}

fn reference(folder: &Path, name: &str) -> Value {
    let path = folder.join(format!("{name}.json"));
    json!({
        "name": name,
        "sds_config": { "resource_api_version": "V3", "path_config_source": { "path": path } },
    })
}

fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use certs::pki::Purpose;
    use certs::{IdentityFiles, Issuer, Must, Reader, StaleCrl, TrustFiles, Watch};

    use super::*;

    struct House {
        dir: tempfile::TempDir,
        secrets: Secrets,
    }

    fn house() -> House {
        certs::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        certs::pki::init(dir.path(), false).unwrap();
        let (watch, at) = (Watch::new("test"), |name: &str| dir.path().join(name));
        let files = IdentityFiles { certificate: at("edge.pem"), key: at("edge.key") };
        let must =
            Must { purpose: Purpose::Server, names: Vec::new(), issuer: Issuer::Any, reader: Reader::Envoy };
        let own = watch.identity("listener/a.b".into(), files, must).unwrap();
        let crl = Some(at("partner-ca.crl"));
        let files = TrustFiles { ca: at("partner-ca.pem"), crl, stale: StaleCrl::Refuse };
        let peers = watch.trust("listener/a.b/clients".into(), files).unwrap();
        House { secrets: Secrets { own: vec![own], peers: vec![peers] }, dir }
    }

    #[test]
    fn sets_become_secrets_of_the_copy() {
        let House { dir, secrets } = house();
        let (own, peers) = (&secrets.own[0], &secrets.peers[0]);
        let served = Served::of(dir.path());
        let documents = secrets.documents(&served);
        let folder = PathBuf::from("/etc/envoy/secrets");
        for (also, combined) in [(json!({}), false), (json!({ "match_typed_subject_alt_names": [] }), true)] {
            let mut context = json!({});
            Delivery::Secrets(folder.clone()).fill(&mut context, &[own], Some((peers, also.clone())));
            let (shown, believed) = (
                &context["tls_certificate_sds_secret_configs"][0],
                match combined {
                    true => &context["combined_validation_context"]["validation_context_sds_secret_config"],
                    false => &context["validation_context_sds_secret_config"],
                },
            );
            for (reference, stem, kind, part, ending) in [
                (shown, "listener-a-b~", "tls_certificate", "private_key", "key"),
                (believed, "listener-a-b-clients~", "validation_context", "crl", "crl"),
            ] {
                let name = reference["name"].as_str().unwrap();
                assert!(name.starts_with(stem), "{context}");
                let path = &reference["sds_config"]["path_config_source"]["path"];
                assert_eq!(path, &json!(folder.join(format!("{name}.json"))));
                let secret = &documents[name]["resources"][0][kind];
                assert_eq!(secret[part]["filename"], json!(served.path(&format!("{name}.{ending}"))));
                assert_eq!(secret["watched_directory"]["path"], json!(served.folder()));
                assert!(secrets.files().contains_key(&format!("{name}.{ending}")));
            }
            let default = &context["combined_validation_context"]["default_validation_context"];
            assert_eq!(default, &if combined { also } else { Value::Null });
        }
    }

    #[test]
    fn the_printed_form_names_the_operators_files() {
        let House { dir, secrets } = house();
        let mut context = json!({});
        let peers = Some((&secrets.peers[0], json!({ "match_typed_subject_alt_names": [] })));
        Delivery::Files.fill(&mut context, &[&secrets.own[0]], peers);
        let at = |name: &str| json!({ "filename": dir.path().join(name) });
        assert_eq!(
            context,
            json!({
                "tls_certificates": [{ "certificate_chain": at("edge.pem"), "private_key": at("edge.key") }],
                "validation_context": {
                    "trusted_ca": at("partner-ca.pem"),
                    "crl": at("partner-ca.crl"),
                    "match_typed_subject_alt_names": [],
                },
            })
        );
    }

    #[test]
    fn other_files_are_another_secret() {
        let names = |house: &House| (name(&house.secrets.own[0]), name(&house.secrets.peers[0]));
        let (one, other) = (house(), house());
        assert_eq!(names(&one), names(&one));
        assert_ne!(names(&one).0, names(&other).0);
        assert_ne!(names(&one).1, names(&other).1);
    }
}
