//! Guests that are after what lies outside their mounts, or after the daemon by what lies inside. That nothing which
//! they must not change has changed is looked at on the host after every row.

use ringfence::api::proto::Outcome;

use crate::folder::{Folder, MANY};
use crate::harness::SpecExt;
use crate::row::{End, Row, SOON};
use crate::{component_habit, habit};

const REFUSED_ALL: &[End] = &[End::Exits(0)];

pub(crate) fn rows(folder: &Folder) -> Vec<Row> {
    [borders(), special(folder), plenty(), sockets()]
        .into_iter()
        .flatten()
        .collect()
}

/// A folder of the run's own, to write to.
fn own(row: Row) -> Row {
    row.given(|spec, folder| spec.mount(folder.scratch(), "/own", false))
}

/// A shared one.
fn shared(row: Row, name: &'static str, read_only: bool) -> Row {
    row.given(move |spec, folder| spec.mount(folder.at(name), "/shared", read_only))
}

fn borders() -> Vec<Row> {
    let escape = |name| {
        habit(
            name,
            "It tries every path out, over names and links of the host.",
            &["escape"],
        )
    };
    let change = |name| {
        habit(
            name,
            "It tries every change of what it may only read.",
            &["readonly"],
        )
    };
    vec![
        shared(escape("paths out"), "inside", false).ends(REFUSED_ALL),
        shared(escape("paths out, read-only"), "inside", true).ends(REFUSED_ALL),
        own(habit(
            "links of its own",
            "It makes links that lead out, and follows them.",
            &["links"],
        ))
        .ends(REFUSED_ALL),
        shared(change("changes, read-only"), "readonly", true).ends(REFUSED_ALL),
        shared(
            own(habit(
                "hard links and renames",
                "It ties its folder to others.",
                &["ties"],
            )),
            "readonly",
            true,
        )
        .ends(REFUSED_ALL),
        shared(
            habit(
                "a race of links",
                "It swaps a folder and a link out, and looks.",
                &["race", "50"],
            ),
            "race",
            false,
        )
        .ends(REFUSED_ALL),
        own(habit(
            "offsets",
            "It reads and writes at the ends of what numbers can say.",
            &["offsets"],
        ))
        .ends(REFUSED_ALL),
        habit(
            "an invalid argument",
            "It seeks from where nothing is.",
            &["whence"],
        )
        .ends(&[End::Traps("host_pointer")]),
    ]
}

/// What is neither a file nor a folder. A run that it held would be TIMED_OUT.
fn special(folder: &Folder) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["fifo", "link-fifo", "null", "socket"] {
        if name == "null" && !folder.devices {
            continue;
        }
        for how in ["read", "write", "both"] {
            let row = habit(
                format!("{name} to {how}"),
                "It opens what is no file.",
                &["special", name, how],
            );
            let row = shared(row, "special", false);
            rows.push(
                row.given(|spec, _| spec.timeout(SOON * 3))
                    .ends(REFUSED_ALL),
            );
        }
        let row = habit(
            format!("{name} to read, read-only"),
            "It opens what is no file.",
            &["special", name, "read"],
        );
        let row = shared(row, "special", true);
        rows.push(
            row.given(|spec, _| spec.timeout(SOON * 3))
                .ends(REFUSED_ALL),
        );
    }
    rows
}

/// More of something than there should be.
fn plenty() -> Vec<Row> {
    let hoard = |path: &'static str| {
        habit(
            format!("descriptors of {path}"),
            "It opens until it is refused.",
            &["hoard", path],
        )
    };
    vec![
        shared(hoard("file"), "inside", true).ends(&[End::Exits(0)]),
        shared(hoard("dir"), "inside", true).ends(&[End::Exits(0)]),
        shared(
            habit(
                "a folder of 10,000",
                "It lists them all.",
                &["readdir", "1048576"],
            ),
            "many",
            true,
        )
        // Each looks at every entry.
        .crowd(4)
        .ends(&[End::Exits(0)])
        .and("all are there", |ran| {
            ran.out() == format!("{} entries\n", MANY + 2)
        }),
        shared(
            habit(
                "a folder of 10,000, by the dozen",
                "It lists them in small pieces.",
                &["readdir", "256"],
            ),
            "many",
            true,
        )
        .ends(&[End::Exits(0)])
        .and("all are there", |ran| {
            ran.out() == format!("{} entries\n", MANY + 2)
        }),
        // The depth takes seconds: one after another.
        own(habit(
            "20,000 folders deep",
            "It makes a folder in a folder in a folder.",
            &["dig", "20000"],
        ))
        .ends(&[End::Exits(0)])
        .crowd(1),
        own(habit(
            "folders as deep as time allows",
            "It makes them until it is stopped.",
            &["dig", "10000000"],
        ))
        .given(|spec, _| spec.timeout(SOON))
        .ends(&[End::Ends(Outcome::TimedOut)]),
    ]
}

fn sockets() -> Vec<Row> {
    vec![
        shared(
            habit(
                "sockets of preview 1",
                "It accepts, receives and sends on what is no socket.",
                &["sockets"],
            ),
            "inside",
            true,
        )
        .ends(REFUSED_ALL),
        component_habit(
            "sockets of a component",
            "It connects although nobody let it.",
            &["connect", "127.0.0.1:9"],
        )
        .ends(&[End::Exits(1), End::Exits(2)])
        .and("it is told so", |ran| {
            ran.out().starts_with("refused: PermissionDenied")
        }),
    ]
}
