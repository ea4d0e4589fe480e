//! One watcher a process: follows the files of certificates, keys, CAs and lists, and puts what is good into use.
//!
//! It looks, several times a second, instead of being told. Notifications of the kernel follow an inode, and what
//! rotates certificates replaces inodes: a rename over the file, the swap of the link `..data` in a Kubernetes volume,
//! a new mount. They do not exist for changes made on another machine of a network file system, and a queue that
//! overflows loses them. A look costs one `stat` a file; files are read when that shows a change, and every few seconds
//! regardless.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::file::Content;
use crate::report::{self, Key, Reloads, Report};
use crate::server::{Guests, Serving};
use crate::set::{Bytes, Subject, Watched};
use crate::{
    CertError, Certificates, Clients, Identity, IdentityFiles, Live, Must, Set, Trust, TrustFiles, Versioned,
};

/// Between two looks. What is served changes within two of them.
const LOOK: Duration = Duration::from_millis(250);
/// Every so many looks, all open connections are checked: certificates expire, and lists go stale, without any file
/// changing.
const LOOKS_TO_A_RECHECK: u32 = 120;

/// Everything that a process follows, and what it can tell of it.
pub struct Watch {
    service: String,
    sets: Mutex<Vec<Arc<dyn Watched>>>,
    derived: Mutex<Vec<Box<dyn FnMut() + Send>>>,
    rechecks: Mutex<Vec<(Live<Serving>, Weak<Guests>)>>,
    listeners: Mutex<Vec<Listener>>,
    clients: Mutex<Vec<Client>>,
    keys: Mutex<Vec<Box<Keys>>>,
    included: Mutex<Vec<Arc<Watch>>>,
}

type Keys = dyn Fn() -> Vec<Key> + Send + Sync;

/// A listener, for the report.
#[derive(Debug)]
struct Listener {
    name: String,
    address: SocketAddr,
    certificates: Certificates,
    clients: Clients,
}

/// A way to another process, for the report.
#[derive(Debug, Clone)]
pub struct Client {
    pub name: String,
    /// What the other side's certificate must name.
    pub server_name: Option<String>,
    pub identity: Option<Set<Identity>>,
    pub trust: Set<Trust>,
}

/// Waits for a signal; for ever where it cannot be received.
async fn received(signal: &mut Option<Signal>) {
    let received = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending::<()>().await;
    }
}

impl Watch {
    /// Of the service that is called so in its [`Report`].
    pub fn new(service: &str) -> Arc<Watch> {
        Arc::new(Watch {
            service: service.to_owned(),
            sets: Mutex::default(),
            derived: Mutex::default(),
            rechecks: Mutex::default(),
            listeners: Mutex::default(),
            clients: Mutex::default(),
            keys: Mutex::default(),
            included: Mutex::default(),
        })
    }

