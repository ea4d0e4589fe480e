//! What goes wrong, when and for how long: a function of the seed and the length of the run, and of nothing else.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use stack::{Between, Instance, Service, Twin};

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; started again afterwards.
    Killed(Instance),
    PostgresRestarted,
    PostgresStopped,
    KafkaStopped,
    RedisStopped,
    /// The network settles what it takes and never calls back about it.
    NetworkSilent,
    Cut(Between),
    Slow(Between, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Killed(instance) => write!(f, "kill -9 {}", instance.name()),
            Fault::PostgresRestarted => f.write_str("PostgreSQL restarted"),
            Fault::PostgresStopped => f.write_str("PostgreSQL stopped"),
            Fault::KafkaStopped => f.write_str("Kafka stopped"),
            Fault::RedisStopped => f.write_str("Redis stopped"),
            Fault::NetworkSilent => f.write_str("npci-sim silent"),
            Fault::Cut(between) => write!(f, "cut {}", between.name()),
            Fault::Slow(between, by) => write!(f, "{} ms later {}", by.as_millis(), between.name()),
        }
    }
}

/// One fault of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// From the beginning of the load.
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    pub(crate) lasts: Duration,
}

/// The faults in their order. One lasts at a time, and Kafka's absence beside the others: what the API has to say
/// while PostgreSQL is away is checked to the letter, and a gateway that dies says nothing.
#[derive(Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) faults: Vec<Planned>,
    /// What durations were multiplied with to fit a short run.
    pub(crate) scale: f64,
}

/// From this length on faults last as long as they should.
const FULL: Duration = Duration::from_secs(300);
/// The load goes on for so long after the last fault at least.
const CALM: Duration = Duration::from_secs(4);
const FIRST_AT: Duration = Duration::from_secs(3);

impl Schedule {
    pub(crate) fn new(seed: u64, length: Duration) -> Schedule {
        let mut random = StdRng::seed_from_u64(seed);
        let scale = (length.as_secs_f64() / FULL.as_secs_f64()).clamp(0.2, 1.0);
        let (mut faults, mut at, mut kafka_until) = (Vec::new(), FIRST_AT, Duration::ZERO);
        loop {
            for (fault, seconds) in round(&mut random) {
                let lasts = Duration::from_secs_f64(seconds * scale);
                let gap = Duration::from_millis(random.random_range(800..2_000));
                if at + lasts + CALM > length {
                    return Schedule { faults, scale };
                }
                if fault != Fault::KafkaStopped {
                    faults.push(Planned { at, fault, lasts });
                    at += lasts + gap;
                } else if at >= kafka_until {
                    faults.push(Planned { at, fault, lasts });
                    kafka_until = at + lasts + gap;
                    at += gap;
                }
            }
        }
    }
}

/// Every kind once, in any order, with the seconds that each lasts.
fn round(random: &mut StdRng) -> Vec<(Fault, f64)> {
    let mut faults = vec![
        (Fault::PostgresRestarted, 0.0),
        (Fault::PostgresStopped, 20.0),
        (Fault::KafkaStopped, 60.0),
        (Fault::RedisStopped, 10.0),
        (Fault::NetworkSilent, 12.0),
    ];
    for service in [Service::TxnCore, Service::NpciProxy, Service::Edge] {
        let twin = if random.random() { Twin::First } else { Twin::Second };
        faults.push((Fault::Killed(Instance { service, twin }), random.random_range(3.0..8.0)));
    }
    let mut wire = || Between::ALL.choose(random).copied().unwrap_or(Between::CoreAndPostgres);
    let (cut, slow) = (wire(), wire());
    faults.push((Fault::Cut(cut), random.random_range(4.0..8.0)));
    let by = Duration::from_millis(random.random_range(10..=80));
    faults.push((Fault::Slow(slow, by), 10.0));
    faults.shuffle(random);
    faults
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_minute_has_every_kind_whatever_the_seed() {
        for seed in 0..500 {
            let schedule = Schedule::new(seed, MINUTE);
            let kind = |planned: &Planned| match planned.fault {
                Fault::Killed(instance) => format!("killed {}", instance.service.name()),
                Fault::Cut(_) => "cut".to_owned(),
                Fault::Slow(..) => "slow".to_owned(),
                fault => fault.to_string(),
            };
            let kinds: BTreeSet<String> = schedule.faults.iter().map(kind).collect();
            assert_eq!(kinds.len(), 10, "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn one_lasts_at_a_time_beside_kafkas() {
        for (seed, minutes) in [(1, 1), (2, 3), (3, 10)] {
            let length = MINUTE * minutes;
            let faults = Schedule::new(seed, length).faults;
            let (kafka, others): (Vec<Planned>, Vec<Planned>) =
                faults.iter().partition(|planned| planned.fault == Fault::KafkaStopped);
            for lane in [kafka, others] {
                assert!(lane.iter().all(|planned| planned.at + planned.lasts + CALM <= length));
                let apart = |pair: &[Planned]| pair[0].at + pair[0].lasts < pair[1].at;
                assert!(lane.windows(2).all(apart), "seed {seed}: {lane:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_schedule() {
        assert_eq!(Schedule::new(7, MINUTE), Schedule::new(7, MINUTE));
        assert_ne!(Schedule::new(7, MINUTE), Schedule::new(8, MINUTE));
        assert_eq!(Schedule::new(7, 5 * MINUTE).scale, 1.0);
    }
}
