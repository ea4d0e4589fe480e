//! Where Redis is, how to log in there and which CAs to trust. Made anew when a file changes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use certs::file::Content;
use certs::{Bytes, CertError, Live, Set, Subject, Trust, TrustFiles, Versioned, Watch};
use filters::policy::{Redis as Settings, Reference};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates, TlsMode};

use crate::load;

/// Batches that may wait for their answers at once; more wait until their timeout.
pub(super) const MOST_IN_FLIGHT: usize = 4_096;
/// Most addresses of Sentinels or Cluster nodes.
const MOST_ADDRESSES: usize = 16;
/// Tries of a Cluster command within its timeout, and the milliseconds between two.
const CLUSTER_RETRIES: u32 = 3;
const CLUSTER_RETRY_WAIT_MS: [u64; 2] = [5, 50];

/// The Redis to connect to.
pub(super) struct Target {
    pub(super) kind: Kind,
    /// Whether connections use TLS.
    pub(super) tls: bool,
    /// Addresses, database and CAs, without user and password. A target with other ones is another Redis, or
    /// another trust in it: connections to the one before are closed at once.
    location: String,
}

pub(super) enum Kind {
    Single(Box<Client>),
    /// What makes a client: it keeps connections of its own, so each try to connect has a new one.
    Sentinel(Box<dyn Fn() -> redis::RedisResult<SentinelClient> + Send + Sync>),
    Cluster(Box<ClusterClient>),
}

impl Target {
    /// Whether connections of the one before may serve until this one is connected: only the login differs.
    pub(super) fn is_same_place(&self, before: &Self) -> bool {
        self.location == before.location
    }
}

/// The files with addresses and passwords, read.
struct Login {
    addresses: Vec<ConnectionInfo>,
    sentinel_password: Option<String>,
}

impl Subject for Login {
    fn summary(&self) -> String {
        addresses(&self.addresses)
    }
}

/// What connections to Redis are made from. Connects to nothing.
pub(super) fn target(settings: &Settings, folder: &Path, watch: &Watch) -> anyhow::Result<Live<Target>> {
    followed(settings, folder, watch).context("state.redis")
}

fn followed(settings: &Settings, folder: &Path, watch: &Watch) -> anyhow::Result<Live<Target>> {
    // Read once before anything is followed: these messages name the references of the policy.
    let secret = |reference: &Reference| {
        load::secret(folder, reference).map_err(|why| anyhow::anyhow!("{reference}: {why}"))
    };
    let url = &settings.url.value;
    let password = settings.sentinel.as_ref().and_then(|sentinel| sentinel.value.password.as_ref());
    let password = password.map(|password| &password.value);
    let first =
        login(settings, &secret(url)?, password.map(secret).transpose()?.as_deref().map(Vec::as_slice))?;
    let login = login_files(settings, folder, watch, first)?;
    let trust = settings.ca.as_ref().map(|ca| {
        let ca = load::file(folder, ca).map_err(anyhow::Error::msg)?;
        let files = TrustFiles { ca, crl: None, stale: certs::StaleCrl::Refuse };
        let trust = watch.trust("redis/ca".into(), files)?;
        watch.connects(certs::Client {
            name: "redis".into(),
            server_name: None,
            identity: None,
            trust: trust.clone(),
        });
        anyhow::Ok(trust)
    });
    let trust: Option<Set<Trust>> = trust.transpose()?;
    let mut from: Vec<&dyn Versioned> = vec![&login];
    from.extend(trust.as_ref().map(|trust| trust as &dyn Versioned));
    let (settings, login_now) = (settings.clone(), login.clone());
    let trust_now = trust.clone();
    watch.derive(&from, move || {
        let ca = trust_now.as_ref().map(|trust| trust.current().pem());
        make(&settings, &login_now.current(), ca)
    })
}

/// The login, followed where it is in files.
fn login_files(
    settings: &Settings,
    folder: &Path,
    watch: &Watch,
    first: Login,
) -> anyhow::Result<Live<Login>> {
    let sentinel = settings.sentinel.as_ref().and_then(|sentinel| sentinel.value.password.as_ref());
    let references: Vec<Reference> =
        std::iter::once(&settings.url).chain(sentinel).map(|reference| reference.value.clone()).collect();
    let files: Vec<(PathBuf, Content)> = references
        .iter()
        .filter_map(|reference| match reference {
            Reference::File(path) => Some((folder.join(path), Content::Secret)),
            Reference::Env(_) => None,
        })
        .collect();
    if files.is_empty() {
        return Ok(Live::from(first));
    }
    let settings = settings.clone();
    let accept = move |read: &[Bytes], _: Option<&Login>, _| {
        let path = read.first().map(|file| file.path.clone()).unwrap_or_default();
        let mut read = read.iter();
        let contents: Result<Vec<_>, String> = references
            .iter()
            .map(|reference| match reference {
                Reference::File(_) => {
                    let bytes = read.next().map(|file| file.bytes.clone()).unwrap_or_default();
                    Ok(load::less_line_break(bytes))
                }
                // The environment of a process does not change.
                Reference::Env(_) => load::secret(Path::new(""), reference),
            })
            .collect();
        let made = contents.map_err(anyhow::Error::msg).and_then(|contents| {
            let bytes = |position: usize| contents.get(position).map(|bytes| bytes.as_slice());
            login(&settings, bytes(0).unwrap_or_default(), bytes(1))
        });
        made.map_err(|why| CertError::Content { path, reason: format!("{why:#}") })
    };
    Ok((*watch.files("redis/url".to_owned(), files, accept)?).clone())
}

