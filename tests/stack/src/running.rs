use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use certs::{Trust, Versions, client_config};
use engines::{Program, Signal, next_second};
use filters::signature::message::SigningKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::addresses::{Addresses, Between};
use crate::binaries::{Binaries, envoy_folder, workspace};
use crate::config::{self, Setting};
use crate::fleet::{Engines, Fleet, Places, prepare};
use crate::options::Options;
use crate::payment::{EdgeRequest, Payment, now_s};
use crate::process::{Edge, GRACE, Instance, Service, Twin, ready};
use crate::wire::Wire;
use crate::{AUDIENCE, Claims, Device, ISSUER, Issuer};

const TENANT: &str = "acme";
const TOKEN_LIFETIME_S: i64 = 12 * 3600;
/// Name, VPA and device of who can pay in the development stack.
const USERS: [(&str, &str, &str); 2] =
    [("alice", "alice@torana", "device-alice-1"), ("bob", "bob@torana", "device-bob-1")];

/// The partner's key for HMAC signatures: its id, and its file in `keys`.
const PARTNER_KEY_ID: &str = "partner-acme-1";

/// `target/dev` in this checkout: where `cargo dev` keeps its files.
pub fn default_dir() -> PathBuf {
    workspace().join("target/dev")
}

/// A user of the payment app, the device and a token for both.
#[derive(Debug)]
pub struct User {
    pub name: String,
    pub vpa: String,
    pub device: Device,
    pub token: String,
    pub token_file: PathBuf,
    pub device_key_file: PathBuf,
}

/// `stack.json`: what other programs need to know about a running stack. All paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StackFile {
    pub edge_url: String,
    pub ca_file: PathBuf,
    pub token_file: PathBuf,
    pub device_key_file: PathBuf,
    pub ledger_url: String,
    pub services: Vec<RunningService>,
    /// The bootstrap of an Envoy that is the edge; its configuration lies beside it.
    pub envoy: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningService {
    pub name: String,
    pub pid: u32,
    pub url: String,
    pub admin_url: String,
}

