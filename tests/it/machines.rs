//! A start and a run on machines as operators have them: users without a name, roots that cannot be written, hosts whose
//! trusted certificates lie elsewhere or nowhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::machine::{
    FS_GROUP, Machine, USER, beside, is_root, open_folder, runs_hello, set, starts,
};
use crate::process::{Served, ringfence};

/// Of OpenShift, which gives each project a range of its own: no name, no home, group 0.
const ARBITRARY: u32 = 1_000_720_000;

/// A module of about so many bytes that says nothing.
fn padded(bytes: usize) -> Vec<u8> {
    let mut text = b"(module (func (export \"_start\")))".to_vec();
    text.resize(text.len() + bytes, b' ');
    text
}

/// Loads a module of about so many bytes, and runs it.
#[track_caller]
fn loads_and_runs(daemon: &Served, bytes: usize) {
    let loaded = beside(
        daemon,
        &["load", "--server", &daemon.addr, "-"],
        &padded(bytes),
    );
    assert!(loaded.status.success(), "{bytes}: {loaded:?}");
    let digest = String::from_utf8(loaded.stdout).unwrap();
    let ran = beside(
        daemon,
        &["run", "--server", &daemon.addr, digest.trim()],
        b"",
    );
    assert!(ran.status.success(), "{bytes}: {ran:?}");
}

#[test]
fn with_nothing_to_write_to_it_takes_modules_of_any_size() {
    if !is_root() {
        return;
    }
    let users = [
        (Machine::default(), 5 << 20),
        (Machine::default().user(USER, USER, &[]), (64 << 20) - 100),
        (Machine::default().user(ARBITRARY, 0, &[]), 5 << 20),
    ];
    for (machine, most) in users {
        let mut daemon = machine.read_only().serve(&[]);
        runs_hello(&daemon, &daemon.addr);
        // In one message, past what is put together in memory, and as much as there may be.
        for bytes in [100, 3 << 20, most] {
            loads_and_runs(&daemon, bytes);
        }
        let log = daemon.drain_log();
        assert_eq!(daemon.end().0, 0);
        let log = log.join().unwrap();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn with_nothing_to_write_to_it_says_where_modules_are_that_arrive() {
    if !is_root() {
        return;
    }
    for spool in ["/tmp", "/nowhere", "/proc"] {
        let mut command = Machine::default().read_only().command();
        let set = format!("store.spool={spool}");
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", &set]);
        let told = starts(command);
        let line = told
            .lines()
            .find(|line| line.contains("store.spool cannot be written"));
        let line = line.unwrap_or_else(|| panic!("{told}"));
        assert!(
            line.contains("held in memory") && line.contains(&format!("dir={spool}")),
            "{line}"
        );
    }
}

#[test]
fn a_user_without_a_name_starts_it_and_runs() {
    if !is_root() {
        return;
    }
    let volume = open_folder(0o755);
    // OpenShift gives volumes to the project's group, which the user is in besides group 0.
    set(volume.path(), 0o2775, 0, FS_GROUP);
    let at = |name: &str| volume.path().join(name).display().to_string();
    let settings = [
        format!("store.url=file://{}", at("store")),
        format!("artifacts.dir={}", at("code")),
        format!("artifacts.key_file={}", at("key")),
        format!("telemetry.audit_file={}", at("audit")),
        "hardening.mode=require".to_owned(),
    ];
    let args: Vec<&str> = settings
        .iter()
        .flat_map(|it| ["--set", it.as_str()])
        .collect();
    let machine = Machine::default()
        .unshare("--mount")
        .user(ARBITRARY, 0, &[FS_GROUP]);
    for home in ["/", "/nowhere", ""] {
        let mut command = machine.command();
        command.env("HOME", home);
        let daemon = Served::of(command, &args);
        runs_hello(&daemon, &daemon.addr);
        loads_and_runs(&daemon, 3 << 20);
        assert_eq!(daemon.end().0, 0, "{home}");
    }
}

#[test]
fn it_starts_where_its_directory_is_gone() {
    if !is_root() {
        return;
    }
    let machine =
        Machine::default().first("mkdir /tmp/gone.$$ && cd /tmp/gone.$$ && rmdir /tmp/gone.$$");
    let daemon = machine.serve(&[]);
    runs_hello(&daemon, &daemon.addr);
    loads_and_runs(&daemon, 3 << 20);
    assert_eq!(daemon.end().0, 0);
    let told = machine.refuses(&["--config", "relative.toml"]);
    assert!(told.contains("--config = relative.toml"), "{told}");
}

#[test]
fn a_path_that_is_to_be_read_and_is_not_there_is_told_by_name() {
    let mut command = ringfence();
    command.args(["serve", "--listen", "127.0.0.1:0", "--set"]);
    command.arg("hardening.read=[\"/nowhere/at/all\"]");
    let told = starts(command);
    assert!(
        told.contains("hardening.read") && told.contains("/nowhere/at/all"),
        "{told}"
    );
}

/// A server of a JWK set, by TLS, whose certificate is of an authority of its own.
struct Authority {
    /// The authority, in PEM.
    pem: String,
    addr: String,
    config: Arc<ServerConfig>,
    listener: TcpListener,
}

impl Authority {
    fn new() -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = own.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Self {
            pem: own.cert.pem(),
            addr: format!("https://localhost:{port}/keys"),
            config: Arc::new(config),
            listener,
        }
    }

    fn settings(&self) -> [String; 4] {
        [
            format!("auth.jwt.jwks={}", self.addr),
            "auth.jwt.issuer=i".to_owned(),
            "auth.jwt.audience=a".to_owned(),
            "auth.open_health=true".to_owned(),
        ]
    }

    /// Answers one request, of a client that trusts this authority.
    #[track_caller]
    fn is_asked(&self) {
        let (stream, _) = self.listener.accept().unwrap();
        let session = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        let mut tls = StreamOwned::new(session, stream);
        let mut request = vec![0; 4096];
        let n = tls.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..n]).into_owned();
        assert!(request.starts_with("GET /keys "), "{request}");
        let body = "{\"keys\":[]}";
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        tls.write_all(answer.as_bytes()).unwrap();
        tls.flush().unwrap();
    }
}

