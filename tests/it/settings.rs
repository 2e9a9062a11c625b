//! Settings as operators write them: in files, variables and flags. Each has the type that its key takes, and each that is
//! refused is told with where it was written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::Output;

use crate::process::ringfence;

/// What `config check` is given.
#[derive(Default)]
struct Given<'a> {
    file: Option<&'a str>,
    variables: &'a [(&'a str, &'a str)],
    flags: &'a [&'a str],
}

struct Told {
    code: i32,
    stdout: String,
    stderr: String,
    /// The file's path.
    file: String,
}

fn ask(what: &str, given: &Given<'_>) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    let mut command = ringfence();
    command.args(["config", what]);
    if let Some(text) = given.file {
        std::fs::write(&file, text).unwrap();
        command.arg("--config").arg(&file);
    }
    for set in given.flags {
        command.args(["--set", set]);
    }
    let output = command
        .envs(given.variables.iter().copied())
        .output()
        .unwrap();
    told(&output, file.display().to_string())
}

fn told(output: &Output, file: String) -> Told {
    Told {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout.clone()).unwrap(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        file,
    }
}

/// No place in our source, no panic.
#[track_caller]
fn is_plain(stderr: &str) {
    for mark in ["src/", ".rs:", "panicked", "figment", "INTERNAL"] {
        assert!(!stderr.contains(mark), "{mark} in {stderr}");
    }
}

/// It is refused, and its message has all `parts`; "FILE" stands for the file's path.
#[track_caller]
fn refused(given: &Given<'_>, parts: &[&str]) {
    let told = ask("check", given);
    assert_eq!(told.code, 1, "{}{}", told.stdout, told.stderr);
    is_plain(&told.stderr);
    for part in parts {
        let part = part.replace("FILE", &told.file);
        assert!(told.stderr.contains(&part), "{part} in {}", told.stderr);
    }
}

/// What is in force then.
#[track_caller]
fn shown(given: &Given<'_>) -> toml::Table {
    let told = ask("show", given);
    assert_eq!(told.code, 0, "{}", told.stderr);
    toml::from_str(&told.stdout).unwrap()
}

#[track_caller]
fn in_force(given: &Given<'_>, key: &str) -> toml::Value {
    let table = toml::Value::Table(shown(given));
    let found = key.split('.').try_fold(&table, |table, key| table.get(key));
    found.unwrap_or_else(|| panic!("no {key}")).clone()
}

/// Texts that look like something else.
const LOOKALIKES: [&str; 12] = [
    "007",
    "123",
    "1e5",
    "0x10",
    "1_000",
    "true",
    "false",
    "nan",
    "inf",
    "-7",
    "3.10",
    "1979-05-27",
];

#[test]
fn text_stays_text_whatever_it_looks_like() {
    for text in LOOKALIKES {
        let variables = [("RINGFENCE_AUTH__JWT__AUDIENCE", text)];
        let given = Given {
            variables: &variables,
            ..Given::default()
        };
        assert_eq!(in_force(&given, "auth.jwt.audience"), text.into(), "{text}");
        let flag = format!("auth.jwt.audience={text}");
        let given = Given {
            flags: &[&flag],
            ..Given::default()
        };
        assert_eq!(in_force(&given, "auth.jwt.audience"), text.into(), "{text}");
        let file = format!("[auth.jwt]\naudience = \"{text}\"\n");
        let given = Given {
            file: Some(&file),
            ..Given::default()
        };
        assert_eq!(in_force(&given, "auth.jwt.audience"), text.into(), "{text}");
    }
    // Lists of text, plain and as TOML.
    for text in [
        "007, true",
        "[007, true]",
        "[\"007\", \"true\"]",
        "007,true,",
    ] {
        let variables = [("RINGFENCE_SERVER__ALLOWED_AUTHORITIES", text)];
        let given = Given {
            variables: &variables,
            ..Given::default()
        };
        let list = vec!["007", "true"];
        let shown = in_force(&given, "server.allowed_authorities");
        assert_eq!(shown, list.into(), "{text}");
    }
}

#[test]
fn tenants_may_be_called_like_numbers() {
    for name in ["007", "123", "1e5", "true", "nan", "inf", "1979-05-27"] {
        let list = format!("[{{ name = \"{name}\", uids = [1] }}]");
        let file = format!("tenants = {list}\n");
        let headed = format!("[[tenants]]\nname = \"{name}\"\nuids = [1]\n");
        let flag = format!("tenants={list}");
        let variables = [("RINGFENCE_TENANTS", list.as_str())];
        let ways = [
            Given {
                variables: &variables,
                ..Given::default()
            },
            Given {
                flags: &[&flag],
                ..Given::default()
            },
            Given {
                file: Some(&file),
                ..Given::default()
            },
            Given {
                file: Some(&headed),
                ..Given::default()
            },
        ];
        for given in ways {
            let tenants = in_force(&given, "tenants");
            assert_eq!(tenants[0]["name"].as_str(), Some(name));
        }
    }
}

