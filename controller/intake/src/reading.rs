//! What one object says by itself, whatever the Firewall allows.
//!
//! Most objects are the same from one judgement to the next, and reading them is what takes the time: JSON to a tree,
//! the tree field by field. So each text is read once ([`crate::Compact`] keeps what came of it) and only what depends
//! on other objects is judged again.

use serde_json::Value;

use fw_policy::ObjectKind;

use crate::objects::{Id, Problem, identify};
use crate::policy::{PolicyRead, read_policy};
use crate::report::Report;
use crate::service::{ServiceRead, read_service};

/// What a text was read as.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Which object it is, or why it is none of ours.
    pub(crate) id: Result<Id, Problem>,
    /// `metadata.uid`.
    pub(crate) uid: Option<String>,
    /// `metadata.generation`.
    pub(crate) generation: Option<i64>,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Policy(PolicyRead),
    Service(ServiceRead),
    /// Read anew each time: there is one, and it is read with the facts of the host.
    Firewall,
    /// No object of ours.
    None,
}

impl Reading {
    pub(crate) fn of(body: &Value) -> Self {
        let id = identify(body);
        let content = match &id {
            Ok(id) => Content::of(id, body),
            Err(_) => Content::None,
        };
        let uid = body.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned);
        let generation = body.pointer("/metadata/generation").and_then(Value::as_i64);
        Self { id, uid, generation, content }
    }
}

impl Content {
    fn of(id: &Id, body: &Value) -> Self {
        match id.kind {
            ObjectKind::ClusterwideNetworkPolicy => Self::Policy(read_policy(body, Report::new(id))),
            ObjectKind::Service => Self::Service(read_service(body, Report::new(id))),
            ObjectKind::Firewall => Self::Firewall,
        }
    }
}
