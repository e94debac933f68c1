//! Each fault as the client sees it, from inside a namespace, with the real API server behind.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use fw_testkit::cluster::{Call, Cluster, Credentials, Ending, Fault, Faults, Lease, Mode, NAMESPACE};
use fw_testkit::{Netns, WorkDir};

const PATIENCE: Duration = Duration::from_secs(20);
const CONFIGMAPS: &str = "/api/v1/namespaces/firewall/configmaps";

/// The proper end of a body in chunks.
const END: &[u8] = b"\r\n0\r\n\r\n";

/// A client in a namespace that speaks HTTP byte by byte, so that a test sees every byte there is.
struct Client {
    namespace: Netns,
    address: SocketAddr,
    token: String,
}

struct Stage {
    lease: Lease,
    faults: Faults,
    client: Client,
}

impl Stage {
    fn new() -> Self {
        let lease = Cluster::shared().unwrap();
        lease
            .apply(
                r#"
apiVersion: v1
kind: ServiceAccount
metadata: { namespace: firewall, name: controller }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { namespace: firewall, name: controller }
rules: [{ apiGroups: [""], resources: [configmaps], verbs: ["*"] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { namespace: firewall, name: controller }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: controller }
subjects: [{ kind: ServiceAccount, namespace: firewall, name: controller }]
"#,
            )
            .unwrap();
        let token = lease.token_for(NAMESPACE, "controller", Duration::from_secs(600)).unwrap();
        let namespace = Netns::new("faults").unwrap();
        namespace.ip("link set lo up\naddress add 192.0.2.1/32 dev lo").unwrap();
        let faults = Faults::start(&lease, &namespace, "192.0.2.1".parse().unwrap()).unwrap();
        let client = Client { namespace, address: faults.address(), token };
        Self { lease, faults, client }
    }

    /// A new object, which a watch tells of.
    fn create(&self, name: &str) {
        self.lease.kubectl(&["-n", NAMESPACE, "create", "configmap", name]).unwrap().ok().unwrap();
    }
}

impl Client {
    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = self.namespace.run(|| TcpStream::connect(self.address)).unwrap()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect().unwrap();
        let (token, length) = (&self.token, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: probe\r\nAuthorization: Bearer {token}"
        );
        let kind = "Content-Type: application/json";
        write!(stream, "{head}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        stream
    }

    /// The whole answer as it came.
    fn get(&self, path: &str) -> String {
        let mut stream = self.send("GET", path, "");
        let mut answer = String::new();
        // Until the head and as much of the body as it promises are there.
        while !is_complete(&answer) {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the connection closed after: {answer}");
            answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        answer
    }

    fn watch(&self) -> TcpStream {
        self.send("GET", &format!("{CONFIGMAPS}?watch=true"), "")
    }
}

fn is_complete(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with("0\r\n\r\n"),
    }
}

/// Reads until a needle or the end; whether it was the needle.
fn read_until(stream: &mut TcpStream, seen: &mut Vec<u8>, needle: &[u8]) -> bool {
    let mut buffer = [0; 4096];
    loop {
        if !needle.is_empty() && seen.windows(needle.len()).any(|window| window == needle) {
            return true;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
            Err(error) => panic!("{error}; so far: {}", String::from_utf8_lossy(seen)),
        }
    }
}

fn lists(call: &Call) -> bool {
    call.verb == "list"
}

#[test]
fn requests_pass_and_are_logged_as_rbac_sees_them() {
    let stage = Stage::new();
    stage.create("a");
    let answer = stage.client.get(CONFIGMAPS);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"name\":\"a\""), "{answer}");
    let answer = stage.client.get("/api/v1/secrets");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let [list, forbidden] = stage.faults.calls().try_into().unwrap();
    let seen = (&*list.verb, &*list.resource, &*list.namespace, &*list.user_agent, list.code, list.injected);
    assert_eq!(seen, ("list", "configmaps", "firewall", "probe", Some(200), false));
    assert_eq!((&*forbidden.resource, &*forbidden.namespace, forbidden.code), ("secrets", "", Some(403)));

    // As a controller reaches it: https with the cluster's CA and a token.
    let directory = WorkDir::new("faults").unwrap();
    let credentials = Credentials::Token(&stage.client.token);
    let config = stage.lease.kubeconfig_for(credentials, &stage.faults.server()).unwrap();
    let config = directory.write("kubeconfig", &config).unwrap();
    let arguments =
        ["--kubeconfig", config.to_str().unwrap(), "--cache-dir", directory.path().to_str().unwrap()];
    let arguments = [&arguments[..], &["-n", NAMESPACE, "get", "configmaps", "-o", "name"]].concat();
    let names = stage.client.namespace.output("kubectl", &arguments).unwrap();
    assert_eq!(names, "configmap/a\n");
}

