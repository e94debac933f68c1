//! Manifest files, hostile ones above all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use fw_intake::{MAX_FILE_BYTES, Manifest, Reason, Severity, parse};
use serde_json::json;

fn error(text: &str) -> fw_intake::ParseError {
    parse("a.yaml", text.as_bytes()).expect_err("parsed, though it must not")
}

fn bodies(text: &str) -> Vec<serde_json::Value> {
    let manifests = parse("a.yaml", text.as_bytes()).expect("must parse");
    manifests.into_iter().map(|manifest| manifest.body.tree()).collect()
}

#[test]
fn an_error_names_file_line_and_column() {
    let error = error("a: 1\nb: [1, 2\nc: 3\n");
    assert_eq!((error.path.as_str(), error.line), ("a.yaml", 3));
    assert!(error.column > 0);
    let finding = error.finding();
    assert_eq!((finding.severity, finding.reason), (Severity::Error, Reason::InvalidManifest));
    assert!(finding.to_string().starts_with("error: a.yaml:3:"), "{finding}");
}

#[test]
fn one_broken_document_refuses_the_whole_file() {
    assert_eq!(error("kind: A\n---\nkind: B\n---\nkind: [\n").line, 5);
}

#[test]
fn documents_keep_their_lines_and_empty_ones_are_nothing() {
    let manifests =
        parse("a.yaml", b"# a comment\nkind: A\n---\n---\n# nothing\n---\nkind: B\n...\n").unwrap();
    let lines: Vec<u64> = manifests.iter().map(|manifest: &Manifest| manifest.line).collect();
    assert_eq!(lines, [2, 7]);
    assert!(bodies("").is_empty());
    assert!(bodies("# only a comment\n").is_empty());
    assert!(bodies("---\n---\n").is_empty());
}

#[test]
fn json_with_tabs_and_crlf_and_a_byte_order_mark_are_taken() {
    assert_eq!(
        bodies("{\n\t\"kind\": \"A\",\n\t\"b\": [1, \"x\", null, true]\n}\n"),
        [json!({"kind": "A", "b": [1, "x", null, true]})]
    );
    assert_eq!(bodies("kind: A\r\nb: 1\r\n"), [json!({"kind": "A", "b": 1})]);
    assert_eq!(bodies("\u{feff}kind: A\n"), [json!({"kind": "A"})]);
}

#[test]
fn long_comments_and_long_texts_are_taken() {
    let comment = "# line\n".repeat(5_000);
    assert_eq!(bodies(&format!("{comment}kind: A\nspec:\n{comment}  a: 1\n")).len(), 1);
    let long = "x".repeat(100_000);
    assert_eq!(bodies(&format!("kind: A\ndescription: {long}\n"))[0]["description"], json!(long));
}

#[test]
fn lists_are_taken_apart_and_typed_ones_name_their_items() {
    let text =
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n- {kind: Pod, apiVersion: v2}\n";
    assert_eq!(
        bodies(text),
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}),
            json!({"apiVersion": "v2", "kind": "Pod"}),
        ]
    );
    assert_eq!(bodies("kind: List\nitems: []\n").len(), 0);
    assert_eq!(bodies("kind: List\nitems: x\n"), [json!({"kind": "List", "items": "x"})]);
}

#[test]
fn a_document_that_is_no_object_is_an_error() {
    for text in ["text\n", "- kind: A\n", "5\n"] {
        assert!(error(text).message.contains("must be a Kubernetes object"), "{text}");
    }
}

#[test]
fn a_key_written_twice_is_an_error() {
    assert!(error("kind: A\nspec: {a: 1, a: 2}\n").message.contains("duplicate"));
}

#[test]
fn an_alias_bomb_is_an_error_and_quick() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{}]\n", below.trim_end_matches(", "));
    }
    let error = error(&bomb);
    assert!(!error.message.is_empty());
}

#[test]
fn merge_keys_cannot_multiply_either() {
    let mut bomb = "a0: &a0 {x: 1}\n".to_owned();
    for level in 1..2_000 {
        bomb += &format!("a{level}: &a{level} {{<<: *a{}, k{level}: 1}}\n", level - 1);
    }
    error(&bomb);
}

#[test]
fn depth_is_bounded() {
    error(&format!("kind: A\nspec: {}1{}\n", "[".repeat(10_000), "]".repeat(10_000)));
    error(&format!("kind: A\nspec: {}1{}\n", "{a: ".repeat(200), "}".repeat(200)));
    error(&(0..500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<String>());
}

#[test]
fn size_and_number_of_documents_are_bounded() {
    let large = format!("kind: A\ndescription: {}\n", "x".repeat(MAX_FILE_BYTES));
    assert!(error(&large).message.contains("at most"));
    error(&"kind: A\n---\n".repeat(60_000));
    assert_eq!(bodies(&"kind: A\n---\n".repeat(10_000)).len(), 10_000);
}

#[test]
fn a_full_size_file_of_policies_is_taken() {
    let policy = "apiVersion: metal-stack.io/v1\nkind: ClusterwideNetworkPolicy\nmetadata: {namespace: firewall, name: a}\n\
                  spec:\n  egress:\n  - to: [{cidr: 10.0.0.0/8}, {cidr: 10.0.0.0/8}]\n    ports: [{port: 443}]\n---\n";
    let count = (MAX_FILE_BYTES - 1) / policy.len();
    assert_eq!(bodies(&policy.repeat(count)).len(), count);
}

#[test]
fn bytes_that_are_no_text_are_an_error_with_their_line() {
    let error = parse("a.yaml", b"kind: A\nname: \xff\n").unwrap_err();
    assert_eq!((error.line, error.message.as_str()), (2, "the file is not UTF-8 text"));
    assert!(parse("a.yaml", b"kind: A\0\n").is_err());
}

#[test]
fn tags_and_odd_numbers_do_no_harm() {
    for text in [
        "kind: !!binary aGk=\n",
        "kind: !foo bar\n",
        "a: .nan\n",
        "a: .inf\n",
        "a: 0x1F\n",
        "a: 1e400\n",
        "? [a]\n: b\n",
    ] {
        let _ = parse("a.yaml", text.as_bytes());
    }
}
