//! YAML and JSON files to objects.

use serde_json::Value;
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::compact::Compact;
use crate::finding::{Finding, Reason, Severity, Subject};
use crate::objects::Id;
use crate::text::{kind_of, one_line};

/// Largest manifest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// One object as a source delivered it. `List` kinds are taken apart already.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// Where it comes from: a file's path, or a word for the API server.
    pub source: String,
    /// Line of the document in the file, from 1; 0 where there is none.
    pub line: u64,
    /// The object.
    pub body: Compact,
}

impl Manifest {
    /// Which object it is, as far as it says: also of one that does not count, such as a policy in another namespace.
    #[must_use]
    pub fn id(&self) -> Option<&Id> {
        match &self.body.reading().id {
            Ok(id) => Some(id),
            Err(problem) => problem.id.as_ref(),
        }
    }

    /// `metadata.uid`; objects of files have none.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        self.body.reading().uid.as_deref()
    }

    /// `metadata.generation`; objects of files have none.
    #[must_use]
    pub fn generation(&self) -> Option<i64> {
        self.body.reading().generation
    }
}

/// Why a file gives no objects. The source keeps the file's last parsed ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}:{line}:{column}: {message}")]
pub struct ParseError {
    /// The file.
    pub path: String,
    /// Line from 1; 0 where unknown.
    pub line: u64,
    /// Column from 1; 0 where unknown.
    pub column: u64,
    /// One line.
    pub message: String,
}

impl ParseError {
    /// The finding of an unparsable file; the source appends what it keeps, if anything, to the message.
    pub fn finding(&self) -> Finding {
        Finding {
            subject: Subject::File { path: self.path.clone(), line: self.line, column: self.column },
            severity: Severity::Error,
            reason: Reason::InvalidManifest,
            message: self.message.clone(),
            remedy: "correct the file; `kubectl create --dry-run=client -f FILE` shows the same place"
                .to_owned(),
        }
    }
}

/// Parses one file of YAML documents (JSON is YAML) into its objects, in the order of the file.
///
/// All or nothing: a file with one broken document gives the error of that document, so that a half-written file
/// is never taken for a complete one. Size, depth, documents, nodes and alias expansion are bounded.
pub fn parse(path: &str, bytes: &[u8]) -> Result<Vec<Manifest>, ParseError> {
    let refuse = |line, column, message: String| ParseError { path: path.to_owned(), line, column, message };
    if bytes.len() > MAX_FILE_BYTES {
        let message = format!("the file has {} bytes, at most {MAX_FILE_BYTES} are read", bytes.len());
        return Err(refuse(0, 0, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        refuse(line, 0, "the file is not UTF-8 text".to_owned())
    })?;
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, yaml_options())
        .map_err(|error| {
            let place = error.location();
            let line = place.map_or(0, |place| place.line());
            let column = place.map_or(0, |place| place.column());
            // The place and the library's own settings are of no use in the text.
            let message = one_line(&error.without_snippet().to_string());
            let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(&message);
            let message = message.trim_end_matches(&format!(" at line {line}, column {column}"));
            refuse(line, column, format!("not valid YAML: {message}"))
        })?;
    let mut manifests = Vec::new();
    for document in documents {
        let line = document.referenced.line();
        if !document.value.is_object() {
            let column = document.referenced.column();
            let message = format!("a document must be a Kubernetes object, not {}", kind_of(&document.value));
            return Err(refuse(line, column, message));
        }
        flatten(path, line, document.value, &mut manifests);
    }
    Ok(manifests)
}

/// Bounds for hostile files. serde-saphyr's own are meant for one configuration file; a file of the largest size
/// that is full of policies needs more nodes, and no manifest needs as many aliases.
pub(crate) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_documents: 50_000,
            max_nodes: 1_000_000,
            max_events: 3_000_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_recorded_anchor_events: 100_000,
            max_total_scalar_bytes: MAX_FILE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 16,
        },
        // Two values for one key: nobody can say which one was meant, so the file is refused.
        duplicate_keys: DuplicateKeyPolicy::Error,
        emit_comments: false,
        with_snippet: false,
    }
}

/// Takes `List`, `ServiceList` and the like apart. The items of a typed list may come without kind and version,
/// as the API server sends them.
fn flatten(path: &str, line: u64, body: Value, manifests: &mut Vec<Manifest>) {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text("kind"), text("apiVersion"));
    let item_kind = kind.strip_suffix("List").unwrap_or_default();
    let Value::Object(mut map) = body else { return };
    match map.get_mut("items") {
        Some(Value::Array(items)) if kind.ends_with("List") => {
            for mut item in std::mem::take(items) {
                if let (Value::Object(map), false) = (&mut item, item_kind.is_empty()) {
                    map.entry("kind").or_insert_with(|| item_kind.into());
                    map.entry("apiVersion").or_insert_with(|| version.clone().into());
                }
                manifests.push(Manifest { source: path.to_owned(), line, body: item.into() });
            }
        }
        _ => manifests.push(Manifest { source: path.to_owned(), line, body: Value::Object(map).into() }),
    }
}
