//! Addresses that no answer may open, whatever the policies say.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Scripted};
use fw_testkit::topology::LabSpec;
use fw_testkit::traffic::any::AnyServer;
use serde_json::json;

use super::field::{Names, PORT, to_names};
use super::steps::{at_port, in_every_mode, query, scripted_address, spare, spare6};
use crate::rig::policy;

/// Long enough that nothing is asked again by itself: refusals are counted exactly.
const TTL: u32 = 3600;

fn parse(texts: &[&str]) -> Result<Vec<IpAddr>> {
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

/// A name gets addresses, and is asked for both families.
fn ask_for(names: &Names, server: &Scripted, name: &str, addresses: &[IpAddr]) -> Result<()> {
    server.name(name, Reply::Addresses { addresses: addresses.to_vec(), ttl: TTL })?;
    for kind in [kind::A, kind::AAAA] {
        let answer = names.answer(scripted_address()?, &query(name, kind)?.with_size(1232))?;
        ensure!(!answer.is_truncated(), "{name} does not fit");
    }
    Ok(())
}

const NEVER: [&str; 20] = [
    "127.0.0.1",
    "127.8.8.8",
    "::1", // loopback
    "169.254.169.254",
    "fe80::1", // link-local
    "224.0.0.251",
    "239.1.2.3",
    "ff02::fb", // multicast
    "0.0.0.0",
    "::", // unspecified
    "240.0.0.1",
    "255.255.255.255", // reserved
    "::ffff:198.18.1.7",
    "::198.18.1.7", // IPv4 in disguise
    "10.0.16.1",
    "203.0.113.1",
    "2001:db8:10:16::1", // the box's own
    "10.0.16.77",
    "10.0.17.2",
    "2001:db8:10:17::2", // the cluster's
];

#[test]
fn rebinding_answers_open_neither_the_box_nor_the_cluster_nor_special_addresses() -> Result<()> {
    in_every_mode(|mode| {
        let two = |spec: LabSpec| spec.with_second_inside();
        let odd = to_names("odd", "{matchName: evil.odd.test}, {matchPattern: '*.odd.test'}");
        let names = Names::in_lab("names-rebinding", mode, two, "", std::slice::from_ref(&odd))?;
        let server = names.scripted()?;
        let good = [spare(1), spare6(1)];
        ask_for(&names, &server, "evil.odd.test", &[&parse(&NEVER)?[..], &good].concat())?;
        names.expect_open(&at_port(&good))?;
        ensure!(names.learned_addresses("evil.odd.test")? == good);
        let refused = names.figures()?["counters"]["refused"].clone();
        let expected = json!({
            "Loopback": 3, "LinkLocal": 2, "Multicast": 3, "Unspecified": 2, "Reserved": 2, "Mapped": 2, "Own": 3,
            "Cluster": 3,
        });
        ensure!(refused == expected, "refused: {refused}");
        // From one machine of the cluster to another through the box: only a policy's prefix opens that.
        let _inner = AnyServer::new(&names.lab.inside[1].ns, PORT)?;
        let other = [names.lab.inside[1].v4(), names.lab.inside[1].v6()];
        names.expect_closed(&at_port(&other))?;
        let cidrs = format!("[{{cidr: {}/32}}, {{cidr: '{}/128'}}]", other[0], other[1]);
        let inner = policy("inner", &format!("{{egress: [{{to: {cidrs}, ports: [{{port: {PORT}}}]}}]}}"));
        names.rewrite("", &[odd, inner], "np inner tcp", true)?;
        at_port(&other).into_iter().try_for_each(|to| names.wait_open(to))
    })
}

#[test]
fn private_addresses_are_opened_by_exact_names_or_inside_private_prefixes_only() -> Result<()> {
    in_every_mode(|mode| {
        let private = |spec: LabSpec| -> Result<LabSpec> {
            Ok(spec.with_any_internet(&["172.16.0.0/12".parse()?, "fd00::/8".parse()?]))
        };
        let policies = [
            to_names("exact", "{matchName: db.odd.test}"),
            to_names("wild", "{matchPattern: '*.odd.test'}"),
            to_names("wilder", "{matchRegex: '.*\\.(odd|even)\\.test'}"),
        ];
        let firewall = "  dns: {privatePrefixes: [172.20.0.0/16, 'fd20::/16']}\n";
        let names = Names::in_lab("names-private", mode, private, firewall, &policies)?;
        let server = names.scripted()?;
        let outside = parse(&["172.16.5.5", "172.31.5.5", "fd00::5"])?;
        let inside = parse(&["172.20.5.5", "fd20::5"])?;
        ask_for(&names, &server, "any.odd.test", &[&outside[..], &inside].concat())?;
        ask_for(&names, &server, "any.even.test", &outside)?;
        names.expect_open(&at_port(&inside))?;
        names.expect_closed(&at_port(&outside))?;
        let refused = names.figures()?["counters"]["refused"].clone();
        ensure!(refused == json!({"Private": 6}), "refused: {refused}");
        // The exact name opens them, for its own policy: the pattern that matches it as well counts nothing.
        let named = parse(&["172.16.6.6", "fd00::6"])?;
        ask_for(&names, &server, "db.odd.test", &named)?;
        names.expect_open(&at_port(&named))?;
        ensure!(names.counted("exact", "tcp", "db.odd.test")? == Some(2));
        ensure!(names.counted("wild", "tcp", "*.odd.test")? == Some(2), "those inside privatePrefixes");
        let refused = names.figures()?["counters"]["refused"]["Private"].clone();
        ensure!(refused == 6, "refused: {refused}");
        names.rewrite(firewall, &policies[1..], "np exact tcp", false)?;
        names.expect_closed(&at_port(&named)).context("the pattern opens them after all")
    })
}

#[test]
fn learned_addresses_outside_the_allowed_networks_are_not_opened() -> Result<()> {
    in_every_mode(|mode| {
        let policies = [to_names("odd", "{matchName: www.odd.test}, {matchPattern: 'new.*'}")];
        let names = Names::new("names-allowed", mode, "", &policies)?;
        let server = names.scripted()?;
        let (within, beyond) = (spare(1), IpAddr::from([198, 19, 0, 1]));
        let (within6, beyond6) = (spare6(1), IpAddr::from([0x2001, 0xdb8, 0xf00, 1, 0, 0, 0, 1]));
        let all = [within, within6, beyond, beyond6];
        ask_for(&names, &server, "www.odd.test", &all)?;
        names.expect_open(&at_port(&all))?;

        let limit = "  allowedNetworks: {egress: [198.18.0.0/16, '2001:db8:f00::/64']}\n";
        names.write(limit, &policies)?;
        names.wait_closed(SocketAddr::new(beyond, PORT))?;
        names.wait_closed(SocketAddr::new(beyond6, PORT))?;
        names.expect_open(&at_port(&[within, within6]))?;
        ask_for(&names, &server, "new.odd.test", &all)?;
        names.expect_closed(&at_port(&[beyond, beyond6]))?;
        let refused = names.figures()?["counters"]["refused"]["NotAllowed"].clone();
        ensure!(refused == 2, "refused: {refused}");
        ensure!(names.learned_addresses("new.odd.test")? == [within, within6]);
        names.write("", &policies)?;
        // Forgotten is forgotten: they open with the next answer.
        crate::daemon::eventually("no limit any more", || {
            ask_for(&names, &server, "new.odd.test", &all)?;
            names.reaches(beyond6, PORT)
        })
    })
}
