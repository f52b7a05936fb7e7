//! Loads whose stacks are known: of one function or of two thousand, with a leaf that leaves the
//! caches alone or not; and a mix of real programs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::bench::agent::Running;
use crate::exec::target_dir;

/// A load, and what is expected of it.
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) hz: u32,
    /// The largest ratio to the floor.
    pub(super) limit: Option<f64>,
    /// The least part of samples with complete stacks.
    pub(super) complete: f64,
    /// Its file name, if it is one program.
    pub(super) program: Option<&'static str>,
    commands: Vec<Vec<String>>,
}

/// Frames between a thread's first function and the leaf.
const DEPTH: usize = 28;
const FUNCTIONS: usize = 2000;
const PATHS: usize = 256;
/// Frames that all paths have in common.
const COMMON: usize = 14;

/// Compiles the programs.
pub(super) fn build() -> Result<Vec<Workload>> {
    let folder = target_dir().join("bench").join("unwind");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let deep = compile(&folder, "deep", &deep_source(false))?;
    let deep_cold = compile(&folder, "deep-cold", &deep_source(true))?;
    let wide = compile(&folder, "wide", &wide_source(false))?;
    let wide_cold = compile(&folder, "wide-cold", &wide_source(true))?;
    let mixed = compile(&folder, "mixed", MIXED)?;
    let one = |program: PathBuf| vec![vec![program.display().to_string()]];
    let load = |name, hz, limit, (file, path)| Workload {
        name,
        hz,
        limit: Some(limit),
        complete: 0.97,
        program: Some(file),
        commands: one(path),
    };
    Ok(vec![
        load("one function", 997, 2.5, ("deep", deep)),
        load("2,000 functions", 997, 4.5, ("wide", wide)),
        load("one function, cold caches", 97, 2.2, ("deep-cold", deep_cold)),
        load("2,000 functions, cold caches", 97, 2.8, ("wide-cold", wide_cold)),
        Workload {
            name: "real programs",
            hz: 997,
            limit: None,
            complete: 0.9,
            program: None,
            commands: real_programs(&mixed)?,
        },
    ])
}

/// Ends with its owner.
pub(super) struct Load {
    _programs: Vec<Running>,
}

impl Load {
    pub(super) fn start(workload: &Workload) -> Result<Self> {
        let start = |command: &Vec<String>| {
            let (program, arguments) = command.split_first().context("no program")?;
            let child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            child.map(Running).with_context(|| format!("cannot run {program}"))
        };
        Ok(Self { _programs: workload.commands.iter().map(start).collect::<Result<_>>()? })
    }
}

fn compile(folder: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (file, program) = (folder.join(name).with_extension("c"), folder.join(name));
    fs::write(&file, source).with_context(|| format!("cannot write {}", file.display()))?;
    let status = Command::new("cc")
        .args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread", "-o"])
        .args([&program, &file])
        .status()
        .context("cannot run cc")?;
    ensure!(status.success(), "cc ended with {status}");
    Ok(program)
}

/// Two threads; the leaf spins, or streams through more memory than the caches hold.
fn program(functions: &str, call: &str, cold: bool) -> String {
    let leaf = if cold {
        "for (int i = 0; i < 4096; i++) { at = (at + 64) & (sizeof memory[0] - 1); s += memory[me][at]++; }"
    } else {
        "for (int i = 0; i < 20000; i++) s += i;"
    };
    let memory = if cold { "static unsigned char memory[2][64 << 20];" } else { "" };
    format!(
        "#include <pthread.h>
#include <stdlib.h>
{memory}
static __thread int me;
static __thread unsigned long at;
static __thread volatile unsigned long s;
__attribute__((noinline)) static int leaf(void) {{ {leaf} return (int)s; }}
{functions}
static void *work(void *arg) {{ me = (int)(long)arg; for (unsigned i = 0;; i++) {{ {call} }} return 0; }}
int main(void) {{
    pthread_t other;
    pthread_create(&other, 0, work, (void *)1);
    work(0);
}}
"
    )
}

fn deep_source(cold: bool) -> String {
    let functions = "__attribute__((noinline)) static int down(int n) { if (!n) return leaf(); \
                     int r = down(n - 1); s += r; return r + n; }";
    program(functions, &format!("s += down({});", DEPTH - 1), cold)
}

