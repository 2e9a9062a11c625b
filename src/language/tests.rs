use std::collections::BTreeSet;

use super::*;
use crate::model::request::ModuleRef;

/// Builds a language with an interpreter of this protocol.
fn language(name: &str, version: &str, aliases: &[&str], protocol: Protocol) -> Language {
    Language {
        name: name.to_owned(),
        version: version.to_owned(),
        aliases: aliases.iter().map(|it| (*it).to_owned()).collect(),
        interpreter: Interpreter::Provided {
            digest: Digest::of(name.as_bytes()),
            protocol,
            args: ["run", "-c", "{code}", "{args}", "--"]
                .map(str::to_owned)
                .into(),
            env: vec![
                ("HOME".to_owned(), "/".to_owned()),
                ("LANG".to_owned(), "C".to_owned()),
            ],
        },
        file: "main.x".to_owned(),
        limits: RequestedLimits::default(),
    }
}

fn catalogue() -> Catalogue {
    let languages = vec![
        language("python", "3.14.0", &["py"], Protocol::Runner),
        language(
            "python3.12",
            "3.12.7",
            &["py", "python"],
            Protocol::Argument,
        ),
        language("ruby", "", &[], Protocol::Stdin),
    ];
    let profile = |clock| ExecutionProfile {
        clock,
        ..ExecutionProfile::default()
    };
    let profiles = [("standard", profile(true)), ("hardened", profile(false))];
    let profiles = profiles.map(|(name, profile)| (name.to_owned(), profile));
    Catalogue::new(languages, profiles.into())
}

fn program() -> Program {
    Program {
        code: "the code".to_owned(),
        args: vec!["one".to_owned(), "two".to_owned()],
        env: vec![("LANG".to_owned(), "de".to_owned())],
        stdin: Bytes::new(),
        is_input_open: false,
        max_args: 1000,
        clock: true,
    }
}

#[test]
fn a_language_is_found_by_name_alias_and_the_beginning_of_its_version() {
    let (catalogue, grants) = (catalogue(), Grants::default());
    let found = |name: &str, version: &str| {
        let found = catalogue.find(name, version, &grants);
        found.map(|it| it.name.clone()).map_err(|it| it.reason())
    };
    for (name, version, expected) in [
        ("python", "", "python"),
        ("PYTHON", "3", "python"),
        ("py", "3.14", "python"),
        ("python", "3.12", "python3.12"),
        ("py", "3.12.7", "python3.12"),
        ("ruby", "", "ruby"),
        ("wat", "", "wat"),
        ("wasm", "", "wasm"),
    ] {
        assert_eq!(
            found(name, version),
            Ok(expected.to_owned()),
            "{name} {version}"
        );
    }
    for (name, version) in [
        ("perl", ""),
        ("python", "3.1"),
        ("python", "3.14.0.1"),
        ("python", "2"),
        ("ruby", "3"),
        ("pyth", ""),
        ("main", ""),
    ] {
        let refused = found(name, version);
        assert_eq!(
            refused,
            Err(Reason::UnsupportedLanguage),
            "{name} {version}"
        );
    }
    assert_eq!(found("", ""), Err(Reason::SpecInvalid));
    let message = catalogue.find("perl", "", &grants).unwrap_err().to_string();
    assert!(
        message.ends_with("there are: python, python3.12, ruby, wasm, wat"),
        "{message}"
    );
    let message = catalogue.find("py", "2", &grants).unwrap_err().to_string();
    assert!(message.ends_with("there are: 3.14.0, 3.12.7"), "{message}");
}

#[test]
fn what_is_not_granted_is_not_there() {
    let grants = Grants {
        languages: Some(BTreeSet::from(["ruby".to_owned(), "wat".to_owned()])),
        ..Grants::default()
    };
    let catalogue = catalogue();
    let names: Vec<_> = catalogue.languages(&grants).map(|it| &*it.name).collect();
    assert_eq!(names, ["ruby", "wat"]);
    let refused = catalogue
        .find("python", "", &grants)
        .unwrap_err()
        .to_string();
    assert!(refused.ends_with("there are: ruby, wat"), "{refused}");
}

