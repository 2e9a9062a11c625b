//! The versions that `ringfence languages add` gives to the interpreters it builds are theirs.

use std::path::Path;
use std::process::Command;

use crate::Executor;
use crate::interpreters::Interpreters;

/// Prints the version of Python, as far as the language changes with it.
const PYTHON: &str = "import sys\nprint('%d.%d' % sys.version_info[:2])";

/// Prints the newest edition of which all that is looked for is there, and so is all of those
/// before it. What the engine leaves out of every edition, as docs/languages.md has it, is not
/// looked for.
const JAVASCRIPT: &str = r"
const parses = (text) => { try { new Function(text); return true } catch { return false } };
const editions = {
  ES2022: () => [].at && Object.hasOwn && /a/d.hasIndices && new Error('', { cause: 1 }).cause
    && parses('class A { static {} #x; static has(it) { return #x in it } }'),
  ES2023: () => [].findLast && [].toSorted && [].toReversed && [].toSpliced && [].with
    && new WeakMap([[Symbol(), 1]]),
  ES2024: () => Object.groupBy && Map.groupBy && Promise.withResolvers && ''.isWellFormed
    && new RegExp('[a--b]', 'v') && ArrayBuffer.prototype.transfer
    && new ArrayBuffer(1, { maxByteLength: 2 }).resizable,
  ES2025: () => Iterator.from && Iterator.prototype.map && new Set().isSubsetOf && RegExp.escape
    && new RegExp('(?i:a)') && new RegExp('(?<a>x)|(?<a>y)') && Promise.try && Math.f16round
    && Float16Array && DataView.prototype.getFloat16
    && parses('return import(name, { with: { type: \'json\' } })'),
};
let newest = 'none';
for (const [edition, isThere] of Object.entries(editions)) {
  if (!isThere()) break;
  newest = edition;
}
console.log(newest);
";

/// Adds a built interpreter to a configuration file, and returns the version that was written.
fn written_version(language: &str, module: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ringfence.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(["languages", "add", language, "--no-check", "--config"])
        .arg(&config)
        .arg("--module")
        .arg(module)
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&config).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let version = table["languages"][language]["version"].as_str();
    version.unwrap().to_owned()
}

#[tokio::test]
async fn the_versions_that_are_told_are_those_of_the_interpreters() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let code = match *language {
            "python" => PYTHON,
            _ => JAVASCRIPT,
        };
        let written = written_version(language, Interpreters::get().module(language));
        let found = executor.executed(language, code).await;
        assert_eq!(found, format!("{written}\n"), "{language}");
    }
}