#[test]
fn each_type_is_read_from_text() {
    for (key, variable, text, value) in [
        (
            "admission.slots",
            "RINGFENCE_ADMISSION__SLOTS",
            "007",
            7.into(),
        ),
        (
            "admission.slots",
            "RINGFENCE_ADMISSION__SLOTS",
            " 12\n",
            12.into(),
        ),
        (
            "runs.history",
            "RINGFENCE_RUNS__HISTORY",
            "10_000",
            10_000.into(),
        ),
        (
            "server.reflection",
            "RINGFENCE_SERVER__REFLECTION",
            "false",
            false.into(),
        ),
        (
            "admission.memory_share",
            "RINGFENCE_ADMISSION__MEMORY_SHARE",
            "1",
            1.0.into(),
        ),
        (
            "admission.memory_share",
            "RINGFENCE_ADMISSION__MEMORY_SHARE",
            "5e-1",
            0.5.into(),
        ),
        (
            "server.max_message",
            "RINGFENCE_SERVER__MAX_MESSAGE",
            "20MiB",
            "20MiB".into(),
        ),
        (
            "server.max_message",
            "RINGFENCE_SERVER__MAX_MESSAGE",
            "20971520",
            "20MiB".into(),
        ),
        (
            "server.drain_grace",
            "RINGFENCE_SERVER__DRAIN_GRACE",
            "1m 30s\r\n",
            "1m 30s".into(),
        ),
        (
            "server.socket_mode",
            "RINGFENCE_SERVER__SOCKET_MODE",
            "0600",
            "0600".into(),
        ),
        (
            "server.socket_mode",
            "RINGFENCE_SERVER__SOCKET_MODE",
            "600",
            "0600".into(),
        ),
        (
            "compile.mode",
            "RINGFENCE_COMPILE__MODE",
            "in-process",
            "in-process".into(),
        ),
        (
            "server.instance",
            "ringfence_server__instance",
            "\u{feff}a\t",
            "a".into(),
        ),
        (
            "server.instance",
            "RINGFENCE_SERVER__INSTANCE",
            "\"a\"",
            "a".into(),
        ),
        (
            "auth.jwt.issuer",
            "RINGFENCE_AUTH__JWT__ISSUER",
            "it's \"here\"",
            "it's \"here\"".into(),
        ),
        (
            "listen",
            "RINGFENCE_LISTEN",
            "127.0.0.1:7",
            vec!["127.0.0.1:7"].into(),
        ),
        (
            "listen",
            "RINGFENCE_LISTEN",
            "[::1]:7, unix:/run/x.sock",
            vec!["[::1]:7", "unix:/run/x.sock"].into(),
        ),
        (
            "oci.registries",
            "RINGFENCE_OCI__REGISTRIES",
            "[\n  \"ghcr.io\",\n  \"quay.io\",\n]",
            vec!["ghcr.io", "quay.io"].into(),
        ),
        (
            "policy.host_functions",
            "RINGFENCE_POLICY__HOST_FUNCTIONS",
            "[]",
            toml::Value::Array(vec![]),
        ),
    ] {
        let variables = [(variable, text)];
        let given = Given {
            variables: &variables,
            ..Given::default()
        };
        assert_eq!(in_force(&given, key), value, "{variable}={text:?}");
        // A flag says it in the same way.
        let flag = format!("{key}={text}");
        let given = Given {
            flags: &[&flag],
            ..Given::default()
        };
        assert_eq!(in_force(&given, key), value, "{flag:?}");
    }
    // A table in a variable is laid over the one that is there.
    let variables = [("RINGFENCE_SERVER", "{ instance = \"x\" }")];
    assert!(
        shown(&Given {
            variables: &variables,
            ..Given::default()
        })["server"]
            .get("drain_grace")
            .is_some()
    );
}

#[test]
fn an_empty_variable_is_unset() {
    let file = "listen = [\"127.0.0.1:7\"]\n[server]\ninstance = \"file\"\nreflection = false\n";
    for empty in ["", " ", "\n", "\r\n", "\t \u{feff}", "\u{a0}"] {
        let variables = [
            ("RINGFENCE_SERVER__INSTANCE", empty),
            ("RINGFENCE_SERVER__REFLECTION", empty),
            ("RINGFENCE_SERVER__DRAIN_GRACE", empty),
            ("RINGFENCE_LISTEN", empty),
            ("RINGFENCE_TLS__CERT", empty),
            ("RINGFENCE_TENANTS", empty),
            ("RINGFENCE_NO_SUCH__KEY", empty),
            ("RINGFENCE_TOKEN_FILE", empty),
            ("RINGFENCE_TLS_CA", empty),
        ];
        let shown = shown(&Given {
            file: Some(file),
            variables: &variables,
            flags: &[],
        });
        assert_eq!(shown["server"]["instance"].as_str(), Some("file"));
        assert_eq!(shown["server"]["reflection"].as_bool(), Some(false));
        assert_eq!(shown["listen"][0].as_str(), Some("127.0.0.1:7"));
    }
    // A flag that is empty says so.
    let given = Given {
        file: Some(file),
        flags: &["server.instance=", "oci.registries="],
        ..Given::default()
    };
    assert_eq!(in_force(&given, "server.instance"), "".into());
    assert_eq!(
        in_force(&given, "oci.registries"),
        toml::Value::Array(vec![])
    );
}

