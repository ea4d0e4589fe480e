//! What an instance does. A fleet scales each role on its own; a process alone has all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes payments, callbacks and questions over HTTP.
    Api,
    /// Sends payments to the network, runs their timers, keeps house.
    Orchestrator,
    /// Brings committed events from the outbox to the bus.
    Relay,
    /// Tells clients that wait on a WebSocket how their payments go on.
    Notify,
    /// Writes every event to the audit files.
    Audit,
}

/// The roles of this instance, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Roles(BTreeSet<Role>);

/// What was written is no set of roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolesError {
    #[error("`{0}` is no role; the roles are {ALL}", ALL = Roles::default())]
    Unknown(String),
    #[error("no role is named; the roles are {ALL}", ALL = Roles::default())]
    None,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Api, Role::Orchestrator, Role::Relay, Role::Notify, Role::Audit];

    pub fn name(self) -> &'static str {
        match self {
            Role::Api => "api",
            Role::Orchestrator => "orchestrator",
            Role::Relay => "relay",
            Role::Notify => "notify",
            Role::Audit => "audit",
        }
    }
}

impl FromStr for Role {
    type Err = RolesError;

    fn from_str(name: &str) -> Result<Self, RolesError> {
        let role = Role::ALL.into_iter().find(|role| role.name() == name);
        role.ok_or_else(|| RolesError::Unknown(name.to_owned()))
    }
}

impl Roles {
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    pub fn are_all(&self) -> bool {
        self.0.len() == Role::ALL.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        self.0.iter().copied()
    }

    /// Whether any of them reads or writes payments.
    pub fn need_store(&self) -> bool {
        self.0.iter().any(|role| match role {
            Role::Api | Role::Orchestrator | Role::Relay | Role::Notify => true,
            Role::Audit => false,
        })
    }

    /// Whether any of them publishes or consumes.
    pub fn need_bus(&self) -> bool {
        self.0.iter().any(|role| match role {
            Role::Api => false,
            Role::Orchestrator | Role::Relay | Role::Notify | Role::Audit => true,
        })
    }

    /// Whether any of them is called by other services.
    pub fn need_listener(&self) -> bool {
        self.0.iter().any(|role| match role {
            Role::Api | Role::Notify => true,
            Role::Orchestrator | Role::Relay | Role::Audit => false,
        })
    }
}

impl Default for Roles {
    fn default() -> Self {
        Roles(Role::ALL.into())
    }
}

impl TryFrom<Vec<String>> for Roles {
    type Error = RolesError;

    fn try_from(names: Vec<String>) -> Result<Self, RolesError> {
        let roles = names.iter().map(|name| name.parse()).collect::<Result<BTreeSet<_>, _>>()?;
        if roles.is_empty() { Err(RolesError::None) } else { Ok(Roles(roles)) }
    }
}

/// Names with commas between them.
impl FromStr for Roles {
    type Err = RolesError;

    fn from_str(text: &str) -> Result<Self, RolesError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        Roles::try_from(names.map(str::to_owned).collect::<Vec<_>>())
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|role| role.name()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_commas() {
        let relay: Roles = "relay, audit".parse().unwrap();
        assert_eq!((relay.to_string().as_str(), relay.are_all()), ("relay,audit", false));
        assert_eq!("api,orchestrator,relay,notify,audit".parse(), Ok(Roles::default()));
        for (text, says) in
            [("api,apy", "`apy` is no role; the roles are api,orch"), (" , ", "no role is named")]
        {
            assert!(text.parse::<Roles>().unwrap_err().to_string().contains(says), "{text}");
        }
    }

    #[test]
    fn only_what_a_role_needs() {
        let cases = [
            ("api", true, false, true),
            ("orchestrator", true, true, false),
            ("relay", true, true, false),
            ("notify", true, true, true),
            ("audit", false, true, false),
            ("api,audit", true, true, true),
        ];
        for (text, store, bus, listener) in cases {
            let roles: Roles = text.parse().unwrap();
            assert_eq!(
                (roles.need_store(), roles.need_bus(), roles.need_listener()),
                (store, bus, listener),
                "{text}"
            );
        }
    }
}
