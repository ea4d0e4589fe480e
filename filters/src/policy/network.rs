//! Networks as policies write them: CIDR notation, or one address.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// A list of networks. One address is the network of that address alone. An address with the length of a larger network
/// is refused, because it may mean either.
pub(crate) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let written = Vec::<Network>::deserialize(deserializer)?;
    Ok(written.into_iter().map(|Network(network)| network).collect())
}

struct Network(IpNet);

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        read(&text).map(Self).map_err(de::Error::custom)
    }
}

fn read(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| "invalid IP address syntax".to_owned())?;
    let trunc = network.trunc();
    if network != trunc {
        return Err(format!(
            "`{text}` is one address with the length of a network: write `{}` for the address, or `{trunc}` for the network",
            network.addr()
        ));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks() {
        for (text, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3/32")),
            ("10.1.2.3/32", Ok("10.1.2.3/32")),
            ("2001:db8::1", Ok("2001:db8::1/128")),
            ("2001:db8::/32", Ok("2001:db8::/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            (
                "10.1.2.3/8",
                Err(
                    "`10.1.2.3/8` is one address with the length of a network: write `10.1.2.3` for the address, or `10.0.0.0/8` for the network",
                ),
            ),
            (
                "2001:db8::1/32",
                Err(
                    "`2001:db8::1/32` is one address with the length of a network: write `2001:db8::1` for the address, or `2001:db8::/32` for the network",
                ),
            ),
            ("10.0.0.0/33", Err("invalid IP address syntax")),
            ("example.com", Err("invalid IP address syntax")),
        ] {
            assert_eq!(
                read(text).map(|network| network.to_string()),
                expected.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        }
    }
}
