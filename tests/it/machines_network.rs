//! Networks of one family, of both, and names that stand for several addresses.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::machine::{Machine, beside, has, is_root, open_folder, runs_hello};
use crate::process::Served;

const ANY_MAY_CALL: [&str; 2] = ["--set", "server.insecure_listen=true"];

/// A network of its own, where `localhost` is what `hosts` says.
fn network(hosts: &str) -> Option<(Machine, tempfile::TempDir)> {
    if !is_root() || !has("ip") || !has("nsenter") {
        return None;
    }
    let dir = open_folder(0o755);
    let file = dir.path().join("hosts");
    std::fs::write(&file, hosts).unwrap();
    let machine = Machine::default()
        .unshare("--mount")
        .unshare("--net")
        .first(format!("mount --bind {} /etc/hosts", file.display()))
        .first("ip link set lo up");
    Some((machine, dir))
}

const BOTH: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n";
const NO_IPV4: &str = "ip addr del 127.0.0.1/8 dev lo";
const NO_IPV6: &str = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// The addresses that a daemon's sockets are bound to, as /proc tells them: of IPv4, and of IPv6.
fn bound(daemon: &Served) -> (usize, usize) {
    let listening = |file: &str| {
        let path = format!("/proc/{}/net/{file}", daemon.child.id());
        let table = std::fs::read_to_string(path).unwrap_or_default();
        table.lines().filter(|line| line.contains(" 0A ")).count()
    };
    (listening("tcp"), listening("tcp6"))
}

fn port(addr: &str) -> &str {
    addr.rsplit_once(':').unwrap().1
}

/// Runs something by each of these hosts.
#[track_caller]
fn runs_by(daemon: &Served, hosts: &[&str]) {
    for host in hosts {
        runs_hello(daemon, &format!("{host}:{}", port(&daemon.addr)));
    }
}

#[test]
fn localhost_is_both_families_whatever_the_hosts_file_says() {
    let only = ["127.0.0.1 localhost\n", "::1 localhost\n", ""];
    for hosts in [BOTH].into_iter().chain(only) {
        let Some((machine, _hosts)) = network(hosts) else {
            return;
        };
        let daemon = machine.serve_on(&["localhost:0"], &[]);
        // On one port.
        assert_eq!(bound(&daemon), (1, 1), "{hosts}");
        runs_by(&daemon, &["127.0.0.1", "[::1]"]);
        if !hosts.is_empty() {
            runs_by(&daemon, &["localhost"]);
        }
        assert_eq!(daemon.end().0, 0);
    }
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    let daemon = machine.serve_on(&["localhost:50051"], &[]);
    assert_eq!(bound(&daemon), (1, 1));
    runs_hello(&daemon, "127.0.0.1:50051");
    runs_hello(&daemon, "[::1]:50051");
}

#[test]
fn a_name_is_all_of_its_addresses_that_this_host_has() {
    let Some((machine, _hosts)) =
        network("127.0.0.1 localhost here\n127.0.0.2 here\n::1 here\n192.0.2.7 here elsewhere\n")
    else {
        return;
    };
    let here = ["here:50051"];
    let daemon = machine.serve_on(&here, &ANY_MAY_CALL);
    assert_eq!(bound(&daemon), (2, 1));
    runs_by(&daemon, &["127.0.0.1", "127.0.0.2", "[::1]", "here"]);
    drop(daemon);
    let refused = |listen: &str| {
        let mut command = machine.command();
        command
            .args(["serve", "--listen", listen])
            .args(ANY_MAY_CALL);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let told = refused("elsewhere:50051");
    assert!(
        told.contains("elsewhere:50051") && told.contains("this host has no such address"),
        "{told}"
    );
    let told = refused("nobody-knows-this.invalid:50051");
    assert!(told.contains("nobody-knows-this.invalid:50051"), "{told}");
}

#[test]
fn one_address_that_is_taken_is_told_by_itself() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    let first = machine.serve_on(&["[::1]:50051"], &[]);
    let program = crate::process::ringfence();
    let output = std::process::Command::new("nsenter")
        .args([
            "--target",
            &first.child.id().to_string(),
            "--net",
            "--mount",
            "--",
        ])
        .arg(program.get_program())
        .args(["serve", "--listen", "localhost:50051"])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(
        told.contains("localhost:50051: [::1]:50051: Address already in use"),
        "{told}"
    );
}