impl StackFile {
    pub fn read(path: &Path) -> anyhow::Result<StackFile> {
        let text = fs::read(path).with_context(|| {
            format!("cannot read {}; start a stack with `cargo dev` first", path.display())
        })?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// A running stack. Dropping it kills its processes; [`Stack::stop`] lets them finish first.
#[derive(Debug)]
pub struct Stack {
    dir: PathBuf,
    binaries: Binaries,
    edge: Edge,
    /// In the order in which they start.
    instances: Vec<Instance>,
    addresses: Addresses,
    configs: BTreeMap<Instance, PathBuf>,
    urls: BTreeMap<Instance, Urls>,
    processes: Mutex<BTreeMap<Instance, Program>>,
    issuer: Issuer,
    users: Vec<User>,
    http: reqwest::Client,
    plain: reqwest::Client,
    fleet: Option<Fleet>,
    ready_after: Duration,
    /// Held while the stack lives: two in one folder would share a database.
    _lock: fs::File,
}

#[derive(Debug, Clone)]
struct Urls {
    public: String,
    admin: String,
}

impl Stack {
    /// Builds nothing; starts every service in `options.dir` and waits until all are ready.
    ///
    /// # Errors
    /// When a stack runs in that folder already, or a service does not become ready: with the
    /// end of its log.
    pub async fn start(binaries: &Binaries, options: Options) -> anyhow::Result<Stack> {
        let began = Instant::now();
        certs::install_crypto_provider();
        fs::create_dir_all(&options.dir).with_context(|| options.dir.display().to_string())?;
        let dir = options.dir.canonicalize()?;
        let lock = lock(&dir)?;
        let folder = |name: &str| -> anyhow::Result<PathBuf> {
            let path = dir.join(name);
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        let (pki, keys, users) = (folder("pki")?, folder("keys")?, folder("users")?);
        let (configs, _) = (folder("config")?, folder("logs")?);
        let data = match options.keep_payments && options.engines == Engines::Embedded {
            true => dir.join("data"),
            false => folder("data")?,
        };
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        certs::pki::init(&pki, false)?;
        for name in ["psp-signing", "network-signing", PARTNER_KEY_ID] {
            certs::file::write_secret(&keys.join(format!("{name}.key")), &random_hex()?)?;
        }

        let twins = options.instances.contains(&Twin::Second);
        anyhow::ensure!(
            !twins || (options.edge, options.engines) == (Edge::Gateway, Engines::Fleet),
            "twins have the gateway for an edge and share the engines of a fleet"
        );
        let instances = Instance::of(options.edge, &options.instances);
        let mut addresses = Addresses::new()?;
        if twins {
            addresses.wire_services().await?;
        }
        let issuer = Issuer::start(&pki, addresses.of("issuer_port", Twin::First)?.port()).await?;
        let urls = urls(&addresses)?;
        let mut settings = Vec::new();
        let fleet = match options.engines {
            Engines::Embedded | Engines::Containers => None,
            Engines::Fleet => Some(Fleet::start(&data).await?),
        };
        let places = match (&fleet, options.engines) {
            (Some(fleet), _) => Some(fleet.places().await),
            (None, Engines::Containers) => Some(Places::CONTAINERS),
            (None, Engines::Embedded | Engines::Fleet) => None,
        };
        let on_engines = places.is_some();
        if let Some(mut places) = places {
            if twins {
                places.postgres = addresses.wire_engine(Between::CoreAndPostgres, places.postgres).await?;
                places.redis = addresses.wire_engine(Between::EdgeAndRedis, places.redis).await?;
                let cores = options.instances.iter().map(|&twin| addresses.of("core_port", twin));
                let cores = json!(cores.collect::<anyhow::Result<Vec<_>>>()?);
                let pointer = "/upstreams/txn-core/addresses".to_owned();
                settings.push(Setting { service: Service::Edge, pointer, value: cores });
            }
            settings.extend(places.settings(&keys)?);
        }
        settings.extend(options.settings);
        let values = |instance| {
            let mut values = addresses.values(instance);
            values.extend([("issuer", ISSUER.to_owned()), ("audience", AUDIENCE.to_owned())]);
            values
        };
        let configs = config::write(&configs, &instances, values, &settings)?;
        if let (true, Some(core)) = (on_engines, configs.get(&Service::TxnCore.into())) {
            prepare(binaries, core).await?;
        }

        let edge_ca = Trust::load(&pki.join("edge-ca.pem"))?;
        let limits = certs::client::ClientLimits { timeout: Duration::from_secs(30), ..Default::default() };
        let mut stack = Stack {
            binaries: binaries.clone(),
            edge: options.edge,
            instances,
            addresses,
            configs,
            urls,
            processes: Mutex::default(),
            issuer,
            users: Vec::new(),
            http: certs::client::https(client_config(&edge_ca, None, Versions::Tls12And13)?, limits)?,
            plain: plain_client(&edge_ca)?,
            fleet,
            ready_after: Duration::ZERO,
            _lock: lock,
            dir,
        };
        for (name, vpa, device) in USERS {
            let user = stack.new_user(&users, name, vpa, device)?;
            stack.users.push(user);
        }
        for instance in &stack.instances {
            stack.spawn(*instance)?;
        }
        for instance in &stack.instances {
            stack.ready(*instance).await?;
        }
        stack.ready_after = began.elapsed();
        stack.write_file()?;
        next_second().await;
        Ok(stack)
    }

    /// How long it took to start until everything was ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    pub fn edge_url(&self) -> &str {
        self.url(Service::Edge)
    }

    /// The simulated network's ledger.
    pub fn ledger_url(&self) -> String {
        format!("{}/ledger", self.admin_url(Service::NpciSim))
    }

    pub fn url(&self, instance: impl Into<Instance>) -> &str {
        self.urls.get(&instance.into()).map_or("", |urls| &urls.public)
    }

    pub fn admin_url(&self, instance: impl Into<Instance>) -> &str {
        self.urls.get(&instance.into()).map_or("", |urls| &urls.admin)
    }

    /// What the stack consists of, in the order in which it starts.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// A way between parts of a stack with twins.
    pub fn wire(&self, between: Between) -> Option<&Wire> {
        self.addresses.wire(between)
    }

    /// The folder of the stack's files: `pki`, `keys`, `config`, `logs`, `data`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A client for the edge, which trusts its CA and no other.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// A client for the admin addresses.
    pub fn plain(&self) -> &reqwest::Client {
        &self.plain
    }

    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Who pays unless somebody else is named.
    pub fn alice(&self) -> anyhow::Result<&User> {
        self.users.first().context("the stack has no users")
    }

    /// Claims of a valid token for this user on this device, from now on.
    pub fn claims(&self, subject: &str, vpas: &[&str], device: &Device) -> anyhow::Result<Claims> {
        let now = now_s();
        Ok(Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: subject.to_owned(),
            iat: now,
            exp: now + TOKEN_LIFETIME_S,
            jti: uuid::Uuid::new_v4().to_string(),
            tenant: TENANT.to_owned(),
            device: Some(device.id().to_owned()),
            vpas: vpas.iter().map(|&vpa| vpa.to_owned()).collect(),
            scope: "payments:send payments:read".to_owned(),
            cnf: Some(json!({"jwk": device.public_jwk()?})),
            more: Map::new(),
        })
    }

    /// The id of the partner's HMAC key and the key; it signs requests whose token names no device.
    pub fn partner_key(&self) -> anyhow::Result<(&'static str, SigningKey)> {
        let secret = fs::read(self.dir.join(format!("keys/{PARTNER_KEY_ID}.key")))?;
        Ok((PARTNER_KEY_ID, SigningKey::hmac(&secret)?))
    }

    /// A signed payment by this user, ready to send.
    pub fn payment(&self, user: &User, payment: &Payment) -> anyhow::Result<EdgeRequest> {
        EdgeRequest::payment(self.edge_url(), &user.token, &user.device, payment)?.signed(&user.device)
    }

    /// Writes fresh tokens into the users' files, which programs outside read.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn renew_tokens(&self) -> anyhow::Result<()> {
        for user in &self.users {
            let claims = self.claims(&user.name, &[&user.vpa], &user.device)?;
            certs::file::write_secret(&user.token_file, &self.issuer.mint(&claims)?)?;
        }
        Ok(())
    }

