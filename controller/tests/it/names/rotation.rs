//! A name whose addresses change with every answer.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted};
use fw_testkit::r#gen::{self, Rng};

use super::field::{Mode, Names, PORT, to_names};
use crate::daemon::soak_factor;

const POOL: u16 = 500;
const CHOSEN: usize = 8;
const TTL: u32 = 5;
/// After which an address is used no more; the grace period of the test is as long.
const GRACE: u32 = 5;
/// Names that rotate over the same addresses.
const NAMES: usize = 4;
/// A client that connects so shortly before its answer ends may be late itself.
const MARGIN: Duration = Duration::from_millis(100);

/// The latest answer for a name, as a client keeps it.
struct Kept {
    addresses: Vec<IpAddr>,
    until: Instant,
}

fn pool() -> Vec<IpAddr> {
    (0..POOL)
        .map(|number| IpAddr::from([198, 18, 50 + (number >> 8).to_be_bytes()[1], number.to_be_bytes()[1]]))
        .collect()
}

fn name(number: usize) -> String {
    format!("rotating{number}.scripted.test")
}

/// Asks anew; the answer holds from the moment the question was sent.
fn ask(names: &Names, number: usize) -> Result<Kept> {
    let asked = Instant::now();
    let answer = names.ask_script(&name(number), kind::A)?;
    let addresses = answer.addresses();
    ensure!(addresses.len() == CHOSEN, "{}: {addresses:?}, RCODE {:?}", name(number), answer.rcode());
    let ttl = addresses.iter().map(|(_, ttl)| *ttl).min().unwrap_or_default();
    ensure!(ttl <= TTL, "a TTL grew to {ttl}");
    let addresses = addresses.into_iter().map(|(address, _)| address).collect();
    Ok(Kept { addresses, until: asked + Duration::from_secs(ttl.into()) })
}

/// Sizes and counters as the status has them.
#[derive(Debug)]
struct Figures {
    addresses: u64,
    names: u64,
    lessons: u64,
    learned: u64,
    packets: u64,
}

fn figures(names: &Names) -> Result<Figures> {
    let packets = names.counted("rotating", "tcp", "*.scripted.test")?.context("no counter")?;
    let all = names.figures()?;
    let number =
        |part: &str, name: &str| all[part][name].as_u64().with_context(|| format!("no {part}.{name}: {all}"));
    Ok(Figures {
        addresses: number("learned", "addresses")?,
        names: number("learned", "names")?,
        lessons: number("counters", "lessons")?,
        learned: number("counters", "learned")?,
        packets,
    })
}

/// Connects and asks for a while; gives the number of connections and of distinct answers.
fn rotate(names: &Names, rng: &mut Rng, time: Duration) -> Result<(u64, usize)> {
    let end = Instant::now() + time;
    let mut kept: Vec<Kept> = (0..NAMES).map(|number| ask(names, number)).collect::<Result<_>>()?;
    let (mut connections, mut answers) = (0, NAMES);
    let mut before: VecDeque<Figures> = VecDeque::new();
    let mut look_at = Instant::now();
    while Instant::now() < end {
        let number = rng.below(NAMES);
        if kept[number].until.saturating_duration_since(Instant::now()) < MARGIN || rng.percent(5) {
            let fresh = ask(names, number)?;
            answers += usize::from(fresh.addresses != kept[number].addresses);
            kept[number] = fresh;
            continue;
        }
        let address = *rng.pick(&kept[number].addresses).context("an answer without addresses")?;
        ensure!(names.reaches(address, PORT)?, "{address} of {} failed after {connections}", name(number));
        connections += 1;
        if Instant::now() >= look_at {
            look_at += Duration::from_secs(1);
            let now = figures(names)?;
            // Each name: answers of the last TTL and grace period, asked for by clients and by the refresh before the
            // TTL is over.
            let bound = u64::try_from(NAMES * CHOSEN)? * u64::from((TTL + GRACE) + 2);
            ensure!(
                now.addresses <= bound.min(POOL.into()) && now.names <= NAMES as u64,
                "{now:?}, bound {bound}"
            );
            if let Some(before) = before.pop_front() {
                let rises = now.lessons >= before.lessons
                    && now.learned >= before.learned
                    && now.packets >= before.packets;
                ensure!(rises, "{before:?} {now:?}");
            }
            before.push_back(now);
        }
    }
    Ok((connections, answers))
}

fn script(names: &Names) -> Result<Scripted> {
    let script = names.script()?;
    script.otherwise(Reply::Rotating { pool: pool(), choose: CHOSEN, ttl: TTL });
    Ok(script)
}

#[test]
fn answers_that_rotate_fail_no_connection_and_what_is_kept_stays_bounded() -> Result<()> {
    let seed = r#gen::seed();
    eprintln!("FW_SEED={seed}");
    let policies = [to_names("rotating", "{matchPattern: '*.scripted.test'}")];
    let names = Names::new("rotation", Mode::Tcx, &format!("  dns: {{grace: {GRACE}}}"), &policies)?;
    // Thousands of connections a second, each of which conntrack would keep for two minutes after its end: its table
    // (nf_conntrack_max, 262,144 on such machines) would be full before the long form is over.
    names.lab.firewall.sysctl(&[("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "5")])?;
    let _script = script(&names)?;
    let time = Duration::from_secs(if soak_factor() > 1 { 120 } else { 20 });
    let mut rng = Rng::new(seed);
    let (connections, answers) = rotate(&names, &mut rng, time)?;
    let last = figures(&names)?;
    eprintln!("{connections} connections to the addresses of {answers} answers: {last:?}");
    ensure!(answers > NAMES * 3, "only {answers} answers: nothing rotated");
    assert_eq!(last.packets, connections, "each connection is counted once, whatever was learned anew");

    if soak_factor() > 1 {
        // Nobody asks any more: when the refresh has given the names up, what is over goes.
        let end = Instant::now() + Duration::from_secs(120);
        while figures(&names)?.addresses > 0 {
            ensure!(Instant::now() < end, "what is over is kept: {:?}", figures(&names)?);
            std::thread::sleep(Duration::from_secs(1));
        }
        assert!(!names.reaches(pool()[0], PORT)?, "an address is open when all is over");
    }
    Ok(())
}
