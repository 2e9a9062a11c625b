//! Decides whether a request may have come from a browser, and which web page may have made it.
//!
//! A browser sends requests on behalf of any page that it shows, with whatever lets its user in:
//! the network that it is in, and its client certificate. So a request has to be addressed to a
//! name of this host (a page can make a name of its own resolve to this host: DNS rebinding), and a
//! page that made it has to be of this host too, or of an origin that the operator allows.

use std::net::IpAddr;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request};

use crate::model::refusal::quote;

/// The header by which a browser says how a page is related to the host that it asks.
const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// The header by which a browser says whether it asks for a page to go to.
const SEC_FETCH_MODE: &str = "sec-fetch-mode";
/// The header by which a browser says what it uses the answer as.
const SEC_FETCH_DEST: &str = "sec-fetch-dest";

/// The address of this host that a request's connection was made to; `None` for a unix socket. It
/// is an extension of each request that the guard checks.
#[derive(Clone, Copy, Debug)]
pub struct LocalAddress(pub Option<IpAddr>);

/// The hosts and the origins that requests may name.
#[derive(Clone, Debug)]
pub struct OriginGuardSettings {
    /// The hosts that requests may be addressed to, besides this host's own addresses.
    pub allowed_hosts: Vec<String>,
    /// The origins of web pages that may make requests and read answers.
    pub cors_origins: Vec<String>,
    /// The one path that a link on a page of any origin may lead to, if there is one.
    pub linked_path: Option<&'static str>,
    /// The table of the configuration that both are keys of, which refusals name.
    pub table: &'static str,
}

/// The guard of a listener that browsers can reach.
#[derive(Debug)]
pub struct OriginGuard(OriginGuardSettings);

/// What the guard found out about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestOrigin {
    /// No page of another origin made it, or none that learns anything of the answer.
    Own,
    /// A page of this origin made it, which the operator allows.
    Allowed(HeaderValue),
    /// A page of this origin asks whether it may make a request.
    Preflight(HeaderValue),
}

impl OriginGuard {
    /// Creates a guard that lets in what `settings` allow.
    pub fn new(settings: OriginGuardSettings) -> Self {
        Self(settings)
    }

    /// Checks the host that a request is addressed to, and the origin of the page that made it.
    ///
    /// # Errors
    /// A sentence for whoever made the request.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<RequestOrigin, String> {
        let table = self.0.table;
        let local = request.extensions().get::<LocalAddress>();
        let authority = authority(request)?;
        // Nobody is tricked into connecting to a unix socket, and the host given there is made up.
        if let Some(LocalAddress(Some(local))) = local
            && !self.is_own(&authority, *local)
        {
            return Err(format!(
                "requests may not be addressed to \"{}\" ({table}.allowed_hosts)",
                quote(authority.host())
            ));
        }
        let headers = request.headers();
        let Some(origin) = single(headers, ORIGIN.as_str())? else {
            let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
            return match site {
                Some(b"cross-site" | b"same-site") if !self.follows_link(request) => Err(format!(
                    "a web page of another origin may not ask ({table}.cors_origins)"
                )),
                Some(_) | None => Ok(RequestOrigin::Own),
            };
        };
        let text = origin.to_str().unwrap_or_default();
        if self.0.cors_origins.iter().any(|allowed| allowed == text) {
            let preflight = request.method() == Method::OPTIONS
                && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
            return Ok(match preflight {
                true => RequestOrigin::Preflight(origin.clone()),
                false => RequestOrigin::Allowed(origin.clone()),
            });
        }
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        if rest.is_some_and(|rest| rest.eq_ignore_ascii_case(authority.as_str())) {
            return Ok(RequestOrigin::Own);
        }
        Err(format!(
            "a web page of the origin \"{}\" may not ask ({table}.cors_origins)",
            quote(text)
        ))
    }

    /// Reports whether an authority names this host: as `localhost`, by the address that the
    /// connection was made to, or by a configured name.
    fn is_own(&self, authority: &Authority, local: IpAddr) -> bool {
        let host = authority.host();
        let bare = host.trim_matches(['[', ']']);
        bare.eq_ignore_ascii_case("localhost")
            || bare
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.to_canonical() == local)
            || self
                .0
                .allowed_hosts
                .iter()
                .any(|it| it.trim_matches(['[', ']']).eq_ignore_ascii_case(bare))
    }

    /// Reports whether a request is that of a browser whose user follows a link to the page of the
    /// listener, such as in a chat or a ticket. The page takes the place of the one with the link,
    /// which can neither read nor frame it.
    fn follows_link<B>(&self, request: &Request<B>) -> bool {
        let says = |name, what: &str| request.headers().get(name).is_some_and(|it| it == what);
        request.method() == Method::GET
            && self.0.linked_path == Some(request.uri().path())
            && says(SEC_FETCH_MODE, "navigate")
            && says(SEC_FETCH_DEST, "document")
    }
}

