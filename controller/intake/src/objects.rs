//! All objects of all sources, sorted by kind and name.

use std::collections::BTreeMap;
use std::fmt;

use fw_policy::ObjectKind;
use serde_json::Value;

use crate::finding::{Finding, Reason, Severity, Subject};
use crate::manifest::Manifest;
use crate::names::{self, NAMESPACE};
use crate::text::{quoted, safe, shown};

/// Objects of one kind that are looked at; the first ones by name.
pub const MAX_OBJECTS: usize = 50_000;

/// Identity of an object; prints as `clusterwidenetworkpolicy firewall/allow-web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace; `default` where none is written, as with kubectl.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// All objects of the kinds we know, one per identity, and the findings about the rest.
#[derive(Clone, Debug, Default)]
pub struct Objects<'a> {
    by_id: BTreeMap<&'a Id, &'a Manifest>,
    findings: Vec<Finding>,
}

impl<'a> Objects<'a> {
    /// Sorts manifests. The order they come in does not matter: of two with one identity the one with the smaller
    /// source name and line counts.
    pub fn new(manifests: impl IntoIterator<Item = &'a Manifest>) -> Self {
        let mut objects = Self::default();
        let mut groups: BTreeMap<&'a Id, Vec<&'a Manifest>> = BTreeMap::new();
        for manifest in manifests {
            match &manifest.body.reading().id {
                Ok(id) => groups.entry(id).or_default().push(manifest),
                Err(problem) => objects.findings.push(problem.finding(manifest)),
            }
        }
        for (id, group) in groups {
            objects.insert(id, group);
        }
        for kind in [ObjectKind::ClusterwideNetworkPolicy, ObjectKind::Firewall, ObjectKind::Service] {
            objects.limit(kind);
        }
        objects.findings.sort();
        objects.findings.dedup();
        objects
    }

    /// The objects of one kind, by namespace and name.
    pub fn of_kind(&self, kind: ObjectKind) -> impl Iterator<Item = (&'a Id, &'a Manifest)> {
        self.by_id.iter().filter(move |(id, _)| id.kind == kind).map(|(id, manifest)| (*id, *manifest))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when there is no object.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Unknown kinds, objects without a usable name, duplicates.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn insert(&mut self, id: &'a Id, mut group: Vec<&'a Manifest>) {
        if group.len() > 1 {
            // Items of one List share a line, and the API server's objects a source: the text decides then.
            group.sort_by_cached_key(|manifest| {
                (&manifest.source, manifest.line, manifest.body.text().to_owned())
            });
        }
        let mut group = group.into_iter();
        let Some(first) = group.next() else { return };
        for other in group {
            self.findings.push(duplicate(id, first, other));
        }
        self.by_id.insert(id, first);
    }

    fn limit(&mut self, kind: ObjectKind) {
        let surplus: Vec<&Id> = self.of_kind(kind).skip(MAX_OBJECTS).map(|(id, _)| id).collect();
        let Some(first) = surplus.first() else { return };
        self.findings.push(Finding {
            subject: Subject::Object(origin(first)),
            severity: Severity::Error,
            reason: Reason::TooMany,
            message: format!(
                "this and {} more of its kind come after the first {MAX_OBJECTS} and are ignored",
                surplus.len() - 1
            ),
            remedy: "join objects that open the same ports".to_owned(),
        });
        for id in &surplus {
            self.by_id.remove(id);
        }
    }
}

fn duplicate(id: &Id, first: &Manifest, other: &Manifest) -> Finding {
    let same = first.body == other.body;
    let content = if same { "with the same content" } else { "with other content" };
    Finding {
        subject: Subject::Object(origin(id)),
        severity: if same { Severity::Warning } else { Severity::Error },
        reason: Reason::DuplicateObject,
        message: format!("is also in {}, {content}; the one in {} counts", place(other), place(first)),
        remedy: "remove one of the two".to_owned(),
    }
}

/// The origin of a whole object.
pub(crate) fn origin(id: &Id) -> fw_policy::Origin {
    let Id { kind, namespace, name } = id.clone();
    fw_policy::Origin { kind, namespace, name, field: String::new() }
}

fn place(manifest: &Manifest) -> String {
    let path = safe(&manifest.source);
    if manifest.line == 0 { path } else { format!("{path}:{}", manifest.line) }
}

/// Why a manifest is no object of ours.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Its identity as far as it can be shown.
    pub(crate) id: Option<Id>,
    severity: Severity,
    reason: Reason,
    message: String,
    remedy: &'static str,
}

