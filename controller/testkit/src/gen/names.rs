//! Policies by DNS name, and what their names lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use fw_policy::{FqdnSelector, Learned, Peers, Policy, PolicySet, Rule};

use crate::r#gen::policies::ports;
use crate::r#gen::{Rng, World};

/// Names are `nX.zY.example`, with X below this,
const HOSTS: usize = 8;
/// and Y below this.
const ZONES: usize = 4;

/// Names with their addresses, and what follows from them when every answer was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Addresses by name; one address may belong to several names, also to such that no policy allows.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The selectors of the policies that each address was learned for.
    pub learned: Learned,
}

/// Adds `policies` policies whose egress is by name, some by prefix too, and makes up addresses for the names.
///
/// The addresses are outside ones near generated blocks, so that static rules hold some of them as well.
pub fn add_names(rng: &mut Rng, world: &World, set: &mut PolicySet, policies: usize) -> Result<Answers> {
    for number in 0..policies {
        set.policies.insert(format!("names-{number}"), names_policy(rng, world)?);
    }
    answers(rng, world, set)
}

/// One policy whose egress is by name, and now and then by prefix too.
pub fn names_policy(rng: &mut Rng, world: &World) -> Result<Policy> {
    let mut egress = Vec::new();
    for index in 0..=rng.below(2) {
        let selectors: BTreeSet<FqdnSelector> = (0..=rng.below(3)).map(|_| selector(rng)).collect();
        let peers = Peers::Names(selectors.into_iter().collect());
        egress.push(Rule { index, peers, ports: ports(rng) });
    }
    if rng.percent(30) {
        let static_rules = crate::r#gen::policy(rng, world)?.egress;
        let more = static_rules.into_iter().zip(egress.len()..);
        egress.extend(more.map(|(rule, index)| Rule { index, ..rule }).collect::<Vec<_>>());
    }
    Ok(Policy { ingress: Vec::new(), egress })
}

/// The selectors of a set's policies that hold one of the made-up names. Simple on purpose: it knows only the forms
/// that are generated here.
pub fn selectors_of(set: &PolicySet, name: &str) -> BTreeSet<FqdnSelector> {
    let place = (0..HOSTS).flat_map(|host| (0..ZONES).map(move |zone| (host, zone)));
    let Some((host, zone)) = place.into_iter().find(|(host, zone)| self::name(*host, *zone) == name) else {
        return BTreeSet::new();
    };
    let selectors = set.name_entries().into_keys().map(|entry| entry.selector);
    selectors.filter(|selector| matches(selector, host, zone)).collect()
}

fn answers(rng: &mut Rng, world: &World, set: &PolicySet) -> Result<Answers> {
    let pool: Vec<IpAddr> = (0..3 * HOSTS).map(|_| world.outside_address(rng)).collect::<Result<_>>()?;
    let pool: Vec<IpAddr> = pool.into_iter().filter(|address| world.is_forwarded(*address)).collect();
    let selectors: BTreeSet<FqdnSelector> =
        set.name_entries().into_keys().map(|entry| entry.selector).collect();
    let mut answers = Answers::default();
    for (host, zone) in (0..HOSTS).flat_map(|host| (0..ZONES).map(move |zone| (host, zone))) {
        for _ in 0..=rng.below(3) {
            let address = *rng.pick(&pool).context("no outside address is forwarded")?;
            answers.names.entry(name(host, zone)).or_default().insert(address);
            let matching = selectors.iter().filter(|selector| matches(selector, host, zone));
            let matching: BTreeSet<FqdnSelector> = matching.cloned().collect();
            if !matching.is_empty() {
                answers.learned.addresses.entry(address).or_default().extend(matching);
            }
        }
    }
    Ok(answers)
}

fn name(host: usize, zone: usize) -> String {
    format!("n{host}.z{zone}.example")
}

/// One name, all of a zone, some of a zone, or one host of every zone. The last zone is in no policy by itself.
fn selector(rng: &mut Rng) -> FqdnSelector {
    let (host, zone) = (rng.below(HOSTS), rng.below(ZONES - 1));
    match rng.below(10) {
        0..5 => FqdnSelector::Name(name(host, zone)),
        5..7 => FqdnSelector::Pattern(format!("*.z{zone}.example")),
        7..9 => FqdnSelector::Regex(format!(r"n[0-{host}]\.z{zone}\.example")),
        _ => FqdnSelector::Pattern(format!("n{host}.*.example")),
    }
}

/// Whether a selector that [`selector`] can make holds a name.
fn matches(selector: &FqdnSelector, host: usize, zone: usize) -> bool {
    match selector {
        FqdnSelector::Name(text) => *text == name(host, zone),
        FqdnSelector::Pattern(text) => {
            *text == format!("*.z{zone}.example") || *text == format!("n{host}.*.example")
        }
        FqdnSelector::Regex(text) => {
            (host..HOSTS).any(|last| *text == format!(r"n[0-{last}]\.z{zone}\.example"))
        }
    }
}
