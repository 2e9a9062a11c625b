//! The page on which runs are watched in a browser: the files of `web/dist`, embedded in the
//! program and compressed as they are.
//!
//! They hold no data. What the page shows it asks for by gRPC-Web, as any other client does, with a
//! credential that its user gives it.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::plain_text::plain;
use crate::api::Address;

/// The path of the document, which a browser is sent to.
const DOCUMENT: &str = "/";
/// What the document may do: load and call what this listener serves, and nothing else. Text
/// becomes markup by the policy of its framework alone.
const DOCUMENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types lit-html",
);
/// The header that separates a document from windows of other origins that opened it.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// One file of the page, as it is embedded.
#[derive(Debug)]
struct EmbeddedFile {
    path: &'static str,
    content_type: &'static str,
    gzipped: &'static [u8],
}

/// Describes a module of the page's program.
const fn script(path: &'static str, gzipped: &'static [u8]) -> EmbeddedFile {
    EmbeddedFile {
        path,
        content_type: "text/javascript; charset=utf-8",
        gzipped,
    }
}

/// All files of the page. `ringfence-log.js` and what it is made of are also imported by pages of
/// `admin.cors_origins`: browsers fetch modules with CORS, which the gate of the listener answers,
/// and ask nothing of `cross-origin-resource-policy` then.
static FILES: [EmbeddedFile; 9] = [
    EmbeddedFile {
        path: DOCUMENT,
        content_type: "text/html; charset=utf-8",
        gzipped: include_bytes!("../../web/dist/index.html.gz"),
    },
    script("/page.js", include_bytes!("../../web/dist/page.js.gz")),
    EmbeddedFile {
        path: "/page.css",
        content_type: "text/css; charset=utf-8",
        gzipped: include_bytes!("../../web/dist/page.css.gz"),
    },
    script("/shared.js", include_bytes!("../../web/dist/shared.js.gz")),
    script(
        "/ringfence-log.js",
        include_bytes!("../../web/dist/ringfence-log.js.gz"),
    ),
    script("/common.js", include_bytes!("../../web/dist/common.js.gz")),
    script("/log.js", include_bytes!("../../web/dist/log.js.gz")),
    script(
        "/more_pages.js",
        include_bytes!("../../web/dist/more_pages.js.gz"),
    ),
    EmbeddedFile {
        path: "/icon.svg",
        content_type: "image/svg+xml; charset=utf-8",
        gzipped: include_bytes!("../../web/dist/icon.svg.gz"),
    },
];

/// Reports whether a path is that of a file of the page.
pub(super) fn has_file(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// Adds the routes of all files to a router.
pub(super) fn add_routes<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    FILES.iter().fold(router, |router, file| {
        let served = ServedFile::new(file);
        let answer = move |asked: HeaderMap| async move { served.answer(&asked) };
        router.route(file.path, get(answer))
    })
}

/// Returns the URL by which a browser on this host opens the page at `address`; `None` for a unix
/// socket.
pub(super) fn url(address: &Address, is_tls: bool) -> Option<String> {
    let Address::Tcp(address) = address else {
        return None;
    };
    let scheme = if is_tls { "https" } else { "http" };
    let (ip, port) = (address.ip(), address.port());
    Some(match ip.is_unspecified() {
        // Requests that are addressed to no address in particular are refused.
        true => format!("{scheme}://localhost:{port}{DOCUMENT}"),
        false => format!("{scheme}://{}{DOCUMENT}", SocketAddr::new(ip, port)),
    })
}

/// A file of the page with the headers of its answers.
#[derive(Clone, Debug)]
struct ServedFile {
    gzipped: &'static [u8],
    etag: String,
    headers: HeaderMap,
}

impl ServedFile {
    /// Prepares the headers of `file`. Its entity tag is made of its bytes, so that another build
    /// with the same file has the same tag.
    fn new(file: &EmbeddedFile) -> Self {
        let hash = blake3::hash(file.gzipped);
        let etag = format!("\"{}\"", hash.to_hex());
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static(file.content_type)),
            (CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            (VARY, HeaderValue::from(ACCEPT_ENCODING)),
            // A browser keeps the file, and asks each time whether there is another.
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (OPENER_POLICY, HeaderValue::from_static("same-origin")),
        ]);
        headers.extend(HeaderValue::from_str(&etag).map(|tag| (ETAG, tag)));
        if file.path == DOCUMENT {
            headers.insert(CONTENT_SECURITY_POLICY, DOCUMENT_POLICY);
        }
        Self {
            gzipped: file.gzipped,
            etag,
            headers,
        }
    }

    /// Answers a request that has the headers `asked`: with the file, or without it where the
    /// client has it already.
    fn answer(&self, asked: &HeaderMap) -> Response<Body> {
        if !accepts_gzip(asked) {
            const WHY: &str = "this file is there compressed with gzip and in no other form: name gzip in the header Accept-Encoding, or leave the header out";
            let mut answer = plain(StatusCode::NOT_ACCEPTABLE, WHY);
            let vary = HeaderValue::from(ACCEPT_ENCODING);
            answer.headers_mut().insert(VARY, vary);
            return answer;
        }
        let mut answer = Response::new(Body::empty());
        // A browser takes what an answer without the file says for what the file's own answer said,
        // so both say the same, and above all have the same policy.
        answer.headers_mut().clone_from(&self.headers);
        if self.is_held(asked) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer.headers_mut().remove(CONTENT_TYPE);
            answer.headers_mut().remove(CONTENT_ENCODING);
        } else {
            *answer.body_mut() = Body::from(Bytes::from_static(self.gzipped));
        }
        answer
    }

    /// Reports whether a client says that it has this file, as it is now.
    fn is_held(&self, asked: &HeaderMap) -> bool {
        items(asked, IF_NONE_MATCH).any(|tag| {
            // Weak tags and strong ones are compared by what they say alone (RFC 9110, 13.1.2).
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag
        })
    }
}

