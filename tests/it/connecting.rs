//! How commands reach a daemon: addresses, names in certificates, and one line that says why there is no daemon there.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::SanType;
use tempfile::TempDir;

use crate::auth::{Authority, write};
use crate::cli::kit;
use crate::process::{Served, ringfence};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `health` says of `server`: its exit code, and its line.
fn health(server: &str, more: &[&str]) -> (i32, String) {
    let mut command = ringfence();
    command.args(["health", "--server", server]).args(more);
    judged(&command.output().unwrap())
}

fn judged(output: &Output) -> (i32, String) {
    let line = match output.status.success() {
        true => text(&output.stdout),
        false => text(&output.stderr),
    };
    assert_eq!(line.lines().count(), 1, "{line}");
    (output.status.code().unwrap(), line)
}

#[track_caller]
fn serving(server: &str, more: &[&str]) {
    let (code, line) = health(server, more);
    assert!(
        code == 0 && line.starts_with("serving"),
        "{server} {more:?}: {line}"
    );
}

#[track_caller]
fn unreachable(server: &str, more: &[&str], why: &[&str]) {
    let (code, line) = health(server, more);
    assert_eq!(code, 125, "{line}");
    for why in why {
        assert!(line.contains(why), "{server} {more:?}: {line}");
    }
}

#[test]
fn every_spelling_of_an_address_reaches_it_and_what_is_none_is_told() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listen = format!("unix:{}", socket.display());
    let _unix = Served::start(&["--listen", &listen]);
    let served = Served::start(&[]);
    let (_, port) = served.addr.split_once(':').unwrap();
    for spelling in [
        format!("127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}"),
        format!("HTTP://127.0.0.1:{port}/"),
        format!("dns:///127.0.0.1:{port}"),
        format!("ipv4:127.0.0.1:{port}"),
        format!(" 127.0.0.1:{port}\n"),
        listen.clone(),
        format!("unix://{}", socket.display()),
    ] {
        serving(&spelling, &[]);
    }
    for (server, why) in [
        ("", "is empty"),
        ("50051", "a number where a host belongs"),
        ("127.0.0.1:65536", "from 1 to 65535"),
        ("grpc://127.0.0.1", "has the unknown scheme \"grpc\""),
        (socket.to_str().unwrap(), "written \"unix:PATH\""),
        ("::1:50051", "\"[::1]:50051\""),
        ("https://a:secret@127.0.0.1", "--token-file"),
    ] {
        let (code, line) = health(server, &[]);
        assert_eq!(code, 125, "{line}");
        assert!(
            line.contains(why) && line.contains("--server (RINGFENCE_SERVER)"),
            "{line}"
        );
        assert!(!line.contains("secret"), "{line}");
    }
    // As JSON where that is wanted.
    let output = ringfence()
        .args(["health", "--output", "json", "--server", "50051"])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        told["error"]["message"]
            .as_str()
            .unwrap()
            .contains("a number where")
    );
}

fn output_of(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[test]
fn an_address_of_ipv6_needs_no_brackets_where_it_has_no_port() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("\n*** SKIPPED: this host has no IPv6\n");
        return;
    }
    let served = Served::start(&["--listen", "[::1]:0"]);
    assert!(served.addr.starts_with("[::1]:"), "{}", served.addr);
    for scheme in ["", "http://", "dns:///", "ipv6:"] {
        serving(&format!("{scheme}{}", served.addr), &[]);
    }
    // The default port, at which nobody may be: the address was understood.
    let (_, line) = health("::1", &["--output", "json"]);
    assert!(
        line.contains("[::1]:50051") || line.contains("\"status\""),
        "{line}"
    );
}

/// Commands that ask a daemon, each with what it needs.
fn client_commands(module: &str) -> Vec<Vec<&str>> {
    let nobody = "00000000000000000000000000000000.here";
    vec![
        vec!["health"],
        vec!["ps"],
        vec!["run", module, "hello"],
        vec!["run", "--detach", module, "hello"],
        vec!["load", module],
        vec!["modules", "ls"],
        vec!["inspect", nobody],
        vec!["kill", nobody],
        vec!["attach", nobody],
        vec!["logs", nobody],
        vec!["rm", nobody],
    ]
}