    /// Loads a chain and its key, and follows them.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn identity(
        &self,
        name: String,
        files: IdentityFiles,
        must: Must,
    ) -> Result<Set<Identity>, CertError> {
        let files = vec![(files.certificate, Content::Public), (files.key, Content::Key)];
        self.files(name, files, move |files, before, now| Identity::accept(&must, files, before, now))
    }

    /// Loads CAs and their revocation lists, and follows them.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn trust(&self, name: String, files: TrustFiles) -> Result<Set<Trust>, CertError> {
        let TrustFiles { ca, crl, stale } = files;
        let lists = crl.map(|path| (path, Content::List));
        let files = std::iter::once((ca, Content::Public)).chain(lists).collect();
        self.files(name, files, move |files, before, now| Trust::accept(stale, files, before, now))
    }

    /// Loads any other files that belong together, and follows them. `accept` gets them in their order, and what is in
    /// use; whatever it refuses ([`CertError::Content`] says anything) changes nothing.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn files<T: Subject>(
        &self,
        name: String,
        files: Vec<(std::path::PathBuf, Content)>,
        accept: impl Fn(&[Bytes], Option<&T>, OffsetDateTime) -> Result<T, CertError> + Send + Sync + 'static,
    ) -> Result<Set<T>, CertError> {
        let set = Set::load(name, files, accept)?;
        lock(&self.sets).push(Arc::new(set.clone()));
        Ok(set)
    }

    /// Makes something of what is followed, and makes it anew whenever any of that changes.
    ///
    /// # Errors
    /// The first time. Later ones are logged, and what was made before stays.
    pub fn derive<T, E>(
        &self,
        from: &[&dyn Versioned],
        make: impl Fn() -> Result<T, E> + Send + 'static,
    ) -> Result<Live<T>, E>
    where
        T: Send + Sync + 'static,
        E: fmt::Display,
    {
        let mut from: Vec<_> = from.iter().map(|one| one.generations()).collect();
        let live = Live::from(make()?);
        let made = live.clone();
        let remake = move || {
            let is_due = from.iter_mut().fold(false, |due, one| {
                let changed = one.has_changed().unwrap_or(false);
                one.mark_unchanged();
                due || changed
            });
            match is_due.then(&make) {
                None => {}
                Some(Ok(value)) => live.set(value),
                Some(Err(error)) => tracing::error!(%error, "what new files are for cannot be made of them"),
            }
        };
        lock(&self.derived).push(Box::new(remake));
        Ok(made)
    }

    /// Follows everything until the future is dropped. SIGHUP has it look at once, and no longer ends the process.
    pub async fn run(self: Arc<Self>) {
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP is not received, and ends this process"))
            .ok();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count: u32 = 0;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = received(&mut hangup) => tracing::info!("SIGHUP: followed files are read again"),
            }
            count = count.wrapping_add(1);
            let watch = Arc::clone(&self);
            // A file system that hangs must not hold up those who serve.
            let look = tokio::task::spawn_blocking(move || {
                watch.look(OffsetDateTime::now_utc());
                if count.is_multiple_of(LOOKS_TO_A_RECHECK) {
                    watch.expel();
                }
            });
            if let Err(error) = look.await {
                tracing::error!(%error, "a look at the certificates ended badly");
            }
        }
    }

    /// One look at everything, for who does not [`run`](Self::run) it.
    pub fn look(&self, now: OffsetDateTime) {
        let sets = lock(&self.sets).clone();
        sets.iter().for_each(|set| set.look(now));
        let serving = |watch: &Watch| -> Vec<u64> {
            lock(&watch.rechecks).iter().map(|(serving, _)| serving.generation()).collect()
        };
        let before = serving(self);
        lock(&self.derived).iter_mut().for_each(|remake| remake());
        if serving(self) != before {
            self.expel();
        }
    }

    /// Has the guests of a listener looked at when what it serves with changes, and now and then.
    pub(crate) fn recheck(&self, serving: Live<Serving>, guests: &Arc<Guests>) {
        lock(&self.rechecks).push((serving, Arc::downgrade(guests)));
    }

    fn expel(&self) {
        for (serving, guests) in lock(&self.rechecks).iter() {
            if let Some(guests) = guests.upgrade() {
                guests.recheck(&serving.current());
            }
        }
    }

    /// A listener that [`report`](Self::report) tells of.
    pub fn serves(&self, name: &str, address: SocketAddr, certificates: Certificates, clients: Clients) {
        lock(&self.listeners).push(Listener { name: name.to_owned(), address, certificates, clients });
    }

    /// A way to another process that [`report`](Self::report) tells of.
    pub fn connects(&self, client: Client) {
        lock(&self.clients).push(client);
    }

    /// Keys that [`report`](Self::report) tells of: asked for each time.
    pub fn holds(&self, keys: impl Fn() -> Vec<Key> + Send + Sync + 'static) {
        lock(&self.keys).push(Box::new(keys));
    }

    /// Another watch that somebody runs, of which [`report`](Self::report) and the metrics of this one tell too.
    pub fn include(&self, other: Arc<Watch>) {
        lock(&self.included).push(other);
    }

    /// What is served, presented and trusted at this moment.
    pub fn report(&self) -> Report {
        let mut report = Report {
            service: self.service.clone(),
            listeners: lock(&self.listeners).iter().flat_map(Listener::report).collect(),
            clients: lock(&self.clients).iter().map(Client::report).collect(),
            keys: lock(&self.keys).iter().flat_map(|keys| keys()).collect(),
        };
        for other in lock(&self.included).iter() {
            let Report { service: _, listeners, clients, keys } = other.report();
            report.listeners.extend(listeners);
            report.clients.extend(clients);
            report.keys.extend(keys);
        }
        report
    }

    pub(crate) fn sets(&self) -> Vec<Arc<dyn Watched>> {
        let mut sets = lock(&self.sets).clone();
        sets.extend(lock(&self.included).iter().flat_map(|other| other.sets()));
        sets
    }
}

impl Listener {
    fn report(&self) -> Vec<report::Listener> {
        let others = self.certificates.others.iter().map(|named| (named.names(), &named.identity));
        let all = std::iter::once((Vec::new(), &self.certificates.default)).chain(others);
        let trust = self.clients.trust();
        all.map(|(server_names, identity)| report::Listener {
            name: self.name.clone(),
            address: self.address,
            server_names,
            certificate: path(identity, 0).unwrap_or_default(),
            client_ca: trust.and_then(|trust| path(trust, 0)),
            crl: trust.and_then(|trust| path(trust, 1)),
            crl_next_update: trust.and_then(|trust| trust.current().crl_next_update()),
            requires_client: matches!(self.clients, Clients::Required(_)),
            serving: identity.current().facts().into(),
            reloads: both(Some(identity.reloads()), trust.map(Set::reloads)),
        })
        .collect()
    }
}

impl Client {
    fn report(&self) -> report::Client {
        report::Client {
            name: self.name.clone(),
            server_name: self.server_name.clone(),
            certificate: self.identity.as_ref().and_then(|identity| path(identity, 0)),
            ca: path(&self.trust, 0),
            crl: path(&self.trust, 1),
            crl_next_update: self.trust.current().crl_next_update(),
            serving: self.identity.as_ref().map(|identity| identity.current().facts().into()),
            trusted: self.trust.current().facts().iter().map(Into::into).collect(),
            reloads: both(self.identity.as_ref().map(Set::reloads), Some(self.trust.reloads())),
        }
    }
}

fn path<T: Subject>(set: &Set<T>, position: usize) -> Option<std::path::PathBuf> {
    set.files().nth(position).map(Path::to_path_buf)
}

/// Of an identity and of whom it meets.
fn both(one: Option<Reloads>, other: Option<Reloads>) -> Reloads {
    let all = || one.iter().chain(&other);
    Reloads {
        last_reload: all().map(|reloads| reloads.last_reload).max().unwrap_or(OffsetDateTime::UNIX_EPOCH),
        last_failure: all().find_map(|reloads| reloads.last_failure.clone()),
        reload_failures: all().map(|reloads| reloads.reload_failures).sum(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("service", &self.service).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
