//! Firewalls against a store that behaves as the API server: versions, conflicts, others' edits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::plan::{RENEWED, addresses_of, kept, slice_name};
use super::*;

const BEAT: Time = 300;
const SILENT: Time = 1800;

/// What the API server keeps, and its answer 409.
#[derive(Default)]
struct Store {
    objects: BTreeMap<(Kind, String), Value>,
    version: u64,
}

#[derive(Debug, PartialEq)]
struct Conflict;

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

impl Store {
    fn of(&self, kind: Kind) -> BTreeMap<String, Value> {
        let of = self.objects.iter().filter(|((it, _), _)| *it == kind);
        of.map(|((_, name), object)| (name.clone(), object.clone())).collect()
    }

    fn observed(&self) -> Observed {
        Observed {
            services: self.of(Kind::Service),
            endpoints: self.of(Kind::Endpoints),
            slices: self.of(Kind::Slice),
        }
    }

    fn put(&mut self, kind: Kind, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert((kind, name_of(&object)), object);
    }

    fn write(&mut self, write: &Write) -> Result<(), Conflict> {
        let (kind, object) = write.object();
        let key = (kind, name_of(object));
        let there = self.objects.get(&key);
        match write {
            Write::Create(..) if there.is_some() => return Err(Conflict),
            Write::Create(..) => {
                let mut object = object.clone();
                object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
                self.put(kind, object);
            }
            Write::Replace(..) | Write::Delete(..) => {
                let Some(there) = there else { return Err(Conflict) };
                let same = |part: &str| there["metadata"][part] == object["metadata"][part];
                if !same("resourceVersion") || !same("uid") {
                    return Err(Conflict);
                }
                assert_eq!(there["addressType"], object["addressType"], "it can never change");
                if matches!(write, Write::Delete(..)) {
                    self.objects.remove(&key);
                } else {
                    self.put(kind, object.clone());
                }
            }
        }
        Ok(())
    }

    fn endpoints(&self, exporter: &Exporter) -> BTreeSet<IpAddr> {
        self.objects.get(&(Kind::Endpoints, exporter.name.to_owned())).map(addresses_of).unwrap_or_default()
    }

    fn slices(&self, exporter: &Exporter) -> BTreeSet<IpAddr> {
        let all = self.objects.iter().filter(|((kind, _), _)| *kind == Kind::Slice);
        let ours = all.filter_map(|(_, object)| kept(object)).filter(|kept| kept.exporter == exporter.name);
        ours.flat_map(|kept| kept.addresses).collect()
    }
}

/// One firewall in the middle of whatever it does.
struct Node {
    own: Own,
    signs: Signs,
    /// Its clock is ahead of the others' by this.
    ahead: Time,
    alive: bool,
    /// When the heartbeat it is in began, and how often that ended with all well.
    beat: u64,
    next: Time,
    /// What it read of Services and Endpoints, then all of it, then what it has yet to write.
    reading: Option<Observed>,
    writes: Vec<Write>,
    failed: bool,
    /// Its address is in every object since its first whole heartbeat.
    present: bool,
}

fn own_of(index: usize) -> Own {
    let address = if index == 2 { "2001:db8::2".to_owned() } else { format!("10.0.0.{}", index + 1) };
    Own { firewall: format!("fw{index}.example"), address: address.parse().unwrap() }
}

impl Node {
    fn new(index: usize, now: Time) -> Self {
        Self {
            own: own_of(index),
            signs: Signs::default(),
            ahead: 7_000 * Time::try_from(index).unwrap(),
            alive: true,
            beat: 0,
            next: now,
            reading: None,
            writes: Vec::new(),
            failed: false,
            present: false,
        }
    }

    fn stamp(&self) -> String {
        // Started again it is another one too.
        format!("{}-{}-{}", self.own.firewall, self.ahead, self.beat)
    }

