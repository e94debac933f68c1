//! A real API server: kube-apiserver and etcd on loopback, with RBAC, tokens and our CRDs.
//!
//! * [`Cluster::shared`]: the one server of this test process, clean, for one test at a time.
//! * [`Cluster::start`]: a server of one's own, to kill and start again.
//! * [`Faults`]: a reverse proxy between a controller and the server, reachable from a namespace of the lab, that cuts,
//!   delays, refuses and lies, and logs every call.
//! * [`Kubelet`]: a node with Pods that are processes of a test, for those who read their logs.
//!
//! There is no controller manager, no scheduler and no node but that: Pods never run by themselves, Services get no
//! address, and nothing is removed because its owner is.

mod api;
mod faults;
mod kubelet;
mod many;
mod program;
mod tls;
mod wipe;

use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::Method;
use serde_json::{Value, json};

pub use api::Reply;
pub use faults::{Call, Ending, Fault, Faults, Injected, Mode};
pub use kubelet::Kubelet;
pub use many::{Ask, crowded};
pub use program::stern;

use crate::{Process, WorkDir};

/// The namespace that the controller reads its policies and its Firewall from.
pub const NAMESPACE: &str = "firewall";

/// An API server and the directory of its data, certificates and log. Ends with this value, and with this process.
#[derive(Debug)]
pub struct Cluster {
    process: Process,
    directory: PathBuf,
    port: u16,
    api: api::Api,
    definitions: wipe::Definitions,
    /// Removed after the process has ended: fields are dropped in order.
    _owned: Option<WorkDir>,
}

/// The shared server, to oneself until this is dropped.
#[derive(Debug)]
pub struct Lease {
    guard: MutexGuard<'static, Option<Cluster>>,
}

impl Deref for Lease {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        let Some(cluster) = &*self.guard else { unreachable!("a lease is made of a cluster that is there") };
        cluster
    }
}

/// What kubectl said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it ended with 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error: warnings, reasons of refusals.
    pub stderr: String,
}

