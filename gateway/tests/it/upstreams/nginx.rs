//! nginx, as an upstream that we did not write.

#![allow(dead_code, reason = "each test uses its part")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::running::free_port;

/// A server that is killed when the test ends. It answers with `{":name": "nginx", …}` and what it was sent.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    pub plain: u16,
    /// TLS with the certificate of `txn-core`; it asks for no certificate.
    pub tls: u16,
    /// HTTP/2 without TLS.
    pub h2c: u16,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// `more` is in every server of its configuration.
    pub async fn start(folder: &Path, more: &str) -> Self {
        let (plain, tls, h2c) = (free_port(), free_port(), free_port());
        let at = |name: &str| folder.join(name).display().to_string();
        let locations = format!(
            r#"
            location / {{
                default_type application/json;
                return 200 '{{":name":"nginx","host":"$http_host","protocol":"$server_protocol"}}';
            }}
            {more}"#
        );
        let config = format!(
            r#"
            daemon off;
            master_process off;
            pid {pid};
            error_log {log};
            events {{ worker_connections 64; }}
            http {{
                access_log off;
                client_body_temp_path {folder};
                proxy_temp_path {folder};
                fastcgi_temp_path {folder};
                uwsgi_temp_path {folder};
                scgi_temp_path {folder};
                server {{ listen 127.0.0.1:{plain}; {locations} }}
                server {{ listen 127.0.0.1:{h2c} http2; {locations} }}
                server {{
                    listen 127.0.0.1:{tls} ssl http2;
                    ssl_certificate {certificate};
                    ssl_certificate_key {key};
                    {locations}
                }}
            }}"#,
            pid = at("nginx.pid"),
            log = at("nginx.log"),
            folder = at("nginx.tmp"),
            certificate = at("txn-core.pem"),
            key = at("txn-core.key"),
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx")
            .arg("-p")
            .arg(folder)
            .arg("-e")
            .arg(folder.join("nginx.log"))
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .spawn()
            .expect("nginx is installed (Debian: nginx-light)");
        let nginx = Self { child, plain, tls, h2c };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", plain)).await.is_ok() {
                return nginx;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!(
            "nginx does not listen: {}",
            std::fs::read_to_string(folder.join("nginx.log")).unwrap_or_default()
        );
    }
}