fn set_all(settings: &[String]) -> Vec<&str> {
    settings
        .iter()
        .flat_map(|it| ["--set", it.as_str()])
        .collect()
}

/// A machine whose /etc/ssl is what is made in `etc`, and that has no other authorities.
fn with_etc_ssl(etc: &Path) -> Option<Machine> {
    if !is_root() {
        return None;
    }
    if !Path::new("/etc/ssl").is_dir() {
        eprintln!("\n*** SKIPPED: there is no /etc/ssl to put another in the place of\n");
        return None;
    }
    let hide = "for d in /etc/pki /usr/share/ca-certificates; do [ ! -d $d ] || mount -t tmpfs none $d; done";
    let own = format!("mount --bind {} /etc/ssl", etc.display());
    Some(Machine::default().unshare("--mount").first(hide).first(own))
}

#[test]
fn authorities_are_found_where_links_lead_to() {
    let authority = Authority::new();
    let settings = authority.settings();
    // As openSUSE has them: a link to a folder, and a file that is a link, out of /etc.
    let elsewhere = open_folder(0o755);
    let pem = elsewhere.path().join("pem");
    std::fs::create_dir(&pem).unwrap();
    std::fs::write(pem.join("own.pem"), &authority.pem).unwrap();
    std::fs::write(elsewhere.path().join("ca-bundle.pem"), &authority.pem).unwrap();
    // As Debian has those that were added: links in a folder to files elsewhere.
    let links = open_folder(0o755);
    std::os::unix::fs::symlink(pem.join("own.pem"), links.path().join("own.pem")).unwrap();
    for (name, target) in [
        ("certs", pem.as_path()),
        ("ca-bundle.pem", &elsewhere.path().join("ca-bundle.pem")),
        ("certs", links.path()),
    ] {
        let etc = open_folder(0o755);
        std::os::unix::fs::symlink(target, etc.path().join(name)).unwrap();
        let Some(machine) = with_etc_ssl(etc.path()) else {
            return;
        };
        let machine = machine.user(USER, USER, &[]);
        // Beside which nothing of the folder for temporary files is let in.
        let args = [&set_all(&settings)[..], &["--set", "store.spool=/nowhere"]].concat();
        let daemon = machine.serve(&args);
        authority.is_asked();
        assert_eq!(daemon.end().0, 0, "{}", target.display());
    }
}

