//! A request in the words of Kubernetes: the verb and the resource that RBAC would ask about.

use std::fmt;

use hyper::header::HeaderMap;
use hyper::{Method, Uri};

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// As RBAC names it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group; empty for the core's.
    pub group: String,
    /// Plural, e.g. `services`; empty for a path that is no resource, such as `/version`.
    pub resource: String,
    /// E.g. `status`; empty for the object itself.
    pub subresource: String,
    /// Empty for what has none, and for all namespaces.
    pub namespace: String,
    /// Name of the object; empty for a collection.
    pub name: String,
    /// Path and query.
    pub path: String,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// Status of the answer; none while there is none yet, and when the connection closed before it.
    pub code: Option<u16>,
    /// It was a fault that answered, not the API server.
    pub injected: bool,
    pub(super) id: u64,
}

impl Call {
    /// A method and a path as the API server reads them (k8s.io/apiserver, endpoints/request/requestinfo.go).
    pub(super) fn new(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let path = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
        let user_agent = headers.get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut call = Self { path, user_agent: user_agent.to_owned(), ..Self::default() };
        call.read_path(uri.path());
        let watches = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .any(|part| matches!(part, "watch=true" | "watch=1" | "watch"));
        let collection = call.name.is_empty() && !call.resource.is_empty();
        call.verb = match *method {
            Method::GET if watches => "watch",
            Method::GET if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        call
    }

    fn read_path(&mut self, path: &str) {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let rest = match *parts.as_slice() {
            ["api", _, ref rest @ ..] => rest,
            ["apis", group, _, ref rest @ ..] => {
                self.group = group.to_owned();
                rest
            }
            _ => return,
        };
        let rest = match *rest {
            // The object namespace itself, and what belongs to it, is no object in that namespace's sense.
            ["namespaces", namespace, resource, ref more @ ..]
                if !matches!(resource, "status" | "finalize") =>
            {
                self.namespace = namespace.to_owned();
                self.resource = resource.to_owned();
                more
            }
            [resource, ref more @ ..] => {
                self.resource = resource.to_owned();
                more
            }
            [] => return,
        };
        let mut rest = rest.iter().map(|part| (*part).to_owned());
        self.name = rest.next().unwrap_or_default();
        self.subresource = rest.next().unwrap_or_default();
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map_or_else(|| "-".to_owned(), |code| code.to_string());
        let injected = if self.injected { " (injected)" } else { "" };
        write!(f, "{} {} -> {code}{injected}", self.verb, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, path: &str) -> [String; 6] {
        let call = Call::new(method, &path.parse().unwrap(), &HeaderMap::new());
        [call.verb, call.group, call.resource, call.subresource, call.namespace, call.name]
    }

    #[test]
    fn requests_are_read_as_rbac_reads_them() {
        let cases = [
            (Method::GET, "/version", ["get", "", "", "", "", ""]),
            (Method::GET, "/api/v1/services?limit=500", ["list", "", "services", "", "", ""]),
            (Method::GET, "/api/v1/services?a=b&watch=true", ["watch", "", "services", "", "", ""]),
            (Method::GET, "/api/v1/namespaces/a", ["get", "", "namespaces", "", "", "a"]),
            (Method::PUT, "/api/v1/namespaces/a/finalize", ["update", "", "namespaces", "finalize", "", "a"]),
            (Method::POST, "/api/v1/namespaces/a/pods", ["create", "", "pods", "", "a", ""]),
            (Method::DELETE, "/api/v1/namespaces/a/pods", ["deletecollection", "", "pods", "", "a", ""]),
            (
                Method::PATCH,
                "/apis/metal-stack.io/v1/namespaces/firewall/firewalls/x/status?force=true",
                ["patch", "metal-stack.io", "firewalls", "status", "firewall", "x"],
            ),
        ];
        for (method, path, expected) in cases {
            assert_eq!(read(&method, path), expected.map(str::to_owned), "{method} {path}");
        }
    }
}