impl Problem {
    fn finding(&self, manifest: &Manifest) -> Finding {
        let file = || Subject::File { path: safe(&manifest.source), line: manifest.line, column: 0 };
        let subject = self.id.as_ref().map_or_else(file, |id| Subject::Object(origin(id)));
        Finding {
            subject,
            severity: self.severity,
            reason: self.reason,
            message: self.message.clone(),
            remedy: self.remedy.to_owned(),
        }
    }
}

const GROUP: &str = "metal-stack.io/v1";

pub(crate) fn identify(body: &Value) -> Result<Id, Problem> {
    let field = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (field(body.get("kind")), field(body.get("apiVersion")));
    let (object_kind, wanted) = match kind.as_str() {
        "ClusterwideNetworkPolicy" => (ObjectKind::ClusterwideNetworkPolicy, GROUP),
        "Firewall" => (ObjectKind::Firewall, GROUP),
        "Service" => (ObjectKind::Service, "v1"),
        _ => return Err(unknown_kind(&kind, &version)),
    };
    let name = names_of(body, object_kind)?;
    if version == wanted {
        return Ok(name);
    }
    // The same kind names exist in newer groups and in other products (Firewall of firewall.metal-stack.io,
    // Service of serving.knative.dev): none of ours, but a slip of the pen where the group is ours.
    if version.is_empty() || version.starts_with("metal-stack.io/") {
        return Err(Problem {
            id: Some(name),
            severity: Severity::Error,
            reason: Reason::Inapplicable,
            message: format!(
                "has apiVersion {}, which this version does not read; it is ignored",
                quoted(&version)
            ),
            remedy: if wanted == GROUP {
                "write apiVersion: metal-stack.io/v1"
            } else {
                "write apiVersion: v1"
            },
        });
    }
    Err(unknown_kind(&kind, &version))
}

fn unknown_kind(kind: &str, version: &str) -> Problem {
    let missing = kind.is_empty();
    Problem {
        id: None,
        severity: if missing { Severity::Error } else { Severity::Info },
        reason: Reason::UnknownKind,
        message: if missing {
            "a document has no kind; it is ignored".to_owned()
        } else {
            format!("kind {} of apiVersion {} is none of ours; it is ignored", quoted(kind), quoted(version))
        },
        remedy: if missing {
            "write apiVersion, kind and metadata as in every Kubernetes object"
        } else {
            "nothing to do, or move the file"
        },
    }
}

fn names_of(body: &Value, kind: ObjectKind) -> Result<Id, Problem> {
    let metadata = body.get("metadata").unwrap_or(&Value::Null);
    let text = |key: &str| match metadata.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(shown(other)),
    };
    let (namespace, name) = (text("namespace"), text("name"));
    let label = |read: &Result<String, String>| match read {
        Ok(text) | Err(text) => safe(text),
    };
    let shown_as = Id { kind, namespace: label(&namespace), name: label(&name) };
    let invalid = |message: String, remedy| Problem {
        id: Some(shown_as.clone()),
        severity: Severity::Error,
        reason: Reason::InvalidName,
        message,
        remedy,
    };
    let name = name.map_err(|is| {
        invalid(
            format!("metadata.name must be a text and is {is}; the object is ignored"),
            "put the name in quotes",
        )
    })?;
    let namespace = namespace.map_err(|is| {
        let message = format!("metadata.namespace must be a text and is {is}; the object is ignored");
        invalid(message, "put the namespace in quotes")
    })?;
    if !names::is_subdomain(&name) {
        return Err(invalid(
            format!(
                "metadata.name {} is not a name that Kubernetes takes; the object is ignored",
                quoted(&name)
            ),
            "use lower-case letters, digits, '-' and '.', at most 253, beginning and ending with a letter or digit",
        ));
    }
    if !namespace.is_empty() && !names::is_label(&namespace) {
        return Err(invalid(
            format!("metadata.namespace {} is no valid namespace; the object is ignored", quoted(&namespace)),
            "use lower-case letters, digits and '-', at most 63",
        ));
    }
    let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
    let ours = matches!(kind, ObjectKind::ClusterwideNetworkPolicy | ObjectKind::Firewall);
    if ours && namespace != NAMESPACE {
        return Err(Problem {
            message: format!("is in namespace {namespace}, only namespace {NAMESPACE} counts; it is ignored"),
            id: Some(Id { kind, namespace, name }),
            severity: Severity::Error,
            reason: Reason::Inapplicable,
            remedy: "set metadata.namespace to firewall",
        });
    }
    Ok(Id { kind, namespace, name })
}