    /// An address of another firewall goes only after its slice went.
    fn check_order(&self, observed: &Observed) {
        for (kind, object) in
            self.writes.iter().map(Write::object).filter(|(kind, _)| *kind == Kind::Endpoints)
        {
            let left = addresses_of(object);
            for (name, slice) in &observed.slices {
                let Some(kept) = kept(slice) else { continue };
                let is_other = kept.exporter == name_of(object)
                    && *name != slice_name(kept.exporter, &self.own.firewall);
                let is_left = kept.addresses.iter().all(|address| left.contains(address));
                assert!(!is_other || is_left, "{kind:?} loses {:?} of {name}", kept.addresses);
            }
        }
    }

    /// One request. True when it is through with its heartbeat.
    fn step(&mut self, store: &mut Store, now: Time) -> bool {
        if let Some(write) = (!self.writes.is_empty()).then(|| self.writes.remove(0)) {
            self.failed |= store.write(&write).is_err();
            return false;
        }
        match self.reading.take() {
            None => {
                // Slices are read later: this part is what they may be newer than.
                self.reading = Some(Observed { slices: BTreeMap::new(), ..store.observed() });
                false
            }
            Some(mut observed) => {
                observed.slices = store.of(Kind::Slice);
                self.signs.observe(&observed, now + self.ahead, BEAT);
                self.writes = plan(&self.own, &self.stamp(), &self.signs, SILENT, &observed);
                self.check_order(&observed);
                if self.writes.is_empty() {
                    self.beat += 1;
                    self.next = now + BEAT;
                    return true;
                }
                false
            }
        }
    }
}

struct World {
    store: Store,
    nodes: Vec<Node>,
    now: Time,
}

impl World {
    fn new(count: usize) -> Self {
        let nodes = (0..count).map(|index| Node::new(index, 0)).collect();
        Self { store: Store::default(), nodes, now: 0 }
    }

    fn step(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.alive || node.next > self.now {
            return;
        }
        let is_through = node.step(&mut self.store, self.now);
        node.present |= is_through;
        self.check();
    }

    /// Nobody removed a living one's address.
    fn check(&self) {
        for exporter in &EXPORTERS {
            let (endpoints, slices) = (self.store.endpoints(exporter), self.store.slices(exporter));
            for node in self.nodes.iter().filter(|node| node.alive && node.present) {
                assert!(
                    endpoints.contains(&node.own.address),
                    "{} is not in {endpoints:?}",
                    node.own.firewall
                );
                assert!(slices.contains(&node.own.address), "{} is not in {slices:?}", node.own.firewall);
            }
        }
    }

    /// All that are due, request by request by turns, until everybody is through.
    fn beat(&mut self) {
        let is_due = |node: &Node, now| node.alive && node.next <= now;
        for _ in 0..200 {
            if !self.nodes.iter().any(|node| is_due(node, self.now)) {
                return;
            }
            for index in 0..self.nodes.len() {
                self.step(index);
            }
        }
        let late: Vec<&str> = self
            .nodes
            .iter()
            .filter(|node| is_due(node, self.now))
            .map(|node| node.own.firewall.as_str())
            .collect();
        assert!(late.is_empty(), "{late:?} never come to an end");
    }

    fn pass(&mut self, time: Time) {
        self.now += time;
    }

