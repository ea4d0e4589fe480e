//! Who asked for a revocation: a line of the log (`target: audit`) where it was asked for. What became of it is told by
//! every edge.
//!
//! Never holds the secret that was sent, nor a whole payment address.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::StatusCode;

use super::{Operators, Wanted};
use crate::access_log::masked;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller<'r> {
    /// Of the admin address.
    Admin {
        from: Option<SocketAddr>,
        /// What it calls itself: anybody can write that.
        agent: Option<&'r [u8]>,
    },
    /// Of the state service, whose place says who reaches it.
    StateService,
}

impl Caller<'_> {
    /// What it was believed by.
    fn credential(self, operators: &Operators) -> &'static str {
        match (operators, self) {
            (Operators::WithSecret(_), _) => "admin.revocation_secret",
            (Operators::Nobody, _) => "none",
            (Operators::Anybody, Self::Admin { .. }) => "loopback",
            (Operators::Anybody, Self::StateService) => "state.service",
        }
    }

    fn from(self) -> Option<String> {
        match self {
            Self::Admin { from, .. } => from.map(|from| from.to_string()),
            Self::StateService => None,
        }
    }

    fn agent(&self) -> Option<Cow<'_, str>> {
        const LONGEST: usize = 128;
        match self {
            Self::Admin { agent, .. } => agent.map(|agent| {
                let shown = agent.get(..LONGEST).unwrap_or(agent);
                String::from_utf8_lossy(shown)
            }),
            Self::StateService => None,
        }
    }
}

/// It was believed: what it wanted, and the status that it was answered with.
pub(super) fn asked(caller: Caller<'_>, operators: &Operators, wanted: &Wanted, status: StatusCode) {
    let named = wanted.named().next();
    tracing::info!(
        target: "audit",
        credential = caller.credential(operators),
        from = caller.from(),
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
pub(super) fn refused(caller: Caller<'_>, status: StatusCode) {
    tracing::warn!(
        target: "audit",
        from = caller.from(),
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
        let from: SocketAddr = SocketAddr::from(([10, 0, 0, 7], 4711));
        let long = [b'x'; 300];
        let admin = |agent| Caller::Admin { from: Some(from), agent };
        let of_admin = Some("10.0.0.7:4711");
        for (caller, operators, credential, from, agent) in [
            (admin(None), &Operators::Anybody, "loopback", of_admin, None),
            (
                admin(Some(b"identity/2")),
                &secret,
                "admin.revocation_secret",
                of_admin,
                Some("identity/2".to_owned()),
            ),
            (admin(Some(&long)), &Operators::Nobody, "none", of_admin, Some("x".repeat(128))),
            (Caller::StateService, &Operators::Anybody, "state.service", None, None),
            (Caller::StateService, &secret, "admin.revocation_secret", None, None),
        ] {
            let told = (caller.credential(operators), caller.from(), caller.agent().map(Cow::into_owned));
            assert_eq!(told, (credential, from.map(str::to_owned), agent), "{caller:?}");
        }
    }
}
