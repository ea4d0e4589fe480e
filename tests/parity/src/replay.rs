//! One case, replayed by every data plane, and compared.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::case::{Named, Step};
use crate::mint::{Sent, Times};
use crate::outcome::Outcome;
use crate::plane::{Kind, Plane, Programs, reference};
use crate::world::World;

/// What came of cases.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that the cases hold.
    pub requests: usize,
    /// Verdicts that were compared, all data planes together.
    pub compared: usize,
    /// Of these, those that a data plane forces to differ.
    pub forced: usize,
    /// Requests from addresses that this machine does not let us have.
    pub left_out: usize,
    pub differences: usize,
    pub lines: Vec<String>,
}

impl Tally {
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.lines.append(&mut other.lines);
        Self {
            requests: self.requests + other.requests,
            compared: self.compared + other.compared,
            forced: self.forced + other.forced,
            left_out: self.left_out + other.left_out,
            differences: self.differences + other.differences,
            lines: self.lines,
        }
    }

    fn differs(&mut self, line: String) {
        self.differences += 1;
        self.lines.push(format!("DIFFERS {line}"));
    }

    /// The last line.
    pub fn summary(&self, cases: usize, took: Duration) -> String {
        let mut text = format!(
            "parity: {} requests in {cases} cases, {} verdicts compared, {} forced differences, {} differences, {:.0} s",
            self.requests,
            self.compared,
            self.forced,
            self.differences,
            took.as_secs_f64(),
        );
        if self.left_out > 0 {
            text.push_str(&format!(
                "; {} verdicts left out: this system lets us have no address but loopback",
                self.left_out
            ));
        }
        text
    }
}

/// Replays a case in process and over the wire.
pub async fn replay(
    world: &World,
    programs: &Programs,
    kinds: &[Kind],
    named: &Named,
    out_of_reach: &BTreeSet<IpAddr>,
    number: usize,
    verbose: bool,
) -> Tally {
    let mut tally = Tally { requests: named.case.requests.len(), ..Tally::default() };
    let title = format!("{}: {}", named.family, named.case.name);
    let expected = match in_process(world, named) {
        Ok(expected) => expected,
        Err(why) => {
            tally.differs(format!("{title}: {why:#}"));
            return tally;
        }
    };
    for ((step, (_, outcome)), request) in named.case.requests.iter().zip(&expected).zip(1..) {
        tally.compared += 1;
        if let Some(outcome) = outcome
            && let Some(why) = unexpected(step, outcome)
        {
            tally.differs(format!("{title}: request {request}: in process: {why}"));
        }
    }
    for kind in kinds {
        let folder = world.case_folder(&format!("{number}-{}", kind.name()));
        let plane = match folder {
            Ok(folder) => Plane::start(world, programs, *kind, named, &folder).await,
            Err(why) => Err(why),
        };
        let mut plane = match plane {
            Ok(plane) => plane,
            Err(why) => {
                tally.differs(format!("{title}: {}: {why:#}", kind.name()));
                continue;
            }
        };
        let mut diverged = false;
        for ((step, (sent, reference)), request) in named.case.requests.iter().zip(&expected).zip(1..) {
            if out_of_reach.contains(&step.peer.to_canonical()) {
                tally.left_out += 1;
                diverged = true;
                continue;
            }
            tally.compared += 1;
            let title = format!("{title}: request {request}: {}", kind.name());
            if step.stays {
                if let Err(why) = stay(world, &mut plane, step, sent).await {
                    tally.differs(format!("{title}: {why:#}"));
                }
                continue;
            }
            let outcome = match decide(world, &plane, step, sent).await {
                Ok(outcome) => outcome,
                Err(why) => {
                    tally.differs(format!("{title}: {why:#}\n{}", plane.last_words()));
                    continue;
                }
            };
            if outcome.entries.is_none() {
                tally.differs(format!("{title}: the state does not say how much it remembers"));
            }
            if verbose {
                tally.lines.push(format!("{title}: {}", outcome.verdict));
            }
            if let Some(difference) = step.differs.get(kind.name()) {
                tally.forced += 1;
                diverged = true;
                if outcome.verdict != difference.verdict {
                    tally.differs(format!("{title}: {:?}, not {:?}", outcome.verdict, difference.verdict));
                }
                continue;
            }
            let Some(reference) = reference else {
                if outcome.verdict != step.verdict {
                    tally.differs(format!("{title}: {:?}, not {:?}", outcome.verdict, step.verdict));
                }
                continue;
            };
            let mut reference = reference.clone();
            if diverged || named.case.counted_here {
                reference.entries = outcome.entries;
            }
            if reference.verdict == "pass" && reference.served_by.is_none() {
                reference.served_by = outcome.served_by.clone();
            }
            for difference in outcome.differences(&reference) {
                tally.differs(format!("{title}: {difference}"));
            }
        }
    }
    tally
}

/// What the crate itself decides on each request; nothing on what is none.
fn in_process(world: &World, named: &Named) -> anyhow::Result<Vec<(Sent, Option<Outcome>)>> {
    let mut plane = reference(world, named)?;
    let mut all = Vec::new();
    for step in &named.case.requests {
        let now_ms = world.epoch_ms + step.at_ms;
        let sent = Sent::new(step, &world.keys, Times::new(world.epoch_ms, step.at_ms)?)?;
        let mut outcome = None;
        if let Some(wanted) = &step.revoke {
            plane.revoke(wanted, now_ms)?;
        }
        if step.raw.is_none() {
            for _ in 0..step.times {
                outcome =
                    Some(if step.stays { plane.begin(&sent, now_ms).0 } else { plane.decide(&sent, now_ms) });
            }
        }
        all.push((sent, outcome));
    }
    Ok(all)
}

async fn decide(world: &World, plane: &Plane<'_>, step: &Step, sent: &Sent) -> anyhow::Result<Outcome> {
    plane.at(world.epoch_ms + step.at_ms)?;
    if let Some(wanted) = &step.revoke {
        plane.revoke(wanted).await?;
    }
    for _ in 1..step.times {
        plane.decide(sent, step.raw.as_deref()).await?;
    }
    plane.decide(sent, step.raw.as_deref()).await
}

/// Sends requests that reach the upstream and are not answered while the case lasts.
async fn stay(world: &World, plane: &mut Plane<'_>, step: &Step, sent: &Sent) -> anyhow::Result<()> {
    plane.at(world.epoch_ms + step.at_ms)?;
    for _ in 0..step.times {
        plane.stay(sent).await?;
    }
    Ok(())
}

/// What of an outcome is not as the case says.
pub fn unexpected(step: &Step, outcome: &Outcome) -> Option<String> {
    if outcome.verdict != step.verdict {
        return Some(format!("{:?}, not {:?}", outcome.verdict, step.verdict));
    }
    let upstream = outcome.upstream.clone().unwrap_or_default();
    for (what, told, fields) in [
        ("field to the upstream", &step.upstream, &upstream),
        ("field of the answer", &step.answer, &outcome.answer),
    ] {
        for (name, value) in told {
            let found = fields.get(name).map(Vec::as_slice).unwrap_or_default();
            let wanted: &[&str] = if value.is_empty() { &[] } else { &[value] };
            if found != wanted {
                return Some(format!("{what} `{name}`: {found:?}, not {wanted:?}"));
            }
        }
    }
    None
}