/// How a kubeconfig says who one is.
#[derive(Clone, Copy, Debug)]
pub enum Credentials<'a> {
    /// A token, in the kubeconfig itself.
    Token(&'a str),
    /// A file with a token, which the client reads again as it changes.
    TokenFile(&'a Path),
}

impl Cluster {
    /// The server that all tests of this process share, started by the first that asks: without anything that other
    /// tests left, with our CRDs and an empty namespace `firewall`. Waits until the test that has it is through.
    pub fn shared() -> Result<Lease> {
        static SHARED: Mutex<Option<Cluster>> = Mutex::new(None);
        // A test that panicked left its objects, no half of a cluster.
        let mut guard = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = guard.as_mut()
            && cluster.process.try_wait()?.is_some()
        {
            *guard = None;
        }
        match guard.as_mut() {
            Some(cluster) => cluster.wipe()?,
            None => {
                let directory = WorkDir::new("cluster")?;
                let mut cluster = Self::start(directory.path())?;
                cluster._owned = Some(directory);
                *guard = Some(cluster);
            }
        }
        Ok(Lease { guard })
    }

    /// A server of one's own in a directory, with our CRDs and the namespace `firewall`. In a directory that had one,
    /// it goes on with the same data at the same address.
    pub fn start(directory: &Path) -> Result<Self> {
        let process = program::serve(directory)?;
        let port = std::fs::read_to_string(directory.join("port"))?.trim().parse()?;
        let api = api::Api::new(directory, port)?;
        let mut cluster = Self {
            process,
            directory: directory.to_owned(),
            port,
            api,
            definitions: wipe::Definitions::default(),
            _owned: None,
        };
        cluster.install()?;
        Ok(cluster)
    }

    /// SIGKILL, as a machine that fails: connections break, and the address refuses new ones.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// SIGTERM: it ends its watches and requests, then itself.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(30)).map(drop)
    }

    /// Starts a server that was killed or stopped: same data, same certificates, same address. Returns when it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.try_wait()?.is_some(), "the server still runs");
        self.process = program::serve(&self.directory)?;
        Ok(())
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it said as it started: Kubernetes' version and how long the start took.
    pub fn started(&self) -> String {
        self.process.lines().into_iter().find(|line| line.starts_with("started")).unwrap_or_default()
    }

    /// Memory it has resident, in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    /// `https://127.0.0.1:PORT`, in the host's namespace.
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate that signed the server's, PEM.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The kubeconfig of the administrator, with a client certificate.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// Both servers' log.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Runs kubectl as the administrator. Not succeeding is no error: see [`Said::ok`].
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Said> {
        self.kubectl_with_input(arguments, "")
    }

    /// As [`Cluster::kubectl`], with text for `-f -`.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<Said> {
        self.kubectl_as(&self.kubeconfig(), arguments, input)
    }

    /// As [`Cluster::kubectl_with_input`], with another kubeconfig.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<Said> {
        let mut child = program::kubectl()?
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--cache-dir")
            .arg(self.directory.join("kubectl"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let stdin = child.stdin.take();
        // From a thread: see `run_to_end` of the namespaces.
        let output = std::thread::scope(|scope| {
            if let Some(mut stdin) = stdin {
                scope.spawn(move || stdin.write_all(input.as_bytes()));
            }
            child.wait_with_output()
        })?;
        Ok(Said {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `kubectl apply -f -`, which must succeed.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml)?.ok()
    }

    /// `kubectl get -o json ARGUMENTS`, which must succeed.
    pub fn get_json(&self, arguments: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["get", "-o", "json"].iter().chain(arguments).copied().collect();
        Ok(serde_json::from_str(&self.kubectl(&all)?.ok()?)?)
    }

    /// One request as the administrator, in a millisecond rather than kubectl's tenth of a second. `content_type` is
    /// `application/json`, or says which patch: `application/merge-patch+json`, `application/apply-patch+yaml`.
    pub fn request(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Reply> {
        let method = Method::from_bytes(method.as_bytes())?;
        self.api.request(method, path, content_type, body.as_bytes().to_vec())
    }

    /// Gives a Service of type LoadBalancer its addresses, as the cluster's load balancer does; none takes them away.
    pub fn set_load_balancer(&self, namespace: &str, service: &str, addresses: &[IpAddr]) -> Result<()> {
        let ingress: Vec<Value> =
            addresses.iter().map(|address| json!({ "ip": address.to_string() })).collect();
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } }).to_string();
        let arguments =
            ["-n", namespace, "patch", "service", service, "--subresource=status", "--type=merge", "-p"];
        let arguments: Vec<&str> = arguments.into_iter().chain([patch.as_str()]).collect();
        self.kubectl(&arguments)?.ok().map(drop)
    }

    /// A token of a service account, which must be there. From ten minutes on it is one of the TokenRequest API, which
    /// has none shorter, and is taken for a minute longer; a shorter one is signed with the API server's key, and is
    /// refused when its lifetime is over, or at most ten seconds later (the API server remembers a token that it took
    /// for so long).
    pub fn token_for(&self, namespace: &str, account: &str, lifetime: Duration) -> Result<String> {
        let seconds = lifetime.as_secs().to_string();
        if lifetime >= Duration::from_secs(600) {
            let duration = format!("--duration={seconds}s");
            let token = self.kubectl(&["-n", namespace, "create", "token", account, &duration])?.ok()?;
            return Ok(token.trim().to_owned());
        }
        let object = self.get_json(&["-n", namespace, "serviceaccount", account])?;
        let uid = object
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .context("a service account without uid")?;
        self.tool(&[
            "token",
            "--namespace",
            namespace,
            "--name",
            account,
            "--uid",
            uid,
            "--seconds",
            &seconds,
        ])
    }

    /// A kubeconfig for a server address: [`Cluster::server`], or where a [`Faults`] listens.
    pub fn kubeconfig_for(&self, credentials: Credentials<'_>, server: &str) -> Result<String> {
        let user = match credentials {
            Credentials::Token(token) => json!({ "token": token }),
            Credentials::TokenFile(file) => json!({ "tokenFile": file }),
        };
        let cluster = if server.starts_with("https://") {
            // The name is for addresses that the certificate does not have, such as those in a lab.
            json!({
                "server": server,
                "certificate-authority": std::fs::canonicalize(self.authority())?,
                "tls-server-name": tls::SERVER_NAME,
            })
        } else {
            json!({ "server": server })
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "client", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "client" } }],
            "current-context": "test",
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }

    /// A kubeconfig with a client certificate for a user and its groups, for [`Cluster::server`].
    pub fn kubeconfig_of_user(&self, user: &str, groups: &[&str]) -> Result<String> {
        self.tool(&["kubeconfig", "--user", user, "--groups", &groups.join(",")])
    }

    fn tool(&self, arguments: &[&str]) -> Result<String> {
        let (command, rest) = arguments.split_first().context("no command")?;
        let mut program = Command::new(program::path()?);
        program.arg(command).arg("--dir").arg(&self.directory).args(rest);
        Ok(crate::netns::run_to_end(&mut program, "")?.trim_end().to_owned())
    }
}

impl Said {
    /// Its standard output, or an error with its standard error.
    pub fn ok(self) -> Result<String> {
        if !self.success {
            bail!("kubectl: {}", self.stderr.trim());
        }
        Ok(self.stdout)
    }
}
