//! The clock, as signatures tell it: in whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Waits until requests can be signed for an edge that has just begun: what is signed in the second in which its memory
/// of nonces began is refused.
pub async fn next_second() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    tokio::time::sleep(Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into())).await;
}