/// Variables that are refused, and what is told of each.
const VARIABLES: [(&str, &str, &str); 33] = [
    (
        "RINGFENCE_ADMISSION__SLOTS",
        "many",
        "admission.slots = many: must be a whole number from 0 to 4294967295",
    ),
    (
        "RINGFENCE_ADMISSION__SLOTS",
        "-1",
        "admission.slots = -1: must be a whole number",
    ),
    (
        "RINGFENCE_ADMISSION__SLOTS",
        "1.5",
        "admission.slots = 1.5: must be a whole number",
    ),
    (
        "RINGFENCE_ADMISSION__SLOTS",
        "99999999999999999999",
        "must be a whole number",
    ),
    (
        "RINGFENCE_ADMISSION__SLOTS",
        "0",
        "admission.slots = 0: must be from 1 to 10000",
    ),
    (
        "RINGFENCE_POLICY__MAX_FILES",
        "100001",
        "policy.max_files = 100001: must be from 0 to 100000",
    ),
    (
        "RINGFENCE_POLICY__MAX_COLLECT_FILES",
        "10001",
        "policy.max_collect_files = 10001: must be from 0 to 10000",
    ),
    (
        "RINGFENCE_POLICY__MAX_COLLECT_BYTES",
        "1GiB",
        "half of what a tenant's answers may hold of server.inflight_answer_bytes",
    ),
    (
        "RINGFENCE_ADMISSION__MEMORY_SHARE",
        "nan",
        "admission.memory_share = nan: must be a number",
    ),
    (
        "RINGFENCE_ADMISSION__MEMORY_SHARE",
        "half",
        "admission.memory_share = half: must be a number",
    ),
    (
        "RINGFENCE_SERVER__REFLECTION",
        "yes",
        "server.reflection = yes: must be true or false",
    ),
    (
        "RINGFENCE_SERVER__REFLECTION",
        "1",
        "server.reflection = 1: must be true or false",
    ),
    (
        "RINGFENCE_SERVER__REFLECTION",
        "True",
        "server.reflection = True: must be true or false",
    ),
    (
        "RINGFENCE_SERVER__DRAIN_GRACE",
        "30",
        "server.drain_grace = \"30\": must be a duration with its unit",
    ),
    (
        "RINGFENCE_SERVER__DRAIN_GRACE",
        "soon",
        "server.drain_grace = \"soon\": must be a duration",
    ),
    (
        "RINGFENCE_SERVER__MAX_MESSAGE",
        "lots",
        "server.max_message = \"lots\": must be a size",
    ),
    (
        "RINGFENCE_SERVER__MAX_MESSAGE",
        "-5",
        "server.max_message = \"-5\": must be a size",
    ),
    (
        "RINGFENCE_SERVER__MAX_MESSAGE",
        "99999999999EiB",
        "must be a size",
    ),
    (
        "RINGFENCE_SERVER__SOCKET_MODE",
        "0888",
        "server.socket_mode = \"0888\": must be octal",
    ),
    (
        "RINGFENCE_SERVER__SOCKET_MODE",
        "rw",
        "server.socket_mode = \"rw\": must be octal",
    ),
    (
        "RINGFENCE_SERVER__INSTANCE",
        "a\nb",
        "server.instance = a\\nb: must be text without control characters",
    ),
    (
        "RINGFENCE_SERVER__INSTANCE",
        "a b",
        "server.instance = a b: must be at most 64",
    ),
    (
        "RINGFENCE_COMPILE__MODE",
        "thread",
        "compile.mode = \"thread\": must be \"child\" or \"in-process\"",
    ),
    ("RINGFENCE_LISTEN", "nowhere", "listen = nowhere: must be"),
    ("RINGFENCE_LISTEN", "[\"127.0.0.1:7\"", "listen"),
    (
        "RINGFENCE_TENANTS",
        "team-a",
        "tenants[0] = team-a: must be a table",
    ),
    (
        "RINGFENCE_TENANTS",
        "[{ name = 7 }]",
        "tenants[0].name = 7: must be text, in quotes",
    ),
    (
        "RINGFENCE_TENANTS",
        "[{ weight = 7 }]",
        "tenants[0]: `name` is missing",
    ),
    (
        "RINGFENCE_TENANTS",
        "[{ name = \"a\", wieght = 7 }]",
        "tenants[0].wieght: there is no such key; did you mean tenants[0].weight?",
    ),
    ("RINGFENCE_TENANTS", "[{ name = \"a\" ]", "tenants"),
    (
        "RINGFENCE_OCI__REGISTRIES",
        "https://ghcr.io",
        "oci.registries[0] = \"https://ghcr.io\": must be \"host\"",
    ),
    (
        "RINGFENCE_STORE__URL",
        "s3://u:s3cret@bucket",
        "store.url: must be \"memory:\"",
    ),
    ("RINGFENCE_SERVER", "x", "server = x: must be a table"),
];

