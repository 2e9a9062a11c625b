//! The page for browsers: its files as they are embedded and served, and who is given them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::admin::{Answer, ask};
use crate::harness::Daemon;
use crate::process::ringfence;
use crate::tenants::{token, two};

const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml; charset=utf-8";
/// What the document may do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html";
/// What all other files may do, if a browser shows them by themselves.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";
/// The most bytes that all files together may have.
const MAX_BYTES: usize = 200_000;
/// What a browser says of its user's following a link on a page of another site.
const LINK: [(&str, &str); 3] = [
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-dest", "document"),
];

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageFile {
    pub path: &'static str,
    /// What it is called in `web/dist`, without the ending of its compression.
    pub name: &'static str,
    pub kind: &'static str,
}

const fn file(path: &'static str, name: &'static str, kind: &'static str) -> PageFile {
    PageFile { path, name, kind }
}

/// All files of the page.
pub(crate) const FILES: [PageFile; 9] = [
    file("/", "index.html", HTML),
    file("/page.js", "page.js", SCRIPT),
    file("/page.css", "page.css", CSS),
    file("/shared.js", "shared.js", SCRIPT),
    file("/ringfence-log.js", "ringfence-log.js", SCRIPT),
    file("/common.js", "common.js", SCRIPT),
    file("/log.js", "log.js", SCRIPT),
    file("/more_pages.js", "more_pages.js", SCRIPT),
    file("/icon.svg", "icon.svg", SVG),
];

impl PageFile {
    fn embedded(self) -> PathBuf {
        Path::new("web/dist").join(format!("{}.gz", self.name))
    }

    fn gzipped(self) -> Vec<u8> {
        std::fs::read(self.embedded()).unwrap()
    }

    /// What a browser makes of it.
    fn text(self) -> String {
        let unpacked = Command::new("gzip")
            .arg("-dc")
            .arg(self.embedded())
            .output();
        let unpacked = unpacked.unwrap();
        assert!(unpacked.status.success(), "{}: {unpacked:?}", self.name);
        String::from_utf8(unpacked.stdout).unwrap()
    }
}

async fn get(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask(&daemon.admin, "GET", path, headers).await
}

/// The headers of an answer, without those of its moment.
fn lasting(answer: &Answer) -> BTreeMap<&str, &str> {
    let headers = answer.headers.iter();
    headers
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| !["date", "connection"].contains(name))
        .collect()
}

/// The headers that the answer with a file has to have, and no others.
fn expected<'a>(file: PageFile, length: &'a str, etag: &'a str) -> BTreeMap<&'a str, &'a str> {
    let policy = if file.path == "/" { POLICY } else { NOTHING };
    BTreeMap::from([
        ("cache-control", "no-cache"),
        ("content-encoding", "gzip"),
        ("content-length", length),
        ("content-security-policy", policy),
        ("content-type", file.kind),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("etag", etag),
        ("referrer-policy", "no-referrer"),
        ("vary", "accept-encoding"),
        ("x-content-type-options", "nosniff"),
    ])
}

/// They are data of the operator's, unlike the files, so that a caller is known first.
#[tokio::test]
async fn the_page_is_told_its_settings() {
    const URL: &str = "https://traces.example.com/t/{trace_id}?from=\"ringfence\"";
    let archive = TempDir::new().unwrap();
    let archive = format!("file://{}", archive.path().display());
    let set = [
        ADMIN,
        ("admin.trace_url", URL),
        ("runs.archive", archive.as_str()),
    ];
    let (daemon, _alpha, _beta, _folder) = two("", "", &set).await;
    let unknown = get(&daemon, "/page.json", &[]).await;
    assert_eq!(unknown.status, 401, "{unknown:?}");
    assert!(!unknown.body.contains("traces.example.com"));
    let bearer = format!("Bearer {}", token("b"));
    let known = [("authorization", bearer.as_str())];
    let told = get(&daemon, "/page.json", &known).await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.headers["content-type"], "application/json");
    let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!(
        told,
        serde_json::json!({ "trace_url": URL, "archive": true })
    );
    let written = ask(&daemon.admin, "POST", "/page.json", &known).await;
    assert_eq!(written.status, 405);

    let plain = Daemon::with(&[ADMIN]).await;
    let told = get(&plain, "/page.json", &[]).await;
    let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!(
        told,
        serde_json::json!({ "trace_url": "", "archive": false })
    );
    let hidden = Daemon::with(&[ADMIN, ("admin.page", "false")]).await;
    assert_eq!(get(&hidden, "/page.json", &[]).await.status, 404);
}