#[test]
fn without_ipv4_it_starts_and_runs() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    let machine = machine.first(NO_IPV4);
    for listen in ["localhost:50051", "[::1]:50051"] {
        let daemon = machine.serve_on(&[listen], &[]);
        runs_by(&daemon, &["[::1]", "localhost"]);
        assert_eq!(daemon.end().0, 0);
    }
    let daemon = machine.serve_on(&["[::]:50051"], &ANY_MAY_CALL);
    runs_by(&daemon, &["[::1]", "localhost"]);
    drop(daemon);
    // What is not there is told, with what would be.
    let output = machine.command().args(["serve"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(
        told.contains("127.0.0.1:50051") && told.contains("localhost"),
        "{told}"
    );
}

#[test]
fn without_ipv6_it_starts_and_runs() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    let machine = machine.first(NO_IPV6);
    for listen in ["localhost:50051", "127.0.0.1:50051"] {
        let daemon = machine.serve_on(&[listen], &[]);
        assert_eq!(bound(&daemon), (1, 0));
        runs_by(&daemon, &["127.0.0.1", "localhost"]);
        assert_eq!(daemon.end().0, 0);
    }
    let daemon = machine.serve_on(&["[::]:50051"], &ANY_MAY_CALL);
    runs_by(&daemon, &["127.0.0.1", "localhost"]);
}

/// Has `start` start processes whose kernel has no IPv6 at all, as one that was built or started without it.
fn on_a_kernel_without_ipv6<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let denied = SeccompAction::Errno(libc::EAFNOSUPPORT.unsigned_abs());
    let family = u64::from(libc::AF_INET6.unsigned_abs());
    let is_ipv6 = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family);
    let rule = SeccompRule::new(vec![is_ipv6.unwrap()]).unwrap();
    let rules = [(libc::SYS_socket, vec![rule])].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            seccompiler::apply_filter(&program).unwrap();
            start()
        });
        thread.join().unwrap()
    })
}

#[test]
fn on_a_kernel_without_ipv6_it_starts_and_runs() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    on_a_kernel_without_ipv6(|| {
        for listen in ["localhost:50051", "[::]:50051", "0.0.0.0:50051"] {
            let daemon = machine.serve_on(&[listen], &ANY_MAY_CALL);
            assert_eq!(bound(&daemon), (1, 0), "{listen}");
            runs_by(&daemon, &["127.0.0.1", "localhost"]);
            assert_eq!(daemon.end().0, 0);
        }
        let output = machine
            .command()
            .args(["serve", "--listen", "[::1]:50051"])
            .output();
        let told = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(
            told.contains("[::1]:50051: Address family not supported"),
            "{told}"
        );
    });
}

#[test]
fn all_addresses_are_of_both_families_whatever_the_host_prefers() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    for prefers in ["0", "1"] {
        let prefers = format!("echo {prefers} >/proc/sys/net/ipv6/bindv6only");
        let machine = machine.clone().first(prefers);
        for listen in [
            &["[::]:50051"][..],
            &["0.0.0.0:50051", "[::]:50051"],
            &["[::]:50051", "0.0.0.0:50051"],
        ] {
            let daemon = machine.serve_on(listen, &ANY_MAY_CALL);
            for host in ["127.0.0.1", "[::1]", "localhost"] {
                runs_hello(&daemon, &format!("{host}:50051"));
            }
            assert_eq!(daemon.end().0, 0);
        }
    }
}

#[test]
fn a_command_tries_every_address_of_a_name() {
    let Some((machine, _hosts)) = network(BOTH) else {
        return;
    };
    for listen in ["127.0.0.1:50051", "[::1]:50051"] {
        let daemon = machine.serve_on(&[listen], &[]);
        runs_hello(&daemon, "localhost:50051");
        let health = beside(&daemon, &["health", "--server", listen], b"");
        assert!(health.status.success(), "{health:?}");
    }
}
