//! Packages of PyPI and npm that are baked into an interpreter.

use ringfence::api::proto::ExecuteRequest;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;

use crate::harness::{Daemon, channel};
use crate::interpreters::{artifacts, refused_build, with_packages};
use crate::program;

/// Executes a program in an interpreter of its own, and returns what it wrote.
async fn wrote(language: &str, module: &std::path::Path, code: &str) -> String {
    let languages = format!("{{ {language} = {{ module = \"{}\" }} }}", module.display());
    let [dir, key] = artifacts();
    let set = [
        ("languages", languages.as_str()),
        (dir.0, &dir.1),
        (key.0, &key.1),
    ];
    let daemon = Daemon::with(&set).await;
    let mut client = ExecutionServiceClient::new(channel(&daemon.addr).await);
    let spec = Some(program(language, code));
    let answer = client.execute(ExecuteRequest { spec }).await.unwrap();
    let answer = answer.into_inner();
    let told = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(answer.result.unwrap().exit_code, Some(0), "{told}");
    String::from_utf8(answer.stdout.to_vec()).unwrap()
}

#[tokio::test]
async fn a_package_of_pypi_is_baked_in_and_imported_when_that_is_asked() {
    let options = "--with six==1.16.0 --with tomli==2.0.1 --import six";
    let Some(module) = with_packages("python", options) else {
        return;
    };
    let code = "import sys\nprint('six' in sys.modules, 'tomli' in sys.modules)\n\
                import six, tomli\nprint(six.__version__, tomli.loads('a = 1'))";
    let told = wrote("python", &module, code).await;
    assert_eq!(told, "True False\n1.16.0 {'a': 1}\n");
}

#[tokio::test]
async fn a_package_of_npm_is_bundled() {
    let options = "--with is-number@7.0.0 --import is-number";
    let Some(module) = with_packages("javascript", options) else {
        return;
    };
    let code = "const is = require('is-number'); console.log(is('5'), is('x'))";
    assert_eq!(wrote("javascript", &module, code).await, "true false\n");
}

#[test]
fn a_package_with_native_code_is_refused_by_name() {
    if crate::Interpreters::get().names().contains(&"python")
        && let Some(told) = refused_build("python", "--with markupsafe==3.0.2")
    {
        assert!(told.contains("markupsafe==3.0.2"), "{told}");
        assert!(told.contains("native code cannot be baked in"), "{told}");
    }
}