    /// SIGKILL, now.
    pub fn kill(&self, instance: impl Into<Instance>) {
        drop(self.processes().remove(&instance.into()));
    }

    /// Starts a service that was killed, or replaces a running one, on the same ports with the same
    /// configuration, and waits until it is ready.
    pub async fn restart(&self, instance: impl Into<Instance>) -> anyhow::Result<()> {
        let instance = instance.into();
        let running = self.processes().remove(&instance);
        if let Some(process) = running {
            process.end(Signal::SIGTERM, GRACE).await?;
        }
        self.resume(instance)?;
        self.ready(instance).await?;
        match instance.service {
            Service::Edge | Service::State => next_second().await,
            Service::TxnCore | Service::NpciProxy | Service::NpciSim => {}
        }
        Ok(())
    }

    /// Starts an instance that was killed and waits for nothing: what it needs may be away.
    pub fn resume(&self, instance: Instance) -> anyhow::Result<()> {
        self.spawn(instance)?;
        self.write_file()
    }

    /// Waits until an instance and what it needs are there.
    ///
    /// # Errors
    /// When that takes too long, or a process has ended: with its last words.
    pub async fn ready(&self, instance: impl Into<Instance>) -> anyhow::Result<()> {
        let instance = instance.into();
        let path = match (instance.service, self.edge) {
            (Service::Edge, Edge::Envoy) => "ready",
            _ => "readiness",
        };
        let url = format!("{}/{path}", self.admin_url(instance));
        let mut waited = ready(instance, &self.plain, &url, || self.check()).await;
        if let (Ok(()), Service::Edge, Edge::Envoy) = (&waited, instance.service, self.edge) {
            waited = self.envoy_has_keys().await;
        }
        waited.map_err(|error| {
            let last_words = self.processes().get(&instance).map(Program::last_words);
            // A process that has ended is an error with its last words in it.
            if self.check().is_ok() {
                anyhow!("{error:#}; {}", last_words.unwrap_or_default())
            } else {
                error
            }
        })
    }