/// Returns the one host that a request is addressed to: that of HTTP/2's `:authority`, or that of
/// the header `Host`. If both are there, they have to be the same.
fn authority<B>(request: &Request<B>) -> Result<Authority, String> {
    let header = single(request.headers(), HOST.as_str())?;
    let malformed = || "the header Host is malformed".to_owned();
    let header = header
        .map(|host| Authority::try_from(host.as_bytes()))
        .transpose()
        .map_err(|_| malformed())?;
    match (request.uri().authority().cloned(), header) {
        (Some(one), Some(other)) if one != other => Err(
            "the request names two hosts, one in its target and another in its header Host"
                .to_owned(),
        ),
        (Some(authority), _) | (None, Some(authority)) => match authority.as_str().contains('@') {
            true => Err(malformed()),
            false => Ok(authority),
        },
        (None, None) => Err("the request does not say which host it is addressed to".to_owned()),
    }
}

/// Returns the value of a header that may be there once.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h HeaderValue>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(format!("there is more than one header {name}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn guard() -> OriginGuard {
        let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect();
        OriginGuard::new(OriginGuardSettings {
            allowed_hosts: texts(&["ringfence.internal"]),
            cors_origins: texts(&["https://ops.example.com"]),
            linked_path: Some("/"),
            table: "admin",
        })
    }

    fn check(method: Method, headers: &[(&str, &str)]) -> Result<RequestOrigin, String> {
        check_at("/metrics", method, headers)
    }

    fn check_at(
        path: &str,
        method: Method,
        headers: &[(&str, &str)],
    ) -> Result<RequestOrigin, String> {
        let local = LocalAddress(Some(IpAddr::from(Ipv4Addr::new(10, 0, 0, 5))));
        let mut request = Request::builder().method(method).uri(path).extension(local);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard().check(&request.body(()).unwrap())
    }

    fn get(headers: &[(&str, &str)]) -> Result<RequestOrigin, String> {
        check(Method::GET, headers)
    }

    #[test]
    fn requests_are_addressed_to_this_host_by_one_of_its_names() {
        for host in [
            "localhost",
            "LocalHost:9090",
            "10.0.0.5",
            "10.0.0.5:9090",
            "ringfence.internal:80",
            "[::ffff:10.0.0.5]:9090",
        ] {
            assert_eq!(get(&[("host", host)]), Ok(RequestOrigin::Own), "{host}");
        }
        for host in [
            "evil.example",
            "10.0.0.6",
            "127.0.0.1",
            "localhost.evil.example",
            "ringfence.internal.evil.example",
            "user@localhost",
            "",
            "[::1]",
        ] {
            assert!(get(&[("host", host)]).is_err(), "{host}");
        }
        assert!(get(&[]).is_err());
        assert!(get(&[("host", "localhost"), ("host", "localhost")]).is_err());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let own = |origin| get(&[("host", "localhost:9090"), ("origin", origin)]);
        assert_eq!(own("http://localhost:9090"), Ok(RequestOrigin::Own));
        assert_eq!(own("https://localhost:9090"), Ok(RequestOrigin::Own));
        let allowed = "https://ops.example.com";
        let value = HeaderValue::from_static(allowed);
        assert_eq!(own(allowed), Ok(RequestOrigin::Allowed(value.clone())));
        for foreign in [
            "null",
            "http://localhost",
            "http://localhost:3000",
            "https://evil.example",
            "http://ops.example.com",
            "https://ops.example.com.evil.example",
            "https://ops.example.com:444",
            "file://",
            "localhost:9090",
            "",
        ] {
            assert!(own(foreign).is_err(), "{foreign}");
        }
        let preflight = |origin| {
            let headers = [
                ("host", "localhost:9090"),
                ("origin", origin),
                ("access-control-request-method", "POST"),
            ];
            check(Method::OPTIONS, &headers)
        };
        assert_eq!(preflight(allowed), Ok(RequestOrigin::Preflight(value)));
        assert!(preflight("https://evil.example").is_err());
        let site = |site| get(&[("host", "localhost"), ("sec-fetch-site", site)]);
        assert!(site("cross-site").is_err() && site("same-site").is_err());
        assert!(site("none").is_ok() && site("same-origin").is_ok());
    }

    #[test]
    fn a_link_on_any_page_leads_to_the_page_and_nowhere_else() {
        let follow = |path, method, site, mode, dest| {
            let headers = [
                ("host", "localhost:9090"),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ];
            check_at(path, method, &headers)
        };
        for site in ["cross-site", "same-site"] {
            let link = |path, method| follow(path, method, site, "navigate", "document");
            assert_eq!(link("/", Method::GET), Ok(RequestOrigin::Own));
            assert_eq!(link("/?from=chat", Method::GET), Ok(RequestOrigin::Own));
            assert!(link("/", Method::HEAD).is_err() && link("/", Method::POST).is_err());
            for path in ["/page.js", "/debug/config", "/metrics", "//", "/.", "/x/"] {
                assert!(link(path, Method::GET).is_err(), "{path}");
            }
            for (mode, dest) in [
                ("navigate", "iframe"),
                ("navigate", "object"),
                ("no-cors", "document"),
                ("cors", "empty"),
                ("websocket", "document"),
            ] {
                let asked = follow("/", Method::GET, site, mode, dest);
                assert!(asked.is_err(), "{mode} {dest}");
            }
        }
        // A form says its origin, and a host is checked whatever a browser says.
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        let with = |more| check_at("/", Method::GET, &[&link[..], more].concat());
        assert!(with(&[("host", "localhost"), ("origin", "https://evil.example")]).is_err());
        assert!(with(&[("host", "evil.example")]).is_err());
        assert!(with(&[("host", "localhost")]).is_ok());
    }
}
