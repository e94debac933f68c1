//! Name servers and clients from Debian: unbound, knot, dnsmasq, kdig.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fw_dns::Settings;
use fw_dns::config::Roots;
use fw_dns::encrypted::{Encrypted, EncryptedConfig, EncryptedLimits};
use fw_dns::metrics::{Outcome, Transport};
use fw_policy::Upstream as Resolver;
use fw_testkit::Process;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::message::{A, AAAA, TXT, edns_query, query, rcode, read, truncated};
use crate::running::{Manner, PATIENCE, Running, asking};
use crate::upstream::Upstream;

/// A directory that goes with this value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fw-dns-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address.port();
        }
    }
}

/// A server that runs, and where.
struct Server {
    address: SocketAddr,
    _process: Process,
    _folder: Folder,
}

fn start(folder: Folder, port: u16, program: &str, arguments: &[&str]) -> Server {
    let mut command = Command::new(program);
    command.args(arguments);
    let process = Process::spawn(command).unwrap_or_else(|error| panic!("{program} is needed: {error:#}"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let up = || std::net::TcpStream::connect(address).is_ok();
    crate::running::wait_until(up, || format!("{program}: {}", process.lines().join("\n")));
    Server { address, _process: process, _folder: folder }
}

const LONG: &str =
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

fn knot() -> Server {
    let folder = Folder::new("knot");
    let port = free_port();
    let dir = folder.0.display().to_string();
    let mut zone = "$ORIGIN example.\n$TTL 300\n@ SOA ns root 1 60 60 60 30\n@ NS ns\nns A 192.0.2.53\n\
        www A 192.0.2.1\nwww AAAA 2001:db8::1\nalias CNAME www\n"
        .to_owned();
    for number in 0..60 {
        zone.push_str(&format!("many A 192.0.2.{number}\nlong TXT \"{number} {LONG}\"\n"));
    }
    folder.write("example.zone", &zone);
    let config = folder.write(
        "knot.conf",
        &format!(
            "server:\n  rundir: {dir}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {dir}\n\
             log:\n  - target: stderr\n    any: info\n\
             zone:\n  - domain: example.\n    storage: {dir}\n    file: example.zone\n    zonefile-sync: -1\n"
        ),
    );
    start(folder, port, "knotd", &["-c", config.to_str().unwrap()])
}

fn unbound(extra: &str) -> Server {
    let folder = Folder::new(&format!("unbound-{}", extra.len()));
    let port = free_port();
    let config = folder.write(
        "unbound.conf",
        &format!(
            "server:\n  interface: 127.0.0.1@{port}\n  chroot: \"\"\n  username: \"\"\n  directory: \"{}\"\n  \
             pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  \
             do-not-query-localhost: no\n  module-config: \"iterator\"\n  local-zone: \"inner.test.\" static\n  \
             local-data: \"www.inner.test. 300 A 192.0.2.44\"\n  {}\nremote-control:\n  control-enable: no\n",
            folder.0.display(),
            extra.replace("PORT", &port.to_string()),
        ),
    );
    start(folder, port, "unbound", &["-d", "-c", config.to_str().unwrap()])
}

#[test]
fn knot_answers_through_the_proxy_as_it_answers_directly() {
    let knot = knot();
    let proxy = Running::new(knot.address, Manner::Open);
    let questions = [
        query(1, "www.example", A),
        query(2, "WwW.eXample", AAAA),
        query(3, "alias.example", A),
        query(4, "absent.example", A),
        query(5, "www.example", TXT),
        edns_query(6, "many.example", A, 1232, true, &[0, 3, 0, 0]),
        edns_query(7, "www.example", 65_280, 1232, false, &[]),
        query(8, "elsewhere.test", A),
    ];
    for question in questions {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(knot.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(&question).unwrap();
        let mut direct = crate::running::receive(&socket);
        direct[3] |= 0x80; // A forwarder offers recursion; knot does not.
        let (ours, direct) = (read(&proxy.udp(&question)), read(&direct));
        assert_eq!(ours.metadata, direct.metadata);
        assert_eq!(ours.queries, direct.queries);
        // Knot turns its answers round, so only their order may differ.
        let sorted = |mut records: Vec<hickory_proto::rr::Record>| {
            records.sort_by_key(|record| format!("{record:?}"));
            records
        };
        assert_eq!(sorted(ours.answers), sorted(direct.answers));
        assert_eq!(sorted(ours.authorities), sorted(direct.authorities));
        assert_eq!(ours.edns, direct.edns);
    }
}

#[test]
fn knots_long_answers_come_by_tcp() {
    let knot = knot();
    let proxy = Running::new(knot.address, Manner::Open);
    let question = edns_query(1, "long.example", TXT, 1232, false, &[]);
    assert!(truncated(&proxy.udp(&question)));
    let whole = proxy.tcp(&question);
    assert!(whole.len() > 4096);
    assert_eq!(read(&whole).answers.len(), 60);
    assert_eq!(proxy.metrics.tcp_retries.get(), 1);
}

#[test]
fn unbound_and_dnsmasq_answer_through_the_proxy() {
    let unbound = unbound("");
    let folder = Folder::new("dnsmasq");
    let port = free_port();
    let listen = format!("--port={port}");
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
        "--host-record=www.inner.test,192.0.2.44",
        &listen,
    ];
    let dnsmasq = start(folder, port, "dnsmasq", &arguments);
    for server in [&unbound, &dnsmasq] {
        let proxy = Running::new(server.address, Manner::Open);
        assert!(proxy.udp(&query(1, "www.inner.test", A)).ends_with(&[192, 0, 2, 44]));
        assert!(proxy.tcp(&query(2, "www.inner.test", A)).ends_with(&[192, 0, 2, 44]));
    }
}

/// A certificate for `resolver.test`, its key, and the authority that signed it.
pub(crate) struct Papers {
    pub(crate) folder: Folder,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authority: PathBuf,
}

pub(crate) fn papers(label: &str) -> Papers {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["resolver.test".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let folder = Folder::new(label);
    Papers {
        certificate: folder.write("cert.pem", &certificate.pem()),
        key: folder.write("key.pem", &key.serialize_pem()),
        authority: folder.write("ca.pem", &authority.pem()),
        folder,
    }
}

#[test]
fn an_upstream_is_asked_by_tls_and_its_name_is_checked() {
    let papers = papers("dot-upstream");
    let server = unbound(&format!(
        "tls-port: PORT\n  tls-service-key: \"{}\"\n  tls-service-pem: \"{}\"",
        papers.key.display(),
        papers.certificate.display()
    ));
    let settings = |name: &str, roots: Roots| Settings {
        upstreams: vec![Resolver { address: server.address, tls_name: Some(name.to_owned()) }],
        roots,
        try_timeout: Duration::from_secs(1),
        ..Settings::default()
    };
    let known = Roots::File(papers.authority.clone());
    let proxy = Running::with(settings("resolver.test", known.clone()));
    for number in 0..20 {
        let client = proxy.client();
        for id in [number * 2, number * 2 + 1] {
            client.send(&edns_query(id, "www.inner.test", A, 1232, id % 2 == 0, &[0, 3, 0, 0])).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(read(&crate::running::receive(&client)).answers.len(), 1);
        }
    }
    let wrong_name = Running::with(settings("other.test", known));
    assert_eq!(rcode(&wrong_name.udp(&query(1, "www.inner.test", A))), 2);
    let unknown_authority = Running::with(settings("resolver.test", Roots::System));
    assert_eq!(rcode(&unknown_authority.udp(&query(1, "www.inner.test", A))), 2);
    assert_eq!(unknown_authority.metrics.outcome(Outcome::Upstream), 1);
    drop(papers.folder);
}

#[test]
fn kdig_is_answered_by_tls_and_by_https() {
    let papers = papers("dot-front");
    let upstream = Upstream::answering(|query| crate::message::a(query, 300, [192, 0, 2, 77]));
    let proxy = Running::start(asking(&[upstream.address]), Manner::Lower(33), None);
    let config = EncryptedConfig {
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        tls_port: Some(0),
        https_port: Some(0),
        certificate: papers.certificate.clone(),
        key: papers.key.clone(),
        limits: EncryptedLimits::default(),
    };
    let encrypted = Encrypted::bind(&config).unwrap();
    let (tls, https) = (encrypted.tls_addresses()[0], encrypted.https_addresses()[0]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let serving = runtime.spawn(encrypted.run(proxy.handle.clone()));
    let ask = |address: SocketAddr, how: &str, name: &str| {
        let mut command = Command::new("kdig");
        command.args(["@127.0.0.1", "-p", &address.port().to_string(), how]);
        command.arg(format!("+tls-ca={}", papers.authority.display())).arg("+tls-hostname=resolver.test");
        command.args(["+edns", "+dnssec", "+timeout=5", "+retry=0", name, "A"]);
        let output = command.output().expect("kdig is needed");
        String::from_utf8(output.stdout).unwrap()
    };
    for (address, how) in [(tls, "+tls"), (https, "+https=resolver.test/dns-query")] {
        let text = ask(address, how, "www.example.com.");
        assert!(text.contains("192.0.2.77"), "{how}: {text}");
        assert!(text.contains("\t33\t"), "{how} lowers the TTL: {text}");
    }
    assert_eq!(proxy.metrics.queries(Transport::Tls, Outcome::Forwarded), 1);
    assert_eq!(proxy.metrics.outcome(Outcome::Forwarded) + proxy.metrics.outcome(Outcome::Cached), 2);
    assert_eq!(proxy.seen.lock().unwrap().len(), 2, "both were released");
    serving.abort();
    drop(papers.folder);
}
