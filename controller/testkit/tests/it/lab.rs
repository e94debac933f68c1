//! The standard lab.

use std::net::IpAddr;

use fw_testkit::topology::{LOAD_BALANCER_ADDRESSES, Lab, LabSpec, Machine, Neighbours};

fn ping(from: &Machine, to: IpAddr) {
    from.ns.output("ping", &["-c1", "-W5", &to.to_string()]).unwrap();
}

fn everybody_reaches_everybody(lab: &Lab) {
    for from in lab.machines() {
        for to in lab.machines() {
            ping(from, to.v4());
            ping(from, to.v6());
        }
    }
    for address in LOAD_BALANCER_ADDRESSES {
        ping(lab.internet(), address.parse().unwrap());
    }
}

#[test]
fn machines_of_a_big_lab_reach_each_other_and_the_load_balancer_addresses() {
    let elsewhere: [IpAddr; 2] = ["1.2.3.4".parse().unwrap(), "2001:db8:ffff::1".parse().unwrap()];
    let spec = LabSpec::standard("big")
        .and_then(LabSpec::with_second_inside)
        .and_then(LabSpec::with_second_outside)
        .unwrap()
        .with_internet_addresses(&elsewhere);
    let lab = Lab::new(&spec).unwrap();
    everybody_reaches_everybody(&lab);
    for address in elsewhere {
        ping(lab.cluster(), address);
    }
}

#[test]
fn neighbours_can_also_find_each_other_as_in_life() {
    let mut spec = LabSpec::standard("arp").unwrap();
    spec.neighbours = Neighbours::Discovered;
    everybody_reaches_everybody(&Lab::new(&spec).unwrap());
}

#[test]
fn labs_run_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| everybody_reaches_everybody(&Lab::standard("beside").unwrap()));
        }
    });
}
