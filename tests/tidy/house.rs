//! How the house is built and named: rules that need the syntax of a file, and not only its text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::sources;

/// Names that each file may give to a type of its own.
const COMMON_NAMES: [&str; 4] = ["State", "Inner", "Settings", "Error"];
/// The longest function, in lines.
const FUNCTION_LINES: usize = 70;
/// The fewest words of the doc of an item.
const DOC_WORDS: usize = 4;
/// The widest comment.
const COMMENT_COLUMNS: usize = 100;

/// All files of the crate, parsed, relative to `src`.
fn parsed() -> Vec<(PathBuf, syn::File)> {
    sources()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|it| it == "rs"))
        .map(|(path, text)| {
            let file = syn::parse_file(&text)
                .unwrap_or_else(|error| unreachable!("src/{}: {error}", path.display()));
            (path, file)
        })
        .collect()
}

/// Whether an item is there for tests only.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute
                .path()
                .segments
                .last()
                .is_some_and(|it| it.ident == "test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|it| it.is_ident("test")))
    })
}

/// Fails with all complaints, so that they can be mended at once.
fn nothing(complaints: Vec<String>) {
    assert!(
        complaints.is_empty(),
        "{} places:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

/// Looks at the items of a file that are not there for tests.
struct Items<'a, F: FnMut(&Path, usize, Found<'_>)> {
    path: &'a Path,
    tell: F,
}

/// What is found in a file.
enum Found<'a> {
    Type(&'a syn::Ident),
    Function(&'a syn::Signature, usize),
    Doc(&'a [syn::Attribute], Option<&'a syn::Signature>, String),
    Path(&'a syn::Path),
}

impl<F: FnMut(&Path, usize, Found<'_>)> Items<'_, F> {
    fn tell(&mut self, at: proc_macro2::Span, found: Found<'_>) {
        (self.tell)(self.path, at.start().line, found);
    }

    fn named(&mut self, attributes: &[syn::Attribute], name: &syn::Ident) {
        self.tell(name.span(), Found::Doc(attributes, None, name.to_string()));
    }

    fn function(&mut self, attributes: &[syn::Attribute], head: &syn::Signature, end: usize) {
        let name = head.ident.to_string();
        let at = head.ident.span();
        self.tell(at, Found::Doc(attributes, Some(head), name));
        let lines = end - head.fn_token.span().start().line + 1;
        self.tell(at, Found::Function(head, lines));
    }
}

impl<'ast, F: FnMut(&Path, usize, Found<'_>)> Visit<'ast> for Items<'_, F> {
    fn visit_item_mod(&mut self, it: &'ast syn::ItemMod) {
        if !is_for_tests(&it.attrs) {
            visit::visit_item_mod(self, it);
        }
    }

    fn visit_item_struct(&mut self, it: &'ast syn::ItemStruct) {
        self.tell(it.ident.span(), Found::Type(&it.ident));
        self.named(&it.attrs, &it.ident);
        visit::visit_item_struct(self, it);
    }

    fn visit_item_enum(&mut self, it: &'ast syn::ItemEnum) {
        self.tell(it.ident.span(), Found::Type(&it.ident));
        self.named(&it.attrs, &it.ident);
        visit::visit_item_enum(self, it);
    }

    fn visit_item_trait(&mut self, it: &'ast syn::ItemTrait) {
        self.tell(it.ident.span(), Found::Type(&it.ident));
        self.named(&it.attrs, &it.ident);
        visit::visit_item_trait(self, it);
    }

    fn visit_item_type(&mut self, it: &'ast syn::ItemType) {
        self.tell(it.ident.span(), Found::Type(&it.ident));
        self.named(&it.attrs, &it.ident);
        visit::visit_item_type(self, it);
    }

    fn visit_item_const(&mut self, it: &'ast syn::ItemConst) {
        self.named(&it.attrs, &it.ident);
        visit::visit_item_const(self, it);
    }

    fn visit_item_static(&mut self, it: &'ast syn::ItemStatic) {
        self.named(&it.attrs, &it.ident);
        visit::visit_item_static(self, it);
    }

    fn visit_field(&mut self, it: &'ast syn::Field) {
        if let Some(name) = &it.ident {
            self.named(&it.attrs, name);
        }
        visit::visit_field(self, it);
    }

    fn visit_variant(&mut self, it: &'ast syn::Variant) {
        self.named(&it.attrs, &it.ident);
        visit::visit_variant(self, it);
    }

    fn visit_item_fn(&mut self, it: &'ast syn::ItemFn) {
        if is_for_tests(&it.attrs) {
            return;
        }
        self.function(&it.attrs, &it.sig, it.span().end().line);
        visit::visit_item_fn(self, it);
    }

    fn visit_impl_item_fn(&mut self, it: &'ast syn::ImplItemFn) {
        if is_for_tests(&it.attrs) {
            return;
        }
        self.function(&it.attrs, &it.sig, it.span().end().line);
        visit::visit_impl_item_fn(self, it);
    }

    fn visit_trait_item_fn(&mut self, it: &'ast syn::TraitItemFn) {
        self.function(&it.attrs, &it.sig, it.span().end().line);
        visit::visit_trait_item_fn(self, it);
    }

    fn visit_path(&mut self, it: &'ast syn::Path) {
        self.tell(it.span(), Found::Path(it));
        visit::visit_path(self, it);
    }
}

/// Hands all that is found in the crate, tests aside, to `tell`.
fn look(mut tell: impl FnMut(&Path, usize, Found<'_>)) {
    for (path, file) in parsed() {
        if path.components().any(|part| part.as_os_str() == "tests.rs") {
            continue;
        }
        Items {
            path: &path,
            tell: &mut tell,
        }
        .visit_file(&file);
    }
}

/// The text of an item's doc.
fn doc(attributes: &[syn::Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| {
        let syn::Meta::NameValue(it) = &attribute.meta else {
            return None;
        };
        let syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) = &it.value
        else {
            return None;
        };
        it.path
            .is_ident("doc")
            .then(|| text.value().trim().to_owned())
    });
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_type_has_its_name_for_itself() {
    let mut homes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    look(|path, line, found| {
        if let Found::Type(name) = found {
            let at = format!("src/{}:{line}", path.display());
            homes.entry(name.to_string()).or_default().push(at);
        }
    });
    assert!(homes.len() > 300, "{}", homes.len());
    homes.retain(|name, at| at.len() > 1 && !COMMON_NAMES.contains(&name.as_str()));
    nothing(
        homes
            .iter()
            .map(|(name, at)| format!("{name}: {}", at.join(", ")))
            .collect(),
    );
}

#[test]
fn a_function_fits_on_a_page() {
    let mut complaints = Vec::new();
    look(|path, line, found| {
        if let Found::Function(head, lines) = found
            && lines > FUNCTION_LINES
        {
            let name = &head.ident;
            complaints.push(format!(
                "src/{}:{line}: {name} has {lines} lines",
                path.display()
            ));
        }
    });
    nothing(complaints);
}

#[test]
fn a_doc_tells_what_the_name_does_not() {
    let mut complaints = Vec::new();
    look(|path, line, found| {
        let Found::Doc(attributes, function, name) = found else {
            return;
        };
        let doc = doc(attributes);
        let words: Vec<&str> = doc.split_whitespace().collect();
        let Some(first) = words.first() else {
            return;
        };
        let at = format!("src/{}:{line}: {name}: {doc}", path.display());
        if words.len() < DOC_WORDS {
            complaints.push(format!("{at}: has fewer than {DOC_WORDS} words"));
        } else if function.is_some()
            && !crate::verbs::VERBS.contains(&first.trim_end_matches([',', '.']))
        {
            complaints.push(format!("{at}: begins with no verb of tests/tidy/verbs.rs"));
        }
    });
    nothing(complaints);
}

#[test]
fn comments_are_no_wider_than_a_page() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        for (line, content) in text.lines().enumerate() {
            // What has no place to break, such as a link, may be longer.
            let can_break = content.trim_start().split(' ').count() > 3;
            let is_comment = content.trim_start().starts_with("//");
            if is_comment && can_break && content.chars().count() > COMMENT_COLUMNS {
                complaints.push(format!("src/{}:{}", path.display(), line + 1));
            }
        }
    }
    nothing(complaints);
}

/// The module that a file is, such as `["run", "admission"]`.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if matches!(
        parts.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        parts.pop();
    }
    parts
}

