//! What droptailer on the firewall needs of the cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use fw_droptailer::certs::{self, Holder, Pair};
use fw_testkit::Process;

use crate::daemon::{PATIENCE, eventually};
use crate::droptailer::stage::binary;

use super::field::Field;

const OTHERS: &str = "127.0.0.1\tlocalhost\n# mine\n10.9.9.9 api droptailer-old\n";

fn pem(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn secret(body: &str, key_label: &str) -> String {
    let block = |label: &str| pem(label, body).replace('\n', "\\n");
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: droptailer-client, namespace: firewall}}\nstringData:\n  \
         ca.crt: \"{0}\"\n  tls.crt: \"{0}\"\n  tls.key: \"{1}\"\n",
        block("CERTIFICATE"),
        block(key_label)
    )
}

fn pod(field: &Field, address: &str) -> Result<()> {
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: droptailer-0, namespace: firewall, labels: {app: droptailer}}\n\
                spec: {automountServiceAccountToken: false, containers: [{name: droptailer, image: example.com/droptailer}]}";
    field.cluster.apply(yaml)?;
    let path = "/api/v1/namespaces/firewall/pods/droptailer-0/status";
    let patch = format!(
        "{{\"status\": {{\"phase\": \"Running\", \"podIP\": \"{address}\", \"podIPs\": [{{\"ip\": \"{address}\"}}]}}}}"
    );
    field.cluster.request("PATCH", path, "application/merge-patch+json", &patch)?.ok().map(drop)
}

#[test]
fn droptailer_finds_its_server_by_the_hosts_file_and_its_certificate_in_files() -> Result<()> {
    let mut field = Field::new("k-droptailer")?;
    // The namespace's controllers do not run here: no Pod is admitted without a ServiceAccount.
    field
        .cluster
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: firewall}")?;
    let hosts = field.daemon.beside("hosts");
    fs::write(&hosts, OTHERS)?;
    fs::set_permissions(&hosts, fs::Permissions::from_mode(0o644))?;
    field.daemon.flag("--hosts-file");
    field.daemon.flag(&hosts);
    field.cluster.apply(crate::rig::FIREWALL)?;
    field.start()?;
    let has = |text: &str| Ok(fs::read_to_string(&hosts)? == format!("{OTHERS}{text}"));
    pod(&field, "10.1.2.3")?;
    eventually("the Pod's address is in the hosts file", || has("10.1.2.3\tdroptailer\n"))?;
    field
        .cluster
        .kubectl(&["-n", "firewall", "delete", "pod", "droptailer-0", "--force", "--grace-period=0"])?
        .ok()?;
    eventually("it goes with the Pod", || has(""))?;
    pod(&field, "10.1.2.4")?;
    eventually("another one comes", || has("10.1.2.4\tdroptailer\n"))?;
    ensure!(fs::metadata(&hosts)?.permissions().mode() & 0o7777 == 0o644, "the mode stays");

    let files = field.daemon.beside("droptailer-client");
    let key = files.join("tls.key");
    ensure!(!key.exists(), "there is no Secret yet");
    field.cluster.apply(&secret("QUJD", "PRIVATE KEY"))?;
    let holds = |body: &str| Ok(fs::read_to_string(&key).unwrap_or_default() == pem("PRIVATE KEY", body));
    eventually("the key is there", || holds("QUJD"))?;
    ensure!(fs::metadata(&key)?.permissions().mode() & 0o777 == 0o600, "the key is nobody else's");
    field.cluster.apply(&secret("REVG", "PRIVATE KEY"))?;
    eventually("the key has changed", || holds("REVG"))?;
    field.cluster.apply(&secret("R0hJ", "NONSENSE"))?;
    field.daemon.wait_until("it says what is wrong with the Secret", |status| {
        status["status"]["controller"]["problems"].to_string().contains("tls.key is no PEM of a PRIVATE KEY")
    })?;
    field.cluster.kubectl(&["-n", "firewall", "delete", "secret", "droptailer-client"])?.ok()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    ensure!(holds("REVG").context("the key")?, "files stay");
    Ok(())
}

/// One end of droptailer on the firewall.
fn start(field: &Field, end: &[&str], files: &Path) -> Result<Process> {
    let mut command = field.lab.firewall.command(binary()?);
    command.args(end);
    let prefix = if end[0] == "client" { "--client-" } else { "--" };
    for (flag, file) in [("certificate", "tls.crt"), ("key", "tls.key")] {
        command.arg(format!("{prefix}{flag}")).arg(files.join(file));
    }
    command.arg("--ca-certificate").arg(files.join("ca.crt"));
    Process::spawn(command)
}

#[test]
fn a_secret_that_is_renewed_in_the_cluster_is_what_the_client_connects_with_and_a_broken_one_is_not()
-> Result<()> {
    let field = Field::running("k-renewal")?;
    let now = SystemTime::now();
    let authority = certs::new_authority(30, now)?;
    let pair = |holder| certs::pair(&authority, holder, 30, now);
    let apply = |pair: &Pair| {
        field.cluster.apply(&certs::secret(Holder::Client, "firewall", &authority.certificate, pair))
    };
    let of_server = pair(Holder::Server)?;
    let server_files = field.directory.path().join("server");
    fs::create_dir(&server_files)?;
    for (name, text) in
        [("ca.crt", &authority.certificate), ("tls.crt", &of_server.certificate), ("tls.key", &of_server.key)]
    {
        fs::write(server_files.join(name), text)?;
    }
    let server = ["server", "--address", "127.0.0.1", "--port", "50051", "--metrics-addr", "127.0.0.1:0"];
    let server = start(&field, &server, &server_files)?;
    server.wait_for_line("listening on", PATIENCE)?;

    // The client is there before the Secret.
    let [socket, control] = ["dt.sock", "control.sock"].map(|name| field.daemon.beside(name));
    let (socket, control) = (socket.display().to_string(), control.display().to_string());
    let client =
        ["client", "--server-address", "127.0.0.1:50051", "--socket", &socket, "--control-socket", &control];
    let client = start(&field, &client, &field.daemon.beside("droptailer-client"))?;
    client.wait_for_line("records wait for the server: cannot read", PATIENCE)?;
    apply(&pair(Holder::Client)?)?;
    client.wait_for_line("connected to", PATIENCE)?;
    apply(&pair(Holder::Client)?)?;
    let connected = || client.lines().iter().filter(|line| line.contains("connected to")).count();
    eventually("it connects again", || Ok(connected() == 2))?;
    client.wait_for_line("certificates were renewed", PATIENCE)?;
    // A PEM, which is all that the controller looks at, of no certificate.
    let good = pair(Holder::Client)?;
    apply(&Pair { certificate: pem("CERTIFICATE", "QUJD"), key: good.key })?;
    client.wait_for_line("certificates stay as they are", PATIENCE)?;
    ensure!(connected() == 2, "it has given the connection up: {:?}", client.lines());
    Ok(())
}