#[test]
fn answers_of_faults_come_as_often_as_asked_for_and_only_where_they_apply() {
    let stage = Stage::new();
    for (fault, expected) in [
        (Fault::Status(401), "HTTP/1.1 401"),
        (Fault::Status(410), "\"reason\":\"Expired\""),
        (Fault::Status(500), "HTTP/1.1 500"),
        (Fault::TooManyRequests(7), "retry-after: 7"),
    ] {
        let injected = stage.faults.inject(2, fault, lists);
        stage.client.get(&format!("{CONFIGMAPS}/none"));
        assert_eq!(injected.hits(), 0);
        for _ in 0..2 {
            let answer = stage.client.get(CONFIGMAPS);
            assert!(answer.contains(expected), "{answer}");
        }
        assert!(stage.client.get(CONFIGMAPS).starts_with("HTTP/1.1 200"));
        assert_eq!(injected.hits(), 2);
    }
    assert_eq!(stage.faults.calls().iter().filter(|call| call.injected).count(), 8);

    stage.faults.inject(1, Fault::Delay(Duration::from_millis(300)), lists);
    let began = Instant::now();
    assert!(stage.client.get(CONFIGMAPS).starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() >= Duration::from_millis(300));

    let hang = stage.faults.inject(usize::MAX, Fault::Hang, lists);
    let mut stream = stage.client.send("GET", CONFIGMAPS, "");
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(hang.hits(), 1);
    stage.faults.heal();
    assert!(stage.client.get(CONFIGMAPS).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_lost_answer_is_a_write_that_happened() {
    let stage = Stage::new();
    stage.faults.inject(1, Fault::LoseAnswer, |call| call.verb == "create");
    let mut stream = stage.client.send("POST", CONFIGMAPS, r#"{"metadata":{"name":"lost"}}"#);
    let mut seen = Vec::new();
    assert!(!read_until(&mut stream, &mut seen, b""));
    assert_eq!(String::from_utf8_lossy(&seen), "");
    stage.lease.get_json(&["-n", NAMESPACE, "configmap", "lost"]).unwrap();
}

#[test]
fn watches_end_in_every_way_a_watch_can_end() {
    let stage = Stage::new();
    stage.create("first");
    for (round, ending) in
        [Ending::Gone, Ending::Truncated, Ending::Closed, Ending::Corrupted].into_iter().enumerate()
    {
        let mut stream = stage.client.watch();
        let mut seen = Vec::new();
        assert!(read_until(&mut stream, &mut seen, b"\"name\":\"first\""));
        assert_eq!(stage.faults.watches().len(), 1);
        assert_eq!(stage.faults.end_watches(ending, |call| call.resource == "configmaps"), 1);
        if ending == Ending::Corrupted {
            stage.create(&format!("next-{round}"));
            assert!(read_until(&mut stream, &mut seen, b"\xff"));
            drop(stream);
        } else if ending == Ending::Truncated {
            assert!(!read_until(&mut stream, &mut seen, b""));
        } else {
            assert!(read_until(&mut stream, &mut seen, END));
        }
        let seen = String::from_utf8_lossy(&seen);
        let proper_end = seen.as_bytes().ends_with(END);
        match ending {
            Ending::Gone => {
                assert!(seen.contains(r#""type":"ERROR""#) && seen.contains(r#""code":410"#) && proper_end)
            }
            Ending::Truncated => {
                assert!(seen.contains(r#"{"type":"MODIFIED","object":{"#) && !proper_end, "{seen}")
            }
            Ending::Closed => assert!(proper_end, "{seen}"),
            Ending::Corrupted => assert!(!proper_end),
        }
        let deadline = Instant::now() + PATIENCE;
        while !stage.faults.watches().is_empty() {
            assert!(Instant::now() < deadline, "an ended watch is still counted");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // The same by a rule, for a watch that has not begun.
    stage.faults.inject(1, Fault::Stream { after: 0, ending: Ending::Gone }, |call| call.verb == "watch");
    let mut stream = stage.client.watch();
    let mut seen = Vec::new();
    assert!(read_until(&mut stream, &mut seen, END));
    assert!(String::from_utf8_lossy(&seen).contains(r#""code":410"#));
    assert!(!String::from_utf8_lossy(&seen).contains("first"));
}

#[test]
fn a_cut_closes_and_refuses_and_heals() {
    let stage = Stage::new();
    let mut stream = stage.client.watch();
    let mut seen = Vec::new();
    assert!(read_until(&mut stream, &mut seen, b"200 OK"));
    stage.faults.set_mode(Mode::Cut).unwrap();
    assert!(!read_until(&mut stream, &mut seen, b""));
    assert_eq!(stage.client.connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    stage.faults.set_mode(Mode::Open).unwrap();
    assert!(stage.client.get(CONFIGMAPS).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_black_hole_holds_what_is_sent_until_it_is_over() {
    let stage = Stage::new();
    let mut watch = stage.client.watch();
    let mut seen = Vec::new();
    assert!(read_until(&mut watch, &mut seen, b"200 OK"));
    stage.faults.set_mode(Mode::BlackHole).unwrap();
    stage.create("unseen");
    let mut stream = stage.client.send("GET", CONFIGMAPS, "");
    for stream in [&mut watch, &mut stream] {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    stage.faults.set_mode(Mode::Open).unwrap();
    assert!(read_until(&mut watch, &mut seen, b"\"name\":\"unseen\""));
    assert!(read_until(&mut stream, &mut Vec::new(), b"200 OK"));
}

#[test]
fn passthrough_lets_client_certificates_through() {
    let stage = Stage::new();
    stage.faults.set_mode(Mode::Passthrough).unwrap();
    let name = "--tls-server-name=kubernetes.default.svc";
    let config = stage.lease.kubeconfig();
    let directory = WorkDir::new("passthrough").unwrap();
    let arguments =
        ["--kubeconfig", config.to_str().unwrap(), "--cache-dir", directory.path().to_str().unwrap()];
    let server = stage.faults.server();
    let arguments = [&arguments[..], &["--server", &server, name, "auth", "whoami"]].concat();
    let who = stage.client.namespace.output("kubectl", &arguments).unwrap();
    assert!(who.contains("system:masters"), "{who}");
    assert!(stage.faults.calls().is_empty());
}