/// Functions that save different registers and have frames of different sizes, so that their rules
/// differ; paths that choose among them.
fn wide_source(cold: bool) -> String {
    let mut text = String::from("typedef int step(const unsigned short *path, int left);\n");
    text.push_str("extern step *const steps[];\n");
    for number in 0..FUNCTIONS {
        let words = 1 + number % 13;
        let live = number % 4;
        let saved: String =
            (0..live).map(|index| format!(" int v{index} = left * {};", index + number)).collect();
        let used: String = (0..live).map(|index| format!(" + v{index}")).collect();
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "__attribute__((noinline)) static int f{number}(const unsigned short *path, int left) {{ \
             volatile long pad[{words}]; pad[0] = left;{saved} \
             int r = left ? steps[*path](path + 1, left - 1) : leaf(); return r + (int)pad[0]{used}; }}"
        );
    }
    text.push_str("step *const steps[] = {");
    (0..FUNCTIONS).for_each(|number| text.push_str(&format!("f{number},")));
    text.push_str("};\nstatic const unsigned short paths[][64] = {\n");
    // The same each time: a generator of its own (Knuth's MMIX).
    let mut state = 1_u64;
    for _ in 0..PATHS {
        text.push('{');
        for step in 0..DEPTH {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = usize::try_from(state >> 33).unwrap_or(0) % FUNCTIONS;
            let _written = write!(text, "{},", if step < COMMON { step * 7 } else { random });
        }
        text.push_str("},\n");
    }
    text.push_str("};\n");
    let call = format!(
        "const unsigned short *path = paths[i * 31 % {PATHS}]; s += steps[path[0]](path + 1, {});",
        DEPTH - 1
    );
    program(&text, &call, cold)
}

/// Signals, alloca, qsort and system calls.
const MIXED: &str = r"
#include <alloca.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
static volatile unsigned long s;
static int less(const void *a, const void *b) { s++; return *(const int *)a - *(const int *)b; }
static void on_signal(int n) { for (int i = 0; i < 20000; i++) s += i * n; }
__attribute__((noinline)) static void frame(int n) {
    char *buffer = alloca(64 + n % 512);
    memset(buffer, n, 64);
    for (int i = 0; i < 3000; i++) s += buffer[i % 64];
    if (n % 16) frame(n - 1);
}
int main(void) {
    signal(SIGALRM, on_signal);
    struct itimerval each = { { 0, 3000 }, { 0, 3000 } };
    setitimer(ITIMER_REAL, &each, 0);
    static int numbers[20000];
    char bytes[4096];
    int pipes[2];
    if (pipe(pipes)) return 1;
    for (unsigned round = 1;; round++) {
        for (unsigned i = 0; i < 20000; i++) numbers[i] = (int)(i * 7919u * round % 20011u);
        qsort(numbers, 20000, sizeof numbers[0], less);
        for (int n = 0; n < 64; n++) frame(n * 16 + 15);
        for (int i = 0; i < 400; i++)
            if (write(pipes[1], bytes, sizeof bytes) < 0 || read(pipes[0], bytes, sizeof bytes) < 0) return 1;
    }
}
";

/// Whatever of these is on the machine; the C program always is.
fn real_programs(mixed: &Path) -> Result<Vec<Vec<String>>> {
    let python = "import json\nd={str(i):list(range(50)) for i in range(200)}\nwhile True:\n s=json.dumps(d); x=json.loads(s); sorted(s)";
    let node = "const d={};for(let i=0;i<500;i++)d[i]=[...Array(50).keys()];for(;;){const s=JSON.stringify(d);JSON.parse(s);s.split('').sort()}";
    let build = format!(
        "while :; do cargo check -q --offline --package=profiler-common --target-dir='{0}'; \
         rm -rf '{0}'; done",
        target_dir().join("bench").join("checked").display()
    );
    let mut commands = vec![vec![mixed.display().to_string()]];
    for (program, arguments) in
        [("python3", vec!["-c", python]), ("node", vec!["-e", node]), ("sh", vec!["-c", &build])]
    {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status()
            .context("cannot run sh")?;
        if found.success() {
            let command = std::iter::once(program).chain(arguments).map(str::to_owned);
            commands.push(command.collect());
        } else {
            eprintln!("     {program} is not there: the mix is without it");
        }
    }
    Ok(commands)
}
