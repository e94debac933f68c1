//! Several firewalls, each with an old view of everything, write in any order; in the end they agree and are quiet.

use super::server::Server;
use super::*;

const NAMES: [&str; 3] = ["fw-a", "fw-b", "fw-c"];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A firewall's watch catches up with the policy.
    See(usize),
    /// And with the Firewall objects.
    Count(usize),
    /// A firewall writes what it takes for right.
    Write(usize),
    /// A firewall judges otherwise.
    Judge(usize, PolicyState, String, i64),
    /// A Firewall object comes or goes; the first one always stays.
    Exist(usize, bool),
}

struct Firewall {
    name: &'static str,
    report: PolicyReport,
    seen: Value,
    present: Present,
}

struct World {
    server: Server,
    exist: [bool; 3],
    firewalls: Vec<Firewall>,
    now: i64,
}

impl World {
    fn new() -> Self {
        let firewalls = NAMES.map(|name| Firewall {
            name,
            report: report(PolicyState::Deployed, "", 1),
            seen: Value::Null,
            present: alone(name),
        });
        Self { server: Server::default(), exist: [true, false, false], firewalls: firewalls.into(), now: 0 }
    }

    fn see(&mut self, index: usize) {
        self.firewalls[index].seen = self.server.status();
    }

    /// `sure`: it was so for long enough.
    fn count(&mut self, index: usize, sure: bool) {
        let named = |exists| {
            let named = NAMES.iter().zip(self.exist).filter(move |(_, is)| *is == exists);
            named.map(|(name, _)| (*name).to_owned()).collect()
        };
        let gone = if sure { named(false) } else { [].into() };
        self.firewalls[index].present = Present { names: named(true), gone };
    }

    /// False when there was nothing to write.
    fn write(&mut self, index: usize) -> bool {
        self.now += 1;
        let Firewall { name, report, seen, present } = &self.firewalls[index];
        // Without a Firewall object of its own nobody has a voice.
        if !present.names.contains(*name) {
            return false;
        }
        let merged = merge(report, seen, name, present, Some(Difference::Times), time(self.now));
        // With the version of what was seen: it fails when that is old.
        if let Some(list) = &merged.prune
            && *seen == self.server.status()
        {
            self.server.replace_firewalls(list);
        }
        if let Some(body) = &merged.apply {
            self.server.apply(name, body);
        }
        merged.apply.is_some() || merged.prune.is_some()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..3_usize;
    let state = prop_oneof![
        Just(PolicyState::Deployed),
        Just(PolicyState::Invalid),
        Just(PolicyState::Pending),
        Just(PolicyState::Ignored)
    ];
    let step = prop_oneof![
        4 => who().prop_map(Step::See),
        1 => who().prop_map(Step::Count),
        4 => who().prop_map(Step::Write),
        2 => (who(), state, "[xy]{0,1}", 1..4_i64)
            .prop_map(|(who, state, text, version)| Step::Judge(who, state, text, version)),
        1 => (1..3_usize, any::<bool>()).prop_map(|(who, exists)| Step::Exist(who, exists)),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn firewalls_with_old_views_agree_in_the_end_and_write_no_more(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::See(who) => world.see(who),
                Step::Count(who) => world.count(who, false),
                Step::Write(who) => {
                    world.write(who);
                }
                Step::Judge(who, state, text, generation) => {
                    let ip = if generation > 1 { "192.0.2.1" } else { "192.0.2.2" };
                    let fqdn_state = addresses(&[(ip, NAMES[who])]);
                    world.firewalls[who].report = PolicyReport { fqdn_state, ..report(state, &text, generation) };
                }
                Step::Exist(who, exists) => world.exist[who] = exists,
            }
        }
        // Watches catch up; then everybody writes and sees what was written until nobody has anything to write.
        let mut rounds = 0;
        loop {
            let mut quiet = true;
            for who in 0..3 {
                world.count(who, true);
                world.see(who);
                quiet &= !world.write(who);
            }
            if quiet {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 8, "they fight: {}", world.server.status());
        }
        let living = world.firewalls.iter().zip(world.exist).filter(|(_, is)| *is);
        let living: Vec<&Firewall> = living.map(|(firewall, _)| firewall).collect();
        let status = world.server.status();
        let worst = living.iter().map(|firewall| firewall.report.state).max().unwrap();
        let oldest = living.iter().map(|firewall| firewall.report.generation).min().unwrap();
        prop_assert_eq!(&status["state"], worst.text());
        prop_assert_eq!(&status["observedGeneration"], oldest);
        let entries = status["firewalls"].as_array().map_or(&[][..], Vec::as_slice);
        let expected = if living.len() == 1 { 0 } else { living.len() };
        prop_assert_eq!(entries.len(), expected, "{}", status);
        let told = serde_json::to_value(&*living[0].report.fqdn_state).unwrap();
        let is_told = status["fqdn_state"] == told || living[0].report.fqdn_state.is_empty();
        prop_assert!(is_told, "the first one tells the addresses: {}", status);
        for firewall in living {
            let said = entries.iter().find(|entry| entry["name"] == firewall.name);
            prop_assert!(said.is_none_or(|said| said["state"] == firewall.report.state.text()));
        }
    }
}