#[test]
fn a_variable_that_is_refused_is_named() {
    for (name, value, part) in VARIABLES {
        let variables = [(name, value)];
        let given = Given {
            variables: &variables,
            ..Given::default()
        };
        let told = ask("check", &given);
        if name == "RINGFENCE_SERVER" {
            // It is not a setting but where a client's daemon is.
            assert_eq!(told.code, 0, "{}", told.stderr);
            continue;
        }
        assert_eq!(told.code, 1, "{name}={value:?}");
        is_plain(&told.stderr);
        for part in [name, part] {
            assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
        }
        assert!(!told.stderr.contains("s3cret"));
        // Nothing of the message can drive a terminal or look like another line.
        assert_eq!(told.stderr.lines().count(), 2, "{}", told.stderr);
    }
    // The same by a flag, which names it with the key.
    for (name, value, part) in VARIABLES {
        let key = name.strip_prefix("RINGFENCE_").unwrap().to_lowercase();
        let key = key.replace("__", ".");
        let flag = format!("{key}={value}");
        let named = format!("--set {key}: ");
        let given = Given {
            flags: &[&flag],
            ..Given::default()
        };
        refused(&given, &[&named, part]);
    }
}

#[test]
fn a_key_that_there_is_not_is_told_with_the_one_that_is_near() {
    for (name, near) in [
        (
            "RINGFENCE_ADMISION__SLOTS",
            "did you mean admission.slots (RINGFENCE_ADMISSION__SLOTS)?",
        ),
        (
            "RINGFENCE_ADMISSION__SLOT",
            "did you mean admission.slots (RINGFENCE_ADMISSION__SLOTS)?",
        ),
        (
            "RINGFENCE_SERVER_DRAIN_GRACE",
            "did you mean server.drain_grace (RINGFENCE_SERVER__DRAIN_GRACE)?",
        ),
        (
            "RINGFENCE_SERVER__SLOTS",
            "did you mean admission.slots (RINGFENCE_ADMISSION__SLOTS)?",
        ),
        (
            "RINGFENCE_AUTH__JWT__AUDIENCES",
            "did you mean auth.jwt.audience (RINGFENCE_AUTH__JWT__AUDIENCE)?",
        ),
        (
            "RINGFENCE_LISTENER",
            "did you mean listen (RINGFENCE_LISTEN)?",
        ),
        (
            "RINGFENCE_SOMETHING_QUITE_DIFFERENT",
            "there is no such key",
        ),
        ("RINGFENCE_SERVER__", "there is no such key"),
    ] {
        let variables = [(name, "7")];
        let given = Given {
            variables: &variables,
            ..Given::default()
        };
        refused(&given, &[name, "there is no such key", near]);
    }
    let given = Given {
        flags: &["admision.slots=7", "server.slots=7"],
        ..Given::default()
    };
    refused(
        &given,
        &[
            "--set admision.slots: admision.slots: there is no such key; did you mean admission.slots?",
            "--set server.slots: server.slots: there is no such key; did you mean admission.slots?",
        ],
    );
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_place() {
    for (file, parts) in [
        (
            "[server]\nlisten_on = 1\n",
            &["FILE:2:13: server.listen_on: there is no such key"][..],
        ),
        (
            "[admission]\n\n  slots = \"many\"\n",
            &["FILE:3:11: admission.slots = \"many\": must be a whole number"],
        ),
        (
            "[admission]\nslots = 1.5\n",
            &["FILE:2:9: admission.slots = 1.5"],
        ),
        (
            "[admission]\nslots = \"7\"\n",
            &["FILE:2:9: admission.slots = \"7\": must be a whole number"],
        ),
        (
            "[server]\ninstance = 7\n",
            &["FILE:2:12: server.instance = 7: must be text, in quotes"],
        ),
        (
            "[auth.jwt]\naudience = 123\n",
            &["FILE:2:12: auth.jwt.audience = 123: must be text, in quotes"],
        ),
        (
            "[auth.jwt]\naudience = 1979-05-27\n",
            &["FILE:2:12: auth.jwt.audience = 1979-05-27: must be text, in quotes"],
        ),
        (
            "[server]\nreflection = \"true\"\n",
            &["FILE:2:14: server.reflection = \"true\": must be true or false"],
        ),
        (
            "[server]\ndrain_grace = 5\n",
            &["FILE:2:15: server.drain_grace = 5: must be a duration with its unit"],
        ),
        (
            "[server]\nsocket_mode = 0o660\n",
            &["FILE:2:15: server.socket_mode = 432: must be octal permissions in quotes"],
        ),
        (
            "listen = \"127.0.0.1:7\"\n",
            &["FILE:1:10: listen = \"127.0.0.1:7\": must be a list"],
        ),
        (
            "listen = [\n  \"127.0.0.1:7\",\n  7,\n]\n",
            &["FILE:3:3: listen[1] = 7: must be text"],
        ),
        (
            "listen = [\n  \"127.0.0.1:7\",\n  \"nowhere\",\n]\n",
            &["FILE:3:3: listen = nowhere: must be"],
        ),
        ("server = 7\n", &["FILE:1:10: server = 7: must be a table"]),
        (
            "server.instance = true\n",
            &["FILE:1:19: server.instance = true: must be text"],
        ),
        (
            "slots = 7\n",
            &["FILE:1:9: slots: there is no such key; did you mean admission.slots?"],
        ),
        (
            "[servr]\ninstance = \"x\"\n",
            &["FILE:1:2: servr: there is no such key; did you mean server?"],
        ),
        (
            "[server]\nslots = 7\n",
            &["FILE:2:9: server.slots: there is no such key; did you mean admission.slots?"],
        ),
        (
            "[server]\ninstance = \"a\"\ninstance = \"b\"\n",
            &["FILE:3:", "it is not TOML", "duplicate key"],
        ),
        ("[server]\n[server]\n", &["FILE:2:", "it is not TOML"]),
        (
            "[server]\r\ninstance = \"a\"\r\nreflection = maybe\r\n",
            &["FILE:3:", "it is not TOML"],
        ),
        ("[server\n", &["FILE:1:", "it is not TOML"]),
        ("not toml", &["FILE:1:", "it is not TOML"]),
        (
            "\u{feff}[admission]\n\tslots = \"x\"\n",
            &["FILE:2:10: admission.slots = \"x\""],
        ),
        (
            "[[tenants]]\nname = \"a\"\nuids = [1]\n[[tenants]]\nname = \"b\"\nweight = \"2\"\n",
            &["FILE:6:10: tenants[1].weight = \"2\": must be a whole number"],
        ),
        (
            "[[tenants]]\nname = \"a\"\nuids = [1]\npolicy = { max_stdin = \"x\" }\n",
            &["FILE:4:24: tenants[0].policy.max_stdin = \"x\": must be a size"],
        ),
        (
            "[[tenants]]\nname = \"a\"\nuids = [1]\n[tenants.defaults]\ntimout = \"1s\"\n",
            &[
                "FILE:5:10: tenants[0].defaults.timout: there is no such key; did you mean tenants[0].defaults.timeout?",
            ],
        ),
        (
            "[[tenants]]\nname = \"A b\"\nuids = [1]\n",
            &["FILE:2:8: tenants[0].name = A b: must be"],
        ),
        (
            "[[policy.mounts]]\nhost = \"/\"\naccess = \"execute\"\n",
            &["FILE:3:10: policy.mounts[0].access = \"execute\": must be \"read\" or \"write\""],
        ),
        (
            "[[policy.mounts]]\nhost = \"/\"\n",
            &["FILE:1:1: policy.mounts[0]: `access` is missing"],
        ),
        (
            "[[policy.network]]\nhost = \"example.org\"\n",
            &[
                "FILE:2:8: policy.network[0].host = \"example.org\": must be an address or a CIDR block",
            ],
        ),
        (
            "[store]\nurl = \"ftp://u:s3cret@x\"\n",
            &["FILE:2:7: store.url: must be \"memory:\""],
        ),
        (
            "[tls]\ncert = \"/no/such\\u0000file\"\n",
            &["FILE:2:8: tls.cert = \"/no/such\\u{0}file\": must be text without control"],
        ),
        (
            "[server]\ninstance = \"\"\"a\nb\"\"\"\n",
            &[
                "FILE:2:12: server.instance",
                "text without control characters",
            ],
        ),
        // What does not go with a default, or with another setting.
        (
            "[policy]\nmax_timeout = \"1s\"\n",
            &[
                "defaults.timeout = 30s: must be from 1ms to 1s",
                "policy.max_timeout is set by FILE:2:15",
            ],
        ),
        (
            "[runs]\nlog_bytes = \"256MiB\"\n",
            &["runs.log_budget", "runs.log_bytes is set by FILE:2:13"],
        ),
    ] {
        let given = Given {
            file: Some(file),
            ..Given::default()
        };
        refused(&given, parts);
        let told = ask("check", &given);
        assert!(!told.stderr.contains("s3cret"));
    }
}

/// What belongs to all tenants is in no guest's reach.
#[test]
fn no_mount_reaches_the_archive_or_the_modules() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path).display().to_string();
    for folder in ["own/folder/in", "data"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    std::os::unix::fs::symlink("../own", at("data/link")).unwrap();
    let variables = &[
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "s3cretkey"),
        ("AWS_REGION", "us-east-1"),
    ];
    let check = |mount: &str, is_tenants: bool, rest: &str| {
        let mounts = format!("mounts = [{{ host = {:?}, access = \"read\" }}]", at(mount));
        let file = match is_tenants {
            true => {
                format!("{rest}[[tenants]]\nname = \"a\"\nuids = [1]\npolicy = {{ {mounts} }}\n")
            }
            false => format!("{rest}[policy]\n{mounts}\n"),
        };
        let given = Given {
            file: Some(&file),
            variables,
            ..Given::default()
        };
        ask("check", &given)
    };
    let own = at("own/folder");
    for (key, rest, line) in [
        (
            "runs.archive",
            format!("[runs]\narchive = \"file://{own}\"\n"),
            2,
        ),
        ("store.url", format!("[store]\nurl = \"file://{own}\"\n"), 2),
        (
            "runs.archive_spool",
            format!("[runs]\narchive = \"s3://bucket/x\"\narchive_spool = {own:?}\n"),
            3,
        ),
    ] {
        for (mount, is_tenants) in [
            ("own/folder", false),
            ("own/folder", true),
            ("own/folder/in", false),
            ("own", true),
            ("", false),
            ("data/link", false),
            ("data/link/folder/in", true),
        ] {
            let told = check(mount, is_tenants, &rest);
            assert_eq!(told.code, 1, "{key} {mount}: {}", told.stdout);
            is_plain(&told.stderr);
            let policy = if is_tenants {
                "tenants[0].policy"
            } else {
                "policy"
            };
            for part in [
                format!("{policy}.mounts[0].host = {}: must be", at(mount)),
                format!("not the folder of {key}, is not in it and does not contain it"),
                format!("{key} is set by {}:{line}:", told.file),
            ] {
                assert!(told.stderr.contains(&part), "{part} in {}", told.stderr);
            }
        }
        for is_tenants in [false, true] {
            let told = check("data", is_tenants, &rest);
            assert_eq!(told.code, 0, "{key}: {}", told.stderr);
        }
    }
    // A folder that is to be made when the daemon starts.
    let later = format!("[runs]\narchive = \"file://{}\"\n", at("data/link/later"));
    assert_eq!(check("own", false, &later).code, 1);
    assert_eq!(check("own/folder", false, &later).code, 0);
}

