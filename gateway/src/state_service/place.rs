//! Where the state service listens.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use axum::Router;
use certs::pki::Purpose;
use certs::serve::Limits;
use certs::{TlsFiles, Versions, Watch};
use filters::policy::{StateService, StateTls};
use tokio::net::TcpListener;

use super::plain;
use crate::load;

/// An open place.
pub(super) enum Place {
    Tls(TcpListener, certs::ServerTls),
    Tcp(TcpListener),
    Socket(plain::Socket),
}

impl Place {
    pub(super) async fn open(settings: &StateService, folder: &Path, watch: &Watch) -> anyhow::Result<Self> {
        match (settings.address, &settings.socket, &settings.tls) {
            (Some(address), _, tls) => {
                let listener = TcpListener::bind(address).await.with_context(|| format!("{address}"))?;
                tracing::info!(%address, mutual_tls = tls.is_some(), "ready");
                Ok(match tls {
                    Some(files) => Self::Tls(listener, server_tls(files, address, folder, watch)?),
                    None => Self::Tcp(listener),
                })
            }
            (None, Some(path), _) => {
                let path = folder.join(path);
                let socket = plain::Socket::open(&path).await.with_context(|| path.display().to_string())?;
                tracing::info!(socket = %path.display(), "ready");
                Ok(Self::Socket(socket))
            }
            (None, None, _) => anyhow::bail!("the state service has neither `address` nor `socket`"),
        }
    }

    /// Serves until `shutdown`, then finishes what is in flight.
    pub(super) async fn serve(
        self,
        app: Router,
        shutdown: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let limits = Limits::default();
        match self {
            Self::Tls(listener, tls) => certs::serve::serve(listener, tls, app, limits, shutdown).await?,
            Self::Tcp(listener) => plain::serve(listener, app, limits, shutdown).await,
            Self::Socket(socket) => plain::serve(socket, app, limits, shutdown).await,
        }
        Ok(())
    }
}

fn server_tls(
    files: &StateTls,
    address: SocketAddr,
    folder: &Path,
    watch: &Watch,
) -> anyhow::Result<certs::ServerTls> {
    let file = |reference| load::file(folder, reference).map_err(anyhow::Error::msg);
    let files = TlsFiles {
        certificate: file(&files.certificate)?,
        key: file(&files.key)?,
        ca: file(&files.client_ca)?,
        crl: files.crl.as_ref().map(file).transpose()?,
        stale_crl: load::stale_crl(files.stale_crl),
    };
    let live = files.watch(watch, "state", Purpose::Server)?;
    live.serves(watch, "state", address);
    Ok(live.server(watch, Versions::Tls13Only, &[b"http/1.1"])?)
}
