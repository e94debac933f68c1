//! Requests and answers of suricata's command socket, one JSON object a line.
//!
//! A client begins with the version of the protocol it speaks. Versions 0.1 and 0.2 differ in one thing: answers of 0.2 end
//! with a newline (suricata, `src/unix-manager.c`, `UnixClientSetVersion` and `UnixMain`). We speak 0.2, which suricata knows
//! since 4.1; without the newline the end of an answer could only be guessed.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Longest answer, in bytes. Suricata's own, for dozens of interfaces, have hundreds.
pub const MAX_ANSWER: usize = 64 * 1024;
/// Interfaces that are asked for.
pub const MAX_INTERFACES: usize = 64;
/// Bytes of an interface's name: IFNAMSIZ with its NUL (linux/if.h).
const MAX_NAME: usize = 15;
/// Bytes of a refusal that are repeated.
const MAX_REASON: usize = 120;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Which protocol we speak; the first request of a connection.
    Version,
    /// Names of the interfaces that are looked at.
    Interfaces,
    /// The figures of one of them.
    Figures(&'a str),
}

impl Request<'_> {
    /// The line to send.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let value = match self {
            Self::Version => json!({"version": "0.2"}),
            Self::Interfaces => json!({"command": "iface-list"}),
            Self::Figures(name) => json!({"command": "iface-stat", "arguments": {"iface": name}}),
        };
        format!("{value}\n").into_bytes()
    }
}

/// What suricata counts on an interface since it has started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets seen.
    pub packets: u64,
    /// Packets that came too fast to be seen.
    pub drops: u64,
    /// Packets with a wrong checksum.
    pub invalid_checksums: u64,
}

/// The interfaces of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Names that an interface of Linux can have, at most [`MAX_INTERFACES`].
    pub names: BTreeSet<String>,
    /// Those that were too many or have another name.
    pub left_out: usize,
}

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not JSON, or not of the form that suricata's have.
    #[error("the answer cannot be read")]
    Unreadable,
    /// Suricata says no.
    #[error("suricata refuses: {0}")]
    Refused(String),
}

/// Reads the answer to [`Request::Version`].
pub fn version(line: &[u8]) -> Result<(), AnswerError> {
    message(line).map(drop)
}

/// Reads the answer to [`Request::Interfaces`]: `{"message": {"count": 1, "ifaces": ["eth0"]}, "return": "OK"}`.
pub fn interfaces(line: &[u8]) -> Result<Interfaces, AnswerError> {
    let message = message(line)?;
    let listed = message.get("ifaces").and_then(Value::as_array).ok_or(AnswerError::Unreadable)?;
    let mut interfaces = Interfaces::default();
    for name in listed {
        match name.as_str().filter(|name| is_interface(name)) {
            Some(name) if interfaces.names.contains(name) => {}
            Some(name) if interfaces.names.len() < MAX_INTERFACES => {
                interfaces.names.insert(name.to_owned());
            }
            Some(_) | None => interfaces.left_out += 1,
        }
    }
    Ok(interfaces)
}

/// Reads the answer to [`Request::Figures`]: `{"message": {"pkts": 1, "drop": 0, "invalid-checksums": 0}, "return": "OK"}`.
pub fn figures(line: &[u8]) -> Result<Figures, AnswerError> {
    let message = message(line)?;
    let figure = |key| message.get(key).and_then(Value::as_u64).ok_or(AnswerError::Unreadable);
    Ok(Figures {
        packets: figure("pkts")?,
        drops: figure("drop")?,
        invalid_checksums: figure("invalid-checksums")?,
    })
}

fn message(line: &[u8]) -> Result<Map<String, Value>, AnswerError> {
    // Nested at most 128 deep (serde_json) and MAX_ANSWER long, so that its value is bounded.
    let Ok(Value::Object(mut answer)) = serde_json::from_slice(line) else {
        return Err(AnswerError::Unreadable);
    };
    let message = answer.remove("message");
    match (answer.get("return").and_then(Value::as_str), message) {
        (Some("OK"), Some(Value::Object(message))) => Ok(message),
        (Some("OK"), _) => Ok(Map::new()),
        (Some(_), reason) => {
            let reason = reason.as_ref().and_then(Value::as_str).unwrap_or("no reason");
            Err(AnswerError::Refused(crate::alert::plain(reason, MAX_REASON)))
        }
        (None, _) => Err(AnswerError::Unreadable),
    }
}