/// They would be taken for a wall that is not there.
#[test]
fn what_is_for_grpc_web_alone_needs_it() {
    for (key, value) in [
        ("allowed_hosts", "ringfence.internal"),
        ("cors_origins", "https://ops.example.com"),
    ] {
        let set = format!("server.{key}={value}");
        let given = Given {
            flags: &[&set],
            ..Given::default()
        };
        let wrong = format!(
            "--set server.{key}: server.{key} = [\"{value}\"]: must be empty, because server.grpc_web is false"
        );
        refused(&given, &[&wrong]);
        let given = Given {
            flags: &[&set, "server.grpc_web=true"],
            ..Given::default()
        };
        let in_force = in_force(&given, &format!("server.{key}"));
        assert_eq!(in_force, toml::Value::from(vec![value]));
    }
    // Each is checked as that of the admin listener is.
    for table in ["server", "admin"] {
        for (key, value, allowed) in [
            ("allowed_hosts", "a/b", "a host without a port"),
            ("allowed_hosts", "a@b", "a host without a port"),
            ("cors_origins", "ops.example.com", "a scheme and a host"),
            (
                "cors_origins",
                "https://ops.example.com/",
                "a scheme and a host",
            ),
            ("cors_origins", "*", "a scheme and a host"),
        ] {
            let set = format!("{table}.{key}={value}");
            let given = Given {
                flags: &[&set, "server.grpc_web=true"],
                ..Given::default()
            };
            let wrong = format!("{table}.{key} = {value}: must be {allowed}");
            refused(&given, &[&wrong]);
        }
    }
}

