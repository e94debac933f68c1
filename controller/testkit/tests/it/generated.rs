//! Generated policies, packets and manifests.

use std::collections::BTreeSet;

use fw_intake::{HostFacts, Objects, intake, parse};
use fw_policy::{Packet, PolicySet};
use fw_testkit::r#gen::{self, Edit, Mix, Rng, World};
use fw_testkit::nft;
use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::traffic::range::{Range, Shot};

fn big_spec() -> LabSpec {
    LabSpec::standard("generated")
        .and_then(LabSpec::with_second_inside)
        .and_then(LabSpec::with_second_outside)
        .unwrap()
}

fn generate(seed: u64, world: &World) -> (PolicySet, Vec<Packet>) {
    let mut rng = Rng::new(seed);
    let set = r#gen::policy_set(&mut rng, world, 40, 10).unwrap();
    let packets = r#gen::packets(&mut rng, world, &set, 2_000).unwrap();
    (set, packets)
}

#[test]
fn a_seed_always_gives_the_same_and_another_seed_something_else() {
    let world = World::of(&big_spec()).unwrap();
    assert_eq!(generate(7, &world), generate(7, &world));
    assert_ne!(generate(7, &world), generate(8, &world));
}

#[test]
fn the_mix_is_worth_comparing_for_many_seeds() {
    let world = World::of(&big_spec()).unwrap();
    let seed = r#gen::seed();
    let mut all = Mix::default();
    for seed in seed..seed + 20 {
        let (set, packets) = generate(seed, &world);
        let mix = Mix::of(&set, &packets);
        println!("{seed} {mix}");
        mix.check().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        all.add(&mix);
    }
    let reasons: Vec<&str> = all.reasons.keys().copied().collect();
    let drops = ["drop: invalid", "drop: policy", "drop: spoofed", "drop: unsupported protocol"];
    assert_eq!(reasons, [&drops[..], &["egress", "icmp", "ingress", "service"]].concat(), "seed {seed}");
}

#[test]
fn names_are_in_the_mix_where_they_are_asked_for_and_in_no_other() {
    let world = World::of(&big_spec()).unwrap();
    let seed = r#gen::seed();
    let mut all = Mix::default();
    for seed in seed..seed + 20 {
        let (plain, _) = generate(seed, &world);
        assert!(!plain.has_names(), "seed {seed}");
        let mut rng = Rng::new(seed);
        let mut set = r#gen::policy_set(&mut rng, &world, 40, 10).unwrap();
        let answers = r#gen::add_names(&mut rng, &world, &mut set, 20).unwrap();
        let packets = r#gen::packets_with(&mut rng, &world, &set, &answers.learned, 2_000).unwrap();
        let mix = Mix::with(&set, &answers.learned, &packets);
        println!("{seed} {mix}");
        mix.check_names().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let shared = answers.learned.addresses.values().filter(|selectors| selectors.len() > 1).count();
        assert!(shared * 5 >= answers.learned.addresses.len(), "seed {seed}: few addresses of several names");
        let inside = &set.firewall.inside.interfaces;
        let dns =
            packets.iter().filter(|packet| packet.transport.service().is_some_and(|(_, port)| port == 53));
        assert_eq!(dns.filter(|packet| inside.contains(&packet.input)).count(), 0, "seed {seed}");
        all.add(&mix);
    }
    println!("{all}");
}

#[test]
fn a_poor_mix_is_refused() {
    let world = World::of(&big_spec()).unwrap();
    let (set, packets) = generate(1, &world);
    let open_nothing = PolicySet { policies: [].into(), services: [].into(), ..set.clone() };
    assert!(Mix::of(&open_nothing, &packets).check().is_err());
    let v4: Vec<Packet> = packets.into_iter().filter(|packet| packet.source.is_ipv4()).collect();
    assert!(Mix::of(&set, &v4).check().is_err());
}

