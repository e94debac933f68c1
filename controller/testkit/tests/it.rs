//! Self-tests of the testkit: they need root, `ip`, `nft` and `conntrack`.

use std::time::Instant;

use fw_testkit::topology::{Lab, LabSpec};
use fw_testkit::{Netns, nft};

#[test]
fn a_lab_stands_and_pings() {
    let begin = Instant::now();
    let lab = Lab::new(
        &LabSpec::standard("t").unwrap().with_second_inside().unwrap().with_second_outside().unwrap(),
    )
    .unwrap();
    println!("set up in {:?}", begin.elapsed());
    for m in lab.machines().skip(1) {
        lab.cluster().ns.output("ping", &["-c1", "-W2", &m.v4().to_string()]).unwrap();
        lab.cluster().ns.output("ping", &["-c1", "-W2", &m.v6().to_string()]).unwrap();
    }
    lab.internet().ns.output("ping", &["-c1", "-W2", "198.51.100.10"]).unwrap();
    lab.internet().ns.output("ping", &["-c1", "-W2", "2001:db8:1b::10"]).unwrap();
    println!("{}", nft::list_ruleset(&lab.firewall).unwrap());
    println!("{}", lab.firewall.output("ip", &["route"]).unwrap());
    println!("{}", lab.firewall.output("ip", &["-6", "route"]).unwrap());
    drop(Netns::new("x").unwrap());
}
