//! What is pinned outlives its maker and is adopted.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use fw_bpf::{Datapath, Error, Mode, Opened, Sizes, self_test};
use fw_bpf_common::{Config, TCP, flag};
use fw_testkit::{Netns, Process};

use crate::support::{Pins, SMALL, cell, chain, forever};

fn address() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

fn config() -> Config {
    Config { flags: flag::BOUNCE, mark_mask: 0xffff, samples_per_second: 3, mark_shift: 0 }
}

/// Fills every map.
fn fill(datapath: &mut Datapath) {
    let long: Vec<_> = (0..20).map(|n| cell(TCP, n * 2, n * 2, u32::from(n) + 1)).collect();
    datapath.put_class(2, &[cell(TCP, 443, 443, 7)]).unwrap();
    datapath.put_class(9, &long).unwrap();
    datapath.put(address(), forever(2)).unwrap();
    datapath.put("2001:db8::1".parse().unwrap(), forever(9)).unwrap();
    let prefixes = [("10.0.0.0/8", 80), ("2001:db8::/32", 443)];
    let table = prefixes.map(|(net, port)| (net.parse().unwrap(), vec![cell(TCP, port, port, 0)]));
    datapath.set_prefixes(&table.into()).unwrap();
    datapath.set_config(config()).unwrap();
}

/// All that can be read.
fn content(datapath: &Datapath) -> impl PartialEq + std::fmt::Debug + use<> {
    let used: Vec<_> = datapath.map_use().unwrap().into_iter().map(|map| (map.name, map.used)).collect();
    (datapath.allows().unwrap(), datapath.classes().unwrap(), datapath.config().unwrap(), used)
}

/// Writes over the part of `meta` that says what made the maps.
fn forge_meta(pins: &Pins, at: usize) {
    let path = pins.0.join("maps/meta");
    let data = aya::maps::MapData::from_pin(path).unwrap();
    let mut map: aya::maps::Array<_, [u8; 52]> = aya::maps::Map::Array(data).try_into().unwrap();
    let mut meta = map.get(&0, 0).unwrap();
    meta[at] ^= 0xff;
    map.set(0, meta, 0).unwrap();
}

#[test]
fn what_is_there_is_adopted_as_it_is() {
    let pins = Pins::new();
    let mut first = pins.open();
    assert_eq!(first.opened(), Opened::New);
    fill(&mut first);
    let before = content(&first);
    drop(first);
    let mut second = pins.open();
    assert_eq!(second.opened(), Opened::Adopted);
    assert_eq!(content(&second), before);
    // And goes on from there: the slots of the long class are known to be taken.
    second.put_class(10, &(0..20).map(|n| cell(TCP, n * 2, n * 2, 99)).collect::<Vec<_>>()).unwrap();
    let long = second.classes().unwrap();
    assert!(long[&9].iter().all(|cell| cell.index < 50) && long[&10].iter().all(|cell| cell.index == 99));
}

#[test]
fn other_programs_take_the_place_of_the_old_ones_over_the_same_maps() {
    let pins = Pins::new();
    let mut first = pins.open();
    fill(&mut first);
    let before = content(&first);
    drop(first);
    forge_meta(&pins, 51);
    let second = pins.open();
    assert_eq!(second.opened(), Opened::Upgraded);
    assert_eq!(content(&second), before);
    drop(second);
    assert_eq!(pins.open().opened(), Opened::Adopted);
}

#[test]
fn other_sizes_keep_what_names_and_rules_allow() {
    let pins = Pins::new();
    let mut first = pins.open();
    fill(&mut first);
    let before = content(&first);
    drop(first);
    let second = pins.open_with(Sizes { ipv4: 128, ..SMALL });
    assert_eq!(second.opened(), Opened::Resized);
    assert_eq!(content(&second), before);
    assert_eq!(second.map_use().unwrap()[0].bound, 128);
}

#[test]
fn maps_of_another_layout_are_not_read() {
    let pins = Pins::new();
    let mut first = pins.open();
    fill(&mut first);
    drop(first);
    forge_meta(&pins, 0);
    let second = pins.open();
    assert_eq!(second.opened(), Opened::Renewed);
    assert!(second.allows().unwrap().is_empty());
    assert_eq!(second.config().unwrap(), Config::default());
}