/// Iterates over the items of a header that is a list, of which each may be given by itself too.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.map(|value| value.to_str().unwrap_or_default());
    texts.flat_map(|text| text.split(',').map(str::trim))
}

/// Reports whether a client takes an answer that is compressed with gzip. One that does not say
/// what it takes, takes anything (RFC 9110, 12.5.3).
fn accepts_gzip(asked: &HeaderMap) -> bool {
    if !asked.contains_key(ACCEPT_ENCODING) {
        return true;
    }
    let (mut gzip, mut any_other) = (None, None);
    for item in items(asked, ACCEPT_ENCODING) {
        let (coding, weight) = match item.split_once(';') {
            Some((coding, weight)) => (coding.trim_end(), Some(weight)),
            None => (item, None),
        };
        let is_accepted = weight.is_none_or(is_positive);
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(is_accepted);
        } else if coding == "*" {
            any_other = Some(is_accepted);
        }
    }
    gzip.or(any_other).unwrap_or(false)
}

/// Reports whether a weight, such as `q=0.5`, is one and is more than zero.
fn is_positive(weight: &str) -> bool {
    let weight = weight.split_once('=');
    let value = weight.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    value.is_some_and(|(_, value)| value.trim().parse::<f32>().is_ok_and(|it| it > 0.0))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn gzip_is_taken_by_whoever_does_not_refuse_it() {
        let accepts = |values: &[&'static str]| {
            let mut asked = HeaderMap::new();
            for value in values {
                asked.append(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            accepts_gzip(&asked)
        };
        for taken in [
            &[][..],
            &["gzip"],
            &["GZip"],
            &["x-gzip"],
            &["gzip, deflate, br, zstd"],
            &["br;q=1.0, gzip;q=0.001"],
            &["br", "gzip"],
            &["*"],
            &["identity;q=0, *;q=0.5"],
            &["*;q=0, gzip ; q=1"],
        ] {
            assert!(accepts(taken), "{taken:?}");
        }
        for refused in [
            &[""][..],
            &["identity"],
            &["br, deflate"],
            &["gzip;q=0"],
            &["gzip;q=0.000"],
            &["gzip; Q=0, *"],
            &["*;q=0"],
            &["gzip;q=much"],
            &["gzip;level=9"],
            &["gzipped"],
        ] {
            assert!(!accepts(refused), "{refused:?}");
        }
    }

    #[test]
    fn a_client_that_has_the_file_is_given_no_other_copy() {
        let file = ServedFile::new(&FILES[0]);
        let held = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            file.is_held(&HeaderMap::from_iter([(IF_NONE_MATCH, value)]))
        };
        let etag = &file.etag;
        assert!(etag.len() == 66 && etag.starts_with('"') && etag.ends_with('"'));
        assert!(held(etag) && held("*"));
        assert!(held(&format!("W/{etag}")) && held(&format!("\"old\" , {etag}")));
        assert!(!held(etag.trim_matches('"')) && !held("\"old\"") && !held(""));
        let others = FILES.iter().map(|file| ServedFile::new(file).etag);
        let distinct: std::collections::BTreeSet<String> = others.collect();
        assert_eq!(distinct.len(), FILES.len());
    }

    #[test]
    fn the_url_is_one_that_the_listener_answers_to() {
        let at = |text: &str| Address::Tcp(text.parse().unwrap());
        let urls = [
            (at("127.0.0.1:9090"), "http://127.0.0.1:9090/"),
            (at("[::1]:9090"), "http://[::1]:9090/"),
            (at("0.0.0.0:80"), "http://localhost:80/"),
            (at("[::]:9090"), "http://localhost:9090/"),
        ];
        for (address, expected) in urls {
            assert_eq!(url(&address, false).as_deref(), Some(expected));
        }
        let secure = url(&at("10.0.0.5:443"), true);
        assert_eq!(secure.as_deref(), Some("https://10.0.0.5:443/"));
        let scoped = std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 2);
        let scoped = url(&Address::Tcp(scoped.into()), false);
        assert_eq!(scoped.as_deref(), Some("http://[::1]:1/"));
        let unix = Address::Unix(PathBuf::from("/run/admin.sock"));
        assert_eq!(url(&unix, false), None);
    }
}