#[test]
fn the_url_of_traces_is_one_of_a_web_page_and_has_a_place_for_the_id() {
    for value in [
        "https://traces.example.com/",
        "https://traces.example.com/{traceid}",
        "traces.example.com/{trace_id}",
        "javascript:alert({trace_id})",
        "ftp://traces.example.com/{trace_id}",
        "//traces.example.com/{trace_id}",
        "https:///{trace_id}:x",
        " https://traces.example.com/{trace_id}",
    ] {
        let set = format!("admin.trace_url={value:?}");
        let given = Given {
            flags: &[&set],
            ..Given::default()
        };
        let wrong = "must be a URL of http:// or https:// with {trace_id}";
        refused(&given, &["admin.trace_url", wrong]);
    }
    for value in [
        "",
        "http://localhost:16686/trace/{trace_id}",
        "https://traces.example.com/?q={trace_id}#{trace_id}",
        "https://{trace_id}.traces.example.com/",
    ] {
        let set = format!("admin.trace_url={value:?}");
        let given = Given {
            flags: &[&set],
            ..Given::default()
        };
        let expected = toml::Value::from(value);
        assert_eq!(in_force(&given, "admin.trace_url"), expected);
    }
}

#[test]
fn every_place_is_told_at_once() {
    let variables = [
        ("RINGFENCE_ADMISSION__QUEUE", "x"),
        ("RINGFENCE_RUNS__VIEWRS", "1"),
    ];
    let given = Given {
        file: Some("[server]\nreflection = 1\ndrain_grace = 5\n[engine]\nguest_thread = 1\n"),
        variables: &variables,
        flags: &["compile.mode=x", "telemetry.log_format=xml"],
    };
    refused(
        &given,
        &[
            "FILE:2:14: server.reflection",
            "FILE:3:15: server.drain_grace",
            "FILE:5:16: engine.guest_thread",
            "RINGFENCE_ADMISSION__QUEUE: admission.queue",
            "RINGFENCE_RUNS__VIEWRS: runs.viewrs",
            "--set compile.mode: compile.mode",
            "--set telemetry.log_format: telemetry.log_format",
        ],
    );
    // Where a file is set right by a variable, nothing is wrong.
    let variables = [("RINGFENCE_SERVER__REFLECTION", "true")];
    let given = Given {
        file: Some("[server]\nreflection = 1\n"),
        variables: &variables,
        flags: &[],
    };
    assert_eq!(in_force(&given, "server.reflection"), true.into());
}