#[test]
fn a_start_that_was_cut_short_is_begun_again() {
    let pins = Pins::new();
    drop(pins.open());
    std::fs::create_dir(pins.0.join("new_maps")).unwrap();
    std::fs::remove_file(pins.0.join("programs/fw_tcx")).unwrap();
    assert_eq!(pins.open().opened(), Opened::Upgraded);
    std::fs::remove_file(pins.0.join("maps/meta")).unwrap();
    assert_eq!(pins.open().opened(), Opened::New);
}

#[test]
fn two_processes_do_not_write_the_same_maps() {
    let pins = Pins::new();
    let first = pins.open();
    assert!(matches!(Datapath::open(&pins.options(SMALL)), Err(Error::Busy(_))));
    // One that is just going is waited for.
    let going = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    pins.open();
    going.join().unwrap();
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let folder = std::env::temp_dir().join(format!("fw-bpf-other-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("thing")).unwrap();
    let pins = Pins(folder.clone());
    assert!(matches!(Datapath::open(&pins.options(SMALL)), Err(Error::NotBpffs(_))));
    assert!(folder.join("thing").exists());
}

#[test]
fn unloading_leaves_nothing() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    fill(&mut datapath);
    datapath.unload().unwrap();
    assert!(!pins.0.exists());
}

#[test]
fn the_self_test_is_passed_and_leaves_nothing() {
    let pins = Pins::new();
    let mut datapath = pins.open();
    fill(&mut datapath);
    let before = content(&datapath);
    self_test(&pins.options(SMALL)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(content(&datapath), before);
    assert_eq!(datapath.drops().unwrap().total(), 0);
    let name = pins.0.file_name().unwrap().to_string_lossy().into_owned();
    let rest = std::fs::read_dir("/run").unwrap().flatten().filter(|entry| {
        let entry = entry.file_name().to_string_lossy().into_owned();
        entry.starts_with(&format!("{name}_"))
    });
    assert_eq!(rest.count(), 0);
}

#[test]
fn a_killed_process_leaves_programs_links_and_maps_at_work() {
    let pins = Pins::new();
    let ns = Netns::new("bpf-kill").unwrap();
    ns.ip("link add in0 type veth peer name in1\nlink set in0 up\nlink set in1 up\n").unwrap();
    let example = std::env::current_exe().unwrap().parent().unwrap().join("../examples/hold");
    assert!(example.exists(), "cargo builds the example `hold` with the tests: {}", example.display());
    let mut command: Command = ns.command(&example);
    command.args([pins.0.to_str().unwrap(), "in0", "192.0.2.1"]);
    let mut process = Process::spawn(command).unwrap();
    process.wait_for_line("holding", Duration::from_secs(30)).unwrap();
    let programs = |ns: &Netns| ns.output("ip", &["-d", "link", "show", "dev", "in0"]).unwrap();
    let before = programs(&ns);
    assert!(before.contains("xdp") && before.contains("prog/xdp id"), "{before}");
    process.kill().unwrap();
    assert_eq!(programs(&ns), before);
    ns.run(|| {
        let mut datapath = pins.open();
        assert_eq!(datapath.opened(), Opened::Adopted);
        assert_eq!(programs(&ns), before, "adoption does not attach anew");
        assert_eq!(datapath.allows().unwrap().into_keys().collect::<Vec<_>>(), [address()]);
        let attached = datapath.attached().unwrap();
        assert_eq!(
            attached.iter().map(|one| (one.name.as_deref(), one.mode)).collect::<Vec<_>>(),
            [(Some("in0"), Mode::Native)]
        );
        // Nor does asking for what is there already.
        datapath.attach("in0", Mode::Native).unwrap();
        assert_eq!(programs(&ns), before);
        drop(datapath);
        forge_meta(&pins, 51);
        let datapath = pins.open();
        assert_eq!(datapath.opened(), Opened::Upgraded);
        let after = programs(&ns);
        assert!(after.contains("prog/xdp id") && after != before, "another program is there: {after}");
        datapath.unload().unwrap();
        assert!(!programs(&ns).contains("prog/xdp"));
    })
    .unwrap();
}