    fn agree(&self) {
        let alive: BTreeSet<IpAddr> =
            self.nodes.iter().filter(|node| node.alive).map(|node| node.own.address).collect();
        for exporter in &EXPORTERS {
            assert_eq!(self.store.endpoints(exporter), alive, "{}", exporter.name);
            assert_eq!(self.store.slices(exporter), alive, "{}", exporter.name);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Step(usize),
    Pass(Time),
    /// The API server is away: time passes, nobody is asked.
    Away(Time),
    Kill(usize),
    Start(usize),
    /// A user writes at, or deletes, one of the objects.
    Edit(usize),
    Delete(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        24 => (0..3_usize).prop_map(Act::Step),
        4 => (1..200_u64).prop_map(Act::Pass),
        1 => (1..20_000_u64).prop_map(Act::Away),
        1 => (0..3_usize).prop_map(Act::Kill),
        1 => (0..3_usize).prop_map(Act::Start),
        1 => (0..16_usize).prop_map(Act::Edit),
    ];
    proptest::collection::vec(act, 0..400)
}

fn edit(store: &mut Store, index: usize) {
    let keys: Vec<_> = store.objects.keys().cloned().collect();
    let Some(key) = keys.get(index % keys.len().max(1)) else { return };
    let mut object = store.objects[key].clone();
    object["metadata"]["labels"]["team"] = json!("network");
    object["metadata"]["annotations"]["example.com/note"] = json!("kept");
    store.put(key.0, object);
}

fn run(world: &mut World, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Step(index) => world.step(index % world.nodes.len()),
            Act::Pass(time) => {
                // Those that live show it in time, whatever else happens.
                if world.nodes.iter().any(|node| node.alive && node.next + BEAT < world.now + time) {
                    world.beat();
                }
                world.pass(*time);
            }
            Act::Away(time) => {
                // Everybody comes back in between; one that never does is dead.
                world.beat();
                world.pass(*time);
            }
            Act::Kill(index) => {
                let index = index % world.nodes.len();
                world.nodes[index].alive = false;
            }
            Act::Start(index) => {
                let index = index % world.nodes.len();
                if !world.nodes[index].alive {
                    let beat = world.nodes[index].beat + 1_000;
                    world.nodes[index] = Node { beat, ..Node::new(index, world.now) };
                }
            }
            Act::Edit(index) => edit(&mut world.store, *index),
            Act::Delete(index) => {
                let keys: Vec<_> = world.store.objects.keys().cloned().collect();
                if let Some(key) = keys.get(index % keys.len().max(1)) {
                    world.store.objects.remove(key);
                    for node in &mut world.nodes {
                        // What was read before it says nothing about after it.
                        (node.present, node.reading) = (false, None);
                    }
                }
            }
        }
    }
}

