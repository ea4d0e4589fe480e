//! Lists of networks, compared as the addresses that are in them, however they are written.

use ipnet::IpNet;
use serde_json::Value;

/// The addresses of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Networks {
    /// None is in another, and no two make a wider one.
    widest: Vec<IpNet>,
    /// A list without entries often stands for every address, which one with [`NOBODY`] does not.
    is_empty: bool,
}

/// The one entry of a list that no address is in.
pub(super) const NOBODY: &str = "nobody";

impl Networks {
    /// `None`: it is a list of something else.
    pub(super) fn of(list: &[Value]) -> Option<Self> {
        let mut networks = Vec::new();
        for entry in list.iter().filter(|entry| entry.as_str() != Some(NOBODY)) {
            networks.push(network(entry)?);
        }
        Some(Self { widest: IpNet::aggregate(&networks), is_empty: list.is_empty() })
    }

    /// Whether every address of them is in the others.
    pub(super) fn are_in(&self, others: &Self) -> bool {
        self.widest.iter().all(|network| others.have(network))
    }

    fn have(&self, network: &IpNet) -> bool {
        self.widest.iter().any(|wide| wide.contains(network))
    }

    /// The entries of a list that they have not, each with what they have of it.
    pub(super) fn lack<'l>(&self, list: &'l [Value]) -> Vec<(&'l Value, Vec<IpNet>)> {
        let lacks = |entry: &'l Value| {
            let network = network(entry).filter(|network| !self.have(network))?;
            let parts = self.widest.iter().filter(|part| network.contains(*part));
            Some((entry, parts.copied().collect()))
        };
        list.iter().filter_map(lacks).collect()
    }
}

fn network(entry: &Value) -> Option<IpNet> {
    entry.as_str()?.parse().ok()
}

/// Has the filters of a route say in one list which addresses they allow: those that are in each of several.
pub(super) fn join_allowed(filters: &mut Value) {
    let Some(ip_access) = filters.get_mut("ip_access").and_then(Value::as_object_mut) else { return };
    let Some(Value::Array(mut lists)) = ip_access.remove("inherited") else { return };
    lists.extend(ip_access.remove("allow"));
    let lists = lists.iter().filter_map(Value::as_array).filter(|list| !list.is_empty());
    let lists = lists.map(|list| list.iter().filter_map(network).collect::<Vec<IpNet>>());
    // Of two networks one is in the other, or they have no address in common.
    let common = lists.reduce(|some, others| {
        let both = |one: &IpNet, other: &IpNet| match (one.contains(other), other.contains(one)) {
            (true, _) => Some(*other),
            (false, true) => Some(*one),
            (false, false) => None,
        };
        some.iter().flat_map(|one| others.iter().filter_map(move |other| both(one, other))).collect()
    });
    let mut allowed: Vec<Value> = common.iter().flatten().map(|network| network.to_string().into()).collect();
    if common.is_some() && allowed.is_empty() {
        allowed.push(NOBODY.into());
    }
    ip_access.insert("allow".to_owned(), allowed.into());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::needless_pass_by_value, reason = "literals")]
    fn what_several_lists_allow() {
        fn check(ip_access: Value, expected: Value) {
            let mut filters = json!({ "ip_access": ip_access });
            join_allowed(&mut filters);
            assert_eq!(filters["ip_access"], expected);
        }
        check(json!({"allow": ["10.0.0.0/8"]}), json!({"allow": ["10.0.0.0/8"]}));
        check(json!({"allow": [], "inherited": [["10.0.0.0/8"]]}), json!({"allow": ["10.0.0.0/8"]}));
        check(
            json!({"allow": ["10.1.0.0/16", "192.0.2.0/24"], "inherited": [["10.0.0.0/8", "192.0.2.9/32"]]}),
            json!({"allow": ["10.1.0.0/16", "192.0.2.9/32"]}),
        );
        check(json!({"allow": ["10.0.0.0/8"], "inherited": [["192.0.2.0/24"]]}), json!({"allow": [NOBODY]}));
    }
}
