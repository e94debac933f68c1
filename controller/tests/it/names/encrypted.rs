//! DNS over TLS and HTTPS: the cluster asks the proxy, and the proxy its upstreams.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fw_testkit::Process;
use fw_testkit::dns::awkward;
use fw_testkit::dns::wire::kind;
use fw_testkit::topology::{RESOLVER_ADDRESSES, SCRIPTED_ADDRESSES};
use fw_testkit::traffic::probe;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

use super::field::{BRIEFLY, Mode, Names, PORT, to_names};
use crate::daemon::eventually;

const DOT: u16 = 853;
const DOH: u16 = 8443;
const WAYS: [(u16, &str); 2] = [(DOT, "+tls"), (DOH, "+https=resolver.test/dns-query")];

/// Writes a certificate for `resolver.test`, its key, and the authority that signed it: `cert.pem`, `key.pem`, `ca.pem`.
fn write_papers(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec!["resolver.test".to_owned()])?.signed_by(&key, &authority)?;
    fs::create_dir_all(folder)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    fs::write(folder.join("cert.pem"), certificate.pem())?;
    Ok(fs::write(folder.join("key.pem"), key.serialize_pem())?)
}

fn folder(names: &Names) -> PathBuf {
    names.daemon.beside("papers")
}

/// Lines of the Firewall's spec.
fn listening(names: &Names) -> String {
    let folder = folder(names);
    format!(
        "  hostProtection: {{enabled: true, sshPorts: [22]}}\n  dns:\n    dot: deny\n    upstreams: [{{address: {}}}]\n    \
         tls: {{certificateFile: {dir}/cert.pem, keyFile: {dir}/key.pem, dohPort: {DOH}}}\n",
        RESOLVER_ADDRESSES[0],
        dir = folder.display(),
    )
}

/// The addresses `kdig` gets from the firewall's inside address, and its whole output.
fn kdig(names: &Names, (port, how): (u16, &str), name: &str) -> Result<(Vec<IpAddr>, String)> {
    let machine = names.lab.cluster();
    let mut command = machine.ns.command("kdig");
    command.args([&format!("@{}", machine.link.gateway.0), "-p", &port.to_string(), how]);
    command.arg(format!("+tls-ca={}", folder(names).join("ca.pem").display()));
    command.args(["+tls-hostname=resolver.test", "+timeout=5", "+retry=0", "+short", name, "A"]);
    let output = command.output().context("kdig is needed")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let addresses = text.lines().filter_map(|line| line.parse().ok()).collect();
    Ok((addresses, text + &String::from_utf8_lossy(&output.stderr)))
}

fn has_problem(status: &Value, needle: &str) -> bool {
    status["status"]["controller"]["problems"].to_string().contains(needle)
}

#[test]
fn the_cluster_can_ask_the_proxy_over_tls_and_https_and_nobody_outside_can() -> Result<()> {
    let wild = to_names("wild", "{matchPattern: '*.wild.example.test'}");
    let policies = [to_names("web", &format!("{{matchName: {}}}", awkward::PLAIN)), wild];
    for mode in Mode::ALL {
        let mut names = Names::bare(&format!("names-tls-{}", mode.name()), mode)?;
        write_papers(&folder(&names))?;
        names.write(&listening(&names), &policies)?;
        names.start()?;
        names.daemon.wait_until("it serves TLS", |status| !has_problem(status, "TLS"))?;
        for (way, name, number) in [(WAYS[0], awkward::PLAIN, 1), (WAYS[1], "a.wild.example.test", 12)] {
            let [address, _] = awkward::addresses_of(number);
            ensure!(!names.reaches(address, PORT)?, "{mode:?} {name}: open before it was asked");
            let (answer, said) = kdig(&names, way, name)?;
            ensure!(answer == [address], "{mode:?} {}: {said}", way.1);
            ensure!(names.reaches(address, PORT)?, "{mode:?} {name}: closed after it was asked");
        }
        let [other, _] = awkward::addresses_of(2);
        for way in WAYS {
            let (answer, said) = kdig(&names, way, awkward::OTHER)?;
            ensure!(answer == [other], "{mode:?} {}: {said}", way.1);
        }
        ensure!(!names.reaches(other, PORT)?, "{mode:?}: a name that no policy has was opened over TLS");
        let transports = names.figures()?["proxy"]["transports"].clone();
        ensure!(transports["tls"] == 2 && transports["https"] == 2, "{mode:?}: {transports}");
        let outside = names.lab.internet();
        for port in [DOT, DOH] {
            for gateway in [IpAddr::from(outside.link.gateway.0), IpAddr::from(outside.link.gateway.1)] {
                let to = SocketAddr::new(gateway, port);
                let opened = probe::tcp_connect(&outside.ns, None, to, BRIEFLY)?.is_ok();
                ensure!(!opened, "{mode:?}: {to} is open to the outside");
            }
        }
        let counter =
            names.lab.firewall.output("nft", &["list", "counter", "inet", "firewall", "drop_dns_proxy"])?;
        let dropped =
            counter.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        ensure!(
            dropped.is_some_and(|packets| packets >= 4),
            "{mode:?}: the guard of the ports saw them: {counter}"
        );
    }
    Ok(())
}