/// Reads the addresses. No message quotes them: they may hold a password.
fn login(settings: &Settings, url: &[u8], sentinel_password: Option<&[u8]>) -> anyhow::Result<Login> {
    let text = std::str::from_utf8(url).ok().context("its address is no text")?;
    let read = text.split_whitespace().map(|url| url.into_connection_info().ok());
    let read: Option<Vec<ConnectionInfo>> = read.collect();
    let addresses = read.filter(|addresses| !addresses.is_empty()).context(
        "its address is not one: write redis://host:port/0, rediss://user:password@host:port/0 or redis+unix:///path",
    )?;
    addresses.iter().try_for_each(is_allowed).map_err(anyhow::Error::msg)?;
    let is_several = settings.cluster || settings.sentinel.is_some();
    if !is_several {
        anyhow::ensure!(
            addresses.len() == 1,
            "it has several addresses: write one, or beside `url` either `cluster: true` or `sentinel`"
        );
    } else {
        anyhow::ensure!(
            addresses.len() <= MOST_ADDRESSES,
            "it has more than {MOST_ADDRESSES} addresses: write a few, the others are found"
        );
        anyhow::ensure!(
            addresses.iter().all(|one| !matches!(one.addr(), ConnectionAddr::Unix(_))),
            "Sentinels and Cluster nodes have no socket: write redis:// or rediss://"
        );
        let login = |one: &ConnectionInfo| {
            let redis = one.redis_settings();
            (
                redis.username().map(str::to_owned),
                redis.password().map(str::to_owned),
                redis.db(),
                is_tls(one),
            )
        };
        anyhow::ensure!(
            addresses.windows(2).all(|pair| matches!(pair, [one, other] if login(one) == login(other))),
            "its addresses differ in more than host and port: write the same scheme, user, password and database"
        );
        anyhow::ensure!(
            !settings.cluster || addresses.iter().all(|one| one.redis_settings().db() == 0),
            "a Cluster has one database: write rediss://user:password@host:port/0"
        );
    }
    let password = sentinel_password.map(|password| std::str::from_utf8(password));
    let sentinel_password =
        password.transpose().ok().context("the password of its Sentinels is no text")?.map(str::to_owned);
    let nodelay = |one: ConnectionInfo| one.set_tcp_settings(tcp());
    Ok(Login { addresses: addresses.into_iter().map(nodelay).collect(), sentinel_password })
}

/// Nonces, limits and passwords leave the host over verified TLS only.
pub(super) fn is_allowed(info: &ConnectionInfo) -> Result<(), String> {
    let is_local = match info.addr() {
        ConnectionAddr::Tcp(host, _) => {
            host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            return Err("its address switches verification off: remove `#insecure`".to_owned());
        }
        _ => true,
    };
    match is_local {
        true => Ok(()),
        false => Err("it holds nonces and limits: off the host write rediss://, which is TLS".to_owned()),
    }
}

fn make(settings: &Settings, login: &Login, ca: Option<String>) -> anyhow::Result<Target> {
    let Login { addresses: all, sentinel_password } = login;
    let first = all.first().context("no address")?;
    let tls = is_tls(first);
    let location =
        format!("{}/{}/{}", addresses(all), first.redis_settings().db(), ca.clone().unwrap_or_default());
    let certificates =
        ca.filter(|_| tls).map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca.into_bytes()) });
    let kind = match &settings.sentinel {
        Some(sentinel) => {
            let sentinel = sentinel.value.clone();
            let (all, password) = (all.clone(), sentinel_password.clone());
            let client = move || {
                let sentinels = all.iter().map(|one| one.addr().clone());
                let mut builder =
                    SentinelClientBuilder::new(sentinels, &sentinel.master, SentinelServerType::Master)?
                        .set_client_to_redis_tcp_settings(tcp())
                        .set_client_to_sentinel_tcp_settings(tcp());
                if let Some(redis) = all.first().map(ConnectionInfo::redis_settings) {
                    builder = builder.set_client_to_redis_db(redis.db());
                    if let Some(user) = redis.username() {
                        builder = builder.set_client_to_redis_username(user);
                    }
                    if let Some(password) = redis.password() {
                        builder = builder.set_client_to_redis_password(password);
                    }
                }
                if let Some(user) = &sentinel.user {
                    builder = builder.set_client_to_sentinel_username(user);
                }
                if let Some(password) = &password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if tls {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_sentinel_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = &certificates {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates.clone());
                }
                builder.build()
            };
            // What cannot be built is told of now and not with each try.
            client()?;
            Kind::Sentinel(Box::new(client))
        }
        None if settings.cluster => {
            let [least, most] = CLUSTER_RETRY_WAIT_MS;
            let mut builder = ClusterClientBuilder::new(all.clone())
                .connection_timeout(Duration::from_millis(settings.connect_timeout_ms))
                .response_timeout(Duration::from_millis(settings.timeout_ms))
                .retries(CLUSTER_RETRIES)
                .min_retry_wait(least)
                .max_retry_wait(most)
                .connection_concurrency_limit(MOST_IN_FLIGHT)
                .tcp_settings(tcp());
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            Kind::Cluster(Box::new(builder.build()?))
        }
        None => Kind::Single(Box::new(match certificates {
            Some(certificates) => Client::build_with_tls(first.clone(), certificates)?,
            None => Client::open(first.clone())?,
        })),
    };
    Ok(Target { kind, tls, location })
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

/// Batches are small and a client waits for each.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn addresses(all: &[ConnectionInfo]) -> String {
    all.iter().map(|one| one.addr().to_string()).collect::<Vec<_>>().join(", ")
}