#[tokio::test]
async fn every_file_is_served_as_it_was_built() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let mut tags = BTreeSet::new();
    for file in FILES {
        let gzipped = file.gzipped();
        let answer = get(&daemon, file.path, &[]).await;
        assert_eq!(answer.status, 200, "{file:?}");
        assert!(answer.bytes == gzipped, "{file:?} is another");
        let length = gzipped.len().to_string();
        let etag = &answer.headers["etag"];
        assert!(etag.len() > 18 && etag.starts_with('"') && etag.ends_with('"'));
        assert_eq!(lasting(&answer), expected(file, &length, etag), "{file:?}");
        tags.insert(etag.clone());
        let head = ask(&daemon.admin, "HEAD", file.path, &[]).await;
        assert_eq!((head.status, head.bytes.len()), (200, 0));
        assert_eq!(lasting(&head), lasting(&answer), "{file:?}");
        // What a browser says.
        let accepts = [("accept-encoding", "gzip, deflate, br, zstd")];
        let asked = get(&daemon, &format!("{}?again", file.path), &accepts).await;
        assert_eq!(asked.bytes, gzipped);
        for method in ["POST", "PUT", "DELETE"] {
            let refused = ask(&daemon.admin, method, file.path, &[]).await;
            assert_eq!(refused.status, 405, "{method} {file:?}");
            assert_eq!(refused.headers["allow"], "GET,HEAD");
            assert_eq!(refused.headers["cache-control"], "no-store");
        }
    }
    assert_eq!(tags.len(), FILES.len(), "two files have one tag");
    // Under no other name, nor any that a file system would take for one of these.
    for path in [
        "/index.html",
        "/page.js.gz",
        "//",
        "/page.js/",
        "/PAGE.js",
        "/%70age.js",
    ] {
        assert_eq!(get(&daemon, path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_file_that_the_browser_has_is_not_sent_again() {
    let daemon = Daemon::with(&[ADMIN]).await;
    for file in FILES {
        let first = get(&daemon, file.path, &[]).await;
        let etag = first.headers["etag"].as_str();
        let mut kept = lasting(&first);
        // The browser goes on with the headers of the last answer, and so under the same policy.
        kept.retain(|name, _| !name.starts_with("content-") || name.ends_with("-policy"));
        for held in [
            etag.to_owned(),
            format!("W/{etag}"),
            format!("\"old\", {etag}"),
            "*".to_owned(),
        ] {
            for method in ["GET", "HEAD"] {
                let asked = [("if-none-match", held.as_str())];
                let answer = ask(&daemon.admin, method, file.path, &asked).await;
                assert_eq!((answer.status, answer.bytes.len()), (304, 0), "{held}");
                assert_eq!(lasting(&answer), kept, "{method} {file:?}");
            }
        }
        let stale = get(&daemon, file.path, &[("if-none-match", "\"old\"")]).await;
        assert_eq!((stale.status, stale.bytes), (200, first.bytes.clone()));
        // The tag is one of the content, whichever daemon answers.
        let other = Daemon::with(&[ADMIN]).await;
        let asked = [("if-none-match", etag)];
        assert_eq!(get(&other, file.path, &asked).await.status, 304);
    }
}

#[tokio::test]
async fn a_client_that_takes_no_gzip_is_told_so() {
    let daemon = Daemon::with(&[ADMIN]).await;
    for file in FILES {
        for accepts in ["identity", "gzip;q=0", "br, *;q=0", ""] {
            let asked = [("accept-encoding", accepts), ("if-none-match", "*")];
            let answer = get(&daemon, file.path, &asked).await;
            assert_eq!(answer.status, 406, "{accepts} {file:?}");
            assert!(answer.body.contains("Accept-Encoding"), "{}", answer.body);
            assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
            assert_eq!(answer.headers["vary"], "accept-encoding");
            assert!(!answer.headers.contains_key("content-encoding"));
            let head = ask(&daemon.admin, "HEAD", file.path, &asked).await;
            assert_eq!((head.status, head.bytes.len()), (406, 0));
        }
    }
}

#[tokio::test]
async fn http_2_serves_the_files_alike() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let url = format!("http://{}/", daemon.admin);
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    let (etag, length) = (answer.headers()["etag"].clone(), answer.content_length());
    assert_eq!(answer.headers()["content-security-policy"], POLICY);
    let body = answer.bytes().await.unwrap();
    assert_eq!(body, FILES[0].gzipped());
    assert_eq!(length, Some(body.len() as u64));
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], body.len().to_string());
    let again = client.get(&url).header("if-none-match", etag).send();
    let again = again.await.unwrap();
    assert_eq!(again.status(), 304);
    assert!(!again.headers().contains_key("content-length"));
    assert_eq!(again.headers()["content-security-policy"], POLICY);
}

