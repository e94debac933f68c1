//! Real packets over a veth, in each mode.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fw_bpf::{Datapath, Error, Mode, nic};
use fw_bpf_common::{Config, Reason, TCP, flag};
use fw_testkit::{Netns, nft};

use crate::support::{Pins, cell, forever};

const PORT: u16 = 443;
const INDEX: u32 = 7;

/// A box and a client beside it.
struct Pair {
    r#box: Netns,
    client: Netns,
}

impl Pair {
    fn new(label: &str) -> Self {
        let r#box = Netns::new(label).unwrap();
        let client = Netns::new(&format!("{label}-c")).unwrap();
        let addresses = |side: u8| {
            format!(
                "addr add 10.7.0.{side}/24 dev in0\naddr add 2001:db8:7::{side}/64 dev in0 nodad\nlink set in0 up\n"
            )
        };
        r#box
            .ip(&format!("link add in0 type veth peer name in0 netns {}\n{}", client.name(), addresses(1)))
            .unwrap();
        client.ip(&addresses(2)).unwrap();
        let ruleset = format!(
            "table inet t {{\n chain c {{\n  type filter hook input priority 0;\n  meta mark & 0xffff == {INDEX} tcp flags & (syn|ack) == syn counter comment \"stamped\"\n  tcp dport {PORT} tcp flags & (syn|ack) == syn counter comment \"seen\"\n }}\n}}\n"
        );
        nft::load(&r#box, &ruleset).unwrap();
        Self { r#box, client }
    }

    /// SYNs that came with the mark, and all.
    fn seen(&self) -> (u64, u64) {
        let counters = nft::counters(&self.r#box).unwrap();
        (counters.comment("stamped"), counters.comment("seen"))
    }

    fn connects(&self, to: IpAddr) -> bool {
        let attempt =
            || TcpStream::connect_timeout(&SocketAddr::new(to, PORT), Duration::from_millis(400)).is_ok();
        self.client.run(attempt).unwrap()
    }
}

fn destinations() -> [IpAddr; 2] {
    ["10.7.0.1".parse().unwrap(), "2001:db8:7::1".parse().unwrap()]
}

/// Waits for the neighbours, without the data path.
fn warm(pair: &Pair) {
    let deadline = Instant::now() + Duration::from_secs(10);
    for to in destinations() {
        while !pair.connects(to) {
            assert!(Instant::now() < deadline, "the veth carries no packets to {to}");
        }
    }
}

fn judges_real_packets(label: &str, mode: Mode) {
    let pair = Pair::new(label);
    let _listeners: Vec<TcpListener> = pair
        .r#box
        .run(|| destinations().map(|to| TcpListener::bind(SocketAddr::new(to, PORT)).unwrap()))
        .unwrap()
        .into();
    warm(&pair);
    let pins = Pins::new();
    let mut datapath = pins.open();
    datapath.put_class(2, &[cell(TCP, PORT, PORT, INDEX)]).unwrap();
    datapath
        .set_config(Config { flags: flag::BOUNCE, mark_mask: 0xffff, samples_per_second: 10, mark_shift: 0 })
        .unwrap();
    let (datapath, pair) = pair
        .r#box
        .run(|| {
            let attached = datapath.attach("in0", mode).unwrap();
            assert_eq!((attached.mode, datapath.attached().unwrap()), (mode, vec![attached]));
            datapath
        })
        .map(|datapath| (datapath, &pair))
        .unwrap();
    let mut datapath = datapath;
    for to in destinations() {
        let (stamped, seen) = pair.seen();
        let dropped = datapath.drops().unwrap();
        assert!(!pair.connects(to), "{mode:?}: nothing allows {to}");
        assert_eq!(pair.seen(), (stamped, seen), "{mode:?}: what is bounced is not seen by nftables");
        let now = datapath.drops().unwrap();
        let [xdp, tcx] = [now.xdp[0] - dropped.xdp[0], now.tcx[0] - dropped.tcx[0]];
        assert!(
            if mode == Mode::Tcx { xdp == 0 && tcx > 0 } else { xdp > 0 && tcx == 0 },
            "{mode:?}: {now:?}"
        );
        datapath.put(to, forever(2)).unwrap();
        assert!(pair.connects(to), "{mode:?}: a name allows {to}");
        assert_eq!(pair.seen(), (stamped + 1, seen + 1), "{mode:?}: the mark reaches nftables");
        datapath.remove(to).unwrap();
        assert!(!pair.connects(to));
    }
    let mut samples = datapath.samples().unwrap();
    let sample = samples.next_sample().expect("a bounced packet was sampled");
    assert_eq!(sample.reason, Reason::Policy as u32);
    assert_eq!(sample.head[12..14], [8, 0], "from the Ethernet header on");
    assert_eq!(sample.head[30..34], [10, 7, 0, 1]);
    assert_eq!((sample.filled, sample.length), (74, 74), "a SYN of Linux");
    pair.r#box.run(|| datapath.detach("in0").unwrap()).unwrap();
    assert!(pair.connects(destinations()[0]));
    assert!(datapath.attached().unwrap().is_empty());
}

#[test]
fn native_xdp_bounces_and_tcx_stamps_real_packets() {
    judges_real_packets("bpf-native", Mode::Native);
}

#[test]
fn generic_xdp_bounces_and_tcx_stamps_real_packets() {
    judges_real_packets("bpf-generic", Mode::Generic);
}

#[test]
fn tcx_alone_bounces_and_stamps_real_packets() {
    judges_real_packets("bpf-tcx", Mode::Tcx);
}

/// Runs with a data path in a namespace with a veth pair `in0`, `in1`.
fn with_veth(label: &str, work: impl FnOnce(&Netns, &mut Datapath) + Send) {
    let ns = Netns::new(label).unwrap();
    ns.ip("link add in0 type veth peer name in1\nlink set in0 up\nlink set in1 up\n").unwrap();
    let pins = Pins::new();
    ns.run(|| work(&ns, &mut pins.open())).unwrap();
}

fn modes(datapath: &Datapath) -> Vec<(Option<String>, Mode)> {
    datapath.attached().unwrap().into_iter().map(|one| (one.name, one.mode)).collect()
}

#[test]
fn an_interface_goes_from_each_mode_to_each_other() {
    with_veth("bpf-modes", |ns, datapath| {
        let all = [Mode::Native, Mode::Generic, Mode::Tcx];
        for from in all {
            for to in all {
                for mode in [from, to] {
                    datapath.attach("in0", mode).unwrap();
                    assert_eq!(modes(datapath), [(Some("in0".to_owned()), mode)], "{from:?} to {to:?}");
                }
                let text = ns.output("ip", &["-d", "link", "show", "dev", "in0"]).unwrap();
                let shown = match to {
                    Mode::Native => text.contains(" xdp ") && !text.contains("xdpgeneric"),
                    Mode::Generic => text.contains("xdpgeneric"),
                    Mode::Tcx => !text.contains("xdp"),
                };
                assert!(shown, "{to:?}: {text}");
            }
        }
    });
}

#[test]
fn interfaces_that_have_gone_are_forgotten() {
    with_veth("bpf-gone", |ns, datapath| {
        datapath.attach("in0", Mode::Native).unwrap();
        datapath.attach("in1", Mode::Tcx).unwrap();
        assert_eq!(datapath.attached().unwrap().len(), 2);
        ns.ip("link del in0\n").unwrap();
        assert!(datapath.attached().unwrap().is_empty());
        assert!(matches!(datapath.attach("in0", Mode::Tcx), Err(Error::NoInterface(_))));
        datapath.detach("in0").unwrap();
        // One of the same name is another interface.
        ns.ip("link add in0 type veth peer name in1\n").unwrap();
        datapath.attach("in0", Mode::Generic).unwrap();
        assert_eq!(modes(datapath), [(Some("in0".to_owned()), Mode::Generic)]);
    });
}

#[test]
fn a_large_mtu_takes_the_program_for_frames_in_pages() {
    with_veth("bpf-mtu", |ns, datapath| {
        ns.ip("link set in0 mtu 9000\nlink set in1 mtu 9000\n").unwrap();
        datapath.attach("in0", Mode::Native).unwrap();
        let text = ns.output("ip", &["-d", "link", "show", "dev", "in0"]).unwrap();
        assert!(text.contains("name fw_xdp_frags"), "{text}");
        assert_eq!(modes(datapath), [(Some("in0".to_owned()), Mode::Native)]);
    });
}

#[test]
fn another_program_of_xdp_is_left_alone() {
    with_veth("bpf-other", |_, datapath| {
        let pins = Pins::new();
        let mut other = pins.open();
        other.attach("in0", Mode::Native).unwrap();
        assert!(matches!(datapath.attach("in0", Mode::Native), Err(Error::Occupied(_))));
        assert!(datapath.attached().unwrap().is_empty(), "nothing of ours stays");
        datapath.attach("in0", Mode::Tcx).unwrap();
        assert!(matches!(datapath.attach("in0", Mode::Native), Err(Error::Occupied(_))));
        assert_eq!(modes(datapath), [(Some("in0".to_owned()), Mode::Tcx)], "what was there stays");
        assert_eq!(modes(&other), [(Some("in0".to_owned()), Mode::Native)]);
    });
}

#[test]
fn a_veth_is_no_real_nic_and_a_device_without_ethernet_takes_nothing() {
    with_veth("bpf-nic", |ns, datapath| {
        let veth = nic("in0").unwrap();
        assert_eq!((veth.driver.as_deref(), veth.real), (Some("veth"), false));
        assert!(!nic("lo").unwrap().real);
        ns.ip("link add br0 type bridge\ntuntap add dev tun0 mode tun\n").unwrap();
        assert!(!nic("br0").unwrap().real);
        assert!(matches!(datapath.attach("tun0", Mode::Tcx), Err(Error::NotEthernet(_))));
        assert!(matches!(nic("none0"), Err(Error::NoInterface(_))));
    });
}
