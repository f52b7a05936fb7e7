//! What is made of the command line's definition: completions for shells, and manual pages.

use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;

/// Writes the completions for a shell.
///
/// # Errors
///
/// Those of writing.
pub fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut without_hidden_commands(), "spanprof", &mut text);
    out.write_all(&text)
}

/// Shells would offer them.
fn without_hidden_commands() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
    Command::new("spanprof")
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments())
        .subcommands(shown)
}

/// Writes a manual page for the program and for each of its commands: `spanprof.1`,
/// `spanprof-record.1`, …
///
/// # Errors
///
/// The folder is not there, or cannot be written to.
pub fn manual(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn each_shell_completes_every_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            completions(shell, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            for word in ["record", "pyroscope-url", "relabel-configs", "local-root"] {
                assert!(text.contains(word), "{shell} {word}");
            }
            assert!(!text.contains("symbolize-worker"), "{shell}");
        }
    }

    #[test]
    fn each_command_has_a_page_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        manual(folder.path()).unwrap();
        let names = fs::read_dir(folder.path()).unwrap();
        let names: BTreeSet<String> =
            names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        let mut cli = Cli::command();
        cli.build();
        let shown = cli.get_subcommands().filter(|it| !it.is_hide_set() && it.get_name() != "help");
        for command in shown {
            let name = format!("spanprof-{}.1", command.get_name());
            assert!(names.contains(&name), "{name} is not in {names:?}");
            let page = fs::read_to_string(folder.path().join(name)).unwrap();
            for option in command.get_arguments().filter(|it| !it.is_hide_set()) {
                let long = option.get_long().unwrap_or_default().replace('-', "\\-");
                assert!(page.contains(&long), "{long} is not in\n{page}");
            }
        }
        assert!(names.contains("spanprof.1") && !names.iter().any(|it| it.contains("worker")));
    }
}