#[tokio::test]
async fn a_link_leads_to_the_page_and_nothing_else_elsewhere_does() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let admin = &daemon.admin;
    let followed = get(&daemon, "/", &LINK).await;
    assert_eq!(followed.status, 200);
    assert_eq!(followed.bytes, FILES[0].gzipped());
    assert!(!followed.headers.keys().any(|it| it.starts_with("access-")));
    for path in [
        "/debug/config",
        "/metrics",
        "/livez",
        "/page.js",
        "/nothing",
    ] {
        assert_eq!(get(&daemon, path, &LINK).await.status, 403, "{path}");
    }
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(ask(admin, method, "/", &LINK).await.status, 403, "{method}");
    }
    let site = LINK[0];
    for file in FILES {
        for foreign in [
            &[("host", "evil.example")][..],
            &[("host", "evil.example"), site, LINK[1], LINK[2]],
            &[("origin", "https://evil.example")],
            &[("origin", "https://evil.example"), site, LINK[1], LINK[2]],
            &[site],
            &[site, LINK[2]],
            &[
                site,
                ("sec-fetch-mode", "no-cors"),
                ("sec-fetch-dest", "script"),
            ],
            &[
                site,
                ("sec-fetch-mode", "no-cors"),
                ("sec-fetch-dest", "style"),
            ],
            &[
                site,
                ("sec-fetch-mode", "no-cors"),
                ("sec-fetch-dest", "image"),
            ],
            &[site, LINK[1], ("sec-fetch-dest", "iframe")],
            &[site, LINK[1], ("sec-fetch-dest", "embed")],
        ] {
            let answer = get(&daemon, file.path, foreign).await;
            assert_eq!(answer.status, 403, "{file:?} {foreign:?}");
            assert!(!answer.headers.contains_key("content-encoding"));
        }
        // What the page loads of its own.
        let own = [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "cors"),
        ];
        assert_eq!(get(&daemon, file.path, &own).await.status, 200);
    }
}

#[tokio::test]
async fn pages_of_allowed_origins_import_the_element() {
    const OPS: &str = "https://ops.example.com";
    let daemon = Daemon::with(&[ADMIN, ("admin.cors_origins", OPS)]).await;
    // What a browser says where a page imports a module of another site.
    let import = [
        ("origin", OPS),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-dest", "script"),
    ];
    for path in ["/ringfence-log.js", "/log.js", "/shared.js", "/common.js"] {
        let answer = get(&daemon, path, &import).await;
        assert_eq!(answer.status, 200, "{path}");
        let etag = answer.headers["etag"].as_str();
        let held = [&import[..], &[("if-none-match", etag)]].concat();
        let again = get(&daemon, path, &held).await;
        assert_eq!(again.status, 304);
        for answer in [&answer, &again] {
            assert_eq!(answer.headers["access-control-allow-origin"], OPS);
            assert_eq!(answer.headers["vary"], "accept-encoding, origin");
            // Modules are fetched with CORS, which this header has no say in.
            let policy = &answer.headers["cross-origin-resource-policy"];
            assert_eq!(policy, "same-origin");
        }
        // As a plain script, which any page may load unread, it is not to be had.
        let script = get(&daemon, path, &[import[1], ("sec-fetch-mode", "no-cors")]).await;
        assert_eq!(script.status, 403);
    }
}

