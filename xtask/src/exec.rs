//! Runs other programs: each is printed before it runs.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A cargo in the workspace's root, without what `cargo run` told this process about itself.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command and expects success.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    eprintln!("     $ {}", shown(command));
    let status = command.status().with_context(|| cannot_run(command))?;
    if !status.success() {
        bail!("{} ({status})", shown(command));
    }
    Ok(())
}

/// As [`exec`], and gives up after `limit`.
pub(crate) fn exec_within(limit: Duration, command: &mut Command) -> Result<()> {
    eprintln!("     $ {}", shown(command));
    let deadline = Instant::now() + limit;
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| cannot_run(command))?;
    loop {
        match child.try_wait().with_context(|| cannot_run(command))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("{} ({status})", shown(command)),
            None if Instant::now() > deadline => {
                child.kill().context("cannot stop it")?;
                child.wait().context("cannot wait for it")?;
                bail!("{} (no end after {} s)", shown(command), limit.as_secs());
            }
            None => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Runs a command, hands each line of its standard output to `line`, and tells whether it
/// succeeded.
pub(crate) fn stream(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    eprintln!("     $ {}", shown(command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| cannot_run(command))?;
    let stdout = child.stdout.take().context("the output was not captured")?;
    let mut reader = BufReader::new(stdout);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).with_context(|| cannot_run(command))? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
        bytes.clear();
    }
    Ok(child.wait().with_context(|| cannot_run(command))?.success())
}

/// The standard output of a command that succeeds. It is not printed: it only asks.
pub(crate) fn ask(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_run(command))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        bail!("{} ({}): {}", shown(command), output.status, log.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run {}", command.get_program().display())
}

/// The command as one could type it, without its environment.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(program.as_os_str()).display().to_string();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        line.push(' ');
        if argument.is_empty() || argument.contains([' ', '$', '*', '"']) {
            line.push_str(&format!("'{argument}'"));
        } else {
            line.push_str(&argument);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command() {
        let error = exec(Command::new("false").arg("a b")).expect_err("it fails");
        assert_eq!(error.to_string(), "false 'a b' (exit status: 1)");
    }

    #[test]
    fn a_command_without_end_is_stopped() {
        let error =
            exec_within(Duration::ZERO, Command::new("cat").arg("/dev/zero").stdout(Stdio::null()));
        assert!(error.expect_err("it never ends").to_string().contains("no end after 0 s"));
    }

    #[test]
    fn output_comes_line_by_line_with_the_outcome() {
        let mut lines = Vec::new();
        let ok = stream(Command::new("sh").args(["-c", "printf 'a\\nb'; exit 3"]), |line| {
            lines.push(line.to_owned());
        });
        assert!(!ok.expect("sh runs"));
        assert_eq!(lines, ["a", "b"]);
    }
}
