//! The command line: our own words, and those that `cargo test` hands to every test binary.

use std::path::PathBuf;

/// Every row, in the order in which they run.
const ROWS: [&str; 14] = [
    "health",
    "overload",
    "neighbour",
    "answers",
    "connections",
    "directories",
    "files",
    "compiles",
    "modules",
    "overshoot",
    "drain",
    "vanish",
    "malformed",
    "soak",
];

/// What libtest takes with a value in the next word.
const WITH_VALUE: [&str; 7] = [
    "--test-threads",
    "--skip",
    "--format",
    "--color",
    "--logfile",
    "--shuffle-seed",
    "-Z",
];

/// What is asked for.
pub(crate) struct Ask {
    pub rows: Vec<&'static str>,
    pub scale: Scale,
    /// Where the findings go; the file's name is that of their table.
    pub json: Option<PathBuf>,
    /// Name the rows and run none.
    pub list: bool,
}

/// How long and how often.
pub(crate) struct Scale {
    pub full: bool,
    pub soak_runs: usize,
}

impl Scale {
    /// The value of this form.
    pub(crate) fn pick<T>(&self, short: T, full: T) -> T {
        if self.full { full } else { short }
    }
}

impl Ask {
    /// In the long form every word is ours. In the short form a name is a filter as libtest has it, and its options mean
    /// nothing here.
    pub(crate) fn parse(words: Vec<String>) -> Result<Self, String> {
        let full = words.iter().any(|word| word == "--full");
        let mut soak_runs = if full { 2_000_000 } else { 5_000 };
        let (mut names, mut list, mut none) = (Vec::new(), false, false);
        let mut json = None;
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--full" => {}
                "--list" => list = true,
                "--soak-runs" => {
                    let number = words.next().and_then(|number| number.parse().ok());
                    soak_runs = number.ok_or("--soak-runs takes a number")?;
                }
                "--json" => json = Some(words.next().ok_or("--json takes a file")?.into()),
                // No row is an ignored test.
                "--ignored" => none = true,
                option if option.starts_with('-') && full => {
                    return Err(format!("no option {option}"));
                }
                option if WITH_VALUE.contains(&option) => drop(words.next()),
                option if option.starts_with('-') => {}
                name => names.push(name.to_owned()),
            }
        }
        if full && let Some(name) = names.iter().find(|name| !ROWS.contains(&name.as_str())) {
            return Err(format!("no row {name}; there are {}", ROWS.join(", ")));
        }
        let wanted = |row: &str| names.is_empty() || names.iter().any(|name| row.contains(name));
        let rows = ROWS
            .into_iter()
            .filter(|row| !none && wanted(row))
            .collect();
        let scale = Scale { full, soak_runs };
        Ok(Self {
            rows,
            scale,
            json,
            list,
        })
    }
}
