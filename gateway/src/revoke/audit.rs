//! Who asked for a revocation: a line of the log (`target: audit`) where it was asked for. What became of it is told by
//! every edge.
//!
//! Never holds the secret that was sent, nor a whole payment address.

use std::borrow::Cow;

use http::StatusCode;

use super::{Operators, Wanted};
use crate::access_log::masked;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller<'r> {
    pub(crate) door: Door,
    /// The other end: its address, or on a socket whose process it is.
    pub(crate) from: Option<String>,
    /// What it calls itself: anybody can write that.
    pub(crate) agent: Option<&'r [u8]>,
}

/// Where it asks, which says who can.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    Admin,
    StateService,
}

impl Caller<'_> {
    /// What it was believed by.
    fn credential(&self, operators: &Operators) -> &'static str {
        match (operators, self.door) {
            (Operators::WithSecret(_), _) => "admin.revocation_secret",
            (Operators::Nobody, _) => "none",
            (Operators::Anybody, Door::Admin) => "loopback",
            (Operators::Anybody, Door::StateService) => "state.service",
        }
    }

    fn agent(&self) -> Option<Cow<'_, str>> {
        const LONGEST: usize = 128;
        self.agent.map(|agent| String::from_utf8_lossy(agent.get(..LONGEST).unwrap_or(agent)))
    }
}

/// It was believed: what it wanted, and the status that it was answered with.
pub(super) fn asked(caller: &Caller<'_>, operators: &Operators, wanted: &Wanted, status: StatusCode) {
    let named = wanted.named().next();
    tracing::info!(
        target: "audit",
        credential = caller.credential(operators),
        from = caller.from,
        agent = caller.agent().as_deref(),
        kind = named.map(|(kind, _)| kind.name()),
        id = named.map(|(_, id)| masked(id)).as_deref(),
        tenant = wanted.tenant,
        undo = wanted.undo,
        status = status.as_u16(),
        "revocation asked for"
    );
}

/// It was not believed, or not understood.
pub(super) fn refused(caller: &Caller<'_>, status: StatusCode) {
    tracing::warn!(
        target: "audit",
        from = caller.from,
        agent = caller.agent().as_deref(),
        status = status.as_u16(),
        "revocation refused"
    );
}

/// By `gateway revoke`, in the Redis that a fleet shares: no edge was asked, so the command says it, for whoever keeps
/// what it writes.
pub(super) fn commanded(wanted: &Wanted) {
    let named = wanted.named().next();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    tracing::info!(
        target: "audit",
        credential = "command",
        uid = uid(),
        host = host.as_deref().map(str::trim),
        kind = named.map(|(kind, _)| kind.name()),
        id = named.map(|(_, id)| masked(id)).as_deref(),
        tenant = wanted.tenant,
        undo = wanted.undo,
        "revocation asked for"
    );
}

/// What the command calls itself where it asks over HTTP.
pub(super) fn agent() -> String {
    match uid() {
        Some(uid) => format!("gateway revoke (uid {uid})"),
        None => "gateway revoke".to_owned(),
    }
}

/// Whose process this is.
fn uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").ok().map(|own| own.uid())
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn who_asked() {
        let secret = Operators::WithSecret(Zeroizing::new(b"a secret of the identity service".to_vec()));
        let long = [b'x'; 300];
        for (door, agent, operators, credential, told) in [
            (Door::Admin, None, &Operators::Anybody, "loopback", None),
            (
                Door::Admin,
                Some(&b"identity/2"[..]),
                &secret,
                "admin.revocation_secret",
                Some("identity/2".to_owned()),
            ),
            (Door::Admin, Some(&long), &Operators::Nobody, "none", Some("x".repeat(128))),
            (Door::StateService, None, &Operators::Anybody, "state.service", None),
            (Door::StateService, None, &secret, "admin.revocation_secret", None),
        ] {
            let caller = Caller { door, from: None, agent };
            let seen = (caller.credential(operators), caller.agent().map(Cow::into_owned));
            assert_eq!(seen, (credential, told), "{caller:?}");
        }
    }
}