#[test]
fn profiles_are_found_by_name_and_the_default_is_standard() {
    let catalogue = catalogue();
    assert!(catalogue.profile("").unwrap().clock);
    assert!(!catalogue.profile("hardened").unwrap().clock);
    let refused = catalogue.profile("soft\n").unwrap_err().to_string();
    assert!(refused.contains("\"soft\\n\" is unknown") && refused.contains("hardened, standard"));
}

#[test]
fn an_interpreter_gets_its_program_as_its_protocol_says() {
    let (catalogue, grants) = (catalogue(), Grants::default());
    let command = |name: &str| {
        let language = catalogue.find(name, "", &grants).unwrap();
        language.command(program(), None).unwrap()
    };
    let by_argument = command("python3.12");
    assert_eq!(
        by_argument.args,
        ["run", "-c", "the code", "one", "two", "--"]
    );
    let env = [("HOME", "/"), ("LANG", "de")].map(|(key, value)| (key.into(), value.into()));
    assert_eq!(by_argument.env, env);
    let by_stdin = command("ruby");
    assert_eq!(&*by_stdin.stdin, b"the code");
    let by_runner = command("python");
    assert_eq!(by_runner.args, ["main.x"]);
    assert!(by_runner.stdin.len() > 100);
    assert!(matches!(by_runner.module, ModuleRef::Provided(it) if it == Digest::of(b"python")));
    let taken = Program {
        stdin: Bytes::from_static(b"more"),
        ..program()
    };
    let ruby = catalogue.find("ruby", "", &grants).unwrap();
    assert_eq!(
        ruby.command(taken, None).err().unwrap().field(),
        Some("spec.stdin")
    );
}

#[test]
fn a_program_that_is_a_module_is_run_as_one() {
    let (catalogue, grants) = (catalogue(), Grants::default());
    let wat = catalogue.find("wat", "", &grants).unwrap();
    let command = wat
        .command(program(), Some(Bytes::from_static(b"(module)")))
        .unwrap();
    assert_eq!(command.args, ["main.wat", "one", "two"]);
    assert!(matches!(command.module, ModuleRef::Inline(it) if &*it == b"(module)"));
    let plain = Program {
        args: Vec::new(),
        ..program()
    };
    assert!(
        wat.command(plain, Some(Bytes::new()))
            .unwrap()
            .args
            .is_empty()
    );
    assert!(wat.command(program(), None).is_err());
}

#[test]
fn a_template_without_a_place_for_arguments_has_them_last() {
    let template = ["php", "{code}"].map(str::to_owned);
    assert_eq!(
        filled(&template, &program(), "/main.php"),
        ["php", "the code", "one", "two"]
    );
}

#[test]
fn a_program_can_be_a_file_whose_path_is_an_argument() {
    let mut php = language("php", "", &[], Protocol::File);
    php.file = "main.php".to_owned();
    let Interpreter::Provided { args, .. } = &mut php.interpreter else {
        panic!("it has an interpreter");
    };
    *args = ["php", "-q", "{file}"].map(str::to_owned).into();
    let command = php.command(program(), None).unwrap();
    assert_eq!(command.args, ["php", "-q", "/main.php", "one", "two"]);
    let file = ("/main.php".to_owned(), Bytes::from_static(b"the code"));
    assert_eq!((command.file, command.preface), (Some(file), 0));
}

#[test]
fn a_program_that_is_the_input_has_no_other_and_one_that_is_an_argument_fits() {
    let (catalogue, grants) = (catalogue(), Grants::default());
    let field = |name: &str, program: Program| {
        let language = catalogue.find(name, "", &grants).unwrap();
        let refused = language.command(program, None).err();
        refused.and_then(|refusal| refusal.field().map(str::to_owned))
    };
    let live = || Program {
        is_input_open: true,
        ..program()
    };
    assert_eq!(field("ruby", live()).as_deref(), Some("spec.open_stdin"));
    assert_eq!(field("python", live()), None);
    // "run -c CODE one two --", each with its terminator.
    let sized = |max_args| Program {
        max_args,
        ..program()
    };
    let bytes = "run\0-c\0the code\0one\0two\0--\0".len() as u64;
    assert_eq!(field("python3.12", sized(bytes)), None);
    assert_eq!(
        field("python3.12", sized(bytes - 1)).as_deref(),
        Some("spec.code")
    );
}
