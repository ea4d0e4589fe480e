//! The audit of feature flags: what counts from when on, a line for each change, whatever policies come and go.
//!
//! It tells of what has taken over, and never of what a policy that was refused would have brought.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use certs::Watch;
use filters::flags::Flags;

use super::{FeatureFlags, Held};

/// What was told last: the one line that changes have in a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audited(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    /// `None`: nothing was ever told.
    flags: Option<Arc<Flags>>,
    /// How many policies have taken over. Those before the last one tell nothing any more.
    policies: u64,
}

impl FeatureFlags {
    /// The policy of these flags has taken over: tells what that changes, and from now on what their file does.
    pub(crate) fn audit(&self, watch: &Watch, audited: &Audited) {
        let policy = audited.next_policy();
        let Some(set) = &self.0 else { return audited.tell(policy, None) };
        let (followed, audited) = (set.clone(), audited.clone());
        // Made at once, and anew with each file that counts.
        let Ok(_) = watch.derive(&[set], move || {
            audited.tell(policy, Some(&followed.current()));
            Ok::<_, Infallible>(())
        });
    }
}

impl Audited {
    fn next_policy(&self) -> u64 {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.policies += 1;
        told.policies
    }

    /// Writes a line for each flag that is another than it was told to be. A policy without flags has none.
    fn tell(&self, policy: u64, held: Option<&Held>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.policies != policy {
            return;
        }
        let now = held.map(|held| Arc::clone(&held.flags)).unwrap_or_default();
        let version = held.map(|held| held.version.as_str());
        let Some(before) = told.flags.replace(Arc::clone(&now)) else {
            if held.is_some() {
                tracing::info!(target: "audit", version, flags = now.len(), "flags in use");
            }
            return;
        };
        for (key, flag) in now.iter() {
            let default = flag.default();
            let state = format!("{:?}", flag.state()).to_uppercase();
            match before.get(key) {
                None => {
                    tracing::info!(target: "audit", version, flag = key, state, default, "flag added");
                }
                Some(old) => {
                    let changed = old.changed(flag);
                    if !changed.is_empty() {
                        let (changed, default_before) = (changed.join(" "), old.default());
                        tracing::info!(
                            target: "audit", version, flag = key, state, default, default_before, changed,
                            "flag changed"
                        );
                    }
                }
            }
        }
        for (key, _) in before.iter().filter(|(key, _)| now.get(key).is_none()) {
            tracing::info!(target: "audit", version, flag = key, "flag removed");
        }
    }
}
