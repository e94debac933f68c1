//! What droptailer on the firewall needs of the cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};

use crate::daemon::eventually;

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