/// Which files of the crate each file names something of, by the longest path that is a module.
fn uses() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let files = parsed();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|(path, _)| module_of(path)).collect();
    let mut uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    let mut note = |path: &Path, segments: &[String]| {
        let own = module_of(path);
        let mut at = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => own.clone(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => {
                    at.pop();
                }
                name => at.push(name.to_owned()),
            }
        }
        while !modules.contains(&at) {
            at.pop();
        }
        if at != own {
            uses.entry(own).or_default().insert(at);
        }
    };
    for (path, file) in &files {
        if path.components().any(|part| part.as_os_str() == "tests.rs") {
            continue;
        }
        for item in &file.items {
            if let syn::Item::Use(it) = item {
                let mut leaves = Vec::new();
                flatten(&it.tree, &mut Vec::new(), &mut leaves);
                leaves.iter().for_each(|leaf| note(path, leaf));
            }
        }
        Items {
            path,
            tell: |path: &Path, _: usize, found: Found<'_>| {
                if let Found::Path(it) = found {
                    let segments: Vec<String> =
                        it.segments.iter().map(|it| it.ident.to_string()).collect();
                    note(path, &segments);
                }
            },
        }
        .visit_file(file);
    }
    uses
}

/// Every path that a `use` names.
fn flatten(tree: &syn::UseTree, before: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    let mut leaf = |name: Option<String>| {
        let mut path = before.clone();
        path.extend(name);
        leaves.push(path);
    };
    match tree {
        syn::UseTree::Path(it) => {
            before.push(it.ident.to_string());
            flatten(&it.tree, before, leaves);
            before.pop();
        }
        syn::UseTree::Name(it) => leaf(Some(it.ident.to_string())),
        syn::UseTree::Rename(it) => leaf(Some(it.ident.to_string())),
        syn::UseTree::Glob(_) => leaf(None),
        syn::UseTree::Group(it) => {
            for tree in &it.items {
                flatten(tree, before, leaves);
            }
        }
    }
}