    /// The process id of every running service.
    pub fn pids(&self) -> Vec<(Service, u32)> {
        self.processes().iter().map(|(instance, process)| (instance.service, process.id())).collect()
    }

    /// # Errors
    /// When a service has ended on its own: with the end of its log.
    pub fn check(&self) -> anyhow::Result<()> {
        self.processes().values_mut().try_for_each(Program::check)
    }

    /// The services that ended on their own since this was asked last, and how.
    ///
    /// # Errors
    /// When a process cannot be waited for.
    pub fn ended(&self) -> anyhow::Result<Vec<(Instance, ExitStatus)>> {
        let mut processes = self.processes();
        let mut ended = Vec::new();
        for (instance, process) in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                ended.push((*instance, status));
            }
        }
        ended.iter().for_each(|(instance, _)| drop(processes.remove(instance)));
        drop(processes);
        if !ended.is_empty() {
            self.write_file()?;
        }
        Ok(ended)
    }

    /// The services that `cargo dev restart` asked to start again since this was asked last.
    pub fn wanted(&self) -> Vec<Instance> {
        let named =
            |instance: &&Instance| fs::remove_file(restart_request(&self.dir, instance.name())).is_ok();
        self.instances.iter().filter(named).copied().collect()
    }

    /// Lets every service finish what is in flight, the edge first; kills those that take too long.
    pub async fn stop(self) {
        for instance in self.instances.iter().rev() {
            let process = self.processes().remove(instance);
            if let Some(process) = process {
                // Killed, if it cannot be waited for.
                let _ = process.end(Signal::SIGTERM, GRACE).await;
            }
        }
        if let Some(fleet) = self.fleet {
            fleet.stop().await;
        }
    }

    /// The engines of a fleet, if the stack runs on them.
    pub fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_ref()
    }

    fn spawn(&self, instance: Instance) -> anyhow::Result<()> {
        let config = self.configs.get(&instance).context("every instance has a configuration")?;
        let log = self.dir.join("logs").join(format!("{}.log", instance.name()));
        let command = self.binaries.command(instance.service, self.edge, config)?;
        let process = Program::start(instance.name(), &command.program, &command.arguments, None, &log)?;
        self.processes().insert(instance, process);
        Ok(())
    }

    /// Envoy says that it is ready before its workers have heard of the issuers' keys: asks until every worker
    /// must have been asked.
    async fn envoy_has_keys(&self) -> anyhow::Result<()> {
        const IN_A_ROW: usize = 12;
        const WITHIN: Duration = Duration::from_secs(20);
        let trust = Trust::load(&self.dir.join("pki/edge-ca.pem"))?;
        let claims = self.claims("ready", &[], &Device::generate("ready")?)?;
        let token = self.issuer.mint(&claims)?;
        let began = Instant::now();
        let mut known = 0;
        while known < IN_A_ROW {
            self.check()?;
            anyhow::ensure!(
                began.elapsed() < WITHIN,
                "Envoy's workers have no keys after {} s",
                WITHIN.as_secs()
            );
            // A new connection each time, so that it may be another worker's.
            let tls = client_config(&trust, None, Versions::Tls12And13)?;
            let http = certs::client::https(tls, certs::client::ClientLimits::default())?;
            let asked = http.get(format!("{}/v1/transactions/ready", self.edge_url())).bearer_auth(&token);
            known = match asked.send().await {
                Ok(answer) if answer.status() != reqwest::StatusCode::SERVICE_UNAVAILABLE => known + 1,
                Ok(_) | Err(_) => 0,
            };
            if known == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// The bootstrap of the Envoy that is the edge, if one is.
    pub fn envoy_bootstrap(&self) -> Option<PathBuf> {
        let policy = self.configs.get(&Service::Edge.into()).filter(|_| self.edge == Edge::Envoy)?;
        Some(envoy_folder(policy).join("envoy.json"))
    }

    /// Who is the edge.
    pub fn edge(&self) -> Edge {
        self.edge
    }

    fn new_user(&self, folder: &Path, name: &str, vpa: &str, device: &str) -> anyhow::Result<User> {
        let device = Device::generate(device)?;
        let token = self.issuer.mint(&self.claims(name, &[vpa], &device)?)?;
        let (token_file, device_key_file) =
            (folder.join(format!("{name}.jwt")), folder.join(format!("{name}.device.pem")));
        certs::file::write_secret(&token_file, &token)?;
        certs::file::write_secret(&device_key_file, &device.pem())?;
        Ok(User { name: name.to_owned(), vpa: vpa.to_owned(), device, token, token_file, device_key_file })
    }

    fn write_file(&self) -> anyhow::Result<()> {
        let alice = self.alice()?;
        let mut services: Vec<RunningService> = self
            .processes()
            .iter()
            .map(|(&instance, process)| RunningService {
                name: instance.name().to_owned(),
                pid: process.id(),
                url: self.url(instance).to_owned(),
                admin_url: self.admin_url(instance).to_owned(),
            })
            .collect();
        services.push(RunningService {
            name: "issuer".to_owned(),
            pid: std::process::id(),
            url: String::from(ISSUER),
            admin_url: self.issuer.admin_url().to_owned(),
        });
        let file = StackFile {
            edge_url: self.edge_url().to_owned(),
            ca_file: self.dir.join("pki/edge-ca.pem"),
            token_file: alice.token_file.clone(),
            device_key_file: alice.device_key_file.clone(),
            ledger_url: self.ledger_url(),
            services,
            envoy: self.envoy_bootstrap(),
        };
        // Through another name: a reader never sees half of it.
        let (path, partial) = (self.dir.join("stack.json"), self.dir.join("stack.json.new"));
        fs::write(&partial, serde_json::to_string_pretty(&file)?)?;
        fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<Instance, Program>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file by which `cargo dev restart` asks a running stack to start a service again.
fn restart_request(dir: &Path, service: &str) -> PathBuf {
    dir.join(format!("restart-{service}"))
}

impl StackFile {
    /// Asks the running stack in `dir` to start a service again.
    ///
    /// # Errors
    /// When the request cannot be written.
    pub fn request_restart(dir: &Path, service: &str) -> anyhow::Result<()> {
        let path = restart_request(dir, service);
        fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where every instance serves, and where its operators look.
fn urls(addresses: &Addresses) -> anyhow::Result<BTreeMap<Instance, Urls>> {
    let mut urls = BTreeMap::new();
    for (service, scheme, public, admin) in [
        (Service::Edge, "https", "edge_port", "edge_admin_port"),
        (Service::State, "http", "state_port", "state_port"),
        (Service::TxnCore, "https", "core_port", "core_admin_port"),
        (Service::NpciProxy, "https", "proxy_port", "proxy_admin_port"),
        (Service::NpciSim, "https", "sim_port", "sim_admin_port"),
    ] {
        for twin in [Twin::First, Twin::Second] {
            let public = format!("{scheme}://localhost:{}", addresses.of(public, twin)?.port());
            let admin = format!("http://127.0.0.1:{}", addresses.of(admin, twin)?.port());
            urls.insert(Instance { service, twin }, Urls { public, admin });
        }
    }
    Ok(urls)
}

fn lock(dir: &Path) -> anyhow::Result<fs::File> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("a stack runs in {} already; stop it, or choose another folder with --dir", dir.display())
        }
        Err(fs::TryLockError::Error(error)) => Err(error).context("cannot lock the stack's folder"),
    }
}

fn plain_client(trust: &Trust) -> anyhow::Result<reqwest::Client> {
    // The TLS configuration is not used; without one the client would look for the system's.
    let tls = client_config(trust, None, Versions::Tls13Only)?;
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()?)
}

fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok().context("no randomness for a signing key")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
