//! What is in `deploy/droptailer`, on a real API server, and the program of its image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fw_droptailer::tls::Files;
use fw_testkit::WorkDir;
use fw_testkit::cluster::Cluster;
use serde_json::{Value, json};

use crate::rig::droptailer;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn decoded(cluster: &Cluster, secret: &str, key: &str) -> String {
    let template = format!("go-template={{{{index .data {key:?} | base64decode}}}}");
    cluster.kubectl(&["-n", "firewall", "get", "secret", secret, "-o", &template]).unwrap().ok().unwrap()
}

#[test]
fn the_cluster_takes_every_object_and_the_pod_is_as_restricted_as_pods_can_be() {
    let cluster = Cluster::shared().unwrap();
    let directory = root().join("deploy/droptailer");
    let all = cluster.kubectl(&["kustomize", directory.to_str().unwrap()]).unwrap().ok().unwrap();
    let said = cluster.kubectl_with_input(&["apply", "--dry-run=server", "-f", "-"], &all).unwrap();
    // Unknown fields and what the server thinks badly of are warnings.
    assert!(said.success && said.stderr.is_empty(), "{said:?}");
    let applied = cluster.apply(&all).unwrap();
    for object in
        ["deployment.apps/droptailer", "service/droptailer", "networkpolicy.networking.k8s.io/droptailer"]
    {
        assert!(applied.contains(object), "{applied}");
    }

    // No controller makes Pods here: the Pod that the Deployment describes, where only restricted ones may be.
    let deployment = cluster.get_json(&["-n", "firewall", "deployment", "droptailer"]).unwrap();
    let template = &deployment["spec"]["template"];
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "droptailer-0", "namespace": "firewall", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    });
    // No controller makes this account either.
    cluster
        .apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: firewall}}")
        .unwrap();
    let enforce = |value: &str| {
        let label = format!("pod-security.kubernetes.io/enforce{value}");
        cluster.kubectl(&["label", "namespace", "firewall", &label]).unwrap().ok().unwrap()
    };
    enforce("=restricted");
    let create = |pod: &Value| {
        cluster.kubectl_with_input(&["create", "--dry-run=server", "-f", "-"], &pod.to_string()).unwrap()
    };
    let said = create(&pod);
    assert!(said.success, "{said:?}");
    let mut rooted = pod.clone();
    rooted["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
    assert!(create(&rooted).stderr.contains("violates PodSecurity"), "the check checks nothing");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["name"], &pod["metadata"]["labels"]["app"]),
        (&json!("droptailer"), &json!("droptailer"))
    );
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], json!(true));
    enforce("-");
}

#[test]
fn secrets_are_made_for_the_cluster_by_one_command() {
    let cluster = Cluster::shared().unwrap();
    let directory = WorkDir::new("secrets").unwrap();
    let path = directory.path().join("pki");
    let output = droptailer(&["certs", "--directory", path.to_str().unwrap(), "--secrets"]);
    assert!(output.status.success(), "{output:?}");
    cluster.apply(&String::from_utf8(output.stdout).unwrap()).unwrap();
    for (secret, name) in [("droptailer-server", "server"), ("droptailer-client", "client")] {
        let files = Files::of(&path.join(name));
        for (key, file) in
            [("ca.crt", files.authority), ("tls.crt", files.certificate), ("tls.key", files.key)]
        {
            assert_eq!(decoded(&cluster, secret, key), fs::read_to_string(file).unwrap(), "{secret} {key}");
        }
    }
    let all = cluster.kubectl(&["-n", "firewall", "get", "secrets", "-o", "name"]).unwrap().ok().unwrap();
    assert_eq!(all.lines().count(), 2, "the authority's key stays at home: {all}");
}

#[test]
fn the_program_of_the_image_is_static_and_starts() {
    let target = format!("target/static/{}-unknown-linux-musl", std::env::consts::ARCH);
    let built = ["debug", "release"].map(|profile| root().join(&target).join(profile).join("droptailer"));
    let Some(program) = built.iter().find(|path| path.exists()) else {
        panic!("{} is missing: make static", built[0].display());
    };
    let bytes = fs::read(program).unwrap();
    let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    // elf(5): e_phoff, e_phentsize, e_phnum; a program header of type 3 names an interpreter.
    let table = usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (word(54), word(56));
    let types: Vec<usize> = (0..count).map(|index| word(table + index * size)).collect();
    assert!(types.contains(&1) && !types.contains(&3), "it wants an interpreter: {types:?}");
    // It finds no certificates, and says so.
    let output = Command::new(program).arg("server").env_clear().current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot read ca.crt"), "{output:?}");
}