/// The rooms of `src`, each with those that it may use. A room may only name rooms
/// further down, and `sync` is everybody's.
const ROOMS: [(&str, &[&str]); 28] = [
    ("main", &["cli"]),
    (
        "cli",
        &[
            "app",
            "api",
            "language",
            "sandbox",
            "signals",
            "hardening",
            "process_limits",
            "telemetry",
            "config",
            "heap",
            "host_limit",
            "trust_store",
            "model",
        ],
    ),
    (
        "fuzz",
        &["app", "api", "run", "config", "auth", "store", "model"],
    ),
    (
        "bench",
        &[
            "app",
            "api",
            "library",
            "run",
            "sandbox",
            "config",
            "event_log",
            "model",
        ],
    ),
    (
        "app",
        &[
            "admin",
            "archive",
            "api",
            "language",
            "library",
            "run",
            "sandbox",
            "hardening",
            "process_limits",
            "config",
            "auth",
            "store",
            "host_limit",
            "metrics",
            "telemetry",
            "otlp",
            "model",
        ],
    ),
    ("admin", &["api", "run", "config", "metrics", "model"]),
    (
        "api",
        &[
            "language",
            "archive",
            "library",
            "run",
            "sandbox",
            "config",
            "auth",
            "event_log",
            "otlp",
            "metrics",
            "model",
        ],
    ),
    ("language", &["model"]),
    ("library", &["run", "sandbox", "store", "model"]),
    (
        "run",
        &[
            "sandbox",
            "archive",
            "telemetry",
            "store",
            "event_log",
            "otlp",
            "metrics",
            "model",
        ],
    ),
    (
        "sandbox",
        &[
            "telemetry",
            "store",
            "event_log",
            "otlp",
            "host_limit",
            "metrics",
            "model",
        ],
    ),
    ("signals", &["telemetry"]),
    ("hardening", &["config"]),
    ("process_limits", &["config"]),
    ("telemetry", &["config", "metrics", "model"]),
    ("config", &["auth", "store", "model"]),
    ("auth", &["trust_store", "model"]),
    ("archive", &["store", "metrics", "model"]),
    ("store", &["host_limit", "trust_store", "metrics", "model"]),
    ("event_log", &["metrics", "model"]),
    ("otlp", &["trust_store", "metrics", "model"]),
    ("host_limit", &["model"]),
    ("heap", &[]),
    ("trust_store", &[]),
    ("metrics", &["model"]),
    ("model", &[]),
    ("sync", &[]),
    ("lib", &[]),
];

#[test]
fn dependencies_point_one_way() {
    let position = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    let mut complaints = Vec::new();
    for (room, uses) in ROOMS {
        for used in uses {
            let is_below = position(used).is_some_and(|it| Some(it) > position(room));
            if !is_below {
                complaints.push(format!("ROOMS: {used} is not below {room}"));
            }
        }
    }
    for (from, used) in uses() {
        let Some(room) = from.first() else { continue };
        let Some((_, may_use)) = ROOMS.iter().find(|(name, _)| name == room) else {
            complaints.push(format!("{room} has no row in ROOMS"));
            continue;
        };
        for to in used.iter().filter_map(|to| to.first()) {
            let is_everybodys = to == "sync";
            if to != room && !is_everybodys && !may_use.contains(&to.as_str()) {
                complaints.push(format!("{} may not use {to}", from.join("::")));
            }
        }
    }
    nothing(complaints);
}

#[test]
fn files_of_a_room_use_each_other_one_way() {
    let uses = uses();
    let mut complaints = Vec::new();
    for from in uses.keys() {
        // A room's own file brings its parts together, and its parts may use what it declares.
        let is_part = |to: &Vec<String>| {
            to.first() == from.first() && !from.starts_with(to) && !to.starts_with(from)
        };
        let mut seen = BTreeSet::new();
        let mut todo: Vec<Vec<Vec<String>>> = vec![vec![from.clone()]];
        while let Some(way) = todo.pop() {
            let last = way.last().unwrap();
            for to in uses.get(last).into_iter().flatten() {
                let parts = to.first() == from.first()
                    && !last.starts_with(to.as_slice())
                    && !to.starts_with(last.as_slice());
                if !parts {
                    continue;
                }
                if to == from && is_part(last) {
                    let way: Vec<String> = way.iter().map(|it| it.join("::")).collect();
                    complaints.push(way.join(" -> "));
                } else if seen.insert(to.clone()) {
                    let mut longer = way.clone();
                    longer.push(to.clone());
                    todo.push(longer);
                }
            }
        }
    }
    nothing(complaints);
}

#[test]
fn a_permit_has_a_type() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        for (line, content) in crate::code(&text) {
            if content.contains("dyn Any") {
                complaints.push(format!("src/{}:{line}: {}", path.display(), content.trim()));
            }
        }
    }
    nothing(complaints);
}
