//! The `spanprof` binary: from arguments to an exit code.
//!
//! 0: done. 1: it failed. 2: what was asked for cannot be, or a privilege is missing.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd as _,
    process::ExitCode,
};

use anyhow::Context as _;
use profiler_user::capture::support::{Check, Facts, Verdict};
use profiler_user::capture::trial::trial;
use profiler_user::cli::{Command, ConfigCommand};
use profiler_user::config::{OutputsConfig, RecordConfig, RunConfig};
use profiler_user::documents;
use profiler_user::inspect;
use profiler_user::pipeline::run::Reloaded;
use profiler_user::pipeline::{record, replay, run};
use profiler_user::privilege::Setup;
use profiler_user::settings::{Settings, SettingsError, print, settings};
use profiler_user::symbolize::worker;
use tracing_subscriber::EnvFilter;

/// What was asked for cannot be, or a privilege is missing.
const CANNOT: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let settings = match settings(&arguments) {
        Ok(settings) => settings,
        Err(SettingsError::Typed(error)) => error.exit(),
        Err(SettingsError::File(error)) => return cannot(&error),
    };
    start_log(settings.cli.verbose, &settings.cli.command);
    match execute(settings, arguments) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("spanprof: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn execute(settings: Settings, arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    match settings.cli.command.clone() {
        Command::Record(typed) => {
            let config = match RecordConfig::new(typed) {
                Ok(config) => config,
                Err(error) => return Ok(cannot(&error)),
            };
            if let Some(code) = privileges_missing() {
                return Ok(code);
            }
            let mut progress: Box<dyn Write> = if io::stderr().is_terminal() {
                Box::new(io::stderr())
            } else {
                Box::new(io::sink())
            };
            let runtime = runtime()?;
            let recorded =
                runtime.block_on(record::record(config, &mut io::stdout(), &mut progress));
            // A command that goes on is not waited for.
            runtime.shutdown_background();
            recorded?;
        }
        Command::Run(typed) => {
            let config = match RunConfig::new(*typed, record::host_name()) {
                Ok(config) => config,
                Err(error) => return Ok(cannot(&error)),
            };
            if let Some(code) = privileges_missing() {
                return Ok(code);
            }
            // Before there are other threads, which would have everything.
            let setup = Setup::split().context("cannot give up capabilities")?;
            let reload = Box::new(move || reload(&settings, &arguments));
            runtime()?.block_on(run::run(config, setup, reload))?;
        }
        Command::Config(ConfigCommand::Check(typed)) => {
            let config = match RunConfig::new(*typed, record::host_name()) {
                Ok(config) => config,
                Err(error) => return Ok(cannot(&error)),
            };
            let endpoints = config.endpoints.iter().map(|endpoint| &endpoint.pyroscope);
            for server in [&config.pyroscope].into_iter().chain(endpoints) {
                if let Err(error) = server.check() {
                    return Ok(cannot(&error));
                }
            }
        }
        Command::Completions { shell } => documents::completions(shell, &mut io::stdout())?,
        Command::Man { folder } => documents::manual(&folder)
            .with_context(|| format!("cannot write manual pages into {}", folder.display()))?,
        Command::Config(ConfigCommand::Print(_)) => print(&settings, &mut io::stdout())?,
        Command::Replay(typed) => {
            let config = match OutputsConfig::new(typed.outputs) {
                Ok(config) => config,
                Err(error) => return Ok(cannot(&error)),
            };
            replay::replay(typed.file, &config, &mut io::stdout())?;
        }
        Command::Inspect(typed) => inspect::inspect(&typed.into(), &mut io::stdout())?,
        Command::Doctor => return doctor(&mut io::stdout()).map_err(Into::into),
        Command::SymbolizeWorker => worker::run(io::stdin().as_fd().try_clone_to_owned()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The options as they are now.
fn reload(before: &Settings, arguments: &[OsString]) -> anyhow::Result<Reloaded> {
    let now = settings(arguments)?;
    let Command::Run(typed) = now.cli.command.clone() else { anyhow::bail!("not run") };
    let others =
        now.differing(before).into_iter().filter(|key| !run::TAKEN_AT_ONCE.contains(&&**key));
    let for_the_next_start = others.collect();
    let config = RunConfig::new(*typed, record::host_name())?;
    Ok(Reloaded { rules: config.rules, for_the_next_start })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Prints what is there and what each missing thing costs.
fn doctor(out: &mut dyn Write) -> io::Result<ExitCode> {
    let is_fatal = |checks: &[Check]| {
        checks.iter().any(|check| matches!(check.verdict, Verdict::Fatal { .. }))
    };
    let mut checks = Facts::gather().checks();
    if !is_fatal(&checks) {
        checks.extend(trial());
    }
    for Check { what, verdict } in &checks {
        match verdict {
            Verdict::Ok => writeln!(out, "ok       {what}")?,
            Verdict::Degraded { cost, remedy } => {
                writeln!(out, "worse    {what}: {cost} ({remedy})")?;
            }
            Verdict::Fatal { cost, remedy } => {
                writeln!(out, "MISSING  {what}: {cost} ({remedy})")?;
            }
        }
    }
    Ok(if is_fatal(&checks) { ExitCode::from(CANNOT) } else { ExitCode::SUCCESS })
}

/// Before sampling: one line per missing thing and what it costs.
fn privileges_missing() -> Option<ExitCode> {
    let mut fatal = false;
    for Check { what, verdict } in Facts::gather().checks() {
        match verdict {
            Verdict::Ok => {}
            Verdict::Degraded { cost, remedy } => {
                complain(&format!("spanprof: {what}: {cost} ({remedy})"));
            }
            Verdict::Fatal { cost, remedy } => {
                complain(&format!("spanprof: {what}: {cost} ({remedy})"));
                fatal = true;
            }
        }
    }
    fatal.then_some(ExitCode::from(CANNOT))
}

fn cannot(error: &dyn std::error::Error) -> ExitCode {
    complain(&format!("spanprof: {error}"));
    ExitCode::from(CANNOT)
}

fn complain(line: &str) {
    // Without a standard error there is nobody to tell.
    drop(writeln!(io::stderr(), "{line}"));
}

fn start_log(verbose: u8, command: &Command) {
    let quiet = if matches!(command, Command::Run(_)) { "info" } else { "warn" };
    let level = match verbose {
        0 => quiet,
        1 => "debug",
        _ => "trace",
    };
    let bpf_log = match command {
        Command::Record(typed) => typed.sampling.bpf_log,
        Command::Run(typed) => typed.sampling.bpf_log,
        _ => false,
    };
    // The BPF programs' diagnostics come under the name of their crate.
    let bpf = if bpf_log { "debug" } else { "off" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| {
        EnvFilter::new(format!("warn,profiler_user={level},profiler_bpf={bpf}"))
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would tell of a standard error that is gone on that very standard error, and panic in
        // whichever thread wanted to log.
        .log_internal_errors(false)
        .init();
}
