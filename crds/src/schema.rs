//! Pieces of JSON schema that the derives cannot say.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::bounds::MAX_PATH;

/// A CIDR prefix. The API server checks `format: cidr` with the parser the old product used; unlike a CEL rule it
/// costs nothing of the CEL budget, however long the lists are.
pub(crate) fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "cidr", "maxLength": MAX_CIDR })
}

/// A list of at most `MAX` CIDR prefixes.
pub(crate) fn cidrs<const MAX: usize>(generator: &mut SchemaGenerator) -> Schema {
    let items = cidr(generator);
    json_schema!({ "type": "array", "maxItems": MAX, "items": items })
}

/// Longest text of a prefix: an IPv6 address with an IPv4 tail and a length.
const MAX_CIDR: usize = 49;

/// Rules of a field for the API server: expression and what people read when it does not hold.
pub(crate) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// An address.
pub(crate) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": rules(&[
            ("isIP(self)", "must be an IP address, such as 192.0.2.1 or 2001:db8::1"),
        ]),
    })
}

/// Name of an interface.
pub(crate) fn interface(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 15,
        "x-kubernetes-validations": rules(&[(
            "self.matches('^[-A-Za-z0-9_.@+]*$')",
            "must be the name of an interface as `ip link` shows it: letters, digits, '-', '_', '.', '@', '+'",
        )]),
    })
}

/// A list of at most `MAX` interfaces.
pub(crate) fn interfaces<const MAX: usize>(generator: &mut SchemaGenerator) -> Schema {
    let item = interface(generator);
    json_schema!({
        "type": "array",
        "maxItems": MAX,
        "items": item,
        "x-kubernetes-validations": rules(&[
            ("self.all(a, self.exists_one(b, a == b))", "each interface may be there once only"),
        ]),
    })
}

/// A duration as Go writes it.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": rules(&[(
            "self.matches('^(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|ms|s|m|h))+)$')",
            "must be a duration, such as 10s or 1m30s",
        )]),
    })
}

/// Id of a network.
pub(crate) fn network_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 128 })
}

/// The absolute path of a file.
pub(crate) fn path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^/", "maxLength": MAX_PATH })
}

/// A list of at most `MAX` addresses.
pub(crate) fn addresses<const MAX: usize>(generator: &mut SchemaGenerator) -> Schema {
    let item = address(generator);
    json_schema!({ "type": "array", "maxItems": MAX, "items": item })
}

/// TCP, the default, or UDP.
pub(crate) fn protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["TCP", "UDP"], "default": "TCP" })
}

/// A port from 1 to 65535, as a number or, as the Go type took it, as digits in quotes. Bounds hold for numbers
/// only and the pattern for texts only; neither costs CEL budget.
pub(crate) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 1,
        "maximum": 65535,
        "pattern": "^[1-9][0-9]{0,4}$",
    })
}

/// A count that only grows. The Go type is uint64; Kubernetes knows int64.
pub(crate) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0 })
}

/// A rate of the Go type uint32.
pub(crate) fn rate(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX })
}

/// Bits of a mark, in hexadecimal or as the number that YAML makes of it.
pub(crate) fn mask(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": u32::MAX,
        "pattern": "^0x[0-9a-fA-F]{1,8}$",
    })
}

/// Any object, kept as it is.
pub(crate) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
