//! Envoy in npci-proxy's place: payments go to the network and come back through the two policies in `envoy/`,
//! signed and verified on the way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use e2e::{Ledger, pay, start};
use engines::{Program, ports};
use serde_json::json;
use stack::{Options, Payment, Service, Stack};

/// One of the two ways: Envoy, and the state service beside it.
struct Way {
    _state: Program,
    _envoy: Program,
}

impl Way {
    /// Runs a policy of `envoy/`, with what differs here put in its place.
    async fn open(name: &'static str, folder: &Path, replace: &[(&str, String)]) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut policy = std::fs::read_to_string(root.join(format!("envoy/{name}.yaml")))?;
        for (from, to) in replace {
            anyhow::ensure!(policy.contains(from), "{name}.yaml has no {from}");
            policy = policy.replace(from, to);
        }
        let admin = policy.split("admin: { address: ").nth(1).and_then(|rest| rest.split(' ').next());
        let admin = admin.context("no admin address")?.to_owned();
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, policy)?;
        let gateway = stack::Binaries::build().await?.folder().join("gateway");
        let module = root.join("target/wasm/torana.wasm");
        // As an operator's service manager sets them.
        let keys = [("PSP_SIGNING_KEY", "psp-signing"), ("NETWORK_SIGNING_KEY", "network-signing")].map(
            |(name, key)| {
                let key = std::fs::read_to_string(folder.join(format!("keys/{key}.key")));
                (name, key.unwrap_or_default())
            },
        );
        let made = std::process::Command::new(&gateway)
            .envs(keys.clone())
            .args(["envoy".as_ref(), file.as_os_str(), "--module".as_ref(), module.as_os_str()])
            .output()?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let bootstrap = folder.join(format!("{name}.json"));
        std::fs::write(&bootstrap, made.stdout)?;
        let log = |what: &str| folder.join(format!("logs/{name}-{what}.log"));
        let mut command = std::process::Command::new(&gateway);
        let state =
            Program::spawn("state", command.arg("state").arg(&file).envs(keys.clone()), &log("state"))?;
        let quiet = ["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"];
        let quiet = quiet.into_iter().chain(["--file-flush-interval-msec", "50"]);
        let arguments = ["-c".as_ref(), bootstrap.as_os_str()].into_iter().chain(quiet.map(AsRef::as_ref));
        let mut command = std::process::Command::new(root.join("target/envoy/envoy"));
        let mut envoy = Program::spawn("envoy", command.args(arguments).envs(keys), &log("envoy"))?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{admin}/ready");
        let ready = async || http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
        envoy.ready(Duration::from_secs(30), ready).await?;
        Ok(Self { _state: state, _envoy: envoy })
    }
}

fn folder() -> PathBuf {
    stack::default_dir().with_file_name("e2e").join("network-door")
}

/// A payment's status, and what its books say it is.
const CASES: [(&str, &str); 4] = [
    ("bob@torana", "COMPLETED"),
    // The network's own answer, not only Envoy's: it reports with a callback that has to be verified.
    ("reversal@okbank", "REVERSED"),
    // The acknowledgement's signature is spoilt: what became of the payment is unknown until the callback.
    ("badanswer@okbank", "COMPLETED"),
    // The first callback is spoilt, the next one is good.
    ("badsignature@okbank", "COMPLETED"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_go_through_envoy_signed_and_verified() -> anyhow::Result<()> {
    let (outward, inward) = (ports::v4()?, ports::v4()?);
    let options = Options::new(folder())
        .set(Service::TxnCore, "/network/url", json!(format!("https://localhost:{}", outward.port())))
        .set(Service::NpciSim, "/callback/url", json!(format!("https://localhost:{}", inward.port())));
    let stack = start(options).await?;
    let at = |service| stack.url(service).replace("https://localhost", "127.0.0.1");
    let any = || anyhow::Ok(ports::v4()?.to_string());
    let replace = [
        ("127.0.0.1:7200", outward.to_string()),
        ("127.0.0.1:7201", any()?),
        ("127.0.0.1:7202", any()?),
        ("127.0.0.1:7300", at(Service::NpciSim)),
    ];
    let _out = Way::open("network-out", stack.dir(), &replace).await?;
    let replace = [
        ("127.0.0.1:7210", inward.to_string()),
        ("127.0.0.1:7211", any()?),
        ("127.0.0.1:7212", any()?),
        ("127.0.0.1:7100", at(Service::TxnCore)),
        ("nonce: { window_s: 300, max_skew_s: 5 }", "nonce: { window_s: 300, max_skew_s: 0 }".to_owned()),
    ];
    let _in = Way::open("network-in", stack.dir(), &replace).await?;
    // What is signed in the second in which the memory of nonces began is refused.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let alice = stack.alice()?;
    for (to, expected) in CASES {
        let (id, end) = pay(&stack, alice, &Payment::new("alice@torana", to, "12.50")).await?;
        assert_eq!(end.status, expected, "{to}: {end:?}");
        let ledger = Ledger::of(&stack).await?;
        ledger.check()?;
        assert_eq!(ledger.moved()[id.as_str()].status(), expected, "{to}");
    }
    nothing_went_through_npci_proxy(&stack).await?;
    // What was spoilt was found to be: by the one on the way out, and by the one on the way in.
    for (way, status) in [("network-out", 502), ("network-in", 401)] {
        let log = stack.dir().join(format!("logs/{way}-envoy.log"));
        let told =
            || std::fs::read_to_string(&log).unwrap_or_default().contains(&format!("\"status\":{status}"));
        let until = Instant::now() + Duration::from_secs(10);
        while !told() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(told(), "{way} answered nothing with {status}: {}", log.display());
    }
    stack.stop().await;
    Ok(())
}

async fn nothing_went_through_npci_proxy(stack: &Stack) -> anyhow::Result<()> {
    let url = format!("{}/metrics", stack.admin_url(Service::NpciProxy));
    let text = stack.plain().get(url).send().await?.text().await?;
    let counted = |line: &&str| {
        line.starts_with("npci_call_duration_seconds") || line.starts_with("npci_callbacks_total")
    };
    assert_eq!(text.lines().filter(counted).count(), 0, "{text}");
    Ok(())
}