#[tokio::test]
async fn the_files_are_open_and_calls_want_a_credential() {
    let (daemon, _alpha, _beta, _folder) = two("", "", &[ADMIN]).await;
    for file in FILES {
        assert_eq!(get(&daemon, file.path, &[]).await.status, 200);
        // A credential is not looked at where none is wanted.
        let guess = [("authorization", "Bearer guess")];
        assert_eq!(get(&daemon, file.path, &guess).await.status, 200);
    }
    assert_eq!(get(&daemon, "/debug/config", &[]).await.status, 401);
    let call = ("content-type", "application/grpc-web+proto");
    for path in ["/ringfence.v1.RunService/ListRuns", "/", "/page.js"] {
        let answer = ask(&daemon.admin, "POST", path, &[call]).await;
        assert_eq!(answer.headers["grpc-status"], "16", "{path}");
    }
    let bearer = format!("Bearer {}", token("a"));
    let known = [call, ("authorization", bearer.as_str())];
    let list = ask(
        &daemon.admin,
        "POST",
        "/ringfence.v1.RunService/ListRuns",
        &known,
    )
    .await;
    assert_ne!(
        list.headers.get("grpc-status").map(String::as_str),
        Some("16")
    );
}

#[tokio::test]
async fn a_listener_without_its_page_is_as_it_was() {
    let daemon = Daemon::with(&[ADMIN, ("admin.page", "false")]).await;
    for file in FILES {
        let answer = get(&daemon, file.path, &[]).await;
        assert_eq!(answer.status, 404, "{file:?}");
        assert!(answer.body.contains("there are /livez, /readyz, /metrics"));
    }
    assert_eq!(get(&daemon, "/", &LINK).await.status, 404);
    let (tenants, _alpha, _beta, _folder) = two("", "", &[ADMIN, ("admin.page", "false")]).await;
    assert_eq!(get(&tenants, "/", &[]).await.status, 401);
    // With it, whoever asks for something else is told where it is.
    let daemon = Daemon::with(&[ADMIN, ("admin.read_only", "true")]).await;
    let told = get(&daemon, "/nothing", &[]).await;
    assert_eq!(told.status, 404);
    assert!(
        told.body
            .contains("there are / (a page for browsers), /livez")
    );
    // A listener that only answers questions has it as any other does.
    for file in FILES {
        assert_eq!(get(&daemon, file.path, &[]).await.bytes, file.gzipped());
    }
}

/// Starts the program with `args`, and returns the URLs of pages that its log tells until it
/// serves, with the addresses of its admin listener. `look` is called while it serves.
fn pages_told(args: &[&str], look: impl FnOnce(&[String])) -> (Vec<String>, Vec<String>) {
    let mut daemon = ringfence()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut pages, mut admin) = (Vec::new(), Vec::new());
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let has_served = log.by_ref().map_while(Result::ok).any(|line| {
        let told = |key: &str| Some(line.split_once(key)?.1.trim_end().to_owned());
        pages.extend(told(" page="));
        admin.extend(told(" admin="));
        line.ends_with(" serving")
    });
    if has_served {
        look(&pages);
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(has_served, "it ended before it served");
    (pages, admin)
}

