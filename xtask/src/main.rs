//! Set-up, builds, tests and checks of spanprof: `cargo xtask COMMAND`.
//!
//! One file per command. A new one is a file, a `mod` line and a variant of [`Command`].

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool prints")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod exec;
mod cache;
#[path = "../../profiler-user/build/bpf_toolchain.rs"]
#[expect(dead_code, reason = "profiler-user's build script uses the rest")]
mod bpf_toolchain;
mod apt;

mod setup;
mod doctor;
mod build;
mod image;
mod deb;
mod oci;
mod test;
mod test_count;
mod demo;
mod bench;
mod tidy;
mod codegen;
mod deny;
mod ci;

mod bpf_tools;
mod fixture_tools;
mod musl_rust;
mod go_programs;
mod guests;
mod manifest_tools;

/// Set-up, builds, tests and checks of spanprof.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What `bench` can measure alone.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Measured {
    /// Stack walks, as ratios to everything else that a sample is; about five minutes.
    Unwind,
    /// The example service's requests a second, with and without span-marker and the profiler; about
    /// five minutes.
    Service,
    /// A node of sixty pods for ten minutes: the agent's processor time and memory.
    Pods,
    /// Entering and leaving spans, beside what other libraries cost; about two minutes.
    Marker,
}

#[derive(Subcommand)]
enum Command {
    /// Download and build every tool that building and testing need, into a cache folder.
    ///
    /// The folder is `${XDG_CACHE_HOME:-~/.cache}/spanprof`. Nothing else on the machine changes,
    /// and no root is needed. What is there already is left alone.
    Setup,
    /// Tell which tools are there, and what brings the others.
    Doctor,
    /// Build the release binary of spanprof.
    Build {
        /// As a program that needs no C library beside itself, for containers and other machines.
        #[arg(long)]
        r#static: bool,
    },
    /// Make a container image of the agent, without a container engine.
    ///
    /// An OCI image layout in a tar, for `ctr images import`, `podman load` or `skopeo copy`. Needs
    /// the C library for static programs (`libc.a`).
    Image {
        /// The cargo profile.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Make a Debian package of the agent, with a systemd unit.
    ///
    /// Needs `dpkg-deb` and the C library for static programs (`libc.a`).
    Deb {
        /// The cargo profile.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Profile the example service, and hold the profile against the service's own clock.
    ///
    /// Needs root. Writes to `target/demo`.
    Demo,
    /// Measure what sampling, the agent and marking cost here, and print it as a table.
    ///
    /// Needs root, a quiet machine and about three minutes. Sets `kernel.bpf_stats_enabled` while it
    /// runs.
    Bench {
        /// What to measure, if not everything that the README has.
        #[arg(value_enum)]
        what: Option<Measured>,
        /// With `unwind`: print beside it what loaded BPF programs of this name cost.
        #[arg(long, value_name = "NAME", requires = "what")]
        vs: Option<String>,
    },
    /// Run all tests, and tell which did not run.
    Test,
    /// Run the tests of the BPF programs on other kernels, in virtual machines.
    ///
    /// Each loads them, walks stacks by table and reads spans. `cargo xtask test` runs them too.
    VmTest {
        /// Which; all if none is named.
        #[arg(value_parser = guests::KERNELS.map(|kernel| kernel.name))]
        kernels: Vec<String>,
    },
    /// Check the invariants of ARCHITECTURE.md that text can check.
    Tidy,
    /// Generate the Rust code of the protobuf messages, which is checked in.
    Codegen {
        /// Change nothing; fail if the checked-in code is stale.
        #[arg(long)]
        check: bool,
    },
    /// Run everything that a change must pass, stopping at the first failure.
    Ci,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::Doctor => doctor::run(),
        Command::Build { r#static } => build::run(r#static),
        Command::Image { profile } => image::run(&profile),
        Command::Deb { profile } => deb::run(&profile),
        Command::Demo => demo::run(),
        Command::Bench { what: None, .. } => bench::run(),
        Command::Bench { what: Some(Measured::Unwind), vs } => {
            bench::unwind::command(vs.as_deref())
        }
        Command::Bench { what: Some(Measured::Service), .. } => bench::service::command(),
        Command::Bench { what: Some(Measured::Pods), .. } => bench::pods::command(),
        Command::Bench { what: Some(Measured::Marker), .. } => bench::marker::command(),
        Command::Test => test::run(test::Missing::Skips),
        Command::VmTest { kernels } => test::virtual_machines(&kernels),
        Command::Tidy => tidy::run(),
        Command::Codegen { check } => codegen::run(check),
        Command::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
