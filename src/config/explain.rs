//! Explanations of configuration errors for whoever wrote the setting: where it stands, and which
//! key may have been meant.

use super::deserialize::{SettingError, SettingErrorKind};
use super::environment::{SettingOverride, variable_of};
use super::problems::{Problem, Problems};
use super::tree::{Setting, SettingOrigin};

/// Explains why a setting could not be read. `defaults` has every key that exists outside of lists.
pub(super) fn problem_of(
    unread: &SettingError,
    defaults: &Setting,
    given: &[SettingOverride],
) -> Problem {
    let mut key = unread.key();
    let allowed = match &unread.cause {
        SettingErrorKind::NotAllowed(allowed) => allowed.clone(),
        SettingErrorKind::Other(why) => why.clone(),
        SettingErrorKind::NoSuchKey(known) => {
            // The whole key of a variable or a flag is longer than the part of it that is unknown.
            let own = given
                .iter()
                .find(|it| Some(&it.origin) == unread.origin.as_ref());
            if let Some(own) = own.filter(|own| own.key.starts_with(&key)) {
                key.clone_from(&own.key);
            }
            let keys = match key.contains('[') {
                // For a key inside a list, the candidates are the keys beside it.
                true => beside(&key, known),
                false => defaults.keys(),
            };
            let is_variable = matches!(unread.origin, Some(SettingOrigin::Variable(_)));
            match nearest(&key, &keys) {
                // A part of a list has no variable of its own.
                Some(near) if is_variable && !near.contains('[') => {
                    format!(
                        "there is no such key; did you mean {near} ({})?",
                        variable_of(near)
                    )
                }
                Some(near) => format!("there is no such key; did you mean {near}?"),
                None => format!(
                    "there is no such key; the known keys are {}",
                    known.join(", ")
                ),
            }
        }
    };
    Problem {
        origin: unread.origin.as_ref().map(ToString::to_string),
        key,
        value: unread.value.clone(),
        allowed,
    }
}

/// Adds to each problem where its setting was written, and where the settings were that it has to
/// agree with.
pub(super) fn add_origins(problems: Problems, tree: &Setting) -> Problems {
    let source = |key: &str| match &tree.deepest_at(key).origin {
        SettingOrigin::Default => None,
        written @ (SettingOrigin::File { .. }
        | SettingOrigin::Variable(_)
        | SettingOrigin::Flag(_)
        | SettingOrigin::Command) => Some(written.to_string()),
    };
    let explained = problems.0.into_iter().map(|problem| {
        let key = element(&problem, tree);
        let written = source(&key);
        let is_part = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
        let mut others: Vec<String> = problem
            .allowed
            .split(|c| !is_part(c))
            .filter(|word| word.contains('.') && *word != problem.key)
            .filter_map(|word| source(word).map(|place| format!("{word} is set by {place}")))
            .collect();
        others.dedup();
        let allowed = match others.is_empty() {
            true => problem.allowed,
            false => format!("{} ({})", problem.allowed, others.join("; ")),
        };
        Problem {
            origin: written,
            allowed,
            ..problem
        }
    });
    Problems(explained.collect())
}

/// Returns the key of a problem, extended by the index of the list element whose value it reports.
fn element(problem: &Problem, tree: &Setting) -> String {
    let list = tree.deepest_at(&problem.key).elements();
    let at = list.iter().position(|it| {
        let text = it.to_string();
        text.trim_matches('"') == problem.value.trim_matches('"')
    });
    match at {
        Some(index) => format!("{}[{index}]", problem.key),
        None => problem.key.clone(),
    }
}

fn beside(key: &str, known: &[&str]) -> Vec<String> {
    let around = key.rsplit_once('.').map_or("", |(around, _)| around);
    known.iter().map(|it| format!("{around}.{it}")).collect()
}

/// Finds the key that was most likely meant: one that is spelt almost the same, or the same name in
/// another table.
fn nearest<'a>(key: &str, keys: &'a [String]) -> Option<&'a str> {
    let spelt = |key: &str| key.replace(['.', '-'], "_").to_lowercase();
    let wanted = spelt(key);
    let close = keys
        .iter()
        .map(|it| (edit_distance(&wanted, &spelt(it)), it));
    let most = (wanted.chars().count() / 4).clamp(1, 4);
    let close = close.filter(|(distance, _)| *distance <= most).min();
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let elsewhere = || keys.iter().find(|it| last(it) == last(key));
    close
        .map(|(_, it)| it)
        .or_else(elsewhere)
        .map(String::as_str)
}

/// Computes the Levenshtein distance: how many characters have to be added, removed or replaced to
/// turn one text into the other.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, c) in one.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, d) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(c != *d);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{edit_distance, nearest};

    #[test]
    fn the_distance_is_of_single_characters() {
        for (one, other, far) in [
            ("", "", 0),
            ("a", "", 1),
            ("admision", "admission", 1),
            ("slots", "slot", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(
                (edit_distance(one, other), edit_distance(other, one)),
                (far, far)
            );
        }
    }

    #[test]
    fn what_was_meant_is_near_or_the_same_elsewhere() {
        let keys = ["admission", "admission.slots", "server.drain_grace"].map(str::to_owned);
        for (key, near) in [
            ("admision.slots", Some("admission.slots")),
            ("server_drain_grace", Some("server.drain_grace")),
            ("server.slots", Some("admission.slots")),
            ("quite.different", None),
        ] {
            assert_eq!(nearest(key, &keys), near, "{key}");
        }
    }
}