/// Enough heartbeats for whoever is gone to be taken out.
fn settle(world: &mut World) {
    for _ in 0..=(SILENT / BEAT + 2) {
        world.beat();
        world.pass(BEAT);
    }
    world.beat();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn firewalls_in_any_interleaving_agree_and_nobody_removes_a_living_one(count in 1..=3_usize, acts in acts()) {
        let mut world = World::new(count);
        run(&mut world, &acts);
        settle(&mut world);
        if world.nodes.iter().any(|node| node.alive) {
            world.agree();
        }
        let edited = world.store.objects.values().filter(|it| it["metadata"]["labels"]["team"] == "network");
        for object in edited {
            prop_assert_eq!(&object["metadata"]["annotations"]["example.com/note"], "kept");
        }
    }

    #[test]
    fn what_users_delete_comes_back(count in 1..=3_usize, before in acts(), which in 0..16_usize, after in acts()) {
        let mut world = World::new(count);
        run(&mut world, &before);
        run(&mut world, &[Act::Delete(which)]);
        let after: Vec<Act> = after.into_iter().filter(|act| !matches!(act, Act::Kill(_))).collect();
        run(&mut world, &after);
        settle(&mut world);
        if world.nodes.iter().any(|node| node.alive) {
            world.agree();
        }
    }

    #[test]
    fn names_of_slices_are_names_and_differ_as_the_firewalls_do(one in "\\PC{0,300}", other in "[a-zA-Z._-]{0,12}") {
        for firewall in [&one, &other] {
            let name = slice_name("nftables-exporter", firewall);
            prop_assert!(name.len() <= 253, "{} bytes", name.len());
            for label in name.split('.') {
                prop_assert!(label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'), "{name}");
                prop_assert!(!label.is_empty() && !label.starts_with('-') && !label.ends_with('-'), "{name}");
            }
        }
        prop_assert_eq!(slice_name("node-exporter", &one) == slice_name("node-exporter", &other), one == other);
    }
}

#[test]
fn one_that_comes_back_while_it_is_taken_out_is_not_lost() {
    let mut world = World::new(2);
    world.beat();
    run(&mut world, &[Act::Kill(1)]);
    for _ in 0..SILENT / BEAT - 1 {
        world.pass(BEAT);
        world.beat();
    }
    world.pass(BEAT);
    // The first one takes the slices, and has read that they are gone when the other writes new ones.
    while world.nodes[0].writes.is_empty() {
        world.step(0);
    }
    while !world.nodes[0].writes.is_empty() {
        world.step(0);
    }
    world.step(0);
    run(&mut world, &[Act::Start(1)]);
    world.step(1);
    world.step(0);
    assert!(world.nodes[0].writes.iter().any(|write| write.object().0 == Kind::Endpoints), "it is about to");
    while !world.nodes[1].present {
        world.step(1);
    }
    world.beat();
    world.agree();
}

/// One firewall that has written everything, for a look at the objects.
fn alone() -> World {
    let mut world = World::new(1);
    world.beat();
    world
}

#[test]
fn the_objects_are_those_that_clusters_in_the_field_know() {
    let world = alone();
    let observed = world.store.observed();
    let service = &observed.services["nftables-exporter"];
    assert_eq!(service["metadata"]["labels"], json!({ "app": "nftables-exporter" }));
    let port = json!([{ "name": "nftexporter", "port": 9630, "targetPort": 9630, "protocol": "TCP" }]);
    assert_eq!(service["spec"], json!({ "clusterIP": "None", "ports": port }));
    let endpoints = &observed.endpoints["node-exporter"];
    let skip = "endpointslice.kubernetes.io/skip-mirror";
    assert_eq!(endpoints["metadata"]["labels"], json!({ "app": "node-exporter", skip: "true" }));
    let port = json!([{ "name": "nodeexporter", "port": 9100, "protocol": "TCP" }]);
    assert_eq!(endpoints["subsets"], json!([{ "addresses": [{ "ip": "10.0.0.1" }], "ports": port }]));
    let slice = &observed.slices["node-exporter-fw0.example"];
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "node-exporter");
    assert_eq!((&slice["addressType"], &slice["ports"]), (&json!("IPv4"), &port));
}

#[test]
fn a_firewall_that_is_gone_is_taken_out_and_not_before_its_time() {
    let mut world = World::new(2);
    world.beat();
    world.nodes[1].alive = false;
    let mut silent = 0;
    while world.store.endpoints(&EXPORTERS[0]).len() == 2 {
        world.pass(BEAT);
        silent += BEAT;
        world.beat();
        assert!(silent <= SILENT + 2 * BEAT, "it is still there after {silent}");
    }
    assert!(silent >= SILENT, "taken out after {silent}");
    world.agree();
}

#[test]
fn hours_without_an_api_server_make_nobody_older() {
    let mut world = World::new(3);
    world.beat();
    world.pass(100 * SILENT);
    // The first one looks long before the others come back.
    for _ in 0..50 {
        world.step(0);
    }
    world.check();
    world.beat();
    world.agree();
}

#[test]
fn an_address_that_no_slice_has_stays_for_a_while_and_goes() {
    let mut world = alone();
    let key = (Kind::Endpoints, "node-exporter".to_owned());
    let mut endpoints = world.store.objects[&key].clone();
    let entry = json!({ "ip": "10.0.0.99", "nodeName": "somewhere" });
    endpoints["subsets"][0]["addresses"].as_array_mut().unwrap().push(entry.clone());
    endpoints["subsets"].as_array_mut().unwrap().push(json!({
        "addresses": [{ "ip": "10.0.0.5" }], "ports": [{ "name": "other", "port": 1, "protocol": "TCP" }],
    }));
    world.store.put(Kind::Endpoints, endpoints);
    world.pass(BEAT);
    world.beat();
    let at = |world: &World| world.store.objects[&key]["subsets"].clone();
    assert!(at(&world).to_string().contains("10.0.0.99"), "{}", at(&world));
    settle(&mut world);
    assert!(!at(&world).to_string().contains("10.0.0.99"), "{}", at(&world));
    assert!(at(&world).to_string().contains("\"other\""), "subsets of other ports stay: {}", at(&world));
}