#[test]
fn the_start_tells_where_the_page_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opens = |pages: &[String]| {
        for page in pages {
            let (host, path) = page
                .strip_prefix("http://")
                .unwrap()
                .split_at(page.len() - 8);
            let answer = runtime.block_on(ask(host, "GET", path, &[]));
            assert_eq!(answer.bytes, FILES[0].gzipped(), "{page}");
        }
    };
    let folder = TempDir::new().unwrap();
    let socket = format!("unix:{}", folder.path().join("admin").display());
    // The flag wins over the setting, and may be repeated.
    let flags = ["--admin-listen", "127.0.0.1:0", "--admin-listen", &socket];
    let overridden = ["--set", "admin.listen=[\"127.0.0.1:1\"]"];
    let (pages, admin) = pages_told(&[&overridden[..], &flags[..]].concat(), opens);
    assert_eq!(admin.len(), 2, "{admin:?}");
    assert_eq!(admin[1], socket);
    assert_eq!(pages, [format!("http://{}/", admin[0])]);
    // Where it is not served, nobody is sent there.
    let off = [&flags[..2], &["--set", "admin.page=false"]].concat();
    let (pages, admin) = pages_told(&off, opens);
    assert_eq!((pages.len(), admin.len()), (0, 1));
    let (pages, admin) = pages_told(&["--admin-listen", "0.0.0.0:0"], opens);
    assert_eq!((pages.len(), admin.len()), (0, 1));
    assert_eq!(pages_told(&[], opens), (vec![], vec![]));
    // Others reach it, and `localhost` is a name that it answers to.
    let open = ["--set", "server.insecure_listen=true"];
    let (pages, admin) = pages_told(
        &[&["--admin-listen", "0.0.0.0:0"], &open[..]].concat(),
        opens,
    );
    let port = admin[0].rsplit_once(':').unwrap().1;
    assert_eq!(pages, [format!("http://localhost:{port}/")]);
}

#[test]
fn all_that_was_built_is_embedded_and_it_is_small() {
    let built = std::fs::read_dir("web/dist").unwrap();
    let built: BTreeSet<String> = built
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let served = FILES.map(|file| format!("{}.gz", file.name));
    assert_eq!(built, BTreeSet::from(served), "the files of web/dist");
    let bytes: usize = FILES.iter().map(|file| file.gzipped().len()).sum();
    assert!(bytes <= MAX_BYTES, "the files have {bytes} bytes");
    for file in FILES {
        assert!(!file.text().is_empty(), "{file:?}");
    }
}

/// The values of an attribute in a document, with or without quotes.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let at = html.match_indices(name).map(|(at, _)| html.split_at(at));
    let given = at.filter_map(|(before, after)| {
        let value = after[name.len()..].strip_prefix('=')?;
        before.ends_with(char::is_whitespace).then_some(value)
    });
    given
        .map(|value| match value.chars().next() {
            Some(quote @ ('"' | '\'')) => value[1..].split(quote).next().unwrap(),
            _ => value.split([' ', '\n', '>']).next().unwrap(),
        })
        .collect()
}

#[test]
fn the_document_refers_to_what_is_served_and_to_nothing_else() {
    // By names alone, so that they hold under any path that a proxy has before them.
    let names = FILES.map(|file| file.name);
    let html = FILES[0].text();
    let mut referred = BTreeSet::new();
    for reference in ["src", "href"].iter().flat_map(|it| attributes(&html, it)) {
        let name = reference.strip_prefix("./").unwrap_or(reference);
        assert!(names.contains(&name) && name != "index.html", "{reference}");
        referred.insert(name);
    }
    for name in ["page.js", "page.css", "icon.svg"] {
        assert!(referred.contains(name), "the document does without {name}");
    }
    // What its policy would refuse is not there.
    for script in html.split("<script").skip(1) {
        let tag = script.split('>').next().unwrap();
        assert!(tag.contains(" src="), "an inline script:{script}");
    }
    for refused in ["<style", "<base", "<form", "<iframe", "http-equiv"] {
        assert!(!html.contains(refused), "{refused}");
    }
    for attribute in ["style", "onload", "onerror", "onclick"] {
        assert!(attributes(&html, attribute).is_empty(), "{attribute}");
    }
    // And modules import each other.
    let mut imports = 0;
    for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
        let text = file.text();
        for quote in ['"', '\''] {
            let parts = text.split(quote).filter(|it| it.starts_with("./"));
            for part in parts.filter(|it| it.ends_with(".js")) {
                assert!(names.contains(&&part[2..]), "{} imports {part}", file.name);
                imports += 1;
            }
        }
    }
    assert!(
        imports > 0,
        "no module imports another: was shared.js left out?"
    );
}