#[test]
fn a_certificate_may_come_late_or_change_and_a_broken_one_leaves_the_old_one_in_use() -> Result<()> {
    // No policy has names: what the cluster asks over TLS is answered all the same.
    let mut names = Names::bare("names-certificate", Mode::Tcx)?;
    names.write(&listening(&names), &[])?;
    names.daemon.start_in(&names.lab)?;
    names.daemon.wait_until("it says that the file is missing", |status| has_problem(status, "cert.pem"))?;
    let [address, _] = awkward::addresses_of(1);
    let answers = |names: &Names| Ok(kdig(names, WAYS[0], awkward::PLAIN)?.0 == [address]);
    ensure!(!answers(&names)?, "there is no certificate yet");
    for round in ["the first certificate is served", "a new one, by another authority, is served"] {
        write_papers(&folder(&names))?;
        eventually(round, || answers(&names))?;
        names.daemon.wait_until("nothing is wrong", |status| !has_problem(status, "TLS"))?;
    }
    fs::write(folder(&names).join("cert.pem"), "no certificate")?;
    names.daemon.wait_until("it says that the new one is broken", |status| {
        has_problem(status, "goes on with the certificate of before")
    })?;
    ensure!(answers(&names)?, "the certificate of before serves on");
    Ok(())
}

#[test]
fn an_upstream_is_asked_over_tls_when_an_authority_of_the_file_vouches_for_it() -> Result<()> {
    let mut names = Names::bare("names-dot-upstream", Mode::Tcx)?;
    let dir = folder(&names);
    write_papers(&dir)?;
    fs::rename(dir.join("ca.pem"), dir.join("real.pem"))?;
    let [address, _] = awkward::addresses_of(77);
    let server = SCRIPTED_ADDRESSES[0];
    let config = format!(
        "server:\n  interface: {server}@{DOT}\n  tls-port: {DOT}\n  tls-service-key: {d}/key.pem\n  \
         tls-service-pem: {d}/cert.pem\n  access-control: 0.0.0.0/0 allow\n  chroot: \"\"\n  username: \"\"\n  \
         directory: {d}\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  module-config: iterator\n  \
         local-zone: only-here.test. static\n  local-data: \"www.only-here.test. 300 A {address}\"\n\
         remote-control:\n  control-enable: no\n",
        d = dir.display(),
    );
    fs::write(dir.join("unbound.conf"), config)?;
    let mut unbound = names.lab.internet().ns.command("unbound");
    unbound.arg("-d").arg("-c").arg(dir.join("unbound.conf"));
    let _unbound = Process::spawn(unbound)?;
    let spec = format!(
        "  dns:\n    caFile: {}/ca.pem\n    upstreams: [{{address: {server}, port: {DOT}, tlsName: resolver.test}}]\n",
        dir.display()
    );
    names.write(&spec, &[to_names("web", "{matchName: www.only-here.test}")])?;
    names.start()?;
    names.daemon.wait_until("it says that the file is missing", |status| has_problem(status, "ca.pem"))?;
    ensure!(
        names.ask("www.only-here.test", kind::A)?.ips().is_empty(),
        "nobody vouches for the upstream yet"
    );
    fs::rename(dir.join("real.pem"), dir.join("ca.pem"))?;
    eventually("the upstream is asked over TLS", || {
        Ok(names.ask("www.only-here.test", kind::A)?.ips() == [address])
    })?;
    ensure!(names.reaches(address, PORT)?, "and its answer opens the address");
    Ok(())
}