#[test]
fn a_new_address_replaces_the_old_one_at_once_also_in_the_other_family() {
    for address in ["10.0.0.77", "2001:db8::77"] {
        let mut world = World::new(2);
        world.beat();
        world.nodes[0].own.address = address.parse().unwrap();
        world.nodes[0].present = false;
        world.nodes[0].next = world.now;
        world.beat();
        world.agree();
    }
}

#[test]
fn a_service_keeps_what_users_add_and_loses_what_would_take_it_over() {
    let mut world = alone();
    let key = (Kind::Service, "node-exporter".to_owned());
    let mut service = world.store.objects[&key].clone();
    service["spec"]["selector"] = json!({ "app": "mine" });
    service["spec"]["ports"][0]["port"] = json!(9101);
    service["spec"]["ports"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "more", "port": 7, "protocol": "TCP" }));
    world.store.put(Kind::Service, service);
    world.pass(BEAT);
    world.beat();
    let spec = &world.store.objects[&key]["spec"];
    assert_eq!(spec.get("selector"), None);
    let ports: Vec<_> =
        spec["ports"].as_array().unwrap().iter().map(|port| (&port["name"], &port["port"])).collect();
    assert_eq!(ports, [(&json!("more"), &json!(7)), (&json!("nodeexporter"), &json!(9100))]);
}

#[test]
fn a_slice_without_its_labels_is_healed() {
    let mut world = alone();
    let key = (Kind::Slice, "node-exporter-fw0.example".to_owned());
    let mut slice = world.store.objects[&key].clone();
    slice["metadata"].as_object_mut().unwrap().remove("labels");
    world.store.put(Kind::Slice, slice);
    world.nodes[0].present = false;
    world.pass(BEAT);
    world.beat();
    world.agree();
}

#[test]
fn every_heartbeat_writes_one_stamp_for_each_exporter_and_nothing_else() {
    let mut world = World::new(2);
    world.beat();
    world.pass(BEAT);
    world.beat();
    let version = world.store.version;
    let before = world.store.observed();
    world.pass(BEAT);
    world.beat();
    assert_eq!(world.store.version - version, 4, "two firewalls, two exporters");
    let after = world.store.observed();
    assert_eq!((before.services, before.endpoints), (after.services, after.endpoints));
    for (name, slice) in &after.slices {
        assert_ne!(
            slice["metadata"]["annotations"][RENEWED],
            before.slices[name]["metadata"]["annotations"][RENEWED]
        );
    }
}

#[test]
fn what_the_api_server_would_refuse_is_never_written() {
    for bad in ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "224.0.0.1", "::ffff:10.0.0.1"] {
        assert!(!usable(bad.parse().unwrap()), "{bad}");
        let firewall = json!({ "spec": { "firewallNetworks": [
            { "networktype": "privateprimaryunshared", "ips": [bad] }] } });
        assert_eq!(address(&firewall), None, "{bad}");
    }
    let firewall = json!({ "spec": { "firewallNetworks": [
        { "networktype": "external", "ips": ["192.0.2.1"] },
        { "networktype": "privateprimaryshared", "ips": ["10.0.16.1", "10.0.16.2"] }] } });
    assert_eq!(address(&firewall), Some("10.0.16.1".parse().unwrap()));
    for odd in
        [json!(null), json!({ "spec": [] }), json!({ "spec": { "firewallNetworks": [7, { "ips": 3 }] } })]
    {
        assert_eq!(address(&odd), None, "{odd}");
    }
}