#[test]
fn authorities_are_those_that_the_environment_names() {
    if !is_root() {
        return;
    }
    let authority = Authority::new();
    let settings = authority.settings();
    let args = [&set_all(&settings)[..], &["--set", "store.spool=/nowhere"]].concat();
    let dir = open_folder(0o755);
    let file = dir.path().join("own.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    let linked = open_folder(0o755);
    std::os::unix::fs::symlink(&file, linked.path().join("linked.pem")).unwrap();
    let link = linked.path().join("linked.pem").display().to_string();
    let both = format!("/nowhere:{}", dir.path().display());
    for (name, value) in [
        ("SSL_CERT_FILE", file.display().to_string()),
        ("SSL_CERT_FILE", link),
        ("SSL_CERT_DIR", dir.path().display().to_string()),
        ("SSL_CERT_DIR", linked.path().display().to_string()),
        ("SSL_CERT_DIR", both),
    ] {
        let mut command = Machine::default().user(USER, USER, &[]).command();
        command.env(name, &value);
        let daemon = Served::of(command, &args);
        authority.is_asked();
        assert_eq!(daemon.end().0, 0, "{name}={value}");
    }
}

/// A server of plain HTTP that has nothing, and says so as S3 does.
fn plain_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            let _ = head.read_line(&mut request);
            let mut line = String::new();
            while head.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let is_object = request.contains("/bucket/") && !request.contains("list-type");
            if is_object {
                let body = "<Error><Code>NoSuchKey</Code></Error>";
                let answer = format!(
                    "HTTP/1.1 404 Not Found\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes());
                continue;
            }
            let body = "<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{addr}")
}

#[test]
fn a_host_without_authorities_needs_none_for_plain_http() {
    let nothing = open_folder(0o755);
    let Some(machine) = with_etc_ssl(nothing.path()) else {
        return;
    };
    let plain = plain_server();
    let with = |environment: &[(&str, &str)]| {
        let mut command = machine.command();
        command.envs(environment.iter().copied());
        command
    };
    let s3 = |endpoint: &str| {
        with(&[
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "us-east-1"),
        ])
    };
    let daemon = Served::of(s3(&plain), &["--set", "store.url=s3://bucket/prefix"]);
    runs_hello(&daemon, &daemon.addr);
    drop(daemon);
    let jwks = format!("auth.jwt.jwks={plain}");
    let jwt = [
        "auth.jwt.issuer=i",
        "auth.jwt.audience=a",
        "auth.open_health=true",
    ];
    let jwt = jwt.iter().flat_map(|it| ["--set", it]);
    let jwt: Vec<&str> = ["--set", jwks.as_str()].into_iter().chain(jwt).collect();
    assert_eq!(Served::of(with(&[]), &jwt).end().0, 0);
    // Where it is needed, that is what is told.
    let refused = |mut command: Command, args: &[&str]| {
        let listen = ["serve", "--listen", "127.0.0.1:0"];
        let output = command.args(listen).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let authority = Authority::new();
    let settings = authority.settings();
    let told = [
        (
            refused(
                s3("https://127.0.0.1:1"),
                &["--set", "store.url=s3://bucket/prefix"],
            ),
            "store.url",
        ),
        (refused(with(&[]), &set_all(&settings)), "auth.jwt.jwks"),
    ];
    for (told, key) in told {
        for part in [
            key,
            "certificates of authorities",
            "/etc/ssl/certs",
            "SSL_CERT_FILE",
        ] {
            assert!(told.contains(part), "no {part} in {told}");
        }
    }
}

#[test]
fn a_host_without_authorities_pulls_nothing_and_says_why() {
    let nothing = open_folder(0o755);
    let Some(machine) = with_etc_ssl(nothing.path()) else {
        return;
    };
    for registry in ["localhost:1", "http://localhost:1"] {
        let registries = format!("oci.registries=[\"{registry}\"]");
        let mut daemon = machine.serve(&["--set", &registries]);
        let log = daemon.drain_log();
        let load = ["load", "--server", &daemon.addr, "oci://localhost:1/a/b:c"];
        let told = beside(&daemon, &load, b"").stderr;
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains("STORE_UNAVAILABLE"), "{told}");
        runs_hello(&daemon, &daemon.addr);
        assert_eq!(daemon.end().0, 0);
        let log = log.join().unwrap();
        for part in [
            "oci.registries",
            "certificates of authorities",
            "/etc/ssl/certs",
        ] {
            assert!(log.contains(part), "no {part} in {log}");
        }
        assert!(!log.contains("panic"), "{log}");
    }
}
