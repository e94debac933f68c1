//! The schema and the intake know the same fields.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use fw_intake::{HostFacts, Manifest, Objects, Reason, intake};
use serde_json::{Map, Value, json};

/// An object of the schema's shape in which every field is there: maps with all their fields, lists with one entry.
fn full(schema: &Value) -> Value {
    if let Some(properties) = schema["properties"].as_object() {
        let field = |(key, schema): (&String, &Value)| (key.clone(), full(schema));
        return properties.iter().map(field).collect::<Map<String, Value>>().into();
    }
    match schema["items"].is_object() {
        true => json!([full(&schema["items"])]),
        false => json!("x"),
    }
}

#[test]
fn every_field_of_the_schema_is_known_to_the_intake() {
    for crd in fw_crds::crds().unwrap() {
        let tree = serde_json::to_value(&crd).unwrap();
        let kind = &tree["spec"]["names"]["kind"];
        let schema = &tree["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = full(&schema["properties"]["spec"]);
        assert!(spec.as_object().unwrap().len() >= 3, "{kind} has hardly any field: {spec}");
        let manifest = Manifest {
            source: "a.yaml".to_owned(),
            line: 1,
            body: json!({
                "apiVersion": "metal-stack.io/v1", "kind": kind,
                "metadata": {"namespace": "firewall", "name": "firewall"}, "spec": spec,
            })
            .into(),
        };
        let judged = intake(&Objects::new([&manifest]), &HostFacts::default());
        let unknown: Vec<String> = judged
            .findings
            .iter()
            .filter(|finding| finding.reason == Reason::UnknownField)
            .map(ToString::to_string)
            .collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
    }
}