#[test]
fn addresses_to_listen_on_are_named_by_their_flag() {
    for (flag, address, part) in [
        (
            "--listen",
            "nowhere",
            "--listen nowhere: listen = nowhere: must be",
        ),
        (
            "--listen",
            "unix:relative",
            "--listen unix:relative: listen = unix:relative",
        ),
        ("--listen", "a\"b", "--listen a\"b: listen = a\"b"),
        (
            "--admin-listen",
            "nowhere",
            "--admin-listen nowhere: admin.listen = nowhere: must be",
        ),
        (
            "--admin-listen",
            "unix:relative",
            "--admin-listen unix:relative: admin.listen = unix:relative",
        ),
    ] {
        let output = ringfence().args(["serve", flag, address]).output().unwrap();
        let told = told(&output, String::new());
        assert_eq!(told.code, 125);
        is_plain(&told.stderr);
        assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
    }
    // Of several, each that is wrong is told.
    let output = ringfence()
        .args(["serve", "--admin-listen", "127.0.0.1:0"])
        .args(["--admin-listen", "here", "--listen", "there"])
        .output()
        .unwrap();
    let told = told(&output, String::new()).stderr;
    assert!(told.contains("--admin-listen here: admin.listen = here"));
    assert!(told.contains("--listen there: listen = there"), "{told}");
    assert!(!told.contains("admin.listen = 127.0.0.1:0"), "{told}");
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join("latin.toml");
    std::fs::write(&latin, b"[server]\ninstance = \"\xe9\"\n").unwrap();
    let large = dir.path().join("large.toml");
    std::fs::write(&large, vec![b'\n'; (4 << 20) + 1]).unwrap();
    for (path, part) in [
        (
            std::path::Path::new("/no/such"),
            "a readable TOML file (No such file",
        ),
        (dir.path(), "a readable TOML file (Is a directory"),
        (&latin, "UTF-8, but line 2 is not UTF-8"),
        (&large, "at most 4194304 bytes"),
    ] {
        let output = ringfence()
            .args(["config", "check", "--config"])
            .arg(path)
            .output()
            .unwrap();
        let told = told(&output, String::new());
        assert_eq!(told.code, 1);
        is_plain(&told.stderr);
        let named = format!("--config = {}", path.display());
        for part in [part, &named] {
            assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
        }
    }
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    for (name, value) in [
        ("RINGFENCE_SERVER__INSTANCE", &b"a\xff"[..]),
        ("RINGFENCE_LISTEN", b"\xfe"),
        ("RINGFENCE_NO__SUCH", b"\xc0\x80"),
    ] {
        let output = ringfence()
            .args(["config", "check"])
            .env(name, OsStr::from_bytes(value))
            .output()
            .unwrap();
        let told = told(&output, String::new());
        assert_eq!(told.code, 1, "{}", told.stderr);
        is_plain(&told.stderr);
        let part = format!("{name} = ");
        assert!(told.stderr.contains(&part), "{part} in {}", told.stderr);
        assert!(told.stderr.contains("must be UTF-8"));
    }
    // Another program's variables, and names, may be what they like.
    let output = ringfence()
        .args(["config", "check"])
        .env("OTHER", OsStr::from_bytes(b"\xff"))
        .env(OsString::from("OTHER_\u{fffd}"), "x")
        .output()
        .unwrap();
    assert!(output.status.success());
}

/// A command that would talk to a daemon that is not there.
fn client(variables: &[(&str, &str)], flags: &[&str]) -> Told {
    let output = ringfence()
        .args(["ps", "--server", "127.0.0.1:1"])
        .args(flags)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    told(&output, String::new())
}

