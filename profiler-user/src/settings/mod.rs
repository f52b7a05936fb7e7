//! Where the options of `run` come from: the command line, else a variable, else a file, else the
//! default.
//!
//! The file is one more command line: what it says is put before what was typed, unless that or a
//! variable says something else. So there is one definition of each option, and one check.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _,
    error::ErrorKind, parser::ValueSource,
};

use crate::cli::{self, Cli, ConfigCommand};

mod file;
mod print;

pub use file::FileError;
pub use print::print;

/// What was asked for, and by whom.
#[derive(Debug)]
pub struct Settings {
    /// As if all of it had been typed.
    pub cli: Cli,
    /// The options as text, for [`print`]: of the command itself.
    matches: ArgMatches,
    /// The keys of those that the file says and nobody else.
    from_file: HashSet<String>,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// What was typed, help and version included: clap knows how to say it.
    #[error(transparent)]
    Typed(#[from] clap::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Makes sense of the arguments of the program, the first of which is its name.
///
/// # Errors
///
/// They cannot be meant, or the file that they name is not one of options.
pub fn settings(arguments: &[OsString]) -> Result<Settings, SettingsError> {
    let typed = Cli::command().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&typed)?;
    let Some(path) = config_file(&cli.command) else {
        let matches = innermost(&typed).clone();
        return Ok(Settings { cli, matches, from_file: HashSet::new() });
    };
    let options = options();
    let (mut before, mut from_file) = (Vec::new(), HashSet::new());
    for entry in file::read(&path, &options)? {
        let source = innermost(&typed).value_source(entry.option.get_id().as_str());
        let said = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        check(&path, &entry)?;
        if !said {
            before.extend(entry.arguments());
            from_file.insert(key(&entry.option));
        }
    }
    let at = arguments.iter().position(|it| commands().contains(&it.as_os_str()));
    // The name of the command is the last word before options: `run`, `config check`.
    let (head, tail) = arguments.split_at(at.map_or(arguments.len(), |at| at + 1));
    let all = [head, &before, tail].concat();
    let matches = Cli::command().try_get_matches_from(all)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok(Settings { cli, matches: innermost(&matches).clone(), from_file })
}

impl Settings {
    /// The keys of the options that are not as they were.
    #[must_use]
    pub fn differing(&self, before: &Self) -> Vec<String> {
        let raw = |settings: &Self, option: &Arg| -> Vec<OsString> {
            let values = settings.matches.get_raw(option.get_id().as_str());
            values.into_iter().flatten().map(OsStr::to_owned).collect()
        };
        let differs = |option: &Arg| raw(self, option) != raw(before, option);
        options().iter().filter(|option| differs(option)).map(key).collect()
    }
}

fn commands() -> [&'static OsStr; 3] {
    ["run", "check", "print"].map(OsStr::new)
}

fn config_file(command: &cli::Command) -> Option<PathBuf> {
    match command {
        cli::Command::Run(run)
        | cli::Command::Config(ConfigCommand::Check(run) | ConfigCommand::Print(run)) => {
            run.config.clone()
        }
        _ => None,
    }
}

fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| innermost(inner))
}

/// The options of `run` that can stand in a file.
fn options() -> Vec<Arg> {
    let mut cli = Cli::command();
    cli.build();
    let run = cli.find_subcommand("run").into_iter().flat_map(Command::get_arguments);
    let of_file = |option: &&Arg| {
        let is_other = ["help", "config", "verbose"].contains(&option.get_id().as_str());
        option.get_long().is_some() && !option.is_hide_set() && !is_other
    };
    run.filter(of_file).cloned().collect()
}

/// The key of an option: its name with `_`.
fn key(option: &Arg) -> String {
    option.get_long().unwrap_or_default().replace('-', "_")
}

fn is_switch(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue)
}

/// An error of a value is told with its line; what depends on others is told later, by all.
fn check(path: &std::path::Path, entry: &file::Entry) -> Result<(), FileError> {
    let alone = [OsString::from("spanprof"), "run".into()].into_iter().chain(entry.arguments());
    let Err(error) = Cli::command().try_get_matches_from(alone) else { return Ok(()) };
    let of_value = [ErrorKind::InvalidValue, ErrorKind::ValueValidation, ErrorKind::NoEquals];
    if !of_value.contains(&error.kind()) {
        return Ok(());
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let what = text.split("\n\nFor more").next().unwrap_or(text).trim().replace('\n', " ");
    Err(FileError::Value { path: path.to_owned(), line: entry.line, what })
}

#[cfg(test)]
mod tests;