/// Whether Linux has interfaces of that name (net/core/dev.c, `dev_valid_name`); ours are ASCII besides.
fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_as_suricata_takes_them() {
        let text = |request: Request<'_>| String::from_utf8(request.encode()).unwrap();
        assert_eq!(text(Request::Version), "{\"version\":\"0.2\"}\n");
        assert_eq!(text(Request::Interfaces), "{\"command\":\"iface-list\"}\n");
        assert_eq!(
            text(Request::Figures("vlan179")),
            "{\"arguments\":{\"iface\":\"vlan179\"},\"command\":\"iface-stat\"}\n"
        );
    }

    #[test]
    fn answers_of_suricata_are_read() {
        assert_eq!(version(br#"{"return":"OK"}"#), Ok(()));
        let listed = interfaces(br#"{"message":{"count":2,"ifaces":["vlan179","vrf104009"]},"return":"OK"}"#);
        let names = ["vlan179", "vrf104009"].map(str::to_owned).into();
        assert_eq!(listed, Ok(Interfaces { names, left_out: 0 }));
        let counted =
            figures(br#"{"message":{"pkts":23,"invalid-checksums":1,"drop":2,"bypassed":0},"return":"OK"}"#);
        assert_eq!(counted, Ok(Figures { packets: 23, drops: 2, invalid_checksums: 1 }));
    }

    #[test]
    fn refusals_say_why_and_what_is_no_answer_is_none() {
        assert_eq!(
            figures(br#"{"message":"Iface does not exist","return":"NOK"}"#),
            Err(AnswerError::Refused("Iface does not exist".to_owned()))
        );
        for text in [
            "",
            "[]",
            "{}",
            "{\"return\":1}",
            "{\"message\":{},\"return\":\"OK\"}",
            "{\"message\":{\"pkts\":-1,\"drop\":0,\"invalid-checksums\":0},\"return\":\"OK\"}",
            "{\"message\":{\"pkts\":1.5,\"drop\":0,\"invalid-checksums\":0},\"return\":\"OK\"}",
            "{\"message\":{\"pkts\":1,\"drop\":0},\"return\":\"OK\"}",
        ] {
            assert_eq!(figures(text.as_bytes()), Err(AnswerError::Unreadable), "{text}");
            assert_eq!(interfaces(text.as_bytes()), Err(AnswerError::Unreadable), "{text}");
        }
        assert_eq!(interfaces("[".repeat(60_000).as_bytes()), Err(AnswerError::Unreadable));
    }

    #[test]
    fn names_that_no_interface_has_and_too_many_are_left_out_and_counted() {
        let names: Vec<String> = (0..100).map(|number| format!("vlan{number}")).collect();
        let answer = json!({"return": "OK", "message": {"ifaces": names}}).to_string();
        let listed = interfaces(answer.as_bytes()).unwrap();
        assert_eq!((listed.names.len(), listed.left_out), (MAX_INTERFACES, 100 - MAX_INTERFACES));
        let odd = ["", "a/b", "..", "sixteen-bytes-xx", "a b", "a\nb", "ä", "eth0", "eth0"];
        let answer = json!({"return": "OK", "message": {"ifaces": odd}}).to_string();
        let listed = interfaces(answer.as_bytes()).unwrap();
        assert_eq!((listed.names, listed.left_out), (["eth0".to_owned()].into(), 7));
    }

    proptest! {
        #[test]
        fn no_bytes_make_more_than_bounds_allow(line in proptest::collection::vec(any::<u8>(), 0..400)) {
            let listed = interfaces(&line).unwrap_or_default();
            prop_assert!(listed.names.len() <= MAX_INTERFACES);
            figures(&line).ok();
            if let Err(AnswerError::Refused(reason)) = version(&line) {
                prop_assert!(reason.len() <= MAX_REASON);
            }
        }

        #[test]
        fn figures_are_what_was_written(packets: u64, drops: u64, invalid_checksums: u64) {
            let message = json!({"pkts": packets, "drop": drops, "invalid-checksums": invalid_checksums});
            let answer = json!({"message": message, "return": "OK"}).to_string();
            prop_assert_eq!(figures(answer.as_bytes()), Ok(Figures { packets, drops, invalid_checksums }));
        }
    }
}