#[test]
fn what_a_client_shows_is_trimmed_and_may_be_empty() {
    // Unset: it gets as far as to connect.
    for empty in ["", " ", "\n"] {
        let variables = [("RINGFENCE_TOKEN_FILE", empty), ("RINGFENCE_TLS_CA", empty)];
        let told = client(&variables, &[]);
        assert!(
            told.stderr.contains("cannot reach the daemon"),
            "{}",
            told.stderr
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let path = file.to_str().unwrap();
    for token in ["t0ken", "t0ken\n", "\u{feff}t0ken\r\n", " t0ken \n\n"] {
        std::fs::write(&file, token).unwrap();
        let surrounded = format!(" {path}\n");
        let told = client(&[("RINGFENCE_TOKEN_FILE", &surrounded)], &[]);
        assert!(
            told.stderr.contains("cannot reach the daemon"),
            "{}",
            told.stderr
        );
    }
    for no_token in ["", "\n", "two\nlines", "t\u{f6}ken\u{0}"] {
        std::fs::write(&file, no_token).unwrap();
        let told = client(&[("RINGFENCE_TOKEN_FILE", path)], &[]);
        assert_eq!(told.code, 125);
        let part = format!("RINGFENCE_TOKEN_FILE={path} holds no token");
        assert!(told.stderr.contains(&part), "{}", told.stderr);
    }
    for name in ["RINGFENCE_TOKEN_FILE", "RINGFENCE_TLS_CA"] {
        let told = client(&[(name, "/no/such")], &[]);
        let part = format!("cannot read {name}=/no/such");
        assert!(told.stderr.contains(&part), "{}", told.stderr);
    }
    let told = client(&[], &["--token-file", ""]);
    assert_eq!(told.code, 125);
    assert!(told.stderr.contains("--token-file"), "{}", told.stderr);
}

#[test]
fn lines_of_tokens_may_end_as_on_other_systems() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    let digest = ringfence::model::request::Digest::of(b"t0ken");
    let text = format!("\u{feff}default {digest}\r\n\r\n");
    std::fs::write(&file, text).unwrap();
    let tokens = format!("auth.tokens_file={}", file.display());
    let served = crate::process::Served::start(&["--set", &tokens]);
    let token = dir.path().join("token");
    std::fs::write(&token, "t0ken\r\n").unwrap();
    let output = ringfence()
        .args(["ps", "--server", &served.addr, "--token-file"])
        .arg(&token)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What `config check` tells of a store with these variables beside ones that are right.
fn store(url: &str, variables: &[(&str, &[u8])]) -> Told {
    let mut command = ringfence();
    command
        .args(["config", "check", "--set", &format!("store.url={url}")])
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "s3cretkey")
        .env("AWS_REGION", "us-east-1");
    for (name, value) in variables {
        command.env(name, OsStr::from_bytes(value));
    }
    told(&command.output().unwrap(), String::new())
}

#[test]
fn a_providers_variables_are_trimmed_and_named() {
    let surrounded: [(&str, &[u8]); 6] = [
        ("AWS_ACCESS_KEY_ID", b"AKIDEXAMPLE\n"),
        ("AWS_SECRET_ACCESS_KEY", b" s3cretkey\r\n"),
        ("AWS_SESSION_TOKEN", b"\xef\xbb\xbfs3ssion\n"),
        ("AWS_REGION", b"us-east-1\n"),
        ("AWS_ENDPOINT_URL", b"http://127.0.0.1:1\n"),
        ("AWS_DEFAULT_REGION", b"\n"),
    ];
    let told = store("s3://modules", &surrounded);
    assert_eq!(told.code, 0, "{}", told.stderr);
    for (name, value, allowed) in [
        (
            "AWS_ACCESS_KEY_ID",
            &b"AKID\nEXAMPLE"[..],
            "control characters",
        ),
        (
            "AWS_SECRET_ACCESS_KEY",
            b"s3cret\nkey",
            "control characters",
        ),
        ("AWS_SESSION_TOKEN", b"s3ssion\x1bx", "control characters"),
        ("AWS_SESSION_TOKEN", b"s3ssion\xff", "UTF-8"),
        (
            "AWS_ACCESS_KEY_ID",
            "AKID\u{e9}".as_bytes(),
            "printable ASCII",
        ),
        ("AWS_ACCESS_KEY_ID", b"AKID EXAMPLE", "one word"),
        ("AWS_REGION", b"us east", "the name of a region"),
        ("AWS_DEFAULT_REGION", b"us/east", "the name of a region"),
        ("AWS_ENDPOINT_URL", b"127.0.0.1:9000", "http:// or https://"),
        ("AWS_ENDPOINT_URL_S3", b"minio", "http:// or https://"),
        ("AWS_ENDPOINT_URL", b"http://a b", "http:// or https://"),
        ("AWS_SKIP_SIGNATURE", b"perhaps", "perhaps"),
        ("AWS_CONDITIONAL_PUT", b"sometimes", "sometimes"),
        ("AWS_SECRET_ACCESS_KEY", b"", "must be set, because AWS_"),
        ("AWS_ACCESS_KEY_ID", b" \n", "must be set, because AWS_"),
    ] {
        let told = store("s3://modules", &[(name, value)]);
        assert_eq!(told.code, 1, "{name}: {}", told.stderr);
        is_plain(&told.stderr);
        for part in [name, allowed] {
            assert!(told.stderr.contains(part), "{part} in {}", told.stderr);
        }
        for secret in ["s3cret", "s3ssion", "AKID"] {
            assert!(!told.stderr.contains(secret), "{}", told.stderr);
        }
        // What no store needs is nobody's business.
        assert_eq!(store("memory:", &[(name, value)]).code, 0);
    }
    for (url, name, value) in [
        ("gs://modules", "GOOGLE_BEARER_TOKEN", &b"a\nb"[..]),
        ("gs://modules", "GOOGLE_SERVICE_ACCOUNT", b"/no/such\nfile"),
        ("az://modules", "AZURE_STORAGE_ACCOUNT_KEY", b"a\nb"),
        ("az://modules", "AZURE_STORAGE_ACCOUNT_NAME", b"a\nb"),
    ] {
        let told = store(url, &[(name, value)]);
        assert_eq!(told.code, 1, "{name}: {}", told.stderr);
        is_plain(&told.stderr);
        assert!(told.stderr.contains(name), "{name} in {}", told.stderr);
    }
}