#[test]
fn manifests_mean_exactly_the_policy_set_they_were_written_from() {
    let world = World::of(&big_spec()).unwrap();
    let seed = r#gen::seed();
    for seed in seed..seed + 10 {
        let (mut set, _) = generate(seed, &world);
        if seed % 2 == 0 {
            r#gen::add_names(&mut Rng::new(seed), &world, &mut set, 20).unwrap();
        }
        let files = r#gen::manifests(&set).unwrap();
        let manifests: Vec<_> =
            files.iter().flat_map(|(name, text)| parse(name, text.as_bytes()).unwrap()).collect();
        let read = intake(&Objects::new(&manifests), &HostFacts::default());
        for (name, policy) in &set.policies {
            assert_eq!(read.set.policies.get(name), Some(policy), "seed {seed}: {name}");
        }
        for (name, service) in &set.services {
            assert_eq!(read.set.services.get(name), Some(service), "seed {seed}: {name}");
        }
        assert_eq!(read.set.firewall, set.firewall, "seed {seed}");
        assert_eq!(read.set, set, "seed {seed}");
        let names: BTreeSet<&String> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), files.len());
        assert!(names.iter().all(|name| name.len() <= 255));
    }
}

#[test]
fn edits_take_turns_and_leave_alone_what_they_must() {
    let world = World::of(&big_spec()).unwrap();
    let mut rng = Rng::new(3);
    let mut set = r#gen::policy_set(&mut rng, &world, 20, 0).unwrap();
    let keep: BTreeSet<String> = ["policy-5".to_owned(), "1abc".to_owned()].into();
    let kept = keep.iter().map(|name| set.policies[name].clone()).collect::<Vec<_>>();
    let mut kinds = [0; 4];
    for number in 0..400 {
        let before = set.policies.clone();
        let kind = match r#gen::edit(&mut rng, &world, &mut set, &keep, number).unwrap() {
            Edit::Add(name) => {
                assert!(!before.contains_key(&name) && set.policies.contains_key(&name));
                0
            }
            Edit::Change(name) => {
                assert_ne!(before[&name], set.policies[&name]);
                1
            }
            Edit::Rename { from, to } => {
                assert_eq!(before[&from], set.policies[&to]);
                assert!(!set.policies.contains_key(&from));
                2
            }
            Edit::Remove(name) => {
                assert!(before.contains_key(&name) && !set.policies.contains_key(&name));
                3
            }
        };
        kinds[kind] += 1;
    }
    assert_eq!(kinds, [100; 4]);
    assert_eq!(keep.iter().map(|name| set.policies[name].clone()).collect::<Vec<_>>(), kept);
}

/// Interfaces, routes, forwardable addresses and conntrack states are as the generator believes: without rules,
/// every packet comes out where it says, and with rules on states and interfaces, these are as it says.
#[test]
fn the_kernel_forwards_generated_packets_as_the_generator_says() {
    let spec = big_spec();
    let world = World::of(&spec).unwrap();
    let seed = r#gen::seed();
    let (_, packets) = generate(seed, &world);
    let lab = Lab::new(&spec).unwrap();
    let mut range = Range::new(&lab).unwrap();
    range.silence_machines().unwrap();
    let shots: Vec<Shot> =
        packets.iter().enumerate().map(|(number, packet)| world.shot(packet, number).unwrap()).collect();
    for (packet, arrivals) in packets.iter().zip(range.fire(&shots).unwrap()) {
        let [arrival] = &arrivals[..] else { panic!("seed {seed}: {packet} arrived {arrivals:?}") };
        assert_eq!(Some(arrival.at), world.target(packet), "seed {seed}: {packet}");
        assert_eq!(arrival.seen.transport, packet.transport, "seed {seed}: {packet}");
    }
    let rules: String = packets
        .iter()
        .map(|packet| (&packet.input, &packet.output, format!("{:?}", packet.state).to_lowercase()))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|(input, output, state)| {
            format!("iifname {input} oifname {output} ct state {state} counter comment \"{input} {output} {state}\"\n")
        })
        .collect();
    nft::load(
        &lab.firewall,
        &format!("table inet t {{\nchain forward {{\ntype filter hook forward priority 0; policy drop;\n{rules}}}\n}}\n"),
    )
    .unwrap();
    assert!(range.fire(&shots).unwrap().iter().all(Vec::is_empty));
    let counters = nft::counters(&lab.firewall).unwrap();
    for (comment, count) in &counters.by_comment {
        let expected = packets
            .iter()
            .filter(|packet| {
                let state = format!("{:?}", packet.state).to_lowercase();
                *comment == format!("{} {} {state}", packet.input, packet.output)
            })
            .count();
        assert_eq!(count.packets, expected as u64, "seed {seed}: {comment}");
    }
}
