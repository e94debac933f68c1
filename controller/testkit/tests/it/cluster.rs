//! The API server: it is a real one, it can be killed, and tests find it clean.

use std::time::{Duration, Instant};

use fw_testkit::cluster::{Cluster, Credentials, NAMESPACE};
use fw_testkit::{WorkDir, cluster};

const POLICY: &str = r#"
apiVersion: metal-stack.io/v1
kind: ClusterwideNetworkPolicy
metadata: { namespace: firewall, name: web }
spec:
  egress:
  - to: [{ cidr: 192.0.2.0/24 }]
    ports: [{ protocol: TCP, port: 443 }]
"#;

#[test]
fn a_private_server_keeps_objects_certificates_and_address_over_a_kill() {
    let directory = WorkDir::new("private").unwrap();
    let began = Instant::now();
    let mut cluster = Cluster::start(directory.path()).unwrap();
    println!("first start {:?}: {}", began.elapsed(), cluster.started());
    println!("resident {} MB", cluster.resident().unwrap() / 1_000_000);
    cluster.apply(POLICY).unwrap();
    let server = cluster.server();

    cluster.kill().unwrap();
    let said = cluster.kubectl(&["get", "--raw", "/readyz"]).unwrap();
    assert!(!said.success && said.stderr.contains("refused"), "{said:?}");
    let began = Instant::now();
    cluster.start_again().unwrap();
    println!("start after a kill {:?}: {}", began.elapsed(), cluster.started());
    assert_eq!(cluster.server(), server);
    let object = cluster.get_json(&["-n", NAMESPACE, "cwnp", "web"]).unwrap();
    assert_eq!(object.pointer("/spec/egress/0/to/0/cidr").unwrap(), "192.0.2.0/24");

    let began = Instant::now();
    cluster.stop().unwrap();
    println!("stop {:?}", began.elapsed());
    cluster.start_again().unwrap();
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).unwrap().success);
}

#[test]
fn rbac_and_tokens_are_those_of_a_real_cluster() {
    let cluster = Cluster::shared().unwrap();
    cluster
        .apply(
            r#"
apiVersion: v1
kind: ServiceAccount
metadata: { namespace: firewall, name: reader }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: reader }
rules: [{ apiGroups: [""], resources: [services], verbs: [list] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader }
subjects: [{ kind: ServiceAccount, namespace: firewall, name: reader }]
"#,
        )
        .unwrap();
    let directory = WorkDir::new("tokens").unwrap();
    let with = |lifetime| {
        let token = cluster.token_for(NAMESPACE, "reader", lifetime).unwrap();
        let config = cluster.kubeconfig_for(Credentials::Token(&token), &cluster.server()).unwrap();
        directory.write("kubeconfig", &config).unwrap()
    };
    let long = with(Duration::from_secs(600));
    let services = cluster.kubectl_as(&long, &["get", "services", "-A"], "").unwrap();
    assert!(services.success && services.stdout.contains("kubernetes"), "{services:?}");
    let secrets = cluster.kubectl_as(&long, &["get", "secrets", "-A"], "").unwrap();
    assert!(!secrets.success && secrets.stderr.contains("Forbidden"), "{secrets:?}");

    // Its end is over the moment it begins, and nothing remembers it as good.
    let over = with(Duration::ZERO);
    let services = cluster.kubectl_as(&over, &["get", "services", "-A"], "").unwrap();
    assert!(!services.success && services.stderr.contains("logged in"), "{services:?}");
    let short = with(Duration::from_secs(30));
    assert!(cluster.kubectl_as(&short, &["get", "services", "-A"], "").unwrap().success);

    let config = cluster.kubeconfig_of_user("jane", &["friends"]).unwrap();
    let jane = directory.write("jane", &config).unwrap();
    let who = cluster.kubectl_as(&jane, &["auth", "whoami"], "").unwrap().ok().unwrap();
    assert!(who.contains("jane") && who.contains("friends"), "{who}");
}

#[test]
fn the_next_lease_finds_nothing_of_the_one_before() {
    let lease = Cluster::shared().unwrap();
    lease.apply(&POLICY.replace("name: web", "name: web, finalizers: [example.com/held]")).unwrap();
    lease
        .apply(
            r#"
apiVersion: v1
kind: Namespace
metadata: { name: other }
---
apiVersion: v1
kind: Service
metadata: { namespace: other, name: lb }
spec: { type: LoadBalancer, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { namespace: default, name: mine }
spec: { clusterIP: None }
---
apiVersion: v1
kind: Pod
metadata: { namespace: firewall, name: droptailer }
spec: { containers: [{ name: a, image: a }] }
---
apiVersion: v1
kind: Secret
metadata: { namespace: firewall, name: a }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: mine }
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: { name: mine }
spec: { matchConstraints: { resourceRules: [{ apiGroups: [metal-stack.io], apiVersions: [v1], operations: [CREATE], resources: ['*'] }] }, validations: [{ expression: 'true' }] }
"#,
        )
        .unwrap();
    lease.set_load_balancer("other", "lb", &["198.51.100.10".parse().unwrap()]).unwrap();
    let service = lease.get_json(&["-n", "other", "service", "lb"]).unwrap();
    assert_eq!(service.pointer("/status/loadBalancer/ingress/0/ip").unwrap(), "198.51.100.10");
    // A test that plays an upgrade leaves another definition.
    let patch = r#"[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]"#;
    let name = "crd/clusterwidenetworkpolicies.metal-stack.io";
    let columns = |lease: &cluster::Lease| {
        let definition = lease.get_json(&[name]).unwrap();
        definition.pointer("/spec/versions/0/additionalPrinterColumns").unwrap().as_array().unwrap().len()
    };
    let before = columns(&lease);
    lease.kubectl(&["patch", name, "--type=json", "-p", patch]).unwrap().ok().unwrap();
    assert_eq!(columns(&lease), before - 1);
    drop(lease);

    let began = Instant::now();
    let lease = Cluster::shared().unwrap();
    println!("wiped in {:?}", began.elapsed());
    let kinds = "cwnp,fw,services,endpoints,endpointslices,pods,secrets,serviceaccounts,events";
    let left = lease.kubectl(&["get", kinds, "-A", "-o", "name"]).unwrap().ok().unwrap();
    assert_eq!(left.trim(), "service/kubernetes");
    let namespaces = lease.kubectl(&["get", "namespaces", "-o", "name"]).unwrap().ok().unwrap();
    assert!(!namespaces.contains("other") && namespaces.contains("namespace/firewall"), "{namespaces}");
    for kind in ["clusterrole", "validatingadmissionpolicy"] {
        assert!(!lease.kubectl(&["get", kind, "mine"]).unwrap().success, "{kind}");
    }
    assert_eq!(columns(&lease), before);
    lease.apply(POLICY).unwrap();
}