#[test]
fn every_command_takes_the_daemon_from_the_environment() {
    let kit = kit();
    let served = Served::start(&["--set", "server.instance=here"]);
    for args in client_commands(&kit) {
        // A newline at the end is how files become variables.
        let output = ringfence()
            .args(&args)
            .env("RINGFENCE_SERVER", format!("{}\n", served.addr))
            .output()
            .unwrap();
        let said = text(&output.stderr);
        let reached = output.status.success() || said.contains("RUN_NOT_FOUND");
        assert!(reached, "{args:?}: {said}");
        // A flag goes before it.
        let mut flagged = args.clone();
        let at = if args[0] == "modules" { 2 } else { 1 };
        flagged.splice(at..at, ["--server", served.addr.as_str()]);
        let output = ringfence()
            .args(&flagged)
            .env("RINGFENCE_SERVER", "127.0.0.1:1")
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(!said.contains("cannot reach"), "{flagged:?}: {said}");
        // Nobody is there: the variable was read.
        let output = ringfence()
            .args(&args)
            .env("RINGFENCE_SERVER", "127.0.0.1:1")
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(
            said.contains("cannot reach the daemon at 127.0.0.1:1: nothing listens"),
            "{args:?}: {said}"
        );
    }
    // The daemon's own settings share the prefix, and know that these are none.
    for command in [&["config", "check"][..], &["config", "show"]] {
        let output = ringfence()
            .args(command)
            .env("RINGFENCE_SERVER", &served.addr)
            .env("RINGFENCE_TLS_SERVER_NAME", "ringfence")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

#[test]
fn variables_that_are_empty_or_blank_are_as_good_as_none() {
    let served = Served::start(&[]);
    for blank in ["", " ", "\n"] {
        let set = |command: &mut Command| {
            for name in [
                "RINGFENCE_SERVER",
                "RINGFENCE_TOKEN_FILE",
                "RINGFENCE_TLS_CA",
                "RINGFENCE_TLS_SERVER_NAME",
            ] {
                command.env(name, blank);
            }
        };
        let mut run = ringfence();
        set(&mut run);
        let output = output_of(run.args(["run", "examples/hello.wat"]));
        assert_eq!(
            (text(&output.stdout), text(&output.stderr)),
            ("Hello from inside the fence.\n".to_owned(), String::new()),
            "by a daemon of its own"
        );
        let mut detached = ringfence();
        set(&mut detached);
        let output = output_of(detached.args(["run", "--detach", "examples/hello.wat"]));
        assert!(text(&output.stderr).contains("--server"), "there is none");
        let mut health = ringfence();
        set(&mut health);
        let output = output_of(health.args(["health", "--server", &served.addr]));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

/// A daemon with TLS, and files for its clients.
struct Encrypted {
    dir: TempDir,
    served: Served,
    ca: PathBuf,
}

impl Encrypted {
    /// With a certificate for `names`, and settings of its own.
    fn start(names: &[&str], set: &[&str]) -> Self {
        let servers = Authority::new("servers");
        Self::showing(&servers, &servers.issue(names), set)
    }

    fn showing(servers: &Authority, shown: &(String, String), set: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let cert = write(&dir, "cert.pem", &shown.0);
        let key = write(&dir, "key.pem", &shown.1);
        let ca = write(&dir, "ca.pem", &servers.pem());
        let mut args = vec![
            "--set".to_owned(),
            format!("tls.cert={}", cert.display()),
            "--set".to_owned(),
            format!("tls.key={}", key.display()),
        ];
        args.extend(
            set.iter()
                .flat_map(|it| ["--set".to_owned(), (*it).to_owned()]),
        );
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let served = Served::start(&args);
        Self { dir, served, ca }
    }

    fn addr(&self) -> &str {
        &self.served.addr
    }

    fn ca(&self) -> [&str; 2] {
        ["--tls-ca", self.ca.to_str().unwrap()]
    }
}

#[test]
fn a_certificate_is_checked_for_the_name_that_is_given() {
    let daemon = Encrypted::start(
        &["ringfence.default.svc", "ringfence"],
        &[
            "server.instance=here",
            "server.allowed_authorities=[\"ringfence\", \"ringfence.default.svc\"]",
        ],
    );
    let ca = daemon.ca();
    let with = |more: &[&'static str]| [&ca[..], more].concat();
    // Requests are addressed to it too: no other host is let in here.
    for name in [
        "ringfence",
        "ringfence.default.svc",
        "Ringfence.Default.Svc.",
    ] {
        serving(daemon.addr(), &with(&["--tls-server-name", name]));
        let output = ringfence()
            .args(["health", "--server", daemon.addr()])
            .env("RINGFENCE_TLS_CA", &daemon.ca)
            .env("RINGFENCE_TLS_SERVER_NAME", format!("{name}\n"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    unreachable(
        daemon.addr(),
        &with(&[]),
        &[
            "its certificate is for \"ringfence.default.svc\", \"ringfence\", not for \"127.0.0.1\"",
            "--tls-server-name",
        ],
    );
    unreachable(
        daemon.addr(),
        &with(&["--tls-server-name", "other"]),
        &["not for \"other\""],
    );
    for name in ["", "a b", "host:1", "https://ringfence"] {
        let (code, line) = health(daemon.addr(), &with(&["--tls-server-name", name]));
        assert!(
            code == 125 && line.contains("RINGFENCE_TLS_SERVER_NAME) is"),
            "{line}"
        );
    }
    // Each client command has it.
    let kit = kit();
    for mut args in client_commands(&kit) {
        let at = if args[0] == "modules" { 2 } else { 1 };
        let more = [
            &["--server", daemon.addr()],
            &ca[..],
            &["--tls-server-name", "ringfence"],
        ];
        args.splice(at..at, more.concat());
        let output = ringfence().args(&args).output().unwrap();
        let said = text(&output.stderr);
        assert!(
            output.status.success() || said.contains("RUN_NOT_FOUND"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn an_address_can_be_what_a_certificate_is_for() {
    let servers = Authority::new("servers");
    let names = [
        SanType::IpAddress("127.0.0.1".parse().unwrap()),
        SanType::IpAddress("fd00::1".parse().unwrap()),
    ];
    let shown = servers.issue_common("ignored", &names);
    let daemon = Encrypted::showing(&servers, &shown, &[]);
    serving(daemon.addr(), &daemon.ca());
    let url = format!("https://{}/", daemon.addr());
    serving(&url, &daemon.ca());
    for name in ["fd00::1", "[fd00::1]"] {
        let more = [&daemon.ca()[..], &["--tls-server-name", name]].concat();
        serving(daemon.addr(), &more);
    }
    let more = [&daemon.ca()[..], &["--tls-server-name", "localhost"]].concat();
    unreachable(
        daemon.addr(),
        &more,
        &["\"127.0.0.1\"", "\"fd00::1\"", "\"localhost\""],
    );
}

#[test]
fn plaintext_and_tls_that_meet_each_other_say_so() {
    let daemon = Encrypted::start(&["localhost"], &[]);
    let dir = TempDir::new().unwrap();
    for server in [
        daemon.addr().to_owned(),
        format!("http://{}", daemon.addr()),
    ] {
        let told = format!("write \"https://{}\"", daemon.addr());
        unreachable(
            &server,
            &[],
            &["it speaks TLS, but this command speaks plaintext", &told],
        );
    }
    // The same for a command that does not only ask for health, and as JSON.
    let output = ringfence()
        .args(["ps", "--output", "json", "--server", daemon.addr()])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["code"], "UNAVAILABLE");
    assert!(
        told["error"]["message"]
            .as_str()
            .unwrap()
            .contains("it speaks TLS")
    );

    let listen = format!("unix:{}", dir.path().join("s").display());
    let _unix = Served::start(&["--listen", &listen]);
    let plain = Served::start(&[]);
    let told = format!("write \"http://{}\"", plain.addr);
    let speaks = "it speaks plaintext, but this command speaks TLS";
    unreachable(&plain.addr, &daemon.ca(), &[speaks, &told]);
    let url = format!("https://{}", plain.addr);
    unreachable(&url, &daemon.ca(), &[speaks]);
    unreachable(&plain.addr, &["--tls-server-name", "a.example"], &[speaks]);
    // An address that says one thing, and a flag that says another.
    let (code, line) = health(&format!("http://{}", plain.addr), &daemon.ca());
    assert!(
        code == 125 && line.contains("RINGFENCE_TLS_CA) asks for TLS"),
        "{line}"
    );
    // A unix socket is this host's own: what the environment says of TLS is for others.
    serving(&listen, &daemon.ca());
    serving(&listen, &["--tls-server-name", "a.example"]);
}

#[test]
fn a_certificate_that_is_not_taken_says_what_to_do() {
    let servers = Authority::new("servers");
    let daemon = Encrypted::start(&["localhost"], &[]);
    let named = ["--tls-server-name", "localhost"];
    // One of another name, and one that was made anew under the same.
    for stranger in [&Authority::new("strangers"), &servers] {
        let stranger = write(&daemon.dir, "stranger.pem", &stranger.pem());
        let stranger = stranger.to_str().unwrap();
        unreachable(
            daemon.addr(),
            &[&["--tls-ca", stranger], &named[..]].concat(),
            &[
                "from an authority that this command does not trust",
                stranger,
                "RINGFENCE_TLS_CA",
            ],
        );
    }
    let old = Encrypted::showing(
        &servers,
        &servers.issue_until(&["localhost"], Some(2020)),
        &[],
    );
    unreachable(
        old.addr(),
        &[&old.ca()[..], &named].concat(),
        &["expired at 2020-01-01T00:00:00Z", "tls.cert"],
    );
    let early = Encrypted::showing(
        &servers,
        &servers.issue_until(&["localhost"], Some(2090)),
        &[],
    );
    unreachable(
        early.addr(),
        &[&early.ca()[..], &named].concat(),
        &["is not valid before 2089-01-01T00:00:00Z", "clock"],
    );
    for (name, contents, told) in [
        ("empty.pem", "", "holds no certificate in PEM"),
        ("text.pem", "certificates", "holds no certificate in PEM"),
    ] {
        let file = write(&daemon.dir, name, contents);
        let (code, line) = health(daemon.addr(), &["--tls-ca", file.to_str().unwrap()]);
        assert!(
            code == 125 && line.contains(told) && line.contains(name),
            "{line}"
        );
    }
    let (code, line) = health(daemon.addr(), &["--tls-ca", "/nowhere/ca.pem"]);
    assert!(
        code == 125 && line.contains("--tls-ca: cannot read /nowhere/ca.pem"),
        "{line}"
    );
}

#[test]
fn a_client_certificate_that_is_wanted_or_not_taken_says_so() {
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    let dir = TempDir::new().unwrap();
    let ca = write(&dir, "clients.pem", &clients.pem());
    let daemon = Encrypted::start(
        &["localhost"],
        &[&format!("tls.client_ca={}", ca.display())],
    );
    let base = [&daemon.ca()[..], &["--tls-server-name", "localhost"]].concat();
    unreachable(
        daemon.addr(),
        &base,
        &["requires a client certificate", "--tls-cert and --tls-key"],
    );
    let shown = |authority: &Authority, name: &str| {
        let (cert, key) = authority.issue(&[name]);
        let cert = write(&dir, &format!("{name}.pem"), &cert);
        (cert, write(&dir, &format!("{name}.key"), &key))
    };
    let show = |cert: &Path, key: &Path| {
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let more = ["--tls-cert", cert, "--tls-key", key];
        let mut command = ringfence();
        command
            .args(["health", "--server", daemon.addr()])
            .args(&base);
        judged(&command.args(more).output().unwrap())
    };
    let (cert, key) = shown(&clients, "me");
    let (code, line) = show(&cert, &key);
    assert_eq!(code, 0, "{line}");
    let (other, other_key) = shown(&strangers, "other");
    let (code, line) = show(&other, &other_key);
    assert!(
        code == 125
            && line.contains("does not accept the client certificate")
            && line.contains("tls.client_ca"),
        "{line}"
    );
    let (code, line) = show(&cert, &other_key);
    assert!(
        code == 125 && line.contains("--tls-key is not the key of --tls-cert"),
        "{line}"
    );
    let (code, line) = show(&cert, &cert);
    assert!(
        code == 125 && line.contains("holds no private key in PEM"),
        "{line}"
    );
}

/// A server that says `says` once it was spoken to, and ends the connection.
fn saying(says: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut heard = [0; 4096];
            // Whoever asks may have left.
            let _ = connection.read(&mut heard);
            let _ = connection.write_all(says);
            let _ = connection.shutdown(std::net::Shutdown::Write);
            while connection.read(&mut heard).is_ok_and(|n| n > 0) {}
        }
    });
    addr
}

/// A server of HTTP/2 that answers the first call with 404, and no word of gRPC.
fn without_grpc() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        // Its settings, and that it takes the client's.
        let greeting = b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
        connection.write_all(greeting).unwrap();
        let mut preface = [0; 24];
        connection.read_exact(&mut preface).unwrap();
        loop {
            let mut head = [0; 9];
            if connection.read_exact(&mut head).is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            connection.read_exact(&mut payload).unwrap();
            if head[3] == 1 {
                // Headers that end the stream: 404, of the table of HPACK.
                let answer = b"\0\0\x01\x01\x05\0\0\0\x01\x8d";
                connection.write_all(answer).unwrap();
            }
        }
    });
    addr
}

#[test]
fn what_is_no_daemon_is_told_by_what_it_says() {
    let web = saying(b"HTTP/1.1 400 Bad Request\r\nserver: nginx\r\n\r\n");
    unreachable(
        &web,
        &[],
        &[
            "it speaks HTTP/1 (\"HTTP/1.1 400 Bad Request\")",
            "another server",
        ],
    );
    let mail = saying(b"220 mail.example ESMTP\r\n");
    unreachable(
        &mail,
        &[],
        &["does not speak HTTP/2, and says \"220 mail.example ESMTP\""],
    );
    let short = saying(b"hm");
    unreachable(&short, &[], &["and says \"hm\""]);
    let closing = saying(b"");
    unreachable(
        &closing,
        &[],
        &[
            "closed the connection without sending anything",
            "speaks TLS",
        ],
    );
    let tls = ["--tls-server-name", "a.example"];
    unreachable(
        &web,
        &tls,
        &["HTTP/1 in plaintext", "this command speaks TLS"],
    );
    unreachable(&mail, &tls, &["does not speak TLS, and says \"220 mail"]);
    unreachable(
        &closing,
        &tls,
        &[
            "closed the connection without sending anything",
            "speaks plaintext",
        ],
    );
    let (code, line) = health(&without_grpc(), &[]);
    assert!(
        code == 125 && line.contains("speaks HTTP/2 but not gRPC") && line.contains("404"),
        "{line}"
    );
    // One that begins as it should, and then breaks the rules: an answer to what nobody asked.
    let wrong = saying(b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x8d");
    let (code, line) = health(&wrong, &[]);
    assert!(
        code == 125 && (line.contains("the connection broke") || line.contains("not gRPC")),
        "{line}"
    );
    // One that never says anything: `health` has its own patience.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, line) = health(
        &silent.local_addr().unwrap().to_string(),
        &["--timeout", "200ms"],
    );
    assert!(
        code == 125 && line.contains("did not answer within 200ms (--timeout)"),
        "{line}"
    );
}

#[test]
fn a_place_where_nobody_is_says_so() {
    unreachable(
        "127.0.0.1:1",
        &[],
        &[
            "nothing listens at 127.0.0.1:1",
            "check that the daemon is running",
        ],
    );
    unreachable(
        "https://127.0.0.1:1",
        &["--tls-server-name", "a.example"],
        &["nothing listens"],
    );
    unreachable(
        "nobody.invalid:1",
        &[],
        &["the host \"nobody.invalid\" is not found", "DNS"],
    );

    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let unix = |name: &str| format!("unix:{}", path(name).display());
    unreachable(
        &unix("none"),
        &[],
        &["there is no such socket", "in `listen`"],
    );
    write(&dir, "file", "");
    unreachable(&unix("file"), &[], &["the file there is not a socket"]);
    drop(UnixListener::bind(path("stale")).unwrap());
    unreachable(
        &unix("stale"),
        &[],
        &["nothing listens on this socket any more"],
    );
    let long = format!("unix:/{}", "x".repeat(120));
    let (code, line) = health(&long, &[]);
    assert!(
        code == 125 && line.contains("a path of 121 bytes"),
        "{line}"
    );
}

#[test]
fn a_socket_of_others_says_whose_it_is() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n*** SKIPPED: needs root, to become another user\n");
        return;
    }
    let dir = TempDir::new_in("/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let listen = format!("unix:{}", dir.path().join("s").display());
    let _served = Served::start(&["--listen", &listen]);
    let program = dir.path().join("ringfence");
    std::fs::copy(ringfence().get_program(), &program).unwrap();
    let ask = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65533", "--regid", "65533", "--clear-groups"]);
        let command = command.arg(&program).args(["health", "--server", &listen]);
        judged(&command.current_dir("/").output().unwrap())
    };
    let (code, line) = ask();
    assert!(
        code == 125
            && line.contains(
                "user 65533 may not use this socket (its mode is 0660, and its owner is 0:0)"
            )
            && line.contains("server.socket_mode"),
        "{line}"
    );
    let shut = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(dir.path(), shut).unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::rename(dir.path().join("s"), inner.join("s")).unwrap();
    let shut = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&inner, shut).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65533", "--regid", "65533", "--clear-groups"]);
    let server = format!("unix:{}", inner.join("s").display());
    let command = command.arg(&program).args(["health", "--server", &server]);
    let (code, line) = judged(&command.current_dir("/").output().unwrap());
    assert!(
        code == 125 && line.contains("a folder above it is closed"),
        "{line}"
    );
}

/// What a daemon answers to `said`, all of it.
fn answer(addr: &str, said: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(addr).unwrap();
    connection.write_all(said).unwrap();
    let mut told = Vec::new();
    // One that is reset has been told before.
    let _ = connection.read_to_end(&mut told);
    told
}

#[test]
fn a_client_of_http1_is_answered_in_its_own_words() {
    let served = Served::start(&[]);
    let long = format!(
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n{}",
        "x".repeat(20_000)
    );
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "PUT / HTTP/1.0\r\n\r\n",
        &long,
    ] {
        let told = text(&answer(&served.addr, request.as_bytes()));
        assert!(
            told.starts_with("HTTP/1.1 505 HTTP Version Not Supported\r\n"),
            "{told}"
        );
        assert!(told.contains("gRPC, which is HTTP/2") && told.ends_with("to this port.\n"));
    }
    // What curl makes of it, which leaves in the middle of its own words else.
    if let Ok(output) = Command::new("curl")
        .args(["-sS", &format!("http://{}/", served.addr)])
        .output()
    {
        assert!(
            text(&output.stdout).contains("ringfence health"),
            "{output:?}"
        );
    }
    serving(&served.addr, &[]);
}

/// The log of a daemon that was asked to end.
fn log_of(served: Served) -> String {
    let (code, log) = served.end();
    assert_eq!(code, 0, "{log}");
    log
}

#[test]
fn the_log_tells_who_speaks_another_protocol_by_number_and_each_where_somebody_debugs() {
    let dir = TempDir::new().unwrap();
    let daemon = Encrypted::start(&["localhost"], &["telemetry.log_level=debug"]);
    let plain = Served::start(&["--set", "telemetry.log_level=debug"]);
    for _ in 0..30 {
        let told = answer(daemon.addr(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(told[..3], [21, 3, 3], "an alert of TLS");
        answer(&plain.addr, b"GET / HTTP/1.1\r\n\r\n");
    }
    health(daemon.addr(), &[]);
    health(&plain.addr, &["--tls-server-name", "localhost"]);
    // A certificate that its client does not take is no other protocol, and is told too.
    let strangers = write(&dir, "ca.pem", &Authority::new("strangers").pem());
    health(
        daemon.addr(),
        &[
            "--tls-ca",
            strangers.to_str().unwrap(),
            "--tls-server-name",
            "localhost",
        ],
    );
    let log = log_of(daemon.served);
    let of = |log: &str, what: &str| log.lines().filter(|it| it.contains(what)).count();
    let sum = |log: &str, key: &str| -> u64 {
        let lines = log.lines().filter(|it| it.contains("another protocol"));
        let counts =
            lines.filter_map(|it| it.split_once(key)?.1.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    };
    assert_eq!(sum(&log, "plaintext="), 31, "{log}");
    assert_eq!((sum(&log, "tls="), sum(&log, "http1=")), (0, 0), "{log}");
    let lines = of(&log, "it spoke plaintext to a listener with TLS");
    assert!(
        (1..31).contains(&lines),
        "a few of one peer in a second: {lines}"
    );
    assert!(of(&log, "its TLS handshake failed: ") <= 1);
    assert!(of(&log, "another protocol") <= 10, "{log}");
    let log = log_of(plain);
    assert_eq!((sum(&log, "http1="), sum(&log, "tls=")), (30, 1), "{log}");
    assert_eq!(sum(&log, "plaintext="), 0, "{log}");
}

#[test]
fn the_daemons_own_user_asks_for_health_on_a_socket_whatever_else_is_wanted() {
    let dir = TempDir::new().unwrap();
    let tokens = crate::tenants::tokens_file(&dir, &["default"]);
    let listen = format!("unix:{}", dir.path().join("s").display());
    let served = Served::start(&["--set", &format!("auth.tokens_file={}", tokens.display())]);
    let set = format!("auth.tokens_file={}", tokens.display());
    let _unix = Served::start(&["--listen", &listen, "--set", &set]);
    // Nobody else, and nothing else.
    let (code, line) = health(&served.addr, &[]);
    assert!(
        code == 126 && line.contains("CREDENTIALS_INVALID"),
        "{line}"
    );
    serving(&listen, &[]);
    let output = ringfence()
        .args(["ps", "--server", &listen])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(126), "{output:?}");
    // Who shows something shows something that is valid.
    let wrong = write(&dir, "wrong", "nonsense");
    let (code, line) = health(&listen, &["--token-file", wrong.to_str().unwrap()]);
    assert!(
        code == 126 && line.contains("CREDENTIALS_INVALID"),
        "{line}"
    );
}

#[test]
fn another_user_needs_a_credential_for_health() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n*** SKIPPED: needs root, to become another user\n");
        return;
    }
    let dir = TempDir::new_in("/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let tokens = crate::tenants::tokens_file(&dir, &["default"]);
    let listen = format!("unix:{}", dir.path().join("s").display());
    let set = format!("auth.tokens_file={}", tokens.display());
    let more = [
        "--listen",
        &listen,
        "--set",
        &set,
        "--set",
        "server.socket_mode=0666",
    ];
    let _served = Served::start(&more);
    let program = dir.path().join("ringfence");
    std::fs::copy(ringfence().get_program(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65533", "--regid", "65533", "--clear-groups"]);
    let command = command.arg(&program).args(["health", "--server", &listen]);
    let (code, line) = judged(&command.current_dir("/").output().unwrap());
    assert!(
        code == 126 && line.contains("CREDENTIALS_INVALID"),
        "{line}"
    );
    serving(&listen, &[]);
}
