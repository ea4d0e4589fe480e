//! A key that the process may not read. It has a binary of its own: as root it gives root up, for all of its threads.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certs::pki::files::Pair;
use certs::pki::{Authority, Leaf, Purpose};
use certs::{CertError, IdentityFiles, Issuer, Must, Reader, Watch};
use nix::unistd::{Uid, geteuid, seteuid};

const NOBODY: u32 = 65_534;

#[tokio::test]
async fn permission_denied_changes_nothing_and_is_told() {
    certs::install_crypto_provider();
    let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::create("one").unwrap());
    let mode = |name: &str, mode| {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let issue = || ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap().write(dir.path(), "svc").unwrap();
    let [certificate, key] = issue();
    mode("", 0o755);
    // Anybody may put files in there, and root's stay root's.
    std::fs::create_dir(dir.path().join("roots")).unwrap();
    ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap().write(&dir.path().join("roots"), "svc").unwrap();
    mode("roots", 0o777);
    let watch = Watch::new("test");
    let must =
        Must { purpose: Purpose::Server, names: Vec::new(), issuer: Issuer::Any, reader: Reader::Ours };
    let identity = watch.identity("svc".into(), IdentityFiles { certificate, key }, must).unwrap();
    let serial = identity.current().facts().serial_hex.clone();

    issue();
    mode("svc.key", 0o000);
    if geteuid().is_root() {
        seteuid(Uid::from_raw(NOBODY)).unwrap();
        what_cannot_be_given_back_is_not_replaced(&dir.path().join("roots"), &ca);
    }
    let running = tokio::spawn(Arc::clone(&watch).run());
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Some(failure) = identity.reloads().last_failure {
                return failure.reason;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let told = told.await.unwrap();
    assert!(told.contains("svc.key") && told.contains("Permission denied"), "{told}");
    assert_eq!(identity.current().facts().serial_hex, serial);
    assert_eq!(identity.reloads().reload_failures, 1);
    running.abort();
    if Uid::current().is_root() {
        // Back, to clear up.
        seteuid(Uid::from_raw(0)).unwrap();
    }
}

/// A new pair belongs to whom the one before did, or nothing is changed: its readers might not be able to read it.
fn what_cannot_be_given_back_is_not_replaced(folder: &Path, ca: &Authority) {
    let pair = Pair::beside(&folder.join("svc.pem"));
    let before = std::fs::read(&pair.certificate).unwrap();
    let refused = pair.replace(&ca.issue(&Leaf::new("svc", &["svc.test"])).unwrap()).unwrap_err();
    assert!(matches!(refused, CertError::NotOwned { user: 0, .. }), "{refused}");
    assert!(refused.to_string().contains("nothing was changed"), "{refused}");
    assert_eq!(std::fs::read(&pair.certificate).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "nothing is left behind");
}
